"""The published recipe: colour stage, DFNet on its renderings, then feature and fusion stages.

DFNet learns from photographs, from renderings of the same poses and from random views. The renderer is
the field's own colour stage. Poses are in the centred frame with OpenGL axes, as published.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nefes_refine.bundle import Bundle, build_field, save_bundle
from nefes_refine.config import NefesConfig, RegressorConfig
from nefes_refine.data import Images, mapped_frames, read_images
from nefes_refine.dfnet import DFNet, DFNetFeatures, load_dfnet, load_vgg16, triplet_loss
from nefes_refine.field_training import FieldTrainer, evaluate_field, render_map
from nefes_refine.posenet import orthogonal
from nefes_refine.rendering import Field
from nefes_refine.scene import Scene, measure_scene
from nefes_refine.synthetic_views import median_depth, random_poses
from nefes_refine.views import make_view, working_size
from reloc_core.errors import DataError
from reloc_core.geometry import OPENCV_FROM_OPENGL
from reloc_core.interfaces import Dataset, Run
from reloc_core.types import Float64Array, ImageArray


def image_tensor(image: ImageArray) -> Tensor:
    """(3, H, W) in 0..1."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 255


def centred(scene: Scene, world_from_cam: Tensor) -> Tensor:
    """OpenCV poses (..., 4, 4) of the world as (..., 3, 4) OpenGL poses in metres of the field's axes.

    The field's frame is a similarity of the centred one, so its rotation and origin, without its
    scale, are a centred frame as good as the published one.
    """
    similarity = torch.from_numpy(scene.field_from_world).to(world_from_cam)
    rigid = similarity.clone()
    rigid[:3] /= scene.scale
    axes = torch.from_numpy(OPENCV_FROM_OPENGL).to(world_from_cam)
    return (rigid @ world_from_cam @ axes)[..., :3, :]


def from_centred(scene: Scene, poses: Tensor) -> Tensor:
    """Inverse of `centred`: (..., 3, 4) to (..., 3, 4) world_from_cam."""
    similarity = torch.from_numpy(scene.field_from_world).to(poses)
    rotation, shift = similarity[:3, :3] / scene.scale, similarity[:3, 3] / scene.scale
    axes = torch.diag(poses.new_tensor([1.0, -1.0, -1.0]))
    turned = rotation.T @ poses[..., :3] @ axes
    position = rotation.T @ (poses[..., 3] - shift)[..., None]
    return torch.cat([turned, position], -1)


@torch.inference_mode()
def regress_dfnet(bundle: Bundle, image: ImageArray) -> Float64Array:
    """DFNet's pose (4, 4) of an image of the working size, in the world."""
    assert isinstance(bundle.regressor, DFNet)
    raw = orthogonal(bundle.regressor.pose(image_tensor(image)[None].to(bundle.device)))
    pose = np.eye(4)
    pose[:3] = from_centred(bundle.scene, raw.cpu().double())[0].numpy()
    return pose


def fit_published(config: NefesConfig, dataset: Dataset, run: Run) -> Bundle:
    """Train field and DFNet as published and write the map.

    Raises:
        DataError: too few images, or the scene's size is unknown.
    """
    from nefes_refine.estimator import depth_points, held_out, mapped_views
    from nefes_refine.sparse import triangulated_points

    device = torch.device(run.runtime.device)
    torch.manual_seed(run.runtime.seed)
    network = (load_dfnet(config.regressor.weights) if config.regressor.weights else DFNet()).to(
        device
    )
    if config.regressor.vgg_weights and not config.regressor.weights:
        load_vgg16(network, config.regressor.vgg_weights)
    frames = mapped_frames(dataset, config.training.max_images)
    held = held_out(len(frames), config.training.validation_every)
    features = DFNetFeatures(network, config.view.stride)
    images = read_images(dataset, frames[~held], config, run, features)
    measured = images.depths is not None
    points = (
        depth_points(images)
        if measured
        else triangulated_points(dataset, images.indices, config.view, run)
    )
    scene = measure_scene(images.poses[:, :3, 3].numpy(), points, config.scene)
    field = build_field(config.field, scene, features.channels).to(device)
    trainer = FieldTrainer(config.training, field, images, run.runtime.seed, l1_features=True)
    checkpoint = run.map.load_checkpoint()
    if checkpoint is not None:
        trainer.load_state(
            {k: v for k, v in checkpoint[0].items() if not k.startswith("dfnet.")},
            int(checkpoint[1]["step"]),
        )
        if "dfnet.fc_pose.weight" in checkpoint[0]:
            network.load_state_dict(
                {k[6:]: v for k, v in checkpoint[0].items() if k.startswith("dfnet.")}
            )
    if trainer.done < config.training.colour_steps:
        trainer.run(run, config.training.colour_steps)
    if not config.regressor.weights and not (checkpoint and checkpoint[1].get("dfnet")):
        train_dfnet(network, config.regressor, field, dataset, images, config, run)
        state = {f"dfnet.{k}": v for k, v in network.state_dict().items()}
        run.map.save_checkpoint({**trainer.state(), **state}, {"step": trainer.done, "dfnet": True})
    network.eval().requires_grad_(False)
    refreshed = read_images(dataset, frames[~held], config, run, features)
    images.features = refreshed.features
    trainer.extra = {f"dfnet.{k}": v for k, v in network.state_dict().items()}
    trainer.run(run)
    field.eval().requires_grad_(False)
    unseen = read_images(dataset, frames[held], config, run, features)
    covariance = _covariance(network, scene, dataset, unseen, config)
    quality = evaluate_field(field, unseen, range(len(unseen)))
    views = mapped_views(images, quality)
    bundle = Bundle(config, field, features, network, covariance, views, device)
    save_bundle(run, bundle)
    run.map.details.update(images=len(images), validation=quality)
    return bundle


