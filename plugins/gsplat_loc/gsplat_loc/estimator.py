"""The estimator `gsplat_loc`: key points of a query against a field of Gaussians."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gsplat_loc.config import GsplatConfig, check
from gsplat_loc.field.fieldmap import Descriptors, FieldMap, load_field
from gsplat_loc.field.pictures import estimator_pictures
from gsplat_loc.field.render import snapshot
from gsplat_loc.mapping.anchors import anchored
from gsplat_loc.mapping.features import average, blend, trusted
from gsplat_loc.mapping.initialise import extent, initialise
from gsplat_loc.mapping.survey import survey
from gsplat_loc.mapping.train import placement, schedule, train_field
from gsplat_loc.mapping.views import Views, posed
from gsplat_loc.match import match, signals
from reloc_core.errors import DataError, MapError
from reloc_core.features.keypoints import KeypointDetector
from reloc_core.interfaces import Dataset, Estimator, Run, Runtime
from reloc_core.mapping import evenly, tell_used
from reloc_core.maps import Map
from reloc_core.types import Correspondences, ImageArray, Localization, Query, ScenePoints

_KEYPOINTS = 1000  # of a query, at least
_MIN_IMAGES = 3
_MIN_ANCHORS = 30


class GsplatEstimator(Estimator):
    """See the module docstring."""

    produces = Correspondences

    def __init__(self, config: GsplatConfig) -> None:
        check(config)
        self.config = config
        self.map: FieldMap | None = None
        self.runtime = Runtime()
        self.detector: KeypointDetector | None = None
        self._keys = torch.zeros(0, 64)
        self._points = torch.zeros(0, 3)

    # ------------------------------------------------------------------------------- mapping

    def fit(self, dataset: Dataset, run: Run) -> None:
        """See `Estimator.fit`.

        Raises:
            DataError: too few images, nothing to start from, or training diverged.
        """
        options = self.config
        if len(dataset) < _MIN_IMAGES:
            raise DataError(
                f"{dataset.name} has {len(dataset)} images; a field needs at least {_MIN_IMAGES}."
            )
        frames = evenly(len(dataset), options.image.max_images)
        tell_used(dataset, frames, run, "estimator.image.max_images")
        every = options.train.validation
        held = frames[every // 2 :: every] if every else frames[:0]
        frames = np.setdiff1d(frames, held)
        image = options.image
        views = Views(dataset, frames, image.resolution, image.cache_mb)
        seen = survey(dataset, frames, options.anchors, run)
        start = initialise(dataset, views, options.init, options.gaussians.sh_degree, run, seen)
        options = schedule(options, len(views))
        trained = train_field(views, start, options, run)
        gaussians, origin = trained.gaussians, trained.origin
        at = placement(options, origin, start.near, run)
        found = anchored(seen, gaussians, at, views.short_side, options.anchors, run)
        anchors = found.anchors
        if len(anchors) < _MIN_ANCHORS and options.match.target == "anchors":
            raise DataError(
                f"Only {len(anchors)} anchors were found in {len(views)} images of {dataset.name}: "
                "they overlap too little, or poses or focal lengths are wrong. 'reloc data check' "
                "tells which."
            )
        descriptors = None
        if options.features.mode != "none":
            describe = average if options.features.mode == "average" else blend
            descriptors = describe(gaussians, views, options.features, at, run)
            if start.features is not None and not options.train.iterations:
                descriptors = _as_brought(descriptors, start.features, run)
        field = FieldMap(
            gaussians, origin, at.background, descriptors, anchors, extent(views.poses),
            seen.plan.resolution, seen.plan.keypoints, found.error_px, at.near,
            options.features.resolution,
        )  # fmt: skip
        quality = self._validate(field, dataset, held, run)
        field.save(run)
        run.map.details.update(
            gaussians=len(gaussians), anchors=len(anchors), start=start.source,
            iterations=options.train.iterations,
            training_seconds=round(trained.seconds, 1), min_views=seen.min_views,
            resolution=field.resolution, field_error_px=round(field.error_px, 3), **quality,
        )  # fmt: skip
        # As stored, so that the fitted estimator and the loaded map agree.
        anchors.descriptors.copy_(anchors.descriptors.half().float())
        self._use(field, run.runtime)

    def _validate(
        self, field: FieldMap, dataset: Dataset, held: np.ndarray, run: Run
    ) -> dict[str, float]:
        """PSNR of held-out images, if some were held out."""
        if not len(held):
            return {}
        views = Views(dataset, held, self.config.image.resolution, 0)
        values = [rendered_psnr(field, views, i, run.runtime.threads) for i in range(len(views))]
        run.log("validated", psnr=round(float(np.mean(values)), 3), images=len(values))
        return {"validation_psnr": round(float(np.mean(values)), 3)}

    # ---------------------------------------------------------------------------------- maps

    def load(self, scene_map: Map, runtime: Runtime) -> None:
        """See `Estimator.load`."""
        field = load_field(scene_map, runtime.device)
        if field.descriptors is None and self.config.match.target != "anchors":
            raise MapError(
                f"{scene_map.path} has no descriptors of Gaussians: use match.target=anchors, or train "
                "with estimator.features.mode=average."
            )
        self._use(field, runtime)

    def _use(self, field: FieldMap, runtime: Runtime) -> None:
        self.map, self.runtime = field, runtime
        self.detector = KeypointDetector(field.resolution).to(runtime.device)
        target = self.config.match.target
        if target == "anchors":
            self._keys, self._points = field.anchors.descriptors, field.anchors.points
            return
        assert isinstance(field.descriptors, Descriptors)
        index = slice(None)
        if target == "gaussians":
            index = trusted(field.gaussians, field.descriptors, self.config.features, field.extent)  # type: ignore[assignment]
        self._keys = F.normalize(field.descriptors.features[index].float(), dim=1)
        self._points = field.gaussians.means[index]

    # -------------------------------------------------------------------------- localization

    def estimate(self, query: Query) -> Correspondences:
        """See `Estimator.estimate`: one correspondence per match."""
        if self.detector is None or self.map is None:
            raise MapError("gsplat_loc has no map yet: call load or fit first.")
        options = self.config.match
        count = options.keypoints or max(_KEYPOINTS, self.map.keypoints)
        found = self.detector.detect([query.image], count)[0]
        descriptors = found.descriptors.to(self._keys.device)
        matches = match(descriptors, self._keys, options)
        points = self._points[matches.map].cpu().double().numpy() + self.map.origin
        anchors = self.map.anchors if options.target == "anchors" else None
        return Correspondences(
            points2d=found.pixels[matches.query.cpu().numpy()],
            points3d=points,
            weights=_weights(matches.similarity),
            kind="sparse",
            redundancy=options.redundancy,
            signals=signals(descriptors, self._keys, matches, anchors),
            reason="" if len(points) else _reason(len(found), len(self._keys)),
        )

    def scene_points(self) -> ScenePoints | None:
        """See `Estimator.scene_points`: the anchors, in the colours of the images."""
        if self.map is None:
            return None
        anchors = self.map.anchors
        points = anchors.points.cpu().double().numpy() + self.map.origin
        return ScenePoints(points, anchors.colors.cpu().numpy())

    def pictures(self, query: Query, localization: Localization) -> dict[str, ImageArray]:
        """See `Estimator.pictures`: the field's descriptors at the pose."""
        if self.map is None or localization.world_from_cam is None:
            return {}
        return estimator_pictures(
            self.map, query, localization.world_from_cam, self.runtime.threads
        )


