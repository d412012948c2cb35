"""The estimator `scr_glace`: image to dense 2D-3D correspondences by scene coordinate regression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reloc_core.errors import ConfigError, DataError, MapError
from reloc_core.features.kmeans import kmeans
from reloc_core.geometry import inverse
from reloc_core.interfaces import Dataset, Estimator, Run, Runtime
from reloc_core.maps import Map, load_tensors, save_tensors
from reloc_core.training.processes import Processes, join
from reloc_core.training.streams import numpy_rng
from reloc_core.types import Correspondences, Evidence, Float64Array, Query
from scr_glace.buffer import Buffer, BufferPlan, Visit
from scr_glace.camera_clusters import hierarchical_split
from scr_glace.config import GlaceConfig, check
from scr_glace.encoder import Encoder, LocalFeatures, build_encoder
from scr_glace.globaldesc import GlobalDescriptor, build_descriptor
from scr_glace.head import Head, HeadSpec
from scr_glace.precision import autocast_dtype
from scr_glace.train import Trainer
from scr_glace.views import View, augmented_view, make_view

MIN_FRAMES = 8


class GlaceEstimator(Estimator):
    """GLACE, and ACE as its special case without a global descriptor.

    Args:
        config: options; see `GlaceConfig`.

    Raises:
        ConfigError: an option has a value that makes no sense.
    """

    produces = Correspondences

    def __init__(self, config: GlaceConfig) -> None:
        check(config)
        self.config = config
        self.encoder: Encoder | None = None
        self.descriptor: GlobalDescriptor | None = None
        self.head: Head | None = None
        self.origin: Float64Array = np.zeros(3)
        self.device = torch.device("cpu")
        self.dtype = torch.float32

    # ------------------------------------------------------------------------------ mapping

    def fit(self, dataset: Dataset, run: Run) -> None:
        """See `Estimator.fit`.

        Raises:
            DataError: too few images with poses.
            ConfigError: weights are missing, or the buffer is smaller than a batch.
            RelocError: the training diverged.
        """
        frames, poses = self._posed_frames(dataset, run.runtime.seed)
        encoder = build_encoder(self.config.encoder, run.runtime.device)
        descriptor = build_descriptor(self.config.global_descriptor)
        with join(run.runtime.device) as processes:
            self._use(encoder, descriptor, processes.device)
            # Coordinates stay near zero, which fp16 and fp32 need for geo-referenced scenes.
            self.origin = poses[:, :3, 3].mean(0)
            table = self._describe_frames(dataset, frames, run, processes)
            buffer = self._fill_buffer(dataset, frames, poses, run, processes)
            head = self._new_head(poses, run.runtime.seed, table.shape[1])
            self.head = head.to(processes.device)
            trainer = Trainer(
                self.config, self.head, buffer, table.to(processes.device), processes,
                run.runtime.seed,
            )  # fmt: skip
            metrics = trainer.run(run)
            if processes.rank == 0:
                self.save(run, frames=len(frames), **metrics)
        self.head.eval().requires_grad_(False)

    def _posed_frames(self, dataset: Dataset, seed: int) -> tuple[np.ndarray, Float64Array]:
        """Indices (N,) of the frames to map and their poses (N, 4, 4)."""
        poses = [frame.world_from_cam for frame in dataset.frames]
        posed = np.array([i for i, pose in enumerate(poses) if pose is not None], np.int64)
        if len(posed) < MIN_FRAMES:
            raise DataError(
                f"{dataset.name} has {len(posed)} images with a pose; mapping needs at least "
                f"{MIN_FRAMES}, and hundreds for good accuracy."
            )
        found = np.stack([p for p in poses if p is not None])
        split = self.config.ensemble
        if split.clusters > 1:
            if split.clusters > len(posed):
                raise ConfigError(
                    f"estimator.ensemble.clusters is {split.clusters} for {len(posed)} images."
                )
            # A fixed seed: separately trained members must agree on the split.
            labels = hierarchical_split(
                found[:, :3, 3], split.clusters, numpy_rng(0, "clusters", 1)
            )
            keep = labels == split.index
            posed, found = posed[keep], found[keep]
        return posed, found

    def _describe_frames(
        self, dataset: Dataset, frames: np.ndarray, run: Run, processes: Processes
    ) -> Tensor:
        """Global descriptors (N, D) of the mapping frames, the same in every process."""
        assert self.encoder is not None
        assert self.descriptor is not None
        if self.config.global_descriptor.name == "none":
            return torch.zeros(len(frames), 0)
        cached: tuple[Tensor, dict[str, Tensor]] | None = None
        if processes.rank == 0:
            path = run.map.scratch / "global.safetensors"
            if path.is_file():
                tensors, _ = load_tensors(path)
                cached = tensors.pop("table"), tensors
            else:
                with (
                    run.progress("global descriptors", len(frames)) as progress,
                    torch.inference_mode(),
                ):
                    table = self.descriptor.fit(
                        dataset, frames, self.encoder, self.config.image, run.runtime.seed, progress
                    )  # fmt: skip
                cached = table.clone(), {k: v.clone() for k, v in self.descriptor.state().items()}
                save_tensors(path, {"table": cached[0], **cached[1]}, {})
        shared: tuple[Tensor, dict[str, Tensor]] = processes.share(cached)
        if shared[1]:
            self.descriptor.load_state(shared[1])
        return shared[0]

    def _fill_buffer(
        self, dataset: Dataset, frames: np.ndarray, poses: Float64Array, run: Run,
        processes: Processes,
    ) -> Buffer:  # fmt: skip
        assert self.encoder is not None
        encoder, config, seed = self.encoder, self.config, run.runtime.seed
        plan = BufferPlan.of(config.buffer, len(frames), seed)
        scratch = run.map.scratch
        buffer = Buffer(plan, encoder.channels, processes, config.buffer, scratch)
        cam_from_world = inverse(poses)
        cam_from_world[:, :3, 3] = -np.einsum(
            "nij,nj->ni", cam_from_world[:, :3, :3], poses[:, :3, 3] - self.origin
        )

        def visit(number: int, frame: int) -> Visit:
            query = dataset[int(frames[frame])]
            rng = numpy_rng(seed, "views", number)
            view = augmented_view(
                encoder, query.image, query.camera, config.image, config.augment, rng
            )
            features = self._encode(view)
            rays, inside = view.rays(features.points.cpu().numpy())
            usable = np.flatnonzero(inside)
            if not len(usable):
                raise DataError(f"{query.name}: the camera model maps no pixel to a viewing ray.")
            chosen = usable[rng.integers(0, len(usable), config.buffer.samples_per_image)]
            return Visit(
                features.features[torch.from_numpy(chosen).to(self.device)].half(),
                torch.from_numpy(rays[chosen]).float(),
                torch.from_numpy(view.view_from_cam @ cam_from_world[frame, :3]).float(),
                view.focal,
            )

        own = sum(len(plan.visits_of(group)) for group in plan.owned(processes))
        with run.progress("encode", own) as progress:
            buffer.fill(visit, progress, threads=min(run.runtime.threads, 4))
        return buffer

    def _new_head(self, poses: Float64Array, seed: int, descriptor: int) -> Head:
        assert self.encoder is not None
        options = self.config.head
        centers = poses[:, :3, 3] - self.origin
        if options.decoder_clusters > len(np.unique(centers, axis=0)):
            raise ConfigError(
                f"estimator.head.decoder_clusters is {options.decoder_clusters}, more than there are "
                "different camera positions."
            )
        anchors = centers.mean(0, keepdims=True)
        if options.decoder_clusters > 1:
            rng = numpy_rng(seed, "clusters")
            anchors, _ = kmeans(centers, options.decoder_clusters, rng)
        spec = HeadSpec(
            in_channels=descriptor + self.encoder.channels,
            channels=options.channels,
            blocks=options.blocks,
            mlp_ratio=options.mlp_ratio,
            homogeneous=options.homogeneous,
            clusters=options.decoder_clusters,
            min_scale=options.min_scale,
            max_scale=options.max_scale,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Head(spec, torch.from_numpy(anchors).float(), options.fp32_output)

    # ------------------------------------------------------------------------------ maps

    def save(self, run: Run, **details: float) -> None:
        """Write the map: weights in fp16, positions in fp32 and fp64."""
        assert self.encoder is not None
        assert self.head is not None
        assert self.descriptor is not None
        run.map.save("head", *head_tensors(self.head, self.encoder, self.config, self.origin))
        state = self.descriptor.state()
        if state:
            run.map.save("global", state, {"name": self.config.global_descriptor.name})
        parameters = sum(p.numel() for p in self.head.parameters())
        run.map.details.update(parameters=parameters, encoder=self.encoder.name, **details)

    def load(self, scene_map: Map, runtime: Runtime) -> None:
        """See `Estimator.load`.

        Raises:
            MapError: made with another encoder, descriptor or resolution.
            ConfigError: weights are needed and not given.
        """
        tensors, metadata = scene_map.tensors("head")
        try:
            spec = HeadSpec(**metadata["head"])
            made_with = metadata["encoder"]
            origin = tensors.pop("origin").numpy()
            head = Head(spec, tensors["centers"].float(), self.config.head.fp32_output)
            head.load_state_dict({k: v.float() for k, v in tensors.items()})
        except (KeyError, TypeError, RuntimeError) as error:
            raise MapError(
                f"{scene_map.path} holds no scene coordinate head of this version ({error})."
            ) from error
        if made_with["name"] != self.config.encoder.name:
            raise MapError(
                f"{scene_map.path} was trained with the encoder '{made_with['name']}', not with "
                f"'{self.config.encoder.name}'. Leave estimator.encoder.name out, or train again."
            )
        # Files may hold what another program computed with the same network.
        from_file = {metadata.get("descriptor"), self.config.global_descriptor.name} == {
            "file", "r2former",
        }  # fmt: skip
        for key, ours in (
            ("descriptor", self.config.global_descriptor.name),
            ("resolution", self.config.image.resolution),
        ):
            if metadata[key] != ours and not (key == "descriptor" and from_file):
                raise MapError(
                    f"{scene_map.path} was trained with {key} {metadata[key]}, not {ours}. Leave the "
                    "option out, or train again."
                )
        encoder = build_encoder(self.config.encoder, runtime.device)
        if encoder.identity != made_with:
            raise MapError(
                f"{scene_map.path} was trained with other weights of the encoder '{encoder.name}'. "
                "Give those with estimator.encoder.weights=PATH, or train again."
            )
        descriptor = build_descriptor(self.config.global_descriptor)
        if self.config.global_descriptor.name == "vlad":
            descriptor.load_state(scene_map.tensors("global")[0])
        if descriptor.dimension + encoder.channels != spec.in_channels:
            raise MapError(
                f"{scene_map.path} expects {spec.in_channels - encoder.channels} global channels, "
                f"'{self.config.global_descriptor.name}' has {descriptor.dimension}."
            )
        self._use(encoder, descriptor, torch.device(runtime.device))
        self.origin = origin
        self.head = head.to(self.device).eval().requires_grad_(False)

    def _use(self, encoder: Encoder, descriptor: GlobalDescriptor, device: torch.device) -> None:
        self.encoder = encoder.to(device)
        self.descriptor = descriptor
        self.device = device
        self.dtype = autocast_dtype(self.config.train.precision, device.type)

    # ------------------------------------------------------------------------------ localization

    @torch.inference_mode()
    def _encode(self, view: View) -> LocalFeatures:
        assert self.encoder is not None
        return self.encoder.describe(view.grey.to(self.device))

    def estimate(self, query: Query) -> Correspondences:
        """See `Estimator.estimate`: one correspondence per cell of the encoder's map."""
        return self._estimate(query)

    def estimate_batch(self, queries: Sequence[Query]) -> list[Evidence]:
        """See `Estimator.estimate_batch`."""
        return [self._estimate(query) for query in queries]

    @torch.inference_mode()
    def _estimate(self, query: Query) -> Correspondences:
        if self.encoder is None or self.head is None or self.descriptor is None:
            raise MapError("scr_glace has no map yet: call load or fit first.")
        view = make_view(self.encoder, query.image, query.camera, self.config.image)
        features = self._encode(view)
        inputs = features.features.float()
        vector = self.descriptor.describe(query, features)
        if vector.numel():
            inputs = torch.cat([vector.expand(len(inputs), -1), inputs], -1)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            points = self.head(inputs)
        points3d = points.double().cpu().numpy() + self.origin
        points2d = view.original_pixels(features.points.cpu().numpy())
        evidence = Correspondences(points2d, points3d, grid_shape=features.grid_shape)
        finite = np.isfinite(points3d).all(-1) & np.isfinite(points2d).all(-1)
        if finite.all():
            return evidence
        return replace(
            evidence, points2d=points2d[finite], points3d=points3d[finite], grid_shape=None
        )


def head_tensors(
    head: Head, encoder: Encoder, config: GlaceConfig, origin: Float64Array
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What a map's `head.safetensors` holds: fp16 weights, fp32 centres, fp64 origin, metadata."""
    tensors = {
        key: value.detach().cpu() if key == "centers" else value.detach().cpu().half()
        for key, value in head.state_dict().items()
    }
    tensors["origin"] = torch.from_numpy(origin.copy())
    metadata = {
        "head": asdict(head.spec),
        "encoder": encoder.identity,
        "descriptor": config.global_descriptor.name,
        "resolution": config.image.resolution,
    }
    return tensors, metadata
