"""Training of a field's geometry and colours from posed images."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from gsplat_loc.config import GsplatConfig
from gsplat_loc.field.gaussians import SH_0, Gaussians
from gsplat_loc.field.render import Placement, draw, view_of
from gsplat_loc.mapping.initialise import Start, extent
from gsplat_loc.mapping.losses import psnr, ssim
from gsplat_loc.mapping.optimizer import DensityControl, FieldOptimizer
from gsplat_loc.mapping.views import Views, half, posed
from reloc_core.errors import DataError
from reloc_core.interfaces import Run
from reloc_core.mapping import View
from reloc_core.rendering import RenderOutput
from reloc_core.training.streams import numpy_rng
from reloc_core.types import Float64Array, ScenePoints

_DEPTH_ALPHA = 0.5  # pixels fainter than this have no depth to compare
_PICTURES = 60  # of the training, for who wants to see it
_DEPTH_CLIP = 0.1  # relative depth errors beyond this pull no harder


@dataclass(frozen=True)
class Trained:
    """A trained field.

    Attributes:
        gaussians: relative to `origin`.
        origin: (3,) in the world.
        seconds: wall time of the optimization, over all resumed runs.
    """

    gaussians: Gaussians
    origin: Float64Array
    seconds: float


def schedule(config: GsplatConfig, images: int) -> GsplatConfig:
    """The configuration with its schedule shrunk to `train.per_image` steps for each image."""
    full = config.train.iterations
    steps = min(full, images * config.train.per_image) if config.train.per_image else full
    if steps == full:
        return config
    densify, gaussians = config.densify, config.gaussians
    return replace(
        config,
        train=replace(config.train, iterations=steps),
        densify=replace(
            densify,
            start=densify.start * steps // full,
            stop=densify.stop * steps // full,
            scale_pruning_start=densify.scale_pruning_start * steps // full,
        ),
        gaussians=replace(gaussians, sh_interval=max(gaussians.sh_interval * steps // full, 1)),
    )


def placement(config: GsplatConfig, origin: Float64Array, near: float, run: Run) -> Placement:
    """How the field is rendered while it is made."""
    behind = torch.full((3,), float(config.gaussians.white_background), device=run.runtime.device)
    return Placement(origin, behind, near, run.runtime.threads)


def train_field(views: Views, start: Start, config: GsplatConfig, run: Run) -> Trained:
    """Optimize a field; resumes from the run's checkpoint.

    The loop is its own: parameters come and go between steps, and with them the optimizer's state.

    Raises:
        DataError: the loss is not finite, as with wrong poses or a learning rate too large.
    """
    options, device = config.train, run.runtime.device
    size = extent(views.poses)
    optimizer = FieldOptimizer(start.gaussians.to(device), options, size)
    density = DensityControl(config.densify, size, config.gaussians.max_gaussians, run.runtime.seed)
    origin, done, spent = start.origin, 0, 0.0
    if run.map.has_checkpoint:
        kept, state = run.map.load_checkpoint()
        origin = kept.pop("origin").double().numpy()
        density.sums, density.counts = kept.pop("density.sums"), kept.pop("density.counts")
        optimizer.load({k: v.to(device) for k, v in kept.items()})
        done, spent = int(state["iteration"]), float(state["seconds"])
    at = placement(config, origin, start.near, run)
    begin = saved_at = time.monotonic()
    recent: list[float] = []
    with run.progress("Training the field", options.iterations) as progress:
        progress.advance(done)
        for iteration in range(done + 1, options.iterations + 1):
            view = _view(views, iteration, config, run.runtime.seed)
            degree = min(iteration // config.gaussians.sh_interval, config.gaussians.sh_degree)
            placed = view_of(view.camera, posed(view), origin)
            out = draw(optimizer.gaussians, placed, at, degree)
            truth = torch.from_numpy(view.image).to(device).float() / 255
            loss = _loss(out, truth, view, config)
            if not torch.isfinite(loss):
                raise DataError(
                    f"Training diverged at iteration {iteration}. Check poses and focal lengths with "
                    "'reloc data check', or lower estimator.train.position_lr_init."
                )
            loss.backward()
            density.observe(out)
            optimizer.step(iteration)
            if density.due(iteration):
                density.round(optimizer, iteration)
            interval = config.densify.opacity_reset_interval
            if interval and iteration % interval == 0 and iteration < config.densify.stop:
                optimizer.reset_opacity()
            recent.append(psnr(out.image.detach(), truth))
            shown = float(np.mean(recent[-options.log_every :]))
            progress.advance(1, psnr=shown, gaussians=str(len(optimizer["means"])))
            if iteration % max(options.iterations // _PICTURES, 1) == 0:
                run.show(f"iteration {iteration}", partial(_shown, optimizer.gaussians, origin))
            if iteration % options.log_every == 0:
                run.log("training", iteration=iteration, psnr=round(shown, 3), loss=float(loss.detach()),
                        gaussians=len(optimizer["means"]))  # fmt: skip
            if time.monotonic() - saved_at > options.checkpoint_seconds:
                _checkpoint(run, optimizer, density, origin, iteration,
                            spent + time.monotonic() - begin)  # fmt: skip
                saved_at = time.monotonic()
    spent += time.monotonic() - begin
    if done < options.iterations:
        _checkpoint(run, optimizer, density, origin, options.iterations, spent)
    return Trained(optimizer.gaussians.detached(), origin, spent)


def _shown(gaussians: Gaussians, origin: Float64Array) -> ScenePoints:
    """Centres of the Gaussians in their own colours."""
    at = gaussians.detached()
    colors = (at.colors[:, 0] * SH_0 + 0.5).clamp(0, 1) * 255
    return ScenePoints(at.means.double().cpu().numpy() + origin, colors.byte().cpu().numpy())


def _view(views: Views, iteration: int, config: GsplatConfig, seed: int) -> View:
    """The image of an iteration: every image once per round, in an order drawn anew."""
    turn, place = divmod(iteration - 1, len(views))
    order = numpy_rng(seed, "training images", turn).permutation(len(views))
    view = views[int(order[place])]
    if iteration <= config.train.half_resolution * config.train.iterations:
        return half(view)
    return view


def _loss(out: RenderOutput, truth: Tensor, view: View, config: GsplatConfig) -> Tensor:
    """L1, structural dissimilarity, and where depth is measured its relative error."""
    options = config.train
    image = out.image
    if view.mask is not None:
        # What the lens did not see gets no gradient.
        image = torch.where(torch.from_numpy(view.mask)[..., None].to(image.device), image, truth)
    loss = (1 - options.lambda_dssim) * (image - truth).abs().mean()
    if options.lambda_dssim:
        similarity = ssim(image.permute(2, 0, 1), truth.permute(2, 0, 1))
        loss = loss + options.lambda_dssim * (1 - similarity)
    if options.lambda_depth and view.depth is not None:
        measured = torch.from_numpy(view.depth).to(image.device)
        known = (measured > 0) & (out.alpha.detach() > _DEPTH_ALPHA)
        error = ((out.depth - measured).abs() / measured.clamp(min=1e-6)).clamp(max=_DEPTH_CLIP)
        loss = loss + options.lambda_depth * torch.where(known, error, 0.0).mean()
    return loss


def _checkpoint(
    run: Run, optimizer: FieldOptimizer, density: DensityControl, origin: Float64Array,
    iteration: int, seconds: float,
) -> None:  # fmt: skip
    tensors = {
        **optimizer.state(),
        "origin": torch.from_numpy(np.array(origin, np.float64)),
        "density.sums": density.sums,
        "density.counts": density.counts,
    }
    run.map.save_checkpoint(tensors, {"iteration": iteration, "seconds": seconds})
