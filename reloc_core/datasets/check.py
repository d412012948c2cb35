"""Is a dataset sane? What `reloc data check` looks at, and what it says about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from reloc_core.datasets.base import FileDataset
from reloc_core.datasets.check_picture import draw
from reloc_core.datasets.epipolar import (
    CONVENTIONS,
    Matcher,
    Pair,
    convention_errors,
    focal_errors,
    relative,
    sampson,
)
from reloc_core.datasets.report import DataReport, Finding
from reloc_core.datasets.scene_depth import scene_depth
from reloc_core.datasets.sharpness import sharpness_of, small_grey
from reloc_core.geometry import check_pose, lift, project, rotation_angle_deg, transform
from reloc_core.interfaces import Dataset
from reloc_core.io.images import exif_focal
from reloc_core.mapping.triangulation import two_view_depths
from reloc_core.mapping.views import depth_at
from reloc_core.types import BoolArray, Float64Array, ImageArray

__all__ = ["DataReport", "Finding", "check_dataset", "nearest_views"]

PICTURE = "data_check.png"
_PAIRS = 10
# Epipolar errors above both, in pixels and over the image width, are no matter of accuracy.
_FOREIGN_PX, _FOREIGN = 10.0, 0.015
_MAX_IMAGES = 400  # images read for the quality check, per split
_BLOCK = 256  # test views that are compared with all training views at once
_FOCAL_FACTORS = tuple(float(f) for f in np.round(1.03 ** np.arange(-18, 19), 4))


@dataclass
class Coverage:
    """How well the training frames cover the test frames.

    Attributes:
        distance: (N,) to the training frame with the most similar view, in the dataset's unit.
        angle_deg: (N,) between the orientations of the two.
        index: (N,) of that training frame.
        uncovered: (N,) mask of test frames that no training frame is near.
    """

    distance: Float64Array
    angle_deg: Float64Array
    index: np.ndarray[tuple[int], np.dtype[np.intp]]
    uncovered: BoolArray


def check_dataset(train: Dataset, test: Dataset | None, output_dir: Path | None) -> DataReport:
    """Check poses, axis convention, intrinsics, depth, scale, images and coverage.

    Args:
        train: the frames to map from (or the only split there is).
        test: the queries, if any.
        output_dir: folder for the picture `data_check.png`; None draws none.

    Raises:
        DataError: an image that is needed cannot be read.
    """
    report = DataReport(train.name if test is None else f"{train.name} and {test.name}")
    for dataset in (train, *((test,) if test else ())):
        _describe(report, dataset)
        _check_exif(report, dataset)
    posed = _check_poses(report, train)
    matcher = Matcher(train)
    pairs = matcher.neighbours(_PAIRS) if posed else []
    depth = 2.0
    if posed and not pairs:
        report.add(
            "warning", "axes", "No pair of neighbouring frames with enough matches and motion.",
            "Poses and intrinsics could not be checked against the images.",
        )  # fmt: skip
    if pairs:
        usual = _check_convention(report, pairs)
        if usual:
            depth = scene_depth(train, pairs) or depth
            # A wrong focal length spoils triangulation, and depth would be blamed for it.
            if _check_focal(report, pairs) and train.has_depth:
                _check_depth(report, pairs)
        _check_scale(report, train, depth if usual else None)
    _check_images(report, train)
    coverage = None
    if test is not None:
        _check_images(report, test)
        if posed and _check_poses(report, test, least=1):
            coverage = _check_coverage(report, train, test, depth)
            _check_same_world(report, matcher, Matcher(test), coverage, pairs)
    if output_dir is not None:
        report.picture = draw(
            Path(output_dir) / PICTURE, train, test, pairs,
            None if coverage is None else (coverage.distance, coverage.angle_deg),
        )  # fmt: skip
    return report


def nearest_views(train: Float64Array, test: Float64Array, depth: float) -> Coverage:
    """The training view most similar to each test view.

    Similarity is by how far the image content moves, in radians: rotation angle + distance / depth.

    Args:
        train: (M, 4, 4) world_from_cam.
        test: (N, 4, 4) world_from_cam.
        depth: typical distance of the scene, in the unit of the poses.
    """
    index = np.zeros(len(test), np.intp)
    gap, cost = np.zeros(len(test)), np.zeros(len(test))
    # In blocks: every view with every other one would not fit for a long video.
    for begin in range(0, len(test), _BLOCK):
        rows = slice(begin, begin + _BLOCK)
        some = test[rows]
        far = np.linalg.norm(some[:, None, :3, 3] - train[None, :, :3, 3], axis=-1)
        trace = np.einsum("nij,mij->nm", some[:, :3, :3], train[:, :3, :3])
        moved = np.arccos(np.clip((trace - 1) / 2, -1, 1)) + far / depth
        index[rows] = best = np.argmin(moved, 1)
        at = np.arange(len(some)), best
        gap[rows], cost[rows] = far[at], moved[at]
    exact = rotation_angle_deg(train[index, :3, :3], test[:, :3, :3])
    return Coverage(gap, exact, index, np.asarray(cost > 0.6))


def _describe(report: DataReport, dataset: Dataset) -> None:
    cameras = {f.camera for f in dataset.frames}
    sizes = sorted({f"{c.width}x{c.height}" for c in cameras})
    focals = [c.fx for c in cameras]
    low, high = min(focals), max(focals)
    focal = f"{low:.1f}" if high - low < 0.05 else f"{low:.1f} to {high:.1f}"
    models = ", ".join(sorted({c.model for c in cameras}))
    extra = ", depth" if dataset.has_depth else ""
    report.add(
        "ok", "frames",
        f"{dataset.name}: {len(dataset)} images of {', '.join(sizes)}, {models}, focal {focal} px{extra}",
    )  # fmt: skip
    for note in dataset.notes:
        report.add("warning" if note.startswith("skipped") else "ok", "loading", note)


def _check_poses(report: DataReport, dataset: Dataset, least: int = 2) -> bool:
    """Whether there are enough usable poses."""
    poses = [f.world_from_cam for f in dataset.frames if f.world_from_cam is not None]
    missing = len(dataset) - len(poses)
    if len(poses) < least:
        report.add(
            "warning", "poses", f"{dataset.name}: {len(poses)} of {len(dataset)} frames have a pose.",
            "Mapping and evaluation need poses; localizing does not.",
        )  # fmt: skip
        return False
    bad = [p for p in poses if check_pose(p, 1e-6)]
    if bad:
        report.add("error", "poses", f"{dataset.name}: {check_pose(bad[0], 1e-6)}.")
        return False
    positions = np.array([p[:3, 3] for p in poses])
    still = int((np.linalg.norm(np.diff(positions, axis=0), axis=1) == 0).sum())
    if len(poses) > 1 and np.ptp(positions, axis=0).max() == 0:
        report.add(
            "error", "poses", f"{dataset.name}: all {len(poses)} cameras are at the same place.",
            "Are these placeholders? Take the poses of a reconstruction (SfM, SLAM).",
        )  # fmt: skip
        return False
    if missing:
        report.add("warning", "poses", f"{dataset.name}: {missing} frames have no pose.")
    elif still > 0.2 * len(poses):
        report.add(
            "warning", "poses", f"{dataset.name}: {still} frames do not move against the one before.",
            "Tracking may have been lost there.",
        )  # fmt: skip
    else:
        report.add("ok", "poses", f"{dataset.name}: {len(poses)} rigid camera-to-world transforms")
    return True


def _check_convention(report: DataReport, pairs: Sequence[Pair]) -> bool:
    """Whether the poses explain the matches as they are."""
    errors = convention_errors(pairs)
    given = errors["as given"]
    best = min(errors, key=lambda name: errors[name])
    others = min(e for name, e in errors.items() if name != "as given")
    width = float(np.median([p.first.camera.width for p in pairs]))
    if best != "as given" and errors[best] < 0.6 * given:
        report.add(
            "error", "axes",
            f"The poses look like {best}: epipolar error {errors[best]:.1f} px, {given:.1f} px as given.",
            CONVENTIONS[best],
        )  # fmt: skip
        return False
    text = f"epipolar error {given:.2f} px between neighbours; other conventions {others:.1f} px or more"
    if given > max(_FOREIGN_PX, _FOREIGN * width):
        report.add(
            "error", "axes", f"The poses do not belong to the images: {text}.",
            "Check the pairing of images and poses, the order of columns, and the intrinsics.",
        )  # fmt: skip
        return False
    if others < 1.5 * given:
        report.add(
            "warning", "axes", f"The axis convention is unclear: {text}.",
            "The poses, the intrinsics or the pairing of images and poses may be wrong.",
        )  # fmt: skip
    elif given > 3:
        report.add(
            "warning", "axes", f"The poses fit the images badly: {text}.",
            "Expect errors of that size; check the intrinsics and the pairing of images and poses.",
        )  # fmt: skip
    else:
        report.add("ok", "axes", f"camera-to-world, OpenCV axes: {text}")
    return True


def _check_focal(report: DataReport, pairs: Sequence[Pair]) -> bool:
    """Whether no other focal length explains the matches much better."""
    errors = np.array(focal_errors(pairs, _FOCAL_FACTORS))
    given = errors[_FOCAL_FACTORS.index(1.0)]
    best = int(np.argmin(errors))
    focals = [q.camera.fx for p in pairs for q in (p.first, p.second)]
    if max(focals) > 1.02 * min(focals):
        return _check_focals(report, pairs, focals, errors)
    focal = float(np.median(focals))
    # The range of factors that fit nearly as well tells how much the data can say.
    near = [f for f, e in zip(_FOCAL_FACTORS, errors, strict=True) if e < 1.1 * errors[best]]
    tight = near[0] == near[-1]
    about = "" if tight else f" (about as good: {focal * near[0]:.0f} to {focal * near[-1]:.0f} px)"
    if errors[best] < 0.7 * given and abs(_FOCAL_FACTORS[best] - 1) > 0.05:
        report.add(
            "warning", "focal length",
            f"{focal * _FOCAL_FACTORS[best]:.0f} px fits better than {focal:.0f} px: epipolar error "
            f"{errors[best]:.2f} px instead of {given:.2f} px{about}.",
            "Were the images resized, or was the calibration made for another camera?",
        )  # fmt: skip
        return False
    text = f"{focal:.1f} px fits the poses and matches"
    if given > 1.1 * errors[best]:
        text += f"; {focal * _FOCAL_FACTORS[best]:.0f} px fits slightly better, not enough to tell"
    report.add("ok", "focal length", text + (about if given <= 1.1 * errors[best] else ""))
    return True


def _check_focals(
    report: DataReport, pairs: Sequence[Pair], focals: Sequence[float], errors: Float64Array
) -> bool:
    """The same where images have focal lengths of their own: a common factor, and each pair's error."""
    given, best = errors[_FOCAL_FACTORS.index(1.0)], int(np.argmin(errors))
    own = f"{min(focals):.0f} to {max(focals):.0f} px"
    if errors[best] < 0.7 * given and abs(_FOCAL_FACTORS[best] - 1) > 0.05:
        report.add(
            "warning", "focal length",
            f"{_FOCAL_FACTORS[best]:.2f} times the images' own focal lengths ({own}) fits better: "
            f"epipolar error {errors[best]:.2f} px instead of {given:.2f} px.",
            "Were the images resized, or was the calibration made for another camera?",
        )  # fmt: skip
        return False
    worst = max(float(np.median(sampson(p, relative(p)))) for p in pairs)
    report.add(
        "ok", "focal length",
        f"the images' own focal lengths, {own}, fit the poses and matches; the worst of {len(pairs)} pairs "
        f"by {worst:.2f} px",
    )  # fmt: skip
    return True


