"""From a study's folder to its report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from surgery.registry import Registry, load_registry
from surgery.report.figures import figures
from surgery.report.view import view
from surgery.study import Comparison, StudySpec, compare, read_comparison
from surgery.study.results import write_atomically

__all__ = ["REPORT", "build_report", "compare_and_report"]

REPORT = "report.html"


def build_report(folder: Path | str) -> Path:
    """Write the report of the finished study in `folder` and return its path. Needs no plugin and no model.

    Raises:
        StateError: there is no finished study in the folder.
    """
    import jinja2

    comparison = read_comparison(folder)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("surgery.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = environment.loader and environment.loader.get_source(environment, "style.css")[0]
    html = environment.get_template("report.html").render(
        style=style, view=view(comparison), figures=figures(comparison)
    )
    path = comparison.folder / REPORT
    write_atomically(path, html)
    return path


def compare_and_report(
    study: StudySpec | Path | str, out: Path | str, *, registry: Registry | None = None, **options: Any
) -> Comparison:
    """Run a study as `surgery.study.compare` does, with its options, and write `report.html` beside its numbers."""
    comparison = compare(study, out, registry=registry or load_registry(), **options)
    build_report(comparison.folder)
    return comparison
