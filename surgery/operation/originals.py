"""Where pristine weights are while a merge is live: in memory, in the base checkpoint, in a residue, or nowhere."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from surgery.errors import CheckpointError, DriftError, StateError, nearest
from surgery.operation.bits import Expected, checksum, sha256
from surgery.planning.headers import TensorHeader, read_checkpoint_headers

__all__ = ["KEEPS", "Keeper", "Original"]

KEEPS = ("ram", "disk", "residue", "none")


class Original(ABC):
    """One pristine tensor that can be had again, or not.

    Attributes:
        checksum: of its bits, where it is known.
    """

    checksum: Expected | None = None

    @abstractmethod
    def restore(self, live: torch.Tensor) -> torch.Tensor:
        """Return the pristine tensor, bit for bit, on the device of `live`, which is the merged one.

        Raises:
            StateError: it was not kept.
            DriftError, CheckpointError: it is no longer what it was.
        """


class _Kept(Original):
    """The tensor itself: unmerging points back at it."""

    def __init__(self, tensor: torch.Tensor, expected: Expected | None) -> None:
        self._tensor = tensor
        self.checksum = expected

    def restore(self, live: torch.Tensor) -> torch.Tensor:
        if self.checksum is not None and checksum(self._tensor) != self.checksum.result():
            raise DriftError("a kept original was changed while a merge was live", hint="load the base again")
        return self._tensor.to(live.device)


class _OnDisk(Original):
    """A range of the base checkpoint, checked by sha256 whenever it is read."""

    def __init__(self, header: TensorHeader, digest: str) -> None:
        self._header = header
        self._digest = digest

    def restore(self, live: torch.Tensor) -> torch.Tensor:
        tensor = _read(self._header)
        if sha256(tensor) != self._digest:
            raise DriftError(
                f"{self._header.name} is no longer what it was when it was merged",
                str(self._header.file),
                "put the base checkpoint back and try again; the model is unchanged",
            )
        return tensor.to(live.device)


class _Forgotten(Original):
    def __init__(self, name: str) -> None:
        self._name = name

    def restore(self, live: torch.Tensor) -> torch.Tensor:
        raise StateError(
            f"the original of {self._name} was not kept (keep: none)",
            hint="load the base again; operate with another keep to be able to unmerge",
        )


class Keeper:
    """Keeps originals by one policy: `ram`, `disk` (with the base's folder or file), `residue`, or `none`.

    With `residue` this keeps the tensors of which there is none: those that adapters do not merely add a product to.
    """

    def __init__(self, policy: str, base: Path | None = None) -> None:
        if policy not in KEEPS:
            raise StateError(f"unknown keep {policy!r}", hint=nearest(policy, KEEPS))
        if policy == "disk" and base is None:
            raise StateError(
                "keep='disk' needs the folder of the base checkpoint", hint="pass base='path/to/checkpoint' to operate"
            )
        self.policy = policy
        self._base = base
        self._headers: Mapping[str, TensorHeader] | None = None

    def keep(self, names: Sequence[str], tensor: torch.Tensor, expected: Expected | None) -> Original:
        """Return a way back to `tensor`, which is about to be replaced; `expected`: its checksum.

        `names` are its names in the model: files hold a tied tensor under one of them only.

        Raises:
            StateError: the base checkpoint does not hold these very bits under this name.
        """
        if self.policy in {"ram", "residue"}:
            return _Kept(tensor, expected)
        if self.policy == "none":
            return _Forgotten(names[0])
        name = names[0]
        header = self._find(names)
        digest = sha256(tensor)
        if header.shape != tuple(tensor.shape) or f"torch.{header.dtype}" != str(tensor.dtype):
            raise StateError(
                f"{name} has another shape or dtype than in the base checkpoint", str(header.file), _USE_RAM
            )
        if sha256(_read(header)) != digest:
            raise StateError(f"{name} has other bits than in the base checkpoint", str(header.file), _USE_RAM)
        return _OnDisk(header, digest)

    def _find(self, names: Sequence[str]) -> TensorHeader:
        assert self._base is not None
        if self._headers is None:
            self._headers = read_checkpoint_headers(self._base)
        # Files of a bare base model leave out the prefix that task models put before it.
        for candidate in (*names, *(name.partition(".")[2] for name in names)):
            if candidate in self._headers:
                return self._headers[candidate]
        raise StateError(f"the base checkpoint holds no {names[0]}", str(self._base), _USE_RAM)


_USE_RAM = "operate with keep='ram'"


def _read(header: TensorHeader) -> torch.Tensor:
    try:
        with header.file.open("rb") as file:
            file.seek(header.start)
            data = bytearray(file.read(header.end - header.start))
    except OSError as error:
        raise CheckpointError(f"cannot read {header.name}: {error.strerror}", str(header.file)) from error
    if len(data) != header.end - header.start:
        raise CheckpointError(f"the file ends before {header.name} does", str(header.file))
    dtype: torch.dtype = getattr(torch, header.dtype)
    if not data:
        return torch.empty(header.shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype).reshape(header.shape)
