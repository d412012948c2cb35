// C interface to the emulated CUDA solver, for ctypes.
#include <algorithm>
#include <exception>
#include <memory>

#include "batch.hpp"
#include "emulate.hpp"

namespace {

reloc::ArrayRef array(const double* values) {
    reloc::ArrayRef ref;
    ref.f64 = values;
    return ref;
}

}  // namespace

extern "C" {

/// Mirrors the ctypes structure of the test.
struct EmulationOptions {
    double search_radius, threshold, confidence, pixel_noise, min_score;
    std::uint64_t seed;
    int min_iterations, max_iterations, min_inliers, local_noise, residual, threads, backends;
};

struct EmulationProblem {
    const double *points2d, *points3d, *weights, *variances;
    int n;
    double focal_x, focal_y, center_x, center_y;
};

struct EmulationResult {
    double cam_from_world[16], covariance[36], score, sigma, effective_points, design_effect,
        false_alarms, focal_shift, focal_shift_std;
    int status, inliers, iterations, local_optimisations;
    unsigned char* inlier;
};

__attribute__((visibility("default"))) int reloc_emulate(const EmulationProblem* problems,
                                                         int count, const EmulationOptions* o,
                                                         EmulationResult* out) {
    try {
        reloc::AbsolutePoseOptions options;
        options.search_radius = o->search_radius;
        options.threshold = o->threshold;
        options.confidence = o->confidence;
        options.pixel_noise = o->pixel_noise;
        options.min_score = o->min_score;
        options.seed = o->seed;
        options.min_iterations = o->min_iterations;
        options.max_iterations = o->max_iterations;
        options.min_inliers = o->min_inliers;
        options.local_noise = o->local_noise != 0;
        options.residual = static_cast<reloc::Residual>(o->residual);
        std::vector<reloc::Camera> cameras(count);
        std::vector<reloc::device::BatchProblem> batch(count);
        for (int i = 0; i < count; ++i) {
            const EmulationProblem& p = problems[i];
            cameras[i] = reloc::Camera::create("PINHOLE", 640, 480,
                                               {p.focal_x, p.focal_y, p.center_x, p.center_y});
            reloc::Correspondences& c = batch[i].points;
            c.n = p.n;
            c.points2d = array(p.points2d);
            c.points3d = array(p.points3d);
            c.weights = array(p.weights);
            c.variances = array(p.variances);
            batch[i].camera = &cameras[i];
        }
        std::vector<std::unique_ptr<reloc::device::Backend>> owned;
        std::vector<reloc::device::Backend*> backends;
        for (int i = 0; i < o->backends; ++i) {
            owned.push_back(reloc::device::make_emulation(o->threads));
            backends.push_back(owned.back().get());
        }
        const auto results = reloc::device::solve_batch(backends, batch, options, 1);
        for (int i = 0; i < count; ++i) {
            const reloc::PoseResult& r = results[i];
            EmulationResult& e = out[i];
            for (int k = 0; k < 16; ++k) {
                const int row = k / 4, column = k % 4;
                e.cam_from_world[k] = row == 3      ? column == 3
                                      : column == 3 ? r.cam_from_world.t[row]
                                                    : r.cam_from_world.R(row, column);
            }
            for (int k = 0; k < 36; ++k) e.covariance[k] = r.covariance(k / 6, k % 6);
            e.score = r.score;
            e.sigma = r.sigma;
            e.effective_points = r.effective_points;
            e.design_effect = r.design_effect;
            e.false_alarms = r.false_alarms;
            e.focal_shift = r.focal_shift;
            e.focal_shift_std = r.focal_shift_std;
            e.status = static_cast<int>(r.status);
            e.inliers = r.inliers;
            e.iterations = r.iterations;
            e.local_optimisations = r.local_optimisations;
            std::copy(r.inlier.begin(), r.inlier.end(), e.inlier);
        }
        return 0;
    } catch (const std::exception&) {
        return 1;
    }
}

}  // extern "C"
