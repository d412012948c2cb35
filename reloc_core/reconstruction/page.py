"""`report.html` of a reconstruction: the model from above, and what became of every image."""

from __future__ import annotations

import base64
import datetime
from collections import Counter
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

import cv2
import numpy as np

from reloc_core import __version__, evaluation
from reloc_core.errors import DataError
from reloc_core.evaluation.svg import Axes, dots, nice_step, number, path
from reloc_core.evaluation.units import format_limit
from reloc_core.io.images import read_image
from reloc_core.reconstruction.outcome import Summary
from reloc_core.types import Float64Array

_POINTS = 6000
_THUMBNAILS = 24
_THUMBNAIL_WIDTH = 300
_MARGIN = 0.15


def render(summary: Summary, folder: Path, more: str = "") -> str:
    """The page as text.

    Args:
        summary: of the reconstruction.
        folder: of the images.
        more: further sections, as HTML.
    """
    template = Template(files(evaluation).joinpath("report_template.html").read_text("utf-8"))
    today = datetime.date.today()
    total = len(summary.photos)
    unit = summary.world.unit
    lead = (
        f"{len(summary.images)} of {total} images are placed in one model of {len(summary.points)} points. "
        f"The unit is the {unit}: {summary.world.source}."
    )
    if summary.others:
        lead += (
            f" The images show several places, or do not overlap enough: the largest model is this one, "
            f"and {_counted(summary.others)} were left out."
        )
    tiles = [
        (f"{len(summary.images)}<small> of {total}</small>", "images registered"),
        (f"{len(summary.points)}", "points"),
        (f"{summary.error_px:.2f}<small> px</small>", "mean reprojection error"),
        (f"{summary.track:.1f}", "images see a point"),
        (escape(_extent(summary)), "extent of the cameras"),
    ]
    sections = [
        _map(summary), _not_registered(summary, folder), _registered(summary), _making(summary), more,
    ]  # fmt: skip
    return template.substitute(
        title=escape(f"{summary.title} · reloc"),
        scene=escape(summary.title),
        subtitle=escape(f"reconstruction from images · {today.day} {today:%B %Y}"),
        lead=escape(lead),
        tiles="".join(f'<div class="tile"><b>{v}</b><span>{k}</span></div>' for v, k in tiles),
        sections="\n".join(section for section in sections if section),
        footer=escape(
            f"Made by reloc {__version__}. Numbers are in reconstruction.json beside this page."
        ),
    )


def _counted(sizes: Sequence[int]) -> str:
    words = "model" if len(sizes) == 1 else "models"
    return f"{len(sizes)} {words} of {', '.join(map(str, sizes))} images"


def _extent(summary: Summary) -> str:
    box = np.ptp(_centres(summary), axis=0)
    unit = "m" if summary.world.unit == "metre" else "units"
    return f"{box[0]:.3g} × {box[1]:.3g} × {box[2]:.3g} {unit}"


def _centres(summary: Summary) -> Float64Array:
    return np.stack([image.world_from_cam[:3, 3] for image in summary.images])


