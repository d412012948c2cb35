"""Options of a reconstruction, checked before anything is read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from reloc_core.datasets.config import CameraConfig
from reloc_core.datasets.convert import IMAGE_MODES
from reloc_core.datasets.images import check_camera_config
from reloc_core.errors import ConfigError, did_you_mean

CAMERAS = ("auto", "one", "each")
PAIRS = ("auto", "exhaustive", "sequential", "retrieval")
MAPPERS = ("incremental", "global")


@dataclass(frozen=True)
class ScaleOptions:
    """Where scale and axes of the world come from; at most one of them.

    Without any the unit is arbitrary and z points up, as the cameras were held on the whole.

    Attributes:
        gps: positions in EXIF: metres; x east, y north, z up from an origin that is stored.
        distance: [image, image, metres] between the two cameras.
        marker: metres of the side of printed ArUco markers that images show; the lowest number seen is
            the origin, with x along its upper edge, y up along its side and z out of it.
        dictionary: of the markers, as OpenCV names it without DICT_.
        depth: folder of depth images (16-bit PNG, millimetres, 0 for none) named as the images.
        poses: known poses of some images: a folder NAME.txt or NAME.pose.txt of 4x4 matrices
            world_from_cam in metres, or a COLMAP model.
    """

    gps: bool = False
    distance: Sequence[Any] | None = None
    marker: float | None = None
    dictionary: str = "4X4_50"
    depth: str | None = None
    poses: str | None = None

    def __post_init__(self) -> None:
        if self.kind is None:
            return
        if self.distance is not None:
            wrong = ConfigError(
                "scale.distance takes two image names and metres: scale.distance=[a.jpg,b.jpg,1.25]."
            )
            if isinstance(self.distance, str) or len(self.distance) != 3:
                raise wrong
            if not _positive(self.distance[2]) or self.distance[0] == self.distance[1]:
                raise wrong
        if self.marker is not None and not _positive(self.marker):
            raise ConfigError(
                f"scale.marker is the side in metres, such as 0.1, got {self.marker}."
            )

    @property
    def kind(self) -> str | None:
        """Name of the option that is given.

        Raises:
            ConfigError: there are several.
        """
        names = ("gps", "distance", "marker", "depth", "poses")
        given = [name for name in names if getattr(self, name) not in (None, False)]
        if len(given) > 1:
            raise ConfigError(
                f"scale.{given[0]} and scale.{given[1]} both say what the scale is: choose one."
            )
        return given[0] if given else None


@dataclass(frozen=True)
class ReconstructOptions:
    """What `reloc data reconstruct` is asked for.

    Attributes:
        images: folder, glob pattern, video or bag.
        output: workspace to write.
        add: add the images to the finished workspace `output`.
        overwrite: replace it.
        topic: of a bag with several.
        video: whether the images of a folder are consecutive frames; None looks at them.
        motion: share of the image width that the picture moves by between key frames.
        most: key frames of a video.
        camera: known intrinsics; with all options at their defaults they are found.
        cameras: "one" for all images, one for "each", or "auto": one for each size, lens and zoom.
        features: per image.
        side: images are shrunk to this length of their longer side before features are sought.
        pairs: which images are matched with which.
        exhaustive: most images for which "auto" matches all pairs.
        neighbours: frames of a video that each is matched with, before and after it.
        similar: images by look that each is matched with.
        mapper: "incremental", or "global" for many images.
        scale: and axes.
        link: "copy", "hardlink" or "symlink" photos.
        threads: 0 for all cores.
        seed: of everything random.
    """

    images: str
    output: str
    add: bool = False
    overwrite: bool = False
    topic: str | None = None
    video: bool | None = None
    motion: float = 0.06
    most: int = 300
    camera: CameraConfig = field(default_factory=CameraConfig)
    cameras: str = "auto"
    features: int = 8192
    side: int = 1600
    pairs: str = "auto"
    exhaustive: int = 40
    neighbours: int = 8
    similar: int = 15
    mapper: str = "incremental"
    scale: ScaleOptions = field(default_factory=ScaleOptions)
    link: str = "copy"
    threads: int = 0
    seed: int = 42

    def __post_init__(self) -> None:
        for name, known in (
            ("cameras", CAMERAS), ("pairs", PAIRS), ("mapper", MAPPERS), ("link", IMAGE_MODES),
        ):  # fmt: skip
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"There is no {name}={getattr(self, name)}.{did_you_mean(getattr(self, name), known)}"
                )
        for name, least in (
            ("most", 3), ("features", 100), ("side", 100), ("exhaustive", 0), ("neighbours", 1),
            ("similar", 1), ("threads", 0), ("seed", 0),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        if not 0 < self.motion <= 1:
            raise ConfigError(f"motion is a share of the image width, 0 to 1, got {self.motion}.")
        if self.add and self.overwrite:
            raise ConfigError(
                "add=true keeps what is there and overwrite=true does not: choose one."
            )
        check_camera_config(self.camera)
        if self.camera.from_map:
            raise ConfigError("camera.from_map needs a map; there is none yet. Leave it out.")

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> ReconstructOptions:
        """The options of a verb's configuration; other keys are left alone."""
        known = {f.name for f in fields(cls)}
        values = {key: value for key, value in config.items() if key in known}
        values["camera"] = CameraConfig(**values.get("camera", {}))
        values["scale"] = ScaleOptions(**values.get("scale", {}))
        return cls(**values)


def _positive(value: object) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and value > 0
    )
