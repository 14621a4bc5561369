"""The task: a tag for every word, scored by F1 of entities and by accuracy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from surgery import Options, Rows, TaskType
from surgery.errors import DataError
from surgery_token_classification.alignment import aligned
from surgery_token_classification.chunks import OUTSIDE, entities, is_chunk_tag
from surgery_token_classification.rows import sentences, tag_names

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = ["TokenClassification", "TokenClassificationOptions"]

_IGNORED = -100
_UNTAGGED = -1
"""What stands for the answer to a word without a token, where there is no tag O."""


class TokenClassificationOptions(Options):
    """Keys that may stand beside `kind: token-classification`."""

    max_length: int = Field(128, gt=1, le=1_000_000, description="Sentences are cut after so many tokens.")
    tags: tuple[str, ...] = Field(
        (), max_length=10_000, description="Names of the tags, where the data have numbers; 0 is the first."
    )
    metric: Literal["f1", "accuracy"] = Field(
        "f1", description="The metric that decides; f1 is that of entities, from B- and I- tags."
    )


class TokenClassification(TaskType[TokenClassificationOptions]):
    """Predict the tag of every word, such as B-PER, I-PER and O."""

    name = "token-classification"
    summary = "a tag for every word, such as named entities; entity F1, accuracy"
    options = TokenClassificationOptions
    columns: ClassVar[Mapping[str, str]] = {"words": "tokens", "tags": "ner_tags"}
    metric = "f1"
    greater_is_better = True
    metrics: ClassVar[Mapping[str, bool]] = {"f1": True, "accuracy": True}
    auto_class = "AutoModelForTokenClassification"

    def labels(self, rows: Rows, options: TokenClassificationOptions) -> tuple[str, ...]:
        names = tag_names(rows, options.tags)
        strange = [name for name in names if not is_chunk_tag(name)]
        if strange and options.metric == "f1":
            hint = "write metric: accuracy under task:"
            if all(name.isdecimal() for name in names):
                hint = f"name the numbers under task: tags: [O, B-PER, I-PER, ...]; or {hint}"
            raise DataError(f"f1 needs tags that are O, B- or I- and a type, not {strange[0]!r}", "task.metric", hint)
        return names

    def encode(
        self,
        rows: Rows,
        tokenizer: Any,
        labels: Sequence[str],
        options: TokenClassificationOptions,
        where: Callable[[int], str],
    ) -> list[dict[str, Any]]:
        return aligned(sentences(rows, labels, options.tags, where), tokenizer, options.max_length, where)

    def notes(self, examples: Sequence[Mapping[str, Any]], options: TokenClassificationOptions) -> Sequence[str]:
        cut = [example["_cut"] for example in examples if example["_cut"]]
        lost = sum(len(example["_tags"]) - example["_cut"] - len(example["_words"]) for example in examples)
        told = []
        if cut:
            many = f"{len(cut):,} of {len(examples):,} sentences are longer than {options.max_length} tokens"
            told.append(f"{many}: {sum(cut):,} words are cut, and count as answered by {OUTSIDE}")
        if lost:
            told.append(f"{lost:,} words have no token of their own, and count as answered by {OUTSIDE}")
        return told

    def losses(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        from torch.nn import functional

        loss = functional.cross_entropy(
            logits.float().flatten(0, 1), labels.flatten(), ignore_index=_IGNORED, reduction="none"
        )
        return loss.view_as(labels).sum(dim=1), (labels != _IGNORED).sum(dim=1)

    def answers(
        self,
        logits: torch.Tensor,
        examples: Sequence[Mapping[str, Any]],
        labels: Sequence[str],
        options: TokenClassificationOptions,
    ) -> Mapping[str, Sequence[Any]]:
        """Return the number of a tag for every word; O where the word has no token."""
        missing = labels.index(OUTSIDE) if OUTSIDE in labels else _UNTAGGED
        found = []
        for best, example in zip(logits.argmax(dim=-1).tolist(), examples, strict=True):
            tags = [missing] * len(example["_tags"])
            places = [place for place, label in enumerate(example["labels"]) if label != _IGNORED]
            for word, place in zip(example["_words"], places, strict=True):
                tags[word] = best[place]
            found.append(tags)
        return {"tags": found}

    def items(
        self,
        examples: Sequence[Mapping[str, Any]],
        answers: Mapping[str, Sequence[Any]],
        labels: Sequence[str],
        options: TokenClassificationOptions,
    ) -> Mapping[str, np.ndarray]:
        """Return one entry for each sentence: words, right tags; entities wanted, found, and found rightly."""
        import numpy as np

        pairs = [(example["_tags"], tags) for example, tags in zip(examples, answers["tags"], strict=True)]
        items = {
            "loss": np.asarray(answers["loss"]),
            "units": np.asarray(answers["units"]),
            "words": np.array([len(wanted) for wanted, _ in pairs]),
            "right": np.array([sum(map(int.__eq__, wanted, tags)) for wanted, tags in pairs]),
        }
        if all(map(is_chunk_tag, labels)):
            both = [[entities([_name(tag, labels) for tag in tags]) for tags in pair] for pair in pairs]
            items["wanted"] = np.array([len(wanted) for wanted, _ in both])
            items["found"] = np.array([len(found) for _, found in both])
            items["matched"] = np.array([len(wanted & found) for wanted, found in both])
        return items

    def score(self, items: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Return metrics of the whole corpus: sums over sentences first, then the ratio; F1 of no entities is 0."""
        total = {name: float(array.sum()) for name, array in items.items()}
        scores = {"loss": total["loss"] / total["units"], "accuracy": total["right"] / total["words"]}
        if "matched" in total:
            scores["precision"] = total["matched"] / max(total["found"], 1.0)
            scores["recall"] = total["matched"] / max(total["wanted"], 1.0)
            scores["f1"] = 2 * total["matched"] / max(total["found"] + total["wanted"], 1.0)
        return scores


def _name(tag: int, labels: Sequence[str]) -> str:
    return labels[tag] if tag >= 0 else OUTSIDE
