"""`surgery train`: one spec, one run folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from surgery.cli.call import Call
from surgery.cli.complete import spec_files

if TYPE_CHECKING:
    from surgery.spec import Spec
    from surgery.training import RunResult

__all__ = ["EXAMPLES", "parse_data", "train"]

EXAMPLES = "Example:  surgery train specs/sentiment-sst2.yaml --out runs/sst2"

_SPLITS = ("train", "validation", "test")


_KEEP = ("ram", "disk", "residue", "none")


def _keep(value: str) -> str:
    if value not in _KEEP:
        from surgery.errors import nearest

        raise typer.BadParameter(f"{value!r} is unknown; {nearest(value, _KEEP)}")
    return value


def train(
    call: Call,
    spec: Annotated[
        Path, typer.Argument(metavar="SPEC", help="The spec file.", readable=False, autocompletion=spec_files)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The run folder; new or empty.")],
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DATA",
            help="A training file, a folder with one file per split, or train=FILE,validation=FILE,test=FILE;"
            " in place of the spec's data, whose columns stay.",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="A folder or name, in place of the spec's model.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", min=0, max=2**63 - 1, help="In place of the spec's seed.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that DIR holds.")] = False,
    keep: Annotated[
        str,
        typer.Option(
            "--keep",
            metavar="KEEP",
            callback=_keep,
            help="Where originals are while merged: ram, disk, residue or none.",
        ),
    ] = "ram",
) -> None:
    """Train what a spec says, into a folder that holds everything needed to repeat it.

    The base is never changed: DIR/adapter holds what was learnt. Ctrl-C stops after the running step; --resume goes on.
    """
    from surgery.cli.files import placing, read_spec
    from surgery.cli.progress import progress

    override = parse_data(data) if data is not None else None
    registry = call.registry()
    found = _with_seed(read_spec(spec, registry), seed)
    from surgery.training import train as run  # the slow import comes after the spec is known to be valid
    from surgery.training.world import is_main

    with placing(spec), progress(call) as tell:
        result = run(
            found,
            out,
            registry=registry,
            data=override,
            model=model,
            resume=resume,
            progress=tell,
            tell=call.note,
            keep=keep,
        )
    if not is_main():  # one of the processes that accelerate started speaks for all
        return
    call.answer(_plain(result), _text(found, result), lambda line: "bold green" if line.startswith("trained") else "")
    call.next_step(f"in Python: surgery.load_adapter(model, {str(result.folder / 'adapter')!r})")


def parse_data(text: str) -> str | Mapping[str, str]:
    """Return what `--data` means: a path, or split -> path.

    >>> parse_data("train=a.csv,test=b.csv")
    {'train': 'a.csv', 'test': 'b.csv'}
    """
    from surgery.errors import DataError, nearest

    if "=" not in text or Path(text).exists():
        return text
    given: dict[str, str] = {}
    for item in text.split(","):
        split, has_value, path = (part.strip() for part in item.partition("="))
        if not has_value or not path:
            raise DataError(f"{item!r} is not SPLIT=FILE", "--data", "write train=FILE,validation=FILE,test=FILE")
        if split not in _SPLITS:
            raise DataError(f"unknown split {split!r}", "--data", nearest(split, _SPLITS))
        if split in given:
            raise DataError(f"the split {split!r} is given twice", "--data", "name each split once")
        given[split] = path
    return given


def _with_seed(spec: Spec, seed: int | None) -> Spec:
    return spec if seed is None else spec.model_copy(update={"seed": seed})


def _plain(result: RunResult) -> dict[str, Any]:
    return {
        "folder": str(result.folder),
        "adapter": str(result.folder / "adapter"),
        "metrics": {split: dict(values) for split, values in result.metrics.items()},
        "was_done": result.was_done,
        "notes": list(result.notes),
    }


def _text(spec: Spec, result: RunResult) -> str:
    lines = [f"trained {spec.name}" if not result.was_done else f"{spec.name} was already trained"]
    if result.fit is not None:
        fit = result.fit
        lines[0] += f": {fit.updates:,} steps, {fit.examples:,} examples, {fit.seconds:.1f} s"
    for split, values in result.metrics.items():
        shown = "  ".join(
            f"{name} {'not finite' if value is None else f'{value:.4f}'}" for name, value in values.items()
        )
        lines.append(f"  {split:<10}  {shown}")
    lines.append(f"  saved       {result.folder}")
    return "\n".join(lines)
