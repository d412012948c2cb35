"""What the parts of a reconstruction know of its images."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from reloc_core.types import Camera


@dataclass(frozen=True)
class Photo:
    """One image of the reconstruction.

    Attributes:
        name: below `images/`.
        width: of the stored pixels; 0 where it could not be read.
        height: of the stored pixels.
        lens: what images of one camera share.
        sharpness: variance of the Laplacian of the small grey picture.
        orientation: tag of EXIF.
        timestamp: seconds, of a frame.
        problem: why it takes no part; "" if it does.
        brightness: mean grey.
    """

    name: str
    width: int = 0
    height: int = 0
    lens: str = ""
    sharpness: float = 0.0
    orientation: int = 1
    timestamp: float | None = None
    problem: str = ""
    brightness: float = 255.0

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Source:
    """What was found under `images=`.

    Attributes:
        photos: in their order.
        video: whether they are frames of one video.
        notes: what a user should know.
        camera: calibration that a bag holds.
    """

    photos: tuple[Photo, ...]
    video: bool
    notes: tuple[str, ...] = ()
    camera: Camera | None = None