def _check_exif(report: DataReport, dataset: Dataset) -> None:
    """Whether EXIF, which queries without a calibration are localized by, agrees with the intrinsics."""
    if not isinstance(dataset, FileDataset):
        return
    chosen = np.linspace(0, len(dataset) - 1, min(len(dataset), 20), dtype=int)
    found = [(exif_focal(dataset.image_paths[i]), dataset.frames[i].camera.fx) for i in chosen]
    ratios = [exif.focal / focal for exif, focal in found if exif is not None]
    if not ratios:
        return
    ratio = float(np.median(ratios))
    text = f"the focal length of EXIF is {ratio:.2f} times that of the poses' cameras"
    if abs(ratio - 1) > 0.1:
        report.add(
            "warning", "exif", f"{dataset.name}: {text} (median of {len(ratios)} images).",
            "Localize photos of this camera with camera.from_map=true, not by their EXIF.",
        )  # fmt: skip
    else:
        report.add("ok", "exif", f"{dataset.name}: {text}")


def _check_depth(report: DataReport, pairs: Sequence[Pair]) -> None:
    """Measured depth against triangulation (scale) and against reprojection (registration)."""
    ratios, errors, valid = [], [], []
    for pair in pairs:
        motion = relative(pair)
        measured = depth_at(pair.first, pair.pixels[0])
        assert pair.first.depth is not None
        valid.append(float((pair.first.depth > 0).mean()))
        z, parallax = two_view_depths(pair.rays, motion)
        telling = (parallax > np.radians(1.0)) & (z > 0).all(0) & np.isfinite(measured)
        ratios.append(z[0][telling] / measured[telling])
        known = np.isfinite(measured)
        points = transform(motion, lift(pair.first.camera, pair.pixels[0][known], measured[known]))
        pixels, _ = project(pair.second.camera, points)
        errors.append(np.linalg.norm(pixels - pair.pixels[1][known], axis=1))
    if max(valid) == 0:
        report.add("error", "depth", "All depth maps are empty.", "Use dataset.depth=none.")
        return
    ratio_values, error_values = np.concatenate(ratios), np.concatenate(errors)
    if len(ratio_values) < 30:
        report.add("warning", "depth", "Too little parallax to compare depth with the poses.")
        return
    ratio, error = float(np.median(ratio_values)), float(np.nanmedian(error_values))
    text = (
        f"{100 * np.mean(valid):.0f} % of the pixels; reprojection {error:.1f} px; poses have "
        f"{ratio:.3f} times the scale of the depth"
    )
    if abs(ratio - 1) > 0.05:
        report.add(
            "warning", "depth", f"Depth and poses disagree in scale: {text}.",
            "Depth must be millimetres and poses metres; divide the translations by this factor if "
            "depth is right.",
        )  # fmt: skip
    elif error > 4:
        report.add(
            "warning", "depth", f"Depth does not lie on the images: {text}.",
            "Register the depth maps to the colour camera, or leave them out (dataset.depth=none).",
        )  # fmt: skip
    else:
        report.add("ok", "depth", text)


