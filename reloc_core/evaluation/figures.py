"""The report's figures: error curves, the trajectory from above, errors over time and by score."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

import numpy as np

from reloc_core.evaluation.metrics import ReliabilityBin
from reloc_core.evaluation.results import QueryResult
from reloc_core.evaluation.svg import Axes, log_range, log_ticks, nice_step, number, path
from reloc_core.evaluation.units import format_angle, format_length, format_limit
from reloc_core.types import Float64Array, FloatArray

_MOST_MARKS = 1500
_BINS = (
    (0.01, 0.02, 0.05, 0.10),
    (0.05, 0.10, 0.25, 0.50),
    (0.25, 0.50, 1.0, 5.0),
    (1.0, 2.0, 5.0, 10.0),
)


def error_bins(median: float) -> tuple[float, ...]:
    """Four limits of the colour scale of translation errors that suit a scene's median error."""
    return next((bins for bins in _BINS if median < bins[2]), _BINS[-1])


def error_class(error: float | None, bins: Sequence[float]) -> str:
    """CSS class e0 (best) to e4 of an error; "unknown" without ground truth."""
    if error is None:
        return "unknown"
    return f"e{int(np.searchsorted(bins, error, 'right'))}"


def legend(bins: Sequence[float], unit: str, failed: bool = False) -> str:
    """HTML legend of the colour scale."""
    names = [f"below {format_limit(bins[0], unit)}"]
    names += [f"below {format_limit(high, unit)}" for high in bins[1:]]
    names.append("larger")
    items = [f'<span><i class="key e{i}"></i>{escape(n)}</span>' for i, n in enumerate(names)]
    if failed:
        items.append('<span><i class="key cross-key">×</i>not localized</span>')
    return f'<p class="legend">{"".join(items)}</p>'


def cumulative_errors(
    series: Mapping[str, FloatArray], axis: str, unit: str, threshold: float
) -> str:
    """Share of queries below an error, over the error on a logarithmic axis.

    Args:
        series: (N,) errors by stage name, inf for failures; the last one is the final result.
        axis: title of the x axis.
        unit: "metre", "degree" or the scene's unit.
        threshold: error to mark, as a guide for the eye.
    """
    everything = np.concatenate([np.asarray(e, np.float64) for e in series.values()])
    low, high = log_range(everything, 0.01 if unit == "degree" else 1e-4)
    low, high = min(low, threshold / 2), max(high, threshold * 2)
    plot = Axes(440, 290, (low, high), (0, 1), x_log=True, label=f"Cumulative {axis.lower()}")
    plot.x_ticks(log_ticks(low, high, unit), axis)
    plot.y_ticks([(v / 4, f"{25 * v} %") for v in range(5)])
    plot.line(plot.x(threshold), plot.top, plot.x(threshold), plot.bottom, "guide")
    for index, (_, errors) in enumerate(series.items()):
        ordered = np.sort(np.asarray(errors, np.float64))
        count = len(ordered)
        reached = ordered[np.isfinite(ordered)]
        if not len(reached):
            continue
        keep = np.unique(np.linspace(0, len(reached) - 1, min(len(reached), 300)).astype(int))
        points = [(plot.x(low), plot.y(0))]
        for k in keep:
            points += [
                (plot.x(reached[k]), points[-1][1]),
                (plot.x(reached[k]), plot.y((k + 1) / count)),
            ]
        points.append((plot.x(high), points[-1][1]))
        final = index == len(series) - 1
        css = "curve" if final else f"curve before b{index % 3}"
        plot.add(f'<path class="{css}" d="{path(np.asarray(points))}"/>')
    return plot.render()


def error_over_queries(results: Sequence[QueryResult], bins: Sequence[float], unit: str) -> str:
    """Translation error of every query in order, failures along the top."""
    errors = [r.translation_error_m for r in results]
    low, high = _error_range(errors)
    plot = Axes(
        440, 250, (0, max(len(results) - 1, 1)), (low, high), y_log=True,
        label="Translation error of every query in order", margins=(52, 24, 22, 42),
    )  # fmt: skip
    step = max(1, round(nice_step(len(results), 5)))
    plot.x_ticks([(i, str(i)) for i in range(0, len(results), step)], "query")
    plot.y_ticks(log_ticks(low, high, unit))
    _failure_lane(plot, errors)
    for i in range(1, len(results)):
        if results[i].sequence != results[i - 1].sequence and results[i].sequence is not None:
            plot.line(plot.x(i - 0.5), plot.top, plot.x(i - 0.5), plot.bottom, "guide")
    for i in _shown(results):
        _mark(plot, plot.x(i), results[i], bins, unit)
    return plot.render()


def error_by_score(results: Sequence[QueryResult], bins: Sequence[float], unit: str) -> str:
    """Translation error over the score that the localizer gave itself."""
    errors = [r.translation_error_m for r in results]
    low, high = _error_range(errors)
    plot = Axes(
        440, 250, (0, 1), (low, high), y_log=True,
        label="Translation error over score", margins=(52, 24, 22, 42),
    )  # fmt: skip
    plot.x_ticks([(v / 5, f"{v / 5:g}") for v in range(6)], "score")
    plot.y_ticks(log_ticks(low, high, unit))
    _failure_lane(plot, errors)
    for i in _shown(results):
        _mark(plot, plot.x(results[i].score), results[i], bins, unit)
    return plot.render()


