#include "reloc/generalized_pose.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <set>

#include "reloc/constants.hpp"
#include "reloc/gp3p.hpp"
#include "reloc/parallel.hpp"
#include "reloc/rng.hpp"
#include "rig_fit.hpp"

namespace reloc {
namespace {

using namespace rig;

struct Hypothesis {
    Pose pose;  ///< rig_from_world
    PoseScore value{0, 0, 0};
    double preview = -1;
};

class Search {
  public:
    Search(const Rig& rig, const AbsolutePoseOptions& options, const Kernels& kernels)
        : rig_(rig),
          options_(options),
          kernels_(kernels),
          narrow2_(static_cast<float>(options.threshold * options.threshold)),
          wide2_(static_cast<float>(options.search_radius * options.search_radius)) {}

    void run();
    const Hypothesis& best() const { return best_; }
    int samples() const { return samples_; }
    int optimised() const { return optimised_; }

  private:
    using Leaders = std::array<Hypothesis, kLeaders>;
    Leaders evaluate_chunk(std::uint64_t chunk, double bar) const;
    bool done() const;
    int sample(Rng* rng, Pose out[8]) const;
    /// Estimated share of the weight within the wide radius.
    double preview(const Pose& pose) const;
    void score(Hypothesis* h) const;
    void optimise(Pose* pose, bool all) const;
    void consider(Hypothesis candidate);

