"""The estimator `landmarks`: triangulated scene points, read by matching or by a softmax.

Photographs are mapped for matching (`landmarks.matched`), films for a softmax over trained keys
(`landmarks.softmax`); `readout` chooses otherwise. A map says which of the two it is for.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass

from landmarks.config import LandmarkConfig, check
from landmarks.film import are_photographs, is_film
from landmarks.matched.estimator import MatchedLandmarks
from landmarks.softmax.config import SoftmaxConfig
from landmarks.softmax.estimator import SoftmaxLandmarks
from reloc_core.errors import DataError, MapError
from reloc_core.interfaces import Dataset, Estimator, Run, Runtime
from reloc_core.mapping import TooFewPointsError
from reloc_core.maps import Map
from reloc_core.types import Correspondences, Query, ScenePoints

_TOO_FEW = "softmax-found-too-few"


class LandmarkEstimator(Estimator):
    """See the module docstring.

    Attributes:
        readout: what the map was made for; None before `fit` and `load`.
    """

    produces = Correspondences
    uses_prior = True
    extends = True
    shares = True

    def __init__(self, config: LandmarkConfig) -> None:
        check(config)
        self.config = config
        self.readout: MatchedLandmarks | SoftmaxLandmarks | None = None

    @property
    def memorizes(self) -> bool:  # type: ignore[override]
        """See `Estimator`: the softmax is trained."""
        return isinstance(self.readout, SoftmaxLandmarks)

    def fit(self, dataset: Dataset, run: Run) -> None:
        """See `Estimator.fit`.

        Raises:
            DataError: too few images, or too little that matches between them.
        """
        least = self.config.triangulation.min_views or 2
        if len(dataset) < least:
            raise DataError(
                f"{dataset.name} has {len(dataset)} image{'s' * (len(dataset) != 1)}; a map needs at "
                f"least {least}, from different places."
            )
        photographs = self.config.readout != "softmax" and are_photographs(
            dataset.frames, lambda: is_film(dataset, run)
        )
        why = self._why_matched(photographs)
        if not why:
            self.readout = self._fit_softmax(dataset, run)
            if self.readout is not None:
                return
            photographs, why = True, "they share too little for a softmax"
        matched = MatchedLandmarks(self.config)
        matched.fit(dataset, run, photographs, why)
        self.readout = matched

    def _fit_softmax(self, dataset: Dataset, run: Run) -> SoftmaxLandmarks | None:
        """Map for the softmax; None where its images share too little and matching may be chosen."""
        # A run that was interrupted after it had changed over goes on there.
        failed = run.map.scratch / _TOO_FEW
        if failed.exists():
            return None
        run.note(
            f"Mapping {len(dataset)} images of {dataset.name}: XFeat, landmarks read by a softmax "
            "(estimator.readout)."
        )
        softmax = SoftmaxLandmarks(SoftmaxConfig())
        softmax.config.keypoints.batch = self.config.keypoints.batch
        try:
            softmax.fit(dataset, run)
        except TooFewPointsError as error:
            if self.config.readout != "auto":
                raise
            run.note(
                f"{error} They are mapped as photographs instead (estimator.readout=matching)."
            )
            failed.touch()
            return None
        return softmax

    def _why_matched(self, photographs: bool) -> str:
        """Why landmarks are matched; "" where a trained softmax, which must see them often, reads them."""
        if self.config.readout != "auto":
            return "estimator.readout" if self.config.readout == "matching" else ""
        if photographs:
            return "photographs"
        # What was chosen by hand is an option of the matching, but for how many images go together.
        given = changed_options(self.config, LandmarkConfig())
        given = [name for name in given if name != "keypoints.batch"]
        return f"{', '.join(given)} given" if given else ""

    def extend(self, dataset: Dataset, run: Run) -> None:
        """See `Estimator.extend`: landmarks stay where they are, and new ones come with the images."""
        self._made().extend(dataset, run)

    def load(self, scene_map: Map, runtime: Runtime) -> None:
        """See `Estimator.load`.

        Raises:
            MapError: the map is for other key points or another resolution.
        """
        tensors, _ = scene_map.tensors("landmarks")
        readout = (
            SoftmaxLandmarks(SoftmaxConfig())
            if "radii" in tensors
            else MatchedLandmarks(self.config)
        )
        readout.load(scene_map, runtime)
        self.readout = readout

    def scene_points(self) -> ScenePoints | None:
        """See `Estimator.scene_points`: the landmarks."""
        return None if self.readout is None else self.readout.scene_points()

    def estimate(self, query: Query) -> Correspondences:
        """See `Estimator.estimate`: at most one landmark per key point."""
        return self._made().estimate(query)

    def _made(self) -> MatchedLandmarks | SoftmaxLandmarks:
        if self.readout is None:
            raise MapError("landmarks has no map yet: call load or fit first.")
        return self.readout


def changed_options(config: object, default: object, prefix: str = "") -> list[str]:
    """Dotted names of the options in which two configs of one kind differ."""
    found = []
    for field in fields(config):  # type: ignore[arg-type]
        ours, theirs = getattr(config, field.name), getattr(default, field.name)
        if is_dataclass(ours):
            found += changed_options(ours, theirs, f"{prefix}{field.name}.")
        elif ours != theirs:
            found.append(prefix + field.name)
    return found
