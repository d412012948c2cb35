"""12Scenes (Valentin et al., 3DV 2016).

The first sequence, frames 0 to N-1 of `split.txt`, is the test set. Frames without a pose are left out.
"published" takes the focal length of `info.txt` for both kinds of poses, as the scripts of DSAC*, ACE and
GLACE do; "pgt" takes the one that was re-estimated with the SfM poses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from reloc_core.datasets.benchmarks.base import (
    Benchmark,
    FetchOptions,
    Note,
    Source,
    pgt_source,
    place_frames,
    read_pgt,
    two_stems,
)
from reloc_core.errors import DataError
from reloc_core.geometry import nearest_rotation
from reloc_core.io.archives import extract
from reloc_core.io.files import read_text
from reloc_core.io.images import image_size
from reloc_core.io.poses import read_pose
from reloc_core.types import Camera, Float64Array, Frame

URL = "http://graphics.stanford.edu/projects/reloc/data"

COUNTS: Mapping[str, tuple[int, int, int, int]] = {
    "apt1_kitchen": (357, 744, 357, 744),
    "apt1_living": (493, 1035, 493, 1035),
    "apt2_bed": (204, 868, 244, 890),
    "apt2_kitchen": (210, 768, 230, 782),
    "apt2_living": (349, 725, 359, 731),
    "apt2_luke": (624, 1370, 624, 1370),
    "office1_gates362": (386, 3536, 386, 3540),
    "office1_gates381": (1053, 2950, 1053, 2950),
    "office1_lounge": (327, 925, 327, 933),
    "office1_manolis": (797, 1613, 807, 1623),
    "office2_5a": (497, 1001, 497, 1000),
    "office2_5b": (405, 1391, 405, 1391),
}
"""Frames: D-SLAM test and train, SfM test and train."""


class TwelveScenes(Benchmark):
    """See the module docstring."""

    name = "12scenes"
    title = "Stanford 12Scenes"
    licence = "see the page"
    licence_url = "http://graphics.stanford.edu/projects/reloc/"
    scenes = tuple(COUNTS)
    choices: ClassVar = {"poses": ("dslam", "sfm"), "focal": ("published", "pgt")}
    verified = "addresses as in the set-up scripts of ACE; checksums unknown"

    def sources(self, scene: str, options: FetchOptions) -> Sequence[Source]:
        """The archive of the scene's building, and pose lists."""
        building = scene.partition("_")[0]
        archive = Source(f"12scenes/{building}.zip", (f"{URL}/{building}.zip",))
        if options.poses == "dslam":
            return [archive]
        lists = [pgt_source(f"pgt/sfm/12scenes/{scene}_{split}.txt") for split in ("train", "test")]
        return [archive, *lists]

    def folder(self, scene: str, options: FetchOptions) -> str:
        """`12scenes_SCENE` or `pgt_12scenes_SCENE`."""
        return f"{'pgt_' if options.poses == 'sfm' else ''}12scenes_{scene}"

    def expected(self, scene: str, options: FetchOptions) -> Mapping[str, int]:
        """As in the published pose lists."""
        test, train = COUNTS[scene][:2] if options.poses == "dslam" else COUNTS[scene][2:]
        return {"train": train, "test": test}

    def build(
        self, scene: str, options: FetchOptions, files: Path, work: Path, out: Path, note: Note
    ) -> None:
        """Unpack one scene of the building's archive and move its frames."""
        building, _, room = scene.partition("_")
        prefix = f"{building}/{room}/"
        endings = (".color.jpg", ".pose.txt", "/split.txt", "/info.txt")
        extract(
            files / "12scenes" / f"{building}.zip",
            work,
            lambda name: name.startswith(prefix) and name.endswith(endings),
        )
        root = work / building / room
        images = sorted((root / "data").glob("frame-*.color.jpg"))
        if not images:
            raise DataError(f"The archive holds no images of {scene}.")
        first = _test_frames(root / "split.txt")
        focal = info_focal(root / "info.txt")
        for split, chosen in (("test", images[:first]), ("train", images[first:])):
            listed = None
            if options.poses == "sfm":
                listed = read_pgt(files / f"pgt/pgt/sfm/12scenes/{scene}_{split}.txt")
            frames, kept = [], []
            for image in chosen:
                found = _pose(image, listed)
                if found is None:
                    continue
                value = found[1] if options.focal == "pgt" and found[1] else focal
                camera = Camera.pinhole(value, *image_size(image))
                frames.append(Frame(image.name, camera, found[0]))
                kept.append(image)
            if len(kept) < len(chosen):
                note(f"{scene}/{split}: {len(chosen) - len(kept)} frames have no pose")
            place_frames(out / split, frames, kept)


def _pose(
    image: Path, listed: Mapping[str, tuple[Float64Array, float]] | None
) -> tuple[Float64Array, float | None] | None:
    """`world_from_cam` and, from a list, the focal length; None where there is no pose."""
    if listed is not None:
        return listed.get(f"data/{two_stems(image.name)}")
    pose = read_pose(image.with_name(two_stems(image.name) + ".pose.txt"))
    if not np.all(np.isfinite(pose)):
        return None
    pose[:3, :3] = nearest_rotation(pose[:3, :3])
    return pose, None


def _test_frames(path: Path) -> int:
    first = read_text(path).partition("\n")[0]
    match = re.search(r"\[frames=(\d+)\]", first)
    if match is None:
        raise DataError(f"{path.name}: the first line '{first}' does not say [frames=N].")
    return int(match[1])


def info_focal(path: Path) -> float:
    """Mean of fx and fy in `info.txt`: the eighth line, a 4x4 colour calibration after "="."""
    lines = read_text(path).splitlines()
    try:
        values = lines[7].split()
        focal = (float(values[2]) + float(values[7])) / 2
    except (IndexError, ValueError):
        raise DataError(f"{path.name} has no colour intrinsics in its eighth line.") from None
    return focal
