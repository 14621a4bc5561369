"""Deliberate mistakes in merging on disk: each is noticed by the check that is named beside it."""

from __future__ import annotations

import builtins
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import test_checkpoint_flips as flips
import torch
from operating import REGISTRY
from safetensors.torch import load_file, save_file
from test_checkpoint_flips import edit_tensor, missed
from test_checkpoint_order import order_decides
from tiny import snapshot, wanted
from tiny_world import World

from surgery import SurgeryError, merge_checkpoint, unmerge_checkpoint, verify_checkpoint
from surgery.checkpoint import (
    RECEIPT,
    merge,
    opening,
    receipt,
    record,
    repeated,
    source,
    stream,
    units,
    verify,
    weights,
    work,
)
from surgery.checkpoint.journal import canonical
from surgery.errors import CheckpointError, DriftError, StateError
from surgery.exact import residue

Patch = Callable[[pytest.MonkeyPatch], None]


class Anything(str):
    """Equal to every hash."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False


# The checks ---------------------------------------------------------------------------------------------------------


@contextmanager
def world(**options: Any) -> Iterator[World]:
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    try:
        yield World(folder, **options)
    finally:
        shutil.rmtree(folder)


@contextmanager
def refused(here: World, kind: type[SurgeryError], match: str) -> Iterator[None]:
    """The block must raise, and leave every file as it was."""
    before = snapshot(here.root)
    with pytest.raises(kind, match=match):
        yield
    assert snapshot(here.root) == before


def holder(folder: Path, name: str) -> Path:
    return next(path for path in folder.glob("*.safetensors") if name in load_file(path))


def flip(path: Path, place: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def merged_bits_are_compared() -> None:
    """Also where the way back does not need them."""
    with world(undo="copy") as here:
        edit_tensor(holder(here.root / "merged", "a.weight"), "a.weight")
        with refused(here, DriftError, "the merged weights were changed since they were written"):
            here.unmerge(here.root / "out")


def base_bits_are_compared() -> None:
    with world(undo="file") as here:
        edit_tensor(holder(here.root / "base", "a.weight"), "a.weight")
        with refused(here, DriftError, "is not the one that was merged"):
            here.unmerge(here.root / "out")


def untouched_bits_are_compared() -> None:
    with world() as here:
        edit_tensor(holder(here.root / "merged", "c.weight"), "c.weight")
        with refused(here, DriftError, "is not the one that was merged"):
            here.unmerge(here.root / "out")


def headers_are_compared() -> None:
    with world() as here:
        path = here.root / "merged" / "model-00001-of-00002.safetensors"
        path.write_bytes(path.read_bytes().replace(b'"format":"pt"', b'"format":"tf"'))
        with refused(here, DriftError, "the headers of the weight files were changed"):
            here.unmerge(here.root / "out")
        with refused(here, DriftError, "the header was changed"):
            verify_checkpoint(here.root / "merged", registry=REGISTRY)


def files_beside_are_compared() -> None:
    with world() as here:
        flip(here.root / "merged" / "config.json", 5)
        with refused(here, DriftError, "config.json: the file was changed"):
            here.unmerge(here.root / "out")


def the_residue_is_compared() -> None:
    """Before anything is made of it: a blob's own checksum is no sha256."""
    with world() as here:
        flip(here.root / "merged" / "surgery" / "residue.bin")
        with refused(here, DriftError, r"residue.bin: the file was changed"):
            here.unmerge(here.root / "out")


