"""The retrieval backbone of R2Former (Zhu et al., CVPR 2023), GLACE's global descriptor.

A DeiT-Small with distillation token at 480x640 and two linear heads. Module names follow the keys of
the official checkpoint, `module.backbone.` removed.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reloc_core.features.weights import load_strictly, read_state_dict
from reloc_core.types import ImageArray

_PREFIX = "module.backbone."
_SIZE = (480, 640)
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        result: Tensor = self.proj(y.transpose(1, 2).reshape(batch, tokens, width))
        return result


class _Mlp(nn.Module):
    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, ratio * width)
        self.fc2 = nn.Linear(ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return result


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = _Mlp(width, ratio)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        result: Tensor = x + self.mlp(self.norm2(x))
        return result


class _PatchEmbed(nn.Module):
    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return result


class R2Former(nn.Module):
    """RGB images (B, 3, 480, 640), ImageNet-normalised, to unit vectors (B, 256)."""

    dimension = 256

    def __init__(self, width: int = 384, depth: int = 12, heads: int = 6, patch: int = 16) -> None:
        super().__init__()
        patches = (_SIZE[0] // patch) * (_SIZE[1] // patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, patches + 2, width))
        self.patch_embed = _PatchEmbed(width, patch)
        self.blocks = nn.ModuleList(_Block(width, heads, 4) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, self.dimension)
        self.head_dist = nn.Linear(width, self.dimension)

    @classmethod
    def pretrained(cls, path: Path | str) -> R2Former:
        """The network with the weights of `CVPR23_DeitS_Rerank.pth`.

        Raises:
            MapError: not that file.
        """
        state = read_state_dict(path, "R2Former checkpoint")
        network = cls()
        backbone = {k.removeprefix(_PREFIX): v for k, v in state.items() if k.startswith(_PREFIX)}
        load_strictly(network, backbone or state, "R2Former checkpoint")
        return network.eval().requires_grad_(False)

    @staticmethod
    def prepare(image: ImageArray) -> Tensor:
        """Network input (1, 3, 480, 640) of an RGB image; as published, the aspect is not kept."""
        x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        x = (x - torch.tensor(_MEAN).view(3, 1, 1)) / torch.tensor(_STD).view(3, 1, 1)
        return F.interpolate(x, _SIZE, mode="bilinear", align_corners=False)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = self.patch_embed(x)
        batch = len(x)
        tokens = (self.cls_token.expand(batch, -1, -1), self.dist_token.expand(batch, -1, -1), x)
        x = torch.cat(tokens, 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return F.normalize((self.head(x[:, 0]) + self.head_dist(x[:, 1])) / 2, dim=-1)
