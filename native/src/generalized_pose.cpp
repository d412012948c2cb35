#include "reloc/generalized_pose.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <set>

#include "lens_fit.hpp"
#include "reloc/gp3p.hpp"
#include "reloc/rng.hpp"
#include "robust_fit.hpp"

namespace reloc {
namespace {

constexpr int kTriples = 16;  // minimal samples per chunk
constexpr int kLeaders = 3;   // poses of a chunk that are scored on all points
constexpr int kLocalSteps = 8, kMaxDraws = 32;
constexpr double kFewShare = 0.1;  // below it local optimisation needs all points
constexpr double kSceneSearchRadius = 25, kPixelSearchRadius = 12;
constexpr double kSelectSigmas = 16, kMaxWiden = 4;
constexpr int kDensePoints = 1000;

/// The transpose of the adjoint of cam_from_rig: takes gradients in a camera to the rig.
Mat6 gradient_to_rig(const Pose& cam_from_rig) {
    const Mat3& R = cam_from_rig.R;
    const Vec3& t = cam_from_rig.t;
    Mat3 cross;
    cross << 0, -t.z(), t.y(), t.z(), 0, -t.x(), -t.y(), t.x(), 0;
    Mat6 out = Mat6::Zero();
    out.topLeftCorner<3, 3>() = R.transpose();
    out.bottomRightCorner<3, 3>() = R.transpose();
    out.topRightCorner<3, 3>() = (cross * R).transpose();
    return out;
}

struct View {
    Problem problem;
    const Camera* camera;
    Pose cam_from_rig;
    Mat6 to_rig;
    Vec3 offset;      ///< the problem's centre less the rig's
    double priority;  ///< weight of a point of mean weight
    int first;        ///< of its points among those of all
};

/// The points of all images, in a frame centred on the first image's points.
struct Rig {
    std::vector<View> views;
    Vec3 centre = Vec3::Zero();
    int n = 0, preview_n = 0;
    double total = 0;
    std::vector<double> cumulative;  ///< of weights, empty if unweighted
    std::vector<int> source;

    Pose cam_pose(const View& v, const Pose& rig_from_world) const {
        Pose out;
        out.R = v.cam_from_rig.R * rig_from_world.R;
        out.t = v.cam_from_rig.R * rig_from_world.t + v.cam_from_rig.t;
        return centred(out, v.offset);
    }
    const View& view_of(int point) const {
        std::size_t k = views.size() - 1;
        while (views[k].first > point) --k;
        return views[k];
    }
};

void build(const std::vector<RigImage>& images, const Kernels& kernels, std::uint64_t seed,
           Rig* rig) {
    rig->views.reserve(images.size());
    std::vector<double> sums;
    double sum = 0;
    int before = 0;
    bool weighted = false;
    for (const RigImage& image : images) {
        View v;
        v.camera = image.camera;
        v.cam_from_rig = image.cam_from_rig;
        v.to_rig = gradient_to_rig(image.cam_from_rig);
        build_problem(image.points, *image.camera, kernels, seed, &v.problem);
        double of_image = v.problem.n;
        if (image.points.weights) {
            weighted = true;
            of_image = 0;
            for (int i = 0; i < v.problem.n; ++i)
                of_image += image.points.weights[v.problem.input_index(i)];
        }
        for (int i = 0; i < v.problem.n; ++i)
            rig->source.push_back(before + v.problem.input_index(i));
        before += static_cast<int>(image.points.n);
        if (v.problem.n == 0) continue;
        v.first = rig->n;
        rig->n += v.problem.n;
        rig->preview_n += v.problem.preview_n;
        sums.push_back(of_image);
        sum += of_image;
        rig->views.push_back(std::move(v));
    }
    if (rig->views.empty()) return;
    rig->centre = rig->views[0].problem.centre;
    const double mean = sum / rig->n;
    for (std::size_t k = 0; k < rig->views.size(); ++k) {
        View& v = rig->views[k];
        v.offset = v.problem.centre - rig->centre;
        v.priority = sums[k] / v.problem.n / mean;
        const PointsView p = v.problem.view();
        for (int i = 0; weighted && i < v.problem.n; ++i) {
            const double w = v.priority * (p.w ? p.w[i] : 1.0);
            rig->cumulative.push_back(w + (rig->cumulative.empty() ? 0 : rig->cumulative.back()));
        }
        rig->total += v.priority * v.problem.total;
    }
}

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

void Search::run() {
    for (std::uint64_t chunk = 1; samples_ < options_.max_iterations; ++chunk) {
        const double share = std::min(1.0, std::max(0.0, minimal_.preview));
        const double bar = share - 2.5 * std::sqrt(share * (1 - share) / rig_.preview_n);
        Rng rng(options_.seed, chunk);
        Hypothesis leaders[kLeaders];
        for (int k = 0; k < kTriples; ++k) {
            Pose poses[8];
            const int found = sample(&rng, poses);
            for (int s = 0; s < found; ++s) {
                const double seen = preview(poses[s]);
                if (seen < bar || seen <= leaders[kLeaders - 1].preview) continue;
                int at = kLeaders - 1;
                for (; at > 0 && leaders[at - 1].preview < seen; --at)
                    leaders[at] = leaders[at - 1];
                leaders[at].pose = poses[s];
                leaders[at].preview = seen;
            }
        }
        samples_ += kTriples;
        for (const Hypothesis& h : leaders) {
            if (h.preview >= 0) consider(h);
        }
        const double good = std::pow(std::min(1.0, best_.value.wide / rig_.total), 3);
        const double needed = good > 1 - 1e-9 ? 1
                              : good < 1e-12
                                  ? 1e12
                                  : std::log(1 - options_.confidence) / std::log1p(-good);
        if (samples_ >= options_.min_iterations && samples_ >= needed) break;
    }
}

/// A rig's pose as robust_fit takes it: float for what is common, exact for the images.
struct RigPoseF : PoseF {
    Pose exact;
};
struct RigPose {
    static constexpr int kParameters = 6;
    using Step = Vec6;
    using Equations = NormalEquations;
    Pose pose;