def score_reliability(groups: Sequence[ReliabilityBin]) -> str:
    """Share of right poses over the mean score, by groups of similar score, with Wilson's intervals."""
    plot = Axes(440, 250, (0, 1), (0, 1), label="Share of right poses over score")
    plot.x_ticks([(v / 5, f"{v / 5:g}") for v in range(6)], "score")
    plot.y_ticks([(v / 4, f"{25 * v} %") for v in range(5)])
    plot.line(plot.x(0), plot.y(0), plot.x(1), plot.y(1), "guide")
    where = [(plot.x(g.score_mean), plot.y(g.success)) for g in groups]
    plot.add(f'<path class="curve" d="{path(np.asarray(where))}"/>')
    for group, (x, y) in zip(groups, where, strict=True):
        low, high = wilson(group.success, group.queries)
        plot.line(x, plot.y(low), x, plot.y(high), "truth")
        plot.mark(
            x, y, "", f"{group.queries} queries with scores {group.score_low:.2f} to "
            f"{group.score_high:.2f}: {100 * group.success:.0f} % right",
        )  # fmt: skip
    return plot.render()


def wilson(share: float, count: int) -> tuple[float, float]:
    """Interval of a proportion (Wilson 1927), 95 %."""
    z = 1.96
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return max(centre - half, 0.0), min(centre + half, 1.0)


def covariance_calibration(nees: FloatArray) -> str:
    """Share of poses inside the confidence region of every nominal probability.

    Args:
        nees: (N,) normalised estimation errors squared; chi-square with 6 degrees of freedom when
            the covariances are right, which puts the curve on the diagonal.
    """
    half = np.sort(np.asarray(nees, np.float64)) / 2
    # The chi-square distribution of an even number of degrees of freedom has a closed form.
    nominal = 1 - np.exp(-half) * (1 + half + half**2 / 2)
    plot = Axes(440, 250, (0, 1), (0, 1), label="Observed over nominal confidence")
    plot.x_ticks([(v / 4, f"{25 * v} %") for v in range(5)], "confidence region by the covariance")
    plot.y_ticks([(v / 4, f"{25 * v} %") for v in range(5)])
    plot.line(plot.x(0), plot.y(0), plot.x(1), plot.y(1), "guide")
    keep = np.unique(np.linspace(0, len(half) - 1, min(len(half), 200)).astype(int))
    points = [(0.0, 0.0), *((nominal[k], (k + 1) / len(half)) for k in keep)]
    plot.add(
        f'<path class="curve" d="{path(np.asarray([(plot.x(x), plot.y(y)) for x, y in points]))}"/>'
    )
    return plot.render()


def trajectory(
    results: Sequence[QueryResult],
    mapped: Sequence[Float64Array],
    bins: Sequence[float],
    unit: str,
) -> tuple[str, str]:
    """Where the cameras were, seen from above.

    "Above" is the mean of the cameras' own up directions; the drawing is turned so that the
    longest extent runs across.

    Args:
        results: all queries; those with neither pose nor truth are not drawn.
        mapped: poses (4, 4) of the images that the map was built from.
        bins: limits of the colour scale.
        unit: of translations.

    Returns:
        the drawing and a remark about what lies outside it; both "" when there is nothing to draw.
    """
    truths = [r.truth for r in results if r.truth is not None]
    estimates = [r.world_from_cam for r in results if r.world_from_cam is not None]
    frame_poses = [*mapped, *(truths or estimates)]
    if not frame_poses:
        return "", ""
    stack = np.stack(frame_poses)
    across = _view_from_above(stack)
    flat = stack[:, :3, 3] @ across.T
    # Without truth a single wild estimate must not shrink everything else to a dot.
    low, high = (
        (flat.min(0), flat.max(0)) if truths or mapped else np.quantile(flat, (0.02, 0.98), axis=0)
    )
    span = np.maximum(high - low, max(float((high - low).max()) * 0.3, 1e-6))
    middle = (low + high) / 2
    width = 720.0
    scale = (width - 60) / float(span[0])
    height = float(min(max(span[1] * scale, 200.0), 560.0)) + 80
    scale = min(scale, (height - 80) / float(span[1]))

    def place(position: FloatArray) -> Float64Array:
        flat = np.asarray(position) @ across.T
        offset = (flat - middle) * scale
        return np.stack([width / 2 + offset[..., 0], (height - 20) / 2 - offset[..., 1]], -1)

    plot = Axes(width, height, (0, 1), (0, 1), label="Camera positions from above", css="wide")
    if len(mapped):
        points = _thin(place(np.stack(mapped)[:, :3, 3]), 1500)
        plot.add(f'<path class="mapped" d="{path(points, _jumps(points))}"/>')
    if truths:
        points = place(np.stack(truths)[:, :3, 3])
        plot.add(f'<path class="truth" d="{path(points, _jumps(points))}"/>')
        _headings(plot, truths, place, 14 / scale)
    outside = 0
    for i in _shown(results):
        r = results[i]
        true = place(r.truth[:3, 3]) if r.truth is not None else None
        if r.world_from_cam is None:
            if true is not None:
                plot.mark(true[0], true[1], "e4", _tooltip(r, unit), failed=True)
            continue
        x, y = place(r.world_from_cam[:3, 3])
        css = error_class(r.translation_error_m, bins)
        if not (0 <= x <= width and 0 <= y <= height):
            outside += 1
        if true is not None and math.hypot(x - true[0], y - true[1]) > 2:
            plot.line(true[0], true[1], x, y, f"link {css}")
        plot.mark(x, y, css, _tooltip(r, unit))
    _scale_bar(plot, scale, unit)
    verb = "estimate lies" if outside == 1 else "estimates lie"
    return plot.render(), f"{outside} {verb} outside this drawing." if outside else ""


