"""Just enough SVG for the report: axes with linear or logarithmic scales, marks and captions.

Colours are CSS classes of the report page, so that figures follow its light and dark themes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

from reloc_core.types import FloatArray


def number(value: float) -> str:
    """A coordinate with at most two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if math.isfinite(value) else "0"


def nice_step(span: float, count: int) -> float:
    """A step of 1, 2 or 5 times a power of ten that divides `span` into about `count` parts."""
    raw = max(span, 1e-12) / count
    power = 10.0 ** math.floor(math.log10(raw))
    return next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)


def path(points: FloatArray, breaks: Iterable[int] = ()) -> str:
    """Path data of a polyline (N, 2), lifted before the indices in `breaks`."""
    lifted = {0, *breaks}
    return "".join(
        f"{'M' if i in lifted else 'L'}{number(x)} {number(y)}" for i, (x, y) in enumerate(points)
    )


def dots(points: FloatArray) -> str:
    """Path data that draws dots at (N, 2) when stroked with round caps; far shorter than circles."""
    return "".join(f"M{number(x)} {number(y)}h0" for x, y in points)


class Axes:
    """A framed plot.

    Args:
        width: of the drawing in its own units (text is 12 units high).
        height: likewise.
        x_range: values at the left and right end.
        y_range: values at the bottom and top.
        x_log: logarithmic x axis.
        y_log: logarithmic y axis.
        label: what the figure shows, for people who cannot see it.
        margins: left, top, right, bottom.
        css: class of the whole drawing.
    """

    def __init__(
        self,
        width: float,
        height: float,
        x_range: tuple[float, float],
        y_range: tuple[float, float],
        x_log: bool = False,
        y_log: bool = False,
        label: str = "",
        margins: tuple[float, float, float, float] = (46, 14, 22, 42),
        css: str = "",
    ) -> None:
        self.width, self.height, self.label, self.css = width, height, label, css
        self.left, self.top = margins[0], margins[1]
        self.right, self.bottom = width - margins[2], height - margins[3]
        self._x, self._y, self._x_log, self._y_log = x_range, y_range, x_log, y_log
        self.parts: list[str] = []

    def x(self, value: float) -> float:
        """Horizontal position of a value, clamped to the frame."""
        share = _share(value, self._x, self._x_log)
        return self.left + share * (self.right - self.left)

    def y(self, value: float) -> float:
        """Vertical position of a value, clamped to the frame."""
        share = _share(value, self._y, self._y_log)
        return self.bottom - share * (self.bottom - self.top)

    def add(self, element: str) -> None:
        """Append raw SVG."""
        self.parts.append(element)

    def text(self, x: float, y: float, text: str, css: str = "", anchor: str = "start") -> None:
        """Text at a position of the drawing; escaped here."""
        self.add(
            f'<text x="{number(x)}" y="{number(y)}" class="{css}" text-anchor="{anchor}">'
            f"{escape(text)}</text>"
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, css: str) -> None:
        """A straight line between positions of the drawing."""
        self.add(f'<path class="{css}" d="M{number(x1)} {number(y1)}L{number(x2)} {number(y2)}"/>')

    def x_ticks(self, ticks: Sequence[tuple[float, str]], title: str) -> None:
        """Grid lines and labels along x, with the axis title below."""
        for value, label in ticks:
            self.line(self.x(value), self.top, self.x(value), self.bottom, "grid")
            if label:
                self.text(self.x(value), self.bottom + 16, label, "tick", "middle")
        middle = (self.left + self.right) / 2
        self.text(middle, self.bottom + 34, title, "axis", "middle")

    def y_ticks(self, ticks: Sequence[tuple[float, str]]) -> None:
        """Grid lines and labels along y."""
        for value, label in ticks:
            self.line(self.left, self.y(value), self.right, self.y(value), "grid")
            if label:
                self.text(self.left - 7, self.y(value) + 4, label, "tick", "end")

    def mark(self, x: float, y: float, css: str, tooltip: str = "", failed: bool = False) -> None:
        """A dot, or a cross for a failed query, with a tooltip."""
        if failed:
            shape = f"M{number(x - 3.5)} {number(y - 3.5)}l7 7m0-7l-7 7"
            element = f'<path class="cross {css}" d="{shape}"'
        else:
            element = f'<circle class="dot {css}" cx="{number(x)}" cy="{number(y)}" r="2.6"'
        title = f"<title>{escape(tooltip)}</title>" if tooltip else ""
        tag = "path" if failed else "circle"
        self.add(f"{element}>{title}</{tag}>")

    def render(self) -> str:
        """The finished drawing."""
        return (
            f'<svg viewBox="0 0 {number(self.width)} {number(self.height)}" class="{self.css}" '
            f'role="img" aria-label="{escape(self.label)}">{"".join(self.parts)}</svg>'
        )


def log_ticks(low: float, high: float, unit: str) -> list[tuple[float, str]]:
    """Grid positions 1, 2, 5 per decade; every one is labelled when there are few decades.

    Args:
        low: smallest value, > 0.
        high: largest value.
        unit: "metre", "degree" or another name that is not shown.
    """
    decades = math.log10(high / low)
    labelled = (1, 2, 5) if decades <= 1.8 else (1, 3) if decades <= 2.6 else (1,)
    ticks = []
    for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
        for digit in sorted({1, 2, 5, *labelled}):
            value = digit * 10.0**power
            if low * 0.999 <= value <= high * 1.001:
                ticks.append((value, _tick(value, unit) if digit in labelled else ""))
    return ticks


def log_range(values: FloatArray, floor: float) -> tuple[float, float]:
    """A logarithmic range, over a factor of 30 at least, that holds nearly all positive finite values.

    Args:
        values: any; those that are not finite and positive are ignored.
        floor: smallest sensible value; smaller ones are drawn at the edge.
    """
    good = np.asarray(values, np.float64)
    good = good[np.isfinite(good) & (good > 0)]
    if not len(good):
        return floor, floor * 1000
    low = max(float(np.quantile(good, 0.005)) / 1.2, floor)
    high = max(float(good.max()) * 1.2, low * 30)
    return low, high


def _share(value: float, ends: tuple[float, float], logarithmic: bool) -> float:
    low, high = ends
    if logarithmic:
        value = math.log(max(value, low)) if value < math.inf else math.log(high)
        low, high = math.log(low), math.log(high)
    return min(max((value - low) / (high - low), 0.0), 1.0)


def _tick(value: float, unit: str) -> str:
    if unit == "degree":
        return f"{value:g}°"
    if unit != "metre":
        return f"{value:g}"
    if value >= 0.9999:
        return f"{value:g} m"
    return f"{value * 100:g} cm" if value >= 0.00999 else f"{value * 1000:g} mm"
