"""The processes that work on one run: how many, whether they share out the model, and whether they see the same."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from surgery.errors import TrainingError

__all__ = [
    "agree",
    "gathered",
    "is_main",
    "is_sharded",
    "join",
    "launcher_aside",
    "processes",
    "rank",
    "shared_batches",
]

_ASKED = "ACCELERATE_USE_FSDP"
_YES = ("1", "true", "yes")


def processes() -> int:
    """Return how many processes torchrun or accelerate started for this run; one without them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return the number of this process among them, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Whether this is the process that writes."""
    return rank() == 0


def is_sharded() -> bool:
    """Whether the processes share out the model among themselves: `accelerate launch --use_fsdp`."""
    return processes() > 1 and os.environ.get(_ASKED, "").lower() in _YES


@contextlib.contextmanager
def launcher_aside() -> Iterator[None]:
    """Within the block accelerate and transformers do not know that the model is to be shared out.

    accelerate can share out on accelerators only, after it has thrown away the weights of all processes but one; and
    an operation needs the whole model first. So the launcher is theirs, and the sharing out is `Shards`.
    """
    before = os.environ.get(_ASKED)
    if is_sharded():
        os.environ[_ASKED] = "false"
    try:
        yield
    finally:
        if before is not None:
            os.environ[_ASKED] = before


def join(device: torch.device) -> None:
    """Make this process one of the group; nothing where it is one already. Everybody waits for everybody."""
    import torch.distributed as dist

    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("cuda:nccl,cpu:gloo" if device.type == "cuda" else "gloo")


def agree(facts: Mapping[str, Any]) -> None:
    """Raise TrainingError, in every process, where not all of them have the same `facts`.

    Gradients of other data, or for other weights, would be added up without a word.
    """
    if not _is_joined():
        return
    import torch.distributed as dist

    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, dict(facts))
    mine = everyone[0]
    for number, other in enumerate(everyone):
        keys = sorted(key for key in {*mine, *other} if mine.get(key) != other.get(key))
        if keys:
            what = f"processes 0 and {number} do not start from the same: {', '.join(keys)} differ"
            raise TrainingError(what, hint="give every process the same spec, model and data files")


def shared_batches(count: int) -> list[tuple[int, bool]]:
    """Return which of `count` batches this process computes, each with whether its numbers are wanted.

    All processes get equally many, since those of a shared model compute together: who has none left repeats one.
    """
    if not _is_joined() or count == 0:
        return [(index, True) for index in range(count)]
    import torch.distributed as dist

    size, own = dist.get_world_size(), dist.get_rank()
    return [(min(start + own, count - 1), start + own < count) for start in range(0, count, size)]


def gathered(found: list[Any]) -> list[Any]:
    """Return what all processes found, one after the other. All processes must ask at once."""
    if not _is_joined():
        return found
    import torch.distributed as dist

    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, found)
    return [one for part in everyone for one in part]


def _is_joined() -> bool:
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
