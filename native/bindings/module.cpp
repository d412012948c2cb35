// Python bindings: array checks happen in reloc_core.solvers; here views are taken and the GIL
// released.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "reloc/absolute_pose.hpp"
#include "reloc/dsac.hpp"
#include "reloc/generalized_pose.hpp"
#include "reloc/gp3p.hpp"
#include "reloc/hypotheses.hpp"
#include "reloc/parallel.hpp"
#include "reloc/relative_pose.hpp"
#include "reloc/rgbd_pose.hpp"
#ifdef RELOC_WITH_CUDA
#include "batch.hpp"
#include "cuda_backend.hpp"
#endif

namespace py = pybind11;
using namespace pybind11::literals;

void bind_hashgrid(py::module_& m);  // hashgrid.cpp
void bind_lens(py::module_& m);      // lens.cpp

namespace {

using reloc::ArrayRef;

/// Row-major float32 or float64 array as a view; anything else was converted by the caller.
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
    void finish() const {
        if (rest_.size() == 0) return;
        throw py::value_error("unknown option " +
                              py::repr(rest_.begin()->first).cast<std::string>());
    }

  private:
    py::dict rest_;
};

const char* kernel_name(const std::string& name) {
    const reloc::Kernels* kernels = reloc::select_kernels(name.c_str());
    if (!kernels)
        throw py::value_error("kernels '" + name +
                              "' are unknown or not supported by this processor");
    return kernels->name;
}

reloc::AbsolutePoseOptions absolute_options(const py::dict& dict) {
    reloc::AbsolutePoseOptions o;
    std::string residual = "auto", kernels = "auto";
    OptionReader r(dict);
    r.read("search_radius", &o.search_radius);
    r.read("threshold", &o.threshold);
    r.read("confidence", &o.confidence);
    r.read("min_iterations", &o.min_iterations);
    r.read("max_iterations", &o.max_iterations);
    r.read("seed", &o.seed);
    r.read("threads", &o.threads);
    r.read("pixel_noise", &o.pixel_noise);
    r.read("local_noise", &o.local_noise);
    r.read("estimate_focal", &o.estimate_focal);
    r.read("min_inliers", &o.min_inliers);
    r.read("min_score", &o.min_score);
    r.read("residual", &residual);
    r.read("kernels", &kernels);
    r.finish();
    if (residual == "auto")
        o.residual = reloc::Residual::kAuto;
    else if (residual == "ray")
        o.residual = reloc::Residual::kRay;
    else if (residual == "reprojection")
        o.residual = reloc::Residual::kReprojection;
    else
        throw py::value_error("unknown residual '" + residual + "'");
    o.kernels = kernel_name(kernels);
    return o;
}

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

reloc::RgbdPoseOptions rgbd_options(const py::dict& dict) {
    reloc::RgbdPoseOptions o;
    std::string kernels = "auto";
    OptionReader r(dict);
    r.read("threshold", &o.threshold);
    r.read("search_radius", &o.search_radius);
    r.read("confidence", &o.confidence);
    r.read("min_iterations", &o.min_iterations);
    r.read("max_iterations", &o.max_iterations);
    r.read("local_noise", &o.local_noise);
    r.read("min_inliers", &o.min_inliers);
    r.read("min_score", &o.min_score);
    r.read("seed", &o.seed);
    r.read("kernels", &kernels);
    r.finish();
    o.kernels = kernel_name(kernels);
    return o;
}

reloc::RelativePoseOptions relative_options(const py::dict& dict) {
    reloc::RelativePoseOptions o;
    OptionReader r(dict);
    r.read("threshold", &o.threshold);
    r.read("confidence", &o.confidence);
    r.read("min_iterations", &o.min_iterations);
    r.read("max_iterations", &o.max_iterations);
    r.read("min_inliers", &o.min_inliers);
    r.read("seed", &o.seed);
    r.finish();
    return o;
}