def _check_scale(report: DataReport, dataset: Dataset, depth: float | None) -> None:
    positions = np.array(
        [f.world_from_cam[:3, 3] for f in dataset.frames if f.world_from_cam is not None]
    )
    steps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    box = np.ptp(positions, axis=0)
    unit = "m" if dataset.unit == "metre" else "units"
    size = " x ".join(f"{b:.3g}" for b in box)
    text = f"cameras in a box of {size} {unit}, median step {np.median(steps):.3g} {unit}"
    if depth is not None:
        text += f", scene at {depth:.3g} {unit}"
    odd = depth is not None and not 0.1 < depth < 300
    if dataset.unit == "metre" and (odd or not 0.02 < box.max() < 5000):
        report.add(
            "warning", "scale", f"Unusual for metres: {text}.",
            "Convert translations to metres, or read errors and thresholds with care.",
        )  # fmt: skip
    else:
        report.add("ok", "scale", text)


def _check_images(report: DataReport, dataset: Dataset) -> None:
    """Blurred, dark and duplicate images."""
    count = len(dataset)
    chosen = (
        range(count) if count <= _MAX_IMAGES else np.linspace(0, count - 1, _MAX_IMAGES, dtype=int)
    )
    sharpness, brightness, thumbnails = [], [], []
    for index in chosen:
        grey, thumbnail = _thumbnail(dataset[int(index)].image)
        sharpness.append(sharpness_of(grey))
        brightness.append(float(grey.mean()))
        thumbnails.append(thumbnail)
    sharp = np.array(sharpness)
    blurred = int((sharp < 0.15 * np.median(sharp)).sum())
    odd = int(((np.array(brightness) < 12) | (np.array(brightness) > 243)).sum())
    change = np.abs(np.diff(np.array(thumbnails, np.float32), axis=0)).mean((1, 2))
    same = int((change < 0.1).sum())
    seen = f"{len(sharp)} of {count}" if len(sharp) < count else f"{count}"
    text = (
        f"{dataset.name}: {seen} images looked at: {blurred} blurred, {odd} dark or overexposed, "
    )
    text += f"{same} the same as the one before"
    if blurred + odd + same > 0.1 * len(sharp):
        report.add(
            "warning", "images", text, "Remove them before mapping; they add no information."
        )
    else:
        report.add("ok", "images", text)


