#include "reloc/focal_pose.hpp"

#include <algorithm>
#include <cmath>

#include "lens_fit.hpp"
#include "reloc/constants.hpp"
#include "reloc/focal_check.hpp"
#include "reloc/p3p.hpp"
#include "robust_fit.hpp"
#include "search.hpp"

namespace reloc {
namespace {

constexpr int kTriples = 8;             // minimal samples per chunk
constexpr int kFocals = 2 * kP3PBatch;  // of the grid
constexpr double kReach = 3.5;          // of the grid, in standard deviations of the prior
constexpr double kRatio = 1.2;          // between focal lengths of the grid
constexpr double kShortest = 0.4;       // of the grid, in image sizes: 103 degrees
constexpr int kFocalSteps = 10;
constexpr double kThresholdNoise2 = 0.04;  // variance of the noise over the squared threshold

constexpr LensF kPlane{{0, 0, 0, 0, 0, 0}, 0, 0, 1, 1, 0};

double search_radius(const AbsolutePoseOptions& options) {
    return options.search_radius > 0 ? options.search_radius
                                     : std::max(kPixelSearchRadius, options.threshold);
}

/// P3P poses at all focal lengths of a grid, as search.hpp takes them.
class Model {
  public:
    using Minimal = FocalPose;
    using State = FocalPose;
    static constexpr int kSample = 3, kChunk = kTriples, kLeaders = reloc::kLeaders;

    Model(const Problem& problem, const Camera& camera, const AbsolutePoseOptions& options,
          const FocalSearch& focal, const Kernels& kernels)
        : problem_(problem),
          kernels_(kernels),
          sampler_(problem.n, problem.cumulative),
          narrow2_(static_cast<float>(options.threshold * options.threshold)),
          wide2_(static_cast<float>(std::pow(search_radius(options), 2))) {
        const int size = std::max(camera.width, camera.height);
        if (focal.sigma > 0) {
            step_ = 2 * kReach * focal.sigma / (kFocals - 1);
            first_focal_ = -kReach * focal.sigma;
        } else {
            step_ = std::log(kRatio);
            first_focal_ = size > 0 ? std::log(kShortest * size / camera.mean_focal())
                                    : -0.5 * step_ * (kFocals - 1);
        }
        ones_.allocate(1, std::max(problem.n, problem.sample_n));
        std::fill(ones_.row(0), ones_.row(0) + ones_.stride(), 1.0f);
    }

    double total() const { return problem_.total; }
    double preview_total() const { return problem_.preview_total; }
    /// Points as the fit kernels take them; the plane z = 1 of the nominal camera, without a lens.
    FitView plane_view(const PointsView& p) const {
        return {p.x, p.y, nullptr, p.X, p.Y, p.Z, p.s2, p.w ? p.w : ones_.row(0), p.n};
    }

    void propose(Rng* rng, Leaders<Minimal, kLeaders>* leaders) const {
        for (int k = 0; k < kTriples; ++k) {
            const double shift = rng->uniform() - 0.5;
            int idx[3];
            if (sampler_.draw(rng, idx)) propose(idx, shift, leaders);
        }
    }

    FocalPose lift(const FocalPose& state) const { return state; }
    PoseScore score(const FocalPose& state) const {
        return kernels_.score(problem_.view(), state.projection(), narrow2_, wide2_);
    }
    bool optimise(bool all, FocalPose* state) const {
        const FitView view = plane_view(all ? problem_.view() : problem_.sample());
        const FocalKernel kernel{lens_kernels(kernels_), kPlane};
        const auto evaluate = [&](const FocalPoseF& p, LensEquations* out) {
            kernel.equations(view, p, 0.25f * wide2_, out);
        };
        return minimise(evaluate, kFocalSteps, 0.01 * wide2_, state);
    }
    /// A good triple may meet no good focal length.
    double patience(const PoseScore&) const { return 2; }

