"""Makes the small GPT-2 of the demonstration from the text of Python's standard library.

    PYTHONPATH=plugins python -m surgery_demo.pretrain --out DIR

trains a byte-level BPE tokenizer and a GPT-2 of about 1.3 million parameters on one CPU thread, and writes a folder
that `AutoModelForCausalLM.from_pretrained` loads. Stopped runs resume from DIR/state.pt when started again with the
same arguments.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from surgery_demo.corpora import stdlib_text
from surgery_demo.packing import held_out_loss, pack, training_batches

END, PAD = "<|endoftext|>", "<|pad|>"
# Long pieces, so that few windows of the training stream run over from one file into another.
_PIECE_CHARACTERS = 20_000


@dataclass(frozen=True, slots=True)
class Settings:
    """What a pretraining run depends on besides the text; both the same give the same model on the same CPU."""

    steps: int = 6600
    batch: int = 8
    context: int = 256
    vocabulary: int = 2048
    width: int = 128
    layers: int = 5
    heads: int = 4
    matrix_rate: float = 0.02
    other_rate: float = 0.01
    seed: int = 0


def train_tokenizer(texts: list[str], vocabulary: int, context: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of `vocabulary` entries, two of them special: end of text and padding."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # Named with a type because the class's own constructor has none.
    build: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast
    return build(tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=PAD, model_max_length=context)


def new_model(settings: Settings, end: int, pad: int) -> GPT2LMHeadModel:
    """A new GPT-2 in float32 with tied embeddings and no dropout: each text is seen a few times only."""
    torch.manual_seed(settings.seed)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=settings.vocabulary,
            n_positions=settings.context,
            n_embd=settings.width,
            n_layer=settings.layers,
            n_head=settings.heads,
            # The same function as GPT-2's "gelu_new", in one kernel instead of eight.
            activation_function="gelu_pytorch_tanh",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=end,
            eos_token_id=end,
            pad_token_id=pad,
        )
    )
    # So small a model repeats itself when decoded greedily; with this, its default continuations look like code.
    model.generation_config.repetition_penalty = 1.2
    return model


def make_optimizers(model: nn.Module, settings: Settings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings, biases and norms."""
    matrices = [value for name, value in model.named_parameters() if ".h." in name and value.ndim == 2]
    taken = set(map(id, matrices))
    others = [value for value in model.parameters() if id(value) not in taken]
    return [
        torch.optim.Muon(matrices, lr=settings.matrix_rate, weight_decay=0.02),
        torch.optim.AdamW(others, lr=settings.other_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def rate_factor(step: int, steps: int) -> float:
    """Share of the peak learning rate at a step: a short warm-up, then a straight line to zero at the end."""
    warm_up = max(1, min(100, steps // 10))
    return min((step + 1) / warm_up, (steps - step) / max(1, steps - warm_up))


def pretrain(out: Path, settings: Settings, say: Callable[[str], None]) -> dict[str, Any]:
    """Train, saving the best model so far in `out`; returns the facts that the model's card reports."""
    splits = stdlib_text(train=None, validation=None, test=None, characters=_PIECE_CHARACTERS)
    texts = {split: [row["text"] for row in rows] for split, rows in splits.items()}
    tokenizer = train_tokenizer(texts["train"], settings.vocabulary, settings.context)
    tokenizer.save_pretrained(out)
    model = new_model(settings, int(tokenizer.eos_token_id), int(tokenizer.pad_token_id))
    stream = pack(tokenizer, texts["train"])
    parameters = sum(value.numel() for value in model.parameters())
    say(f"{parameters:,} parameters; {len(stream):,} training tokens from {sum(map(len, texts['train'])):,} characters")

    optimizers = make_optimizers(model, settings)
    peaks = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    state_file = out / "state.pt"
    first, best, seconds = _resume(state_file, settings, model, optimizers)
    batches = training_batches(stream, context=settings.context, batch=settings.batch, seed=settings.seed)
    started, running = time.perf_counter() - seconds, 0.0
    for step, ids in enumerate(islice(batches, first, settings.steps), start=first):
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = peak * rate_factor(step, settings.steps)
        running += _step(model, optimizers, ids)
        done = step + 1
        if done % 100 == 0:
            say(f"step {done:5d}  train {running / 100:.4f}  {time.perf_counter() - started:6.0f} s")
            running = 0.0
        if done % 600 == 0 or done == settings.steps:
            loss_now = held_out_loss(model, tokenizer, texts["validation"], context=settings.context)
            say(f"step {done:5d}  validation {loss_now}")
            if loss_now.nats_per_token < best:
                best = loss_now.nats_per_token
                model.save_pretrained(out)
            state = {
                "settings": asdict(settings),
                "step": done,
                "best": best,
                "seconds": time.perf_counter() - started,
                "model": model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            }
            torch.save(state, state_file)
    model = GPT2LMHeadModel.from_pretrained(out)
    facts: dict[str, Any] = {
        "parameters": parameters,
        "train_tokens": len(stream),
        "seen_tokens": settings.steps * settings.batch * settings.context,
        "minutes": (time.perf_counter() - started) / 60,
        "characters": {split: sum(map(len, rows)) for split, rows in texts.items()},
    }
    for split in ("validation", "test"):
        loss_now = facts[split] = held_out_loss(model, tokenizer, texts[split], context=settings.context)
        say(f"{split}: {loss_now.nats_per_token:.4f} nats/token, {loss_now.bits_per_byte:.4f} bits/byte")
    return facts


def _step(model: nn.Module, optimizers: list[torch.optim.Optimizer], ids: Tensor) -> float:
    """One update on token ids of shape (batch, context + 1); returns the loss before it."""
    # bfloat16 for the products only: parameters, gradients and the optimizer stay float32.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def _resume(
    state_file: Path, settings: Settings, model: nn.Module, optimizers: list[torch.optim.Optimizer]
) -> tuple[int, float, float]:
    """Load an earlier state of the same run; returns the next step, the best loss and the seconds spent so far."""
    if not state_file.exists():
        return 0, float("inf"), 0.0
    state = torch.load(state_file, weights_only=True)
    if state["settings"] != asdict(settings):
        raise SystemExit(f"{state_file} belongs to a run with other settings: remove it, or choose another --out")
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return state["step"], state["best"], state["seconds"]


def main() -> None:
    """The command line: settings from arguments, progress on standard output and in DIR/pretrain.log."""
    parser = argparse.ArgumentParser(prog="python -m surgery_demo.pretrain", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--out", type=Path, required=True, help="folder to write the model, its tokenizer and its card to"
    )
    parser.add_argument("--steps", type=int, default=6600, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="initialisation and data order (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    arguments = parser.parse_args()
    if not hasattr(torch.optim, "Muon"):
        raise SystemExit(
            f"pretraining needs torch.optim.Muon, which PyTorch has from 2.9 on; this is {torch.__version__}"
        )
    torch.set_num_threads(arguments.threads)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    settings = Settings(steps=arguments.steps, seed=arguments.seed)
    with (out / "pretrain.log").open("a", encoding="utf-8") as log:

        def say(line: str) -> None:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
            print(line, file=log, flush=True)

        facts = pretrain(out, settings, say)
    # Imported late: the card is words only, and nothing before this line needs it.
    from surgery_demo.card import write_card

    write_card(out, settings, facts)
    (out / "state.pt").unlink(missing_ok=True)
    for file in out.iterdir():
        file.chmod(0o644)


if __name__ == "__main__":
    main()
