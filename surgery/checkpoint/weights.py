"""The weights of a checkpoint folder, opened for reading: headers first, bytes by range, never a whole file."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from surgery.architecture import Site
from surgery.checkpoint.failures import told
from surgery.errors import CheckpointError
from surgery.planning import Plan
from surgery.planning.checkpoint import Piece, inventory_of_checkpoint, pieces_of_checkpoint
from surgery.planning.headers import MAX_HEAD, TensorHeader, parse_head, read_checkpoint_headers, read_config
from surgery.planning.inventory import Inventory, ParameterEntry
from surgery.planning.make import Anatomy, anatomy, decide
from surgery.planning.sites import sites_of
from surgery.registry import Registry
from surgery.spec import Spec

__all__ = ["Head", "Weights"]


@dataclass(frozen=True, slots=True)
class Head:
    """What stands before the numbers of a file: the length of the header, and the header itself.

    Attributes:
        size: bytes of the whole file.
        length: bytes before the first tensor.
        sha256: of those.
    """

    size: int
    length: int
    sha256: str


class Weights:
    """A folder of safetensors files (one, or shards with an index), open until the block is left.

    Attributes:
        folder: where it is.
        headers: name of a tensor -> where it is.
        heads: name of a file -> what stands before its tensors.
        pieces: name of a parameter of the model -> tensors that make it up.
        described: what is known of the architecture.
        stored: as `headers`, in the files themselves; other where these were written in another dtype than `headers`,
            the base's, say.
        stored_heads: likewise.

    Args:
        folder: where it is.
        registry: the installed plugins.
        originals: a folder with what the base had before its dtype was changed: `config.json`, and NAME.head.

    Raises:
        CheckpointError: no such folder, a file that is damaged or missing, or only pickled weights.
    """

    def __init__(self, folder: Path, registry: Registry, originals: Path | None = None) -> None:
        if not folder.is_dir():
            what = "this is a file" if folder.exists() else "no such folder"
            raise CheckpointError(what, str(folder), _hint(folder, registry))
        self.folder, self.registry, self.originals = folder, registry, originals
        self._files: dict[str, int] = {}
        self._guard = threading.Lock()
        self.stored: dict[str, TensorHeader] = read_checkpoint_headers(folder)
        self._kept_heads = {} if originals is None else self._read_heads(originals)
        self.config: Mapping[str, Any] = read_config(self._original("config.json").parent)
        self.headers: dict[str, TensorHeader] = self._base_headers()
        declared = registry.architecture(str(self.config.get("model_type") or "") or None)
        architecture = declared.value if declared else None
        found = inventory_of_checkpoint(folder, architecture, self.config, self.headers)
        self.inventory: Inventory = (
            replace(found, aliases=frozenset(architecture.ties)) if architecture is not None else found
        )
        self.pieces: dict[str, tuple[Piece, ...]] = pieces_of_checkpoint(
            folder, architecture, self.config, self.headers
        )
        self.described: Anatomy = anatomy(self.inventory, registry)
        self.heads: dict[str, Head] = {}
        self.stored_heads: dict[str, Head] = {}

    def _read_heads(self, originals: Path) -> dict[str, bytes]:
        found = {}
        for path in sorted(originals.glob("*.safetensors.head")):
            with told(path):
                status = path.lstat()
                if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_HEAD:
                    raise CheckpointError("the header that was kept is no file, or too large", str(path))
                found[path.name.removesuffix(".head")] = path.read_bytes()
        return found

    def _original(self, name: str) -> Path:
        kept = None if self.originals is None else self.originals / name
        return kept if kept is not None and kept.is_file() else self.folder / name

    def _base_headers(self) -> dict[str, TensorHeader]:
        found = dict(self.stored)
        for name, head in self._kept_heads.items():
            found.update(parse_head(head, self.folder / name)[0])
        if found.keys() != self.stored.keys() or any(found[n].shape != self.stored[n].shape for n in found):
            raise CheckpointError("the headers that were kept are of other tensors", str(self.originals))
        return found

    def original(self, name: str) -> bytes:
        """A file of the base: the one that was kept, or else the folder's own."""
        path = self._original(name)
        with told(path):
            return path.read_bytes()

    def head(self, name: str) -> bytes:
        """What stood before the tensors of the base's file `name`."""
        return self._kept_heads.get(name) or self._exactly(name, 0, self.stored_heads[name].length)

    def __enter__(self) -> Self:
        for name in sorted({header.file.name for header in self.headers.values()}):
            with told(self.folder / name):
                self._files[name] = os.open(self.folder / name, os.O_RDONLY | os.O_CLOEXEC)
                size = os.fstat(self._files[name]).st_size
            length = 8 + int.from_bytes(self._exactly(name, 0, 8), "little")
            head = self._exactly(name, 0, min(length, size))
            own = self.stored_heads[name] = Head(size, length, hashlib.sha256(head).hexdigest())
            kept = self._kept_heads.get(name)
            if kept is not None:
                own = Head(parse_head(kept, self.folder / name)[1], len(kept), hashlib.sha256(kept).hexdigest())
            self.heads[name] = own
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            os.close(file)
        self._files.clear()

    def fileno(self, name: str) -> int:
        """The open file called `name`."""
        return self._files[name]

    def read(self, header: TensorHeader, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes of a tensor, as it is stored, from its byte `offset` on.

        Raises:
            CheckpointError: the file became shorter than its header says.
            DiskError: the disk refuses.
        """
        self.read_file(header.file.name, self.stored[header.name].start + offset, buffer)

    def read_file(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with bytes of a file; raises as `read`."""
        with told(self.folder / name):
            while buffer:
                count = os.preadv(self._files[name], [buffer], offset)
                if not count:
                    where = str(self.folder / name)
                    raise CheckpointError("the file became shorter while it was read", where, "fetch it again")
                offset, buffer = offset + count, buffer[count:]

    def _exactly(self, name: str, offset: int, size: int) -> bytes:
        data = bytearray(size)
        self.read_file(name, offset, memoryview(data))
        return bytes(data)

    @cached_property
    def sites(self) -> dict[str, Site]:
        """Name of a parameter -> one of its sites: how it is stored is the same for all of them."""
        return {site.name: site for site in sites_of(self.inventory, self.described.architecture)}

    def plan(self, spec: Spec, names: Mapping[str, str] | None = None) -> Plan:
        """Decide what `spec` does to this checkpoint; `names` (ours -> theirs) leaves out and renames parameters."""
        inventory = self.inventory if names is None else _renamed(self.inventory, names)
        described = self.described if names is None else anatomy(inventory, self.registry)
        return decide(spec, inventory, described, self.registry)

    def stored_name(self, name: str) -> str | None:
        """Return the name under which the tensor called `name` is in the files: its own, or that of a tied one."""
        if name in self.pieces:
            return name
        return next((other for other in self.inventory.ties.get(name, ()) if other in self.pieces), None)


def _hint(folder: Path, registry: Registry) -> str:
    """Say where the weights are of what a model is called elsewhere: by a source of models, or on a hub."""
    for source in registry.models.values():
        found = source.value.resolve(str(folder))
        if isinstance(found, Path) and found.is_dir():
            return f"{folder} lies in {found}: name that folder"
    return "name the folder of a checkpoint, with its config.json; a hub's: hf download NAME --local-dir FOLDER"


def _renamed(inventory: Inventory, names: Mapping[str, str]) -> Inventory:
    def entry(old: ParameterEntry) -> ParameterEntry:
        path, _, parameter = names[old.name].rpartition(".")
        return replace(old, path=path, parameter=parameter)

    ties = {
        names[name]: tuple(names[other] for other in others if other in names)
        for name, others in inventory.ties.items()
        if name in names
    }
    return replace(
        inventory,
        entries=tuple(entry(old) for old in inventory.entries if old.name in names),
        ties={name: others for name, others in ties.items() if others},
    )
