"""The results file survives what happens to files."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from stub import Stub, text_registry
from synthetic import make_study

from surgery.engine.scheduler import InProcess
from surgery.errors import StateError
from surgery.study import Comparison, StudySpec, compare, read_comparison
from surgery.study.results import RESULTS, STUDY, Results, read_records, without_timings

KILLS = 2
IDENTITY = {"hash": "a" * 64, "name": "one", "spec": {"margin": 0.01}}


def record(key: str, **more: Any) -> dict[str, Any]:
    return {"key": key, "value": 1, "timing": {"total": 1.0}, "machine": {}, **more}


def run(folder: Path, stub: Stub, study: StudySpec | None = None) -> Comparison:
    with stub.installed():
        return compare(study or make_study(3), folder, registry=text_registry(), engine=InProcess())


def plain(folder: Path) -> list[str]:
    lines = (folder / RESULTS).read_text().splitlines()
    return [json.dumps(without_timings(json.loads(line)), sort_keys=True) for line in lines]


def test_a_torn_last_line_is_dropped_and_told(tmp_path: Path) -> None:
    with Results.opened(tmp_path, IDENTITY) as results:
        results.append(record("a"))
        results.append(record("b"))
    path = tmp_path / RESULTS
    whole = path.read_bytes()
    for cut in (1, 5, len(whole) // 2 - 2):
        path.write_bytes(whole[:-cut])
        with Results.opened(tmp_path, IDENTITY) as results:
            # Only the newline is missing: the record is whole.
            assert list(results.records) == (["a", "b"] if cut == 1 else ["a"])
            assert bool(results.note) == (cut != 1)
            results.append(record("c"))
        assert read_records(path)[0].keys() == ({"a", "b", "c"} if cut == 1 else {"a", "c"})


def test_every_prefix_of_the_file_can_be_opened(tmp_path: Path) -> None:
    lines = [json.dumps(record(key)) for key in "abc"]
    whole = ("\n".join(lines) + "\n").encode()
    for cut in range(len(whole) + 1):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / STUDY).write_text(json.dumps(IDENTITY))
        (folder / RESULTS).write_bytes(whole[:cut])
        with Results.opened(folder, IDENTITY) as results:
            assert len(results.records) in (whole[:cut].count(b"\n"), whole[:cut].count(b"\n") + 1)
            results.append(record("z"))
        assert "z" in read_records(folder / RESULTS)[0]


def test_a_damaged_line_in_the_middle_is_an_error_and_nothing_is_lost(tmp_path: Path) -> None:
    with Results.opened(tmp_path, IDENTITY) as results:
        for key in "abc":
            results.append(record(key))
    path = tmp_path / RESULTS
    lines = path.read_text().splitlines()
    damaged = "\n".join([lines[0], lines[1][:20], lines[2], ""])
    path.write_text(damaged)
    with pytest.raises(StateError, match="not a result") as caught, Results.opened(tmp_path, IDENTITY):
        pass
    assert caught.value.where.endswith("results.jsonl:2")
    assert path.read_text() == damaged


def test_two_results_of_one_cell_are_an_error(tmp_path: Path) -> None:
    with Results.opened(tmp_path, IDENTITY) as results:
        results.append(record("a"))
    with (tmp_path / RESULTS).open("a") as file:
        file.write(json.dumps(record("a", timing={"total": 9.0})) + "\n")
    with Results.opened(tmp_path, IDENTITY) as results:
        assert list(results.records) == ["a"]
    with (tmp_path / RESULTS).open("a") as file:
        file.write(json.dumps(record("a", value=2)) + "\n")
    with pytest.raises(StateError, match="different results"), Results.opened(tmp_path, IDENTITY):
        pass


def test_two_studies_in_one_folder_are_refused(tmp_path: Path) -> None:
    run(tmp_path, Stub(tmp_path / ".log"))
    before = (tmp_path / RESULTS).read_bytes()
    with pytest.raises(StateError, match="another study") as caught:
        run(tmp_path, Stub(tmp_path / ".log"), make_study(3, margin=0.02))
    assert "spec.margin" in str(caught.value)
    assert (tmp_path / RESULTS).read_bytes() == before


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(StateError, match=r"thesis\.tex"):
        run(tmp_path, Stub(tmp_path / ".log"))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_two_processes_in_one_folder_are_refused(tmp_path: Path) -> None:
    with Results.opened(tmp_path, IDENTITY):
        with pytest.raises(StateError, match="another process"), Results.opened(tmp_path, IDENTITY):
            pass
    with Results.opened(tmp_path, IDENTITY):
        pass


def test_finished_cells_are_never_run_again(tmp_path: Path) -> None:
    stub = Stub(tmp_path / "log", fail_on="seed 2")
    folder = tmp_path / "study"
    with pytest.raises(Exception, match="the plugin tripped") as caught:
        run(folder, stub)
    assert "seed 2" in str(caught.value)
    done = set(read_records(folder / RESULTS)[0])
    assert done
    stub.fail_on = ""
    stub.log.unlink()
    run(folder, stub)
    assert not done & set(stub.begun())
    stub.log.unlink()
    run(folder, stub)
    assert stub.begun() == []


def test_a_study_goes_on_only_with_the_software_it_was_begun_with(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    run(folder, Stub(tmp_path / "log"))
    text = (folder / RESULTS).read_text().replace('"torch":"', '"torch":"0.')
    (folder / RESULTS).write_text(text)
    run(folder, Stub(tmp_path / "log"))  # nothing is left to run: the numbers are only written again
    (folder / RESULTS).write_text(text.rsplit("\n", 2)[0] + "\n")
    with pytest.raises(StateError, match="begun with other software: torch"):
        run(folder, Stub(tmp_path / "log"))


def test_the_folder_can_be_read_again(tmp_path: Path) -> None:
    comparison = run(tmp_path / "study", Stub(tmp_path / "log"))
    again = read_comparison(tmp_path / "study")
    assert again.summary == comparison.summary
    assert again.study == comparison.study
    assert again.sentences == comparison.sentences
    (tmp_path / "study" / "summary.json").unlink()
    with pytest.raises(StateError, match=r"summary\.json is missing"):
        read_comparison(tmp_path / "study")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_study_resumes_to_the_same_file(tmp_path: Path, workers: int) -> None:
    run(tmp_path / "whole", Stub(tmp_path / "whole.log"))
    folder, stub = tmp_path / "killed", Stub(tmp_path / "killed.log")
    command = [
        sys.executable,
        str(Path(__file__).parent / "drive.py"),
        str(folder),
        str(stub.log),
        "0.05",
        str(workers),
    ]
    moments = random.Random(workers)
    for _ in range(KILLS):
        begun = len(stub.begun())
        process = subprocess.Popen(command)
        # Wait until it is at work: starting takes longer than the study.
        target = begun + moments.randint(1, 5)
        while process.poll() is None and len(stub.begun()) < target:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    _gone(stub.processes())
    subprocess.run(command, check=True, timeout=120)
    assert plain(folder) == plain(tmp_path / "whole")
    for name in ("curves.csv", "learning_rates.csv"):
        assert (folder / "tables" / name).read_bytes() == (tmp_path / "whole" / "tables" / name).read_bytes()
    # Each kill loses at most the cells in flight.
    assert len(stub.begun()) <= len(plain(folder)) + KILLS * workers


def _gone(processes: set[int], seconds: float = 10.0) -> None:
    """Workers of a killed driver must end by themselves, or they would write beside its successor."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(_is_alive(process) for process in processes):
            return
        time.sleep(0.05)
    raise AssertionError("a worker outlives its driver")


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_study_that_never_ran_gives_its_folder_up(tmp_path: Path) -> None:
    with Results.opened(tmp_path, IDENTITY):
        pass
    corrected = {**IDENTITY, "hash": "b" * 64}
    with Results.opened(tmp_path, corrected):
        pass
    assert json.loads((tmp_path / STUDY).read_text())["hash"] == "b" * 64
