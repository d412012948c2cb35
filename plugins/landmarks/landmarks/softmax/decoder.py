"""GLACE's position decoder with landmarks as its cluster centres.

GLACE (Wang et al., CVPR 2024) adds a convex combination of cluster centres to what its network
regresses. Here the combination is everything and the centres are thousands of triangulated scene
points: the point of a descriptor d is sum_k softmax(sharpness <key_k, d>)_k position_k, where k runs
over the best landmarks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from landmarks.softmax.config import DecoderConfig
from reloc_core.training.streams import torch_rng

_GROUP = 32
_ROWS = 128


class PositionDecoder:
    """Scene points of descriptors.

    Args:
        keys: (K, C) unit vectors, one per landmark.
        positions: (K, 3) float32, relative to the map's origin.
        radii: (K,) float32, how near another landmark must be to be averaged with this one.
        config: sharpness and number of landmarks in the softmax.
    """

    def __init__(
        self, keys: Tensor, positions: Tensor, radii: Tensor, config: DecoderConfig
    ) -> None:
        self.keys, self.positions, self.radii = keys, positions, radii
        self.config = config

    @torch.inference_mode()
    def __call__(self, descriptors: Tensor, among: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Regress scene points.

        The softmax often has several modes, and their mean would be a point in the air. The result
        is the mean of the best landmark's neighbourhood; its share of the softmax is the confidence.

        Args:
            descriptors: (N, C) unit vectors.
            among: landmarks (K',) that take part; None for all.

        Returns:
            points (N, 3) and confidences (N,) in 0..1.
        """
        keys = self.keys if among is None else self.keys[among]
        top = min(self.config.top, len(keys))
        # In pieces whose similarities stay in the cache.
        best = [top_k(part @ keys.T, top) for part in descriptors.split(_ROWS)]
        similarity = torch.cat([values for values, _ in best])
        index = torch.cat([where for _, where in best])
        if among is not None:
            index = among[index]
        weights = torch.softmax(self.config.sharpness * similarity, 1)
        points = self.positions[index]
        distance = (points - points[:, :1]).norm(dim=2)
        near = distance <= self.radii[index[:, :1]]
        near[:, 0] = True
        weights = weights * near
        confidence = weights.sum(1)
        return (weights[..., None] * points).sum(1) / confidence[:, None], confidence


def top_k(rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`torch.topk` along long rows, exact, several times faster on the CPU.

    The k largest entries lie in the k groups with the largest maxima.
    """
    pad = -rows.shape[1] % _GROUP
    if pad:
        rows = F.pad(rows, (0, pad), value=-torch.inf)
    groups = rows.view(len(rows), rows.shape[1] // _GROUP, _GROUP)
    best = groups.amax(2).topk(min(k, groups.shape[1]), 1).indices
    candidates = groups.gather(1, best[..., None].expand(-1, -1, _GROUP)).flatten(1)
    values, index = candidates.topk(k, 1)
    return values, best.gather(1, index // _GROUP) * _GROUP + index % _GROUP


def train_keys(
    keys: Tensor,
    descriptors: Tensor,
    labels: Tensor,
    config: DecoderConfig,
    seed: int,
    advance: Callable[[float], None],
) -> Tensor:
    """Train the keys to tell landmarks apart.

    A few hundred steps: an interrupted training resumes the images' description and does these anew.

    Cross entropy of the softmax over the batch's own landmarks and a sample of others, on the
    descriptors that observe them.

    Args:
        keys: (K, C) unit vectors to start from.
        descriptors: (M, C) of the observations.
        labels: (M,) landmark of each.
        config: steps, batch, learning rate, noise.
        seed: of batches and noise.
        advance: called with the loss after every step.

    Returns:
        (K, C) unit vectors.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    weight = keys.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([weight], lr=config.learning_rate, betas=(0.9, 0.98))
    for step in range(config.iterations):
        warm = min(1.0, (step + 1) / 20)
        optimizer.param_groups[0]["lr"] = (
            config.learning_rate * warm * (1 - step / config.iterations)
        )
        rng = torch_rng(seed, "landmark keys", step)
        batch = torch.randint(len(labels), (config.batch_size,), generator=rng)
        others = torch.randint(len(keys), (config.negatives,), generator=rng)
        present, target = torch.unique(torch.cat([labels[batch], others]), return_inverse=True)
        seen = descriptors[batch]
        if config.noise_std:
            noise = torch.randn(seen.shape, generator=rng) * config.noise_std / seen.shape[1] ** 0.5
            seen = F.normalize(seen + noise, dim=1)
        logits = config.sharpness * seen @ F.normalize(weight[present], dim=1).T
        loss = F.cross_entropy(logits, target[: config.batch_size])
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss of the landmark keys is {loss.item()} at step {step}"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        advance(float(loss.detach()))
    return F.normalize(weight.detach(), dim=1)
