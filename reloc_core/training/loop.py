"""The steps of one stage: learning rate, loss, gradient, checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from reloc_core.errors import RelocError
from reloc_core.interfaces import Run
from reloc_core.training.checkpoint import Checkpoint
from reloc_core.training.packing import pack, unpack


def train_steps(
    run: Run, title: str, checkpoint: Checkpoint, stage: str, count: int,
    modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer,
    step_loss: Callable[[int], Tensor | tuple[Tensor, Mapping[str, float]]], rate: Callable[[int], float],
    max_norm: float | None = None, log_every: int = 100,
) -> dict[str, float]:  # fmt: skip
    """Run the steps of a stage that are left, or restore its result where it is finished.

    Args:
        run: of the training; shows progress and logs.
        title: for people.
        checkpoint: where the state is kept.
        stage: its name there.
        count: steps in all.
        modules: what is trained and saved, by names without a dot.
        optimizer: of their parameters. Its groups may have a `scale`, a factor of the learning rate.
        step_loss: loss of a step, or the loss and what to log of it beside or in place of `loss`. It
            must depend on the step number alone (`training.streams`), so that a resumed training does
            the same.
        rate: learning rate of a step.
        max_norm: of the gradient; None for no limit.
        log_every: steps between log entries.

    Returns:
        means over the last logged steps of `loss` and of what else a step says of itself, empty where
        the stage was finished before.

    Raises:
        RelocError: the loss is not a number; the last checkpoint is kept.
    """
    if checkpoint.finished(stage):
        unpack(checkpoint.result(stage), modules)
        return {}
    first, tensors = checkpoint.resume(stage)
    if tensors:
        unpack(tensors, modules, optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    recent: list[dict[str, float]] = []
    metrics: dict[str, float] = {}
    with run.progress(title, count) as progress:
        progress.advance(first)
        for step in range(first, count):
            for group in optimizer.param_groups:
                group["lr"] = rate(step) * group.get("scale", 1.0)
            found = step_loss(step)
            loss, more = found if isinstance(found, tuple) else (found, {})
            value = float(loss.detach())
            if not math.isfinite(value):
                raise RelocError(
                    f"{title} diverged at step {step}: the loss is not a number. The last checkpoint "
                    "is kept. Check poses and focal lengths with 'reloc data check', or train again "
                    "with resume=false and a lower learning rate."
                )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if max_norm is not None:
                nn.utils.clip_grad_norm_(parameters, max_norm)
            optimizer.step()
            recent.append({"loss": value, **more})
            if (step + 1) % log_every == 0 or step + 1 == count:
                metrics = {k: sum(r[k] for r in recent) / len(recent) for k in recent[0]}
                run.log(stage, step=step + 1, **metrics)
                recent.clear()
            progress.advance(1, loss=value)
            if step + 1 < count:
                checkpoint.save(stage, step + 1, lambda: pack(modules, optimizer))
    checkpoint.finish(stage, pack(modules))
    return metrics
