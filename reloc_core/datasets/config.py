"""Configurations of the dataset components. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MISSING = "???"
"""OmegaConf's mark of a value that the user must give."""
UNITS = ("scene unit", "metre")


@dataclass
class FileConfig:
    """Options that all datasets of image files have.

    Attributes:
        root: where they lie; each dataset says what it looks for there.
        split: "train", "test", or "all" where the format has no folders for them.
        frames: Python slice of the split's images in sorted order, such as "0:200"; "" takes all.
        frame_step: keep every n-th image (after `frames`).
        max_frames: keep at most so many images, evenly spread (after `frame_step`).
    """

    root: str = MISSING
    split: str = "train"
    frames: str = ""
    frame_step: int = 1
    max_frames: int | None = None


@dataclass
class ReconstructedConfig(FileConfig):
    """Options of formats that need not say which images are for testing, or of a video, or how large.

    Attributes:
        holdout: every n-th image in sorted order, from the first, is the test split where the format says
            nothing else; 0 puts all images into both.
        unit: of the poses: "scene unit" where the scale is arbitrary, "metre" where it is not.
        undistort: remove lens distortion on reading, for methods that assume pinholes.
        sequence: images that are a video: "order" takes all in their order for one, "name" those whose
            names differ in their last number only, "exif" orders them by the time of capture; "" takes
            what the format says, which may be that each is for itself.
    """

    holdout: int = 8
    unit: str = "scene unit"
    undistort: bool = False
    sequence: str = ""


@dataclass
class AceConfig(FileConfig):
    """Options of `AceDataset`; the others are those of `FileConfig`.

    Attributes:
        root: folder with `train/` and `test/`, or with `rgb/ poses/ calibration/` itself.
        split: name of the sub-folder; ignored when `root` is a split itself.
        poses: name of the pose folder, for data with several sets of poses.
        depth: "auto" reads `depth/` where it exists, "none" never.
    """

    poses: str = "poses"
    depth: str = "auto"


@dataclass
class TransformsConfig(ReconstructedConfig):
    """Options of `TransformsDataset`; the others are those of `ReconstructedConfig`.

    Attributes:
        root: folder with `transforms.json` (or `transforms_train.json` and so on), or that file.
        split: "train", "test" or "all"; "val" where the file lists its images or has a file for them.
        holdout: not used with files per split, nor where the file lists the images of each split
            (`train_filenames`, `val_filenames`, `test_filenames`).
        unit: "" takes metres for a file with depth maps, whose millimetres are of the poses' metres by
            the format, and else "scene unit".
        depth: "auto" reads the depth maps that the file names, "none" never.
    """

    unit: str = ""
    depth: str = "auto"


@dataclass
class ColmapConfig(ReconstructedConfig):
    """Options of `ColmapDataset`; the others are those of `ReconstructedConfig`.

    Attributes:
        root: COLMAP workspace: images and a sparse model.
        model: folder of the sparse model below `root`; "" looks in `root`, `sparse/0`, `sparse/1`
            and so on (the largest), and `sparse`.
        images: folder of the images below `root`.
        test_list: text file below `root` that names the images of the test split, one a line; ""
            takes `list_test.txt` where it exists, and else `holdout`.
        unit: "" takes what `reloc data reconstruct` wrote beside the model, "scene unit" where there is
            nothing.
    """

    unit: str = ""
    model: str = ""
    images: str = "images"
    test_list: str = ""


@dataclass
class KaptureConfig(ReconstructedConfig):
    """Options of `KaptureDataset`; the others are those of `ReconstructedConfig`.

    Attributes:
        root: kapture folder (with `sensors/`), or the folder of `mapping/` and `query/`.
        split: "train" reads `mapping/` or `train/`, "test" reads `query/` or `test/`; of a kapture folder
            without them, "all" reads every image, and `holdout` tells the others apart.
        time_unit: of the timestamps: "ns", "us", "ms", "s", or "index" where they only count.
    """

    unit: str = "metre"
    time_unit: str = "index"