def train_dfnet(
    network: DFNet, options: RegressorConfig, field: Field, dataset: Dataset, images: Images,
    config: NefesConfig, run: Run,
) -> None:  # fmt: skip
    """Train on photographs, renderings of the same poses and random views.

    loss = MSE of the 12 pose numbers of both + triplet loss + MSE of the random views.

    Raises:
        DataError: fewer than two images, which the triplet loss needs.
    """
    if len(images) < 2:
        raise DataError("DFNet needs at least two images.")
    device = next(network.parameters()).device
    seed = run.runtime.seed
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.Adam(network.parameters(), options.learning_rate)
    targets = centred(field.scene, images.poses).float()
    size = working_size(dataset.frames[int(images.indices[0])].camera, config.view.resolution)
    rendered = _rendered(field, images, images.poses.numpy(), size)
    depth = median_depth(field, images)
    extra: tuple[Tensor, Tensor] | None = None
    network.train()
    with run.progress("Training DFNet", options.epochs) as progress:
        for epoch in range(options.epochs):
            if options.synthetic_views > 0 and epoch % options.refresh_every == 0:
                views = random_poses(images.poses.numpy(), options, depth, rng)
                extra = (
                    _rendered(field, images, views, size),
                    centred(field.scene, torch.from_numpy(views)).float(),
                )
            total = 0.0
            for chosen in torch.randperm(len(images), generator=generator).split(options.batch):
                if len(chosen) < 2:
                    continue
                photos = torch.stack(
                    [
                        image_tensor(
                            make_view(dataset[int(images.indices[i])], config.view, size).image
                        )
                        for i in chosen
                    ]
                )
                loss = dfnet_loss(
                    network, photos.to(device), rendered[chosen].to(device),
                    targets[chosen].to(device), options,
                )  # fmt: skip
                if extra is not None:
                    wanted = extra[1][chosen].to(device)
                    loss = loss + F.mse_loss(network.pose(extra[0][chosen].to(device)), wanted)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                total += float(loss.detach()) * len(chosen)
            progress.advance(1, loss=total / len(images))


def dfnet_loss(
    network: DFNet, photos: Tensor, rendered: Tensor, poses: Tensor, options: RegressorConfig
) -> Tensor:
    """Pose and triplet loss of photographs and renderings (B, 3, H, W) of the same poses."""
    count = len(photos)
    size = (photos.shape[-2], photos.shape[-1])
    features, found = network(torch.cat([photos, rendered]), size)
    loss = F.mse_loss(found[:count], poses) + F.mse_loss(found[count:], poses)
    if options.triplet_weight:
        triplet = triplet_loss(features[:, count:], features[:, :count], options.triplet_margin)
        loss = loss + options.triplet_weight * triplet
    return loss


def _rendered(field: Field, images: Images, poses: Float64Array, size: tuple[int, int]) -> Tensor:
    """Colour renderings (N, 3, H, W) at the working size, enlarged from the cells."""
    found = []
    device = next(field.parameters()).device
    for number, pose in enumerate(poses):
        colour = render_map(
            field, torch.from_numpy(pose), images.directions[number], images.shape,
            images.histograms[number].to(device),
        )[0].cpu()  # fmt: skip
        rows, columns = images.shape
        stride = round(size[1] / rows)
        enlarged = F.interpolate(
            colour[None], (rows * stride, columns * stride), mode="bicubic", align_corners=False
        )[0]
        found.append(enlarged[:, : size[1], : size[0]].clamp(0, 1))
    return torch.stack(found)


def _covariance(
    network: DFNet, scene: Scene, dataset: Dataset, unseen: Images, config: NefesConfig
) -> Tensor:
    """Covariance (6, 6) of the regressor's errors on held-out images."""
    from reloc_core.geometry import so3_log

    device = next(network.parameters()).device
    errors = []
    with torch.inference_mode():
        for number, index in enumerate(unseen.indices):
            image = make_view(dataset[int(index)], config.view).image
            raw = orthogonal(network.pose(image_tensor(image)[None].to(device))).cpu().double()
            found = from_centred(scene, raw)[0].numpy()
            true = unseen.poses[number].numpy()
            errors.append(
                np.concatenate(
                    [
                        so3_log(found[:, :3].T @ true[:3, :3]),
                        found[:, :3].T @ (true[:3, 3] - found[:, 3]),
                    ]
                )
            )
    return torch.from_numpy(np.diag((np.array(errors) ** 2).mean(0) + 1e-8))
