"""What a map of `gsplat_loc` holds, written by the estimator and read by the refiner too."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from gsplat_loc.field.gaussians import Gaussians, checked
from gsplat_loc.field.render import Placement
from reloc_core.errors import MapError
from reloc_core.interfaces import Run
from reloc_core.maps import Map
from reloc_core.rendering.types import NEAR
from reloc_core.types import Float64Array

EXTRACTOR = "xfeat"
CHANNELS = 64


@dataclass(frozen=True)
class Anchors:
    """What queries are matched with.

    Attributes:
        points: (A, 3) float32, field coordinates.
        descriptors: (A, C) float32 unit vectors.
        views: (A,) int32 images that observe each.
        agreement: (A,) float32 length of the mean of their unit descriptors, in 0..1.
        colors: (A, 3) uint8.
        images: (A, 8) int32 numbers of mapping images that observe each, -1 where there are fewer.
    """

    points: Tensor
    descriptors: Tensor
    views: Tensor
    agreement: Tensor
    colors: Tensor
    images: Tensor

    def __len__(self) -> int:
        return len(self.points)


@dataclass(frozen=True)
class Descriptors:
    """Descriptors of N Gaussians.

    Attributes:
        features: (N, 64) float16 unit vectors; zero where a Gaussian was never seen.
        agreement: (N,) float16 length of the mean of the unit descriptors, 1 where all agree.
        views: (N,) int32 images that saw it.
    """

    features: Tensor
    agreement: Tensor
    views: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """By name, for a file."""
        return dict(vars(self))


@dataclass(frozen=True)
class FieldMap:
    """A field with what is matched.

    Attributes:
        gaussians: relative to `origin`.
        origin: (3,) in the world.
        background: (3,) colour behind the field.
        descriptors: of the Gaussians, or None.
        anchors: surface points with descriptors.
        extent: of the mapping cameras, scene units.
        resolution: shorter side of the images whose key points became anchors, and of queries.
        keypoints: that a mapping image gave at most.
        error_px: displacement of what the field shows between mapping images, per axis, in pixels of an
            image whose shorter side has 480; 0 where it was not measured.
        near: depth from which Gaussians are drawn, scene units.
        described: shorter side of the images that `descriptors` are from.
    """

    gaussians: Gaussians
    origin: Float64Array
    background: Tensor
    descriptors: Descriptors | None
    anchors: Anchors
    extent: float
    resolution: int = 480
    keypoints: int = 768
    error_px: float = 0.0
    near: float = NEAR
    described: int = 480

    def placement(self, threads: int) -> Placement:
        """How it is rendered."""
        return Placement(self.origin, self.background, self.near, threads)

    def save(self, run: Run) -> None:
        """Write the map's files."""
        metadata = {"extractor": EXTRACTOR, "channels": CHANNELS, "extent": self.extent,
                    "resolution": self.resolution, "keypoints": self.keypoints,
                    "error_px": self.error_px, "near": self.near,
                    "described": self.described}  # fmt: skip
        run.map.save(
            "field",
            {
                **self.gaussians.tensors(),
                "origin": torch.from_numpy(self.origin.copy()),
                "background": self.background,
            },
            metadata,
        )
        anchors = {**vars(self.anchors), "descriptors": self.anchors.descriptors.half()}
        run.map.save("anchors", anchors, metadata)
        if self.descriptors is not None:
            run.map.save("features", self.descriptors.tensors(), metadata)


def load_field(scene_map: Map, device: str) -> FieldMap:
    """Read a map.

    Raises:
        MapError: incomplete, with values that are not finite, or for another extractor.
    """
    tensors, metadata = scene_map.tensors("field")
    source = str(scene_map.path)
    if metadata.get("extractor") != EXTRACTOR or metadata.get("channels") != CHANNELS:
        raise MapError(
            f"{source} carries {metadata.get('channels')} channels of '{metadata.get('extractor')}', "
            f"this version matches {CHANNELS} channels of '{EXTRACTOR}'. Train the map again."
        )
    for name in ("origin", "background"):
        if name not in tensors:
            raise MapError(f"{source} lacks '{name}'. Train it again.")
    gaussians = checked(tensors, source)
    kept, _ = scene_map.tensors("anchors")
    try:
        values = {f.name: kept[f.name] for f in fields(Anchors)}
    except KeyError as error:
        raise MapError(f"{source} lacks {error} of anchors. Train it again.") from None
    for name in ("points", "descriptors"):
        values[name] = values[name].float().to(device)
    anchors = Anchors(**values)
    _check_rows(source, "anchors", anchors.descriptors, len(anchors))
    descriptors = None
    if (scene_map.path / "features.safetensors").is_file():
        found, _ = scene_map.tensors("features")
        try:
            descriptors = Descriptors(**{k: v.to(device) for k, v in found.items()})
        except TypeError:
            raise MapError(
                f"{source}/features.safetensors lacks tensors. Train it again."
            ) from None
        _check_rows(source, "features", descriptors.features, len(gaussians))
    return FieldMap(
        gaussians.to(device),
        tensors["origin"].double().numpy(),
        tensors["background"].to(device),
        descriptors,
        anchors,
        float(metadata.get("extent", 1.0)),
        int(metadata.get("resolution", 480)),
        int(metadata.get("keypoints", 768)),
        float(metadata.get("error_px", 0.0)),
        float(metadata.get("near", NEAR)),
        int(metadata.get("described", 480)),
    )


def _check_rows(source: str, what: str, table: Tensor, count: int) -> None:
    if tuple(table.shape) != (count, CHANNELS):
        raise MapError(
            f"{source}: the descriptors of {what} have shape {tuple(table.shape)}, expected "
            f"({count}, {CHANNELS}): the map was made for another extractor. Train it again."
        )
    if not torch.isfinite(table).all():
        raise MapError(f"{source}: descriptors of {what} are not finite. Train it again.")
