// Absolute pose of one image, of batches, and of several images at once.
#include "common.hpp"
#include "reloc/generalized_pose.hpp"
#include "reloc/parallel.hpp"
#ifdef RELOC_WITH_CUDA
#include "batch.hpp"
#include "cuda_backend.hpp"
#endif

namespace {

reloc::AbsolutePoseOptions absolute_options(const py::dict& dict) {
    reloc::AbsolutePoseOptions o;
    std::string residual = "auto", kernels = "auto";
    OptionReader r(dict);
    r.read_search(&o);
    r.read("search_radius", &o.search_radius);
    r.read("threshold", &o.threshold);
    r.read("pixel_noise", &o.pixel_noise);
    r.read("local_noise", &o.local_noise);
    r.read("estimate_focal", &o.estimate_focal);
    r.read("verify_focal", &o.verify_focal);
    r.read("focal_floor", &o.focal_floor);
    r.read("redundancy", &o.redundancy);
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

void bind_absolute(py::module_& m) {
    // Options are parsed once and reused from call to call.
    py::class_<reloc::AbsolutePoseOptions>(m, "AbsolutePoseOptions")
        .def(py::init(&absolute_options), "values"_a);

    m.def(
        "absolute_pose",
        [](const py::object& points2d, const py::object& points3d, const reloc::Camera& cam,
           const py::object& weights, const py::object& variances,
           const reloc::AbsolutePoseOptions& o) {
            const auto c = correspondences(points2d, points3d, weights, variances, py::none());
            return to_python(without_gil([&] { return reloc::estimate_absolute_pose(c, cam, o); }));
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
            const auto results = without_gil([&] {
                if (device >= 0) return solve_on_device(cs, cams, o, threads, device);
                std::vector<reloc::PoseResult> found(cs.size());
                reloc::parallel_for(static_cast<int>(cs.size()), threads, [&](int i) {
                    found[i] = reloc::estimate_absolute_pose(cs[i], *cams[i], o);
                });
                return found;
            });
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
                const reloc::ArrayRef T = view(t[3], 4, 4, "cam_from_rig");
                for (int i = 0; i < 3; ++i) {
                    for (int j = 0; j < 3; ++j) image.cam_from_rig.R(i, j) = T[4 * i + j];
                    image.cam_from_rig.t[i] = T[4 * i + 3];
                }
                rig.push_back(image);
            }
            return to_python(without_gil([&] { return reloc::estimate_generalized_pose(rig, o); }));
        },
        "images"_a, "options"_a);
}
