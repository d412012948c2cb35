"""Global descriptors: one vector per image that GLACE concatenates to every local feature.

`vlad` needs no pretrained weights beyond the encoder's: local features of the mapping images are
clustered into visual words and aggregated as in NetVLAD (Arandjelovic et al., CVPR 2016), then reduced
by PCA. It is stored in the map.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reloc_core.errors import DataError, MapError
from reloc_core.features.kmeans import kmeans
from reloc_core.interfaces import Dataset, Progress
from reloc_core.training.streams import numpy_rng
from reloc_core.types import FloatArray, Query
from scr_glace.config import GlobalConfig, ImageConfig, check_descriptor
from scr_glace.networks.encoder import Encoder, LocalFeatures
from scr_glace.networks.r2former import R2Former
from scr_glace.views import make_view

_WORD_SAMPLES = 20_000
_KMEANS_STEPS = 15


class GlobalDescriptor(ABC):
    """Describes whole images.

    Attributes:
        dimension: length of the unit vectors; 0 when there is none.
    """

    dimension: int

    @abstractmethod
    def fit(
        self, dataset: Dataset, frames: FloatArray, encoder: Encoder, image: ImageConfig,
        seed: int, progress: Progress, known: Callable[[int], Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        """Learn from the mapping images and describe them.

        Args:
            dataset: the images.
            frames: indices (N,) of those to use.
            encoder: of the local features, on its device.
            image: resolution.
            seed: of everything random.
            progress: advanced once per image.
            known: local features (K, C) of an entry of `frames`, where they are there already.

        Returns:
            (N, dimension) float32, one row per entry of `frames`.
        """

    @abstractmethod
    def describe(self, query: Query, features: LocalFeatures) -> Tensor:
        """The descriptor (dimension,) float32 of one image with its local features."""

    def state(self) -> dict[str, Tensor]:
        """What the map stores."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027  (most store nothing)
        """Restore what `state` returned."""


