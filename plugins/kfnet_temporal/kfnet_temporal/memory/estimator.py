"""The estimator `kfnet_memory`: dense scene coordinates with variances, one image at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kfnet_temporal.common.grid import FeatureExtractor, FeatureGrid
from kfnet_temporal.common.labels import Labels, make_labels
from kfnet_temporal.common.losses import likelihood, masked_mean
from kfnet_temporal.measurement_config import MemoryConfig, check_memory
from kfnet_temporal.memory.decoder import CUES, Memory, StdHead, decode, look
from reloc_core.errors import DataError, MapError
from reloc_core.interfaces import Dataset, Estimator, Run, Runtime
from reloc_core.maps import Map
from reloc_core.types import Correspondences, Float64Array, Query

_MIN_FRAMES = 8


class MemoryEstimator(Estimator):
    """Scene coordinates by attention to key frames, with a learned standard deviation per cell.

    Args:
        config: options; see `MemoryConfig`.
    """

    produces = Correspondences

    def __init__(self, config: MemoryConfig) -> None:
        check_memory(config)
        self.config = config
        self.extractor: FeatureExtractor | None = None
        self.memory: Memory | None = None
        self.head: StdHead | None = None
        self.origin: Float64Array = np.zeros(3)

    # ------------------------------------------------------------------------------- mapping

    def fit(self, dataset: Dataset, run: Run) -> None:
        """See `Estimator.fit`.

        Raises:
            DataError: too few images, or no scene coordinates to learn from.
        """
        if len(dataset) < _MIN_FRAMES:
            raise DataError(
                f"{dataset.name} has {len(dataset)} images; a map needs at least {_MIN_FRAMES}."
            )
        sizes = {(f.camera.width, f.camera.height) for f in dataset.frames}
        if len(sizes) > 1:
            raise DataError(
                f"{dataset.name} has images of {len(sizes)} sizes, such as "
                f"{' and '.join(f'{w} x {h}' for w, h in sorted(sizes)[:2])}; mapping needs one size."
            )
        labels = make_labels(dataset, self.config.labels, run)
        self._build_memory(dataset, labels, run)
        if not run.map.has_checkpoint:
            self._save_memory(run.map.save_checkpoint)
        self._train_head(dataset, labels, run)
        self._save(run)

    def _build_memory(self, dataset: Dataset, labels: Labels, run: Run) -> None:
        self.extractor = FeatureExtractor(self.config.resolution, run.runtime.device)
        if run.map.has_checkpoint:
            self._load_memory(run.map.load_checkpoint()[0], run.runtime.device)
            return
        wanted = max(self.config.keyframes, len(dataset) // self.config.keyframe_every)
        count = min(wanted, len(dataset))
        frames = np.unique(np.linspace(0, len(dataset) - 1, count).round().astype(np.int64))
        centres = [dataset.frames[int(i)].world_from_cam for i in frames]
        self.origin = np.stack([c[:3, 3] for c in centres if c is not None]).mean(0)
        keys, positions, pooled, used = [], [], [], []
        rng = np.random.default_rng(run.runtime.seed)
        with run.progress("Key frames", len(frames)) as progress:
            for i in frames:
                query = dataset[int(i)]
                grid = self.extractor(query)
                found = labels.at(int(i), query, grid.pixels) - self.origin
                k, p = self._choose_keys(grid, found, rng)
                progress.advance()
                if len(k) == 0:  # no pose or no depth: it would be found and say nothing
                    continue
                keys.append(k)
                positions.append(p)
                pooled.append(grid.features)
                used.append(int(i))
        if not keys:
            raise DataError(
                f"{dataset.name}: none of {len(frames)} images that were tried has both a pose and a "
                "depth; check poses/ and depth/."
            )
        mean = torch.stack([f.mean((1, 2)) for f in pooled]).mean(0)
        looks = torch.stack([look(f, mean) for f in pooled])
        # Rounded as they are stored, so that the fitted estimator and the loaded map agree.
        self.memory = Memory(
            _pad(keys).half().float(), _pad(positions), looks, mean, torch.tensor(used)
        ).to(run.runtime.device)

    def _choose_keys(
        self, grid: FeatureGrid, labels: Float64Array, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Features (n, C) and labels (n, 3) of cells with a label, evenly spread."""
        rows, columns = grid.shape
        r, c = np.divmod(np.arange(rows * columns), columns)
        usable = np.flatnonzero(np.isfinite(labels).all(1))
        # A checkerboard first: neighbouring cells say nearly the same.
        order = np.lexsort((rng.random(len(usable)), ((r + c) % 2)[usable]))
        kept = usable[order][: self.config.keys or None]
        features = grid.features.flatten(1).T[torch.from_numpy(kept).to(grid.features.device)]
        return features.cpu(), torch.from_numpy(labels[kept]).float()

    def _train_head(self, dataset: Dataset, labels: Labels, run: Run) -> None:
        options = self.config
        count = min(options.train_frames, len(dataset))
        chosen = np.linspace(0, len(dataset) - 1, count).round().astype(np.int64)
        cues, points, targets = [], [], []
        with run.progress("Held-out coordinates", len(chosen)) as progress:
            for i in chosen:
                query = dataset[int(i)]
                found = self.decode(query, self.near(int(i)))
                progress.advance()
                if found is None:
                    continue
                points.append(found[0])
                cues.append(found[1])
                grid = self._grid(query)
                target = labels.at(int(i), query, grid.pixels) - self.origin
                targets.append(torch.from_numpy(target).float().T.reshape(3, *grid.shape))
        if not cues:
            raise DataError(
                f"{dataset.name} is too short to learn the coordinates' uncertainty: every image is "
                "nearer than estimator.exclusion to all key frames. Lower it."
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.runtime.seed)
            self.head = train_head(
                torch.stack(cues), torch.stack(points), torch.stack(targets), options, run
            )
        run.map.details["held_out_median_error_m"] = float(
            (torch.stack(points) - torch.stack(targets)).norm(dim=1).nanmedian()
        )

    def near(self, index: int) -> Tensor:
        """Key frames (M,) bool that lie so near to a mapping image that it counts as seen."""
        assert self.memory is not None
        gap = self.config.exclusion
        near = (self.memory.frames - index).abs() <= gap
        if bool(near.all()):  # A short sequence: at least not the image itself.
            near = (self.memory.frames - index).abs() <= min(gap, 2)
        return near

    # ---------------------------------------------------------------------------------- maps

    def _save_memory(self, save: object) -> None:
        assert self.memory is not None
        assert callable(save)
        save(
            {
                "keys": self.memory.keys.half(),
                "positions": self.memory.positions,
                "looks": self.memory.looks,
                "mean_look": self.memory.mean_look,
                "frames": self.memory.frames,
                "origin": torch.from_numpy(self.origin.copy()),
            },
            {"resolution": self.config.resolution},
        )

    def _save(self, run: Run) -> None:
        assert self.memory is not None
        assert self.head is not None
        self._save_memory(lambda t, m: run.map.save("memory", t, m))
        run.map.save("std", self.head.state_dict(), {"hidden": self.config.hidden})
        run.map.details.update(keyframes=len(self.memory.keys))

    def _load_memory(self, tensors: dict[str, Tensor], device: str) -> None:
        try:
            self.origin = tensors["origin"].double().numpy()
            parts = [tensors[k].float() for k in ("keys", "positions", "looks", "mean_look")]
            self.memory = Memory(*parts, tensors["frames"]).to(device)
        except KeyError as error:
            raise MapError(f"The map lacks {error}. Train it again.") from error

    def load(self, scene_map: Map, runtime: Runtime) -> None:
        """See `Estimator.load`.

        Raises:
            MapError: the map is for another resolution or damaged.
        """
        tensors, metadata = scene_map.tensors("memory")
        if metadata.get("resolution") != self.config.resolution:
            raise MapError(
                f"{scene_map.path} was made with resolution {metadata.get('resolution')}, not "
                f"{self.config.resolution}. Leave the option out, or train again."
            )
        self._load_memory(tensors, runtime.device)
        state, made_with = scene_map.tensors("std")
        head = StdHead(int(made_with["hidden"]), self.config.min_std)
        try:
            head.load_state_dict(state)
        except RuntimeError as error:
            raise MapError(f"{scene_map.path} holds no such network ({error}).") from error
        self.head = head.to(runtime.device).eval().requires_grad_(False)
        self.extractor = FeatureExtractor(self.config.resolution, runtime.device)

    # -------------------------------------------------------------------------- localization

    def _grid(self, query: Query) -> FeatureGrid:
        if self.extractor is None:
            raise MapError("kfnet_memory has no map yet: call load or fit first.")
        return self.extractor(query)

    @torch.inference_mode()
    def decode(self, query: Query, exclude: Tensor | None = None) -> tuple[Tensor, Tensor] | None:
        """Coordinates (3, h, w) relative to the origin, and cues; None without key frames."""
        grid = self._grid(query)
        assert self.memory is not None
        features = grid.features.to(self.memory.keys.device)
        chosen = self.memory.retrieve(features, self.config.retrieve, exclude)
        if not len(chosen):
            return None
        return decode(
            features,
            self.memory.keys[chosen],
            self.memory.positions[chosen],
            self.config.sharpness,
            self.config.mode_radius,
        )

    def estimate(self, query: Query) -> Correspondences:
        """See `Estimator.estimate`: one correspondence per cell of 8 x 8 pixels."""
        return self._estimate(query, None)

    def estimate_held_out(self, query: Query, index: int) -> Correspondences:
        """The evidence of a mapping image as if it, and those around it, had not been mapped.

        Args:
            query: the image.
            index: its place in the mapping dataset.
        """
        return self._estimate(query, self.near(index))

    @torch.inference_mode()
    def _estimate(self, query: Query, exclude: Tensor | None) -> Correspondences:
        grid = self._grid(query)
        if self.head is None:
            raise MapError("kfnet_memory has no map yet: call load or fit first.")
        found = self.decode(query, exclude)
        if found is None or grid.contrast < 1.0:
            return Correspondences(np.zeros((0, 2)), np.zeros((0, 3)), variances=np.zeros(0))
        points, cues = found
        variance = self.head(cues[None])[0]
        return Correspondences(
            points2d=grid.pixels,
            points3d=points.flatten(1).T.cpu().double().numpy() + self.origin,
            variances=variance.flatten().cpu().double().numpy(),
            grid_shape=grid.shape,
            redundancy=self.config.redundancy,
        )


