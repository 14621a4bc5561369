"""Words and tokens: the first token of a word speaks for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from surgery.errors import DataError, Problem
from surgery_token_classification.rows import Sentence

__all__ = ["aligned"]

_IGNORED = -100
_AT_ONCE = 1000  # sentences given to the tokenizer in one call
_MOST_PROBLEMS = 10


def aligned(
    told: Sequence[Sentence], tokenizer: Any, max_length: int, where: Callable[[int], str]
) -> list[dict[str, Any]]:
    """Return an example for each sentence.

    Each has the model's inputs and `labels`: the tag's number at the first token of a word, -100 elsewhere. Beside
    them: `_tags`, the tag of every word; `_words`, the numbers of the words that have a label, in the tokens' order;
    `_cut`, how many words stand behind the last token.

    Words are joined by spaces and found again by where the tokens stand, so that any fast tokenizer will do, those
    that begin words with their space included.

    Raises:
        DataError: a sentence of which no word has a token; a tokenizer without offsets.
    """
    if not getattr(tokenizer, "is_fast", False):
        hint = "use a model whose folder holds tokenizer.json"
        raise DataError("the tokenizer does not tell where its tokens stand in a text", "model", hint)
    found: list[dict[str, Any]] = []
    problems: list[Problem] = []
    for start in range(0, len(told), _AT_ONCE):
        part = told[start : start + _AT_ONCE]
        texts = [" ".join(sentence.words) for sentence in part]
        encoded = tokenizer(texts, truncation=True, max_length=max_length, return_offsets_mapping=True)
        keys = [key for key in ("input_ids", "token_type_ids", "attention_mask") if key in encoded]
        for index, sentence in enumerate(part):
            offsets = encoded["offset_mapping"][index]
            example = _aligned(sentence, offsets, is_cut=len(offsets) >= max_length)
            found.append({**{key: encoded[key][index] for key in keys}, **example})
            if not example["_words"]:
                hint = "raise task.max_length, or remove the row"
                problems.append(Problem("no word of the row has a token", where(start + index), hint))
    if problems:
        raise DataError.of(problems[:_MOST_PROBLEMS])
    return found


def _aligned(sentence: Sentence, offsets: Sequence[tuple[int, int]], *, is_cut: bool) -> dict[str, Any]:
    ends, place = [], -1
    for text in sentence.words:
        place += len(text) + 1
        ends.append(place)
    labels, words = [], []
    word, last = 0, -1
    for start, end in offsets:
        label = _IGNORED
        if end > start:  # special tokens stand nowhere
            # The word that the token's last character is of: a token may begin with the space before its word.
            while word < len(ends) - 1 and ends[word] < end:
                word += 1
            if word != last:
                label, last = sentence.tags[word], word
                words.append(word)
        labels.append(label)
    # Without a cut, what is missing at the end are words that the tokenizer leaves out, such as invisible characters.
    cut = len(sentence.words) - 1 - last if is_cut else 0
    return {"labels": labels, "_tags": sentence.tags, "_words": words, "_cut": cut}
