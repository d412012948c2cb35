"""Where the first Gaussians come from: measured depth, an SfM model, matched key points, or chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree
from torch import Tensor

from gsplat_loc.config import InitConfig
from gsplat_loc.field.gaussians import Gaussians, from_points
from gsplat_loc.field.ply import read_ply, read_points
from gsplat_loc.mapping.survey import Survey
from gsplat_loc.mapping.views import Views, posed
from reloc_core.errors import DataError
from reloc_core.geometry import lift, transform
from reloc_core.interfaces import Dataset, Run
from reloc_core.mapping import evenly, make_view
from reloc_core.rendering.types import NEAR
from reloc_core.training.streams import numpy_rng
from reloc_core.types import Float64Array

_MODELS = ("sparse/0", "sparse", "colmap/sparse/0", "model", "colmap")
_CLOUDS = ("points3D.ply", "sparse_pc.ply", "points.ply")
_NEAREST = 0.2  # of the distance of the nearest points
_SAMPLES = 8  # lifted pixels per wanted Gaussian
_AGREE = 0.01  # of the extent: how far the cameras of a model may lie from the dataset's


@dataclass(frozen=True)
class Start:
    """First Gaussians.

    Attributes:
        gaussians: relative to `origin`.
        origin: (3,) of the field in the world.
        source: where they came from, one of `InitConfig.source`.
        features: (N, C) descriptors that a file brought with them, or None.
        near: depth from which Gaussians are to be drawn, scene units.
    """

    gaussians: Gaussians
    origin: Float64Array
    source: str
    features: Tensor | None = None
    near: float = NEAR


def initialise(
    dataset: Dataset, views: Views, options: InitConfig, sh_degree: int, run: Run, seen: Survey
) -> Start:
    """First Gaussians of a scene.

    Args:
        dataset: of the images.
        views: that the field is trained with.
        options: where to start from.
        sh_degree: of the Gaussians.
        run: seed, progress.
        seen: triangulated points, where nothing better is there.

    Raises:
        DataError: the source is not there or gives too few points.
    """
    if options.source == "ply":
        gaussians, origin, features = read_ply(options.path)
        return Start(gaussians.with_degree(sh_degree), origin, "ply", features, _near(seen))
    source, points, rgb = _points(dataset, views, options, run, seen)
    if len(points) < options.min_points:
        raise DataError(
            f"Only {len(points)} points to start from ({source}); a field needs at least "
            f"{options.min_points}. Give depth images, or an SfM model with estimator.init.path=DIR, "
            "or images that overlap more."
        )
    if len(points) > options.count:
        chosen = np.sort(
            numpy_rng(run.runtime.seed, "first points").permutation(len(points))[: options.count]
        )
        points, rgb = points[chosen], rgb[chosen]
    origin = views.poses[:, :3, 3].mean(0)
    gaussians = from_points(points - origin, rgb, _spacing(points), options.opacity, sh_degree)
    run.log("initialised", source=source, gaussians=len(gaussians))
    return Start(gaussians, origin, source, near=_near(seen))


def _near(seen: Survey) -> float:
    """The published depth, less where the unit is so large that points lie that near."""
    distances = seen.points.tracks.distances(seen.points.observations)
    return float(min(NEAR, _NEAREST * np.percentile(distances, 1)))


def _points(
    dataset: Dataset, views: Views, options: InitConfig, run: Run, seen: Survey
) -> tuple[str, Float64Array, np.ndarray]:
    source = options.source
    if source == "depth" and not dataset.has_depth:
        raise DataError(
            f"{dataset.name} has no depth images to start from. Choose "
            "estimator.init.source=points, triangulate or random."
        )
    if source == "depth" or (source == "auto" and dataset.has_depth and not options.path):
        return "depth", *_from_depth(dataset, views, options, run)
    if source in ("auto", "sfm", "points"):
        found = _find_cloud(dataset, options.path)
        if found is not None:
            points, rgb = _from_cloud(found, dataset)
            return "points", points, rgb
        if source == "points":
            raise DataError(
                f"There is no SfM model beside the images of {dataset.name} (looked for "
                f"{', '.join((*_MODELS, *_CLOUDS))}). Name it with estimator.init.path=DIR."
            )
    if source in ("auto", "sfm", "triangulate"):
        return "triangulate", seen.points.tracks.points, seen.points.colors
    return "random", *_random(views, options, run.runtime.seed)


def extent(poses: Float64Array) -> float:
    """1.1 times the largest distance of a camera to the cameras' mean, as the published code."""
    centers = poses[:, :3, 3]
    return float(1.1 * np.linalg.norm(centers - centers.mean(0), axis=1).max()) or 1.0


def _spacing(points: Float64Array) -> Float64Array:
    """Root mean squared distance to the three nearest neighbours, without outliers."""
    distances, _ = cKDTree(points).query(points, k=min(4, len(points)))
    spacing: Float64Array = np.sqrt((distances[:, 1:] ** 2).mean(1))
    positive = spacing[spacing > 0]
    typical = float(np.median(positive)) if len(positive) else 1.0
    return np.clip(spacing, 0.05 * typical, 5 * typical)


