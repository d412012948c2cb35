"""The published field: coarse and fine networks with a transient part, ACT and fusion CNN.

Chen et al., NeFeS, CVPR 2024; networks after NeRF (Mildenhall et al., ECCV 2020) and NeRF-W
(Martin-Brualla et al., CVPR 2021). Module names are those of the published checkpoints.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nefes_refine.config import FieldConfig
from nefes_refine.field.rendering import Field, Rendering, apply_affine, inverse_cdf
from nefes_refine.field.scene import Scene

_POSITION_BANDS, _DIRECTION_BANDS = 10, 4
_DEPTH, _SKIP = 8, 4
_LAST_LENGTH = 100.0
_MIN_BETA = 0.1
_ACT_WIDTH, _ACT_PADDED_IN, _ACT_PADDED_OUT = 32, 16, 16
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def sinusoidal(x: Tensor, bands: int) -> Tensor:
    """[x, sin(x), cos(x), sin(2 x), cos(2 x), ...] of (..., 3), 3 + 6 * bands channels."""
    scaled = x[..., None, :] * (2.0 ** torch.arange(bands, device=x.device))[:, None]
    waves = torch.stack([torch.sin(scaled), torch.cos(scaled)], -2)
    return torch.cat([x, waves.flatten(-3)], -1)


class RadianceMLP(nn.Module):
    """Density, colour logits and features of a point seen from a direction.

    Args:
        width: hidden channels.
        features: channels beside the colour.
        transient: whether there is a transient part.
    """

    def __init__(self, width: int, features: int, transient: bool) -> None:
        super().__init__()
        position, direction = 3 + 6 * _POSITION_BANDS, 3 + 6 * _DIRECTION_BANDS
        for layer in range(_DEPTH):
            inputs = position if layer == 0 else width + position * (layer == _SKIP)
            block = nn.Sequential(nn.Linear(inputs, width), nn.ReLU())
            self.add_module(f"xyz_encoding_{layer + 1}", block)
        self.xyz_encoding_final = nn.Linear(width, width)
        half = width // 2
        self.dir_encoding = nn.Sequential(nn.Linear(width + direction, half), nn.ReLU())
        self.static_sigma = nn.Sequential(nn.Linear(width, 1), nn.Softplus())
        self.static_rgb = nn.Sequential(nn.Linear(half, 3 + features))
        self.transient = transient
        if transient:
            self.transient_encoding = nn.Sequential(
                nn.Linear(width + direction, half), nn.ReLU(), nn.Linear(half, half), nn.ReLU(),
                nn.Linear(half, half), nn.ReLU(),
            )  # fmt: skip
            self.transient_sigma = nn.Sequential(nn.Linear(half, 1), nn.Softplus())
            self.transient_rgb = nn.Sequential(nn.Linear(half, 3), nn.Sigmoid())
            self.transient_beta = nn.Sequential(nn.Linear(half, 1), nn.Softplus())

    def trunk(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden values and static density (...) of positions (..., 3)."""
        encoded = sinusoidal(positions, _POSITION_BANDS)
        hidden = encoded
        for layer in range(_DEPTH):
            if layer == _SKIP:
                hidden = torch.cat([encoded, hidden], -1)
            hidden = self.get_submodule(f"xyz_encoding_{layer + 1}")(hidden)
        return hidden, self.static_sigma(hidden)[..., 0]

    def forward(self, positions: Tensor, directions: Tensor) -> tuple[Tensor, ...]:
        """Static density, colour and features; then transient density, colour, beta if there is one.

        Args:
            positions: (..., 3).
            directions: (..., 3) unit vectors.
        """
        hidden, sigma = self.trunk(positions)
        seen = sinusoidal(directions, _DIRECTION_BANDS)
        final = torch.cat(
            [self.xyz_encoding_final(hidden), seen.expand(*hidden.shape[:-1], -1)], -1
        )
        static = (sigma, self.static_rgb(self.dir_encoding(final)))
        if not self.transient:
            return static
        moving = self.transient_encoding(final)
        return (
            *static, self.transient_sigma(moving)[..., 0], self.transient_rgb(moving),
            self.transient_beta(moving)[..., 0],
        )  # fmt: skip


class PublishedExposure(nn.Module):
    """The published exposure network: 10 -> 12 without biases, in the layout of tiny-cuda-nn.

    `params` holds four row-major matrices (32x16, 32x32, 32x32, 16x32); inputs are padded with ones,
    the last four outputs are unused.
    """

    def __init__(self) -> None:
        super().__init__()
        parts = []
        for rows, columns in self._shapes():
            parts.append(nn.init.xavier_uniform_(torch.empty(rows, columns)).flatten())
        self.params = nn.Parameter(torch.cat(parts))

    @staticmethod
    def _shapes() -> tuple[tuple[int, int], ...]:
        wide = _ACT_WIDTH
        return ((wide, _ACT_PADDED_IN), (wide, wide), (wide, wide), (_ACT_PADDED_OUT, wide))

    def forward(self, histograms: Tensor) -> Tensor:
        """(B, 12) affine values of histograms (B, 10) in whole percent."""
        missing = _ACT_PADDED_IN - histograms.shape[1]
        x = F.pad(histograms, (0, missing), value=1.0)
        sizes = [rows * columns for rows, columns in self._shapes()]
        for number, (flat, shape) in enumerate(
            zip(self.params.split(sizes), self._shapes(), strict=True)
        ):
            x = x @ flat.view(shape).T
            if number < 3:
                x = torch.relu(x)
        return x[:, :12]