    const Rig& rig_;
    const AbsolutePoseOptions& options_;
    const Kernels& kernels_;
    float narrow2_, wide2_;
    Hypothesis minimal_, best_;
    int samples_ = 0, optimised_ = 0;
};

int Search::sample(Rng* rng, Pose out[8]) const {
    int idx[3], filled = 0;
    for (int tries = 0; tries < kMaxDraws && filled < 3; ++tries) {
        int i = static_cast<int>(rng->below(static_cast<std::uint32_t>(rig_.n)));
        if (!rig_.cumulative.empty()) {
            const auto& c = rig_.cumulative;
            const auto it = std::upper_bound(c.begin(), c.end(), rng->uniform() * c.back());
            i = std::min(static_cast<int>(it - c.begin()), rig_.n - 1);
        }
        bool fresh = true;
        for (int k = 0; k < filled; ++k) fresh &= idx[k] != i;
        if (fresh) idx[filled++] = i;
    }
    if (filled < 3) return 0;
    Vec3 origin[3], direction[3], point[3];
    for (int k = 0; k < 3; ++k) {
        const View& v = rig_.view_of(idx[k]);
        const PointsView p = v.problem.view();
        const int i = idx[k] - v.first;
        const Mat3 rig_from_cam = v.cam_from_rig.R.transpose();
        origin[k] = -rig_from_cam * v.cam_from_rig.t;
        direction[k] = rig_from_cam * Vec3(p.x[i], p.y[i], 1).normalized();
        point[k] = Vec3(p.X[i], p.Y[i], p.Z[i]) + v.offset;
    }
    return gp3p(origin, direction, point, out);
}

double Search::preview(const Pose& pose) const {
    double sum = 0;
    for (const View& v : rig_.views) {
        const double in =
            kernels_.preview(v.problem.preview(), rig_.cam_pose(v, pose).to_float(), wide2_);
        sum += in / v.problem.preview_total * v.priority * v.problem.total;
    }
    return sum / rig_.total;
}

void Search::score(Hypothesis* h) const {
    h->value = PoseScore{0, 0, 0};
    for (const View& v : rig_.views) {
        const PoseScore s = kernels_.score(v.problem.view(), rig_.cam_pose(v, h->pose).to_float(),
                                           narrow2_, wide2_);
        h->value.narrow += v.priority * s.narrow;
        h->value.wide += v.priority * s.wide;
        h->value.score += v.priority * s.score;
    }
}

/// Gauss-Newton on the Tukey-weighted reprojection error.
void Search::optimise(Pose* pose, bool all) const {
    for (int step = 0; step < kLocalSteps; ++step) {
        Mat6 H = Mat6::Zero();
        Vec6 g = Vec6::Zero();
        for (const View& v : rig_.views) {
            NormalEquations eq;
            kernels_.search_equations(all ? v.problem.view() : v.problem.sample(),
                                      rig_.cam_pose(v, *pose).to_float(), wide2_, &eq);
            const double share = all ? 1 : static_cast<double>(v.problem.n) / v.problem.sample_n;
            H += v.priority * share * v.to_rig * hessian(eq) * v.to_rig.transpose();
            g += v.priority * share * v.to_rig * gradient(eq);
        }
        H.diagonal() *= 1 + 1e-9;
        const Eigen::LLT<Mat6> llt(H);
        if (llt.info() != Eigen::Success) break;
        const Vec6 move = llt.solve(-g);
        if (!move.allFinite()) break;
        *pose = pose->perturbed(move);
        if (-g.dot(move) < 0.01 * wide2_) break;
    }
    pose->normalize();
}

void Search::consider(Hypothesis candidate) {
    score(&candidate);
    if (!(candidate.value.score > minimal_.value.score)) return;
    minimal_ = candidate;
    ++optimised_;
    Hypothesis improved = candidate;
    optimise(&improved.pose, candidate.value.wide < kFewShare * rig_.total);
    if (improved.pose.finite()) {
        score(&improved);
        if (improved.value.score > candidate.value.score) candidate = improved;
    }
    if (candidate.value.score > best_.value.score) best_ = candidate;
}

/// The poses of one chunk that look best. `bar` is the least share of the preview.
Search::Leaders Search::evaluate_chunk(std::uint64_t chunk, double bar) const {
    Rng rng(options_.seed, chunk + 1);
    Leaders leaders;
    for (int k = 0; k < kChunk; ++k) {
        Pose poses[8];
        const int found = sample(&rng, poses);
        for (int s = 0; s < found; ++s) {
            const double seen = preview(poses[s]);
            if (seen < bar || seen <= leaders[kLeaders - 1].preview) continue;
            int at = kLeaders - 1;
            for (; at > 0 && leaders[at - 1].preview < seen; --at) leaders[at] = leaders[at - 1];
            leaders[at].pose = poses[s];
            leaders[at].preview = seen;
        }
    }
    return leaders;
}

bool Search::done() const {
    const double good = std::pow(std::min(1.0, best_.value.wide / rig_.total), 3);
    const double needed = good > 1 - 1e-9 ? 1
                          : good < 1e-12  ? 1e12
                                          : std::log(1 - options_.confidence) / std::log1p(-good);
    return samples_ >= options_.max_iterations ||
           (samples_ >= options_.min_iterations && samples_ >= needed);
}

void Search::run() {
    std::vector<Leaders> round;
    for (std::uint64_t chunk = 0;;) {
        const double share = std::min(1.0, std::max(0.0, minimal_.preview));
        const double bar = share - 2.5 * std::sqrt(share * (1 - share) / rig_.preview_n);
        // As for one image: the chunks of a round know nothing of each other.
        round.assign(chunk < kSerialChunks ? 1 : kRound, Leaders());
        const bool ahead = options_.threads > 1;
        if (ahead) {
            parallel_for(static_cast<int>(round.size()), options_.threads,
                         [&](int i) { round[i] = evaluate_chunk(chunk + i, bar); });
        }
        const std::uint64_t first = chunk;
        for (std::size_t i = 0; i < round.size(); ++i) {
            if (!ahead) round[i] = evaluate_chunk(first + i, bar);
            ++chunk;
            samples_ += kChunk;
            for (const Hypothesis& h : round[i]) {
                if (h.preview >= 0) consider(h);
            }
            if (done()) return;
        }
    }
}

FitResult fit(const Kernels& kernels, const Rig& rig, const AbsolutePoseOptions& options,
              const Pose& start, bool* of_rays) {
    FitOptions fit_options;
    fit_options.residual = options.residual;
    fit_options.pixel_noise = options.pixel_noise;
    if (options.residual == Residual::kAuto) {
        const View& v = *std::max_element(
            rig.views.begin(), rig.views.end(),
            [](const View& a, const View& b) { return a.problem.n < b.problem.n; });
        fit_options.residual =
            choose_residual(kernels, v.problem, rig.cam_pose(v, start), options.search_radius);
    }
    const bool ray = *of_rays = fit_options.residual == Residual::kRay;
    const bool local = ray && options.local_noise && rig.n >= kDensePoints;
    const RigKernel kernel{kernels, rig, ray};
    FitResult result;
    RigPose state{start};
    double radius = 2 * options.search_radius;
    {
        // At a fixed scale in pixels, to where the noise can be judged.
        RigSet near;
        near.build(kernels, rig, start, radius, fit_options, false);
        if (near.points() < 4) return result;
        if (ray) near.measure_in_pixels(rig, start);
        std::copy(near.base(), near.base() + near.slots(), near.info());
        const float c2 = static_cast<float>(options.threshold * options.threshold);
        const auto evaluate = [&](const RigPoseF& p, NormalEquations* out) {
            kernel.equations(near.view(), p, c2, out);
        };
        if (!minimise(evaluate, 5, 0.1, &state)) return result;
        FloatRows errors;
        errors.allocate(1, near.slots());
        kernel.errors2(near.view(), state.to_float(), errors.row(0));
        const double noise =
            std::sqrt(initial_level(kernels, near, errors.row(0), near.base(), near.prior(), 2));
        radius = std::min(std::max(kSelectSigmas * noise, options.threshold), kMaxWiden * radius);
    }
    RigSet set;
    set.build(kernels, rig, state.pose, radius, fit_options, local);
    if (set.points() < 4) return result;
    FloatRows errors;
    errors.allocate(1, set.slots());
    robust_fit(kernels, &set, kernel, set.base(), errors.row(0), set.floor2(), 2, local, 1.0, rig.n,
               state, &result);
    return result;
}

/// Whether at least four different pixels support the pose.
bool supported(const std::vector<RigImage>& images, const PoseResult& result) {
    constexpr std::size_t kEnough = 4;
    std::set<std::array<double, 3>> seen;
    std::size_t at = 0;
    for (std::size_t k = 0; k < images.size(); ++k) {
        const Correspondences& c = images[k].points;
        for (std::size_t i = 0; i < c.n && seen.size() < kEnough; ++i) {
            if (!result.inlier[at + i]) continue;
            seen.insert({static_cast<double>(k), c.points2d[2 * i], c.points2d[2 * i + 1]});
        }
        at += c.n;
    }
    return seen.size() >= kEnough;
}

}  // namespace

PoseResult estimate_generalized_pose(const std::vector<RigImage>& images,
                                     const AbsolutePoseOptions& options) {
    const Kernels& kernels = *select_kernels(options.kernels);
    std::size_t n = 0;
    for (const RigImage& image : images) n += image.points.n;
    PoseResult result = PoseResult::of(n);
    Rig rig;
    build(images, kernels, options.seed, &rig);
    if (rig.n < 4) return result;
    AbsolutePoseOptions resolved = options;
    for (const RigImage& image : images) {
        if (resolved.residual == Residual::kAuto)
            resolved.residual = resolve_options(options, image.points).residual;
    }
    resolved = resolve_options(resolved, {});
    Search search(rig, resolved, kernels);
    search.run();
    result.iterations = search.samples();
    result.local_optimisations = search.optimised();
    if (!(search.best().value.score > 0)) {
        result.status = Status::kNoHypothesis;
        return result;
    }
    bool ray = false;
    const FitResult fitted = fit(kernels, rig, resolved, search.best().pose, &ray);
    double share = 0;
    for (const View& v : rig.views) {
        double noise =
            ray ? fitted.sigma * v.problem.focal / std::max(fitted.depth, 1e-12) : fitted.sigma;
        if (!v.problem.variance.empty() && fitted.ok) {
            const unsigned char* inlier = fitted.inlier.data() + v.first;
            const int count = std::accumulate(inlier, inlier + v.problem.n, 0);
            noise = std::sqrt(0.5 / std::max(count, 1) *
                              squared_pixels(kernels, v.problem,
                                             rig.cam_pose(v, fitted.pose).to_float(), inlier));
        }
        share += random_share(noise, v.problem.image_area) * v.problem.n / rig.n;
    }
    const Demands demands{options.min_inliers, options.min_score, 3, share};
    finish(fitted, rig.centre, rig.source, rig.n, demands, &result);
    if (result.status == Status::kOk && !supported(images, result))
        result.status = Status::kDegenerate;
    return result;
}

}  // namespace reloc
