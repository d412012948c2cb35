#include "common.hpp"

#include <algorithm>

using reloc::ArrayRef;

ArrayRef view(const py::object& object, py::ssize_t rows, py::ssize_t columns, const char* name) {
    ArrayRef ref;
    if (object.is_none()) return ref;
    const auto array = py::reinterpret_borrow<py::array>(object);
    if (!py::isinstance<py::array>(object))
        throw py::type_error(std::string(name) + " must be a NumPy array");
    const bool shape =
        columns == 0 ? array.ndim() == 1 && array.shape(0) == rows
                     : array.ndim() == 2 && array.shape(0) == rows && array.shape(1) == columns;
    if (!shape) throw py::value_error(std::string(name) + " has the wrong shape");
    if (!(array.flags() & py::array::c_style))
        throw py::value_error(std::string(name) + " must be C-contiguous");
    if (py::isinstance<py::array_t<double>>(array)) {
        ref.f64 = static_cast<const double*>(array.data());
    } else if (py::isinstance<py::array_t<float>>(array)) {
        ref.f32 = static_cast<const float*>(array.data());
    } else {
        throw py::type_error(std::string(name) + " must be float32 or float64");
    }
    return ref;
}

reloc::Correspondences correspondences(const py::object& points2d, const py::object& points3d,
                                       const py::object& weights, const py::object& variances,
                                       const py::object& points_cam) {
    if (!py::isinstance<py::array>(points3d))
        throw py::type_error("points3d must be a NumPy array");
    const auto n = py::reinterpret_borrow<py::array>(points3d).shape(0);
    reloc::Correspondences c;
    c.n = static_cast<std::size_t>(n);
    c.points2d = view(points2d, n, 2, "points2d");
    c.points3d = view(points3d, n, 3, "points3d");
    c.weights = view(weights, n, 0, "weights");
    c.variances = view(variances, n, 0, "variances");
    c.points_cam = view(points_cam, n, 3, "points_cam");
    return c;
}

const char* kernel_name(const std::string& name) {
    const reloc::Kernels* kernels = reloc::select_kernels(name.c_str());
    if (!kernels)
        throw py::value_error("kernels '" + name +
                              "' are unknown or not supported by this processor");
    return kernels->name;
}

py::array_t<bool> flags_to_python(const std::vector<unsigned char>& flags) {
    py::array_t<bool> out(static_cast<py::ssize_t>(flags.size()));
    std::copy(flags.begin(), flags.end(), reinterpret_cast<unsigned char*>(out.mutable_data()));
    return out;
}

py::array_t<double> pose_to_python(const reloc::Pose& pose) {
    py::array_t<double> out({4, 4});
    auto T = out.mutable_unchecked<2>();
    for (int i = 0; i < 3; ++i) {
        for (int j = 0; j < 3; ++j) T(i, j) = pose.R(i, j);
        T(i, 3) = pose.t[i];
        T(3, i) = 0;
    }
    T(3, 3) = 1;
    return out;
}

py::tuple to_python(const reloc::PoseResult& result) {
    reloc::Pose world_from_cam;
    world_from_cam.R = result.cam_from_world.R.transpose();
    world_from_cam.t = -(world_from_cam.R * result.cam_from_world.t);
    py::array_t<double> covariance({6, 6});
    auto C = covariance.mutable_unchecked<2>();
    for (int i = 0; i < 6; ++i) {
        for (int j = 0; j < 6; ++j) C(i, j) = result.covariance(i, j);
    }
    return py::make_tuple(result.status == reloc::Status::kOk, reloc::describe(result.status),
                          pose_to_python(world_from_cam), covariance,
                          flags_to_python(result.inlier), result.inliers, result.score,
                          result.iterations, result.sigma, result.effective_points,
                          result.design_effect, result.false_alarms, result.focal_shift,
                          result.focal_shift_std, result.focal_scale, result.focal_std);
}