def _from_depth(
    dataset: Dataset, views: Views, options: InitConfig, run: Run
) -> tuple[Float64Array, np.ndarray]:
    """Lifted pixels of spread frames, thinned to one point per voxel."""
    chosen = views.frames[evenly(len(views), options.frames)]
    per_frame = max(options.count * _SAMPLES // len(chosen), 1)
    rng = numpy_rng(run.runtime.seed, "lifted pixels")
    points, colors = [], []
    with run.progress("Lifting depth", len(chosen)) as progress:
        for frame in chosen:
            view = make_view(dataset[int(frame)], views.short_side)
            assert view.depth is not None
            rows, columns = np.nonzero(view.depth > 0)
            if len(rows) > per_frame:
                kept = np.sort(rng.permutation(len(rows))[:per_frame])
                rows, columns = rows[kept], columns[kept]
            local = lift(view.camera, np.stack([columns, rows], 1), view.depth[rows, columns])
            points.append(transform(posed(view), local))
            colors.append(view.image[rows, columns])
            progress.advance()
    every, rgb = np.concatenate(points), np.concatenate(colors)
    return thinned(every, rgb, options.count)


def thinned(points: Float64Array, rgb: np.ndarray, count: int) -> tuple[Float64Array, np.ndarray]:
    """Means of the points and colours in voxels whose size gives about `count` of them."""
    if len(points) <= count:
        return points, rgb
    low, high = 1e-6, float(np.ptp(points, axis=0).max()) + 1e-6
    for _ in range(20):
        size = float(np.sqrt(low * high))
        if len(np.unique(_cells(points, size))) > count:
            low = size
        else:
            high = size
    _, label = np.unique(_cells(points, high), return_inverse=True)
    number = np.bincount(label)
    mean = np.stack([np.bincount(label, points[:, k]) / number for k in range(3)], 1)
    color = np.stack([np.bincount(label, rgb[:, k]) / number for k in range(3)], 1)
    return mean, np.rint(color).astype(np.uint8)


def _cells(points: Float64Array, size: float) -> np.ndarray:
    """A number per voxel."""
    cell = np.floor((points - points.min(0)) / size).astype(np.int64)
    shape = cell.max(0) + 1
    return (cell[:, 0] * shape[1] + cell[:, 1]) * shape[2] + cell[:, 2]


def _image_paths(dataset: Dataset) -> Sequence[Path]:
    return getattr(dataset, "image_paths", ())


def _find_cloud(dataset: Dataset, path: str) -> Path | None:
    """The SfM model or point cloud that is named, or lies beside the images."""
    if path:
        return Path(path)
    images = _image_paths(dataset)
    if not images:
        return None
    for folder in list(images[0].parents)[:3]:
        for name in _MODELS:
            if any((folder / name / f"points3D.{end}").is_file() for end in ("bin", "txt")):
                return folder / name
        for name in _CLOUDS:
            if (folder / name).is_file():
                return folder / name
    return None


def _from_cloud(path: Path, dataset: Dataset) -> tuple[Float64Array, np.ndarray]:
    """Points and colours of a COLMAP model or a PLY file.

    Raises:
        DataError: it cannot be read, or a model's cameras are not where the dataset's are.
    """
    if path.is_file():
        return read_points(path)
    import pycolmap

    try:
        model = pycolmap.Reconstruction(str(path))
    except (ValueError, RuntimeError, OSError, IndexError) as error:
        raise DataError(f"{path} is no COLMAP model that can be read ({error}).") from None
    ours = {Path(f.name).name: f.world_from_cam for f in dataset.frames}
    found = {
        number: (image.projection_center(), pose[:3, 3])
        for number, image in model.images.items()
        if image.has_pose and (pose := ours.get(Path(image.name).name)) is not None
    }
    pairs = list(found.values())
    if pairs:
        theirs, here = (np.array(side) for side in zip(*pairs, strict=True))
        scale = max(float(np.linalg.norm(here - here.mean(0), axis=1).max()), 1e-9)
        off = float(np.median(np.linalg.norm(theirs - here, axis=1)))
        if off > _AGREE * scale:
            raise DataError(
                f"{path} is in another coordinate frame than the poses of {dataset.name}: its cameras "
                f"lie {off:.3g} off (median). Align the model, or set estimator.init.source=triangulate."
            )
    # A model may hold images that are not to be mapped, such as those of a test split.
    points = [
        p for p in model.points3D.values()
        if not found or len(found.keys() & {e.image_id for e in p.track.elements}) >= 2
    ]  # fmt: skip
    if not points:
        raise DataError(f"{path} holds no points that two images of {dataset.name} see.")
    return np.array([p.xyz for p in points]), np.array([p.color for p in points], np.uint8)


def _random(views: Views, options: InitConfig, seed: int) -> tuple[Float64Array, np.ndarray]:
    """Points at random depths behind random pixels, with the pixels' colours."""
    rng = numpy_rng(seed, "random depths")
    near, far = options.random_depth
    if far <= 0:
        size = extent(views.poses)
        near, far = 0.3 * size, 4.0 * size
    chosen = evenly(len(views), 100)
    per_view = -(-options.count // len(chosen))
    points, colors = [], []
    for index in chosen:
        view = views[int(index)]
        columns = rng.integers(0, view.camera.width, per_view)
        rows = rng.integers(0, view.camera.height, per_view)
        # Uniform in inverse depth, so that all depths get the same share of the image.
        depth = 1 / rng.uniform(1 / far, 1 / max(near, 1e-6), per_view)
        local = lift(view.camera, np.stack([columns, rows], 1), depth)
        points.append(transform(posed(view), local))
        colors.append(view.image[rows, columns])
    return np.concatenate(points), np.concatenate(colors)