def _pad(tensors: Sequence[Tensor]) -> Tensor:
    """Stack (n_i, C) tensors to (M, max n, C) with zeros."""
    return torch.nn.utils.rnn.pad_sequence(list(tensors), batch_first=True)


def train_head(
    cues: Tensor, points: Tensor, labels: Tensor, options: MemoryConfig, run: Run
) -> StdHead:
    """Fit the standard deviation to the errors of held-out coordinates.

    Few steps, done anew when interrupted.

    Args:
        cues: (B, CUES, h, w).
        points: (B, 3, h, w) metres.
        labels: (B, 3, h, w) metres, NaN where unknown.
        options: iterations, learning rate.
        run: for progress.
    """
    head = StdHead(options.hidden, options.min_std).to(cues.device)
    known = torch.isfinite(labels).all(1)
    if not bool(known.any()):
        raise DataError("No cell of the mapping images has a depth; check the depth images.")
    with torch.no_grad():
        x = cues.movedim(1, -1)[known].T.reshape(1, CUES, 1, -1)
        z = points.movedim(1, -1)[known].T.reshape(1, 3, 1, -1)
        y = labels.movedim(1, -1)[known].T.reshape(1, 3, 1, -1)
        head.standardize(x)
    optimizer = torch.optim.Adam(head.parameters(), options.learning_rate)
    steps = max(options.iterations, 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 1 - s / steps)
    generator = torch.Generator().manual_seed(run.runtime.seed)
    with run.progress("Uncertainty", options.iterations) as progress:
        for _ in range(options.iterations):
            pick = torch.randint(x.shape[-1], (8192,), generator=generator)
            cost = likelihood(z[..., pick], head(x[..., pick]), y[..., pick])
            loss = masked_mean(cost, torch.ones_like(cost))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            progress.advance(1, loss=float(loss.detach()))
    return head.eval().requires_grad_(False)
