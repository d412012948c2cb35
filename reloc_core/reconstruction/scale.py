"""Scale and axes of the world of a model: from GPS, a distance, markers, depth, known poses, or gravity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reloc_core.errors import ConfigError, DataError, did_you_mean
from reloc_core.geometry import project
from reloc_core.io.colmap import find_models, read_model
from reloc_core.io.images import read_depth
from reloc_core.io.poses import read_pose
from reloc_core.orientation import QUARTERS, Turn
from reloc_core.reconstruction.markers import from_markers
from reloc_core.reconstruction.options import ScaleOptions
from reloc_core.reconstruction.source import plain_name
from reloc_core.reconstruction.world import Posed, World
from reloc_core.types import BoolArray, Float64Array

_LEAST = 3  # positions that fix a similarity
_FLAT = 0.02  # second extent of positions over the first that still tells the turn about the first
_OUTLIER = 4.0  # robust standard deviations


def find_world(options: ScaleOptions, images: Sequence[Posed], folder: Path) -> World:
    """The world that the options ask for.

    Args:
        options: say from what.
        images: registered ones.
        folder: of the images.

    Raises:
        DataError: what the options name is not there, or says too little.
        ConfigError: an option names no image.
    """
    kind = options.kind
    if kind == "gps":
        return _from_gps(images, folder)
    if kind == "poses":
        return _from_poses(images, Path(str(options.poses)).expanduser())
    upright = _upright(images)
    if kind == "distance":
        return _with_scale(upright, *_from_distance(images, options.distance or ()))
    if kind == "depth":
        return _with_scale(upright, *_from_depth(images, Path(str(options.depth)).expanduser()))
    if kind == "marker":
        return from_markers(images, folder, float(options.marker or 0), options.dictionary)
    return upright


def similarity(
    source: Float64Array, target: Float64Array
) -> tuple[float, Float64Array, Float64Array]:
    """Scale, rotation and shift of least squares: target = scale * rotation @ source + shift.

    Umeyama, "Least-squares estimation of transformation parameters between two point patterns", PAMI 1991.

    Args:
        source: (N, 3), not on one line.
        target: (N, 3).
    """
    a, b = source - source.mean(0), target - target.mean(0)
    u, s, vt = np.linalg.svd(b.T @ a / len(a))
    sign = np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = u @ sign @ vt
    scale = float((s * np.diag(sign)).sum() / (a**2).sum(1).mean())
    return scale, rotation, target.mean(0) - scale * rotation @ source.mean(0)


def up_of(images: Sequence[Posed]) -> Float64Array:
    """Unit vector up, as the cameras were held on the whole.

    People hold cameras level: the rows of upright images lie horizontally, so up is what is most
    orthogonal to all of them. Where the rows do not tell (one direction of view), it is the mean of the
    cameras' own up.
    """
    axes = []
    for image in images:
        turn = Turn(QUARTERS.get(image.orientation, 0))
        axes.append(turn.pose(image.world_from_cam)[:3, :3])
    rows, ups = np.stack(axes)[:, :, 0], -np.stack(axes)[:, :, 1]
    mean = ups.mean(0)
    _, extents, directions = np.linalg.svd(rows)
    up = directions[2]
    tells = extents[1] > 0.2 * extents[0] and abs(up @ mean) > 0.5 * np.linalg.norm(mean)
    if not tells:
        up = mean if np.linalg.norm(mean) > 1e-6 else np.array([0.0, 0.0, 1.0])
    up = up * (1.0 if up @ mean >= 0 else -1.0)
    return np.asarray(up / np.linalg.norm(up), np.float64)


def _upright(images: Sequence[Posed]) -> World:
    """Z up, x and y along the extents of the cameras, the origin in their middle."""
    up = up_of(images)
    centres = _centres(images)
    middle = centres.mean(0)
    level = (centres - middle) - np.outer((centres - middle) @ up, up)
    x = np.linalg.svd(level)[2][0]
    x = x - (x @ up) * up
    if np.linalg.norm(x) < 1e-6:
        x = np.cross(up, [0.3, 0.5, 0.8])
    x = x / np.linalg.norm(x)
    rotation = np.stack([x, np.cross(up, x), up])
    return World(1.0, rotation, -rotation @ middle, "scene unit", "z up as the cameras were held")


def _with_scale(upright: World, scale: float, source: str, details: Mapping[str, Any]) -> World:
    return World(
        scale,
        upright.rotation,
        scale * upright.shift,
        "metre",
        f"{source}; {upright.source}",
        details,
    )


def _centres(images: Sequence[Posed]) -> Float64Array:
    return np.stack([image.world_from_cam[:3, 3] for image in images])


def _named(images: Sequence[Posed], name: str) -> Posed:
    by_name = {image.name: image for image in images}
    found = by_name.get(plain_name(name)) or by_name.get(name)
    if found is None:
        raise ConfigError(
            f"'{name}' is not among the {len(images)} registered images.{did_you_mean(name, by_name)}"
        )
    return found


def _from_distance(
    images: Sequence[Posed], given: Sequence[Any]
) -> tuple[float, str, dict[str, Any]]:
    first, second, metres = _named(images, str(given[0])), _named(images, str(given[1])), given[2]
    between = float(np.linalg.norm(first.world_from_cam[:3, 3] - second.world_from_cam[:3, 3]))
    centres = _centres(images)
    extent = float(np.linalg.norm(centres.max(0) - centres.min(0)))
    if between < 1e-3 * extent:
        raise DataError(
            f"{first.name} and {second.name} were taken from the same place: choose two that are far apart."
        )
    return float(metres) / between, f"{metres:g} m between {first.name} and {second.name}", {}


def _robust(source: Float64Array, target: Float64Array, what: str) -> tuple[World, Float64Array]:
    """A similarity without its outliers, and the residuals of all."""
    keep: BoolArray = np.ones(len(source), np.bool_)
    for _ in range(10):
        scale, rotation, shift = similarity(source[keep], target[keep])
        residuals = np.linalg.norm(scale * source @ rotation.T + shift - target, axis=1)
        limit = _OUTLIER * 1.4826 * float(np.median(residuals)) + 1e-9
        kept = residuals <= limit
        if kept.sum() < _LEAST or (kept == keep).all():
            break
        keep = kept
    return World(scale, rotation, shift, "metre", what), residuals


def _on_a_line(points: Float64Array) -> bool:
    extents = np.linalg.svd(points - points.mean(0))[1]
    return bool(extents[1] < _FLAT * max(extents[0], 1e-12))


def _from_gps(images: Sequence[Posed], folder: Path) -> World:
    """East, north, up at the first image with GPS.

    Where the way is a line, GPS does not tell the turn about it; the cameras' up does.
    """
    import pycolmap

    told = {image.name: gps_of(folder / image.name) for image in images}
    having = [image for image in images if told[image.name] is not None]
    if len(having) < _LEAST:
        raise DataError(
            f"scale.gps needs positions in the EXIF of at least {_LEAST} registered images; "
            f"{len(having)} of {len(images)} have one."
        )
    geodetic = np.array([told[image.name] for image in having], np.float64)
    origin = geodetic[0]
    east = np.asarray(pycolmap.GPSTransform().ellipsoid_to_enu(geodetic, *origin), np.float64)
    extent = float(np.linalg.norm(np.ptp(east, axis=0)))
    if extent < 1.0:
        raise DataError(f"The GPS positions lie within {extent:.1f} m: too near for a scale.")
    source, target = _centres(having), east
    if _on_a_line(source):
        # One virtual camera above each tells the turn about the line.
        rise = np.linalg.norm(np.ptp(source, axis=0))
        up = up_of(images)
        factor = extent / float(rise)
        source = np.concatenate([source, source + rise * up])
        target = np.concatenate([target, target + factor * rise * np.array([0, 0, 1.0])])
    world, residuals = _robust(source, target, f"GPS of {len(having)} images")
    residual = float(np.median(residuals[: len(having)]))
    details = {
        "origin": dict(zip(("latitude", "longitude", "altitude"), origin.tolist(), strict=True)),
        "axes": "x east, y north, z up", "median_residual": residual,
    }  # fmt: skip
    return World(
        world.scale, world.rotation, world.shift, "metre", f"{world.source}, {residual:.2g} m off "
        "in the median", details,
    )  # fmt: skip


def gps_of(path: Path) -> tuple[float, float, float] | None:
    """Latitude, longitude in degrees and altitude in metres of an image's EXIF, None where incomplete."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            tags = dict(image.getexif().get_ifd(0x8825))
        latitude, longitude = _degrees(tags[2]), _degrees(tags[4])
        altitude = float(tags.get(6, 0.0))
        below = tags.get(5, 0)
        if below in (1, b"\x01"):
            altitude = -altitude
        if str(tags.get(1, "N")).strip("\0 ").upper() == "S":
            latitude = -latitude
        if str(tags.get(3, "E")).strip("\0 ").upper() == "W":
            longitude = -longitude
    except Exception:  # damaged EXIF comes in many forms; it then says nothing
        return None
    values = (latitude, longitude, altitude)
    good = all(map(math.isfinite, values)) and abs(latitude) <= 90 and abs(longitude) <= 180
    # Receivers without a fix write zeros.
    return values if good and (latitude or longitude) else None


