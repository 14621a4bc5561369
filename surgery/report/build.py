"""From the folders of studies to their reports."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from surgery.errors import StateError
from surgery.registry import Registry, load_registry
from surgery.report.across import Across, across, across_view
from surgery.report.figures import ANSWER, figure_of, figures
from surgery.report.plots.forest import forest
from surgery.report.view import view
from surgery.study import Comparison, StudySpec, compare, read_comparison
from surgery.study.results import RESULTS, STUDY, write_atomically
from surgery.study.tables import write_tables

__all__ = ["REPORT", "build_across", "build_report", "compare_and_report"]

REPORT = "report.html"
_FOOTER = "Built by surgery from the files of the study alone; the same results give the same report."


def build_report(folder: Path | str, out: Path | str | None = None) -> Path:
    """Write the report of the finished study in `folder` and return its path. Needs no plugin and no model.

    Without `out` the folder's CSV files are written again, too.

    Args:
        folder: of the study.
        out: the page, a file that ends in .html; without, `report.html` in the folder.

    Raises:
        StateError: there is no finished study in the folder, or `out` is another file.
    """
    path = Path(folder) / REPORT if out is None else _page(out, (Path(folder) / REPORT).resolve())
    comparison = read_comparison(folder)
    if out is None:
        # A folder of an earlier version lacks the tables of newer plots.
        write_tables(comparison.folder / "tables", comparison.summary, comparison.records)
    html = _rendered("report.html", view=view(comparison), figures=figures(comparison), answer=ANSWER)
    write_atomically(path, html)
    return path


def build_across(folders: Sequence[Path | str], out: Path | str) -> tuple[Path, Across]:
    """Write one page over several finished studies, and its numbers as CSV beside it; return its path and the studies.

    Raises:
        StateError: studies that cannot share a page (see `across`), none with a difference, or `out` is another file.
    """
    path = _page(out)
    found = across(folders)
    drawing = forest(found, path.stem)
    if drawing is None:
        raise StateError(
            "no study has an arm whose difference to the reference was measured", hint="see each study's own report"
        )
    shown = across_view(found, path.stem)
    numbers = _numbers_beside(path, shown.numbers.columns)
    html = _rendered("across.html", view=shown, figure=figure_of(drawing))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(shown.numbers.columns)
    writer.writerows(shown.numbers.rows)
    write_atomically(numbers, text.getvalue())
    write_atomically(path, html)
    return path, found


def compare_and_report(
    study: StudySpec | Path | str, out: Path | str, *, registry: Registry | None = None, **options: Any
) -> Comparison:
    """Run a study as `surgery.study.compare` does, with its options, and write `report.html` beside its numbers."""
    comparison = compare(study, out, registry=registry or load_registry(), **options)
    build_report(comparison.folder)
    return comparison


def _page(out: Path | str, own: Path | None = None) -> Path:
    """Return where a page goes: a new file, or one of this command's that is written again; `own` may be in a study."""
    path = Path(out)
    if path.suffix != ".html" or path.is_dir():
        raise StateError("the page is no .html file", str(path), "write --out NAME.html")
    if path.is_file() and _FOOTER.encode() not in path.read_bytes():
        raise StateError("the file is no report, and would be lost", str(path), "choose another --out")
    whole = path.resolve()
    inside = next((each for each in whole.parents if (each / STUDY).is_file() and (each / RESULTS).is_file()), None)
    if inside is not None and whole != own:
        what = f"the page would lie among the files of the study in {inside}"
        raise StateError(what, str(path), "choose another --out; without it a study's report goes to its own folder")
    return path


def _numbers_beside(page: Path, header: Sequence[str]) -> Path:
    """Return where the numbers of `page` go: a new file, or such numbers that are written again."""
    path = page.with_suffix(".csv")
    if path.is_dir() or (path.is_file() and path.read_bytes().split(b"\n", 1)[0] != ",".join(header).encode()):
        raise StateError("the page's numbers would take the place of this file", str(path), "choose another --out")
    return path


def _rendered(template: str, **values: Any) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("surgery.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    assert environment.loader is not None
    style = environment.loader.get_source(environment, "style.css")[0]
    return environment.get_template(template).render(style=style, footer=_FOOTER, **values).lstrip()