def sealed(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the receipt as somebody would who knows how it is sealed."""
    import hashlib

    said = json.loads((folder / RECEIPT).read_bytes())
    del said["sha256"]
    for name, entry in said["files"].items():
        if entry["sha256"] is not None:
            data = (folder / name).read_bytes()
            entry.update(size=len(data), sha256=hashlib.sha256(data).hexdigest())
    change(said)
    (folder / RECEIPT).write_bytes(canonical({**said, "sha256": hashlib.sha256(canonical(said)).hexdigest()}))


def adapters_are_compared() -> None:
    """Also where the list of files was brought in line with another adapter."""
    with world() as here:
        edit_tensor(
            here.root / "merged/surgery/adapters/theirs/adapter_model.safetensors", "base_model.model.a.lora_B.weight"
        )
        sealed(here.root / "merged", lambda said: None)
        with refused(here, DriftError, "the adapter 'theirs' is not the one that was merged"):
            here.unmerge(here.root / "out")


def records_are_compared() -> None:
    def other_factor(said: dict[str, Any]) -> None:
        said["merge"]["adapters"][0]["factor"] = 2.0

    with world() as here:
        sealed(here.root / "merged", other_factor)
        with refused(here, CheckpointError, "the record of the merge is damaged"):
            here.unmerge(here.root / "out")


def receipts_are_compared() -> None:
    with world() as here:
        path = here.root / "back" / RECEIPT
        whole = path.read_bytes()
        for place in range(whole.index(b'"job"'), len(whole), 3):
            flip(path, place)
            with refused(here, CheckpointError, "the receipt"):
                verify_checkpoint(here.root / "back", registry=REGISTRY)
            path.write_bytes(whole)


def no_wrong_base_is_ever_written() -> None:
    """Of several comparisons one is enough: whatever bit is flipped, no other base comes out."""
    with world() as here:
        assert missed(here.root / "merged", 4, lambda: here.unmerge(here.root / "out"))[0] == []


def what_is_done_is_compared() -> None:
    with world() as here:
        flips.test_a_finished_merge_is_compared_before_it_is_said_to_be_done(here)
    with world() as here:
        flips.test_a_finished_unmerge_is_compared_too(here)


def what_it_was_made_of_is_compared() -> None:
    for name in ("a.weight", "c.weight"):
        with world() as here:
            flips.test_a_base_that_changed_is_another_base(name, here)


def what_it_was_merged_onto_is_compared() -> None:
    with world() as here:
        flips.test_a_finished_merge_onto_a_merged_base_is_compared_with_that_base(here)


def other_adapters_are_other_jobs() -> None:
    for what in ("tensors", "config"):
        with world() as here:
            flips.test_an_adapter_of_peft_that_changed_is_another_adapter(what, here)


def adapters_stay_the_same_during_a_merge() -> None:
    with world() as here:
        path = here.root / "theirs" / "adapter_model.safetensors"

        def rewrite(done: int, total: int, what: str) -> None:
            held = load_file(path)
            save_file({key: torch.zeros_like(tensor) for key, tensor in held.items()}, path, {"format": "pt"})

        with pytest.raises(DriftError, match="the adapter was changed while it was merged"):
            here.merge(here.root / "out", progress=rewrite)
        assert not (here.root / "out").exists()


def adapters_belong_to_their_base() -> None:
    with world() as here:
        edit_tensor(holder(here.root / "base", "c.weight"), "c.weight")
        with refused(here, CheckpointError, "c.weight has other values than in the base of 'own'"):
            here.merge(here.root / "out")


def adapters_are_merged_once() -> None:
    """Also under another name."""
    with world() as here, refused(here, StateError, "'copy' is merged already"):
        merge_checkpoint(here.root / "merged", {"copy": here.root / "own"}, here.root / "out", registry=REGISTRY)


def several_adapters_count() -> None:
    with world() as here:
        unmerge_checkpoint(here.root / "merged", here.root / "one", adapters=["own"], registry=REGISTRY)
        for folder, adapters in (("merged", here.adapters), ("one", here.adapters[1:])):
            want = wanted(here.tensors, adapters)
            got = {
                name: t for path in (here.root / folder).glob("*.safetensors") for name, t in load_file(path).items()
            }
            assert all(torch.equal(got[name].view(torch.int16), want[name].view(torch.int16)) for name in want)
        unmerge_checkpoint(here.root / "one", here.root / "out", registry=REGISTRY)
        base = snapshot(here.root / "base")
        assert {name: data for name, data in snapshot(here.root / "out").items() if name != RECEIPT} == base


def order_is_canonical() -> None:
    for pair in (("lora", "ia3"), ("ia3", "lora")):
        folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        try:
            order_decides(folder, *pair)
        finally:
            shutil.rmtree(folder)


# The mistakes -------------------------------------------------------------------------------------------------------


def _told_of(**other: Any) -> Patch:
    """The record of a tensor says what is convenient."""

    def patch(where: pytest.MonkeyPatch) -> None:
        real = source.Source.told_of

        def told(self: source.Source, piece: Any) -> Any:
            found = real(self, piece)
            return None if found is None else replace(found, **other)

        where.setattr(source.Source, "told_of", told)

    return patch


def _nothing(module: Any, name: str, result: Any = None) -> Patch:
    return lambda where: where.setattr(module, name, lambda *_, **__: result)


def _heads(where: pytest.MonkeyPatch) -> None:
    fixed = SimpleNamespace(hexdigest=lambda: "0" * 64)
    where.setattr(weights, "hashlib", SimpleNamespace(sha256=lambda _: fixed))


def _beside(*names: str) -> Patch:
    """Some files are not compared; all of them without names."""

    def patch(where: pytest.MonkeyPatch) -> None:
        real = verify.changed_files
        where.setattr(
            opening, "changed_files",
            lambda *args, **more: [one for one in real(*args, **more) if names and not one.where.endswith(names)],
        )  # fmt: skip

    return patch


def _digest(where: pytest.MonkeyPatch) -> None:
    real = opening.load

    def load(*args: Any) -> Any:
        one = real(*args)
        one.digest = Anything(one.digest)
        return one

    for module in (merge, opening):
        where.setattr(module, "load", load)


def _sums(where: pytest.MonkeyPatch) -> None:
    real = opening.load

    def load(*args: Any) -> Any:
        one = real(*args)
        one.sums = dict.fromkeys(one.sums, Anything())
        return one

    for module in (merge, opening):
        where.setattr(module, "load", load)


def _seal(where: pytest.MonkeyPatch) -> None:
    class Same(bytes):
        __slots__ = ()
        __hash__ = bytes.__hash__

        def __eq__(self, other: object) -> bool:
            return True

    real = receipt._sealed
    where.setattr(receipt, "_sealed", lambda body: Same(real(body)))


def _headers_name_the_job(where: pytest.MonkeyPatch) -> None:
    real = work.Work.__dict__["job"].func

    def job(self: work.Work) -> str:
        made = replace(self.planned, adapters=tuple(replace(one, digest="") for one in self.planned.adapters))
        found: str = real(SimpleNamespace(planned=made, weights=self.weights, going=self.going))
        return found

    where.setattr(work.Work, "job", property(job))


def _reversed(where: pytest.MonkeyPatch) -> None:
    def backwards(values: Any, *, key: Any = None) -> list[Any]:
        return builtins.sorted(values, key=key, reverse=True)

    where.setattr(units, "sorted", backwards, raising=False)


def _one_counts(where: pytest.MonkeyPatch) -> None:
    real = units.changes_for
    for module in (source, stream):
        where.setattr(module, "changes_for", lambda unit, adapters, base: real(unit, adapters[:1], base))


def _nobody_looks(where: pytest.MonkeyPatch) -> None:
    """Neither at files, nor at bits, nor at the checksum within a blob."""
    _beside("residue.bin")(where)
    _nothing(stream.Stream, "_refuse_drift")(where)
    where.setattr(residue.xxhash, "xxh3_64_intdigest", lambda _: 7)


MUTANTS: dict[str, tuple[Patch, Callable[[], None]]] = {
    "merged bits are not compared": (_told_of(merged=Anything()), merged_bits_are_compared),
    "the base's bits are not compared": (_told_of(base=Anything()), base_bits_are_compared),
    "the base's bits are not compared, where they are copied": (_told_of(base=Anything()), untouched_bits_are_compared),
    "drift is not refused": (_nothing(stream.Stream, "_refuse_drift"), base_bits_are_compared),
    "headers are not compared": (_heads, headers_are_compared),
    "files beside the weights are not compared": (_beside(), files_beside_are_compared),
    "the residue's sha256 is not compared": (_beside("residue.bin"), the_residue_is_compared),
    "adapters are not compared": (_digest, adapters_are_compared),
    "the record's checksum is not compared": (_nothing(record, "_digest", Anything()), records_are_compared),
    "the receipt's seal is not compared": (_seal, receipts_are_compared),
    "nobody looks at the residue at all": (_nobody_looks, no_wrong_base_is_ever_written),
    "what is there is done": (_nothing(work, "refuse_other_result"), what_is_done_is_compared),
    "a damaged result is done": (_nothing(repeated, "verify_checkpoint"), what_is_done_is_compared),
    "another base is the same": (_nothing(repeated, "hashes", {}), what_it_was_made_of_is_compared),
    "another merged base is the same": (_nothing(repeated, "_bases", {}), what_it_was_merged_onto_is_compared),
    "adapters do not name the job": (_headers_name_the_job, other_adapters_are_other_jobs),
    "adapters that change meanwhile are kept": (_sums, adapters_stay_the_same_during_a_merge),
    "adapters go onto any base": (_nothing(work, "_refuse_other_base"), adapters_belong_to_their_base),
    "adapters are merged twice": (_nothing(merge, "refuse_twice"), adapters_are_merged_once),
    "of several adapters the first one counts": (_one_counts, several_adapters_count),
    "the order is the other way round": (_reversed, order_is_canonical),
}


@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_a_mutant_dies(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    patch, check = MUTANTS[name]
    check()
    with monkeypatch.context() as inside:
        patch(inside)
        with pytest.raises((Exception, pytest.fail.Exception)):
            check()
    check()
