"""Localization for many clients: a bounded queue before a few workers. Knows nothing of HTTP."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from reloc_core.errors import DataError, InputError, did_you_mean
from reloc_core.io.cameras import fit_camera
from reloc_core.io.headers import MOST_SCANS, check_cost, jpeg_scans, parse_header
from reloc_core.io.images import decode_depth
from reloc_core.localizer import Localizer, intrinsics, load_query
from reloc_core.mapped import camera_of_mapping
from reloc_core.serving.limits import Limits, MemoryTrimmer, Metrics
from reloc_core.serving.sessions import RequestError, Sessions
from reloc_core.types import Camera, Localization, PosePrior

BATCH_IMAGES = 4
"""Images of the largest allowed size that the images of a batch may add up to."""

CameraOption = Camera | float | Literal["map"] | None
"""Intrinsics, a focal length in pixels, the camera of the mapping images, or none."""


@dataclass(frozen=True)
class Frame:
    """What a request asks.

    Attributes:
        data: content of a JPEG or PNG file.
        camera: intrinsics; None for the server's.
        name: of the image; comes back in the answer.
        sequence: the video that it is the next frame of, which is then tracked.
        timestamp: seconds.
        prior: what is known of the pose beforehand.
        depth: content of a PNG of 16 bits in millimetres.
    """

    data: bytes
    camera: CameraOption = None
    name: str = ""
    sequence: str | None = None
    timestamp: float | None = None
    prior: PosePrior | None = None
    depth: bytes | None = None


class LocalizationService:
    """Maps by name, and workers that localize in them.

    Args:
        localizers: by the name that clients use.
        limits: of requests.
        camera: of images that come without one.
    """

    def __init__(
        self, localizers: Mapping[str, Localizer], limits: Limits, camera: CameraOption
    ) -> None:
        limits.check()
        self.localizers, self.limits, self.camera = dict(localizers), limits, camera
        self.metrics = Metrics()
        self._memory = MemoryTrimmer()
        self.sessions = Sessions(limits.sessions, limits.session_seconds)
        self._pool = ThreadPoolExecutor(limits.workers, thread_name_prefix="localize")
        self._lock = threading.Lock()
        self._inside = self._working = 0
        self.closing = False

    @property
    def waiting(self) -> int:
        """Accepted requests that no worker has begun."""
        return self._inside - self._working

    @property
    def working(self) -> int:
        """Requests that are worked on."""
        return self._working

    def localizer(self, name: str | None) -> tuple[str, Localizer]:
        """A map by name; None for the only one.

        Raises:
            RequestError: there is no such map, or several and no name.
        """
        if name is None and len(self.localizers) == 1:
            name = next(iter(self.localizers))
        if name is None:
            raise RequestError(422, f"Say which map: map={'|'.join(sorted(self.localizers))}.")
        if name not in self.localizers:
            raise RequestError(
                404, f"There is no map '{name[:60]}'.{did_you_mean(name[:60], self.localizers)}"
            )
        return name, self.localizers[name]

    def check_image(self, data: bytes, what: str = "image") -> tuple[int, int]:
        """Width and height from the header, before anything is decoded.

        Raises:
            RequestError: no JPEG or PNG, or too large or too slow to decode.
        """
        header = parse_header(io.BytesIO(data))
        if header is None or header.kind not in ("JPEG", "PNG"):
            raise RequestError(
                415 if not data.startswith((b"\xff\xd8", b"\x89PNG")) else 422,
                f"The {what} is no JPEG or PNG file, or it is damaged.",
            )
        try:
            check_cost(header, data, f"The {what}", self.limits.megapixels)
        except DataError as error:
            raise RequestError(413, str(error)) from error
        return header.width, header.height

    def submit(self, name: str | None, frame: Frame) -> Future[dict[str, Any]]:
        """Queue an image.

        Args:
            name: of the map.
            frame: what is asked.

        Raises:
            RequestError: it is refused at once.
        """
        map_name, localizer = self.localizer(name)
        frame = self._checked(frame, localizer)
        return self._accept(self._localize, map_name, localizer, frame, time.perf_counter())

    def submit_batch(
        self, name: str | None, frames: Sequence[Frame]
    ) -> Future[list[dict[str, Any]]]:
        """Queue images that take one place together and are localized in their order.

        Returns:
            an answer for each, or `{"error": ...}` for one that is refused.

        Raises:
            RequestError: the whole is refused at once: too many pixels, busy, or no such map.
        """
        map_name, localizer = self.localizer(name)
        checked: list[Frame | RequestError] = []
        for frame in frames:
            try:
                checked.append(self._checked(frame, localizer))
            except RequestError as error:
                checked.append(error)
        self._check_sum([frame for frame in checked if isinstance(frame, Frame)])
        return self._accept(self._localize_all, map_name, localizer, checked, time.perf_counter())

    def _check_sum(self, frames: Sequence[Frame]) -> None:
        """Bound what a batch takes to decode as one image is bounded: its pixels, and its scans over them.

        Raises:
            RequestError: too much.
        """
        most = BATCH_IMAGES * self.limits.megapixels * 1e6
        pixels = scanned = 0
        for frame in frames:
            assert isinstance(frame.camera, Camera)
            size = frame.camera.width * frame.camera.height
            pixels, scanned = pixels + size, scanned + size * jpeg_scans(frame.data)
        if pixels > most or scanned > MOST_SCANS * most:
            raise RequestError(
                413,
                f"The images have {pixels / 1e6:.4g} megapixels together ({scanned / 1e6:.4g} with all "
                f"scans of JPEGs); {most / 1e6:.4g} ({MOST_SCANS * most / 1e6:.4g}) are allowed.",
            )

    def _checked(self, frame: Frame, localizer: Localizer) -> Frame:
        """The frame with its camera, after a look at the headers.

        Raises:
            RequestError: it is refused.
        """
        width, height = self.check_image(frame.data)
        if frame.depth is not None and self.check_image(frame.depth, "depth map") != (
            width, height,
        ):  # fmt: skip
            raise RequestError(422, "The depth map is of another size than the image.")
        return replace(frame, camera=self._camera(frame.camera, localizer, width, height))

    def _accept(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Queue work that leaves with `_leave`.

        Raises:
            RequestError: busy, or shutting down.
        """
        with self._lock:
            if self.closing:
                raise RequestError(503, "The server is shutting down.", 10)
            if self._inside >= self.limits.workers + self.limits.queue:
                raise RequestError(503, "The server is busy. Try again in a moment.", 1)
            self._inside += 1
        try:
            future = self._pool.submit(self._working_on, work, *arguments)
        except BaseException:
            self._leave()
            raise
        # One that is given up while it waits is never begun.
        future.add_done_callback(lambda done: self._leave() if done.cancelled() else None)
        return future

    def _working_on(self, work: Callable[..., Any], *arguments: Any) -> Any:
        with self._lock:
            self._working += 1
        try:
            return work(*arguments)
        except StopIteration as error:
            # A future that raises it would never be answered.
            raise RuntimeError("a component let StopIteration out") from error
        finally:
            self._memory.trim()
            with self._lock:
                self._inside -= 1
                self._working -= 1

    def _leave(self) -> None:
        with self._lock:
            self._inside -= 1

    def _camera(
        self, camera: CameraOption, localizer: Localizer, width: int, height: int
    ) -> Camera:
        camera = camera if camera is not None else self.camera
        if camera is None:
            raise RequestError(422, "The focal length is unknown: give focal=PIXELS.")
        try:
            if isinstance(camera, Camera):
                return fit_camera(camera, width, height)
            if camera == "map":
                mapped = intrinsics("map", localizer.map)
                found = (
                    camera_of_mapping(mapped, width, height) if isinstance(mapped, tuple) else None
                )
                if found is None:
                    raise RequestError(
                        422, f"No camera of the mapping images fits an image of {width}x{height}."
                    )
                return found
            return Camera.pinhole(camera, width, height)
        except InputError as error:
            raise RequestError(422, str(error)) from error

    def _localize_all(
        self,
        name: str,
        localizer: Localizer,
        frames: Sequence[Frame | RequestError],
        accepted: float,
    ) -> list[dict[str, Any]]:
        answers: list[dict[str, Any]] = []
        for frame in frames:
            try:
                if isinstance(frame, RequestError):
                    raise frame
                answers.append(self._localize(name, localizer, frame, accepted))
            except RequestError as error:
                answers.append({"error": str(error)})
        return answers

    def _localize(
        self, name: str, localizer: Localizer, frame: Frame, accepted: float
    ) -> dict[str, Any]:
        begin = time.perf_counter()
        assert isinstance(frame.camera, Camera)
        try:
            depth = None if frame.depth is None else decode_depth(frame.depth, "The depth map")
            query = load_query(frame.data, frame.camera, depth, frame.timestamp, name="The image")
        except (DataError, InputError) as error:
            text = str(error).replace(" Copy the file again or remove it.", "")
            raise RequestError(422, text) from error
        query = replace(query, name=frame.name, prior=frame.prior)
        if frame.sequence is None:
            try:
                found = localizer.localize_query(query)
            except InputError as error:
                raise RequestError(422, str(error)) from error
        else:
            with self.sessions.tracker(name, frame.sequence, localizer) as tracker:
                found = tracker.track_query(query)
        done = time.perf_counter()
        self.metrics.localized(name, found.status.value, done - accepted)
        unit = localizer.map.info.unit if localizer.map is not None else "metre"
        return answer(name, unit, found, begin - accepted, done - begin)

    def close(self) -> None:
        """Refuse new requests and finish those that were accepted."""
        with self._lock:
            self.closing = True
        self._pool.shutdown(wait=True)
        self.sessions.close()


def answer(
    name: str, unit: str, found: Localization, waited: float, seconds: float
) -> dict[str, Any]:
    """What a client gets."""
    pose, covariance = found.world_from_cam, found.covariance
    return {
        "map": name,
        "unit": unit,
        "name": found.name,
        "timestamp": found.timestamp,
        "status": found.status.value,
        "reason": found.reason,
        "note": found.note,
        "world_from_cam": pose.tolist() if found.localized and pose is not None else None,
        "covariance": covariance.tolist() if covariance is not None else None,
        "score": round(float(found.score), 6),
        "inliers": int(found.num_inliers),
        "camera": None if found.camera is None else asdict(found.camera),
        "seconds": {
            "waited": round(waited, 6),
            "total": round(seconds, 6),
            **{stage: round(value, 6) for stage, value in found.seconds.items()},
        },
    }