class NoDescriptor(GlobalDescriptor):
    """No global encoding: ACE."""

    dimension = 0

    def fit(
        self, dataset: Dataset, frames: FloatArray, encoder: Encoder, image: ImageConfig,
        seed: int, progress: Progress, known: Callable[[int], Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        """See `GlobalDescriptor.fit`."""
        return torch.zeros(len(frames), 0)

    def describe(self, query: Query, features: LocalFeatures) -> Tensor:
        """See `GlobalDescriptor.describe`."""
        return features.features.new_zeros(0)


class VladDescriptor(GlobalDescriptor):
    """Soft-assigned VLAD with intra-normalisation and PCA.

    Attributes:
        words: (K, C) unit vectors.
        sharpness: scale of the similarities in the soft assignment.
        mean: (K C,) of the VLAD vectors of the mapping images.
        projection: (K C, dimension).
    """

    def __init__(self, config: GlobalConfig) -> None:
        self.config = config
        self.dimension = config.dimension
        self.words = torch.zeros(0)
        self.sharpness = 1.0
        self.mean = torch.zeros(0)
        self.projection = torch.zeros(0)

    def fit(
        self, dataset: Dataset, frames: FloatArray, encoder: Encoder, image: ImageConfig,
        seed: int, progress: Progress, known: Callable[[int], Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        """See `GlobalDescriptor.fit`. Reads every image twice unless few words suffice."""
        rng = numpy_rng(seed, "words")
        device = next(encoder.parameters()).device

        def local(index: int) -> Tensor:
            if known is not None:
                return F.normalize(known(index).to(device), dim=-1)
            query = dataset[int(frames[index])]
            view = make_view(encoder, query.image, query.camera, image)
            features: Tensor = encoder.describe(view.grey.to(device)).features
            return F.normalize(features.float(), dim=-1)

        # The words need a sample of the images only.
        chosen = rng.permutation(len(frames))[:200]
        share = max(_WORD_SAMPLES // len(chosen), self.config.clusters)
        samples = []
        for index in chosen:
            vectors = local(int(index)).cpu()
            samples.append(vectors[torch.from_numpy(rng.integers(0, len(vectors), share))])
        self._learn_words(torch.cat(samples), rng)
        rows = []
        for index in range(len(frames)):
            rows.append(self._aggregate(local(index)).cpu())
            progress.advance()
        vlad = torch.stack(rows)
        self._learn_projection(vlad, rng)
        return self._project(vlad)

    def describe(self, query: Query, features: LocalFeatures) -> Tensor:
        """See `GlobalDescriptor.describe`."""
        vlad = self._aggregate(F.normalize(features.features.float(), dim=-1))
        return self._project(vlad.cpu()[None])[0].to(features.features.device)

    def state(self) -> dict[str, Tensor]:
        """See `GlobalDescriptor.state`."""
        return {
            "words": self.words,
            "sharpness": torch.tensor([self.sharpness]),
            "mean": self.mean,
            "projection": self.projection.half(),
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """See `GlobalDescriptor.load_state`."""
        try:
            self.words, self.mean = state["words"], state["mean"]
            self.sharpness = float(state["sharpness"])
            self.projection = state["projection"].float()
        except KeyError as error:
            raise MapError(f"The map's VLAD descriptor lacks {error}. Train again.") from error
        self.dimension = self.projection.shape[1]

    def _learn_words(self, samples: Tensor, rng: np.random.Generator) -> None:
        clusters = min(self.config.clusters, len(samples))
        centers, _ = kmeans(samples.numpy(), clusters, rng, _KMEANS_STEPS)
        self.words = F.normalize(torch.from_numpy(centers).float(), dim=-1)
        if clusters == 1:
            return
        # NetVLAD's rule: the second-best word gets 1 % of the weight of the best one on average.
        best = (samples @ self.words.T).topk(2, -1).values
        self.sharpness = math.log(100) / max(float((best[:, 0] - best[:, 1]).mean()), 1e-6)

    def _aggregate(self, vectors: Tensor) -> Tensor:
        words = self.words.to(vectors.device)
        weights = torch.softmax(self.sharpness * vectors @ words.T, -1)
        residuals = weights.T @ vectors - weights.sum(0)[:, None] * words
        return F.normalize(F.normalize(residuals, dim=-1).reshape(-1), dim=0)

    def _learn_projection(self, vlad: Tensor, rng: np.random.Generator) -> None:
        sample = vlad[torch.from_numpy(rng.permutation(len(vlad))[:5000])].double()
        mean = sample.mean(0)
        _, values, directions = torch.linalg.svd(sample - mean, full_matrices=False)
        self.dimension = max(1, min(self.config.dimension, len(sample) - 1, vlad.shape[1]))
        projection = directions[: self.dimension].T
        if self.config.whiten:
            projection = projection / (values[: self.dimension] + 1e-3 * values[0] + 1e-12)
        # Rounded as it will be stored, so that mapping and localization describe alike.
        self.mean, self.projection = mean.float(), projection.half().float()

    def _project(self, vlad: Tensor) -> Tensor:
        return F.normalize((vlad - self.mean) @ self.projection, dim=-1)


class R2FormerDescriptor(GlobalDescriptor):
    """R2Former's retrieval vector, GLACE's published choice."""

    dimension = R2Former.dimension

    def __init__(self, config: GlobalConfig) -> None:
        self.network = R2Former.pretrained(config.weights)

    def fit(
        self, dataset: Dataset, frames: FloatArray, encoder: Encoder, image: ImageConfig,
        seed: int, progress: Progress, known: Callable[[int], Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        """See `GlobalDescriptor.fit`."""
        self.network.to(next(encoder.parameters()).device)
        rows = []
        for frame in frames:
            rows.append(self._vector(dataset[int(frame)]).cpu())
            progress.advance()
        return torch.stack(rows)

    def describe(self, query: Query, features: LocalFeatures) -> Tensor:
        """See `GlobalDescriptor.describe`."""
        self.network.to(features.features.device)
        return self._vector(query)

    @torch.inference_mode()
    def _vector(self, query: Query) -> Tensor:
        vector: Tensor = self.network(
            R2Former.prepare(query.image).to(self.network.cls_token.device)
        )[0]
        return vector.clone()


class FileDescriptor(GlobalDescriptor):
    """Precomputed descriptors, looked up by the name of the image."""

    def __init__(self, config: GlobalConfig) -> None:
        names, features = read_feature_file(Path(config.path))
        self.path = config.path
        self.rows = {name: row for row, name in enumerate(names)}
        self.features = torch.from_numpy(features)
        self.dimension = features.shape[1]

    def fit(
        self, dataset: Dataset, frames: FloatArray, encoder: Encoder, image: ImageConfig,
        seed: int, progress: Progress, known: Callable[[int], Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        """See `GlobalDescriptor.fit`."""
        names = [dataset.frames[int(frame)].name for frame in frames]
        progress.advance(len(frames))
        return torch.stack([self._row(name) for name in names])

    def describe(self, query: Query, features: LocalFeatures) -> Tensor:
        """See `GlobalDescriptor.describe`."""
        return self._row(query.name).to(features.features.device)

    def _row(self, name: str) -> Tensor:
        row = self.rows.get(_stem(name))
        if row is None:
            raise DataError(
                f"{self.path} has no descriptor for {name}. It must be the file of this split: set "
                "estimator.global_descriptor.path."
            )
        return self.features[row]


def read_feature_file(path: Path) -> tuple[list[str], FloatArray]:
    """Names (stems) and vectors (N, D) float32 of a `features.npy` or `.npz`.

    The rows of a `.npy` belong to the images of the `rgb/` folder beside it in alphabetical order, as
    the published extractor writes them; it only sees lower-case `.jpg` and `.png`.

    Raises:
        DataError: unreadable, wrong shape, or rows and images differ in number.
    """
    if not path.is_file():
        raise DataError(f"There is no descriptor file {path}.")
    try:
        content = np.load(path, allow_pickle=False)
        if path.suffix == ".npz":
            names = [str(name) for name in content["names"]]
            features = np.asarray(content["features"])
        else:
            names, features = _names_beside(path), np.asarray(content)
    except (ValueError, OSError, KeyError, EOFError) as error:
        raise DataError(f"{path} is no readable descriptor file ({error}).") from error
    if features.ndim != 2 or len(features) != len(names) or not features.shape[1]:
        raise DataError(
            f"{path} has shape {features.shape} for {len(names)} images. Extract it again for exactly "
            "the images of this split."
        )
    if not np.isfinite(features).all():
        raise DataError(f"{path} contains NaN or infinity.")
    return [_stem(name) for name in names], features.astype(np.float32)


def _names_beside(path: Path) -> list[str]:
    folder = path.parent / "rgb"
    if not folder.is_dir():
        raise DataError(f"{path} has no names, and there is no folder {folder} to take them from.")
    return sorted(p.name for p in folder.iterdir() if p.suffix in (".jpg", ".png"))


def build_descriptor(config: GlobalConfig) -> GlobalDescriptor:
    """The configured descriptor.

    Raises:
        ConfigError: it needs a file that is not given.
        MapError: its weights cannot be used.
    """
    check_descriptor(config)
    if config.name == "vlad":
        return VladDescriptor(config)
    if config.name == "r2former":
        return R2FormerDescriptor(config)
    if config.name == "file":
        return FileDescriptor(config)
    return NoDescriptor()


def _stem(name: str) -> str:
    """A frame's name without folder and image endings (`a.color.jpg` and `a.color` are the same)."""
    base = name.rsplit("/", 1)[-1]
    for ending in (".jpg", ".jpeg", ".png", ".color"):
        base = base.removesuffix(ending)
    return base
