"""The sentences of a comparison: what may be said, in words that a reader can quote."""

from __future__ import annotations

from dataclasses import dataclass

from surgery.study.predicted import StepCost
from surgery.study.record import memory_total
from surgery.study.statistics import Interval
from surgery.study.summary import Row, Summary
from surgery.study.verdict import ENOUGH_SEEDS, FEWEST_SEEDS

__all__ = ["Unit", "finding", "price", "sentence", "unit_of"]

_PERCENT = frozenset({"accuracy", "macro_f1", "f1", "em", "exact_match", "matthews", "pearson", "rouge_l", "spearman"})


@dataclass(frozen=True, slots=True)
class Unit:
    """How a metric is printed: multiplied by `scale`, with `digits` decimals, followed by `name`."""

    scale: float
    digits: int
    name: str

    def value(self, value: float) -> str:
        """Return a value without its unit."""
        return f"{value * self.scale:.{self.digits}f}"

    def signed(self, value: float) -> str:
        """Return a difference with its sign; the sign of what rounds to zero is dropped."""
        text = f"{value * self.scale:+.{self.digits}f}"
        return text[1:] if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")

    def interval(self, interval: Interval) -> str:
        """Return a difference's interval."""
        return f"[{self.signed(interval.low)}, {self.signed(interval.high)}]"

    def margin(self, value: float) -> str:
        """Return a margin without sign or trailing zeros, and its unit."""
        return f"{value * self.scale:g} {self.name}".rstrip()


def unit_of(metric: str) -> Unit:
    """Return how `metric` is printed: shares in percentage points, losses in nats."""
    if metric in _PERCENT:
        return Unit(100, 1, "pt")
    return Unit(1, 3, "nats" if metric == "loss" else "")


def sentence(summary: Summary, row: Row) -> str:
    """Return the verdict line of one row against the reference: what was found, and what it costs."""
    return " ".join(filter(None, (finding(summary, row), price(summary, row))))


def finding(summary: Summary, row: Row) -> str:
    """Return the difference, its interval and the verdict of one row against the reference."""
    verdict, pair = row.verdict, row.pair
    if verdict is None:
        raise ValueError(f"{row.arm} is the reference")
    reference = summary.row(summary.reference)
    pair_of = f"{row.label} against {reference.label}"
    if pair is None or row.interval is None:
        return f"{pair_of}: unresolved. {_sentence_case(verdict.reason)}."
    unit = unit_of(summary.metric["name"])
    difference = f"{unit.signed(pair.difference)} {unit.name}".rstrip()
    measured = f"{pair_of}: {summary.metric['name']} {difference} {unit.interval(row.interval)}"
    sample = f"(95 %, {_count(pair.seeds, 'seed')}, {_count(pair.items, 'test item')})"
    verdict_line = f"{measured} {sample}: {_verdict(summary, row)}."
    notes = [*_smallest(row, unit), *_seed_note(row), *_forgets(summary, row)]
    return " ".join([verdict_line, *notes])


def _verdict(summary: Summary, row: Row) -> str:
    verdict = row.verdict
    assert verdict is not None
    assert row.pair is not None
    margin = unit_of(summary.metric["name"]).margin(summary.margin)
    if verdict.word == "equivalent":
        tail = ", a real but negligible difference" if row.interval and 0 not in row.interval else ""
        return f"equivalent within ±{margin}{tail}{_indicative(summary, row)}"
    if verdict.word != "unresolved":
        return f"{verdict.word}{_indicative(summary, row)}"
    return f"unresolved at ±{margin}: {verdict.reason}{_needed(row)}"


def _indicative(summary: Summary, row: Row) -> str:
    verdict = row.verdict
    if verdict is None or not verdict.indicative:
        return ""
    reference = summary.row(summary.reference)
    reasons = []
    if row.pair is not None and row.pair.seeds < ENOUGH_SEEDS:
        reasons.append(_count(row.pair.seeds, "seed"))
    unswept = [each.label for each in (reference, row) if each.kind in ("reference", "arm") and not each.swept]
    if unswept:
        reasons.append(f"learning rate not swept for {' and '.join(unswept)}")
    return f" (indicative: {'; '.join(reasons)})"


