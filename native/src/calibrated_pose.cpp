#include "reloc/calibrated_pose.hpp"

#include <algorithm>
#include <cmath>

#include "reloc/constants.hpp"
#include "reloc/hypotheses.hpp"
#include "reloc/parallel.hpp"

namespace reloc {
namespace {

struct Scored {
    PoseF pose;
    PoseScore value{0, 0, 0};
    double preview = -1;
};

Pose to_double(const PoseF& f) {
    Pose p;
    for (int i = 0; i < 9; ++i) p.R(i / 3, i % 3) = f.r[i];
    for (int i = 0; i < 3; ++i) p.t[i] = f.t[i];
    p.normalize();
    return p;
}

class Search {
  public:
    Search(const Problem& problem, const AbsolutePoseOptions& options, const Kernels& kernels)
        : problem_(problem),
          options_(options),
          kernels_(kernels),
          sampler_(problem),
          narrow2_(static_cast<float>(options.threshold * options.threshold)),
          wide2_(static_cast<float>(options.search_radius * options.search_radius)) {}

    void run();

    bool found() const { return best_.score > 0; }
    const Pose& pose() const { return pose_; }
    const PoseScore& best() const { return best_; }
    int iterations() const { return samples_; }
    int local_optimisations() const { return optimised_; }

  private:
    Scored evaluate_chunk(std::uint64_t chunk, double bar) const;
    void consider(const Scored& candidate);
    double samples_needed() const;

