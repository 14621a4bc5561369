"""Pretraining writes a folder that loads and a card that is true, and goes on where it was stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from surgery_demo import pretrain
from surgery_demo.card import write_card
from surgery_demo.corpora import Splits

TINY = pretrain.Settings(steps=4, batch=2, context=16, vocabulary=270, width=16, layers=1, heads=2)

pytestmark = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon needs PyTorch 2.9")


def _rows(*_: object, **__: object) -> Splits:
    rows = [{"text": f"def f{i}(x):\n    return x + {i}\n" * 10} for i in range(6)]
    return {"train": rows, "validation": rows[:1], "test": rows[:1]}


@pytest.mark.filterwarnings("ignore")
def test_a_run_writes_a_model_and_a_card_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "stdlib_text", _rows)
    said: list[str] = []
    facts = pretrain.pretrain(tmp_path, TINY, said.append)
    write_card(tmp_path, TINY, facts)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True)
    assert len(AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)) == model.config.vocab_size == 270
    card = (tmp_path / "CARD.md").read_text(encoding="utf-8")
    assert f"| test | {facts['test'].nats_per_token:.4f} |" in card
    assert str(tmp_path) not in card + "\n".join(said)

    again = pretrain.pretrain(tmp_path, TINY, said.append)
    assert again["test"] == facts["test"]
    assert sum("step     4" in line for line in said) == 1, "a finished run takes no further step"
    with pytest.raises(SystemExit, match="other settings"):
        pretrain.pretrain(tmp_path, pretrain.Settings(steps=5, batch=2, context=16, vocabulary=270), said.append)


def test_the_rate_warms_up_then_falls_to_zero() -> None:
    rates = [pretrain.rate_factor(step, 1000) for step in range(1000)]
    assert max(rates) == 1.0 and rates[0] == pytest.approx(0.01)
    peak = rates.index(1.0)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert 0 < rates[-1] < 0.01
    assert pretrain.rate_factor(0, 1) == 1.0