def _needed(row: Row) -> str:
    verdict, pair = row.verdict, row.pair
    assert verdict is not None
    assert pair is not None
    ways = []
    if verdict.seeds_needed and pair.seeds >= 2:
        ways.append(_count(verdict.seeds_needed, "seed"))
    if verdict.items_needed:
        ways.append(_count(verdict.items_needed, "test item"))
    if ways and pair.seeds >= 3:
        return f"; if the estimates stay, {' or '.join(ways)} would resolve it"
    if verdict.blocked or pair.seeds < 3:
        return ""
    return "; neither more seeds nor more test items alone would resolve it"


def _smallest(row: Row, unit: Unit) -> list[str]:
    """Return what so many seeds and items can find at all; one seed knows too little of it to say."""
    if row.pair is None or row.pair.seeds < 2:
        return []
    if row.pair.detectable == 0:
        return ["Nothing varies over seeds or items: the smallest difference that would be found cannot be estimated."]
    if row.detectable is None:
        return []
    size = f"{unit.value(row.detectable)} {unit.name}".rstrip()
    return [f"Differences from {size} on would be found with a power of 80 %."]


def _seed_note(row: Row) -> list[str]:
    if row.pair is None or row.pair.seeds > 1:
        return []
    exact = "" if row.pair.mcnemar is None else f" (exact McNemar p = {row.pair.mcnemar:.3g})"
    return [f"With one seed the interval speaks of these very weights{exact} and says nothing about training noise."]


def price(summary: Summary, row: Row) -> str:
    """Return what one row trains and takes, as multiples of the reference's; empty where it trains nothing."""
    reference = summary.row(summary.reference)
    if row.kind == "majority" or not row.share or row.pair is None:
        return ""
    parts = [f"trains {100 * row.share:.2f} % of the base's size"]
    if row.cost and reference.cost:
        parts.append(f"{_work(row.cost) / _work(reference.cost):.2f}x the floating-point operations of a step")
    if summary.clock == "cpu" and row.step_cpu and reference.step_cpu:
        parts.append(f"{row.step_cpu / reference.step_cpu:.2f}x the CPU time of a step")
    elif row.step and reference.step:
        parts.append(f"{row.step / reference.step:.2f}x the time of a step")
    if row.memory and reference.memory:
        parts.append(f"{memory_total(row.memory) / memory_total(reference.memory):.2f}x the training memory")
    return _sentence_case("; ".join(parts)) + "."


def _forgets(summary: Summary, row: Row) -> list[str]:
    """Say what the row forgets where it has learned as much as the reference, if the probe can tell and seeds allow."""
    found = summary.forgotten
    own, reference = (found.arm(row.arm), found.arm(summary.reference)) if found else (None, None)
    if found is None or own is None or reference is None or own.pair is None or own.pair.against is None:
        return []
    if found.shared_texts or own.moved_up or reference.moved_up or own.pair.against.seeds < FEWEST_SEEDS:
        return []
    majority = next((one.test.mean for one in summary.rows if one.kind == "majority" and one.test), None)
    if found.is_trivial(own.pair.level, majority):
        return []
    against, of = own.pair.against, Unit(1, 3, summary.probe_unit)
    level = unit_of(found.metric).value(own.pair.level)
    where = (
        f"Where both have a validation {found.metric} of {level}{' %' if unit_of(found.metric).scale == 100 else ''}"
    )
    told = f"{of.signed(against.difference)} {of.name} {of.interval(against.interval)}"
    if 0 in against.interval:
        return [f"{where}, the difference in what they forget is unresolved: {told}."]
    return [f"{where}, it forgets {'less' if against.difference < 0 else 'more'}: {told}."]


def _work(cost: StepCost) -> int:
    return cost["forward"] + cost["backward"]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _sentence_case(text: str) -> str:
    return text[:1].upper() + text[1:]