    const Problem& problem_;
    const AbsolutePoseOptions& options_;
    const Kernels& kernels_;
    TripleSampler sampler_;
    float narrow2_, wide2_;
    Scored minimal_;
    PoseScore best_{0, 0, 0};
    Pose pose_;
    int samples_ = 0, optimised_ = 0;
};

/// Draws one chunk and returns its best minimal pose. `bar` is the preview count that a pose must
/// reach.
Scored Search::evaluate_chunk(std::uint64_t chunk, double bar) const {
    const PointsView preview = problem_.preview();
    Rng rng(options_.seed, chunk + 1);
    Scored top[kLeaders];
    alignas(64) P3PBatch batch;
    for (int half = 0; half < kChunk / kP3PBatch; ++half) {
        bool drawn[kP3PBatch];
        for (int lane = 0; lane < kP3PBatch; ++lane) {
            int idx[3] = {0, 0, 0};
            drawn[lane] = sampler_.draw(&rng, idx);
            load_sample(problem_, idx, lane, &batch);
        }
        kernels_.p3p(&batch);
        for (int lane = 0; lane < kP3PBatch; ++lane) {
            if (!drawn[lane]) continue;
            for (int k = 0; k < 4; ++k) {
                Scored s;
                if (!solution(batch, k, lane, &s.pose)) continue;
                s.preview = kernels_.preview(preview, s.pose, wide2_);
                if (s.preview < bar || s.preview <= top[kLeaders - 1].preview) continue;
                int at = kLeaders - 1;
                while (at > 0 && top[at - 1].preview < s.preview) {
                    top[at] = top[at - 1];
                    --at;
                }
                top[at] = s;
            }
        }
    }
    Scored best;
    for (Scored& s : top) {
        if (s.preview < 0) break;
        s.value = kernels_.score(problem_.view(), s.pose, narrow2_, wide2_);
        if (s.value.score > best.value.score) best = s;
    }
    return best;
}

void Search::consider(const Scored& candidate) {
    if (!(candidate.value.score > minimal_.value.score)) return;
    minimal_ = candidate;
    Pose pose = to_double(candidate.pose);
    PoseScore value = candidate.value;
    Pose improved = pose;
    ++optimised_;
    // With few inliers a sample of points holds too few of them.
    const bool few = candidate.value.wide < kFewShare * problem_.total;
    if (optimise_locally(kernels_, few ? problem_.view() : problem_.sample(),
                         options_.search_radius, kLocalSteps, &improved) > 0) {
        const PoseScore after =
            kernels_.score(problem_.view(), improved.to_float(), narrow2_, wide2_);
        if (after.score > value.score && improved.finite()) {
            value = after;
            pose = improved;
        }
    }
    if (value.score > best_.score) {
        best_ = value;
        pose_ = pose;
    }
}

double Search::samples_needed() const {
    const double share = std::min(1.0, best_.wide / problem_.total);
    const double good = share * share * share;
    if (good >= 1.0 - 1e-9) return 1;
    if (good < 1e-12) return 1e12;
    const double needed = std::log(1 - options_.confidence) / std::log1p(-good);
    // Where the points are noisy and inliers are few, most outlier-free samples give poses too poor
    // to be told from chance.
    const bool poor = share < kPoorShare && best_.narrow < 0.8 * best_.wide &&
                      options_.residual != Residual::kReprojection;
    return poor ? kPoorFactor * needed : needed;
}

void Search::run() {
    std::uint64_t chunk = 0;
    const double limit = options_.max_iterations;
    const double scale = problem_.preview_total;
    std::vector<Scored> round;
    while (samples_ < limit) {
        const double share = minimal_.preview > 0 ? minimal_.preview / scale : 0;
        const double bar = scale * share - 2.5 * std::sqrt(scale * share * (1 - share));
        // Long searches go in rounds whose chunks know nothing of each other: these may run on any
        // number of threads, and rounds are the same for all. One thread looks no further ahead
        // than it must.
        const bool ahead = options_.threads > 1;
        round.assign(chunk < kSerialChunks ? 1 : kRound, Scored());
        if (ahead) {
            parallel_for(static_cast<int>(round.size()), options_.threads,
                         [&](int i) { round[i] = evaluate_chunk(chunk + i, bar); });
        }
        bool done = false;
        const std::uint64_t first = chunk;
        for (std::size_t i = 0; i < round.size(); ++i) {
            if (!ahead) round[i] = evaluate_chunk(first + i, bar);
            ++chunk;
            samples_ += kChunk;
            consider(round[i]);
            done = (samples_ >= options_.min_iterations && samples_ >= samples_needed()) ||
                   samples_ >= limit;
            if (done) break;
        }
        if (done) break;
    }
    if (!found() || best_.wide > kManyShare * problem_.total) return;
    Pose polished = pose_;
    optimise_locally(kernels_, problem_.view(), options_.search_radius, kLocalSteps, &polished);
    const PoseScore value = kernels_.score(problem_.view(), polished.to_float(), narrow2_, wide2_);
    if (value.score > best_.score && polished.finite()) {
        best_ = value;
        pose_ = polished;
    }
}

}  // namespace

bool search_calibrated_pose(const Kernels& kernels, const Problem& problem, const Camera& camera,
                            const AbsolutePoseOptions& options, CalibratedPose* out) {
    Search search(problem, options, kernels);
    search.run();
    out->iterations = search.iterations();
    out->local_optimisations = search.local_optimisations();
    if (!search.found()) return false;
    out->residual = options.residual;
    if (out->residual == Residual::kAuto)
        out->residual = choose_residual(kernels, problem, search.pose(), options.search_radius);

    FitOptions fit_options;
    fit_options.residual = out->residual;
    fit_options.coarse_scale = options.threshold;
    fit_options.support = search.best().wide / problem.total;
    fit_options.select_radius = 2 * options.search_radius;
    fit_options.pixel_noise = options.pixel_noise;
    fit_options.local_noise = options.local_noise;
    if (!camera.plain()) fit_options.lens = &camera;
    // Patches of near outliers can widen the noise estimate until it takes them in. Support for the
    // fit then falls behind that for its start, and a fit that is held to less noise is tried.
    const auto support = [&](const Pose& pose) {
        return kernels
            .score(problem.view(), pose.to_float(),
                   static_cast<float>(options.threshold * options.threshold),
                   static_cast<float>(options.search_radius * options.search_radius))
            .score;
    };
    double fit_support = -1;
    for (int attempt = 0; attempt < kFitAttempts; ++attempt, fit_options.level_scale *= kTighter) {
        FitResult next = fit_pose(kernels, problem, search.pose(), fit_options);
        const double value = next.ok ? support(next.pose) : -1;
        if (attempt == 0 || value > fit_support) {
            out->fit = std::move(next);
            fit_support = value;
        }
        const double kept =
            search.best().wide < kPoorShare * problem.total ? kKeptSupportPoor : kKeptSupport;
        if (fit_support > kept * search.best().score &&
            search.best().wide > kPoorShare * problem.total)
            break;
    }
    return true;
}

}  // namespace reloc