py::tuple to_python(const reloc::PoseResult& result) {
    py::array_t<double> pose({4, 4}), covariance({6, 6});
    auto T = pose.mutable_unchecked<2>();
    const reloc::Mat3 R = result.cam_from_world.R.transpose();
    const reloc::Vec3 t = -(R * result.cam_from_world.t);
    for (int i = 0; i < 3; ++i) {
        for (int j = 0; j < 3; ++j) T(i, j) = R(i, j);
        T(i, 3) = t[i];
        T(3, i) = 0;
    }
    T(3, 3) = 1;
    auto C = covariance.mutable_unchecked<2>();
    for (int i = 0; i < 6; ++i) {
        for (int j = 0; j < 6; ++j) C(i, j) = result.covariance(i, j);
    }
    py::array_t<bool> inliers(static_cast<py::ssize_t>(result.inlier.size()));
    std::copy(result.inlier.begin(), result.inlier.end(),
              reinterpret_cast<unsigned char*>(inliers.mutable_data()));
    return py::make_tuple(result.status == reloc::Status::kOk, reloc::describe(result.status), pose,
                          covariance, inliers, result.inliers, result.score, result.iterations,
                          result.sigma, result.effective_points, result.design_effect,
                          result.focal_scale, result.focal_std);
}

/// (n, 4, 4) cam_from_world.
py::array_t<double> poses_to_python(const reloc::Pose* poses, int n) {
    py::array_t<double> out({n, 4, 4});
    auto T = out.mutable_unchecked<3>();
    for (int k = 0; k < n; ++k) {
        for (int i = 0; i < 4; ++i) {
            for (int j = 0; j < 4; ++j)
                T(k, i, j) = i == 3 ? (j == 3) : (j == 3 ? poses[k].t[i] : poses[k].R(i, j));
        }
    }
    return out;
}

reloc::Camera camera(const std::string& model, int width, int height,
                     const std::vector<double>& params) {
    return reloc::Camera::create(model, width, height, params);
}

bool cuda_built() {
#ifdef RELOC_WITH_CUDA
    return true;
#else
    return false;
#endif
}

int cuda_device_count() {
#ifdef RELOC_WITH_CUDA
    return reloc::device::cuda_device_count();
#else
    return 0;
#endif
}

std::vector<reloc::PoseResult> solve_on_device(const std::vector<reloc::Correspondences>& points,
                                               const std::vector<const reloc::Camera*>& cameras,
                                               const reloc::AbsolutePoseOptions& options,
                                               int threads, int device) {
#ifdef RELOC_WITH_CUDA
    std::vector<reloc::device::BatchProblem> problems(points.size());
    for (std::size_t i = 0; i < points.size(); ++i) problems[i] = {points[i], cameras[i]};
    return reloc::device::solve_on_cuda(problems, options, threads, device);
#else
    (void)points, (void)cameras, (void)options, (void)threads, (void)device;
    throw std::runtime_error("this build has no CUDA solver");
#endif
}

}  // namespace

void bind_splat(py::module_& m);

