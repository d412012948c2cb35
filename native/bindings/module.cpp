// The Python module. Array checks happen in reloc_core.solvers; here views are taken and the GIL
// released.
#include "common.hpp"

void bind_absolute(py::module_& m);  // absolute.cpp
void bind_dsac(py::module_& m);      // dsac.cpp
void bind_rgbd(py::module_& m);      // rgbd.cpp
void bind_relative(py::module_& m);  // relative.cpp
void bind_minimal(py::module_& m);   // minimal.cpp
void bind_hashgrid(py::module_& m);  // hashgrid.cpp
void bind_lens(py::module_& m);      // lens.cpp
void bind_located(py::module_& m);   // located.cpp
void bind_splat(py::module_& m);     // splat.cpp

namespace {

reloc::Camera camera(const std::string& model, int width, int height,
                     const std::vector<double>& params, double focal_sigma) {
    return reloc::Camera::create(model, width, height, params, focal_sigma);
}

void bind_camera(py::module_& m) {
    py::class_<reloc::Camera>(m, "Camera")
        .def(py::init(&camera), "model"_a, "width"_a, "height"_a, "params"_a, "focal_sigma"_a = 0.0)
        .def(
            "project",
            [](const reloc::Camera& self, double u, double v) {
                const reloc::Vec2 p = self.to_pixel({u, v});
                return py::make_tuple(p.x(), p.y());
            },
            "u"_a, "v"_a)
        .def(
            "unproject",
            [](const reloc::Camera& self, double x, double y) -> py::object {
                reloc::Vec2 uv;
                if (!self.from_pixel({x, y}, &uv)) return py::none();
                return py::make_tuple(uv.x(), uv.y());
            },
            "x"_a, "y"_a);
}

}  // namespace

PYBIND11_MODULE(_native, m) {
    m.doc() = "Native robust pose solvers and Gaussian rasterizer of reloc.";
    bind_camera(m);  // before what takes one
    bind_absolute(m);
    bind_dsac(m);
    bind_rgbd(m);
    bind_relative(m);
    bind_minimal(m);
    bind_lens(m);
    bind_located(m);
    bind_hashgrid(m);
    bind_splat(m);
    m.def(
        "kernel_name", [](const std::string& name) { return std::string(kernel_name(name)); },
        "name"_a = "auto");
}
