// Poses from scene points with covariances.
#include "reloc/located_pose.hpp"

#include "common.hpp"

namespace {

py::object located_pose(const Doubles& rays, const Doubles& points, const Doubles& covariances,
                        const Doubles& variances, const Doubles& world_from_cam) {
    const py::ssize_t n = rays.ndim() == 2 ? rays.shape(0) : -1;
    const auto is = [n](const Doubles& array, py::ssize_t columns) {
        return array.ndim() > 0 && array.shape(0) == n && array.size() == n * columns;
    };
    if (n < 0 || !is(rays, 3) || !is(points, 3) || !is(covariances, 9) || !is(variances, 1) ||
        world_from_cam.size() != 16)
        throw py::value_error(
            "located_pose takes rays (N, 3), points (N, 3), covariances (N, 3, 3), variances (N,) "
            "and a pose (4, 4)");
    const reloc::LocatedPoints in{static_cast<int>(n), rays.data(), points.data(),
                                  covariances.data(), variances.data()};
    using Rows = Eigen::Matrix<double, 4, 4, Eigen::RowMajor>;
    const Eigen::Map<const Rows> start(world_from_cam.data());
    reloc::Pose pose;
    pose.R = start.topLeftCorner<3, 3>().transpose();
    pose.t = -pose.R * start.topRightCorner<3, 1>();
    if (!without_gil([&] { return reloc::fit_located_pose(in, {}, &pose); })) return py::none();
    reloc::Pose world_from_camera;
    world_from_camera.R = pose.R.transpose();
    world_from_camera.t = -world_from_camera.R * pose.t;
    return pose_to_python(world_from_camera);
}

}  // namespace

void bind_located(py::module_& m) {
    m.def(
        "located_pose", &located_pose, "rays"_a, "points"_a, "covariances"_a, "variances"_a,
        "world_from_cam"_a,
        "The pose (4, 4) fitted from the one given to points (N, 3) with covariances (N, 3, 3) in "
        "the world, seen along rays (N, 3) that are known to variances (N,) in radians^2; None "
        "where there is none.");
}