def _as_brought(found: Descriptors, features: Tensor, run: Run) -> Descriptors:
    """Descriptors of a file in the place of those found in the images, where they are XFeat's."""
    if features.shape != found.features.shape:
        run.log("descriptors_replaced", channels=int(features.shape[1]))
        return found
    return replace(found, features=F.normalize(features, dim=1).half().to(found.features.device))


def _reason(found: int, known: int) -> str:
    """Why there is no match."""
    if not found:
        return "no key points in the image"
    return f"none of its {found} key points resembles one of the map's {known}"


def _weights(similarity: Tensor) -> np.ndarray:
    """Confidence of matches: the more similar the likelier right."""
    weights: np.ndarray = similarity.clamp(min=0.01).square().cpu().double().numpy()
    return weights


def rendered_psnr(field: FieldMap, views: Views, index: int, threads: int) -> float:
    """PSNR in dB of the field rendered at a view's pose, over the pixels the view has."""
    view = views[index]
    camera, pose = view.camera, posed(view)
    drawn = snapshot(field.gaussians, camera, pose, field.placement(threads))
    error = (np.clip(drawn.image, 0, 1) - view.image.astype(np.float32) / 255) ** 2
    if view.mask is not None:
        error = error[view.mask]
    return float(-10 * np.log10(max(float(error.mean()), 1e-12)))
