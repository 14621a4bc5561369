"""The task: where an answer begins and ends in its context, scored by Exact Match and F1 over the references."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from surgery import Options, Rows, TaskType
from surgery_question_answering.agreement import exact_match, f1
from surgery_question_answering.rows import questions

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = ["QuestionAnswering", "QuestionAnsweringOptions"]


class QuestionAnsweringOptions(Options):
    """Keys that may stand beside `kind: question-answering`."""

    max_length: int = Field(
        384, gt=1, le=1_000_000, description="Tokens of a window: question and part of the context."
    )
    stride: int = Field(128, ge=0, le=1_000_000, description="Tokens of the context that neighbouring windows share.")
    max_answer_length: int = Field(30, ge=1, le=1_000_000, description="Tokens of an answer, at most.")
    n_best: int = Field(20, ge=1, le=10_000, description="How many first and last tokens of a window are paired.")
    metric: Literal["f1", "em"] = Field("f1", description="The metric that decides; em is Exact Match.")


class QuestionAnswering(TaskType[QuestionAnsweringOptions]):
    """Find the answer to a question in a context, as in SQuAD 1.1; long contexts are seen in several windows."""

    name = "question-answering"
    summary = "the part of a context that answers a question, as in SQuAD 1.1; F1, Exact Match"
    options = QuestionAnsweringOptions
    # Questions about one context stay on one side of a split.
    columns: ClassVar[Mapping[str, str]] = {
        "context": "context",
        "question": "question",
        "answers": "answers",
        "answer_start": "",
    }
    metric = "f1"
    greater_is_better = True
    metrics: ClassVar[Mapping[str, bool]] = {"f1": True, "em": True}
    auto_class = "AutoModelForQuestionAnswering"

    def labels(self, rows: Rows, options: QuestionAnsweringOptions) -> tuple[str, ...]:
        return ()

    def outputs(self, labels: Sequence[str], options: QuestionAnsweringOptions) -> int:
        return 2

    def encode(
        self,
        rows: Rows,
        tokenizer: Any,
        labels: Sequence[str],
        options: QuestionAnsweringOptions,
        where: Callable[[int], str],
    ) -> list[dict[str, Any]]:
        from surgery_question_answering.windows import windows

        return windows(questions(rows, where), tokenizer, options.max_length, options.stride, where)

    def notes(self, examples: Sequence[Mapping[str, Any]], options: QuestionAnsweringOptions) -> Sequence[str]:
        outside = sum(example["_outside"] for example in examples)
        if not outside:
            return ()
        asked = len({example["_item"] for example in examples})
        told = f"{outside:,} of {asked:,} questions have an answer that no window of {options.max_length} tokens holds"
        return (f"{told} whole, and point to the first token: raise task.stride or task.max_length",)

    def logits(self, output: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return (batch, 2, tokens), float32: how likely each token is the first and the last of the answer."""
        import torch

        logits = torch.stack((output.start_logits, output.end_logits), dim=1).float()
        mask = inputs.get("attention_mask")
        # Padding is no place for an answer: how long the longest window of a batch is must not change a loss.
        return logits if mask is None else logits.masked_fill(mask[:, None] == 0, torch.finfo(torch.float32).min)

    def losses(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        from torch.nn import functional

        loss = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        return loss.view_as(labels).sum(dim=1), (labels >= 0).sum(dim=1)

    def answers(
        self,
        logits: torch.Tensor,
        examples: Sequence[Mapping[str, Any]],
        labels: Sequence[str],
        options: QuestionAnsweringOptions,
    ) -> Mapping[str, Sequence[Any]]:
        from surgery_question_answering.spans import best_span

        found = []
        for (starts, ends), example in zip(logits.cpu().numpy().astype("float64"), examples, strict=True):
            spans = example["_spans"]
            inside = slice(example["_first"], example["_first"] + len(spans))
            best = best_span(starts[inside], ends[inside], options.max_answer_length, options.n_best)
            found.append(None if best is None else (best[0], int(spans[best[1], 0]), int(spans[best[2], 1])))
        return {"span": found}

    def items(
        self,
        examples: Sequence[Mapping[str, Any]],
        answers: Mapping[str, Sequence[Any]],
        labels: Sequence[str],
        options: QuestionAnsweringOptions,
    ) -> Mapping[str, np.ndarray]:
        """Return one entry for each question: `em` and `f1` of the best answer of all its windows, 0 to 1."""
        import numpy as np

        numbers: dict[int, int] = {}
        of = np.array([numbers.setdefault(example["_item"], len(numbers)) for example in examples])
        best: dict[int, tuple[float, str]] = {}
        asked = {item: example["_question"] for item, example in zip(of.tolist(), examples, strict=True)}
        for item, example, span in zip(of.tolist(), examples, answers["span"], strict=True):
            if span is not None and (item not in best or span[0] > best[item][0]):
                best[item] = (span[0], example["_question"].context[span[1] : span[2]])
        texts = [best.get(item, (0.0, ""))[1] for item in range(len(numbers))]
        references = [asked[item].references for item in range(len(numbers))]
        return {
            "loss": np.bincount(of, weights=answers["loss"]),
            "units": np.bincount(of, weights=answers["units"]).astype(np.int64),
            "em": np.array([exact_match(*pair) for pair in zip(texts, references, strict=True)]),
            "f1": np.array([f1(*pair) for pair in zip(texts, references, strict=True)]),
        }

    def score(self, items: Mapping[str, np.ndarray]) -> dict[str, float]:
        loss = float(items["loss"].sum() / items["units"].sum())
        return {"loss": loss, "em": float(items["em"].mean()), "f1": float(items["f1"].mean())}
