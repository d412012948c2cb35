// Relative pose of two images.
#include "common.hpp"
#include "reloc/relative_pose.hpp"

namespace {

reloc::RelativePoseOptions relative_options(const py::dict& dict) {
    reloc::RelativePoseOptions o;
    OptionReader r(dict);
    r.read_search(&o);
    r.read("threshold", &o.threshold);
    r.finish();
    return o;
}

}  // namespace

void bind_relative(py::module_& m) {
    py::class_<reloc::RelativePoseOptions>(m, "RelativePoseOptions")
        .def(py::init(&relative_options), "values"_a);

    m.def(
        "relative_pose",
        [](const py::object& points_a, const py::object& points_b, const reloc::Camera& camera_a,
           const reloc::Camera& camera_b, const reloc::RelativePoseOptions& o) {
            if (!py::isinstance<py::array>(points_a))
                throw py::type_error("points_a must be a NumPy array");
            const auto n = py::reinterpret_borrow<py::array>(points_a).shape(0);
            const reloc::ArrayRef a = view(points_a, n, 2, "points_a"),
                                  b = view(points_b, n, 2, "points_b");
            const auto result = without_gil([&] {
                return reloc::estimate_relative_pose(a, b, static_cast<std::size_t>(n), camera_a,
                                                     camera_b, o);
            });
            return py::make_tuple(
                result.status == reloc::Status::kOk, reloc::describe(result.status),
                pose_to_python(result.cam_from_world), flags_to_python(result.inlier),
                result.inliers, result.iterations);
        },
        "points_a"_a, "points_b"_a, "camera_a"_a, "camera_b"_a, "options"_a);
}
