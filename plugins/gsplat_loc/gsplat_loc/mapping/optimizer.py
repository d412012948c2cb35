"""Adam over a field whose number of Gaussians changes, and the density control that changes it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from gsplat_loc.config import DensifyConfig, TrainConfig
from gsplat_loc.field.gaussians import Gaussians
from reloc_core.rendering import RenderOutput

_NAMES = ("means", "base", "rest", "opacities", "scales", "quaternions")
_RESET_LOGIT = float(np.log(0.01 / 0.99))
_SPLIT_SHRINK = 1.6


class FieldOptimizer:
    """Parameters of a field with their Adam states.

    Args:
        gaussians: start.
        options: learning rates.
        extent: of the scene; scales the rate of positions.
    """

    def __init__(self, gaussians: Gaussians, options: TrainConfig, extent: float) -> None:
        self.options, self.extent = options, extent
        values = {
            "means": gaussians.means,
            "base": gaussians.colors[:, :1],
            "rest": gaussians.colors[:, 1:],
            "opacities": gaussians.opacities,
            "scales": gaussians.scales,
            "quaternions": gaussians.quaternions,
        }
        rates = {
            "means": options.position_lr_init * extent,
            "base": options.feature_lr,
            "rest": options.feature_lr / 20,
            "opacities": options.opacity_lr,
            "scales": options.scaling_lr,
            "quaternions": options.rotation_lr,
        }
        groups = [
            {"params": [torch.nn.Parameter(values[n].clone())], "lr": rates[n], "name": n}
            for n in _NAMES
        ]
        self.adam = torch.optim.Adam(groups, eps=1e-15, fused=True)

    def __getitem__(self, name: str) -> Tensor:
        value: Tensor = self._group(name)["params"][0]
        return value

    def _group(self, name: str) -> dict[str, object]:
        return next(g for g in self.adam.param_groups if g["name"] == name)  # type: ignore[return-value]

    @property
    def gaussians(self) -> Gaussians:
        """The field with gradients flowing to the parameters."""
        colors = torch.cat([self["base"], self["rest"]], 1)
        return Gaussians(
            self["means"], colors, self["opacities"], self["scales"], self["quaternions"]
        )

    def step(self, iteration: int) -> None:
        """One step; the rate of positions falls exponentially."""
        o = self.options
        share = min(iteration / (o.position_lr_max_steps or max(o.iterations, 1)), 1.0)
        rate = o.position_lr_init * (o.position_lr_final / max(o.position_lr_init, 1e-30)) ** share
        self._group("means")["lr"] = rate * self.extent
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)

    def replace(self, index: Tensor, fresh: Mapping[str, Tensor] | None = None) -> None:
        """Keep the rows of `index` with their states and append fresh ones with empty states."""
        for name in _NAMES:
            group = self._group(name)
            old = group["params"][0]  # type: ignore[index]
            state = self.adam.state.pop(old, {})
            added = None if fresh is None else fresh[name]
            kept = old.detach()[index]
            new = torch.nn.Parameter(kept if added is None else torch.cat([kept, added]))
            for key in ("exp_avg", "exp_avg_sq"):
                if key in state:
                    moment = state[key][index]
                    empty = torch.zeros_like(new.detach()[len(moment) :])
                    state[key] = torch.cat([moment, empty])
            group["params"] = [new]
            if state:
                self.adam.state[new] = state

    def reset_opacity(self) -> None:
        """Lower all opacities to 0.01 and forget their momentum."""
        value = self["opacities"]
        value.data.clamp_(max=_RESET_LOGIT)
        for key in ("exp_avg", "exp_avg_sq"):
            if key in self.adam.state[value]:
                self.adam.state[value][key].zero_()

    def state(self) -> dict[str, Tensor]:
        """Everything a checkpoint needs."""
        kept = {}
        for name in _NAMES:
            kept[name] = self[name].detach()
            for key, value in self.adam.state.get(self[name], {}).items():
                kept[f"{name}.{key}"] = value.reshape(-1) if key == "step" else value
        return kept

    def load(self, kept: Mapping[str, Tensor]) -> None:
        """Continue from `state`."""
        for name in _NAMES:
            group = self._group(name)
            self.adam.state.pop(group["params"][0], None)  # type: ignore[index]
            value = torch.nn.Parameter(kept[name].clone())
            group["params"] = [value]
            found = {
                key.partition(".")[2]: kept[key].clone()
                for key in kept
                if key.startswith(f"{name}.")
            }
            if found:
                found["step"] = found["step"].reshape(())
                self.adam.state[value] = found


class DensityControl:
    """Clones, splits and removes Gaussians (Kerbl et al., 2023, section 5).

    Args:
        options: thresholds.
        extent: of the scene.
        most: number of Gaussians at which growth stops; 0 for none.
        seed: of the positions of split Gaussians.
    """

    def __init__(self, options: DensifyConfig, extent: float, most: int, seed: int) -> None:
        self.options, self.extent, self.most, self.seed = options, extent, most, seed
        self.sums = torch.zeros(0)
        self.counts = torch.zeros(0)

    def observe(self, out: RenderOutput) -> None:
        """Gather the gradients of the projected centres after a backward pass."""
        gradient = out.screen_gradients.means
        if gradient is None:
            return
        if len(self.sums) != len(gradient):
            self.sums = torch.zeros(len(gradient), device=gradient.device)
            self.counts = torch.zeros_like(self.sums)
        height, width = out.alpha.shape
        half_image = gradient.new_tensor([width / 2, height / 2])
        norm = (gradient * half_image).norm(dim=1)
        self.sums += torch.where(out.visible, norm, 0.0)
        self.counts += out.visible

    def due(self, iteration: int) -> bool:
        """Whether a round belongs after this iteration."""
        o = self.options
        return o.interval > 0 and o.start < iteration < o.stop and iteration % o.interval == 0

    def round(self, optimizer: FieldOptimizer, iteration: int) -> None:
        """Clone and split where the gradient is large, remove what is faint or huge."""
        options = self.options
        count = len(optimizer["means"])
        mean = self.sums / self.counts.clamp(min=1)
        if len(mean) != count:
            mean = torch.zeros(count, device=optimizer["means"].device)
        scale = optimizer["scales"].detach().exp().amax(1)
        opacity = optimizer["opacities"].detach().sigmoid()
        keep = opacity >= options.min_opacity
        if options.max_scale and iteration > options.scale_pruning_start:
            keep &= scale <= options.max_scale * self.extent
        grow = keep & (mean >= options.grad_threshold)
        room = self.most - int(keep.sum()) if self.most else count
        if int(grow.sum()) > max(room, 0):
            limit = torch.where(grow, mean, -1.0).argsort(descending=True)[: max(room, 0)]
            grow = torch.zeros_like(grow)
            grow[limit] = True
        large = scale > options.percent_dense * self.extent
        clone, split = (grow & ~large).nonzero()[:, 0], (grow & large).nonzero()[:, 0]
        fresh = _joined(
            _copies(optimizer, clone), _halves(optimizer, split, (self.seed, iteration))
        )
        optimizer.replace((keep & ~(grow & large)).nonzero()[:, 0], fresh)
        self.sums = torch.zeros(0)
        self.counts = torch.zeros(0)


def _copies(optimizer: FieldOptimizer, index: Tensor) -> dict[str, Tensor]:
    return {name: optimizer[name].detach()[index].clone() for name in _NAMES}


def _halves(optimizer: FieldOptimizer, index: Tensor, seed: tuple[int, ...]) -> dict[str, Tensor]:
    """Two smaller Gaussians for each, drawn from it."""
    fresh = {name: value.repeat(2, *[1] * (value.ndim - 1)) for name, value in
             _copies(optimizer, index).items()}  # fmt: skip
    rng = np.random.default_rng(seed)
    noise = torch.from_numpy(rng.standard_normal((2 * len(index), 3)).astype(np.float32))
    offset = noise.to(fresh["scales"].device) * fresh["scales"].exp()
    fresh["means"] = fresh["means"] + rotated(fresh["quaternions"], offset)
    fresh["scales"] = fresh["scales"] - float(np.log(_SPLIT_SHRINK))
    return fresh


def _joined(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.cat([a[name], b[name]]) for name in _NAMES}


def rotated(quaternions: Tensor, vectors: Tensor) -> Tensor:
    """Vectors (N, 3) turned by quaternions (N, 4), which are normalised here."""
    q = torch.nn.functional.normalize(quaternions, dim=1)
    w, v = q[:, :1], q[:, 1:]
    t = 2 * torch.linalg.cross(v, vectors, dim=1)
    return vectors + w * t + torch.linalg.cross(v, t, dim=1)