def _headings(
    plot: Axes,
    poses: Sequence[Float64Array],
    place: Callable[[FloatArray], Float64Array],
    length: float,
) -> None:
    parts = []
    for pose in poses[:: max(1, len(poses) // 40)]:
        start, end = place(pose[:3, 3]), place(pose[:3, 3] + length * pose[:3, 2])
        parts.append(f"M{number(start[0])} {number(start[1])}L{number(end[0])} {number(end[1])}")
    plot.add(f'<path class="heading" d="{"".join(parts)}"/>')


def _scale_bar(plot: Axes, scale: float, unit: str) -> None:
    length = nice_step(150 / scale, 1)
    if length * scale > 220:
        length /= 2
    x, y = 24.0, plot.height - 22
    shape = f"M{number(x)} {number(y - 4)}v4h{number(length * scale)}v-4"
    plot.add(f'<path class="scale" d="{shape}"/>')
    plot.text(x + length * scale + 8, y + 2, format_limit(length, unit), "tick")


def _view_from_above(poses: Float64Array) -> Float64Array:
    """(2, 3): the world directions that run right and up in the drawing."""
    up = -poses[:, :3, 1].mean(0)
    centred = poses[:, :3, 3] - poses[:, :3, 3].mean(0)
    if np.linalg.norm(up) < 0.3:
        # Cameras held every way, as in aerial images: look along the thinnest direction instead.
        up = np.linalg.svd(centred, full_matrices=True)[2][2]
    up = up / np.linalg.norm(up)
    level = centred - np.outer(centred @ up, up)
    right = np.linalg.svd(level, full_matrices=True)[2][0]
    right = right - (right @ up) * up
    if np.linalg.norm(right) < 1e-6:
        right = np.cross(up, np.roll(up, 1) + np.array([0.1, 0.2, 0.3]))
    right = right / np.linalg.norm(right)
    # Fix the sign, which the decomposition leaves open.
    right = right * (1.0 if right[np.argmax(np.abs(right))] > 0 else -1.0)
    return np.stack([right, np.cross(up, right)])


def _error_range(errors: Sequence[float | None]) -> tuple[float, float]:
    return log_range(np.asarray([e for e in errors if e is not None], np.float64), 1e-4)


def _failure_lane(plot: Axes, errors: Sequence[float | None]) -> None:
    if any(e is not None and math.isinf(e) for e in errors):
        plot.text(plot.right, 9, "not localized", "tick", "end")


def _mark(plot: Axes, x: float, r: QueryResult, bins: Sequence[float], unit: str) -> None:
    if r.translation_error_m is None:
        return
    failed = math.isinf(r.translation_error_m)
    y = plot.top - 6 if failed else plot.y(r.translation_error_m)
    css = error_class(r.translation_error_m, bins)
    plot.mark(x, y, css, _tooltip(r, unit), failed=failed)


def _tooltip(r: QueryResult, unit: str) -> str:
    if not r.localized:
        return f"{r.name}: {r.reason}"
    if r.translation_error_m is None:
        return f"{r.name}: score {r.score:.2f}"
    errors = f"{format_length(r.translation_error_m, unit)}, {format_angle(r.rotation_error_deg)}"
    return f"{r.name}: {errors}, score {r.score:.2f}"


def _shown(results: Sequence[QueryResult]) -> list[int]:
    """Indices to draw: all, or in a long run an even choice and the worst. Worst ones on top."""

    def badness(i: int) -> float:
        error = results[i].translation_error_m
        return 0.0 if error is None else error

    order = sorted(range(len(results)), key=badness)
    if len(order) <= _MOST_MARKS:
        return order
    even = np.linspace(0, len(order) - 1, _MOST_MARKS - 300).astype(int)
    return sorted({*even.tolist(), *order[-300:]}, key=badness)


def _thin(points: Float64Array, count: int) -> Float64Array:
    return points[:: max(1, math.ceil(len(points) / count))]


def _jumps(points: Float64Array) -> list[int]:
    """Indices before which a path is lifted: steps far larger than the typical one."""
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    if not len(steps):
        return []
    limit = max(10 * float(np.median(steps)), 1.0)
    return [int(i) + 1 for i in np.flatnonzero(steps > limit)]