def _degrees(parts: Any) -> float:
    degrees, minutes, seconds = (float(part) for part in parts)
    return degrees + minutes / 60 + seconds / 3600


def _from_poses(images: Sequence[Posed], path: Path) -> World:
    """From known poses: rotations fix the axes, positions scale and origin."""
    known = _known_poses(images, path)
    if len(known) < 2:
        raise DataError(
            f"scale.poses needs the poses of at least 2 registered images; {path} has {len(known)}."
        )
    both = [image for image in images if image.name in known]
    source, target = _centres(both), np.stack([known[i.name][:3, 3] for i in both])
    what = f"known poses of {len(both)} images"
    if len(both) >= _LEAST and not _on_a_line(source):
        world, residuals = _robust(source, target, what)
    else:
        turns = sum(known[i.name][:3, :3] @ i.world_from_cam[:3, :3].T for i in both)
        u, _, vt = np.linalg.svd(turns)
        rotation = u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt
        spread = np.linalg.norm(source - source.mean(0))
        if spread < 1e-9:
            raise DataError("scale.poses: the images with known poses were taken from one place.")
        scale = float(np.linalg.norm(target - target.mean(0)) / spread)
        shift = target.mean(0) - scale * rotation @ source.mean(0)
        world = World(scale, rotation, shift, "metre", what)
        residuals = np.linalg.norm(world.point(source) - target, axis=1)
    residual = float(np.median(residuals))
    return World(
        world.scale, world.rotation, world.shift, "metre", f"{what}, {residual:.2g} m off in the median",
        {"median_residual": residual},
    )  # fmt: skip