class Fusion(nn.Module):
    """The fusion CNN. Batch normalisation uses the statistics of the batch at all times."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3 + features, 64, 3, padding=1), nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
            nn.Conv2d(64, features, 5, padding=2), nn.BatchNorm2d(features),
        )  # fmt: skip

    def train(self, mode: bool = True) -> Fusion:
        """As published, never in evaluation mode: one image is normalised by its own statistics."""
        return super().train(True)

    def forward(self, colours: Tensor, features: Tensor) -> Tensor:
        """Fused maps (B, C, H, W) of colours (B, 3, H, W) in 0..1 and features."""
        mean, std = (colours.new_tensor(v).view(3, 1, 1) for v in _IMAGENET)
        fused: Tensor = self.net(torch.cat([(colours - mean) / std, features], 1))
        return fused


class CoarseNetwork(RadianceMLP):
    """The coarse MLP; as published it also owns the fusion CNN and the exposure network."""

    def __init__(self, width: int, features: int) -> None:
        super().__init__(width, features, transient=False)
        self.fusion_net = Fusion(features)
        self.exposure_embedding = PublishedExposure()


class PaperField(Field):
    """See the module docstring.

    Args:
        config: width, samples, bins.
        scene: volume and frame.
        feature_channels: of the features to learn.
    """

    def __init__(self, config: FieldConfig, scene: Scene, feature_channels: int) -> None:
        super().__init__()
        self.config, self.scene, self.feature_channels = config, scene, feature_channels
        self.coarse = CoarseNetwork(config.width, feature_channels)
        self.fine = RadianceMLP(config.width, feature_channels, transient=True)

    def render(
        self,
        origins: Tensor,
        directions: Tensor,
        histograms: Tensor,
        generator: torch.Generator | None = None,
    ) -> Rendering:
        """See `Field.render`."""
        depths, coarse_colour = self._coarse(origins, directions, generator)
        positions = origins[:, None] + depths[..., None] * directions[:, None]
        seen = F.normalize(directions, dim=1)[:, None]
        sigma, radiance, moving, moving_colour, beta = self.fine(positions, seen)
        lengths = _lengths(depths)
        transient = generator is not None or self.config.transient_at_test
        both = sigma + moving if transient else sigma
        passed = torch.exp(-F.pad((both * lengths).cumsum(1)[:, :-1], (1, 0)))
        static = -torch.expm1(-sigma * lengths) * passed
        joint = -torch.expm1(-both * lengths) * passed
        colour = (static[..., None] * radiance[..., :3]).sum(1)
        uncertainty = None
        if transient:
            faded = -torch.expm1(-moving * lengths) * passed
            colour = colour + (faded[..., None] * moving_colour).sum(1)
            uncertainty = (faded * beta).sum(1) + _MIN_BETA
        return Rendering(
            colour=apply_affine(colour, self.coarse.exposure_embedding(histograms)),
            features=(static.detach()[..., None] * radiance[..., 3:]).sum(1),
            depth=(joint * depths).sum(1),
            samples=depths,
            weights=joint,
            coarse_colour=coarse_colour,
            beta=uncertainty,
            transient=moving.mean(1),
        )

    def _coarse(
        self, origins: Tensor, directions: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor | None]:
        """Depths (R, coarse + fine) of the samples, detached, and the coarse colour in training."""
        config, rays = self.config, len(origins)
        depths = torch.linspace(self.scene.near, self.scene.far, config.coarse_samples)
        depths = depths.to(origins.device).expand(rays, -1)
        quantiles = torch.linspace(0, 1, config.samples, device=origins.device).expand(rays, -1)
        if generator is not None:
            middles = (depths[:, 1:] + depths[:, :-1]) / 2
            low = torch.cat([depths[:, :1], middles], 1)
            high = torch.cat([middles, depths[:, -1:]], 1)
            random = torch.rand(depths.shape, generator=generator).to(depths)
            depths = low + (high - low) * random
            shape = (rays, config.samples)
            quantiles = torch.rand(shape, generator=generator).to(depths).sort(1).values
        positions = origins[:, None] + depths[..., None] * directions[:, None]
        colour = None
        if generator is None:
            with torch.no_grad():
                sigma = self.coarse.trunk(positions)[1]
        else:
            seen = F.normalize(directions, dim=1)[:, None]
            sigma, radiance = self.coarse(positions, seen)
        lengths = _lengths(depths)
        passed = torch.exp(-F.pad((sigma * lengths).cumsum(1)[:, :-1], (1, 0)))
        weights = -torch.expm1(-sigma * lengths) * passed
        if generator is not None:
            colour = (weights[..., None] * radiance[..., :3]).sum(1)
        with torch.no_grad():
            middles = (depths[:, 1:] + depths[:, :-1]) / 2
            extra = inverse_cdf(middles, weights[:, 1:-1] + 1e-5, quantiles)
            depths = torch.cat([depths, extra], 1).sort(1).values
        return depths, colour

    def fuse(self, colours: Tensor, features: Tensor) -> Tensor:
        """See `Field.fuse`."""
        return self.coarse.fusion_net(colours, features)


def _lengths(depths: Tensor) -> Tensor:
    """Interval lengths (R, K); the last is long, so that density there is opaque."""
    return torch.cat([depths.diff(dim=1), torch.full_like(depths[:, :1], _LAST_LENGTH)], 1)
