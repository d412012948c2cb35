from typing import Any

import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[Any]
_Result = tuple[
    bool,
    str,
    npt.NDArray[np.float64],
    npt.NDArray[np.float64],
    npt.NDArray[np.bool_],
    int,
    float,
    int,
    float,
    float,
    float,
]

class Camera:
    def __init__(self, model: str, width: int, height: int, params: list[float]) -> None: ...
    def project(self, u: float, v: float) -> tuple[float, float]: ...
    def unproject(self, x: float, y: float) -> tuple[float, float] | None: ...

class AbsolutePoseOptions:
    def __init__(self, values: dict[str, Any]) -> None: ...

class RgbdPoseOptions:
    def __init__(self, values: dict[str, Any]) -> None: ...

class RelativePoseOptions:
    def __init__(self, values: dict[str, Any]) -> None: ...

class DsacOptions:
    def __init__(self, values: dict[str, Any]) -> None: ...

def absolute_pose(
    points2d: _Floats,
    points3d: _Floats,
    camera: Camera,
    weights: _Floats | None,
    variances: _Floats | None,
    options: AbsolutePoseOptions,
) -> _Result: ...
def absolute_pose_batch(
    problems: list[tuple[_Floats, _Floats, Camera, _Floats | None, _Floats | None]],
    options: AbsolutePoseOptions,
    threads: int,
    device: int,
) -> list[_Result]: ...
def cuda_built() -> bool: ...
def cuda_device_count() -> int: ...
def dsac_pose(
    points2d: _Floats, points3d: _Floats, camera: Camera, options: DsacOptions
) -> _Result: ...
def rgbd_pose(
    points_cam: _Floats, points3d: _Floats, weights: _Floats | None, options: RgbdPoseOptions
) -> _Result: ...
def relative_pose(
    points_a: _Floats,
    points_b: _Floats,
    camera_a: Camera,
    camera_b: Camera,
    options: RelativePoseOptions,
) -> tuple[bool, str, npt.NDArray[np.float64], npt.NDArray[np.bool_], int, int]: ...
def p3p(bearings: _Floats, points: _Floats, kernels: str = ...) -> npt.NDArray[np.float64]: ...
def kernel_name(name: str = ...) -> str: ...

class SplatScene:
    def __init__(
        self,
        means: _Floats,
        quaternions: _Floats,
        scales: _Floats,
        opacities: _Floats,
        channels: _Floats,
    ) -> None: ...

class SplatView:
    def __init__(
        self,
        cam_from_world: list[float],
        intrinsics: list[float],
        slope_limits: list[float],
        width: int,
        height: int,
    ) -> None: ...

class SplatOptions:
    def __init__(
        self, near: float, antialias: bool, keep: bool, threads: int, kernels: str = ...
    ) -> None: ...

def splat_rasterize(
    scene: SplatScene, view: SplatView, background: _Floats | None, options: SplatOptions
) -> tuple[
    Any, _Floats, _Floats, _Floats, _Floats, _Floats, _Floats, npt.NDArray[np.int32], int
]: ...
def splat_backward(
    state: Any,
    scene: SplatScene,
    view: SplatView,
    background: _Floats | None,
    grad_image: _Floats | None,
    grad_alpha: _Floats | None,
    grad_depth: _Floats | None,
    channels_wanted: bool,
    geometry_wanted: bool,
    geometry_channels: int,
    threads: int,
) -> tuple[Any, ...]: ...
def splat_accumulate(
    scene: SplatScene, view: SplatView, features: _Floats, options: SplatOptions
) -> tuple[_Floats, _Floats]: ...

class HashGrid:
    def __init__(
        self, resolutions: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64], channels: int
    ) -> None: ...
    def encode(
        self, positions: npt.NDArray[np.float32], table: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]: ...
    def backward(
        self,
        positions: npt.NDArray[np.float32],
        grad: npt.NDArray[np.float32],
        grad_table: npt.NDArray[np.float32],
    ) -> None: ...
