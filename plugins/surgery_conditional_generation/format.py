"""How a source and its target become one sequence of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from surgery import Rows
from surgery.errors import DataError, Problem

if TYPE_CHECKING:
    from surgery_conditional_generation.task import ConditionalGenerationOptions

__all__ = ["Layout", "stop_tokens"]

_IGNORED = -100
_MOST_PROBLEMS = 10


@dataclass(frozen=True)
class Layout:
    """prefix + source + separator | lead + target + suffix + end: a loss right of the bar, the prompt left of it.

    Attributes:
        start, separator, end: token ids that every sequence has at its beginning, in the middle, and at its end.
        tokenizer, options: what cuts the texts, and what stands around them.
    """

    start: tuple[int, ...]
    separator: tuple[int, ...]
    end: tuple[int, ...]
    tokenizer: Any
    options: ConditionalGenerationOptions

    @classmethod
    def of(cls, tokenizer: Any, options: ConditionalGenerationOptions) -> Layout:
        """Return the layout for one tokenizer.

        Raises:
            DataError: the tokenizer has no end token, or no token to separate by.
        """
        begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        if end is None:
            hint = "name one in tokenizer_config.json: without it no text would ever end"
            raise DataError("the tokenizer has no end token", "task", hint)
        bar = [end if begin is None else begin]
        if options.separator is not None:
            bar = _ids(tokenizer, [options.separator])[0]
        # Llama's tokenizer begins every text with a token of its own, GPT-2's does not.
        starts = begin is not None and list(tokenizer("")["input_ids"][:1]) == [begin]
        return cls((begin,) if starts else (), tuple(bar), (end,), tokenizer, options)

    def prompts(self, sources: Sequence[str]) -> list[list[int]]:
        """Return the tokens up to the bar, which a completion goes on from."""
        texts = [self.options.prefix + source for source in sources]
        return [[*self.start, *ids, *self.separator] for ids in _ids(self.tokenizer, texts)]

    def examples(self, rows: Rows, where: Callable[[int], str]) -> list[dict[str, Any]]:
        """Return `input_ids`, `attention_mask` and `labels` of each row.

        Raises:
            DataError: rows that hold no texts, or whose source leaves no room for a target.
        """
        _check(rows, where)
        if not rows:
            return []
        targets = [f"{self.options.lead}{row['target']}{self.options.suffix}" for row in rows]
        prompts = self.prompts([row["source"] for row in rows])
        most, problems, examples = self.options.max_length, [], []
        for index, (prompt, target) in enumerate(zip(prompts, _ids(self.tokenizer, targets), strict=True)):
            ids = [*prompt, *target, *self.end]
            if len(ids) > most and (len(prompt) >= most or not self.options.truncate):
                what = f"source and target are {len(ids)} tokens, {len(prompt)} of them the source's"
                hint = f"raise task.max_length ({most}), " + ("write truncate: true, " * (len(prompt) < most))
                problems.append(Problem(what, where(index), f"{hint}or leave the row out"))
                if len(problems) >= _MOST_PROBLEMS:
                    break
            ids = ids[:most]
            labels = [_IGNORED] * len(prompt) + ids[len(prompt) :]
            examples.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
        if problems:
            raise DataError.of(problems)
        return examples


def stop_tokens(tokenizer: Any, texts: Sequence[str]) -> tuple[int, ...]:
    """Return the token of each text that ends a completion.

    Raises:
        DataError: a text that is no single token.
    """
    found = _ids(tokenizer, list(texts)) if texts else []
    for text, ids in zip(texts, found, strict=True):
        if len(ids) != 1:
            hint = "texts after which nothing is written must be one token each"
            raise DataError(f"{text!r} is {len(ids)} tokens to this model", "task.stop", hint)
    return tuple(ids[0] for ids in found)


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    # `verbose` off: what is too long for the model is cut or refused by max_length.
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    return list(encoded["input_ids"])


def _check(rows: Rows, where: Callable[[int], str]) -> None:
    problems: list[Problem] = []
    for index, row in enumerate(rows):
        for column in ("source", "target"):
            if not isinstance(row[column], str):
                what = f"the {column} must be text, not {type(row[column]).__name__}"
                problems.append(
                    Problem(what, where(index), "every row needs a text here; is the column the right one?")
                )
        if len(problems) >= _MOST_PROBLEMS:
            break
    if problems:
        raise DataError.of(problems[:_MOST_PROBLEMS])