  private:
    /// One triple at all focal lengths of the grid, which is shifted at random.
    void propose(const int idx[3], double shift, Leaders<Minimal, kLeaders>* leaders) const {
        const PointsView p = problem_.view(), preview = problem_.preview();
        alignas(64) P3PBatch batch;
        for (int from = 0; from < kFocals; from += kP3PBatch) {
            double logs[kP3PBatch];
            for (int lane = 0; lane < kP3PBatch; ++lane) {
                load_sample(problem_, idx, lane, &batch);
                logs[lane] = first_focal_ + (from + lane + shift) * step_;
                const double inverse = std::exp(-logs[lane]);
                for (int k = 0; k < 3; ++k) {
                    const Vec3 ray =
                        Vec3(p.x[idx[k]] * inverse, p.y[idx[k]] * inverse, 1).normalized();
                    batch.bx[k][lane] = ray.x();
                    batch.by[k][lane] = ray.y();
                    batch.bz[k][lane] = ray.z();
                }
            }
            kernels_.p3p(&batch);
            for (int lane = 0; lane < kP3PBatch; ++lane) {
                const float scale = static_cast<float>(std::exp(logs[lane]));
                for (int k = 0; k < 4; ++k) {
                    PoseF pose;
                    if (!solution(batch, k, lane, &pose)) continue;
                    const double seen = kernels_.preview(preview, scaled(pose, scale), wide2_);
                    if (leaders->wants(seen)) leaders->take({Pose::from(pose), logs[lane]}, seen);
                }
            }
        }
    }

