"""A ROS 2 node that tracks a camera in a map. Untested: it was written without a ROS installation.

    python track_node.py --ros-args -p map_dir:=MAP -r image:=/camera/image_raw \
        -r camera_info:=/camera/camera_info

It needs rclpy, cv_bridge and tf2_ros of the ROS distribution, and reloc in the same Python. For bags no ROS
is needed: `reloc track images=BAG`.
"""

import rclpy
from cv_bridge import CvBridge
from geometry_msgs.msg import PoseWithCovarianceStamped, TransformStamped
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, Image
from tf2_ros import TransformBroadcaster

from reloc_core import Camera, Tracker, TrackerConfig
from reloc_core.geometry import quaternion_from_rotation
from reloc_core.io.pose_bags import ros_covariance


class TrackNode(Node):
    """Publishes `pose` and the transform from the map to the camera's optical frame."""

    def __init__(self) -> None:
        super().__init__("reloc_track")
        self.declare_parameter("map_dir", "")
        self.declare_parameter("world_frame", "map")
        self.world = self.get_parameter("world_frame").value
        self.tracker = Tracker.from_map(
            self.get_parameter("map_dir").value, config=TrackerConfig(patience=0.0)
        )
        self.bridge, self.camera = CvBridge(), None
        self.poses = self.create_publisher(PoseWithCovarianceStamped, "pose", 10)
        self.transforms = TransformBroadcaster(self)
        self.create_subscription(CameraInfo, "camera_info", self.calibrate, 1)
        self.create_subscription(Image, "image", self.track, 1)

    def calibrate(self, info: CameraInfo) -> None:
        """Take the camera of the first message (plumb_bob with up to four coefficients)."""
        k, d = info.k, [*info.d, 0.0, 0.0, 0.0, 0.0][:4]
        self.camera = Camera("OPENCV", info.width, info.height, (k[0], k[4], k[2], k[5], *d))

    def track(self, message: Image) -> None:
        """Publish the pose of a frame, if it has one."""
        if self.camera is None:
            return
        image = self.bridge.imgmsg_to_cv2(message, "rgb8")
        stamp = message.header.stamp
        found = self.tracker.track(image, self.camera, stamp.sec + 1e-9 * stamp.nanosec)
        if not found.localized:
            self.get_logger().info(found.reason, throttle_duration_sec=1.0)
            return
        world_from_cam = found.world_from_cam
        pose, moved = PoseWithCovarianceStamped(), TransformStamped()
        pose.header.stamp = moved.header.stamp = stamp
        pose.header.frame_id = moved.header.frame_id = self.world
        moved.child_frame_id = message.header.frame_id
        turn = pose.pose.pose.orientation
        turn.w, turn.x, turn.y, turn.z = map(
            float, quaternion_from_rotation(world_from_cam[:3, :3])
        )
        moved.transform.rotation = turn
        for place in (pose.pose.pose.position, moved.transform.translation):
            place.x, place.y, place.z = map(float, world_from_cam[:3, 3])
        pose.pose.covariance = ros_covariance(world_from_cam, found.covariance).ravel().tolist()
        self.poses.publish(pose)
        self.transforms.sendTransform(moved)


def main() -> None:
    """Run the node until it is stopped."""
    rclpy.init()
    node = TrackNode()
    try:
        rclpy.spin(node)
    finally:
        node.tracker.close()
        node.destroy_node()


if __name__ == "__main__":
    main()
