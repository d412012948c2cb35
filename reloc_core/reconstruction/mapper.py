"""From matches to a model: COLMAP's mapper, tried with one initial pair after another."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pycolmap

from reloc_core.reconstruction.pairs import Pair
from reloc_core.reconstruction.worker import Remote

_ENOUGH = 0.9  # share of the connected images; a model with so many is not sought again
_LADDER = ((16.0, 100), (8.0, 100), (4.0, 50), (2.0, 30))
"""Least triangulation angle in degrees and inliers of the initial pair: COLMAP's, then relaxed."""
_RELAXED_INLIERS, _RELAXED_RATIO = 15, 0.15


@dataclass(frozen=True)
class Attempt:
    """What one initial pair led to.

    Attributes:
        angle: least triangulation angle of the initial pair, degrees.
        inliers: least number of its inliers.
        registered: images of each model, the largest first.
    """

    angle: float
    inliers: int
    registered: tuple[int, ...]


@dataclass(frozen=True)
class Mapped:
    """Models of the images.

    Attributes:
        models: `pycolmap.Reconstruction`, the largest first.
        attempts: what was tried.
    """

    models: Sequence[Any]
    attempts: tuple[Attempt, ...]


def connected(pairs: Sequence[Pair]) -> list[set[int]]:
    """Sets of images that matches connect, the largest first."""
    groups: list[set[int]] = []
    for pair in pairs:
        touching = [group for group in groups if group & set(pair)]
        merged = set(pair).union(*touching)
        groups = [group for group in groups if group not in touching] + [merged]
    return sorted(groups, key=len, reverse=True)


class Mapper:
    """Maps what a database holds.

    Args:
        database: its path.
        images: folder of the images.
        scratch: folder for COLMAP's own files; removed.
        fixed: cameras whose intrinsics are known.
        threads: 0 for all cores.
        seed: of everything random.
    """

    def __init__(
        self,
        database: Path,
        images: Path,
        scratch: Path,
        fixed: Sequence[int],
        threads: int,
        seed: int,
    ) -> None:
        self._database, self._images, self._scratch = str(database), str(images), scratch
        self._fixed, self._threads, self._seed = set(fixed), threads, seed

    def map(self, connected_images: int, run: Remote) -> Mapped:
        """Models with as many images as any initial pair gives.

        Args:
            connected_images: how many images matches connect at most.
            run: hears of the progress.
        """
        attempts: list[Attempt] = []
        best: list[Any] = []
        for angle, inliers in _LADDER:
            options = self._options()
            options.mapper.init_min_tri_angle = angle
            options.mapper.init_min_num_inliers = inliers
            title = "Mapping" if not attempts else f"Mapping, initial pair of {angle:g} degrees"
            models = self._run(options, title, connected_images, run)
            attempts.append(Attempt(angle, inliers, tuple(m.num_reg_images() for m in models)))
            if _size(models) > _size(best):
                best = models
            if best and best[0].num_reg_images() >= _ENOUGH * connected_images:
                break
        if best and best[0].num_reg_images() < connected_images:
            best[0] = self.extend(best[0], connected_images, run, fix=False)
        return Mapped(best, tuple(attempts))

    def map_globally(self, run: Remote) -> Mapped:
        """Models by global positioning: all images at once (GLOMAP); known cameras are all or none."""
        options = pycolmap.GlobalPipelineOptions()
        options.num_threads, options.random_seed = self._threads or -1, self._seed
        options.mapper.global_positioning.use_gpu = False
        options.mapper.bundle_adjustment.ceres.use_gpu = False
        if self._fixed:
            adjusting = options.mapper.bundle_adjustment
            adjusting.refine_focal_length = adjusting.refine_extra_params = False
            adjusting.refine_principal_point = False
        else:
            pycolmap.calibrate_view_graph(self._database)
        with run.progress("Mapping", 1) as bar, self._folder() as folder:
            found = pycolmap.global_mapping(self._database, self._images, folder, options)
            bar.advance()
        models = _sorted(found)
        return Mapped(models, (Attempt(0.0, 0, tuple(m.num_reg_images() for m in models)),))

    def extend(self, model: Any, total: int, run: Remote, fix: bool) -> Any:
        """A model with the images that relaxed thresholds add to it; `fix` keeps its own poses."""
        options = self._options()
        options.multiple_models = False
        options.mapper.abs_pose_min_num_inliers = _RELAXED_INLIERS
        options.mapper.abs_pose_min_inlier_ratio = _RELAXED_RATIO
        if fix:
            options.fix_existing_frames = True
            options.mapper.fix_existing_frames = True
            options.constant_cameras = self._fixed | set(model.cameras)
        with self._folder() as folder:
            start = Path(folder) / "start"
            start.mkdir()
            model.write_binary(str(start))
            found = self._run(options, "Adding images", total, run, str(start))
        return found[0] if found and found[0].num_reg_images() > model.num_reg_images() else model

    def _options(self) -> Any:
        options = pycolmap.IncrementalPipelineOptions()
        options.num_threads, options.random_seed = self._threads or -1, self._seed
        options.extract_colors = False
        options.min_model_size = 3
        options.constant_cameras = self._fixed
        return options

    def _run(self, options: Any, title: str, total: int, run: Remote, start: str = "") -> list[Any]:
        with run.progress(title, total) as bar, self._folder() as folder:
            found = pycolmap.incremental_mapping(
                self._database, self._images, folder, options, input_path=start,
                initial_image_pair_callback=lambda: bar.advance(2),
                next_image_callback=lambda: bar.advance(1),
            )  # fmt: skip
        return _sorted(found)

    @contextlib.contextmanager
    def _folder(self):  # type: ignore[no-untyped-def]
        """A folder that COLMAP writes to."""
        number = 0
        while (folder := self._scratch / str(number)).exists():
            number += 1
        folder.mkdir(parents=True)
        try:
            yield str(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _sorted(found: Any) -> list[Any]:
    return sorted(
        found.values(), key=lambda m: (m.num_reg_images(), m.num_points3D()), reverse=True
    )


def _size(models: Sequence[Any]) -> tuple[int, int]:
    return (models[0].num_reg_images(), models[0].num_points3D()) if models else (0, 0)
