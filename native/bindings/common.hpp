// What the bindings of all solvers share: array views, options and results.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "reloc/absolute_pose.hpp"

namespace py = pybind11;
using namespace pybind11::literals;

using Doubles = py::array_t<double, py::array::c_style | py::array::forcecast>;

/// Row-major float32 or float64 array as a view (one-dimensional for no columns), empty for None;
/// anything else was converted by the caller.
reloc::ArrayRef view(const py::object& object, py::ssize_t rows, py::ssize_t columns,
                     const char* name);

/// Views of one problem; absent arrays are None.
reloc::Correspondences correspondences(const py::object& points2d, const py::object& points3d,
                                       const py::object& weights, const py::object& variances,
                                       const py::object& points_cam);

/// The kernels that `name` stands for on this processor.
const char* kernel_name(const std::string& name);

/// The solver's answer with the GIL released.
template <class Solve>
auto without_gil(Solve solve) {
    py::gil_scoped_release release;
    return solve();
}

py::array_t<bool> flags_to_python(const std::vector<unsigned char>& flags);

/// (4, 4).
py::array_t<double> pose_to_python(const reloc::Pose& pose);

/// Success, message, world_from_cam, covariance and so on; see `_Result` of the stub.
py::tuple to_python(const reloc::PoseResult& result);

/// Takes each option out of the dictionary; what is left over is an unknown name.
class OptionReader {
  public:
    explicit OptionReader(const py::dict& options) : rest_(options.attr("copy")()) {}
    template <class T>
    void read(const char* name, T* value) {
        if (!rest_.contains(name)) return;
        *value = rest_[name].cast<T>();
        rest_.attr("pop")(name);
    }
    void read_search(reloc::SearchOptions* o) {
        read("confidence", &o->confidence);
        read("min_iterations", &o->min_iterations);
        read("max_iterations", &o->max_iterations);
        read("min_inliers", &o->min_inliers);
        read("seed", &o->seed);
        read("threads", &o->threads);
    }
    void finish() const {
        if (rest_.size() == 0) return;
        throw py::value_error("unknown option " +
                              py::repr(rest_.begin()->first).cast<std::string>());
    }

  private:
    py::dict rest_;
};
