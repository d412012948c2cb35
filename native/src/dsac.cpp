#include "reloc/dsac.hpp"

#include <Eigen/Cholesky>
#include <cmath>
#include <limits>

#include "reloc/confidence.hpp"
#include "reloc/constants.hpp"
#include "reloc/covariance.hpp"
#include "reloc/p3p.hpp"
#include "reloc/parallel.hpp"
#include "reloc/refine.hpp"
#include "search.hpp"

namespace reloc {
namespace {

constexpr int kLeastSquaresSteps = 20;
constexpr float kNoRobustness = 1e12f;

struct Hypothesis {
    bool valid = false;
    PoseF pose;
    double score = 0;
    int tries = 0;
};

float error2(const PointsView& p, const PoseF& T, int i) {
    const float X = p.X[i], Y = p.Y[i], Z = p.Z[i];
    const float cx = T.r[0] * X + T.r[1] * Y + T.r[2] * Z + T.t[0],
                cy = T.r[3] * X + T.r[4] * Y + T.r[5] * Z + T.t[1],
                cz = T.r[6] * X + T.r[7] * Y + T.r[8] * Z + T.t[2];
    if (!(cz > 0)) return std::numeric_limits<float>::infinity();
    const float u = cx / cz - p.x[i], v = cy / cz - p.y[i];
    return (u * u + v * v) * p.s2[i];
}

/// Draws samples eight at a time until one is consistent with its fourth point.
Hypothesis draw(const Problem& problem, const DsacOptions& options, const Kernels& kernels,
                int number) {
    const Sampler sampler(problem.n, problem.cumulative);
    const PointsView view = problem.view();
    const float limit = static_cast<float>(options.threshold * options.threshold);
    Rng rng(options.seed, static_cast<std::uint64_t>(number) + 1);
    Hypothesis h;
    alignas(64) P3PBatch batch;
    while (h.tries < options.max_tries) {
        int idx[kP3PBatch][3], fourth[kP3PBatch];
        bool drawn[kP3PBatch];
        for (int lane = 0; lane < kP3PBatch; ++lane) {
            for (int& i : idx[lane]) i = 0;
            drawn[lane] = sampler.draw(&rng, idx[lane]);
            fourth[lane] = sampler.draw_one(&rng);
            for (int i : idx[lane]) drawn[lane] &= fourth[lane] != i;
            load_sample(problem, idx[lane], lane, &batch);
        }
        kernels.p3p(&batch);
        for (int lane = 0; lane < kP3PBatch && h.tries < options.max_tries; ++lane) {
            ++h.tries;
            if (!drawn[lane]) continue;
            // The fourth point chooses among the solutions, then all four must agree.
            float best = limit;
            for (int k = 0; k < 4; ++k) {
                PoseF pose;
                if (!solution(batch, k, lane, &pose)) continue;
                const float e = error2(view, pose, fourth[lane]);
                if (!(e < best)) continue;
                bool all = true;
                for (int i : idx[lane]) all &= error2(view, pose, i) < limit;
                if (!all) continue;
                best = e;
                h.pose = pose;
                h.valid = true;
            }
            if (h.valid) return h;
        }
    }
    return h;
}

/// Least squares on the reprojection error of the points within `radius` of `pose`.
bool least_squares(const Kernels& kernels, const Problem& problem, double radius, Pose* pose,
                   Mat6* covariance) {
    FitSet set;
    set.build(kernels, problem.view(), problem.n, Residual::kReprojection, pose->to_float(), radius,
              1, 1);
    if (set.points() < 4) return false;
    const FitView view = set.view();
    std::copy(set.scale2(), set.scale2() + view.n, set.info());
    Pose p = *pose;
    NormalEquations eq;
    double cost = std::numeric_limits<double>::infinity(), damping = 1e-9;
    Pose tried = p;
    for (int it = 0; it < kLeastSquaresSteps; ++it) {
        kernels.reprojection.equations(view, tried.to_float(), kNoRobustness, &eq);
        if (eq.cost < cost) {
            const bool done = eq.cost > cost * (1 - 1e-7);
            cost = eq.cost;
            p = tried;
            damping = std::max(1e-9, damping * 0.1);
            if (done) break;
        } else {
            damping = std::max(1e-4, damping * 10);
            kernels.reprojection.equations(view, p.to_float(), kNoRobustness, &eq);
        }
        Mat6 H = hessian(eq);
        H.diagonal() *= 1 + damping;
        const Eigen::LLT<Mat6> llt(H);
        if (llt.info() != Eigen::Success) return false;
        const Vec6 step = llt.solve(-gradient(eq));
        if (!step.allFinite()) return false;
        tried = p.perturbed(step);
    }
    kernels.reprojection.equations(view, p.to_float(), kNoRobustness, &eq);
    const Eigen::LLT<Mat6> llt(hessian(eq));
    if (llt.info() != Eigen::Success || !p.finite()) return false;
    p.normalize();
    *pose = p;
    // With no robust weight the kernel's loss is e^2 / c^2.
    const double dof = std::max(1.0, 2.0 * set.points() - 6.0);
    *covariance = llt.solve(Mat6::Identity()) * (eq.cost * kNoRobustness / dof);
    return true;
}

int count_inliers(const Kernels& kernels, const Problem& problem, const Pose& pose, double radius,
                  std::vector<unsigned char>* mask) {
    FloatRows scratch;
    scratch.allocate(1, problem.n);
    kernels.errors2(problem.view(), pose.to_float(), scratch.row(0));
    mask->assign(problem.n, 0);
    int count = 0;
    for (int i = 0; i < problem.n; ++i) {
        if (scratch.row(0)[i] < radius * radius) {
            (*mask)[i] = 1;
            ++count;
        }
    }
    return count;
}

}  // namespace

PoseResult estimate_pose_dsac(const Correspondences& in, const Camera& camera,
                              const DsacOptions& options) {
    const Kernels& kernels = *select_kernels(options.kernels);
    PoseResult result = PoseResult::of(in.n);
    Correspondences plain = in;
    plain.weights = plain.variances = plain.points_cam = ArrayRef{};
    if (in.n < 4) return result;
    Problem problem;
    build_problem(plain, camera, kernels, options.seed, &problem);
    if (problem.n < 4) return result;

    std::vector<Hypothesis> hypotheses(options.hypotheses);
    const double beta = 5.0 / options.threshold;
    parallel_for(options.hypotheses, options.threads, [&](int h) {
        hypotheses[h] = draw(problem, options, kernels, h);
        if (!hypotheses[h].valid) return;
        hypotheses[h].score =
            options.alpha / problem.n *
            kernels.soft_inliers(problem.view(), hypotheses[h].pose,
                                 static_cast<float>(options.threshold), static_cast<float>(beta),
                                 static_cast<float>(options.max_error));
    });
    const Hypothesis* winner = nullptr;
    for (const Hypothesis& h : hypotheses) {
        result.iterations += h.tries;
        if (h.valid && (!winner || h.score > winner->score)) winner = &h;
    }
    if (!winner) {
        result.status = Status::kNoHypothesis;
        return result;
    }

    Pose pose = Pose::from(winner->pose);
    std::vector<unsigned char> mask, inliers(problem.n, 0);
    int best_count = 4, fitted = 0;
    for (int step = 0; step < options.refine_steps; ++step) {
        const int count = count_inliers(kernels, problem, pose, options.threshold, &mask);
        if (count <= best_count) break;
        Pose next = pose;
        Mat6 covariance;
        if (!least_squares(kernels, problem, options.threshold, &next, &covariance)) break;
        best_count = fitted = count;
        inliers = mask;
        pose = next;
        result.covariance = covariance;
    }
    result.cam_from_world = uncentred(pose, problem.centre);
    result.inliers = fitted;
    for (int i = 0; i < problem.n; ++i) result.inlier[problem.input_index(i)] = inliers[i];
    result.score = std::min(1.0, static_cast<double>(fitted) / problem.n);
    result.effective_points = fitted;
    const double share = M_PI * options.threshold * options.threshold / problem.image_area;
    result.false_alarms = log_false_alarms(problem.n, fitted, 3, share);
    result.status = !(fitted > 0 && result.covariance.allFinite()) ? Status::kTooFewInliers
                    : result.false_alarms > kMaxFalseAlarms        ? Status::kChance
                    : !determined(in.points2d, 2, 4, result)       ? Status::kDegenerate
                                                                   : Status::kOk;
    return result;
}

}  // namespace reloc
