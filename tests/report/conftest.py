"""Finished studies to report on, made up from a known truth."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "study"))

from stub import Stub, text_registry
from synthetic import make_study

from surgery.engine.scheduler import InProcess
from surgery.study import Comparison, StudySpec, compare

Finish = Callable[[Path, StudySpec], Comparison]


@pytest.fixture(scope="session")
def finish() -> Finish:
    """Return a function that runs a study with made-up results."""

    def run(folder: Path, study: StudySpec) -> Comparison:
        log = folder.with_suffix(".log")
        with Stub(log).installed():
            return compare(study, folder, registry=text_registry(), engine=InProcess())

    return run


@pytest.fixture(scope="session")
def comparison(finish: Finish, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """A study of five seeds."""
    return finish(tmp_path_factory.mktemp("report") / "five", make_study(5, weights="all"))
