"""The estimator `nefes_regressor`: trains a scene's field and regressor, and regresses poses."""

from __future__ import annotations

import time

import torch

from nefes_refine.bundle import Bundle, build_field, load_bundle, save_bundle
from nefes_refine.compact.training import measure_errors, prepare, train_posenet
from nefes_refine.config import NefesConfig, check
from nefes_refine.field.compact_field import CompactField
from nefes_refine.field.data import (
    Images,
    held_out,
    mapped_frames,
    measured,
    read_images,
    scene_points,
)
from nefes_refine.field.features import FeatureNetwork, XFeatFeatures
from nefes_refine.field.rendering import Field
from nefes_refine.field.scene import measure_scene
from nefes_refine.field.training import FieldTrainer, evaluate_field
from nefes_refine.refine.mapped_views import MappedViews
from nefes_refine.target import Target
from reloc_core.errors import MapError
from reloc_core.geometry import transform
from reloc_core.interfaces import Dataset, Estimator, Run, Runtime
from reloc_core.maps import Map
from reloc_core.types import PosePrior, Query


class NefesEstimator(Estimator):
    """Absolute pose regression whose training views a feature field synthesises.

    Args:
        config: options.

    Raises:
        ConfigError: an option has a value that makes no sense.
    """

    produces = PosePrior

    def __init__(self, config: NefesConfig) -> None:
        check(config)
        self.config = config
        self.bundle: Bundle | None = None

    # --------------------------------------------------------------------------------- mapping

    def fit(self, dataset: Dataset, run: Run) -> None:
        """See `Estimator.fit`.

        Raises:
            DataError: too few images, or too little that they share.
            RelocError: the training diverged.
        """
        if self.config.regressor.name == "dfnet":
            from nefes_refine.published.recipe import fit_published

            self.bundle = fit_published(self.config, dataset, run)
            return
        device = torch.device(run.runtime.device)
        network = XFeatFeatures(run.runtime.device)
        options = self.config.training
        step, left_out = options.frame_step or 1, options.leave_out or ()
        frames = mapped_frames(dataset, options.max_images, step, left_out)
        held = held_out(len(frames), self.config.training.validation_every)
        images = read_images(dataset, frames[~held], self.config, run, network)
        unseen = read_images(dataset, frames[held], self.config, run, network)
        field, known = self._field(dataset, images, network, run, device)
        began = time.process_time()
        trainer = FieldTrainer(self.config.training, field, images, run.runtime.seed)
        checkpoint = run.map.load_checkpoint()
        if checkpoint is not None:
            trainer.load_state(checkpoint[0], int(checkpoint[1]["step"]))
        trainer.run(run)
        # The end of the field's training is kept, so that only the regressor is repeated.
        run.map.save_checkpoint(trainer.state(), {"step": trainer.done})
        seconds = {"field_cpu_seconds": round(time.process_time() - began, 1)}
        field = field.eval().requires_grad_(False)
        quality = evaluate_field(field, unseen, range(len(unseen)))
        run.log("field", **quality, **seconds)
        views, seed = MappedViews.of(images, quality), run.runtime.seed
        lesson = prepare(self.config.regressor, field, images, run, seed)
        regressor = train_posenet(self.config.regressor, lesson, run, seed)
        errors = measure_errors(self.config.regressor, lesson, views, images, run, seed)
        self.bundle = Bundle(
            self.config, field, network, regressor.to(device), torch.from_numpy(errors[0]), views,
            device, errors[1],
        )  # fmt: skip
        save_bundle(run, self.bundle)
        run.map.details.update(
            images=len(images), parameters=sum(p.numel() for p in field.parameters()),
            depth=known, validation=quality, **seconds,
        )  # fmt: skip

    def _field(
        self, dataset: Dataset, images: Images, network: FeatureNetwork, run: Run,
        device: torch.device,
    ) -> tuple[Field, bool]:  # fmt: skip
        """An untrained field of the scene's size, and whether its surfaces were measured."""
        points = scene_points(dataset, images, self.config, run)
        centers = images.poses[:, :3, 3].numpy()
        scene = measure_scene(centers, points, self.config.scene)
        torch.manual_seed(run.runtime.seed)
        field = build_field(self.config.field, scene, network.channels).to(device)
        if measured(images) and isinstance(field, CompactField):
            inside = transform(scene.field_from_world, points)
            field.mark_occupied(torch.from_numpy(inside).float().to(device))
        return field, measured(images)

    def load(self, scene_map: Map, runtime: Runtime) -> None:
        """See `Estimator.load`.

        Raises:
            MapError: the map holds no field and regressor of this version.
        """
        self.bundle = load_bundle(scene_map, runtime)

    # ---------------------------------------------------------------------------- localization

    def estimate(self, query: Query) -> PosePrior:
        """See `Estimator.estimate`: the regressed pose with the covariance of stretches that were held out.

        The covariance grows with the distance from what was mapped.
        """
        if self.bundle is None:
            raise MapError("nefes_regressor has no map yet: call load or fit first.")
        target = Target(self.bundle, query)
        pose, covariance = target.locate(), self.bundle.covariance.cpu().numpy()
        if self.bundle.novelty is None:
            return PosePrior(pose, covariance)
        views = self.bundle.views
        signals, factor = self.bundle.novelty.judge(views, target.features, pose, covariance)
        return PosePrior(pose, covariance * factor, signals=signals)
