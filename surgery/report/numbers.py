"""Numbers as people read them."""

from __future__ import annotations

__all__ = ["MISSING", "count", "loss", "milliseconds", "percent", "rate", "short", "size", "tiny", "work"]

MISSING = "\N{EN DASH}"


def count(number: int | None) -> str:
    """Return 331776 as 331,776."""
    return MISSING if number is None else f"{number:,}"


def percent(share: float | None) -> str:
    """Return a share of 1 in percent, with three significant digits below ten."""
    if share is None:
        return MISSING
    value = share * 100
    if value == 0:
        return "0 %"
    return f"{value:.0f} %" if value >= 99.5 else f"{value:.3g} %"


def size(number: int | None) -> str:
    """Return bytes in the largest binary unit that leaves a number of at least one."""
    if number is None:
        return MISSING
    value = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if value >= 100 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def milliseconds(seconds: float | None) -> str:
    """Return seconds in milliseconds, three significant digits."""
    if seconds is None:
        return MISSING
    value = seconds * 1000
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def rate(value: float | None) -> str:
    """Return a learning rate as it is written in specs: 3e-4, 0.01."""
    if value is None:
        return MISSING
    mantissa, exponent = f"{value:.2e}".split("e")
    if int(exponent) >= -2:
        return f"{value:.3g}"
    return f"{float(mantissa):g}e{int(exponent)}"


def loss(value: float | None) -> str:
    """Return a loss in nats with three decimals."""
    return MISSING if value is None else f"{value:.3f}"


def tiny(value: float | None) -> str:
    """Return a rounding error with two significant digits."""
    if value is None:
        return MISSING
    return "0" if value == 0 else f"{value:.1e}".replace("e-0", "e-")


def short(value: float) -> str:
    """Return a number with the letter of its thousands: 12,345 as 12.3k."""
    return _scaled(value, ("", "k", "M", "G", "T"))


def work(value: float) -> str:
    """Return floating-point operations in the largest unit that leaves at least one: 2e13 as 20 TFLOP."""
    return _scaled(value, (" FLOP", " kFLOP", " MFLOP", " GFLOP", " TFLOP", " PFLOP"))


def _scaled(value: float, units: tuple[str, ...]) -> str:
    power = 0
    while abs(value) >= 999.5 and power < len(units) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g}{units[power]}"
