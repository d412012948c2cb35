"""What a map of `gsplat_loc` holds, written by the estimator and read by the refiner too."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gsplat_loc.field.gaussians import Gaussians, checked
from reloc_core.errors import MapError
from reloc_core.interfaces import Run
from reloc_core.maps import Map
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
    """

    points: Tensor
    descriptors: Tensor
    views: Tensor
    agreement: Tensor

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
    """

    gaussians: Gaussians
    origin: Float64Array
    background: Tensor
    descriptors: Descriptors | None
    anchors: Anchors
    extent: float

    def save(self, run: Run) -> None:
        """Write the map's files."""
        metadata = {"extractor": EXTRACTOR, "channels": CHANNELS, "extent": self.extent}
        run.map.save(
            "field",
            {
                **self.gaussians.tensors(),
                "origin": torch.from_numpy(self.origin.copy()),
                "background": self.background,
            },
            metadata,
        )
        anchors = self.anchors
        run.map.save(
            "anchors",
            {"points": anchors.points, "descriptors": anchors.descriptors.half(),
             "views": anchors.views, "agreement": anchors.agreement},
            metadata,
        )  # fmt: skip
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
        anchors = Anchors(
            kept["points"].float().to(device),
            kept["descriptors"].float().to(device),
            kept["views"],
            kept["agreement"],
        )
    except KeyError as error:
        raise MapError(f"{source} lacks {error}. Train it again.") from None
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
    )


def _check_rows(source: str, what: str, table: Tensor, count: int) -> None:
    if tuple(table.shape) != (count, CHANNELS):
        raise MapError(
            f"{source}: the descriptors of {what} have shape {tuple(table.shape)}, expected "
            f"({count}, {CHANNELS}): the map was made for another extractor. Train it again."
        )
    if not torch.isfinite(table).all():
        raise MapError(f"{source}: descriptors of {what} are not finite. Train it again.")
