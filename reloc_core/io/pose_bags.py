"""Poses as ROS bags, PoseWithCovarianceStamped and tf, written through `rosbags`, without ROS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reloc_core.errors import DataError
from reloc_core.geometry import quaternion_from_rotation
from reloc_core.io.bags import rosbags
from reloc_core.types import Float64Array

POSE_TOPIC, TF_TOPIC = "/reloc/pose", "/tf"
_POSE, _TF = "geometry_msgs/msg/PoseWithCovarianceStamped", "tf2_msgs/msg/TFMessage"
_UNKNOWN = np.diag([1e6] * 3 + [np.pi**2] * 3)


@dataclass(frozen=True)
class StampedPose:
    """A pose at a time.

    Attributes:
        stamp: nanoseconds.
        world_from_cam: (4, 4).
        covariance: (6, 6) in the tangent of `reloc_core.types`, or None.
    """

    stamp: int
    world_from_cam: Float64Array
    covariance: Float64Array | None = None


def ros_covariance(world_from_cam: Float64Array, covariance: Float64Array | None) -> Float64Array:
    """Covariance (6, 6) as ROS means it: place, then rotation about the fixed axes of the world.

    Args:
        world_from_cam: (4, 4).
        covariance: (6, 6) in the tangent of `reloc_core.types`; None becomes a very large one.
    """
    if covariance is None:
        return _UNKNOWN
    turn = np.zeros((6, 6))
    # t + R v and R Exp(w) = Exp(R w) R.
    turn[:3, 3:] = turn[3:, :3] = world_from_cam[:3, :3]
    return np.asarray(turn @ covariance @ turn.T)


def write_pose_bag(
    path: Path, poses: Sequence[StampedPose], world_frame: str, camera_frame: str
) -> None:
    """Write a bag with the topics `/reloc/pose` and `/tf`.

    The camera's frame is an optical one: x right, y down, z forward.

    Args:
        path: a file `.bag` of rosbag 1, or the folder of a rosbag 2 (MCAP) that does not exist yet.
        poses: in the order of time.
        world_frame: name of the map's frame.
        camera_frame: name of the camera's.

    Raises:
        DataError: the path exists, or cannot be written.
        RelocError: the package is not installed.
    """
    typesys, rosbag1, rosbag2 = rosbags("typesys", "rosbag1", "rosbag2")
    if path.exists():
        raise DataError(f"{path} exists already; bags are not replaced.")
    one = path.suffix == ".bag"
    store = typesys.get_typestore(typesys.Stores.ROS1_NOETIC if one else typesys.Stores.ROS2_HUMBLE)
    if _TF not in store.types:
        text = "geometry_msgs/TransformStamped[] transforms"
        store.register(typesys.get_types_from_msg(text, _TF))
    plugin = {} if one else {"version": 9, "storage_plugin": rosbag2.StoragePlugin.MCAP}
    serialize = store.serialize_ros1 if one else store.serialize_cdr
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (rosbag1.Writer if one else rosbag2.Writer)(path, **plugin) as writer:
            topics = {
                kind: writer.add_connection(topic, kind, typestore=store)
                for topic, kind in ((POSE_TOPIC, _POSE), (TF_TOPIC, _TF))
            }
            for number, pose in enumerate(poses):
                for kind, message in _messages(
                    store.types, pose, world_frame, camera_frame, {"seq": number} if one else {}
                ):
                    writer.write(topics[kind], pose.stamp, serialize(message, kind))
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}.") from error


def _messages(
    types: Any, pose: StampedPose, world: str, camera: str, numbered: dict[str, int]
) -> list[tuple[str, Any]]:
    time = types["builtin_interfaces/msg/Time"](sec=pose.stamp // 10**9, nanosec=pose.stamp % 10**9)
    header = types["std_msgs/msg/Header"](stamp=time, frame_id=world, **numbered)
    w, x, y, z = map(float, quaternion_from_rotation(pose.world_from_cam[:3, :3]))
    place = dict(zip("xyz", map(float, pose.world_from_cam[:3, 3]), strict=True))
    turn = types["geometry_msgs/msg/Quaternion"](x=x, y=y, z=z, w=w)
    stated = types["geometry_msgs/msg/PoseWithCovariance"](
        pose=types["geometry_msgs/msg/Pose"](
            position=types["geometry_msgs/msg/Point"](**place), orientation=turn
        ),
        covariance=ros_covariance(pose.world_from_cam, pose.covariance).ravel(),
    )
    transform = types["geometry_msgs/msg/TransformStamped"](
        header=header,
        child_frame_id=camera,
        transform=types["geometry_msgs/msg/Transform"](
            translation=types["geometry_msgs/msg/Vector3"](**place), rotation=turn
        ),
    )
    return [
        (_POSE, types[_POSE](header=header, pose=stated)),
        (_TF, types[_TF](transforms=[transform])),
    ]
