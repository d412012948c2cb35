// Absolute pose from RGB-D.
#include "common.hpp"
#include "reloc/rgbd_pose.hpp"

namespace {

reloc::RgbdPoseOptions rgbd_options(const py::dict& dict) {
    reloc::RgbdPoseOptions o;
    std::string kernels = "auto";
    OptionReader r(dict);
    r.read_search(&o);
    r.read("threshold", &o.threshold);
    r.read("search_radius", &o.search_radius);
    r.read("local_noise", &o.local_noise);
    r.read("min_score", &o.min_score);
    r.read("kernels", &kernels);
    r.finish();
    o.kernels = kernel_name(kernels);
    return o;
}

}  // namespace

void bind_rgbd(py::module_& m) {
    py::class_<reloc::RgbdPoseOptions>(m, "RgbdPoseOptions")
        .def(py::init(&rgbd_options), "values"_a);

    m.def(
        "rgbd_pose",
        [](const py::object& points_cam, const py::object& points3d, const py::object& weights,
           const reloc::RgbdPoseOptions& o) {
            const auto c = correspondences(py::none(), points3d, weights, py::none(), points_cam);
            return to_python(without_gil([&] { return reloc::estimate_rgbd_pose(c, o); }));
        },
        "points_cam"_a, "points3d"_a, "weights"_a, "options"_a);
}