    RigPose perturbed(const Vec6& step) const { return {pose.perturbed(step)}; }
    bool finite() const { return pose.finite(); }
    void normalize() { pose.normalize(); }
    RigPoseF to_float() const { return {pose.to_float(), pose}; }
};

void keep(const RigPose& state, const Mat6& covariance, FitResult* result) {
    result->pose = state.pose;
    result->covariance = covariance;
}

class RigSet;
/// All points of a set, or one cell of one image.
struct RigView {
    const RigSet* set;
    int cell;  ///< -1: all
};

/// The final fit's points of all images: cells of one image after those of the other.
class RigSet : public CellLayout {
  public:
    void build(const Kernels& kernels, const Rig& rig, const Pose& pose, double radius,
               const FitOptions& options, bool local);

    RigView view() const { return {this, -1}; }
    RigView cell(int c) const { return {this, c}; }
    float* info() { return rows_.row(kInfo); }
    const float* prior() const { return rows_.row(kPrior); }
    const float* base() const { return rows_.row(kBase); }
    double floor2() const { return floor2_; }
    /// Replaces the base information of points by that of pixels at their depth.
    void measure_in_pixels(const Rig& rig, const Pose& pose);

    struct Point {
        const View* image;
        FitView points;
        int at;
    };
    Point point(int slot) const {
        std::size_t k = parts_.size() - 1;
        while (parts_[k].slot > slot) --k;
        return {parts_[k].view, parts_[k].set.view(), slot - parts_[k].slot};
    }

    /// Calls visit(view, slots of its points or of the cell, first slot in this set).
    template <class Visit>
    void each(const RigView& of, Visit visit) const {
        for (const Part& part : parts_) {
            const int cells = part.set.cells();
            if (of.cell >= 0 && (of.cell < part.cell || of.cell >= part.cell + cells)) continue;
            FitView v = of.cell < 0 ? part.set.view() : part.set.cell(of.cell - part.cell);
            const int slot =
                part.slot + (of.cell < 0 ? 0 : part.set.cell_begin(of.cell - part.cell));
            v.info = rows_.row(kInfo) + slot;
            v.w = rows_.row(kPrior) + slot;
            visit(*part.view, v, slot);
        }
    }

  private:
    enum Row { kInfo, kPrior, kBase, kRows };
    struct Part {
        const View* view;
        FitSet set;
        int cell, slot;
    };
    std::vector<Part> parts_;
    FloatRows rows_;
    double floor2_ = 0;
};

void RigSet::build(const Kernels& kernels, const Rig& rig, const Pose& pose, double radius,
                   const FitOptions& options, bool local) {
    parts_.resize(rig.views.size());
    for (std::size_t k = 0; k < parts_.size(); ++k) {
        Part& part = parts_[k];
        const View& v = rig.views[k];
        part.view = &v;
        part.cell = cells();
        part.slot = slots();
        part.set.build(kernels, v.problem.view(), v.problem.n, options.residual,
                       rig.cam_pose(v, pose).to_float(), radius, local ? 10 : 4, local ? 8 : 3);
        append(part.set, v.first);
    }
    rows_.allocate(kRows, slots());
    double weight = 0;
    for (Part& part : parts_) {
        const View& v = *part.view;
        FitOptions of_image = options;
        of_image.lens = v.camera->plain() ? nullptr : v.camera;
        float* prior = rows_.row(kPrior) + part.slot;
        for (int i = 0; i < part.set.slots(); ++i)
            prior[i] = static_cast<float>(v.priority) * part.set.prior()[i];
        const double floor2 = base_information(part.set, v.problem, rig.cam_pose(v, pose), of_image,
                                               rows_.row(kBase) + part.slot);
        floor2_ += part.set.points() * floor2;
        weight += part.set.points();
        if (of_image.lens && options.residual != Residual::kRay)
            part.set.through(kernels, v.camera->lens());
    }
    floor2_ /= std::max(weight, 1.0);
}

void RigSet::measure_in_pixels(const Rig& rig, const Pose& pose) {
    for (const Part& part : parts_) {
        const PoseF cam = rig.cam_pose(*part.view, pose).to_float();
        const FitView v = part.set.view();
        float* base = rows_.row(kBase) + part.slot;
        for (int i = 0; i < v.n; ++i) {
            const float z = cam.r[6] * v.X[i] + cam.r[7] * v.Y[i] + cam.r[8] * v.Z[i] + cam.t[2];
            base[i] = part.set.scale2()[i] / std::max(z * z, 1e-18f);
        }
    }
}

/// The residual of each image, moved to the rig.
struct RigKernel {
    const Kernels& kernels;
    const Rig& rig;
    bool ray;