PYBIND11_MODULE(_native, m) {
    m.doc() = "Native robust pose solvers and Gaussian rasterizer of reloc.";
    bind_splat(m);

    // Parsed once per set of options and reused from call to call.
    py::class_<reloc::AbsolutePoseOptions>(m, "AbsolutePoseOptions")
        .def(py::init(&absolute_options), "values"_a);
    py::class_<reloc::RgbdPoseOptions>(m, "RgbdPoseOptions")
        .def(py::init(&rgbd_options), "values"_a);
    py::class_<reloc::RelativePoseOptions>(m, "RelativePoseOptions")
        .def(py::init(&relative_options), "values"_a);
    py::class_<reloc::DsacOptions>(m, "DsacOptions").def(py::init(&dsac_options), "values"_a);

    py::class_<reloc::Camera>(m, "Camera")
        .def(py::init(&camera), "model"_a, "width"_a, "height"_a, "params"_a)
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

    m.def(
        "absolute_pose",
        [](const py::object& points2d, const py::object& points3d, const reloc::Camera& cam,
           const py::object& weights, const py::object& variances,
           const reloc::AbsolutePoseOptions& o) {
            const auto c = correspondences(points2d, points3d, weights, variances, py::none());
            reloc::PoseResult result;
            {
                py::gil_scoped_release release;
                result = reloc::estimate_absolute_pose(c, cam, o);
            }
            return to_python(result);
        },
        "points2d"_a, "points3d"_a, "camera"_a, "weights"_a, "variances"_a, "options"_a);

    m.def(
        "absolute_pose_batch",
        [](const py::list& problems, const reloc::AbsolutePoseOptions& o, int threads, int device) {
            // Each problem is (points2d, points3d, camera, weights, variances).
            std::vector<reloc::Correspondences> cs;
            std::vector<const reloc::Camera*> cams;
            for (const auto& item : problems) {
                const auto t = item.cast<py::tuple>();
                cs.push_back(correspondences(t[0], t[1], t[3], t[4], py::none()));
                cams.push_back(&t[2].cast<const reloc::Camera&>());
            }
            std::vector<reloc::PoseResult> results(cs.size());
            {
                py::gil_scoped_release release;
                if (device >= 0) {
                    results = solve_on_device(cs, cams, o, threads, device);
                } else {
                    reloc::parallel_for(static_cast<int>(cs.size()), threads, [&](int i) {
                        results[i] = reloc::estimate_absolute_pose(cs[i], *cams[i], o);
                    });
                }
            }
            py::list out;
            for (const auto& result : results) out.append(to_python(result));
            return out;
        },
        "problems"_a, "options"_a, "threads"_a, "device"_a);

    m.def("cuda_built", &cuda_built);
    m.def("cuda_device_count", &cuda_device_count);

    m.def(
        "generalized_pose",
        [](const py::list& images, const reloc::AbsolutePoseOptions& o) {
            // Each image is (points2d, points3d, camera, cam_from_rig, weights, variances).
            std::vector<reloc::RigImage> rig;
            for (const auto& item : images) {
                const auto t = item.cast<py::tuple>();
                reloc::RigImage image;
                image.points = correspondences(t[0], t[1], t[4], t[5], py::none());
                image.camera = &t[2].cast<const reloc::Camera&>();
                const ArrayRef T = view(t[3], 4, 4, "cam_from_rig");
                for (int i = 0; i < 3; ++i) {
                    for (int j = 0; j < 3; ++j) image.cam_from_rig.R(i, j) = T[4 * i + j];
                    image.cam_from_rig.t[i] = T[4 * i + 3];
                }
                rig.push_back(image);
            }
            reloc::PoseResult result;
            {
                py::gil_scoped_release release;
                result = reloc::estimate_generalized_pose(rig, o);
            }
            return to_python(result);
        },
        "images"_a, "options"_a);

    m.def(
        "dsac_pose",
        [](const py::object& points2d, const py::object& points3d, const reloc::Camera& cam,
           const reloc::DsacOptions& o) {
            const auto c = correspondences(points2d, points3d, py::none(), py::none(), py::none());
            reloc::PoseResult result;
            {
                py::gil_scoped_release release;
                result = reloc::estimate_pose_dsac(c, cam, o);
            }
            return to_python(result);
        },
        "points2d"_a, "points3d"_a, "camera"_a, "options"_a);

    m.def(
        "rgbd_pose",
        [](const py::object& points_cam, const py::object& points3d, const py::object& weights,
           const reloc::RgbdPoseOptions& o) {
            const auto c = correspondences(py::none(), points3d, weights, py::none(), points_cam);
            reloc::PoseResult result;
            {
                py::gil_scoped_release release;
                result = reloc::estimate_rgbd_pose(c, o);
            }
            return to_python(result);
        },
        "points_cam"_a, "points3d"_a, "weights"_a, "options"_a);

    m.def(
        "relative_pose",
        [](const py::object& points_a, const py::object& points_b, const reloc::Camera& camera_a,
           const reloc::Camera& camera_b, const reloc::RelativePoseOptions& o) {
            if (!py::isinstance<py::array>(points_a))
                throw py::type_error("points_a must be a NumPy array");
            const auto n = py::reinterpret_borrow<py::array>(points_a).shape(0);
            const ArrayRef a = view(points_a, n, 2, "points_a"),
                           b = view(points_b, n, 2, "points_b");
            reloc::RelativePoseResult result;
            {
                py::gil_scoped_release release;
                result = reloc::estimate_relative_pose(a, b, static_cast<std::size_t>(n), camera_a,
                                                       camera_b, o);
            }
            py::array_t<double> pose({4, 4});
            auto T = pose.mutable_unchecked<2>();
            for (int i = 0; i < 4; ++i) {
                for (int j = 0; j < 4; ++j) {
                    T(i, j) = i == 3   ? (j == 3)
                              : j == 3 ? result.b_from_a.t[i]
                                       : result.b_from_a.R(i, j);
                }
            }
            py::array_t<bool> inliers(n);
            std::copy(result.inlier.begin(), result.inlier.end(),
                      reinterpret_cast<unsigned char*>(inliers.mutable_data()));
            return py::make_tuple(result.status == reloc::Status::kOk,
                                  reloc::describe(result.status), pose, inliers, result.inliers,
                                  result.iterations);
        },
        "points_a"_a, "points_b"_a, "camera_a"_a, "camera_b"_a, "options"_a);

    m.def(
        "p3p",
        [](py::array_t<double, py::array::c_style | py::array::forcecast> bearings,
           py::array_t<double, py::array::c_style | py::array::forcecast> points,
           const std::string& kernels) {
            if (bearings.ndim() != 2 || points.ndim() != 2 || bearings.size() != 9 ||
                points.size() != 9) {
                throw py::value_error("p3p takes three bearings and three points, each (3, 3)");
            }
            const char* name = kernel_name(kernels);
            reloc::Vec3 y[3], X[3];
            for (int i = 0; i < 3; ++i) {
                for (int j = 0; j < 3; ++j) {
                    y[i][j] = bearings.at(i, j);
                    X[i][j] = points.at(i, j);
                }
                y[i].normalize();
            }
            reloc::Pose poses[4];
            const int n = reloc::p3p(y, X, *reloc::select_kernels(name), poses);
            return poses_to_python(poses, n);
        },
        "bearings"_a, "points"_a, "kernels"_a = "auto");

    m.def(
        "gp3p",
        [](py::array_t<double, py::array::c_style | py::array::forcecast> origins,
           py::array_t<double, py::array::c_style | py::array::forcecast> directions,
           py::array_t<double, py::array::c_style | py::array::forcecast> points) {
            reloc::Vec3 p[3], d[3], X[3];
            for (const auto* a : {&origins, &directions, &points}) {
                if (a->ndim() != 2 || a->shape(0) != 3 || a->shape(1) != 3)
                    throw py::value_error("gp3p takes three origins, directions and points");
            }
            for (int i = 0; i < 3; ++i) {
                for (int j = 0; j < 3; ++j) {
                    p[i][j] = origins.at(i, j);
                    d[i][j] = directions.at(i, j);
                    X[i][j] = points.at(i, j);
                }
                d[i].normalize();
            }
            reloc::Pose poses[8];
            return poses_to_python(poses, reloc::gp3p(p, d, X, poses));
        },
        "origins"_a, "directions"_a, "points"_a);

    bind_hashgrid(m);
    bind_lens(m);

    m.def(
        "kernel_name", [](const std::string& name) { return std::string(kernel_name(name)); },
        "name"_a = "auto");
}
