"""COLMAP's database of cameras, images, features and matches, which is kept beside the model.

Every image and every pair of images is written in a transaction of its own, so that a run that was killed
goes on where it stopped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycolmap

from reloc_core.datasets.config import CameraConfig
from reloc_core.datasets.images import camera_from_config
from reloc_core.errors import DataError
from reloc_core.io.cameras import corner_params, fit_camera
from reloc_core.io.images import exif_focal, read_image
from reloc_core.reconstruction.pairs import Pair
from reloc_core.reconstruction.photos import Photo
from reloc_core.reconstruction.worker import Remote
from reloc_core.types import Camera, ImageArray

_GUESS_DEGREES = 60  # field of view along the longer side where nothing is known
_SURE = 0.06  # standard deviation of EXIF's focal length that counts as knowing it
_BATCH = 24  # pairs that are matched between two reports of progress
_VERIFIED = 15  # inliers of a pair that counts as matched

pycolmap.logging.minloglevel = 1


class Database:
    """The database of a workspace.

    Args:
        path: created where it is missing.
        threads: of matching.
        seed: of the geometric verification.
    """

    def __init__(self, path: Path, threads: int, seed: int) -> None:
        self.path, self._threads, self._seed = path, threads, seed
        self._db = pycolmap.Database.open(str(path))

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def ids(self) -> dict[str, int]:
        """Number of each image by its name."""
        return {image.name: image.image_id for image in self._db.read_all_images()}

    def cameras_of(self, names: Sequence[str]) -> dict[str, int]:
        """Number of the camera of each image that is there."""
        found = {image.name: image.camera_id for image in self._db.read_all_images()}
        return {name: found[name] for name in names if name in found}

    def add_camera(self, camera: Camera, sure: bool) -> int:
        """Write a camera; `sure` says that its focal length is known."""
        entry = pycolmap.Camera(
            model=camera.model, width=camera.width, height=camera.height,
            params=corner_params(camera), has_prior_focal_length=sure,
        )  # fmt: skip
        number = int(self._db.write_camera(entry))
        rig = pycolmap.Rig()
        rig.add_ref_sensor(_sensor(number))
        self._db.write_rig(rig)
        return number

    def add_image(self, name: str, camera: int, keypoints: np.ndarray, rows: ImageArray) -> int:
        """Write an image with its features, at once or not at all."""
        rig: Any = self._db.read_rig_with_sensor(_sensor(camera))
        with pycolmap.DatabaseTransaction(self._db):
            number = int(self._db.write_image(pycolmap.Image(name=name, camera_id=camera)))
            frame = pycolmap.Frame()
            frame.rig_id = rig.rig_id
            frame.add_data_id(pycolmap.data_t(_sensor(camera), number))
            self._db.write_frame(frame)
            self._db.write_keypoints(number, keypoints)
            kind = pycolmap.FeatureExtractorType.SIFT
            self._db.write_descriptors(number, pycolmap.FeatureDescriptors(kind, rows))
        return number

    def features(self, number: int) -> int:
        """How many an image has."""
        return int(self._db.num_keypoints_for_image(number))

    def descriptors(self, number: int) -> ImageArray:
        """(K, 128) uint8."""
        return np.asarray(self._db.read_descriptors(number).data, np.uint8)

    def match(self, pairs: Sequence[Pair], names: Mapping[int, str], run: Remote) -> None:
        """Match and verify pairs of image numbers that have not been.

        Args:
            pairs: numbers of images.
            names: of the images.
            run: hears of the progress.
        """
        open_pairs = [pair for pair in pairs if not self._db.exists_two_view_geometry(*pair)]
        if not open_pairs:
            return
        matching = pycolmap.FeatureMatchingOptions()
        matching.num_threads, matching.use_gpu = self._threads, False
        checking = pycolmap.TwoViewGeometryOptions()
        checking.ransac.random_seed = self._seed
        listed = pycolmap.ImportedPairingOptions()
        with run.progress("Matching images", len(open_pairs)) as bar:
            for start in range(0, len(open_pairs), _BATCH):
                batch = open_pairs[start : start + _BATCH]
                file = self.path.with_name("pairs.txt")
                file.write_text("".join(f"{names[a]} {names[b]}\n" for a, b in batch), "utf-8")
                listed.match_list_path = str(file)
                pycolmap.match_image_pairs(
                    str(self.path), matching, listed, checking, device=pycolmap.Device.cpu
                )
                file.unlink()
                bar.advance(len(batch))

    def matched(self) -> dict[Pair, int]:
        """Inliers of the verified pairs of image numbers."""
        numbers, geometries = self._db.read_two_view_geometries()
        counts = {
            tuple(sorted(pycolmap.pair_id_to_image_pair(number))): len(geometry.inlier_matches)
            for number, geometry in zip(numbers, geometries, strict=True)
        }
        return {(a, b): count for (a, b), count in counts.items() if count >= _VERIFIED}


def extract(
    database: Database,
    photos: Sequence[Photo],
    folder: Path,
    cameras: Mapping[str, int],
    features: int,
    side: int,
    run: Remote,
) -> None:
    """Find features of the photos that the database lacks.

    Args:
        database: gets them.
        photos: that take part.
        folder: of the images.
        cameras: number of the camera by the photos' `lens`.
        features: most of an image.
        side: longest side in pixels that features are sought at.
        run: hears of the progress.
    """
    have = database.ids()
    todo = [photo for photo in photos if photo.name not in have]
    if not todo:
        return
    with run.progress("Finding features", len(todo)) as bar:
        for photo in todo:
            keypoints, rows = sift(read_image(folder / photo.name), features, side)
            database.add_image(photo.name, cameras[photo.lens], keypoints, rows)
            bar.advance(1, features=str(len(rows)))


def sift(image: ImageArray, count: int, side: int) -> tuple[np.ndarray, ImageArray]:
    """Key points (K, 4) float32 (x, y, scale, angle; COLMAP's pixels) and square-root descriptors.

    Returns:
        key points, and descriptors (K, 128) uint8 as COLMAP stores them (512 times unit vectors).
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    shrink = min(side / max(grey.shape), 1.0)
    if shrink < 1:
        grey = cv2.resize(grey, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
    scale = np.array([image.shape[1] / grey.shape[1], image.shape[0] / grey.shape[0]])
    options = pycolmap.FeatureExtractionOptions()
    options.sift.max_num_features = count
    options.num_threads, options.use_gpu = 1, False
    extractor = pycolmap.FeatureExtractor.create(options, pycolmap.Device.cpu)
    found, descriptors = extractor.extract_from_uint8_array(np.ascontiguousarray(grey))
    if not len(found):
        return np.zeros((0, 4), np.float32), np.zeros((0, 128), np.uint8)
    keypoints = np.asarray(pycolmap.keypoints_to_matrix(found), np.float32)
    keypoints[:, :2] *= scale
    return keypoints, np.asarray(descriptors.data, np.uint8)


def camera_of(
    photo: Photo, folder: Path, config: CameraConfig, calibrated: Camera | None
) -> tuple[Camera, bool, str]:
    """The camera that a photo starts with, whether its focal length is known, and whence, in words.

    Args:
        photo: the first of its lens.
        folder: of the images.
        config: what the user knows.
        calibrated: what a bag knows.

    Raises:
        DataError: the calibration is for another shape.
    """
    size = (photo.width, photo.height)
    if config.params is not None:
        return camera_from_config(config, *size), True, "as given"
    if config.focal is not None:
        return _radial(camera_from_config(config, *size).fx, size), True, "as given"
    if calibrated is not None:
        try:
            return fit_camera(calibrated, *size), True, "the bag's calibration"
        except ValueError as error:
            raise DataError(f"The calibration of the bag does not fit: {error}") from None
    exif = exif_focal(folder / photo.name)
    if exif is not None:
        return _radial(exif.focal, size), exif.sigma <= _SURE, f"EXIF: {exif.source}"
    focal = max(size) / 2 / math.tan(math.radians(_GUESS_DEGREES / 2))
    return _radial(focal, size), False, f"a guess: {_GUESS_DEGREES} degrees"


def _radial(focal: float, size: tuple[int, int]) -> Camera:
    width, height = size
    return Camera("SIMPLE_RADIAL", *size, (focal, (width - 1) / 2, (height - 1) / 2, 0.0))


def _sensor(camera: int) -> Any:
    return pycolmap.sensor_t(pycolmap.SensorType.CAMERA, camera)
