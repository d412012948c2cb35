"""The estimator `scr_glace`: image to 2D-3D correspondences by scene coordinate regression."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reloc_core.errors import MapError
from reloc_core.geometry import inverse, project, transform
from reloc_core.interfaces import Dataset, Estimator, Run, Runtime
from reloc_core.maps import Map
from reloc_core.training.processes import join
from reloc_core.types import Correspondences, Float64Array, Query, ScenePoints
from scr_glace.config import GlaceConfig, check
from scr_glace.networks.encoder import Encoder, LocalFeatures, build_encoder
from scr_glace.networks.global_descriptor import GlobalDescriptor, build_descriptor
from scr_glace.networks.head import Head, HeadSpec, head_inputs
from scr_glace.networks.precision import autocast_dtype
from scr_glace.signals import agreement, neighbours, smoothness
from scr_glace.training.mapper import Mapper, Scene
from scr_glace.views import View, make_view

# Points for viewers: at most so many images, points of each, and pixels of reprojection error.
_SHOWN_IMAGES, _SHOWN_PER_IMAGE, _SHOWN_ERROR = 50, 100, 1.0


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
        self.scene: Scene | None = None
        self.device = torch.device("cpu")
        self.dtype = torch.float32

    # ------------------------------------------------------------------------------ mapping

    def fit(self, dataset: Dataset, run: Run) -> None:
        """See `Estimator.fit`.

        Raises:
            DataError: too few images with poses, or too little that they share.
            ConfigError: weights are missing, or the buffer is smaller than a batch.
            RelocError: the training diverged.
        """
        encoder = build_encoder(self.config.encoder, run.runtime.device)
        descriptor = build_descriptor(self.config.global_descriptor)
        with join(run.runtime.device) as processes:
            self._use(encoder, descriptor, processes.device)
            mapper = Mapper(self.config, encoder, descriptor, processes, dataset, run)
            self.scene = mapper.train()
            if processes.rank == 0:
                self.scene = rounded(self.scene)
                self.scene = self._with_points(dataset, mapper.frames)
                self.save(run)

    def _with_points(self, dataset: Dataset, frames: np.ndarray) -> Scene:
        """The scene with the points that viewers show.

        As ACE's point cloud (glace sheet, 4.7): regressed points of mapping images whose reprojection is
        right within a pixel, here of the stored image; some of every image, in the colours of its cells.
        """
        assert self.scene is not None
        chosen = frames[
            np.linspace(0, len(frames) - 1, min(len(frames), _SHOWN_IMAGES)).astype(int)
        ]
        points, colors = [], []
        for query in (dataset[int(i)] for i in chosen):
            assert query.world_from_cam is not None
            found = self.estimate(query)
            pixels, front = project(
                query.camera, transform(inverse(query.world_from_cam), found.points3d)
            )
            error = np.linalg.norm(pixels - found.points2d, axis=-1)
            good = np.flatnonzero(front & (error < _SHOWN_ERROR))
            good = good[np.linspace(0, len(good) - 1, min(len(good), _SHOWN_PER_IMAGE)).astype(int)]
            last = np.array([query.camera.width, query.camera.height]) - 1
            column, row = np.clip(np.rint(found.points2d[good]), 0, last).astype(int).T
            points.append(found.points3d[good] - self.scene.origin)
            colors.append(query.image[row, column])
        return replace(
            self.scene,
            points=torch.from_numpy(np.concatenate(points)).float(),
            colors=torch.from_numpy(np.concatenate(colors)),
        )

    def scene_points(self) -> ScenePoints | None:
        """See `Estimator.scene_points`: some regressed points; None for maps made without them."""
        if self.scene is None or not len(self.scene.points):
            return None
        points = self.scene.points.double().numpy() + self.scene.origin
        return ScenePoints(points, self.scene.colors.numpy())

    # ------------------------------------------------------------------------------ maps

    def save(self, run: Run) -> None:
        """Write the map: weights in fp16, positions in fp32 and fp64."""
        assert self.scene is not None
        assert self.encoder is not None
        assert self.descriptor is not None
        run.map.save("head", *scene_tensors(self.scene, self.encoder, self.config))
        state = self.descriptor.state()
        if state:
            run.map.save("global", state, {"name": self.config.global_descriptor.name})
        if self.scene.descriptors.numel():
            run.map.save("encodings", {"encodings": self.scene.descriptors.half()}, {})
        if len(self.scene.points):
            shown = {"points": self.scene.points, "colors": self.scene.colors}
            run.map.save("points", shown, {})
        parameters = sum(p.numel() for p in self.scene.head.parameters())
        run.map.details.update(
            parameters=parameters, encoder=self.encoder.name, **self.scene.details
        )

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
            unit = float(tensors.pop("unit", torch.ones(1)))
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
        head = head.to(self.device).eval().requires_grad_(False)
        side = int(metadata.get("side", self.config.image.resolution))
        image = replace(self.config.image, resolution=side)
        encodings = torch.zeros(0, descriptor.dimension)
        if metadata.get("encodings"):
            encodings = scene_map.tensors("encodings")[0]["encodings"].float()
        shown: dict[str, Tensor] = {}
        if metadata.get("points"):  # not in maps of earlier versions
            shown = scene_map.tensors("points")[0]
        self.scene = Scene(head, origin, unit, image, encodings.to(self.device), {}, **shown)

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

    @torch.inference_mode()
    def estimate(self, query: Query) -> Correspondences:
        """See `Estimator.estimate`: one correspondence per cell of the map or key point."""
        if self.encoder is None or self.scene is None or self.descriptor is None:
            raise MapError("scr_glace has no map yet: call load or fit first.")
        view = make_view(self.encoder, query.image, query.camera, self.scene.image)
        features = self._encode(view)
        points2d = view.original_pixels(features.points.cpu().numpy())
        if not len(points2d):
            return Correspondences(
                points2d, np.zeros((0, 3)), reason="the image shows nothing that can be recognised"
            )
        vector = self.descriptor.describe(query, features)
        points3d = self._regress(features, vector)
        finite = np.isfinite(points3d).all(-1) & np.isfinite(points2d).all(-1)
        signals = self._signals(view, features, vector, points3d, finite)
        grid = features.grid_shape if finite.all() else None
        return Correspondences(
            points2d[finite], points3d[finite] * self.scene.unit + self.scene.origin,
            grid_shape=grid, redundancy=self.config.redundancy, signals=signals,
        )  # fmt: skip

    def _regress(self, features: LocalFeatures, vector: Tensor) -> Float64Array:
        """Points (N, 3) in the head's world, of features with a global encoding (D,)."""
        assert self.scene is not None
        inputs = head_inputs(vector, features.features, self.config.global_descriptor.scale)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            points = self.scene.head(inputs)
        result: Float64Array = points.double().cpu().numpy()
        return result

    def _signals(
        self, view: View, features: LocalFeatures, vector: Tensor, points: Float64Array,
        finite: np.ndarray,
    ) -> dict[str, float]:  # fmt: skip
        assert self.scene is not None
        pixels = features.points.cpu().double().numpy()
        grid = features.grid_shape if finite.all() else None
        kept = points[finite]
        distance = self._distance(kept)
        signals = {
            "finite": float(finite.mean()),
            "smoothness": smoothness(
                pixels[finite], kept, neighbours(pixels[finite], grid), view.focal[0], distance
            ),
        }
        table = self.scene.descriptors
        if table.numel() and self.config.alike:
            likeness, rows = (table @ vector).topk(min(self.config.alike, len(table)))
            signals["likeness"] = float(likeness[0])
            others = np.stack([self._regress(features, table[row])[finite] for row in rows])
            signals["agreement"] = agreement(kept, others, distance)
        return signals

    def _distance(self, points: Float64Array) -> float:
        """Typical distance of points to a camera, in the head's unit."""
        assert self.scene is not None
        if self.config.points.enabled:
            return 1.0
        anchor = self.scene.head.centers.double().mean(0).cpu().numpy()
        return float(np.median(np.linalg.norm(points - anchor, axis=1))) if len(points) else 1.0


def rounded(scene: Scene) -> Scene:
    """The scene as its map will hold it, so that whoever trained it gets the answers of the map."""
    with torch.no_grad():
        for key, value in scene.head.state_dict().items():
            if key != "centers":
                value.copy_(value.half())
    return replace(scene, descriptors=scene.descriptors.half().float())


def scene_tensors(
    scene: Scene, encoder: Encoder, config: GlaceConfig
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What a map's `head.safetensors` holds: fp16 weights, fp32 centres, fp64 origin, metadata."""
    tensors = {
        key: value.detach().cpu() if key == "centers" else value.detach().cpu().half()
        for key, value in scene.head.state_dict().items()
    }
    tensors["origin"] = torch.from_numpy(scene.origin.copy())
    tensors["unit"] = torch.tensor([scene.unit], dtype=torch.float64)
    metadata = {
        "head": asdict(scene.head.spec),
        "encoder": encoder.identity,
        "descriptor": config.global_descriptor.name,
        "resolution": config.image.resolution,
        "side": scene.image.resolution,
        "encodings": len(scene.descriptors) if scene.descriptors.numel() else 0,
        "points": len(scene.points),
    }
    return tensors, metadata
