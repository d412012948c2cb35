"""Tracking: the poses of a video as it comes, faster than every frame could be localized.

    from reloc_core import Camera, Tracker

    with Tracker.from_map("maps/room") as tracker:
        for image, seconds in frames:
            found = tracker.track(image, Camera.pinhole(525, 640, 480), timestamp=seconds)

Between two localizations points of the scene are followed from frame to frame, which costs a few
milliseconds. Localizations run beside, on another thread: the outcome of frame k is used at frame k + d,
moved along with the points followed since. d is fixed, and a frame waits for an outcome that is not there
yet, so that the same frames give the same poses whatever the machine does. A camera does not wait: with a
`patience` a frame goes without, and a later one uses the outcome.

Where the points are lost, nothing is claimed of a view that shows something else until the map has told
where it is; a view that shows nothing gets the predicted pose, less and less surely.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from reloc_core.checks import Checks
from reloc_core.engine.queries import Outcome, run_queries
from reloc_core.localizer import CameraChoice, Image, Localizer, intrinsics, load_query
from reloc_core.maps import Map
from reloc_core.orientation import upright
from reloc_core.pipeline import Pipeline
from reloc_core.refiners.config import PoseFilterConfig
from reloc_core.refiners.point_tracks import CONTRAST
from reloc_core.refiners.pose_filter import Mark, PoseFilter
from reloc_core.types import (
    Camera,
    DepthArray,
    Evidence,
    Localization,
    PosePrior,
    Query,
)

_LOST = Localization.failure("lost: the map has not told yet where this is")


def _filter_config() -> PoseFilterConfig:
    return PoseFilterConfig(tracks=200, max_age=5, confirm=2, sure_score=0.0, track_noise=3.0)


@dataclass
class TrackerConfig:
    """Options of a `Tracker`.

    Attributes:
        interval: frames from one localization to the next while points are followed.
        delay: frames after which its outcome is used, fewer than `interval`; 0 waits for it.
        lost_delay: the same while the place is unknown.
        patience: seconds that a frame, but for the first, waits at most for an outcome that is due. None:
            as long as it takes, and poses do not depend on the machine.
        guided: whether estimators that can use one get the predicted pose as prior.
        filter: options of the pose filter.
    """

    interval: int = 2
    delay: int = 1
    lost_delay: int = 3
    patience: float | None = None
    guided: bool = True
    filter: PoseFilterConfig = field(default_factory=_filter_config)

    def check(self) -> None:
        """Refuse values that make no sense.

        Raises:
            ConfigError: names the option.
        """
        options = Checks(self, "tracker.")
        options.at_least(1, "interval")
        options.not_negative("delay", "lost_delay", "patience")
        options.require(self.delay < self.interval, "delay", f"be below interval={self.interval}")


@dataclass
class _Search:
    """A localization under way.

    Attributes:
        query: of the frame that is localized.
        outcome: what is found.
        mark: where the points were in that frame; None where they were lost.
        before: the filter as it was before the frame.
        delay: frames after which the outcome is used.
        later: frames since.
    """

    query: Query
    outcome: Future[Outcome]
    mark: Mark | None
    before: PoseFilter
    delay: int
    later: list[Query] = field(default_factory=list)


class Tracker:
    """Poses of the frames of one video after the other; for one thread at a time.

    Args:
        localizer: of single frames, or a pipeline. It has no pose filter: the tracker has.
        config: options.
        executor: runs the localizations, one at a time; a thread of its own by default.
    """

    history = 40  # frames, as of the pose filter

    def __init__(
        self,
        localizer: Localizer | Pipeline,
        config: TrackerConfig | None = None,
        executor: Executor | None = None,
    ) -> None:
        self.config = config or TrackerConfig()
        self.config.check()
        self.localizer = localizer if isinstance(localizer, Localizer) else Localizer(localizer)
        self._own = None if executor else ThreadPoolExecutor(1, thread_name_prefix="localize")
        self._executor: Executor = executor or self._own  # type: ignore[assignment]
        self._filter = PoseFilter(self.config.filter)
        self.start_sequence()

    @classmethod
    def from_map(
        cls,
        map_dir: Path | str,
        config: TrackerConfig | None = None,
        **options: Any,
    ) -> Tracker:
        """Load a map.

        Args:
            map_dir: directory written by `reloc train`.
            config: options of the tracker.
            options: those of `Localizer.from_map`; a pose filter among the refiners is left out.

        Raises:
            MapError: the map cannot be used.
            ConfigError: components do not fit or options are wrong.
        """
        localizer = Localizer.from_map(map_dir, **options)
        without_pose_filter(localizer.pipeline)
        return cls(localizer, config)

    @property
    def map(self) -> Map | None:
        """The map that it localizes in."""
        return self.localizer.map

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for a localization under way and end the thread."""
        self._forget_search()
        if self._own is not None:
            self._own.shutdown(wait=True)

    def start_sequence(self) -> None:
        """Forget everything: another video begins."""
        self._filter.start_sequence()
        self._search: _Search | None = None
        self._since = 0
        self._camera: Camera | None = None

    # -------------------------------------------------------------------------------- frames

    def track(
        self,
        image: Image,
        camera: CameraChoice = None,
        timestamp: float | None = None,
        prior: PosePrior | None = None,
        depth: DepthArray | None = None,
        name: str = "",
    ) -> Localization:
        """The pose of the next frame; "not localized" is a result, not an exception.

        Args:
            image: as in `Localizer.localize`.
            camera: as in `Localizer.localize`.
            timestamp: seconds; frames come at `config.filter.rate` where there is none. A step back, or
                one of more than `config.filter.max_gap`, begins anew.
            prior: what is known of the pose beforehand; `config.filter.prior` says what it is.
            depth: as in `Localizer.localize`.
            name: of the frame.

        Raises:
            DataError: the image cannot be read, or its focal length is unknown.
            InputError: the arguments do not fit together.
        """
        chosen = intrinsics(camera, self.map)
        query = load_query(image, chosen, depth, timestamp, None, name)
        return self.track_query(replace(query, prior=prior))

    def localize_batch(self, queries: Sequence[Query]) -> list[tuple[Evidence, Localization]]:
        """Track frames in their order; what `run_queries` calls."""
        return [(Evidence(), self._track(query)) for query in queries]

    def track_query(self, query: Query) -> Localization:
        """As `track`, of a query of `load_query` or of a dataset."""
        (outcome,) = run_queries(self, [query], goes_on=True)
        return outcome.localization

    def _track(self, query: Query) -> Localization:
        begin = time.perf_counter()
        # Localizations run beside: their refusals would look like a place that is not known.
        self.localizer.pipeline.check_query(replace(query, sequence="tracked"))
        given, (query, undo) = query, upright(query)
        camera = self._camera
        if camera is not None and (camera.width, camera.height) == query.image.shape[1::-1]:
            query = replace(query, camera=camera)
        if self._search is not None:
            self._search.later.append(query)
        found = self._arrive()
        if found is None:
            before = self._filter.fork()
            found = self._filter.refine(query, _LOST)
            self._plan(query, before, found)
            found = self._arrive() or found
        return replace(
            undo.localization(found),
            name=given.name,
            timestamp=given.timestamp,
            seconds={"track": time.perf_counter() - begin},
            # A prior is the filter's, whoever localizes beside.
            note=self.localizer.pipeline.unused(replace(given, prior=None)),
        )

    # ------------------------------------------------------------------------- localizations

    def _plan(self, query: Query, before: PoseFilter, found: Localization) -> None:
        """Have the frame localized if it is time to."""
        options, tracker = self.config, self._filter
        self._since += 1
        pose = found.world_from_cam
        if tracker.sight in ("followed", "held") and found.localized and pose is not None:
            few = tracker.tracks.share < options.filter.min_share
            due = few or self._since >= options.interval
            if due and self._search is None and tracker.sight == "followed":
                prior = PosePrior(pose, found.covariance)
                mark = tracker.mark() if options.delay else None
                self._begin(query, prior, mark, before, options.delay)
            return
        if self._search is not None and self._search.mark is not None:
            # It would tell where the camera was, not where it was carried.
            self._forget_search()
        if self._search is None and query.image.std() >= CONTRAST:
            delay = 0 if tracker.frames == 1 else options.lost_delay
            known = query.prior if options.filter.prior == "pose" else None
            self._begin(query, known, None, before, delay)

    def _begin(
        self, query: Query, prior: PosePrior | None, mark: Mark | None, before: PoseFilter,
        delay: int,
    ) -> None:  # fmt: skip
        asked = replace(query, prior=prior if self.config.guided else None)
        outcome = self._executor.submit(self._localize, asked)
        self._search = _Search(query, outcome, mark, before, delay)
        self._since = 0

    def _localize(self, query: Query) -> Outcome:
        """On the executor's thread. Every frame is measured on its own: the filter remembers."""
        return self.localizer.run(replace(query, sequence=None), observed=False)

    def _arrive(self) -> Localization | None:
        """Take the outcome of a localization if it is due.

        Returns:
            the pose of the last frame where it follows from it.
        """
        search = self._search
        if search is None or len(search.later) < search.delay or self._late(search):
            return None
        self._search = None
        outcome = search.outcome.result()
        evidence, localization = outcome.evidence or Evidence(), outcome.localization
        if not localization.localized:
            return None if search.later else localization
        self._camera = localization.camera
        camera = localization.camera_of(search.query)
        if search.mark is not None:
            self._filter.correct_later(search.mark, camera, localization, evidence)
            return None
        query = replace(search.query, camera=camera)
        self._filter = search.before
        self._filter.tracks.reset()  # they were not found in this frame
        found = self._filter.refine(query, localization, evidence)
        return self._caught_up([replace(q, camera=camera) for q in search.later]) or found

    def _late(self, search: _Search) -> bool:
        """Whether an outcome that is due is still missing; the first frame has all patience."""
        patience = self.config.patience if self._filter.frames > 1 else None
        return not wait([search.outcome], timeout=patience).done

    def _caught_up(self, later: Sequence[Query]) -> Localization | None:
        """Follow the points of a frame into the last one since, at once if they are found there."""
        behind = self._filter
        if len(later) > 1 and later[-1].timestamp is not None:
            self._filter = behind.fork()
            found = self._filter.refine(later[-1], _LOST)
            if self._filter.sight == "followed":
                return found
        self._filter = behind
        poses = [behind.refine(query, _LOST) for query in later]
        return poses[-1] if poses else None

    def _forget_search(self) -> None:
        if self._search is not None:
            self._search.outcome.cancel()
            self._search = None


def without_pose_filter(pipeline: Pipeline) -> Pipeline:
    """The pipeline without a pose filter, where it has one."""
    filters = {n for n, r in pipeline.refiners if isinstance(r, PoseFilter)}
    pipeline.refiners = tuple((n, r) for n, r in pipeline.refiners if n not in filters)
    pipeline.stages = tuple(stage for stage in pipeline.stages if stage.name not in filters)
    return pipeline
