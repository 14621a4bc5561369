"""Scores of texts from counts of each item: the libraries' own figures, on every sample of the items."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from surgery.errors import TrainingError
from surgery.registry import Registry
from surgery.study.measure import measure
from surgery_conditional_generation.measures import Measures, scores
from surgery_conditional_generation.nist import Nist, nist_score

REFERENCES = [
    [
        "The Vaults pub near Café Adriatic has a 5 star rating.",
        "Prices at The Vaults start at £30 at The Vaults, a pub.",
    ],
    ["Close to Café Brazil, The Cambridge Blue pub serves delicious Tuscan Beef."],
    [
        "A coffee shop in the city centre area called Blue Spice.",
        "Blue Spice is a coffee shop in city centre.",
        "Blue!",
    ],
    ["There is a place in the city centre, Alimentum, that is not family-friendly."],
    ["In the city centre there is a venue name Alimentum.", "Alimentum isn't family-friendly."],
]
TEXTS = [
    "The Vaults is a pub near The Vaults, near Café Adriatic, at The Vaults with a 5 star rating. ",
    "the cambridge blue pub serves beef close to Café Brazil.",
    "Blue Spice is a coffee shop in the city centre.",
    "",
    " In the city centre there is a place, Alimentum, which is not family-friendly, not family-friendly.",
]


def streams(references: list[list[str]]) -> list[list[str | None]]:
    most = max(map(len, references))
    return [[one[place] if place < len(one) else None for one in references] for place in range(most)]


def of_library(texts: list[str], references: list[list[str]], lowercase: bool = False) -> dict[str, float]:
    """Return each corpus score as its own library computes it."""
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU, CHRF

    texts = [text.strip() for text in texts]
    rouge = RougeScorer(["rougeL"])
    f1 = [rouge.score_multi(one, text)["rougeL"].fmeasure for one, text in zip(references, texts, strict=True)]
    return {
        "bleu": BLEU(lowercase=lowercase).corpus_score(texts, streams(references)).score,
        "chrf": CHRF(lowercase=lowercase).corpus_score(texts, streams(references)).score,
        "rouge_l": float(np.mean(f1)),
    }


def words(text: str) -> list[str]:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return Tokenizer13a()(text.strip()).split()


@pytest.mark.parametrize("lowercase", [False, True])
def test_the_whole_corpus_has_the_libraries_own_scores(lowercase: bool) -> None:
    found = scores(Measures(REFERENCES, lowercase).items(TEXTS, range(5), 5))
    wanted = of_library(TEXTS, REFERENCES, lowercase)
    assert {name: found[name] for name in wanted} == wanted
    assert 0 < found["bleu"] < 100


def test_case_counts_unless_it_is_told_not_to() -> None:
    cased, folded = (scores(Measures(REFERENCES, fold).items(TEXTS, range(5), 5)) for fold in (False, True))
    assert cased["bleu"] < folded["bleu"]
    assert cased["nist"] < folded["nist"]


def test_every_sample_of_items_has_the_libraries_own_scores() -> None:
    items = Measures(REFERENCES, lowercase=False).items(TEXTS, range(5), 5)
    generator = np.random.default_rng(3)
    for _ in range(20):
        drawn = generator.integers(0, 5, 5)
        wanted = of_library([TEXTS[index] for index in drawn], [REFERENCES[index] for index in drawn])
        found = scores({name: array[drawn] for name, array in items.items()})
        assert {name: found[name] for name in ("bleu", "chrf")} == {name: wanted[name] for name in ("bleu", "chrf")}
        assert found["rouge_l"] == pytest.approx(wanted["rouge_l"], rel=1e-12)


def test_nist_is_nltks() -> None:
    from nltk.translate.nist_score import corpus_nist

    references = [[words(text) for text in one] for one in REFERENCES]
    texts = [words(text) for text in TEXTS]
    assert scores(Measures(REFERENCES, lowercase=False).items(TEXTS, range(5), 5))["nist"] == pytest.approx(
        corpus_nist(references, texts), rel=1e-12
    )


def test_nist_of_a_sample_keeps_the_weights_of_the_whole() -> None:
    references = [[words(text) for text in one] for one in REFERENCES]
    nist = Nist(references)
    kept = [0, 2, 2]
    by_hand = np.sum([nist.counts(words(TEXTS[index]), references[index]) for index in kept], axis=0)
    items = Measures(REFERENCES, lowercase=False).items(TEXTS, range(5), 5)
    assert scores({name: array[kept] for name, array in items.items()})["nist"] == nist_score(by_hand)


def test_items_without_a_text_count_nothing() -> None:
    some = Measures([REFERENCES[1], REFERENCES[4]], lowercase=False).items([TEXTS[1], TEXTS[4]], [1, 4], 5)
    assert {len(array) for array in some.values()} == {5}
    assert some["written"].tolist() == [0, 1, 0, 0, 1]
    wanted = of_library([TEXTS[1], TEXTS[4]], [REFERENCES[1], REFERENCES[4]])
    found = scores(some)
    assert {name: found[name] for name in wanted} == wanted
    nothing = scores({name: array[:1] for name, array in some.items()})
    assert nothing == {"bleu": 0, "nist": 0, "chrf": 0, "rouge_l": 0}, "a draw without any text has a value, too"
    assert scores({"loss": np.ones(3), "units": np.ones(3)}) == {}


def test_texts_of_nothing_score_zero() -> None:
    found = scores(Measures(REFERENCES, lowercase=False).items([""] * 5, range(5), 5))
    assert found == {"bleu": 0, "nist": 0, "chrf": 0, "rouge_l": 0}


def record(arm: str, seed: int, items: dict[str, Any], value: float) -> Any:
    plain = {name: array.tolist() for name, array in items.items()}
    return {"arm": arm, "seed": seed, "trains": True, "test": {"bleu": value}, "items": plain, "majority": None}


def test_a_study_draws_items_and_computes_bleu_anew(registry: Registry) -> None:
    """The bootstrap's own draws, scored by sacrebleu itself on the texts drawn."""
    from sacrebleu.metrics import BLEU

    score = registry.task("conditional-generation").score
    by_arm = {"a": TEXTS, "b": [one[0] for one in REFERENCES[:4]] + [TEXTS[4]]}
    records = []
    for arm, texts in by_arm.items():
        counts = Measures(REFERENCES, lowercase=False).items(texts, range(5), 5)
        items = {"loss": np.ones(5), "units": np.ones(5), **counts}
        records.append(record(arm, 1, items, score(items)["bleu"]))
    measured = measure(records, "bleu", [1], 50, score)
    assert measured.items == 5
    generator = np.random.default_rng(0)
    for row in range(50):
        drawn = generator.integers(0, 5, 5)
        references = streams([REFERENCES[index] for index in drawn])
        for arm, texts in by_arm.items():
            wanted = BLEU().corpus_score([texts[index].strip() for index in drawn], references).score
            assert measured.draws[arm][row, 0] == wanted
    assert measured.draws["b"].std() > 0


def test_missing_libraries_are_told_before_anything_is_loaded(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    task = registry.task("conditional-generation")
    with pytest.raises(TrainingError, match="scored by sacrebleu, rouge-score, which are missing") as caught:
        task.labels([], task.options())
    assert caught.value.hint == "pip install 'model-surgery[generation]'"