@dataclass
class SyntheticConfig:
    """Options of `SyntheticDataset`.

    Attributes:
        split: "train" or "test": two different paths through the same room.
        width: image width in pixels.
        height: image height in pixels.
        train_frames: number of frames of the training path.
        test_frames: number of frames of the test path.
        seed: of the room's furniture, textures and image noise.
        noise: standard deviation of the image noise in grey levels.
        depth: whether queries carry depth.
        shared: whether pictures, door, sofa and sideboard look as in all such rooms, whatever the seed.
        copy: of the image noise: copies of a room are the same one, photographed again.
        mirrored: whether the room is the mirror image, along x, of that of the seed.
        negative: whether its images are negatives: another look without rendering anew.
        west: seeds of the rooms that follow through the doorway in its wall x = 0, the farthest first; they
            look as it does (shared, mirrored, negative).
        east: of those through the one in its opposite wall, the nearest first.
        cache: keep rendered images on disk, in `$RELOC_CACHE/rooms`, 6 GB of all rooms at most.
    """

    split: str = "train"
    width: int = 640
    height: int = 480
    train_frames: int = 200
    test_frames: int = 60
    seed: int = 0
    noise: float = 1.5
    depth: bool = True
    shared: bool = False
    copy: int = 0
    mirrored: bool = False
    negative: bool = False
    west: list[int] = field(default_factory=list)
    east: list[int] = field(default_factory=list)
    cache: bool = False


@dataclass
class RoomsConfig:
    """Options of `RoomsDataset`.

    Attributes:
        list_file: text file with a line per room: its folder in ACE's format and the mean x y z of its
            cameras; or one of the lists of ESAC and GLACE, i12, i19, i12d, i19d.
        root: where the list's folders are; "" for that of the list.
        rooms: in place of a list, datasets as `{name: DATASET, ...}` with their options.
        generate: in place of both, so many rooms of `synthetic`, of seeds from 0 on.
        room: their options; without depth and kept on disk by default. Split, seed and looks are set here.
        seeds: generated rooms from this number on are earlier ones mirrored, in negative, and both, which
            look different but need not be rendered; at least a quarter of the rooms, 0 for all.
        doors: so many generated rooms stand in a row, each with a doorway to the next; 0 for closed boxes.
        repeat: every so manieth generated room is the one before it once more; 0 for none.
        split: of all rooms, unless one of `rooms` says otherwise.
        spacing: between the rooms of a world, in its unit.
        only: name of one room that is read alone, in its place of the world.
    """

    list_file: str = ""
    root: str = ""
    rooms: list[dict[str, Any]] = field(default_factory=list)
    generate: int = 0
    room: SyntheticConfig = field(default_factory=lambda: SyntheticConfig(depth=False, cache=True))
    seeds: int = 0
    doors: int = 0
    repeat: int = 0
    split: str = "train"
    spacing: float = 5.0
    only: str = ""


@dataclass
class CameraConfig:
    """Intrinsics of images that come without a calibration; all None: EXIF.

    Attributes:
        focal: focal length in pixels; the principal point is the image centre.
        model: COLMAP camera model of `params`; guessed from their number when not given.
        params: parameters in COLMAP's order; pixel (0, 0) is the centre of the top-left pixel.
        width: image width that `focal` or `params` are for, when it differs from the images'.
        height: the same for the height.
        focal_sigma: standard deviation of the focal length over the focal length; by default 0 where it
            is given, and what is usual for the fields of EXIF that it comes from.
        from_map: the images were taken with the camera of the mapping images, whose intrinsics the map
            knows; a photo of another shape takes its focal length from EXIF.
    """

    focal: float | None = None
    model: str | None = None
    params: list[float] | None = None
    width: int | None = None
    height: int | None = None
    focal_sigma: float | None = None
    from_map: bool = False