    const Problem& problem_;
    const Kernels& kernels_;
    Sampler sampler_;
    FloatRows ones_;
    float narrow2_, wide2_;
    double first_focal_, step_;
};

/// Known relative information of every slot, through the lens; returns the least credible noise.
double base_information(const FitSet& set, const Problem& problem, const FocalPose& state,
                        double area, double pixel_noise, float* base) {
    if (problem.variance.empty()) {
        std::fill(base, base + set.slots(), static_cast<float>(area));
        return kMinPixelNoise * kMinPixelNoise;
    }
    const FitView v = set.view();
    const double scale2 = state.scale() * state.scale();
    set.gather(problem.variance.data(), 1.0f, base);
    for (int k = 0; k < v.n; ++k) {
        const double z = state.pose.R.row(2).dot(Vec3(v.X[k], v.Y[k], v.Z[k])) + state.pose.t.z();
        const double pixels2 =
            base[k] * scale2 * set.scale2()[k] / std::max(z * z, 1e-18) + pixel_noise * pixel_noise;
        base[k] = static_cast<float>(area / std::max(pixels2, 1e-12));
    }
    return 1e-6;
}

/// Rays of a lens do not simply scale with the focal length, so there it is the reprojection.
bool by_rays(const Camera& camera, const AbsolutePoseOptions& options) {
    return options.residual == Residual::kRay && !camera.distorted;
}

FitResult fit(const Kernels& kernels, const Problem& problem, const Camera& camera,
              const AbsolutePoseOptions& options, const FocalSearch& focal, const Model& model,
              FocalPose state) {
    FitResult result;
    double radius = 2 * search_radius(options);
    const double prior = focal.sigma > 0 ? focal.trust / (focal.sigma * focal.sigma) : 0;
    {
        const FocalKernel kernel{lens_kernels(kernels), kPlane};
        const FitView view = model.plane_view(problem.view());
        const double c2 = options.threshold * options.threshold;
        // The noise is not known yet; the threshold is some times as large.
        const double weak = kThresholdNoise2 * c2 * prior;
        const auto evaluate = [&](const FocalPoseF& p, LensEquations* out) {
            kernel.equations(view, p, static_cast<float>(c2), out);
            const double log_focal = std::log(static_cast<double>(p.scale));
            out->h[27] += weak;
            out->g[6] += weak * log_focal;
            out->cost += weak * log_focal * log_focal / c2;
        };
        if (!minimise(evaluate, 5, 0.1, &state)) return result;
        FitSet near;
        near.build(kernels, problem.view(), problem.n, Residual::kReprojection, state.projection(),
                   radius, 1, 1);
        if (near.points() < 4) return result;
        FloatRows scratch;
        scratch.allocate(1, near.slots());
        kernel.errors2(near.view(), state.to_float(), scratch.row(0));
        const double noise =
            std::sqrt(initial_level(kernels, near, scratch.row(0), near.scale2(), near.prior(), 2));
        radius = std::min(std::max(kSelectSigmas * noise, options.threshold), kMaxWiden * radius);
    }
    const bool ray = by_rays(camera, options),
               local = ray && options.local_noise && problem.n >= kDensePoints;
    FitSet set;
    set.build(kernels, problem.view(), problem.n, ray ? Residual::kRay : Residual::kReprojection,
              state.projection(), radius, local ? 10 : 4, local ? 8 : 3);
    if (set.points() < 4) return result;
    FloatRows scratch;
    scratch.allocate(2, set.slots());
    float *e2 = scratch.row(0), *base = scratch.row(1);
    if (ray) {
        FitOptions of_rays;
        of_rays.residual = Residual::kRay;
        of_rays.pixel_noise = options.pixel_noise;
        const double floor2 = base_information(set, problem, state.pose, of_rays, base);
        robust_fit(kernels, &set, FocalRayKernel{prior}, base, e2, floor2, 2, local, 1.0, problem.n,
                   state, &result);
        return result;
    }
    const double floor2 =
        base_information(set, problem, state, camera.fx * camera.fy, options.pixel_noise, base);
    const LensF lens = camera.lens();
    set.through(kernels, lens);
    robust_fit(kernels, &set, FocalKernel{lens_kernels(kernels), lens, prior}, base, e2, floor2, 2,
               false, 1.0, problem.n, state, &result);
    return result;
}

}  // namespace

PoseResult estimate_focal_pose(const Kernels& kernels, const Correspondences& in,
                               const Problem& problem, const Camera& camera,
                               const AbsolutePoseOptions& options, const FocalSearch& focal) {
    PoseResult result = PoseResult::of(in.n);
    const Model model(problem, camera, options, focal, kernels);
    FocalPose start;
    if (focal.start) {
        start.pose = *focal.start;
    } else {
        SearchOptions limited = options;
        if (focal.max_samples > 0)
            limited.max_iterations = std::min(limited.max_iterations, focal.max_samples);
        Search<Model> search(model, limited);
        if (!search.run(&result)) return result;
        start = search.best.state;
    }
    const FitResult fitted = fit(kernels, problem, camera, options, focal, model, start);
    const double noise =
        pixel_noise(kernels, problem, fitted, FocalPose{fitted.pose, fitted.log_focal}.projection(),
                    by_rays(camera, options));
    const Demands demands{options.min_inliers, options.min_score, 4,
                          random_share(noise, problem.image_area)};
    finish(fitted, problem.centre, problem.source, problem.n, demands, &result);
    result.covariance *= options.redundancy;
    result.focal_scale = std::exp(fitted.log_focal);
    double variance = fitted.log_focal_std * fitted.log_focal_std * options.redundancy;
    if (fitted.ok && !by_rays(camera, options)) {
        const FocalCheck check =
            check_focal(kernels, problem, camera, fitted, false, options.threshold);
        const double prior = focal.sigma > 0 ? 1 / (focal.sigma * focal.sigma) : 0,
                     said = check.share * std::max(1 / variance - prior, 0.0),
                     beyond = 1 / (said + prior) - variance;
        if (beyond > 0) {
            result.covariance += beyond * check.per_focal * check.per_focal.transpose();
            variance += beyond;
        }
    }
    result.focal_std = result.focal_scale * std::sqrt(variance);
    if (!(std::isfinite(result.focal_scale) && std::isfinite(result.focal_std)) ||
        (result.status == Status::kOk && !determined(in.points2d, 2, 4, result)))
        result.status = Status::kDegenerate;
    return result;
}

}  // namespace reloc