def _thumbnail(image: ImageArray) -> tuple[ImageArray, ImageArray]:
    """Grey versions of an image: 320 pixels wide, and 40 x 30."""
    small = small_grey(image)
    return small, np.asarray(cv2.resize(small, (40, 30), interpolation=cv2.INTER_AREA), np.uint8)


def _poses(dataset: Dataset) -> Float64Array:
    return np.array([f.world_from_cam for f in dataset.frames if f.world_from_cam is not None])


def _check_coverage(report: DataReport, train: Dataset, test: Dataset, depth: float) -> Coverage:
    coverage = nearest_views(_poses(train), _poses(test), depth)
    # An arbitrary unit tells nobody how far that is.
    metric = train.unit == "metre"
    levels = (50, 95, 100)
    distance = np.percentile(coverage.distance, levels)
    angle = np.percentile(coverage.angle_deg, levels)
    text = "nearest training view: " + ", ".join(
        f"{name} {f'{d:.2f} m' if metric else f'{100 * d / depth:.1f} % of the depth'} / {a:.0f} deg"
        for name, d, a in zip(("median", "95 %", "worst"), distance, angle, strict=True)
    )
    lost = int(coverage.uncovered.sum())
    if lost > 0.05 * len(coverage.uncovered):
        report.add(
            "warning", "coverage", f"{lost} of {len(coverage.uncovered)} test frames are far from "
            f"every training view; {text}.", "Expect failures there; record more of the place.",
        )  # fmt: skip
    else:
        report.add("ok", "coverage", text)
    return coverage


