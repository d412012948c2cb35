"""What a map keeps of the frames that it was built from: their poses and cameras.

They serve reports and viewers, and queries that were taken with the camera of the mapping images.
Positions are kept in double precision: coordinates such as UTM's have millions of metres.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from reloc_core.errors import InputError, MapError
from reloc_core.maps import Map, MapWriter
from reloc_core.types import Camera, Float64Array, Frame

FRAMES = "frames"
"""Name of the file in a map."""
UNVERIFIED_SIGMA = 0.4
"""Standard deviation of the focal length, over it, of a camera of which only its numbers are known."""
_SAME_SHAPE = 0.01
_SAME_FOCAL, _NEIGHBOURS = 0.01, 0.1


@dataclass(frozen=True)
class MappedFrames:
    """The frames that a map was built from.

    Attributes:
        world_from_cam: (N, 4, 4).
        cameras: (N,) their intrinsics; empty for maps that do not know them.
    """

    world_from_cam: Float64Array
    cameras: tuple[Camera, ...] = ()


def save_mapped_frames(
    writer: MapWriter, frames: Sequence[Frame], details: Mapping[str, Any] | None = None
) -> None:
    """Write the posed frames among `frames`, and details of the map that go with them, into a map."""
    posed = [(f.world_from_cam, f.camera) for f in frames if f.world_from_cam is not None]
    poses = np.array([pose for pose, _ in posed], np.float64).reshape(-1, 4, 4)
    cameras = list(dict.fromkeys(camera for _, camera in posed))
    number = {camera: i for i, camera in enumerate(cameras)}
    writer.save(
        FRAMES,
        {
            "world_from_cam": np.ascontiguousarray(poses[:, :3]),
            "camera": np.array([number[camera] for _, camera in posed], np.int32),
        },
        {
            "cameras": [asdict(camera) for camera in cameras],
            "details": dict(details or {}),
        },
    )


def mapped_frames(scene_map: Map) -> MappedFrames:
    """The frames that a map was built from; none for maps that do not keep them."""
    try:
        tensors, metadata = scene_map.tensors(FRAMES, "np")
        poses = np.tile(np.eye(4), (len(tensors["world_from_cam"]), 1, 1))
        poses[:, :3] = tensors["world_from_cam"]
        cameras = [camera_from_dict(entry) for entry in metadata.get("cameras", ())]
        # Maps of earlier versions know no cameras.
        numbers = tensors["camera"] if cameras else ()
        return MappedFrames(poses, tuple(cameras[i] for i in numbers))
    except (MapError, InputError, KeyError, TypeError, ValueError, IndexError):
        return MappedFrames(np.zeros((0, 4, 4)))


def camera_from_dict(entry: Any) -> Camera:
    """The inverse of `dataclasses.asdict` for a camera.

    Raises:
        InputError, KeyError, TypeError, ValueError: it is none.
    """
    params = tuple(float(p) for p in entry["params"])
    size = (int(entry["width"]), int(entry["height"]))
    return Camera(str(entry["model"]), *size, params, float(entry.get("focal_sigma", 0.0)))


def camera_of_mapping(cameras: Sequence[Camera], width: int, height: int) -> Camera | None:
    """The camera of the mapping images for an image of the given size, None where none fits.

    Of several it is the one that most images have. Where they disagree, as after a reconstruction with
    intrinsics per photo, their spread is the uncertainty of the focal length.

    Args:
        cameras: of the mapping images; see `MappedFrames`.
        width: of the image in pixels.
        height: of the image in pixels.
    """
    shape = width / height
    fitting = [c for c in cameras if abs(c.width / c.height / shape - 1) <= 0.01]
    if not fitting:
        return None
    scaled = {camera: camera.scaled(width, height) for camera in set(fitting)}
    best = max(scaled, key=fitting.count)
    focals = np.array([scaled[camera].fx for camera in fitting])
    spread = float(focals.std() / scaled[best].fx)
    sigma = min(max(best.focal_sigma, spread), 1.0)
    found = scaled[best]
    return Camera(found.model, width, height, found.params, sigma)


class FamiliarCameras:
    """Tells the cameras of the mapping images, at any scale or turned, from one that nobody verified.

    Poses of mapping images are checked by all the others; numbers that come with a query are not, and over
    a flat scene a pose makes up for any focal length.

    Args:
        cameras: of the mapping images; see `MappedFrames`.
    """

    def __init__(self, cameras: Sequence[Camera]) -> None:
        shapes = {(c.width / c.height, c.fx / c.width) for c in cameras}
        shapes |= {(c.height / c.width, c.fy / c.height) for c in cameras}
        # (S, 2) width over height, focal length over width; by focal length.
        self._shapes = np.array(sorted(shapes, key=lambda s: s[1]), np.float64).reshape(-1, 2)

    def stated(self, camera: Camera) -> Camera:
        """A query's camera with the uncertainty that it deserves if it states none.

        It is familiar if a mapped one has its shape and focal length within 1 %, or, as where every photo
        has a focal length of its own, if it lies between two that differ by less than 10 %.
        """
        if camera.focal_sigma > 0 or camera.is_fisheye or not len(self._shapes):
            return camera
        shape = camera.width / camera.height
        alike = np.abs(self._shapes[:, 0] / shape - 1) <= _SAME_SHAPE
        focals = self._shapes[alike, 1] / (camera.fx / camera.width)
        if len(focals):
            above = int(np.searchsorted(focals, 1.0))
            if np.abs(focals - 1).min() <= _SAME_FOCAL or (
                0 < above < len(focals) and focals[above] / focals[above - 1] <= 1 + _NEIGHBOURS
            ):
                return camera
        return replace(camera, focal_sigma=UNVERIFIED_SIGMA)