def _map(summary: Summary) -> str:
    """Points and cameras from above (x to the right, y up)."""
    centres = _centres(summary)[:, :2]
    points, colours = summary.points, summary.colours
    flat = points[:, :2]
    if len(points):
        low, high = np.quantile(flat, (0.02, 0.98), axis=0)
        low, high = np.minimum(low, centres.min(0)), np.maximum(high, centres.max(0))
    else:
        low, high = centres.min(0), centres.max(0)
    span = np.maximum(high - low, max(float((high - low).max()) * 0.25, 1e-6)) * (1 + _MARGIN)
    middle = (low + high) / 2
    width = 720.0
    height = float(np.clip(span[1] * width / span[0], 240, 640))
    scale = min(width / span[0], height / span[1])

    def place(positions: Float64Array) -> Float64Array:
        offset = (positions - middle) * scale
        return np.stack([width / 2 + offset[:, 0], height / 2 - offset[:, 1]], 1)

    plot = Axes(width, height, (0, 1), (0, 1), label="Points and cameras from above", css="wide")
    kept = np.linspace(0, len(points) - 1, min(len(points), _POINTS)).astype(int)
    where = place(flat[kept]) if len(kept) else np.zeros((0, 2))
    inside = ((where > 0) & (where < [width, height])).all(1)
    # One path for each of a few colours: far shorter than a circle for each point.
    shades = (colours[kept] // 64) * 64 + 32
    for shade in np.unique(shades[inside], axis=0) if inside.any() else []:
        chosen = inside & (shades == shade).all(1)
        plot.add(
            f'<path d="{dots(where[chosen])}" stroke="rgb({",".join(map(str, shade))})" '
            'stroke-width="1.6" stroke-linecap="round" fill="none" opacity="0.75"/>'
        )
    added = set(summary.added)
    for image, position in zip(summary.images, place(centres), strict=True):
        forward = image.world_from_cam[:2, 2] * [1, -1]
        tip = position + 11 * forward
        shape = path(np.stack([position, tip]))
        plot.add(f'<path class="truth" d="{shape}"/>')
        plot.mark(position[0], position[1], "e3" if image.name in added else "e0", image.name)
    length = nice_step(150 / scale, 1)
    bar = f"M20 {number(height - 16)}v4h{number(length * scale)}v-4"
    plot.add(f'<path class="scale" d="{bar}"/>')
    plot.text(28 + length * scale, height - 10, format_limit(length, summary.world.unit), "tick")
    keys = '<span><i class="key e0"></i>camera and where it looks</span>'
    if added:
        keys += '<span><i class="key e3"></i>added</span>'
    axes = summary.world.details.get("axes", "")
    note = f" ({axes})" if axes else ""
    return (
        f'<h2>From above</h2><p class="note">Cameras and points{escape(note)}.</p>'
        f'<div class="panel wide">{plot.render()}<p class="legend">{keys}</p></div>'
    )


def _not_registered(summary: Summary, folder: Path) -> str:
    if not summary.reasons:
        return ""
    cards: list[str] = []
    rows = []
    for name, why in summary.reasons.items():
        rows.append(
            f'<tr><td class="text">{escape(name)}</td><td class="text">{escape(why)}</td></tr>'
        )
        if len(cards) < _THUMBNAILS:
            picture = _thumbnail(folder / name)
            if picture:
                cards.append(
                    f'<figure class="card">{picture}<figcaption><strong>{escape(name)}</strong>'
                    f"<small>{escape(why)}</small></figcaption></figure>"
                )
    kinds = Counter(why.partition(" (")[0].partition(":")[0] for why in summary.reasons.values())
    short = "; ".join(f"{count} {kind}" for kind, count in kinds.most_common(6))
    return (
        f"<h2>Not registered: {len(summary.reasons)}</h2>"
        f'<p class="note">{escape(short)}.</p><div class="gallery">{"".join(cards)}</div>'
        f'<details open><summary>All of them</summary><div class="panel scroll"><table>'
        f"<tr><th>image</th><th>why</th></tr>{''.join(rows)}</table></div></details>"
    )


def _thumbnail(file: Path) -> str:
    try:
        image = read_image(file)
    except DataError:
        return ""
    scale = min(_THUMBNAIL_WIDTH / image.shape[1], 1.0)
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    bgr = cv2.cvtColor(small, cv2.COLOR_RGB2BGR)
    data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 70])[1]
    text = base64.b64encode(data.tobytes()).decode()
    return f'<img alt="" style="width:100%;display:block" src="data:image/jpeg;base64,{text}">'


def _registered(summary: Summary) -> str:
    rows = [
        f'<tr><td class="text">{escape(image.name)}</td><td class="n">{len(image.points)}</td></tr>'
        for image in summary.images
    ]
    return (
        f"<h2>Registered: {len(summary.images)}</h2><details><summary>All of them</summary>"
        '<div class="panel scroll"><table><tr><th>image</th><th class="n">points seen</th></tr>'
        f"{''.join(rows)}</table></div></details>"
    )


def _making(summary: Summary) -> str:
    tried = [
        f"initial pair of at least {a.angle:g}° and {a.inliers} inliers: "
        + (f"models of {', '.join(map(str, a.registered))} images" if a.registered else "no model")
        for a in summary.attempts
        if a.angle
    ]
    lines = [*summary.notes, *summary.cameras, *tried]
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<h2>How it was made</h2><div class="panel"><ul>{items}</ul></div>' if items else ""
