"""The compact field: hash grid, occupancy-guided samples and decoding after compositing.

Differences from the published field, all for the sake of a CPU: positions are encoded by a hash grid;
samples follow a grid of known densities instead of a coarse network; what is composited along a ray
are a few latent channels, and one small network per *ray* (not per sample) decodes them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nefes_refine.config import FieldConfig
from nefes_refine.field.hashgrid import HashGrid
from nefes_refine.field.rendering import (
    ExposureTransform,
    Field,
    Rendering,
    composite,
    direction_encoding,
    inverse_cdf,
)
from nefes_refine.field.scene import Scene

_EVERYWHERE = 0.05  # share of samples that do not trust the occupancy grid
_DELAY = 3  # coarse samples that light reaches into dense cells
_REFRESH_STEPS = 100
_FADE = 0.6  # of a cell's density at each refresh
_MAX_LOG_DENSITY = 8.0
_FIRST_DENSITY = 1.0


class CompactField(Field):
    """See the module docstring.

    Args:
        config: sizes.
        scene: volume and frame.
        feature_channels: of the features to learn.
    """

    def __init__(self, config: FieldConfig, scene: Scene, feature_channels: int) -> None:
        super().__init__()
        self.config, self.scene, self.feature_channels = config, scene, feature_channels
        self.grid = HashGrid(
            config.levels, config.channels, 1 << config.log2_entries, config.base_resolution,
            config.finest_resolution,
        )  # fmt: skip
        latent = config.colour_channels + config.feature_channels
        hidden = config.hidden
        self.trunk = nn.Sequential(
            nn.Linear(self.grid.width, hidden), nn.ReLU(), nn.Linear(hidden, 1 + latent)
        )
        self.colour = nn.Sequential(
            nn.Linear(config.colour_channels + 9, hidden), nn.ReLU(), nn.Linear(hidden, 3)
        )
        self.feature = nn.Sequential(
            nn.Linear(config.feature_channels + 9, 2 * hidden),
            nn.ReLU(),
            nn.Linear(2 * hidden, feature_channels),
        )
        self.exposure = ExposureTransform(config.histogram_bins)
        self.fusion = nn.Sequential(
            nn.Conv2d(
                3 + feature_channels, feature_channels, 3, padding=1, padding_mode="replicate"
            ),
            nn.ReLU(),
            nn.Conv2d(feature_channels, feature_channels, 3, padding=1, padding_mode="replicate"),
        )
        # Starts as the identity.
        nn.init.zeros_(self.fusion[2].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.fusion[2].bias)  # type: ignore[arg-type]
        low = torch.tensor(scene.low, dtype=torch.float32)
        high = torch.tensor(scene.high, dtype=torch.float32)
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        cells = config.occupancy
        self.register_buffer("occupancy", torch.full((cells,) * 3, _FIRST_DENSITY))
        self.register_buffer("guide", torch.full((cells,) * 3, _FIRST_DENSITY))

    low: Tensor
    high: Tensor
    occupancy: Tensor
    guide: Tensor

    # --------------------------------------------------------------------------------- rendering

    def render(
        self,
        origins: Tensor,
        directions: Tensor,
        histograms: Tensor,
        generator: torch.Generator | None = None,
    ) -> Rendering:
        """See `Field.render`."""
        edges = self.sample(origins, directions, generator)
        samples, lengths = (edges[:, 1:] + edges[:, :-1]) / 2, edges.diff(dim=1)
        positions = origins[:, None] + samples[..., None] * directions[:, None]
        density, latent = self.query(positions.flatten(0, 1))
        density = density.view_as(samples)
        # What lies beyond the last sample is opaque, so that every ray ends somewhere.
        lengths = torch.cat([lengths[:, :-1], torch.full_like(lengths[:, -1:], 1e6)], 1)
        weights = composite(density, lengths)
        latent = latent.unflatten(0, samples.shape)
        split = self.config.colour_channels
        seen = direction_encoding(directions)
        colour = torch.einsum("rk,rkc->rc", weights, latent[..., :split])
        features = torch.einsum("rk,rkc->rc", weights.detach(), latent[..., split:])
        logits = self.colour(torch.cat([colour, seen], 1))
        return Rendering(
            colour=self.exposure(logits, histograms),
            features=F.normalize(self.feature(torch.cat([features, seen], 1)), dim=1),
            depth=(weights * samples).sum(1),
            samples=samples,
            weights=weights,
        )

    def query(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Densities (N,) per field unit and latent channels (N, C) at positions (N, 3)."""
        encoded = self.grid(((positions - self.low) / (self.high - self.low)).clamp(0, 1))
        raw = self.trunk(encoded)
        return torch.exp(raw[:, 0].clamp(max=_MAX_LOG_DENSITY)), raw[:, 1:]

    def fuse(self, colours: Tensor, features: Tensor) -> Tensor:
        """See `Field.fuse`."""
        change = self.fusion(torch.cat([colours, features], 1))
        return F.normalize(features + change, dim=1)

    # ---------------------------------------------------------------------------------- sampling

    @torch.no_grad()
    def sample(
        self, origins: Tensor, directions: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Edges (R, samples + 1) of the intervals of each ray, dense where the occupancy grid is.

        The intervals cover a ray from its beginning to where it leaves the volume, so nothing on it
        is skipped entirely.
        """
        start = torch.full_like(origins[:, 0], self.scene.near)
        stop = self.exit_depth(origins, directions).clamp(max=self.scene.far)
        stop = torch.maximum(stop, start + 1e-3)
        rays, count = len(origins), self.config.coarse_samples
        steps = torch.linspace(0, 1, count + 1, device=origins.device)
        edges = start[:, None] + (stop - start)[:, None] * steps
        middles = (edges[:, 1:] + edges[:, :-1]) / 2
        cell = self._cells(origins[:, None] + middles[..., None] * directions[:, None])
        lengths = edges.diff(dim=1)
        # Light ends where the grid itself is dense, one or two cells later than where the widened
        # grid begins: the surface lies somewhere between.
        passed = (self.occupancy.flatten()[cell] * lengths).cumsum(1)
        light = torch.exp(-F.pad(passed, (_DELAY, 0))[:, :count])
        weights = light * -torch.expm1(-self.guide.flatten()[cell] * lengths)
        weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-6)
        weights = weights + _EVERYWHERE / count
        wanted = self.config.samples
        quantiles = torch.linspace(0, 1, wanted + 1, device=origins.device).expand(rays, -1)
        if generator is not None:
            jitter = torch.rand(rays, wanted - 1, generator=generator).to(origins.device) - 0.5
            quantiles = quantiles + F.pad(jitter, (1, 1)) / wanted
        result = inverse_cdf(edges, weights, quantiles)
        return torch.cat([start[:, None], result[:, 1:-1], stop[:, None]], 1)

    def exit_depth(self, origins: Tensor, directions: Tensor) -> Tensor:
        """Depth (R,) at which rays leave the volume; 0 for rays that never meet it."""
        safe = torch.where(directions.abs() < 1e-9, torch.full_like(directions, 1e-9), directions)
        planes = torch.stack([(self.low - origins) / safe, (self.high - origins) / safe])
        return planes.amax(0).amin(1).clamp(min=0)

    def _cells(self, positions: Tensor) -> Tensor:
        """Flat cell numbers (...) of positions (..., 3)."""
        n = self.config.occupancy
        index = ((positions - self.low) / (self.high - self.low) * n).long().clamp_(0, n - 1)
        return (index[..., 0] * n + index[..., 1]) * n + index[..., 2]

    # --------------------------------------------------------------------------------- occupancy

    @torch.no_grad()
    def mark_occupied(self, points: Tensor) -> None:
        """Begin with known surface points (N, 3) of the field's frame."""
        self.occupancy.fill_(0.1)
        self.occupancy.view(-1)[self._cells(points)] = 30.0
        self._widen()

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Refresh the occupancy grid now and then."""
        if step % _REFRESH_STEPS:
            return
        n = self.config.occupancy
        generator = torch.Generator().manual_seed(step)
        axis = torch.arange(n, dtype=torch.float32)
        centers = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
        inside = (centers + torch.rand(n**3, 3, generator=generator)) / n
        found = torch.cat(
            [
                self.query(self.low + part.to(self.low.device) * (self.high - self.low))[0]
                for part in inside.split(65_536)
            ]
        )
        torch.maximum(self.occupancy * _FADE, found.view_as(self.occupancy), out=self.occupancy)
        self._widen()

    def _widen(self) -> None:
        """The guide lets a surface reach into the neighbouring cells."""
        self.guide.copy_(F.max_pool3d(self.occupancy[None, None], 3, 1, 1)[0, 0])

    def parameter_groups(self, learning_rate: float) -> list[dict[str, object]]:
        """Tables learn faster than networks."""
        networks = [p for name, p in self.named_parameters() if not name.startswith("grid.")]
        return [
            {"params": [self.grid.table], "lr": learning_rate, "eps": 1e-15},
            {"params": networks, "lr": learning_rate * 0.3, "eps": 1e-8},
        ]