def _check_same_world(
    report: DataReport, train: Matcher, test: Matcher, coverage: Coverage, pairs: Sequence[Pair]
) -> None:
    """Test and training poses must live in one world frame: epipolar error across the splits."""
    posed_train = [i for i, f in enumerate(train.dataset.frames) if f.world_from_cam is not None]
    posed_test = [i for i, f in enumerate(test.dataset.frames) if f.world_from_cam is not None]
    errors = []
    for k in np.linspace(0, len(posed_test) - 1, min(8, len(posed_test)), dtype=int):
        pair = train.pair(posed_train[int(coverage.index[k])], posed_test[int(k)], test)
        if pair is not None:
            errors.append(float(np.median(sampson(pair, relative(pair)))))
    if not errors:
        report.add(
            "warning", "world frame", "No test image matches its nearest training image.",
            "Do the poses of both splits share one world frame?",
        )  # fmt: skip
        return
    error = float(np.median(errors))
    within = np.median([np.median(sampson(p, relative(p))) for p in pairs]) if pairs else 1.0
    if error > 5 and error > 3 * within:
        report.add(
            "error", "world frame",
            f"Test and training poses disagree: epipolar error {error:.1f} px across the splits, "
            f"{within:.1f} px within the training frames.",
            "Both splits must come from one reconstruction.",
        )  # fmt: skip
    else:
        report.add("ok", "world frame", f"epipolar error across the splits {error:.2f} px")
