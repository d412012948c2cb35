#include "reloc/calibrated_pose.hpp"

#include "reloc/constants.hpp"
#include "reloc/p3p.hpp"
#include "search.hpp"

namespace reloc {
namespace {

/// P3P poses, as search.hpp takes them.
class Model {
  public:
    using Minimal = PoseF;
    using State = Pose;
    static constexpr int kSample = 3, kChunk = reloc::kChunk, kLeaders = reloc::kLeaders;

    Model(const Problem& problem, const AbsolutePoseOptions& options, const Kernels& kernels)
        : problem_(problem),
          options_(options),
          kernels_(kernels),
          sampler_(problem.n, problem.cumulative),
          narrow2_(static_cast<float>(options.threshold * options.threshold)),
          wide2_(static_cast<float>(options.search_radius * options.search_radius)) {}

    double total() const { return problem_.total; }
    double preview_total() const { return problem_.preview_total; }

    void propose(Rng* rng, Leaders<Minimal, kLeaders>* leaders) const {
        const PointsView preview = problem_.preview();
        alignas(64) P3PBatch batch;
        for (int part = 0; part < kChunk / kP3PBatch; ++part) {
            bool drawn[kP3PBatch];
            for (int lane = 0; lane < kP3PBatch; ++lane) {
                int idx[3] = {0, 0, 0};
                drawn[lane] = sampler_.draw(rng, idx);
                load_sample(problem_, idx, lane, &batch);
            }
            kernels_.p3p(&batch);
            for (int lane = 0; lane < kP3PBatch; ++lane) {
                PoseF pose;
                for (int k = 0; drawn[lane] && k < 4; ++k) {
                    if (!solution(batch, k, lane, &pose)) continue;
                    const double seen = kernels_.preview(preview, pose, wide2_);
                    if (leaders->wants(seen)) leaders->take(pose, seen);
                }
            }
        }
    }

    Pose lift(const PoseF& pose) const { return Pose::from(pose); }
    PoseScore score(const Pose& pose) const { return score(pose.to_float()); }
    PoseScore score(const PoseF& pose) const {
        return kernels_.score(problem_.view(), pose, narrow2_, wide2_);
    }
    bool optimise(bool all, Pose* pose) const {
        return optimise_locally(kernels_, all ? problem_.view() : problem_.sample(),
                                options_.search_radius, kLocalSteps, pose) > 0;
    }
    double patience(const PoseScore& best) const {
        return reloc::patience(best.narrow, best.wide, problem_.total,
                               options_.residual != Residual::kReprojection);
    }

  private:
    const Problem& problem_;
    const AbsolutePoseOptions& options_;
    const Kernels& kernels_;
    Sampler sampler_;
    float narrow2_, wide2_;
};

}  // namespace

bool search_calibrated_pose(const Kernels& kernels, const Problem& problem, const Camera& camera,
                            const AbsolutePoseOptions& options, CalibratedPose* out) {
    const Model model(problem, options, kernels);
    Search<Model> search(model, options);
    const bool found = search.run();
    out->iterations = search.samples;
    out->local_optimisations = search.optimised;
    if (!found) return false;
    if (search.best.value.wide <= kManyShare * problem.total) search.polish();
    const Pose& pose = search.best.state;
    const PoseScore& value = search.best.value;
    out->residual = options.residual;
    if (out->residual == Residual::kAuto)
        out->residual = choose_residual(kernels, problem, pose, options.search_radius);

    FitOptions fit_options;
    fit_options.residual = out->residual;
    fit_options.coarse_scale = options.threshold;
    fit_options.support = value.wide / problem.total;
    fit_options.select_radius = 2 * options.search_radius;
    fit_options.pixel_noise = options.pixel_noise;
    fit_options.local_noise = options.local_noise;
    if (!camera.plain()) fit_options.lens = &camera;
    // Patches of near outliers can widen the noise estimate until it takes them in. Support for the
    // fit then falls behind that for its start, and a fit that is held to less noise is tried.
    double fit_support = -1;
    for (int attempt = 0; attempt < kFitAttempts; ++attempt, fit_options.level_scale *= kTighter) {
        FitResult next = fit_pose(kernels, problem, pose, fit_options);
        const double support = next.ok ? model.score(next.pose).score : -1;
        if (attempt == 0 || support > fit_support) {
            out->fit = std::move(next);
            fit_support = support;
        }
        const double kept =
            value.wide < kPoorShare * problem.total ? kKeptSupportPoor : kKeptSupport;
        if (fit_support > kept * value.score && value.wide > kPoorShare * problem.total) break;
    }
    return true;
}

}  // namespace reloc
