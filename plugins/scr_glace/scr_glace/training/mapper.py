"""Mapping: from posed images to a trained head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from reloc_core.errors import ConfigError, DataError
from reloc_core.features.kmeans import kmeans
from reloc_core.geometry import inverse, unproject
from reloc_core.interfaces import Dataset, Run
from reloc_core.maps import load_tensors, save_tensors
from reloc_core.training.processes import Processes
from reloc_core.training.streams import numpy_rng
from reloc_core.types import Float64Array, ScenePoints
from scr_glace.config import EnsembleConfig, GlaceConfig, ImageConfig
from scr_glace.networks.encoder import Encoder, KeypointEncoder
from scr_glace.networks.global_descriptor import GlobalDescriptor
from scr_glace.networks.head import Head, HeadSpec
from scr_glace.training.buffer import Buffer, BufferPlan, Visit
from scr_glace.training.ensemble import hierarchical_split
from scr_glace.training.targets import Targets, find_targets, neighbour_table
from scr_glace.training.trainer import Trainer
from scr_glace.views import View, augmented_view

MIN_FRAMES = 8
_IMAGES_PER_CENTRE = 8  # at least, where the number of centres may be lowered
# Colours of points that are shown while the head learns, and the error of the wrong ones.
_RIGHT, _WRONG, _WRONG_PX = (80, 220, 100), (230, 70, 60), 10.0


@dataclass(frozen=True)
class Scene:
    """A mapped scene.

    Attributes:
        head: trained.
        origin: (3,) of the head's world, in the scene's.
        unit: length of the head's unit in the scene's.
        image: how images are prepared.
        descriptors: (N, D) global descriptors of the mapping images.
        details: numbers for people.
        points: (N, 3) float32 well regressed points for viewers, in the scene's axes and unit, from the
            origin.
        colors: (N, 3) uint8 RGB of these.
    """

    head: Head
    origin: Float64Array
    unit: float
    image: ImageConfig
    descriptors: Tensor
    details: dict[str, float]
    points: Tensor = field(default_factory=lambda: torch.zeros(0, 3))
    colors: Tensor = field(default_factory=lambda: torch.zeros(0, 3, dtype=torch.uint8))


class Mapper:
    """Maps one dataset.

    Args:
        config: of the estimator.
        encoder: on the device of the process.
        descriptor: of whole images; learns here where it has to.
        processes: this one and the others.
        dataset: what to map.
        run: progress, seed, checkpoints.

    Raises:
        DataError: too few images with poses.
    """

    def __init__(
        self, config: GlaceConfig, encoder: Encoder, descriptor: GlobalDescriptor,
        processes: Processes, dataset: Dataset, run: Run,
    ) -> None:  # fmt: skip
        self.config, self.encoder, self.descriptor = config, encoder, descriptor
        self.processes, self.dataset, self.run = processes, dataset, run
        self.seed = run.runtime.seed
        self.frames, self.poses = posed_frames(dataset, config.ensemble)
        # Coordinates stay near zero, which fp16 and fp32 need for geo-referenced scenes.
        self.origin: Float64Array = self.poses[:, :3, 3].mean(0)
        self.image = self._image_options()
        self.targets: Targets | None = None
        self.unit = 1.0

    def train(self) -> Scene:
        """Describe, triangulate where that is asked for, encode, train.

        Raises:
            DataError: too little to triangulate.
            ConfigError: the buffer is smaller than a batch, or there are too few camera positions.
            RelocError: the training diverged.
        """
        table = self._prepare()
        if self.targets is not None:
            self.unit = self.targets.distance
        buffer = self._fill_buffer()
        head = self._new_head(table.shape[1]).to(self.processes.device)
        device = self.processes.device
        trainer = Trainer(
            self.config, head, buffer, table.to(device), self.processes, self.seed,
            self._neighbours(),
        )  # fmt: skip
        details: dict[str, float] = dict(trainer.run(self.run, lambda: self._show(trainer)))
        details["frames"] = len(self.frames)
        if self.targets is not None:
            details["points"] = len(self.targets.points)
        head.eval().requires_grad_(False)
        return Scene(head, self.origin, self.unit, self.image, table, details)

    def _show(self, trainer: Trainer) -> None:
        """Show some points as they are regressed now, green to red by their reprojection error."""

        def points() -> ScenePoints:
            found, errors = trainer.sampled()
            wrong = (errors.cpu().numpy() / _WRONG_PX).clip(0, 1)[:, None]
            colors = (1 - wrong) * np.array(_RIGHT) + wrong * np.array(_WRONG)
            world = found.double().cpu().numpy() * self.unit + self.origin
            return ScenePoints(world, colors.astype(np.uint8))

        self.run.show(f"iteration {trainer.step}", points)

    def _image_options(self) -> ImageConfig:
        if self.config.image.enlarge:
            return self.config.image
        cameras = [self.dataset.frames[int(i)].camera for i in self.frames]
        side = int(np.median([min(c.width, c.height) for c in cameras]))
        return replace(self.config.image, resolution=min(self.config.image.resolution, side))

    # -------------------------------------------------------------------- what images look like

    def _prepare(self) -> Tensor:
        """Global descriptors (N, D) of the mapping frames and the scene points, alike in every process."""
        shared: dict[str, Tensor] | None = None
        if self.processes.rank == 0:
            path = self.run.map.scratch / "prepared.safetensors"
            if path.is_file():
                shared = load_tensors(path)[0]
            else:
                shared = self._described()
                save_tensors(path, shared, {})
        shared = self.processes.share(shared)
        assert shared is not None
        state = _below(shared, "descriptor.")
        if state:
            self.descriptor.load_state(state)
        if self.config.points.enabled:
            self.targets = Targets.from_tensors(_below(shared, "points."))
        return shared["table"]

    def _described(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        known: Callable[[int], Tensor] | None = None
        if self.config.points.enabled:
            targets, features = find_targets(
                self.dataset, self.frames, self.image.resolution, self.config.points, self.run
            )
            tensors |= {f"points.{k}": v for k, v in targets.tensors().items()}
            descriptors = torch.from_numpy(features.descriptors)

            def known(number: int) -> Tensor:
                return descriptors[features.of_image(number)]

        table = torch.zeros(len(self.frames), 0)
        if self.config.global_descriptor.name != "none":
            with (
                self.run.progress("global descriptors", len(self.frames)) as progress,
                torch.inference_mode(),
            ):
                table = self.descriptor.fit(
                    self.dataset, self.frames, self.encoder, self.image, self.seed, progress, known
                )
        state = {f"descriptor.{k}": v.clone() for k, v in self.descriptor.state().items()}
        return {"table": table.clone(), **state, **tensors}

    def _neighbours(self) -> Tensor | None:
        if self.targets is None or not self.config.global_descriptor.neighbours:
            return None
        overlaps = self.targets.overlaps(len(self.frames))
        return neighbour_table(overlaps, self.seed).to(self.processes.device)

    # ------------------------------------------------------------------------------- samples

    def _rooms(self) -> tuple[int, ...]:
        """Number of the room of every mapping frame."""
        names = [str(self.dataset.frames[int(i)].room) for i in self.frames]
        return tuple(np.unique(names, return_inverse=True)[1].tolist())

    def _fill_buffer(self) -> Buffer:
        config = self.config
        plan = BufferPlan.of(config.buffer, len(self.frames), self.seed, self._rooms())
        buffer = Buffer(
            plan, self.encoder.channels, self.processes, config.buffer, self.run.map.scratch,
            targets=self.targets is not None,
        )  # fmt: skip
        cam_from_world = inverse(self.poses)
        cam_from_world[:, :3, 3] = -np.einsum(
            "nij,nj->ni",
            cam_from_world[:, :3, :3],
            (self.poses[:, :3, 3] - self.origin) / self.unit,
        )

        def visit(number: int, frame: int) -> Visit:
            query = self.dataset[int(self.frames[frame])]
            rng = numpy_rng(self.seed, "views", number)
            view = augmented_view(
                self.encoder, query.image, query.camera, self.image, config.augment, rng
            )
            pose = torch.from_numpy(view.view_from_cam @ cam_from_world[frame, :3]).float()
            if self.targets is not None:
                made = self._points_of(view, frame, rng)
                if made is not None:
                    return Visit(made[0], made[1], pose, view.focal, made[2])
            features, rays = self._samples_of(view, query.name, rng)
            unknown = torch.full((len(rays), 3), float("nan"))
            return Visit(
                features, rays, pose, view.focal, unknown if self.targets is not None else None
            )

        own = sum(len(plan.visits_of(group)) for group in plan.owned(self.processes))
        with self.run.progress("encode", own) as progress:
            buffer.fill(visit, progress, threads=min(self.run.runtime.threads, 4))
        return buffer

    @torch.inference_mode()
    def _samples_of(self, view: View, name: str, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Features and rays of random cells or key points of a view."""
        features = self.encoder.describe(view.grey.to(self.processes.device))
        rays, inside = view.rays(features.points.cpu().numpy())
        usable = np.flatnonzero(inside)
        if not len(usable):
            if isinstance(self.encoder, KeypointEncoder):
                raise DataError(f"{name}: nothing in this image can be recognised. Leave it out.")
            raise DataError(f"{name}: the camera model maps no pixel to a viewing ray.")
        chosen = usable[rng.integers(0, len(usable), self.config.buffer.samples_per_image)]
        rows = torch.from_numpy(chosen).to(features.features.device)
        return features.features[rows].half(), torch.from_numpy(rays[chosen]).float()

    @torch.inference_mode()
    def _points_of(
        self, view: View, frame: int, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """Features, rays and targets of triangulated points in a view; None where it shows none."""
        assert self.targets is not None
        stored, points = self.targets.of_image(frame)
        pixels = view.view_pixels(stored)
        border = 0.5 * self.encoder.stride
        size = np.array([view.camera.width, view.camera.height])
        inside = np.all((pixels >= border) & (pixels <= size - 1 - border), axis=1)
        usable = np.flatnonzero(inside)
        if not len(usable):
            return None
        chosen = usable[rng.integers(0, len(usable), self.config.buffer.samples_per_image)]
        grey = view.grey.to(self.processes.device)
        features = self.encoder.sample(grey, torch.from_numpy(pixels[chosen]))
        rays = unproject(view.original, stored[chosen])[:, :2] @ view.view_from_cam[:2, :2].T
        known = (points[chosen] - self.origin) / self.unit
        return features.half(), torch.from_numpy(rays).float(), torch.from_numpy(known).float()

    def _new_head(self, descriptor: int) -> Head:
        options = self.config.head
        centers = (self.poses[:, :3, 3] - self.origin) / self.unit
        clusters, places = options.decoder_clusters, len(np.unique(centers, axis=0))
        if self.targets is not None:
            clusters = min(clusters, max(places // _IMAGES_PER_CENTRE, 1))
        if clusters > places:
            raise ConfigError(
                f"estimator.head.decoder_clusters is {clusters}, more than there are different camera "
                "positions."
            )
        anchors = centers.mean(0, keepdims=True)
        if clusters > 1:
            anchors, _ = kmeans(centers, clusters, numpy_rng(self.seed, "clusters"))
        spec = HeadSpec(
            in_channels=descriptor + self.encoder.channels,
            channels=options.channels,
            blocks=options.blocks,
            mlp_ratio=options.mlp_ratio,
            homogeneous=options.homogeneous,
            clusters=clusters,
            min_scale=options.min_scale,
            max_scale=options.max_scale,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return Head(spec, torch.from_numpy(anchors).float(), options.fp32_output)


def posed_frames(dataset: Dataset, split: EnsembleConfig) -> tuple[np.ndarray, Float64Array]:
    """Indices (N,) of the frames to map and their poses (N, 4, 4).

    Raises:
        DataError: too few.
        ConfigError: more clusters than images.
    """
    poses = [frame.world_from_cam for frame in dataset.frames]
    posed = np.array([i for i, pose in enumerate(poses) if pose is not None], np.int64)
    if len(posed) < MIN_FRAMES:
        raise DataError(
            f"{dataset.name} has {len(posed)} images with a pose; mapping needs at least "
            f"{MIN_FRAMES}, and hundreds for good accuracy."
        )
    found = np.stack([p for p in poses if p is not None])
    if split.clusters > 1:
        if split.clusters > len(posed):
            raise ConfigError(
                f"estimator.ensemble.clusters is {split.clusters} for {len(posed)} images."
            )
        # A fixed seed: separately trained members must agree on the split.
        labels = hierarchical_split(found[:, :3, 3], split.clusters, numpy_rng(0, "ensemble"))
        keep = labels == split.index
        posed, found = posed[keep], found[keep]
    return posed, found


def _below(tensors: dict[str, Tensor], start: str) -> dict[str, Tensor]:
    return {k[len(start) :]: v for k, v in tensors.items() if k.startswith(start)}
