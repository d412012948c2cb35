"""The published recipe: colour stage, DFNet on its renderings, then feature and fusion stages.

DFNet learns from photographs, from renderings of the same poses and from random views. The renderer is
the field's own colour stage. Poses are in the centred frame with OpenGL axes, as published.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from nefes_refine.bundle import Bundle, build_field, save_bundle
from nefes_refine.config import NefesConfig
from nefes_refine.field.constants import scene_constants
from nefes_refine.field.data import Images, held_out, mapped_frames, read_images, scene_points
from nefes_refine.field.rendering import Field
from nefes_refine.field.scene import measure_scene
from nefes_refine.field.training import FieldTrainer, evaluate_field
from nefes_refine.field.views import make_view
from nefes_refine.published.dfnet import DFNet, DFNetFeatures, load_dfnet, load_vgg16
from nefes_refine.published.dfnet_training import DFNetTrainer, photographs
from nefes_refine.refine.mapped_views import MappedViews, tangents
from nefes_refine.refine.novelty import Novelty
from reloc_core.features.weights import load_strictly
from reloc_core.interfaces import Dataset, Run
from reloc_core.maps import Map
from reloc_core.training.packing import pack, part, unpack
from reloc_core.types import Float64Array


def fit_published(config: NefesConfig, dataset: Dataset, run: Run) -> Bundle:
    """Train field and DFNet as published and write the map.

    Raises:
        DataError: too few images, or the scene's size is unknown.
        MapError: given weights are no DFNet.
    """
    config = with_focal(config)
    device = torch.device(run.runtime.device)
    torch.manual_seed(run.runtime.seed)
    options = config.regressor
    network = (load_dfnet(options.weights) if options.weights else DFNet()).to(device)
    if options.vgg_weights and not options.weights:
        load_vgg16(network, options.vgg_weights)
    seeing = feature_dfnet(config.feature_weights).to(device) if config.feature_weights else network
    features = DFNetFeatures(seeing, config.view.stride, config.view.grid)
    frames, held, images, unseen = mapping_images(config, dataset, features, run)
    field = field_of(config, dataset, images, network, features.channels, run)
    trainer = FieldTrainer(
        config.training, field, images, run.runtime.seed, l1_features=True, counted=len(frames)
    )
    checkpoint = run.map.load_checkpoint()
    trained = bool(options.weights)
    if checkpoint is not None:
        tensors, metadata = checkpoint
        trainer.load_state(tensors, int(metadata["step"]))
        if part(tensors, "dfnet"):
            unpack(tensors, {"dfnet": network})
            trained = trained or bool(metadata.get("dfnet"))
    if trainer.done < trainer.steps[0]:
        trainer.run(run, trainer.steps[0])
    if not trained:
        step, left_out = image_steps(config)[1], bad_images(config, dataset)
        shown = mapped_frames(dataset, config.training.max_images, step, left_out)
        shown = shown[~np.isin(shown, frames[held])]
        photos = photographs(dataset, shown, config, run)
        DFNetTrainer(network, config, field, dataset, photos, unseen, run).train()
        state = {**trainer.state(), **pack({"dfnet": network})}
        run.map.save_checkpoint(state, {"step": trainer.done, "dfnet": True})
    network.eval().requires_grad_(False)
    if seeing is network:
        images.features = read_images(dataset, frames[~held], config, run, features).features
        unseen = read_images(dataset, frames[held], config, run, features)
    trainer.extra = pack({"dfnet": network})
    trainer.run(run)
    bundle = finished(config, dataset, field, network, features, images, unseen, run)
    run.map.details.update(images=len(images), steps=list(trainer.steps))
    return bundle


def mapping_images(
    config: NefesConfig, dataset: Dataset, features: DFNetFeatures, run: Run
) -> tuple[np.ndarray, np.ndarray, Images, Images]:
    """Indices (N,) of the field's images, which of them are held out (N,), the others and these."""
    step, left_out = image_steps(config)[0], bad_images(config, dataset)
    frames = mapped_frames(dataset, config.training.max_images, step, left_out)
    held = held_out(len(frames), config.training.validation_every)
    images = read_images(dataset, frames[~held], config, run, features)
    return frames, held, images, read_images(dataset, frames[held], config, run, features)


