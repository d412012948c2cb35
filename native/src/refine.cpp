#include "reloc/refine.hpp"

#include <algorithm>
#include <cmath>

#include "lens_fit.hpp"
#include "reloc/constants.hpp"
#include "robust_fit.hpp"

namespace reloc {
int optimise_locally(const Kernels& kernels, const PointsView& points, double radius, int steps,
                     Pose* pose) {
    int done = 0;
    while (done < steps) {
        NormalEquations eq;
        kernels.search_equations(points, pose->to_float(), static_cast<float>(radius * radius),
                                 &eq);
        Vec6 step;
        if (!solve_step(eq, 1e-9, &step)) break;
        *pose = pose->perturbed(step);
        ++done;
        // A tenth of a standard error is below what the score can tell.
        const double variance =
            radius * radius * eq.cost / std::max(1.0, static_cast<double>(points.n));
        if (-gradient(eq).dot(step) < 0.01 * variance) break;
    }
    pose->normalize();
    return done;
}

void FitSet::build(const Kernels& kernels, const PointsView& v, int n, Residual residual,
                   const PoseF& pose, double radius, int columns, int rows) {
    FloatRows scratch;
    scratch.allocate(1, n);
    float* e2 = scratch.row(0);
    kernels.errors2(v, pose, e2);
    group(kernels, v.x, v.y, e2, static_cast<float>(radius * radius), n, columns, rows);
    rows_.allocate(kRows, slots());
    float *a = rows_.row(kA), *b = rows_.row(kB), *c = rows_.row(kC), *X = rows_.row(kX3),
          *Y = rows_.row(kY3), *Z = rows_.row(kZ3), *w = rows_.row(kW), *s = rows_.row(kScale);
    const float* from[] = {v.x, v.y, v.X, v.Y, v.Z, v.s2};
    float* to[] = {a, b, X, Y, Z, s};
    gather(from, to);
    if (v.w)
        gather(v.w, 0.0f, w);
    else
        mark(w);
    if (residual == Residual::kRay) kernels.bearings(a, b, c, slots());
}

void FitSet::through(const Kernels& kernels, const LensF& lens) {
    lens_kernels(kernels).project(lens, slots(), rows_.row(kA), rows_.row(kB));
}

FitView FitSet::slice(int from, int to) const {
    return {rows_.row(kA) + from,    rows_.row(kB) + from,  rows_.row(kC) + from,
            rows_.row(kX3) + from,   rows_.row(kY3) + from, rows_.row(kZ3) + from,
            rows_.row(kInfo) + from, rows_.row(kW) + from,  to - from};
}

Residual choose_residual(const Kernels& kernels, const Problem& problem, const Pose& pose,
                         double radius) {
    const PointsView v = problem.view();
    FloatRows scratch;
    scratch.allocate(1, problem.n);
    float* e2 = scratch.row(0);
    const PoseF f = pose.to_float();
    kernels.errors2(v, f, e2);
    const float limit = static_cast<float>(radius * radius);
    double pixels = 0, metres = 0, log_depth2 = 0;
    int n = 0;
    for (int i = 0; i < problem.n; ++i) {
        if (!(e2[i] < limit)) continue;
        const float z = f.r[6] * v.X[i] + f.r[7] * v.Y[i] + f.r[8] * v.Z[i] + f.t[2];
        const double z2 = static_cast<double>(z) * z;
        pixels += e2[i];
        metres += e2[i] * z2;
        log_depth2 += std::log(z2);
        ++n;
    }
    if (n == 0) return Residual::kReprojection;
    // Isotropic Gaussian likelihoods at their best scale, both as densities over the image.
    const double gain =
        std::log(pixels / n + 1e-30) - (std::log(metres / n + 1e-30) - log_depth2 / n);
    return gain > kRayGain ? Residual::kRay : Residual::kReprojection;
}

namespace {

/// Pixels-based information of every slot.
void pixel_information(FitSet* set, const Pose& pose, bool ray) {
    const FitView v = set->view();
    const PoseF f = pose.to_float();
    const float* s2 = set->scale2();
    float* info = set->info();
    for (int k = 0; k < v.n; ++k) {
        const float z = f.r[6] * v.X[k] + f.r[7] * v.Y[k] + f.r[8] * v.Z[k] + f.t[2], z2 = z * z;
        info[k] = ray ? s2[k] / (z2 > 1e-18f ? z2 : 1e-18f) : s2[k];
    }
}

/// Mean squared size of a pixel at the points' depth, from a sample.
double pixel_size2(const FitSet& set, const Pose& pose) {
    const FitView v = set.view();
    double sum = 0;
    int n = 0;
    for (int k = 0; k < v.n; k += 13) {
        if (!(v.w[k] > 0)) continue;
        const double z = pose.R.row(2).dot(Vec3(v.X[k], v.Y[k], v.Z[k])) + pose.t.z();
        sum += z * z / set.scale2()[k];
        ++n;
    }
    return n > 0 ? sum / n : 1;
}

}  // namespace

/// As base_information, on the plane z = 1.
static double scene_information(const FitSet& set, const Problem& problem, const Pose& pose,
                                const FitOptions& options, float* base) {
    const bool ray = options.residual == Residual::kRay;
    const double least2 = kMinPixelNoise * kMinPixelNoise;
    if (problem.variance.empty()) {
        if (!ray) {
            std::copy(set.scale2(), set.scale2() + set.slots(), base);
            return least2;
        }
        std::fill(base, base + set.slots(), 1.0f);
        return least2 * pixel_size2(set, pose);
    }
    // The common factor of given variances is estimated, so they may be relative.
    const FitView v = set.view();
    const double px2 = options.pixel_noise * options.pixel_noise;
    set.gather(problem.variance.data(), 1.0f, base);
    for (int k = 0; k < v.n; ++k) {
        const double z = pose.R.row(2).dot(Vec3(v.X[k], v.Y[k], v.Z[k])) + pose.t.z();
        const double scene2 = std::max(1e-14, base[k] + px2 * z * z / set.scale2()[k]);
        base[k] = static_cast<float>(ray ? 1 / scene2 : z * z / scene2);
    }
    return 1e-6;
}

double base_information(const FitSet& set, const Problem& problem, const Pose& pose,
                        const FitOptions& options, float* base) {
    const double floor2 = scene_information(set, problem, pose, options, base);
    if (options.lens && options.residual != Residual::kRay) {
        const float area = static_cast<float>(options.lens->fx * options.lens->fy);
        for (int k = 0; k < set.slots(); ++k) base[k] *= area / set.scale2()[k];
    }
    return floor2;
}

FitResult fit_pose(const Kernels& kernels, const Problem& problem, const Pose& start,
                   const FitOptions& options) {
    constexpr int kDof = 2;
    const bool ray = options.residual == Residual::kRay;
    const FitKernels& kernel = ray ? kernels.ray : kernels.reprojection;
    const bool local = ray && options.local_noise && problem.n >= kDensePoints;

    FitResult result;
    Pose pose = start;
    double radius = options.select_radius;
    {
        // A few points are enough to bring the pose to where the noise can be judged.
        const bool few = options.support * problem.sample_n < kEnoughSupport;
        FitSet coarse;
        coarse.build(kernels, few ? problem.view() : problem.sample(),
                     few ? problem.n : problem.sample_n, options.residual, pose.to_float(),
                     options.select_radius, 1, 1);
        if (coarse.points() < 4) return result;
        pixel_information(&coarse, pose, ray);
        const FitView view = coarse.view();
        const float c2 = static_cast<float>(options.coarse_scale * options.coarse_scale);
        const auto evaluate = [&](const PoseF& p, NormalEquations* out) {
            kernel.equations(view, p, c2, out);
        };
        if (!minimise(evaluate, 5, 0.1, &pose)) return result;
        // The more noise, the wider the selection that holds its tails.
        FloatRows scratch;
        scratch.allocate(1, view.n);
        float* e2 = scratch.row(0);
        kernel.errors2(view, pose.to_float(), e2);
        const double noise =
            std::sqrt(initial_level(kernels, coarse, e2, coarse.info(), coarse.prior(), kDof));
        const double sigmas = options.support < kPoorSupport ? kSelectSigmasPoor : kSelectSigmas;
        radius = std::min(std::max(sigmas * noise, options.coarse_scale),
                          kMaxWiden * options.select_radius);
    }

    FitSet set;
    set.build(kernels, problem.view(), problem.n, options.residual, pose.to_float(), radius,
              local ? 10 : 4, local ? 8 : 3);
    if (set.points() < 4) return result;
    FloatRows scratch;
    scratch.allocate(2, set.slots());
    float *e2 = scratch.row(0), *base = scratch.row(1);
    const double floor2 = base_information(set, problem, pose, options, base);
    if (options.lens && !ray) {
        set.through(kernels, options.lens->lens());
        robust_fit(kernels, &set, LensKernel{lens_kernels(kernels), options.lens->lens()}, base, e2,
                   floor2, kDof, local, options.level_scale, problem.n, pose, &result);
        return result;
    }
    robust_fit(kernels, &set, kernel, base, e2, floor2, kDof, local, options.level_scale, problem.n,
               pose, &result);
    return result;
}

}  // namespace reloc
