"""Wayspots (Brachmann, Cavallari, Prisacariu, CVPR 2023): ten scenes, already in the ACE layout.

The images are stored sideways, as the phone's sensor reads them; poses and focal lengths fit them so.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from reloc_core.datasets.benchmarks.base import Benchmark, FetchOptions, Note, Source
from reloc_core.errors import DataError
from reloc_core.io.archives import extract

URL = "https://storage.googleapis.com/niantic-lon-static/research/ace/wayspots.tar.gz"


class Wayspots(Benchmark):
    """See the module docstring."""

    name = "wayspots"
    title = "Wayspots"
    licence = "see the page"
    licence_url = "https://nianticlabs.github.io/ace/wayspots.html"
    scenes = (
        "squarebench", "bears", "cubes", "inscription", "lawn", "map", "statue", "tendrils", "therock",
        "wintersign",
    )  # fmt: skip
    verified = "address as in the set-up script of ACE; checksum and inner folder names unknown"

    def sources(self, scene: str, options: FetchOptions) -> Sequence[Source]:
        """The one archive of all scenes."""
        return [Source("wayspots/wayspots.tar.gz", (URL,))]

    def folder(self, scene: str, options: FetchOptions) -> str:
        """`wayspots_SCENE`."""
        return f"wayspots_{scene}"

    def build(
        self, scene: str, options: FetchOptions, files: Path, work: Path, out: Path, note: Note
    ) -> None:
        """Take the scene's folder, wherever it lies in the archive."""
        names = {scene, f"wayspots_{scene}"}
        extract(
            files / "wayspots" / "wayspots.tar.gz",
            work,
            lambda name: bool(names & set(Path(name).parts[:-1])),
        )
        found = [p.parent.parent for p in work.rglob("rgb") if p.parent.parent.name in names]
        roots = sorted(set(found))
        if len(roots) != 1:
            raise DataError(f"The archive holds {len(roots)} folders of the scene {scene}.")
        for split in ("train", "test"):
            if not (roots[0] / split / "rgb").is_dir():
                raise DataError(f"The archive holds no {split}/rgb of the scene {scene}.")
            os.replace(roots[0] / split, out / split)
