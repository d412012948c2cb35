"""Numbers as people read them, shared by the terminal table and the report."""

from __future__ import annotations

import math

from reloc_core.evaluation.metrics import (
    RELATIVE_SUCCESS,
    RELATIVE_THRESHOLDS,
    SUCCESS,
    THRESHOLDS,
)

METRE = "metre"


def format_length(metres: float | None, unit: str = METRE) -> str:
    """A length with three significant digits: "0.98 cm", "1.32 m", "0.0132 units"."""
    if metres is None or math.isnan(metres):
        return "–"
    if math.isinf(metres):
        return "∞"
    if unit != METRE:
        return f"{_digits(metres)} units"
    return f"{_digits(metres * 100)} cm" if metres < 1 else f"{_digits(metres)} m"


def format_limit(metres: float, unit: str = METRE) -> str:
    """A round length such as a threshold: "5 cm", "5 m", "0.05 units"."""
    if unit != METRE:
        return f"{metres:g} units"
    return f"{metres * 100:g} cm" if metres < 1 else f"{metres:g} m"


def format_angle(degrees: float | None) -> str:
    """An angle in degrees with three significant digits."""
    if degrees is None or math.isnan(degrees):
        return "–"
    return "∞" if math.isinf(degrees) else f"{_digits(degrees)}°"


def format_percent(fraction: float | None) -> str:
    """A fraction as percent with one decimal, never rounded up to 100 % or down to 0 %."""
    if fraction is None or math.isnan(fraction):
        return "–"
    percent = 100 * fraction
    if 0 < percent < 100:
        percent = min(max(percent, 0.1), 99.9)
    return f"{percent:.1f} %" if percent < 100 else "100 %"


def format_seconds(seconds: float | None) -> str:
    """A duration: "38 ms", "1.2 s", "3 min 20 s"."""
    if seconds is None or math.isnan(seconds):
        return "–"
    if seconds < 0.9995:
        return f"{_digits(seconds * 1000, 2)} ms"
    if seconds < 99.5:
        return f"{_digits(seconds, 2)} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def threshold_label(key: str, unit: str = METRE) -> str:
    """A key of `THRESHOLDS` in words: "5 cm, 5°"."""
    length, degrees = THRESHOLDS[key]
    return f"{format_limit(length, unit)}, {degrees:g}°"


def relative_label(key: str) -> str:
    """A key of `RELATIVE_THRESHOLDS` in words: "1 % of the depth, 1°"."""
    share, degrees = RELATIVE_THRESHOLDS[key]
    return f"{100 * share:g} % of the depth, {degrees:g}°"


def success_label(unit: str, depth: float | None) -> str:
    """What a query counts as right by: "5 cm, 5°", or a share of the scene's depth in any other unit."""
    if unit != METRE and depth:
        return relative_label(RELATIVE_SUCCESS)
    return threshold_label(SUCCESS, unit)


def format_share(share: float | None) -> str:
    """A length over the scene's depth in percent with three significant digits."""
    if share is None or math.isnan(share):
        return "–"
    return "∞" if math.isinf(share) else f"{_digits(100 * share)} %"


def _digits(value: float, significant: int = 3) -> str:
    """Rounded to significant digits, in plain notation, whole numbers kept whole."""
    value = float(f"{value:.{significant - 1}e}")
    if value == 0:
        return "0"
    decimals = max(0, significant - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(decimals, 6)}f}"
