"""The numbers of a study as CSV files, one for each table and plot of the report."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

from surgery.study.curves import mean_curves
from surgery.study.fairness import best_step
from surgery.study.forgetting.paths import forgetting_paths
from surgery.study.forgetting.tables import forgetting_tables
from surgery.study.layers import layer_changes, singular_values
from surgery.study.readings import Reading
from surgery.study.record import CellRecord
from surgery.study.results import write_atomically
from surgery.study.secondary import Secondary
from surgery.study.statistics import Estimate, Interval
from surgery.study.summary import Row, Summary
from surgery.study.tradeoff import tradeoffs
from surgery.study.weights import FIGURES, measured, weight_medians

__all__ = ["Table", "tables", "write_tables"]

Value: TypeAlias = str | int | float | bool | None
Table: TypeAlias = tuple[tuple[str, ...], list[tuple[str, ...]]]
"""Column names, and rows of text: exactly what the CSV file and the report hold."""


def tables(summary: Summary, records: Sequence[CellRecord]) -> dict[str, Table]:
    """Return file name (without .csv) -> table. Units stand in the column names."""
    found = {
        "arms": _texts([_arm(row, summary.probe_unit) for row in summary.rows]),
        "costs": _texts([line for row in summary.rows for line in _costs(row)]),
        "runs": _texts([_run(record) for record in records]),
        "learning_rates": _texts(
            [
                {
                    "arm": choice.arm,
                    "learning_rate": rate,
                    "validation_loss_nats": loss,
                    "chosen": rate == choice.rate,
                    "beyond_grid": rate in choice.extra,
                }
                for choice in summary.choices
                for rate, loss in zip(choice.grid, choice.losses, strict=True)
            ]
        ),
        "curves": _texts(
            [
                {
                    "arm": record["arm"],
                    "seed": record["seed"],
                    "step": point["step"],
                    "train_loss_nats": point["train_loss"],
                    "validation_loss_nats": point["validation_loss"],
                    "tokens": point.get("tokens"),
                    "validation_metric": point.get("validation_metric"),
                }
                for record in records
                if record["phase"] == "final"
                for point in record["curve"]
            ]
        ),
        "search": _texts(
            [
                {"arm": choice.arm, "tries": tries, "expected_best_validation_loss_nats": loss}
                for choice in summary.choices
                for tries, loss in enumerate(choice.expected, 1)
            ]
        ),
        "readings": _texts([_reading(reading) for reading in summary.readings]),
        "checks": _texts([{"check": c.name, "status": c.status, "detail": c.detail} for c in summary.checks]),
    }
    if summary.secondary:
        found["metrics"] = _texts([_secondary(each) for each in summary.secondary])
    found |= _plotted(summary, records)
    if any("weights" in record for record in records):
        found["weights"] = _texts([{"arm": arm, **row} for arm, row in weight_medians(records).items()])
        found["matrices"] = _texts([_matrix(record, matrix) for record, matrix in measured(records)])
    return found | {name: _texts(rows) for name, rows in forgetting_tables(summary).items()}


def _plotted(summary: Summary, records: Sequence[CellRecord]) -> dict[str, Table]:
    """Return what plots show and no other table holds; without rows, no table."""
    rows: dict[str, Sequence[Any]] = {
        "loss_curves": mean_curves(summary, records),
        "tradeoffs": tradeoffs(summary, records),
        "forgetting_paths": forgetting_paths(summary),
        "layers": layer_changes(records),
        "singular_values": singular_values(records),
        "overlaps": summary.overlaps,
    }
    return {name: _texts([asdict(row) for row in found]) for name, found in rows.items() if found}


def write_tables(folder: Path, summary: Summary, records: Sequence[CellRecord]) -> tuple[Path, ...]:
    """Write every table as `folder`/NAME.csv and return the paths."""
    paths = []
    for name, (columns, rows) in tables(summary, records).items():
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
        paths.append(folder / f"{name}.csv")
        write_atomically(paths[-1], text.getvalue())
    return tuple(paths)


def _arm(row: Row, unit: str) -> dict[str, Value]:
    pair, verdict, memory = row.pair, row.verdict, row.memory
    known = "known_loss" if unit == "nats" else "known"
    return {
        "arm": row.arm,
        "label": row.label,
        "kind": row.kind,
        "parameters_adapter": row.adapter,
        "parameters_head": row.head,
        "share_of_base": row.share,
        "learning_rate": row.rate,
        "swept": row.swept if row.grid else None,
        "edge_of_grid": row.edge if row.grid else None,
        **_estimate("test", row.test),
        **_estimate("test_loss_nats", row.test_loss),
        **_estimate("validation_loss_nats", row.validation_loss),
        "difference": pair.difference if pair else None,
        **_interval("difference_95", row.interval),
        **_interval("difference_90", row.narrow),
        **_interval("difference_bootstrap_95", pair.percentile if pair else None),
        "p": row.p,
        "p_holm": row.adjusted_p,
        "p_mcnemar": pair.mcnemar if pair else None,
        "detectable_80": row.detectable,
        "verdict": verdict.word if verdict else None,
        "indicative": verdict.indicative if verdict else None,
        "reason": verdict.reason if verdict else None,
        "seeds_needed": verdict.seeds_needed if verdict else None,
        "items_needed": verdict.items_needed if verdict else None,
        "step_ms": _milli(row.step),
        "step_ms_q1": _milli(row.step_low),
        "step_ms_q3": _milli(row.step_high),
        "step_cpu_ms": _milli(row.step_cpu),
        "weights_bytes": memory["weights"] if memory else None,
        "gradients_bytes": memory["gradients"] if memory else None,
        "optimizer_bytes": memory["optimizer"] if memory else None,
        "activations_bytes": memory["activations"] if memory else None,
        "checkpoint_bytes": row.checkpoint_bytes,
        "round_trip_elements": row.elements,
        "round_trip_differ": row.differ,
        "merge_logit_change": row.logit_change,
        **_estimate(f"forgetting_{unit.lower()}", row.forgetting),
        f"{known}_before_{unit.lower()}": row.known_before,
        f"{known}_after_{unit.lower()}": row.known_after,
        "flag": row.flag or None,
        "state": row.state if row.kind != "majority" else None,
        "final_step": row.steps,
        "best_validation_step": row.best_step,
        "best_validation_loss_nats": row.best_loss,
    }


def _costs(row: Row) -> list[dict[str, Value]]:
    """One line for each quantity that was predicted or measured; times have quartiles."""
    lines: list[dict[str, Value]] = []

    def line(
        quantity: str, unit: str, predicted: Value, measured: Value, low: Value = None, high: Value = None
    ) -> None:
        far = quantity in row.apart if predicted is not None else None
        lines.append(
            {"arm": row.arm, "quantity": quantity, "unit": unit, "predicted": predicted, "measured": measured,
             "measured_q1": low, "measured_q3": high, "far_off": far}
        )  # fmt: skip

    if row.cost is not None:
        told = row.cost["predicted"]
        line("forward", "FLOP", told["forward"], row.cost["forward"])
        line("backward", "FLOP", told["backward"], row.cost["backward"])
        if row.memory is not None:
            line("weights", "bytes", told["weights"], row.memory["weights"])
            line("gradients", "bytes", told["gradients"], row.memory["gradients"])
            line("optimizer", "bytes", told["optimizer"], row.memory["optimizer"])
            line("activations", "bytes", told["activations"], row.memory["activations"])
    if row.device_peak is not None:
        line("device_peak", "bytes", None, row.device_peak)
    if row.clock is not None:
        for name in ("step", "step_cpu", "base", "unmerged", "merged"):
            spread = getattr(row.clock, name)
            if spread is not None:
                line(name, "ms", None, _milli(spread.median), _milli(spread.low), _milli(spread.high))
    return lines


def _run(record: CellRecord) -> dict[str, Value]:
    metric = record["metric"]["name"]
    return {
        "arm": record["arm"],
        "phase": record["phase"],
        "seed": record["seed"],
        "learning_rate": record["learning_rate"] if record["trains"] else None,
        "validation_loss_nats": record["validation"].get("loss"),
        f"validation_{metric}": record["validation"].get(metric),
        "test_loss_nats": (record["test"] or {}).get("loss"),
        f"test_{metric}": (record["test"] or {}).get(metric),
        "test_reads": record["test_reads"],
        "updates": record["budget"]["updates"],
        "examples": record["budget"]["examples"],
        "tokens": record["budget"]["tokens"],
        "best_validation_step": best_step(record) if record["trains"] else None,
        "diverged": record["diverged"],
        "seconds": record["timing"]["total"],
        "cell": record["key"],
    }


def _reading(reading: Reading) -> dict[str, Value]:
    return {
        "axis": reading.axis,
        "amount": reading.amount,
        "arm": reading.arm,
        "step": reading.step,
        "validation_loss_nats": reading.loss,
        "validation_metric": reading.metric,
        "read_from_step": reading.before,
        "read_to_step": reading.after,
        "coarse": reading.coarse,
        "unfinished_schedule": reading.unfinished,
    }


def _secondary(each: Secondary) -> dict[str, Value]:
    return {
        "metric": each.metric,
        "arm": each.arm,
        **_estimate("test", each.estimate),
        "difference": each.difference,
        **_interval("difference_95", each.interval),
    }


def _matrix(record: CellRecord, matrix: Mapping[str, Any]) -> dict[str, Value]:
    own = ("name", "role", "stack", "layer", "expert", "relative_norm", "rank")
    return {
        "arm": record["arm"],
        "seed": record["seed"],
        **{name: matrix[name] for name in own},
        "fan_out": matrix["shape"][0],
        "fan_in": matrix["shape"][1],
        **{figure: matrix["found"][figure] for figure in FIGURES},
        **{f"random_{figure}": matrix["control"][figure] for figure in FIGURES},
    }


def _estimate(name: str, estimate: Estimate | None) -> dict[str, Value]:
    return {
        name: estimate.mean if estimate else None,
        f"{name}_sd": estimate.deviation if estimate else None,
        **_interval(f"{name}_95", estimate.interval if estimate else None),
    }


def _interval(name: str, interval: Interval | None) -> dict[str, Value]:
    return {f"{name}_low": interval.low if interval else None, f"{name}_high": interval.high if interval else None}


def _milli(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000


def _texts(rows: Sequence[dict[str, Value]]) -> Table:
    # Runs of a folder that mixes metrics have columns of their own; the audit has a red line then.
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    return columns, [tuple(_text(row.get(name)) for name in columns) for row in rows]


def _text(value: Value) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    # Seven digits: more than any of these measurements hold, and equal studies give equal files.
    return f"{value:.7g}" if isinstance(value, float) else str(value)
