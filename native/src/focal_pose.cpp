#include "reloc/focal_pose.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "lens_fit.hpp"
#include "reloc/constants.hpp"
#include "reloc/hypotheses.hpp"
#include "reloc/parallel.hpp"
#include "robust_fit.hpp"

namespace reloc {
namespace {

constexpr int kTriples = 8;             // minimal samples per chunk
constexpr int kFocals = 2 * kP3PBatch;  // of the grid
constexpr double kReach = 3.5;          // of the grid, in standard deviations of the prior
constexpr double kRatio = 1.2;          // between focal lengths of the grid
constexpr double kShortest = 0.4;       // of the grid, in image sizes: 103 degrees
constexpr int kFocalSteps = 10;
constexpr double kThresholdNoise2 = 0.04;  // variance of the noise over the squared threshold
constexpr double kSampleFactor = 2;        // a good triple may meet no good focal length

struct Hypothesis {
    FocalPose state;
    PoseScore value{0, 0, 0};
    double preview = -1;
};

/// Points as the fit kernels take them; the plane z = 1 of the nominal camera, without a lens.
FitView plane_view(const PointsView& p, const float* ones) {
    return {p.x, p.y, nullptr, p.X, p.Y, p.Z, p.s2, p.w ? p.w : ones, p.n};
}
constexpr LensF kPlane{{0, 0, 0, 0, 0, 0}, 0, 0, 1, 1, 0};

class Search {
  public:
    Search(const Problem& problem, const Camera& camera, const AbsolutePoseOptions& options,
           const FocalSearch& focal, const Kernels& kernels)
        : problem_(problem), options_(options), kernels_(kernels), sampler_(problem) {
        const int size = std::max(camera.width, camera.height);
        if (focal.sigma > 0) {
            step_ = 2 * kReach * focal.sigma / (kFocals - 1);
            first_focal_ = -kReach * focal.sigma;
        } else {
            step_ = std::log(kRatio);
            first_focal_ = size > 0 ? std::log(kShortest * size / camera.mean_focal())
                                    : -0.5 * step_ * (kFocals - 1);
        }
        max_samples_ = options.max_iterations;
        if (focal.max_samples > 0) max_samples_ = std::min(max_samples_, focal.max_samples);
        const double wide = options.search_radius > 0
                                ? options.search_radius
                                : std::max(kPixelSearchRadius, options.threshold);
        wide2_ = static_cast<float>(wide * wide);
        narrow2_ = static_cast<float>(options.threshold * options.threshold);
        ones_.allocate(1, std::max(problem.n, problem.sample_n));
        std::fill(ones_.row(0), ones_.row(0) + ones_.stride(), 1.0f);
    }

    void run();
    bool found() const { return best_.value.score > 0; }
    const Hypothesis& best() const { return best_; }
    int samples() const { return samples_; }
    int optimised() const { return optimised_; }
    void start_at(const Pose& pose) { best_.state.pose = pose; }
    double wide() const { return std::sqrt(static_cast<double>(wide2_)); }
    const float* ones() const { return ones_.row(0); }

  private:
    using Leaders = std::array<Hypothesis, kLeaders>;
    void draw(Rng* rng, double bar, Leaders* leaders) const;
    bool done() const;
    void consider(Hypothesis candidate);
    void score(Hypothesis* h) const {
        h->value = kernels_.score(problem_.view(), h->state.projection(), narrow2_, wide2_);
    }

