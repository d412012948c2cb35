// Absolute pose by the scheme of DSAC*.
#include "reloc/dsac.hpp"
#include "common.hpp"

namespace {

reloc::DsacOptions dsac_options(const py::dict& dict) {
    reloc::DsacOptions o;
    std::string kernels = "auto";
    OptionReader r(dict);
    r.read("hypotheses", &o.hypotheses);
    r.read("threshold", &o.threshold);
    r.read("alpha", &o.alpha);
    r.read("max_error", &o.max_error);
    r.read("max_tries", &o.max_tries);
    r.read("refine_steps", &o.refine_steps);
    r.read("seed", &o.seed);
    r.read("threads", &o.threads);
    r.read("kernels", &kernels);
    r.finish();
    o.kernels = kernel_name(kernels);
    return o;
}

}  // namespace

void bind_dsac(py::module_& m) {
    py::class_<reloc::DsacOptions>(m, "DsacOptions").def(py::init(&dsac_options), "values"_a);

    m.def(
        "dsac_pose",
        [](const py::object& points2d, const py::object& points3d, const reloc::Camera& cam,
           const reloc::DsacOptions& o) {
            const auto c = correspondences(points2d, points3d, py::none(), py::none(), py::none());
            return to_python(without_gil([&] { return reloc::estimate_pose_dsac(c, cam, o); }));
        },
        "points2d"_a, "points3d"_a, "camera"_a, "options"_a);
}
