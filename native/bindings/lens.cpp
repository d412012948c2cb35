// The final fit's projection and its derivatives, for tests and for whoever checks a calibration.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>

#include "reloc/problem.hpp"

namespace py = pybind11;
using namespace pybind11::literals;

namespace {

using Doubles = py::array_t<double, py::array::c_style | py::array::forcecast>;

py::tuple lens_equations(const Doubles& points2d, const Doubles& points_cam,
                         const reloc::Camera& camera, const std::string& kernels) {
    const py::ssize_t n = points2d.ndim() == 2 ? points2d.shape(0) : -1;
    if (n < 0 || points2d.shape(1) != 2 || points_cam.ndim() != 2 || points_cam.shape(0) != n ||
        points_cam.shape(1) != 3)
        throw py::value_error("lens_equations takes points2d (N, 2) and points_cam (N, 3)");
    const reloc::Kernels* k = reloc::select_kernels(kernels.c_str());
    if (!k) throw py::value_error("kernels '" + kernels + "' are unknown or not supported here");
    enum Row { kA, kB, kX, kY, kZ, kInfo, kW, kE2, kRows };
    reloc::FloatRows rows;
    rows.allocate(kRows, static_cast<int>(n));
    for (int r = 0; r < kRows; ++r) std::fill(rows.row(r), rows.row(r) + rows.stride(), 0.0f);
    const double area = camera.fx * camera.fy, f = std::sqrt(area);
    for (py::ssize_t i = 0; i < n; ++i) {
        rows.row(kA)[i] = static_cast<float>((points2d.at(i, 0) - camera.cx) / f);
        rows.row(kB)[i] = static_cast<float>((points2d.at(i, 1) - camera.cy) / f);
        for (int c = 0; c < 3; ++c) rows.row(kX + c)[i] = static_cast<float>(points_cam.at(i, c));
        rows.row(kInfo)[i] = static_cast<float>(area);
        rows.row(kW)[i] = 1;
    }
    const reloc::FitView view{rows.row(kA),    rows.row(kB), nullptr,
                              rows.row(kX),    rows.row(kY), rows.row(kZ),
                              rows.row(kInfo), rows.row(kW), rows.stride()};
    const reloc::PoseF pose = reloc::Pose().to_float();
    const reloc::LensF lens = camera.lens();
    reloc::LensEquations eq;
    reloc::lens_kernels(*k).errors2(view, pose, lens, rows.row(kE2));
    reloc::lens_kernels(*k).equations(view, pose, lens, 1e30f, &eq);
    py::array_t<double> errors2(n), hessian({7, 7}), gradient(7);
    for (py::ssize_t i = 0; i < n; ++i) errors2.mutable_at(i) = area * rows.row(kE2)[i];
    int at = 0;
    for (int i = 0; i < 7; ++i) {
        gradient.mutable_at(i) = eq.g[i];
        for (int j = i; j < 7; ++j)
            hessian.mutable_at(i, j) = hessian.mutable_at(j, i) = eq.h[at++];
    }
    return py::make_tuple(errors2, hessian, gradient);
}

}  // namespace

void bind_lens(py::module_& m) {
    m.def(
        "lens_equations", &lens_equations, "points2d"_a, "points_cam"_a, "camera"_a,
        "kernels"_a = "auto",
        "Squared reprojection errors (N,) in pixels^2, and the normal matrix (7, 7) and gradient "
        "(7,) of half their sum by the pose (rotation, translation; camera axes) and the logarithm "
        "of the focal length.");
}