def field_of(
    config: NefesConfig, dataset: Dataset, images: Images, network: DFNet, channels: int, run: Run
) -> Field:
    """The untrained field of the scene that the images measure; the network gets to know it, too."""
    points = scene_points(dataset, images, config, run)
    network.scene = measure_scene(images.poses[:, :3, 3].numpy(), points, config.scene)
    return build_field(config.field, network.scene, channels).to(run.runtime.device)


def finished(
    config: NefesConfig, dataset: Dataset, field: Field, network: DFNet, features: DFNetFeatures,
    images: Images, unseen: Images, run: Run,
) -> Bundle:  # fmt: skip
    """Measure field and regressor on unseen images and write the map."""
    field.eval().requires_grad_(False)
    covariance, poses = _errors(network, dataset, unseen, config)
    quality = evaluate_field(field, unseen, range(len(unseen)))
    views = MappedViews.of(images, quality)
    maps = [unseen.maps([i])[0] for i in range(len(unseen))]
    novelty = Novelty.measure(views, maps, poses, covariance)
    bundle = Bundle(
        config, field, features, network, torch.from_numpy(covariance), views,
        torch.device(run.runtime.device), novelty,
    )  # fmt: skip
    save_bundle(run, bundle)
    run.map.details.update(validation=quality)
    return bundle


def image_steps(config: NefesConfig) -> tuple[int, int]:
    """Strides of the field's and the regressor's images: given, published for the scene, or one."""
    published = (1, 1)
    if config.scene.constants:
        known = scene_constants(config.scene.constants)
        published = (known.field_step, known.regressor_step)
    given = (config.training.frame_step, config.regressor.frame_step)
    return given[0] or published[0], given[1] or published[1]


def with_focal(config: NefesConfig) -> NefesConfig:
    """The options with the focal length of the published grid, which the map must keep."""
    view = config.view
    if view.grid != "published" or view.focal is not None or not config.scene.constants:
        return config
    focal = scene_constants(config.scene.constants).focal * view.resolution / 480
    return replace(config, view=replace(view, focal=focal))


def bad_images(config: NefesConfig, dataset: Dataset) -> tuple[int, ...]:
    """Positions of images not to train on: given, or those of the published scene if its list is whole."""
    if config.training.leave_out is not None:
        return tuple(config.training.leave_out)
    if config.scene.constants:
        known = scene_constants(config.scene.constants)
        if len(dataset.frames) == known.images:
            return known.left_out
    return ()


def feature_dfnet(path: str) -> DFNet:
    """A frozen DFNet of a checkpoint, or of a map of `nefes_regressor` that holds one.

    Raises:
        MapError: neither.
    """
    if not Path(path).is_dir():
        return load_dfnet(path).eval().requires_grad_(False)
    tensors, _ = Map.open(path).tensors("nefes")
    network = DFNet()
    load_strictly(network, part(tensors, "regressor"), f"DFNet of the map {path}")
    return network.eval().requires_grad_(False)


def _errors(
    network: DFNet, dataset: Dataset, unseen: Images, config: NefesConfig
) -> tuple[Float64Array, Float64Array]:
    """Covariance (6, 6) of the regressor's errors on held-out images, and their regressed poses."""
    views = [make_view(dataset[int(i)], config.view) for i in unseen.indices]
    found = np.stack([network.locate(view, torch.zeros(0)) for view in views])
    truth = unseen.poses.numpy()
    errors = np.concatenate([tangents(f, t[None]) for f, t in zip(found, truth, strict=True)])
    return np.diag((errors**2).mean(0) + 1e-8), found
