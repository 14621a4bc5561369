"""The masked-LM probe: hidden tokens are guessed by the head that the checkpoint holds, over the session's body."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from torch.nn import functional

from surgery.errors import CheckpointError, DataError
from surgery.training.collate import length as length_of
from surgery.training.evaluation import inference
from surgery.training.models import load_model
from surgery.training.probes import Probe, ProbeKind, Reading, encoded
from surgery.training.seeds import named_seed
from surgery.training.session import Session
from surgery.training.table import Table
from surgery.training.tokens import known_tokens

__all__ = ["MaskedProbe", "hidden_positions", "masked_model", "masked_probe"]

_IGNORED = -100
_RANGE = 2.0**63


@dataclass(frozen=True)
class MaskedProbe(Probe):
    """Loss on hidden tokens, nats for each; which are hidden depends on a text and a position alone.

    Every hidden token is replaced by the mask token: the 80-10-10 of pretraining (Devlin et al. 2018) would add noise
    and tell nothing more. The head is the checkpoint's own and is not trained, its table of output words included.
    """

    kind: ClassVar[ProbeKind] = "masked-lm"
    score_name: ClassVar[str] = "loss"
    unit: ClassVar[str] = "nats"
    greater_is_better: ClassVar[bool] = False
    model: Any = field(repr=False)
    examples: list[dict[str, Any]] = field(repr=False)

    def measure(self, session: Session) -> Reading:
        body = session.model.base_model
        # By pointer: the operated modules themselves, whatever the session's operation does to them now.
        setattr(self.model, self.model.base_model_prefix, body)
        count, size = len(self.examples), session.evaluation_batch_size
        order = sorted(range(count), key=lambda index: (length_of(self.examples[index]), index))
        values, weights = np.zeros(count), np.zeros(count)
        with inference(session, self.model):
            device = next(body.parameters()).device
            for start in range(0, count, size):
                chosen = order[start : start + size]
                batch = session.collator([self.examples[index] for index in chosen])
                labels = batch.pop("labels").to(device)
                logits = self.model(**{key: value.to(device) for key, value in batch.items()}).logits
                loss = functional.cross_entropy(
                    logits.float().flatten(0, 1), labels.flatten(), ignore_index=_IGNORED, reduction="none"
                )
                values[chosen] = loss.view_as(labels).sum(dim=1).double().cpu().numpy()
                weights[chosen] = (labels != _IGNORED).sum(dim=1).cpu().numpy()
        return Reading(float(values.sum() / weights.sum()), values, weights)


def masked_model(session: Session) -> Any | None:
    """Return the session's checkpoint as a masked language model, or None where it holds no such head."""
    key = "masked-lm"
    if key not in session.cache:
        session.cache[key] = _loaded(session)
    return session.cache[key]


def _loaded(session: Session) -> Any | None:
    ref = session.spec.model or session.source
    try:
        loaded = load_model(ref, "AutoModelForMaskedLM", session.registry, seed=0)
    except CheckpointError:  # an architecture without one: transformers says so by refusing
        return None
    prefix, body = getattr(loaded.model, "base_model_prefix", ""), session.model.base_model
    is_over_body = (
        bool(prefix) and type(getattr(loaded.model, prefix, None)) is type(body) and body is not session.model
    )
    if not is_over_body or any(not name.startswith(f"{prefix}.") for name in loaded.new_parameters):
        return None
    return loaded.model.to(next(session.model.parameters()).device)


def masked_probe(session: Session, table: Table, length: int, rate: float, why: str) -> MaskedProbe:
    """Return the probe on the texts of `table`.

    Raises:
        DataError: the checkpoint holds no masked-LM head, or the tokenizer no mask token; a text without tokens.
    """
    model, mask = masked_model(session), session.tokenizer.mask_token_id
    if model is None or mask is None:
        what = f"{session.source} holds no masked-LM head" if model is None else "the tokenizer has no mask token"
        hint = "write probe: retrieval under forgetting:, and give rows with query and passage"
        raise DataError(what, "forgetting.probe", hint)
    texts = [row["text"] for row in table]
    examples = encoded(session, texts, length, table.where, return_special_tokens_mask=True)
    for index, (text, example) in enumerate(zip(texts, examples, strict=True)):
        special = example.pop("special_tokens_mask")
        free = [place for place, is_special in enumerate(special) if not is_special]
        if not free:
            raise DataError("the tokenizer leaves nothing of the text", table.where(index), "remove the row")
        hidden, ids = hidden_positions(text, free, rate), example["input_ids"]
        example["labels"] = [token if place in hidden else _IGNORED for place, token in enumerate(ids)]
        example["input_ids"] = [mask if place in hidden else token for place, token in enumerate(ids)]
    words = known_tokens(session.model) or len(session.tokenizer)
    return MaskedProbe(tuple(texts), len(examples), math.log(words), why, model, examples)


def hidden_positions(text: str, places: list[int], rate: float) -> set[int]:
    """Return which of `places` are hidden: each with probability `rate`, by a hash of text and place; one at least."""
    draws = {place: named_seed("surgery", "masked-lm", text, place) / _RANGE for place in places}
    return {place for place, draw in draws.items() if draw < rate} or {min(places, key=lambda place: draws[place])}
