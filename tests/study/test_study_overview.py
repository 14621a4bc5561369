"""The table that `surgery compare` prints."""

from __future__ import annotations

from synthetic import make_records, make_study, make_summary

from surgery.study.overview import overview
from surgery.study.words import finding


def test_every_row_of_the_summary_is_a_line() -> None:
    study = make_study()
    summary = make_summary(study, make_records(study))
    table = overview(summary).splitlines()
    assert table[0].split()[0] == "arm"
    assert table.pop() == "±: half of the 95 % interval over seeds"
    assert len(table) == 1 + len(summary.rows)
    for line, row in zip(table[1:], summary.rows, strict=True):
        assert line.startswith(row.label)
        if row.verdict is not None:
            assert row.verdict.word in line
        if row.differ is not None:
            assert line.endswith(f"{row.differ:,}")


def test_an_indicative_verdict_is_marked() -> None:
    study = make_study(3, grid=False)
    summary = make_summary(study, make_records(study))
    marked = [row for row in summary.rows if row.verdict and row.verdict.indicative]
    assert marked
    table = overview(summary)
    for row in marked:
        line = next(line for line in table.splitlines() if line.startswith(row.label))
        assert row.verdict is not None
        assert f" {row.verdict.word} (indicative) " in line
    seeds = next(check for check in summary.checks if check.name == "seeds")
    assert seeds.detail == (
        "3: verdicts are indicative, 5 seeds and learning rates that are chosen from grids make them firm"
    )
    swept = make_study(3)
    seeds = next(check for check in make_summary(swept, make_records(swept)).checks if check.name == "seeds")
    assert seeds.detail == "3: verdicts are indicative, 5 make them firm"


def test_a_metric_without_a_unit_has_no_brackets() -> None:
    study = make_study()
    records = make_records(study)
    for record in records:
        record["metric"]["name"] = "score"
        for values in (record["test"], record["validation"]):
            if values is not None:
                values["score"] = values["accuracy"]
        if record["items"]:
            items = record["items"]
            items["score"] = [float(a == b) for a, b in zip(items["prediction"], items["label"], strict=True)]
    summary = make_summary(study, records)
    assert "[]" not in overview(summary).splitlines()[0]
    assert " score " in overview(summary).splitlines()[0]
    told = next(finding(summary, row) for row in summary.rows if row.verdict and row.interval)
    assert "  " not in told
