"""Image retrieval: the NetVLAD layer and an index of global descriptors.

NetVLAD (Arandjelovic et al., CVPR 2016) is initialised from k-means over local descriptors, so it needs no
trained weights. The index searches exactly with PyTorch, or with faiss where that is installed.
"""

from __future__ import annotations

import importlib
import math
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reloc_core.errors import ConfigError, InputError
from reloc_core.features.vlad import visual_words

INDEX_KINDS = ("exact", "flat", "ivf", "pq", "ivfpq", "hnsw")
_WINNER = 100.0  # times the weight of the runner-up, on average
_TRAINING_ROWS = 100_000
_BREADTH = 64  # candidates that a search in the HNSW graph keeps, at least
_BLOCK = 65_536  # rows that an exact search converts to float32 at a time


class NetVlad(nn.Module):
    """Soft-assigned, intra-normalised residuals to cluster centres.

    Args:
        words: (K, C) cluster centres of unit local descriptors.
        sample: (N, C) unit local descriptors that set how sharp the assignment is: on average the
            best centre gets 100 times the weight of the second best (initialisation for layers
            without bias). Without it, sharpness is 100.
    """

    def __init__(self, words: Tensor, sample: Tensor | None = None) -> None:
        super().__init__()
        self.centroids = nn.Parameter(words.clone().float(), requires_grad=False)
        directions = F.normalize(self.centroids, dim=1)
        sharpness = 100.0
        if sample is not None and len(words) > 1 and len(sample):
            best = (sample.float() @ directions.T).topk(2, dim=1).values
            sharpness = math.log(_WINNER) / max(float((best[:, 0] - best[:, 1]).mean()), 1e-6)
        self.assignment = nn.Parameter(sharpness * directions, requires_grad=False)

    @classmethod
    def from_descriptors(
        cls, descriptors: Tensor, rng: np.random.Generator, clusters: int = 32
    ) -> NetVlad:
        """A layer whose centres are the k-means centres of unit local descriptors (N, C)."""
        return cls(visual_words(descriptors, rng, clusters), descriptors[:20_000])

    @property
    def dimension(self) -> int:
        """Length of a global descriptor."""
        return self.centroids.numel()

    def forward(self, local: Tensor) -> Tensor:
        """Unit global descriptors (B, K * C) of local ones (B, N, C); zero for images without any.

        Rows of zeros among the local descriptors do not count.
        """
        present = (local.abs().sum(-1, keepdim=True) > 0).to(local.dtype)
        share = torch.softmax(local @ self.assignment.T, dim=-1) * present
        residuals = share.transpose(1, 2) @ local - share.sum(1)[..., None] * self.centroids
        return F.normalize(F.normalize(residuals, dim=-1).flatten(1), dim=-1)


def _faiss() -> ModuleType:
    try:
        return importlib.import_module("faiss")
    except ImportError:
        raise ConfigError(
            "This index kind needs faiss: pip install 'reloc[retrieval]', or use the kind 'exact'."
        ) from None


def _sample(vectors: np.ndarray) -> np.ndarray:
    """Evenly chosen rows that quantisers are trained on."""
    step = max(len(vectors) // _TRAINING_ROWS, 1)
    return np.ascontiguousarray(vectors[::step])


class RetrievalIndex:
    """Nearest images by cosine similarity.

    Args:
        descriptors: (N, D) unit vectors of the reference images, float32 or float16.
        kind: "exact" (PyTorch), "flat" (faiss, exact), "ivf" (inverted lists), "pq" (product-quantised
            vectors), "ivfpq" (inverted lists of those) or "hnsw" (graph).
        lists: inverted lists; 0 for the square root of N times 4, at most N / 39.
        probes: lists that are searched.
        code_bytes: of one product-quantised vector; divides D.
        links: per node of the HNSW graph.

    Raises:
        ConfigError: an unknown kind, or faiss is missing.
        InputError: no descriptors.
    """

    def __init__(
        self,
        descriptors: Tensor,
        kind: str = "exact",
        *,
        lists: int = 0,
        probes: int = 16,
        code_bytes: int = 64,
        links: int = 32,
    ) -> None:
        if kind not in INDEX_KINDS:
            raise ConfigError(f"index kind '{kind}' is unknown: use {', '.join(INDEX_KINDS)}.")
        if descriptors.ndim != 2 or len(descriptors) == 0:
            raise InputError(
                "A retrieval index needs at least one descriptor, as rows of a matrix."
            )
        self.kind = kind
        self.count, self.dimension = descriptors.shape
        self._descriptors = descriptors if kind == "exact" else None
        self._index: Any = None
        if kind == "exact":
            return
        faiss = _faiss()
        inner = faiss.METRIC_INNER_PRODUCT
        vectors = np.ascontiguousarray(descriptors.float().numpy())
        if not lists:
            lists = max(min(round(4 * math.sqrt(self.count)), self.count // 39), 1)
        if kind == "flat":
            self._index = faiss.IndexFlatIP(self.dimension)
        elif kind == "hnsw":
            self._index = faiss.IndexHNSWFlat(self.dimension, links, inner)
            self._index.hnsw.efSearch = _BREADTH
        elif kind == "pq":
            # By distance: a quantised vector is no unit vector, and its length would count in a product.
            self._index = faiss.IndexPQ(self.dimension, code_bytes, 8, faiss.METRIC_L2)
            self._index.train(_sample(vectors))
        else:
            if kind == "ivf":
                quantizer = faiss.IndexFlatIP(self.dimension)
                self._index = faiss.IndexIVFFlat(quantizer, self.dimension, lists, inner)
            else:
                quantizer = faiss.IndexFlatL2(self.dimension)
                self._index = faiss.IndexIVFPQ(quantizer, self.dimension, lists, code_bytes, 8)
            self._index.train(_sample(vectors))
            self._index.nprobe = probes
        self._index.add(vectors)

    def memory(self) -> int:
        """Bytes of the descriptors and of what finds them."""
        if self._descriptors is not None:
            return self._descriptors.numel() * self._descriptors.element_size()
        sink = _faiss().VectorIOWriter()
        _faiss().write_index(self._index, sink)
        return int(sink.data.size())

    def set_effort(self, effort: int) -> None:
        """Trade time for recall: probes of "ivf" and "ivfpq", breadth of "hnsw"; others ignore it."""
        if self.kind in ("ivf", "ivfpq"):
            self._index.nprobe = effort
        elif self.kind == "hnsw":
            self._index.hnsw.efSearch = effort

    @torch.inference_mode()
    def search(self, queries: Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The most similar references.

        Args:
            queries: (Q, D) unit vectors.
            count: references per query; fewer when there are fewer.

        Returns:
            indices (Q, count) int64, best first, -1 where an approximate index found fewer; and
            similarities (Q, count) float32.
        """
        count = min(count, self.count)
        if self._descriptors is None:
            found = self._index.search(np.ascontiguousarray(queries.float().numpy()), count)
            by_distance = self.kind in ("pq", "ivfpq")
            return found[1], 1 - found[0] / 2 if by_distance else found[0]
        blocks = [
            queries.float() @ self._descriptors[start : start + _BLOCK].float().T
            for start in range(0, self.count, _BLOCK)
        ]
        # A stable order: equal images keep the order of the database.
        similarity, index = torch.cat(blocks, 1).sort(dim=1, descending=True, stable=True)
        return index[:, :count].numpy(), similarity[:, :count].numpy()