    template <class Run>
    void with(const View& v, Run run) const {
        if (ray)
            run(kernels.ray);
        else if (v.camera->plain())
            run(kernels.reprojection);
        else
            run(LensKernel{lens_kernels(kernels), v.camera->lens()});
    }
    void errors2(const RigView& view, const RigPoseF& pose, float* out) const {
        view.set->each(view, [&](const View& v, const FitView& points, int slot) {
            const PoseF cam = rig.cam_pose(v, pose.exact).to_float();
            with(v, [&](const auto& kernel) { kernel.errors2(points, cam, out + slot); });
        });
    }
    void equations(const RigView& view, const RigPoseF& pose, float c2,
                   NormalEquations* out) const {
        Mat6 H = Mat6::Zero();
        sum(view, pose, out, [&](const View& v, const FitView& points, const PoseF& cam) {
            NormalEquations eq;
            with(v, [&](const auto& kernel) { kernel.equations(points, cam, c2, &eq); });
            H += v.to_rig * hessian(eq) * v.to_rig.transpose();
            return eq;
        });
        int k = 0;
        for (int i = 0; i < 6; ++i) {
            for (int j = i; j < 6; ++j) out->h[k++] = H(i, j);
        }
    }
    void gradient(const RigView& view, const RigPoseF& pose, float c2, NormalEquations* out) const {
        sum(view, pose, out, [&](const View& v, const FitView& points, const PoseF& cam) {
            NormalEquations eq;
            with(v, [&](const auto& kernel) { kernel.gradient(points, cam, c2, &eq); });
            return eq;
        });
    }

    double depth(const RigView& view, const RigPoseF& pose, int slot) const {
        const auto [image, points, at] = view.set->point(slot);
        const PoseF cam = rig.cam_pose(*image, pose.exact).to_float();
        return cam.r[6] * points.X[at] + cam.r[7] * points.Y[at] + cam.r[8] * points.Z[at] +
               cam.t[2];
    }

  private:
    template <class Part>
    void sum(const RigView& view, const RigPoseF& pose, NormalEquations* out, Part part) const {
        Vec6 g = Vec6::Zero();
        out->cost = out->weight = 0;
        view.set->each(view, [&](const View& v, const FitView& points, int) {
            const NormalEquations eq = part(v, points, rig.cam_pose(v, pose.exact).to_float());
            g += v.to_rig * reloc::gradient(eq);
            out->cost += eq.cost;
            out->weight += eq.weight;
        });
        for (int i = 0; i < 6; ++i) out->g[i] = g[i];
    }
};

double depth_of(const RigKernel& kernel, const RigView& view, const RigPoseF& pose, int slot) {
    return kernel.depth(view, pose, slot);
}

FitResult fit(const Kernels& kernels, const Rig& rig, const AbsolutePoseOptions& options,
              const Pose& start) {
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
    const bool ray = fit_options.residual == Residual::kRay;
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
    PoseResult result;
    result.covariance.setConstant(std::numeric_limits<double>::infinity());
    std::size_t n = 0;
    bool variances = false;
    for (const RigImage& image : images) {
        n += image.points.n;
        variances |= static_cast<bool>(image.points.variances);
    }
    result.inlier.assign(n, 0);
    Rig rig;
    build(images, kernels, options.seed, &rig);
    if (rig.n < 4) return result;
    AbsolutePoseOptions resolved = options;
    if (resolved.residual == Residual::kAuto && variances) resolved.residual = Residual::kRay;
    if (!(resolved.search_radius > 0)) {
        resolved.search_radius =
            resolved.residual == Residual::kReprojection ? kPixelSearchRadius : kSceneSearchRadius;
        resolved.search_radius = std::max(resolved.search_radius, resolved.threshold);
    }
    Search search(rig, resolved, kernels);
    search.run();
    result.iterations = search.samples();
    result.local_optimisations = search.optimised();
    if (!(search.best().value.score > 0)) {
        result.status = Status::kNoHypothesis;
        return result;
    }
    const FitResult fitted = fit(kernels, rig, resolved, search.best().pose);
    finish(fitted, rig.centre, rig.source, rig.n, options.min_inliers, options.min_score, &result);
    if (result.status == Status::kOk && !supported(images, result))
        result.status = Status::kDegenerate;
    return result;
}

}  // namespace reloc
