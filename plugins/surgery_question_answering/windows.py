"""Questions into windows: the question and as much of its context as fits, again and again until the context ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from surgery.errors import DataError, Problem
from surgery_question_answering.rows import Question

__all__ = ["windows"]

_AT_ONCE = 1000  # questions given to the tokenizer in one call
_MOST_PROBLEMS = 10


def windows(
    asked: Sequence[Question], tokenizer: Any, max_length: int, stride: int, where: Callable[[int], str]
) -> list[dict[str, Any]]:
    """Return the examples of all questions, those of one question one after another.

    Each has the model's inputs and `labels`, [first, last] token of the first reference, or [0, 0] where the window
    does not hold the whole of it (as Devlin et al. 2019, arXiv 1810.04805, do for questions without an answer).
    Beside them: `_item`, the question's number; `_question`; `_first`, the number of the first token of the context,
    and `_spans`, (tokens, 2), where each of the context's tokens stands in it; `_outside`, on the first window, whether
    no window holds the answer.

    Args:
        asked: the questions.
        tokenizer: a fast one, which tells where its tokens stand.
        max_length: tokens of a window, at most.
        stride: tokens of the context that neighbouring windows share.
        where: question number -> the place of its row.

    Raises:
        DataError: a question that leaves too little room for its context; a tokenizer without offsets.
    """
    if not getattr(tokenizer, "is_fast", False):
        hint = "use a model whose folder holds tokenizer.json"
        raise DataError("the tokenizer does not tell where its tokens stand in a text", "model", hint)
    _check_room(asked, tokenizer, max_length, stride, where)
    found: list[dict[str, Any]] = []
    for start in range(0, len(asked), _AT_ONCE):
        found += _encoded(asked[start : start + _AT_ONCE], start, tokenizer, max_length, stride)
    return found


def _check_room(
    asked: Sequence[Question], tokenizer: Any, max_length: int, stride: int, where: Callable[[int], str]
) -> None:
    room = max_length - tokenizer.num_special_tokens_to_add(pair=True)
    if room - 1 <= stride:
        what = f"windows of {max_length} tokens cannot share {stride} and go on"
        raise DataError(what, "task.stride", "raise task.max_length, or lower task.stride")
    problems: list[Problem] = []
    for index, tokens in enumerate(_counts([one.question for one in asked], tokenizer)):
        if room - tokens > stride or room - tokens >= _counts([asked[index].context], tokenizer)[0]:
            continue
        what = (
            f"the question has {tokens} tokens: of its context {max(room - tokens, 0)} fit, and windows share {stride}"
        )
        problems.append(Problem(what, where(index), "raise task.max_length, or lower task.stride"))
        if len(problems) >= _MOST_PROBLEMS:
            break
    if problems:
        raise DataError.of(problems)


def _counts(texts: list[str], tokenizer: Any) -> list[int]:
    if not texts:
        return []
    found = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    return [len(ids) for ids in found["input_ids"]]


def _encoded(
    asked: Sequence[Question], before: int, tokenizer: Any, max_length: int, stride: int
) -> list[dict[str, Any]]:
    encoded = tokenizer(
        [one.question for one in asked],
        [one.context for one in asked],
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    keys = [key for key in ("input_ids", "token_type_ids", "attention_mask") if key in encoded]
    found: list[dict[str, Any]] = []
    owners = encoded["overflow_to_sample_mapping"]
    for number, index in enumerate(owners):
        one = asked[index]
        inside = [token for token, sequence in enumerate(encoded.sequence_ids(number)) if sequence == 1]
        first = inside[0] if inside else 0
        spans = np.array(encoded["offset_mapping"][number][first : first + len(inside)], dtype=np.int32).reshape(-1, 2)
        example = {key: encoded[key][number] for key in keys}
        example |= {"_item": before + index, "_question": one, "_first": first, "_spans": spans}
        # What the tokenizer leaves out at the ends of a context (invisible characters) is in its first and last window.
        low = 0 if owners[number - 1 : number] != [index] else int(spans[0, 0])
        high = len(one.context) if owners[number + 1 : number + 2] != [index] else int(spans[-1, 1])
        held = bool(inside) and low <= one.start and one.end <= high
        found.append({**example, "labels": _labels(one, first, spans) if held else [0, 0], "_outside": False})
    return _marked(found)


def _labels(one: Question, first: int, spans: np.ndarray) -> list[int]:
    """Return [first, last] token of an answer that the window holds; [0, 0] where no token is any of it."""
    begin = int(np.argmax(spans[:, 1] > one.start))
    end = len(spans) - 1 - int(np.argmax(spans[::-1, 0] < one.end))
    return [first + begin, first + end] if begin <= end else [0, 0]


def _marked(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    held = {example["_item"] for example in found if example["labels"] != [0, 0]}
    seen: set[int] = set()
    for example in found:
        example["_outside"] = example["_item"] not in held | seen
        seen.add(example["_item"])
    return found