def _known_poses(images: Sequence[Posed], path: Path) -> dict[str, Float64Array]:
    if not path.is_dir():
        raise DataError(f"scale.poses: {path} is no folder of poses or COLMAP model.")
    stems = {Path(image.name).stem: image.name for image in images}
    found = {}
    for file in sorted([*path.glob("*.txt")]):
        stem = file.name.removesuffix(".txt").removesuffix(".pose")
        name = stems.get(stem) or stems.get(f"{stem}.color")
        if name is not None:
            found[name] = read_pose(file)
    if found:
        return found
    try:
        model = read_model(find_models(path)[0])
    except DataError:
        return {}
    names = {image.name for image in images}
    return {
        plain_name(name): pose
        for name, pose in zip(model.names, model.world_from_cam, strict=True)
        if plain_name(name) in names
    }


def _from_depth(images: Sequence[Posed], folder: Path) -> tuple[float, str, dict[str, Any]]:
    """The median ratio of measured to reconstructed depth at the points of the images."""
    if not folder.is_dir():
        raise DataError(f"scale.depth: the folder {folder} does not exist.")
    ratios, used = [], 0
    for image in images:
        file = _depth_file(folder, image.name)
        if file is None or not len(image.points):
            continue
        depth = read_depth(file)
        inverse = np.linalg.inv(image.world_from_cam)
        points = image.points @ inverse[:3, :3].T + inverse[:3, 3]
        pixels, seen = project(image.camera, points)
        height, width = depth.shape
        pixels = (pixels + 0.5) * [width / image.camera.width, height / image.camera.height] - 0.5
        seen &= np.isfinite(pixels).all(1)
        seen[seen] &= ((pixels[seen] > 0) & (pixels[seen] < np.array([width - 1, height - 1]))).all(
            1
        )
        rounded = np.rint(pixels[seen]).astype(int)
        measured = depth[rounded[:, 1], rounded[:, 0]]
        good = measured > 0
        ratios.append(measured[good] / points[seen][good, 2])
        used += 1
    values = np.concatenate(ratios) if ratios else np.zeros(0)
    if len(values) < 20:
        raise DataError(
            f"scale.depth: {used} of {len(images)} registered images have a depth image in {folder} (such "
            f"as {Path(images[0].name).stem}.png), with {len(values)} measured points; 20 are needed."
        )
    ratio = float(np.median(values))
    spread = float(np.median(np.abs(values / ratio - 1)))
    return ratio, f"depth of {used} images", {"median_deviation": spread}


def _depth_file(folder: Path, name: str) -> Path | None:
    stem = Path(name).stem
    for candidate in (
        f"{stem}.png",
        f"{stem}.depth.png",
        f"{stem.removesuffix('.color')}.depth.png",
    ):
        if (folder / candidate).is_file():
            return folder / candidate
    return None
