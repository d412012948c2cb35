"""Training state as tensors, so that an interrupted training goes on with the very next step."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reloc_core.maps import MapWriter

_SECONDS = 20.0
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def pack(modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Parameters, buffers and Adam's moments under flat names."""
    tensors = {
        f"{name}.{key}": value.detach().cpu().clone()
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    for index, parameter in enumerate(_parameters(optimizer)):
        for moment in _MOMENTS:
            value = optimizer.state.get(parameter, {}).get(moment)
            if value is not None:
                tensors[f"optimizer.{index}.{moment}"] = value.detach().cpu().clone()
    return tensors


def unpack(
    tensors: Mapping[str, Tensor], modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
) -> None:  # fmt: skip
    """Restore what `pack` returned."""
    for name, module in modules.items():
        module.load_state_dict(part(tensors, f"{name}."))
    for index, parameter in enumerate(_parameters(optimizer)):
        found = part(tensors, f"optimizer.{index}.")
        if found:
            on = {k: v.to(parameter.device) if k != "step" else v for k, v in found.items()}
            optimizer.state[parameter] = on


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}


def step_rng(seed: int, stage: int, step: int) -> tuple[np.random.Generator, torch.Generator]:
    """Generators of one training step: the same whether or not the training was interrupted."""
    rng = np.random.default_rng([seed, stage, step])
    return rng, torch.Generator().manual_seed(int(rng.integers(2**62)))


@dataclass
class Checkpoints:
    """The checkpoint of a training with several stages.

    Args:
        map: where it lies.
        seconds: between two checkpoints within a stage.
    """

    map: MapWriter
    seconds: float = field(default_factory=lambda: _SECONDS)
    saved_at: float = field(default_factory=time.monotonic)

    def start(
        self, stage: str, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer
    ) -> int:
        """The step that a stage goes on with; restores its state if there is one."""
        saved = self.map.load_checkpoint()
        if saved is None or saved[1].get("stage") != stage:
            return 0
        unpack(saved[0], modules, optimizer)
        return int(saved[1]["step"])

    def finished(self, stage: str, modules: Mapping[str, nn.Module]) -> bool:
        """Whether a stage was completed before; restores its result."""
        saved = self.map.load_checkpoint()
        if saved is None or stage not in saved[1].get("done", []):
            return False
        for name, module in modules.items():
            module.load_state_dict(part(saved[0], f"{name}."))
        return True

    def mark(self, stage: str, notes: Mapping[str, Any]) -> None:
        """Record that a stage is complete whose result lies elsewhere, and what it had to say."""
        saved = self.map.load_checkpoint()
        tensors, metadata = saved if saved is not None else ({}, {"stage": "", "step": 0})
        done = [*metadata.get("done", []), stage]
        noted = {**metadata.get("notes", {}), stage: dict(notes)}
        self.map.save_checkpoint(
            {"marks": torch.zeros(1), **tensors}, {**metadata, "done": done, "notes": noted}
        )

    def noted(self, stage: str) -> dict[str, Any]:
        """What a stage that was completed before had to say."""
        saved = self.map.load_checkpoint()
        return dict(saved[1].get("notes", {}).get(stage, {})) if saved is not None else {}

    def save(
        self, stage: str, step: int, modules: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer, final: bool = False,
    ) -> None:  # fmt: skip
        """Write the state if the last one is old enough, or the stage is over."""
        if not final and time.monotonic() - self.saved_at < self.seconds:
            return
        saved = self.map.load_checkpoint()
        done = list(saved[1].get("done", [])) if saved is not None else []
        kept = dict(saved[0]) if saved is not None else {}
        kept = {k: v for k, v in kept.items() if not k.startswith("optimizer.")}
        if final:
            done.append(stage)
        notes = saved[1].get("notes", {}) if saved is not None else {}
        metadata: dict[str, Any] = {"stage": stage, "step": step, "done": done, "notes": notes}
        self.map.save_checkpoint({**kept, **pack(modules, optimizer)}, metadata)
        self.saved_at = time.monotonic()


def train_steps(
    checkpoints: Checkpoints, stage: str, count: int, modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer, step_loss: Callable[[int], Tensor],
    rate: Callable[[int], float], progress: Any, max_norm: float | None = None,
) -> None:  # fmt: skip
    """Run the steps of a stage that are left, with checkpoints.

    Args:
        checkpoints: where the state is kept.
        stage: its name.
        count: steps in all.
        modules: what is trained, and saved.
        optimizer: of their parameters.
        step_loss: loss of a step.
        rate: learning rate of a step.
        progress: `Progress` to advance.
        max_norm: of the gradient.
    """
    if checkpoints.finished(stage, modules):
        progress.advance(count)
        return
    first = checkpoints.start(stage, modules, optimizer)
    progress.advance(first)
    for step in range(first, count):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        loss = step_loss(step)
        optimizer.zero_grad()
        loss.backward()
        if max_norm is not None:
            nn.utils.clip_grad_norm_(_parameters(optimizer), max_norm)
        optimizer.step()
        progress.advance(1, loss=float(loss.detach()))
        checkpoints.save(stage, step + 1, modules, optimizer)
    checkpoints.save(stage, count, modules, optimizer, final=True)


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]
