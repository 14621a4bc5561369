"""Texts that a model writes: beam search over left-padded prompts, the same texts every time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from surgery.errors import CheckpointError, TrainingError
from surgery.registry import Generation, TaskType
from surgery.training.positions import most_positions
from surgery.training.result import Progress

if TYPE_CHECKING:
    from surgery.training.session import Session

__all__ = ["by_item", "generates", "generation_of", "refuse_encoder_decoder", "refuse_long_prompts", "write_texts"]


def generates(task: TaskType[Any]) -> bool:
    """Return whether a task may have models write."""
    return getattr(task.generation, "__func__", None) is not TaskType.generation


def refuse_encoder_decoder(source: Path | str) -> None:
    """Raise CheckpointError for a model of an encoder and a decoder, half of which would be left out."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(str(source))
    except (OSError, ValueError, KeyError):  # told where the model is loaded
        return
    if getattr(config, "is_encoder_decoder", False):
        what = f"{config.model_type} reads with an encoder and writes with a decoder; the task needs a decoder alone"
        raise CheckpointError(what, str(source), "name a model such as gpt2")


def refuse_long_prompts(session: Session) -> None:
    """Raise TrainingError where a prompt and the longest text after it exceed the model's positions."""
    most = most_positions(session.model)
    for split in ("validation", "test"):
        generation = generation_of(session, split) if split in session.tables else None
        if generation is None or most is None:
            continue
        longest = max(map(len, generation.prompts), default=0)
        if longest + generation.max_new_tokens > most:
            what = (
                f"the longest prompt has {longest} tokens, and {generation.max_new_tokens} new ones exceed the {most}"
            )
            hint = f"write max_new_tokens: {most - longest} or less under task:" if longest < most else ""
            raise TrainingError(f"{what} that the model takes", "task.max_new_tokens", hint or "shorten the sources")


def generation_of(session: Session, split: str, limit: int | None = None) -> Generation | None:
    """Return what the task has the model write for `split`, made once for each session."""
    key = ("generation", split, limit)
    if key not in session.cache:
        rows = session.tables[split][:limit]
        session.cache[key] = session.task.generation(rows, session.tokenizer, session.options)
    found: Generation | None = session.cache[key]
    return found


def by_item(generation: Generation, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return per-row arrays added up over the rows of each item, in the arrays' own dtypes."""
    owners = np.asarray(generation.items, dtype=np.int64)
    added = {name: np.zeros(int(owners.max(initial=-1)) + 1, dtype=array.dtype) for name, array in rows.items()}
    for name, array in rows.items():
        np.add.at(added[name], owners, array)
    return added


def write_texts(
    session: Session, model: Any, generation: Generation, progress: Progress | None, description: str
) -> list[str]:
    """Return one text for each prompt, in their order. Draws nothing; to be called in inference mode.

    Prompts are padded on the left, where the attention mask hides the padding and positions are counted from the first
    real token; on the right it would stand between a prompt and its text. Batches hold prompts of like length.
    """
    order = sorted(range(len(generation.prompts)), key=lambda index: (len(generation.prompts[index]), index))
    size = session.evaluation_batch_size
    texts = [""] * len(order)
    settings = _settings(session, generation)
    ends = {*generation.stops, session.tokenizer.eos_token_id}
    device = next(model.parameters()).device
    with _own_settings(model):
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            batch = left_padded([generation.prompts[index] for index in chosen], session.tokenizer.pad_token_id)
            written = model.generate(
                **{name: tensor.to(device) for name, tensor in batch.items()}, generation_config=settings
            )
            for index, row in zip(chosen, written[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
                texts[index] = session.tokenizer.decode(_until(row, ends), skip_special_tokens=True)
            if progress is not None:
                progress(min(start + size, len(order)), len(order), description)
    return texts


def left_padded(prompts: Sequence[Sequence[int]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Return `input_ids` and `attention_mask`, both (prompts, longest) int64, the prompts at the right end."""
    longest = max(map(len, prompts))
    ids = [[pad_token_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def _settings(session: Session, generation: Generation) -> Any:
    from transformers import GenerationConfig

    ends = [token for token in (session.tokenizer.eos_token_id, *generation.stops) if token is not None]
    return GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        num_beams=generation.beams,
        length_penalty=generation.length_penalty,
        no_repeat_ngram_size=generation.no_repeat_ngram,
        max_new_tokens=generation.max_new_tokens,
        pad_token_id=session.tokenizer.pad_token_id,
        eos_token_id=ends or None,
        use_cache=True,
    )


@contextlib.contextmanager
def _own_settings(model: Any) -> Iterator[None]:
    """Keep what a checkpoint recommends (temperatures, penalties, lengths) out of the search, and put it back."""
    from transformers import GenerationConfig

    recommended = model.generation_config
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        model.generation_config = recommended


def _until(tokens: Sequence[int], ends: set[int | None]) -> list[int]:
    """Return the tokens before the first that ends a text: padding may be the same token as the end."""
    return list(tokens[: next((place for place, token in enumerate(tokens) if token in ends), len(tokens))])
