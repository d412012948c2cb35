"""The four interfaces of the framework: Dataset, Estimator, Solver, Refiner.

    Dataset -> Query -> Estimator -> Evidence -> Solver -> Localization -> Refiner* -> Localization

A component is constructed with its typed config, `Component(config)`. Estimators and refiners that
need a map get it from `fit` (which writes one) or `load` (which reads one). State between queries is
that of the sequence: estimators and refiners forget it in `start_sequence`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from reloc_core.errors import DataError
from reloc_core.types import Camera, Evidence, Frame, ImageArray, Localization, Query, ScenePoints

if TYPE_CHECKING:
    from reloc_core.maps import Map, MapWriter


@dataclass(frozen=True)
class Runtime:
    """Where and how to compute.

    Attributes:
        device: "cpu" or "cuda" (already resolved; never "auto").
        threads: number of CPU threads a component may use.
        seed: seed of everything random.
    """

    device: str = "cpu"
    threads: int = 2
    seed: int = 42


class Progress(Protocol):
    """Progress of one long piece of work."""

    def advance(self, steps: int = 1, **values: float | str) -> None:
        """Report finished steps and values worth showing, such as the loss."""


class Run(Protocol):
    """What `fit` gets beside the dataset.

    Attributes:
        runtime: device, threads, seed.
        map: where the map is written; also holds the checkpoints.
        extra_datasets: further scenes to learn from; only the main one is mapped. Methods that
            train on one scene ignore them.
    """

    runtime: Runtime
    map: MapWriter
    extra_datasets: Sequence[Dataset]

    def progress(self, title: str, total: int) -> AbstractContextManager[Progress]:
        """Show progress of `total` steps under `title`."""

    def log(self, event: str, **values: Any) -> None:
        """Record a structured event, such as `log("trained", loss=1.2)`."""

    def note(self, text: str) -> None:
        """Tell the user something, such as what was chosen or what to expect little of."""

    def show(self, title: str, points: Callable[[], ScenePoints]) -> None:
        """Show the points of the map as it is so far; `points` is called where somebody watches only."""


class Dataset(ABC):
    """Posed or unposed images of one split of one scene.

    Indexing reads pixels; `frames` does not, so poses and intrinsics of large datasets are cheap.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """Short name of scene and split for titles and logs."""

    @property
    @abstractmethod
    def frames(self) -> Sequence[Frame]:
        """Metadata of all images in a fixed order."""

    @abstractmethod
    def __getitem__(self, index: int) -> Query:
        """Read one image.

        Raises:
            DataError: the file is missing, truncated or of another size than the camera says.
        """

    def __len__(self) -> int:
        return len(self.frames)

    def __iter__(self) -> Iterator[Query]:
        return (self[i] for i in range(len(self)))

    @property
    def has_depth(self) -> bool:
        """Whether queries carry measured depth."""
        return False

    def without_depth(self) -> Dataset:
        """The same queries without depth maps, which are then not read; by default the dataset itself."""
        return self

    def content(self) -> Iterator[bytes]:
        """What tells these pixels from others with the same names and poses, cheaply.

        By default the pixels of the first, the middle and the last image. It is part of the fingerprint
        by which an interrupted training knows its dataset; datasets of files give their sizes, too.
        """
        for index in sorted({0, len(self) // 2, len(self) - 1}) if len(self) else ():
            try:
                yield self[index].image.tobytes()
            except DataError:
                yield b"unreadable"

    @property
    def unit(self) -> str:
        """Unit of translations, "metre" or "scene unit" where the scale is arbitrary."""
        return "metre"

    @property
    def notes(self) -> Sequence[str]:
        """Things a user should know, such as how many frames were skipped and why."""
        return ()


class Estimator(ABC):
    """Turns a query into evidence about its pose."""

    produces: ClassVar[type[Evidence]]
    history: ClassVar[int] = 0
    """How many preceding frames of the sequence shape the evidence of a query, about; they are
    replayed before a single query is explained. 0 for estimators without state."""
    uses_prior: ClassVar[bool] = False
    """Whether the prior of a query, which may be wrong, narrows the search; others never look at it."""
    memorizes: bool = True
    """Whether it may localize the images that it was mapped from better than others as near, as a network
    does that learned them; points that were triangulated from them do not."""
    extends: ClassVar[bool] = False
    """Whether images can be added to a map by `extend`."""
    shares: ClassVar[bool] = False
    """Whether `fit` works in pieces (`reloc_core.mapping.pieces`) that several processes can share."""

    @abstractmethod
    def fit(self, dataset: Dataset, run: Run) -> None:
        """Build a map of the dataset's scene into `run.map` and be ready to `estimate`.

        Must resume from `run.map.load_checkpoint()` when there is one.

        Raises:
            DataError: the dataset lacks what the method needs.
        """

    @abstractmethod
    def load(self, scene_map: Map, runtime: Runtime) -> None:
        """Read a map written by `fit`. Runs no code from the map.

        Raises:
            MapError: the map does not fit this estimator's configuration.
        """

    def extend(self, dataset: Dataset, run: Run) -> None:
        """Add images to the map that was loaded, write it into `run.map`, and be ready to `estimate`.

        `run.map.details` are those of the map as it was.

        Args:
            dataset: the new images alone, posed in the world of the map.
            run: as for `fit`.

        Raises:
            DataError: the images lack what the method needs.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot add images to a map.")

    def start_sequence(self) -> None:  # noqa: B027  (optional: most estimators have no state)
        """Forget temporal state; called before the first query of every sequence."""

    @abstractmethod
    def estimate(self, query: Query) -> Evidence:
        """Evidence for one query. A bad image gives empty evidence, not an exception."""

    def pictures(self, query: Query, localization: Localization) -> Mapping[str, ImageArray]:
        """Titled RGB pictures (H, W, 3) uint8 that show what the estimator saw, for the report.

        Called for the few queries that the report shows, right after they were localized.
        """
        return {}

    def scene_points(self) -> ScenePoints | None:
        """Points of the map, for viewers; None where the map is not made of points."""
        return None

    def estimate_batch(self, queries: Sequence[Query]) -> list[Evidence]:
        """Evidence for several queries; the same values as one by one."""
        return [self.estimate(query) for query in queries]


class Solver(ABC):
    """Turns evidence into a localization."""

    accepts: ClassVar[tuple[type[Evidence], ...]]

    @abstractmethod
    def solve(self, evidence: Evidence, camera: Camera, runtime: Runtime) -> Localization:
        """Solve for the pose; the same input and seed give the same pose for any thread count."""

    def solve_batch(
        self, evidence: Sequence[Evidence], cameras: Sequence[Camera], runtime: Runtime
    ) -> list[Localization]:
        """Solve several problems; the same values as one by one."""
        return [self.solve(e, c, runtime) for e, c in zip(evidence, cameras, strict=True)]


class Refiner(ABC):
    """Improves a localization; works after any solver or refiner."""

    history: ClassVar[int] = 0
    """How many preceding frames of the sequence shape the outcome, about; 0 without state."""
    uses_prior: ClassVar[bool] = False
    """Whether it looks at the prior of a query."""
    takes_failures: ClassVar[bool] = False
    """Whether `refine` is also handed queries that no stage before it localized, as a filter over a
    sequence wants that can predict a pose."""

    def fit(self, dataset: Dataset, run: Run) -> None:
        """Build the refiner's map into `run.map`. Refiners without one need not override it."""
        raise NotImplementedError(f"{type(self).__name__} has no map to build.")

    def load(self, scene_map: Map, runtime: Runtime) -> None:
        """Read a map written by `fit`."""
        raise NotImplementedError(f"{type(self).__name__} needs no map.")

    def start_sequence(self) -> None:  # noqa: B027  (optional: most refiners have no state)
        """Forget temporal state; called before the first query of every sequence."""

    @abstractmethod
    def refine(
        self, query: Query, localization: Localization, evidence: Evidence | None = None
    ) -> Localization:
        """Return a localization that is no worse by the refiner's own cost.

        Args:
            query: the image, with the camera that the pose holds for.
            localization: the result so far; localized unless `takes_failures`.
            evidence: what the solver was given; None for a pose that comes from elsewhere.

        What it found of how well the pose fits may be added to `support`, as named numbers of which
        larger is better: the calibration of a map learns what they say, as of `Evidence.signals`.
        """

    def pictures(self, query: Query, localization: Localization) -> Mapping[str, ImageArray]:
        """Titled RGB pictures (H, W, 3) uint8 for the report, as `Estimator.pictures`."""
        return {}


INTERFACES: Mapping[str, type] = {
    "dataset": Dataset,
    "estimator": Estimator,
    "solver": Solver,
    "refiner": Refiner,
}
"""The interfaces by the name they have in configs and in the registry."""
