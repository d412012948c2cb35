#include "reloc/generalized_pose.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <tuple>

#include "reloc/constants.hpp"
#include "reloc/gp3p.hpp"
#include "rig_fit.hpp"
#include "search.hpp"

namespace reloc {
namespace {

using namespace rig;

/// Poses of three rays of any of the images, as search.hpp takes them.
class Model {
  public:
    using Minimal = Pose;  ///< rig_from_world
    using State = Pose;
    static constexpr int kSample = 3, kChunk = reloc::kChunk, kLeaders = reloc::kLeaders;

    Model(const Rig& rig, const AbsolutePoseOptions& options, const Kernels& kernels)
        : rig_(rig),
          kernels_(kernels),
          sampler_(rig.n, rig.cumulative),
          narrow2_(static_cast<float>(options.threshold * options.threshold)),
          wide2_(static_cast<float>(options.search_radius * options.search_radius)) {}

    double total() const { return rig_.total; }
    double preview_total() const { return rig_.preview_n; }

    void propose(Rng* rng, Leaders<Minimal, kLeaders>* leaders) const {
        for (int k = 0; k < kChunk; ++k) {
            Pose poses[8];
            const int found = sample(rng, poses);
            for (int s = 0; s < found; ++s) {
                const double seen = preview(poses[s]);
                if (leaders->wants(seen)) leaders->take(poses[s], seen);
            }
        }
    }

    Pose lift(const Pose& pose) const { return pose; }
    PoseScore score(const Pose& pose) const {
        PoseScore sum{0, 0, 0};
        for (const View& v : rig_.views) {
            const PoseScore s = kernels_.score(v.problem.view(), rig_.cam_pose(v, pose).to_float(),
                                               narrow2_, wide2_);
            sum.narrow += v.priority * s.narrow;
            sum.wide += v.priority * s.wide;
            sum.score += v.priority * s.score;
        }
        return sum;
    }
    /// Gauss-Newton on the Tukey-weighted reprojection error.
    bool optimise(bool all, Pose* pose) const {
        for (int step = 0; step < kLocalSteps; ++step) {
            Mat6 H = Mat6::Zero();
            Vec6 g = Vec6::Zero();
            for (const View& v : rig_.views) {
                NormalEquations eq;
                kernels_.search_equations(all ? v.problem.view() : v.problem.sample(),
                                          rig_.cam_pose(v, *pose).to_float(), wide2_, &eq);
                const double share =
                    all ? 1 : static_cast<double>(v.problem.n) / v.problem.sample_n;
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
        return true;
    }
    double patience(const PoseScore&) const { return 1; }

  private:
    int sample(Rng* rng, Pose out[8]) const {
        int idx[3];
        if (!sampler_.draw(rng, idx)) return 0;
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
    /// Estimated share of the weight within the wide radius, times the points that tell it.
    double preview(const Pose& pose) const {
        double sum = 0;
        for (const View& v : rig_.views) {
            const double in =
                kernels_.preview(v.problem.preview(), rig_.cam_pose(v, pose).to_float(), wide2_);
            sum += in / v.problem.preview_total * v.priority * v.problem.total;
        }
        return sum / rig_.total * rig_.preview_n;
    }

    const Rig& rig_;
    const Kernels& kernels_;
    Sampler sampler_;
    float narrow2_, wide2_;
};

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
    const auto pixel = [&](std::size_t i) {
        std::size_t k = 0;
        for (; i >= images[k].points.n; ++k) i -= images[k].points.n;
        const ArrayRef& p = images[k].points.points2d;
        return std::make_tuple(k, p[2 * i], p[2 * i + 1]);
    };
    return determined(4, result,
                      [&](std::size_t i, std::size_t j) { return pixel(i) == pixel(j); });
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
    const Model model(rig, resolved, kernels);
    Search<Model> search(model, resolved);
    if (!search.run(&result)) return result;
    bool ray = false;
    const FitResult fitted = fit(kernels, rig, resolved, search.best.state, &ray);
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
