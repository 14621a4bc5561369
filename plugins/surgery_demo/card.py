"""Writes the model card of the small GPT-2, from the facts of the run that made it."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers
import torch
import transformers

if TYPE_CHECKING:
    from surgery_demo.pretrain import Settings

_CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
language: en
---

# A small GPT-2 that has read the Python standard library

{parameters:,} parameters in float32. It exists so that adapting a causal language model can be shown and tested in
seconds on a CPU, without a download. It completes Python-like text; it is of no other use, and nothing it writes
should be relied on.

## How it was made

```
PYTHONPATH=plugins python -m surgery_demo.pretrain --out plugins/surgery_demo/gpt2
```

on one thread of a CPU in {minutes:.0f} minutes of wall time, seed {seed}, with Python {python}, PyTorch {torch},
transformers {transformers} and tokenizers {tokenizers}. `pretrain.log` is what that command printed. Another Python
version has another standard library and gives another model; another CPU rounds differently.

| | |
|---|---|
| architecture | `GPT2LMHeadModel` with tied embeddings |
| size | width {width}, {layers} layers, {heads} heads, {context} positions |
| activation | `gelu_pytorch_tanh` (the function GPT-2 calls `gelu_new`, in one kernel) |
| dropout | 0.0 everywhere, in pretraining and in the shipped configuration |
| generation | `generation_config.json` sets `repetition_penalty` 1.2: greedy decoding would repeat itself without it |
| tokenizer | byte-level BPE, {vocabulary} entries, trained on the training text |
| special tokens | id 0 ends a text, id 1 pads |
| optimizer | Muon for the blocks' matrices (peak rate {matrix_rate}), AdamW for the rest (peak rate {other_rate}) |
| schedule | 100 steps of warm-up, then a straight line to 0 |
| precision | matrix products in bfloat16 (autocast); parameters, gradients and optimizer in float32 |
| steps | {steps:,} of {batch} windows of {context} tokens |
| tokens seen | {seen_tokens:,}, that is {passes:.1f} passes over {train_tokens:,} |

## Data

The source files of the standard library of Python {python}, docstrings and comments included, without its tests, IDLE,
`lib2to3` and the tables in `encodings`; and the language reference's text that `help()` shows
(`pydoc_data/topics.py`). See `surgery_demo.corpora.stdlib_text`. Whole top-level modules are held out, chosen by name
with SHA-256:

| split | characters | use |
|---|---|---|
| train | {train_characters:,} | training the tokenizer and the model |
| validation | {validation_characters:,} | choosing which checkpoint to keep |
| test | {test_characters:,} | the numbers below; no part in training or selection |

The text is under the Python Software Foundation licence. None of it is shipped here.

## Held-out loss

Windows of {context} tokens that do not overlap, every token after a window's first scored once:

| split | nats per token | bits per byte | tokens |
|---|---|---|---|
| validation | {validation.nats_per_token:.4f} | {validation.bits_per_byte:.4f} | {validation.tokens:,} |
| test | {test.nats_per_token:.4f} | {test.bits_per_byte:.4f} | {test.tokens:,} |

Guessing uniformly over the vocabulary costs {uniform:.4f} nats per token.

## Licence

Apache-2.0, for the weights and the tokenizer.
"""


def write_card(out: Path, settings: Settings, facts: dict[str, Any]) -> None:
    """Write `CARD.md` into the model's folder; `facts` is what `surgery_demo.pretrain.pretrain` returned."""
    fields = {name: getattr(settings, name) for name in settings.__dataclass_fields__}
    characters = {f"{split}_characters": count for split, count in facts["characters"].items()}
    text = _CARD.format(
        **fields,
        **{name: value for name, value in facts.items() if name != "characters"},
        **characters,
        passes=facts["seen_tokens"] / facts["train_tokens"],
        uniform=torch.tensor(float(settings.vocabulary)).log().item(),
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        tokenizers=tokenizers.__version__,
    )
    (out / "CARD.md").write_text(text, encoding="utf-8")
