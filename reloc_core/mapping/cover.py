"""How well triangulated points cover the images they come from, and what to expect of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reloc_core.interfaces import Run
from reloc_core.mapping.tracks import Tracks

_FEW, _FEW_VIEWS = 100, 2.5


@dataclass(frozen=True)
class Cover:
    """How well landmarks, triangulated points, cover the mapping images.

    Attributes:
        views: mean number of images that observe a landmark.
        median: median number of landmarks in an image.
        bare: share of images with fewer than 100.
    """

    views: float
    median: float
    bare: float

    @classmethod
    def of(cls, tracks: Tracks, images: np.ndarray, count: int) -> Cover:
        """Cover of `count` images; `images` (M,) is the image of every key point."""
        return cls.of_observations(images[tracks.rows], tracks.views, count)

    @classmethod
    def of_observations(cls, images: np.ndarray, views: np.ndarray, count: int) -> Cover:
        """Cover of `count` images.

        Args:
            images: (M,) the image of every observation of a point.
            views: (L,) images that observe each point.
            count: of images.
        """
        seen = np.bincount(images, minlength=count)
        mean = float(views.mean()) if len(views) else 0.0
        return cls(round(mean, 2), float(np.median(seen)), round(float((seen < _FEW).mean()), 3))

    def warnings(self) -> list[str]:
        """What a user should know before relying on the map."""
        found = []
        if self.median < _FEW:
            found.append(
                f"half of the images see {self.median:.0f} landmarks or fewer: expect queries to fail. "
                "More images, or images nearer to each other, help."
            )
        elif self.bare > 0.1:
            found.append(
                f"{self.bare:.0%} of the images see fewer than {_FEW} landmarks: queries there may fail."
            )
        if 0 < self.views < _FEW_VIEWS:
            found.append(
                f"a landmark is seen by {self.views:.1f} images on average: positions are uncertain and "
                "wrong ones go unnoticed. Images between the present ones help."
            )
        return found

    def warn(self, run: Run) -> None:
        """Say so."""
        for text in self.warnings():
            run.note(f"Warning: {text}")
