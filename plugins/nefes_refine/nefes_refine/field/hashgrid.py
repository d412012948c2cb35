"""Multi-resolution hash encoding of positions (Mueller et al., Instant NGP, SIGGRAPH 2022)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from reloc_core import _native

PRIMES = (1, 2_654_435_761, 805_459_861)


class HashGrid(nn.Module):
    """Positions in the unit cube to concatenated, trilinearly interpolated table entries.

    Levels whose grid fits into the table are indexed densely, finer ones by a spatial hash.

    Args:
        levels: number of resolutions, in geometric progression.
        channels: values per entry.
        entries: most entries per level, a power of two.
        base: cells along an axis at the coarsest level.
        finest: cells along an axis at the finest level.
    """

    def __init__(self, levels: int, channels: int, entries: int, base: int, finest: int) -> None:
        super().__init__()
        growth = (finest / base) ** (1 / max(levels - 1, 1))
        self.resolutions = [round(base * growth**level) for level in range(levels)]
        self.sizes = [min((n + 1) ** 3, entries) for n in self.resolutions]
        self.offsets = [sum(self.sizes[:i]) for i in range(levels)]
        self.channels = channels
        self.table = nn.Parameter(torch.empty(sum(self.sizes), channels).uniform_(-1e-3, 1e-3))

    @property
    def width(self) -> int:
        """Channels of the encoding."""
        return len(self.sizes) * self.channels

    def native(self) -> _native.HashGrid:
        """The native kernel of this layout; made anew because modules must be copyable."""
        return _native.HashGrid(
            np.array(self.resolutions, np.int64), np.array(self.sizes, np.int64), self.channels
        )

    def forward(self, positions: Tensor) -> Tensor:
        """Encode positions (N, 3) in [0, 1]; returns (N, levels * channels).

        On a GPU PyTorch does the work of the native kernel.
        """
        if positions.device.type == "cpu":
            encoded: Tensor = _Native.apply(self.table, positions.contiguous(), self.native())
            return encoded
        return self.gathered(positions)

    def gathered(self, positions: Tensor) -> Tensor:
        """The same by PyTorch, on any device."""
        return torch.cat([self._level(positions, i) for i in range(len(self.sizes))], dim=1)

    def _level(self, positions: Tensor, level: int) -> Tensor:
        index, weights = self.corners(positions, level)
        return _Gather.apply(self.table, index, weights)

    def corners(self, positions: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Table rows (N, 8) and trilinear weights (N, 8) of the cell around positions (N, 3)."""
        n, size = self.resolutions[level], self.sizes[level]
        scaled = positions * n
        low = scaled.detach().floor().clamp_(0, n - 1)
        fraction = scaled - low
        corner = low.long()
        dense = (n + 1) ** 3 <= size
        strides = (1, n + 1, (n + 1) ** 2) if dense else PRIMES
        axis = [torch.stack([corner[:, a], corner[:, a] + 1], 1) * strides[a] for a in range(3)]
        share = [torch.stack([1 - fraction[:, a], fraction[:, a]], 1) for a in range(3)]
        x, y, z = axis[0][:, :, None, None], axis[1][:, None, :, None], axis[2][:, None, None, :]
        index = x + y + z if dense else (x ^ y ^ z) % size
        weights = (
            share[0][:, :, None, None] * share[1][:, None, :, None] * share[2][:, None, None, :]
        )
        return index.flatten(1) + self.offsets[level], weights.flatten(1)


class _Native(torch.autograd.Function):
    """The native kernel."""

    @staticmethod
    def forward(ctx, table, positions, grid):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(positions, table)
        ctx.grid = grid
        return torch.from_numpy(grid.encode(positions.detach().numpy(), table.detach().numpy()))

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        positions, table = (x.detach() for x in ctx.saved_tensors)
        upstream, grad_table, grad_positions = grad.contiguous().numpy(), None, None
        if ctx.needs_input_grad[0]:
            grad_table = torch.zeros_like(table)
            ctx.grid.backward(positions.numpy(), upstream, grad_table.numpy())
        if ctx.needs_input_grad[1]:
            found = ctx.grid.backward_positions(positions.numpy(), table.numpy(), upstream)
            grad_positions = torch.from_numpy(found)
        return grad_table, grad_positions, None


class _Gather(torch.autograd.Function):
    """Weighted sums of table rows, with a dense gradient of the table."""

    @staticmethod
    def forward(ctx, table, index, weights):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(table, index, weights)
        return torch.nn.functional.embedding_bag(
            index, table, per_sample_weights=weights, mode="sum"
        )

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        table, index, weights = ctx.saved_tensors
        grad_table = grad_weights = None
        if ctx.needs_input_grad[0]:
            grad_table = torch.zeros_like(table)
            grad_table.index_add_(
                0, index.flatten(), (weights[:, :, None] * grad[:, None]).flatten(0, 1)
            )
        if ctx.needs_input_grad[2]:
            grad_weights = torch.einsum("nkc,nc->nk", table[index], grad)
        return grad_table, None, grad_weights
