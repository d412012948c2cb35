"""The refiner `gsplat_loc`: render the field at a pose and improve the pose by what is seen."""

from __future__ import annotations

from gsplat_loc.config import RefineConfig, check_refine
from gsplat_loc.field.fieldmap import FieldMap, load_field
from gsplat_loc.field.pictures import refiner_pictures
from gsplat_loc.refine.alignment import Alignment
from gsplat_loc.refine.features import FeatureMatching
from gsplat_loc.refine.stage import Stage, seen_at
from gsplat_loc.refine.warp import Warp
from reloc_core.errors import MapError
from reloc_core.interfaces import Refiner, Runtime
from reloc_core.maps import Map
from reloc_core.types import Evidence, ImageArray, Localization, Query


class GsplatRefiner(Refiner):
    """Stages in the order of `mode`; see `gsplat_loc.refine`."""

    def __init__(self, config: RefineConfig) -> None:
        check_refine(config)
        self.config = config
        self.map: FieldMap | None = None
        self.runtime = Runtime()
        self._stages: list[Stage] = []

    def load(self, scene_map: Map, runtime: Runtime) -> None:
        """See `Refiner.load`.

        Raises:
            MapError: the mode renders descriptors and the map has none.
        """
        field = load_field(scene_map, runtime.device)
        if "features" in self.config.stages and field.descriptors is None:
            raise MapError(
                f"{scene_map.path} has no descriptors of Gaussians to render: train it with "
                "estimator.features.mode=average, or choose another mode of the refiner gsplat_loc."
            )
        self.use(field, runtime)

    def use(self, field: FieldMap, runtime: Runtime) -> None:
        """Refine against a field in memory."""
        self.map, self.runtime = field, runtime
        self._stages = [_stage(name, field, self.config, runtime) for name in self.config.stages]

    def refine(
        self, query: Query, localization: Localization, evidence: Evidence | None = None
    ) -> Localization:
        """See `Refiner.refine`. Where the field shows too little, the pose is returned as it is."""
        if self.map is None:
            raise MapError("gsplat_loc has no map yet: call load first.")
        if not self._stages or localization.world_from_cam is None:
            return localization
        seen = seen_at(query, self.config.resolution)
        for stage in self._stages:
            localization = stage.run(seen, localization)
        return localization

    def pictures(self, query: Query, localization: Localization) -> dict[str, ImageArray]:
        """See `Refiner.pictures`."""
        if self.map is None or localization.world_from_cam is None:
            return {}
        before = next(
            (p for name, p in reversed(localization.stages) if not name.startswith("refine")),
            localization.world_from_cam,
        )
        return refiner_pictures(
            self.map, query, before, localization.world_from_cam, self.runtime.threads
        )


def _stage(name: str, field: FieldMap, config: RefineConfig, runtime: Runtime) -> Stage:
    if name == "features":
        return FeatureMatching(field, config, runtime)
    if name == "warp":
        return Warp(field, config, runtime)
    return Alignment(field, config, runtime, keypoints=name == "keypoints")