    const Problem& problem_;
    const AbsolutePoseOptions& options_;
    const Kernels& kernels_;
    TripleSampler sampler_;
    FloatRows ones_;
    float narrow2_, wide2_;
    double first_focal_, step_;
    int max_samples_;
    Hypothesis minimal_, best_;
    int samples_ = 0, optimised_ = 0;
};

/// One triple at all focal lengths of the grid, which is shifted at random.
void Search::draw(Rng* rng, double bar, Leaders* best) const {
    Leaders& leaders = *best;
    int idx[3];
    const double shift = rng->uniform() - 0.5;
    if (!sampler_.draw(rng, idx)) return;
    const PointsView p = problem_.view(), preview = problem_.preview();
    alignas(64) P3PBatch batch;
    for (int from = 0; from < kFocals; from += kP3PBatch) {
        double logs[kP3PBatch];
        for (int lane = 0; lane < kP3PBatch; ++lane) {
            load_sample(problem_, idx, lane, &batch);
            logs[lane] = first_focal_ + (from + lane + shift) * step_;
            const double inverse = std::exp(-logs[lane]);
            for (int k = 0; k < 3; ++k) {
                const Vec3 ray = Vec3(p.x[idx[k]] * inverse, p.y[idx[k]] * inverse, 1).normalized();
                batch.bx[k][lane] = ray.x();
                batch.by[k][lane] = ray.y();
                batch.bz[k][lane] = ray.z();
            }
        }
        kernels_.p3p(&batch);
        for (int lane = 0; lane < kP3PBatch; ++lane) {
            const float scale = static_cast<float>(std::exp(logs[lane]));
            for (int k = 0; k < 4; ++k) {
                PoseF pose, projection;
                if (!solution(batch, k, lane, &pose)) continue;
                projection = pose;
                for (int i = 0; i < 6; ++i) projection.r[i] *= scale;
                for (int i = 0; i < 2; ++i) projection.t[i] *= scale;
                const double count = kernels_.preview(preview, projection, wide2_);
                if (count < bar || count <= leaders[kLeaders - 1].preview) continue;
                int at = kLeaders - 1;
                for (; at > 0 && leaders[at - 1].preview < count; --at)
                    leaders[at] = leaders[at - 1];
                Hypothesis& h = leaders[at];
                for (int i = 0; i < 9; ++i) h.state.pose.R(i / 3, i % 3) = pose.r[i];
                for (int i = 0; i < 3; ++i) h.state.pose.t[i] = pose.t[i];
                h.state.normalize();
                h.state.log_focal = logs[lane];
                h.preview = count;
            }
        }
    }
}

void Search::consider(Hypothesis candidate) {
    score(&candidate);
    if (!(candidate.value.score > minimal_.value.score)) return;
    minimal_ = candidate;
    ++optimised_;
    const bool few = candidate.value.wide < kFewShare * problem_.total;
    const FitView view = plane_view(few ? problem_.view() : problem_.sample(), ones());
    const FocalKernel kernel{lens_kernels(kernels_), kPlane};
    const auto evaluate = [&](const FocalPoseF& p, LensEquations* out) {
        kernel.equations(view, p, 0.25f * wide2_, out);
    };
    Hypothesis improved = candidate;
    if (minimise(evaluate, kFocalSteps, 0.01 * wide2_, &improved.state)) {
        score(&improved);
        if (improved.value.score > candidate.value.score) candidate = improved;
    }
    if (candidate.value.score > best_.value.score) best_ = candidate;
}

bool Search::done() const {
    const double good = std::pow(std::min(1.0, best_.value.wide / problem_.total), 3);
    const double needed =
        good > 1 - 1e-9 ? 1
        : good < 1e-12  ? 1e12
                        : kSampleFactor * std::log(1 - options_.confidence) / std::log1p(-good);
    return samples_ >= max_samples_ || (samples_ >= options_.min_iterations && samples_ >= needed);
}

void Search::run() {
    const double scale = problem_.preview_total;
    std::vector<Leaders> round;
    for (std::uint64_t chunk = 0;;) {
        const double share = std::min(1.0, std::max(0.0, minimal_.preview / scale));
        const double bar = scale * share - 2.5 * std::sqrt(scale * share * (1 - share));
        // As with a known focal length: the chunks of a round know nothing of each other.
        round.assign(chunk < kSerialChunks ? 1 : kRound, Leaders());
        const std::uint64_t first = chunk;
        const auto evaluate = [&](int i) {
            Rng rng(options_.seed, first + i + 1);
            for (int k = 0; k < kTriples; ++k) draw(&rng, bar, &round[i]);
        };
        const bool ahead = options_.threads > 1;
        const int chunks = static_cast<int>(round.size());
        if (ahead) parallel_for(chunks, options_.threads, evaluate);
        for (int i = 0; i < chunks; ++i) {
            if (!ahead) evaluate(i);
            ++chunk;
            samples_ += kTriples;
            for (const Hypothesis& h : round[i]) {
                if (h.preview >= 0) consider(h);
            }
            if (done()) return;
        }
    }
}

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
              const AbsolutePoseOptions& options, const FocalSearch& focal, const Search& search) {
    FitResult result;
    FocalPose state = search.best().state;
    double radius = 2 * search.wide();
    const double prior = focal.sigma > 0 ? focal.trust / (focal.sigma * focal.sigma) : 0;
    {
        const FocalKernel kernel{lens_kernels(kernels), kPlane};
        const FitView view = plane_view(problem.view(), search.ones());
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

PoseF FocalPose::projection() const {
    PoseF out = pose.to_float();
    const float s = static_cast<float>(scale());
    for (int i = 0; i < 6; ++i) out.r[i] *= s;
    for (int i = 0; i < 2; ++i) out.t[i] *= s;
    return out;
}

PoseResult estimate_focal_pose(const Kernels& kernels, const Correspondences& in,
                               const Problem& problem, const Camera& camera,
                               const AbsolutePoseOptions& options, const FocalSearch& focal) {
    PoseResult result = PoseResult::of(in.n);
    Search search(problem, camera, options, focal, kernels);
    if (focal.start) {
        search.start_at(*focal.start);
    } else {
        search.run();
        result.iterations = search.samples();
        result.local_optimisations = search.optimised();
        if (!search.found()) {
            result.status = Status::kNoHypothesis;
            return result;
        }
    }
    const FitResult fitted = fit(kernels, problem, camera, options, focal, search);
    const double noise =
        pixel_noise(kernels, problem, fitted, FocalPose{fitted.pose, fitted.log_focal}.projection(),
                    by_rays(camera, options));
    const Demands demands{options.min_inliers, options.min_score, 4,
                          random_share(noise, problem.image_area)};
    finish(fitted, problem.centre, problem.source, problem.n, demands, &result);
    result.covariance *= options.redundancy;
    result.focal_scale = std::exp(fitted.log_focal);
    result.focal_std = result.focal_scale * fitted.log_focal_std * std::sqrt(options.redundancy);
    if (!(std::isfinite(result.focal_scale) && std::isfinite(result.focal_std)) ||
        (result.status == Status::kOk && !determined(in.points2d, 2, result)))
        result.status = Status::kDegenerate;
    return result;
}

}  // namespace reloc
