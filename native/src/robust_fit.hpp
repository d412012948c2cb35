// The final fit, shared by the residuals; internal to the library.
#pragma once

#include <Eigen/Cholesky>
#include <algorithm>
#include <cmath>
#include <iterator>
#include <memory>
#include <numeric>
#include <vector>

#include "reloc/constants.hpp"
#include "reloc/covariance.hpp"
#include "reloc/noise.hpp"
#include "reloc/refine.hpp"

namespace reloc {

template <class Equations, class Step>
bool solve_step(const Equations& eq, double damping, Step* step) {
    auto H = hessian(eq);
    H.diagonal() *= 1.0 + damping;
    const Eigen::LLT<decltype(H)> llt(H);
    if (llt.info() != Eigen::Success) return false;
    *step = llt.solve(-gradient(eq));
    return step->allFinite();
}

/// Levenberg-Marquardt. Stops when the step predicts a decrease of the cost's quadratic model below
/// `tolerance`, or after `evaluations`. `State` is what is fitted: a pose, or a pose with a focal
/// length.
template <class State, class Evaluate>
bool minimise(Evaluate evaluate, int evaluations, double tolerance, State* pose) {
    typename State::Equations eq, trial;
    evaluate(pose->to_float(), &eq);
    double damping = 0;
    for (int left = evaluations - 1;; --left) {
        typename State::Step step;
        while (!solve_step(eq, damping, &step)) {
            damping = damping == 0 ? 1e-6 : damping * 10;
            if (damping > 1) return false;
        }
        const State next = pose->perturbed(step);
        if (-gradient(eq).dot(step) < tolerance) {
            *pose = next;
            break;
        }
        if (left <= 0) break;
        evaluate(next.to_float(), &trial);
        // Rounding of the float sums must not pass for an increase.
        if (trial.cost <= eq.cost * (1 + 1e-5)) {
            *pose = next;
            eq = trial;
            damping = damping > 1e-6 ? damping * 0.1 : 0;
        } else {
            damping = damping == 0 ? 1e-3 : damping * 10;
            if (damping > 1e6) break;
        }
    }
    pose->normalize();
    return pose->finite();
}

/// Depth of a point in its image. A kernel over several images has a `depth` of its own.
template <class Kernel, class View>
double depth_of(const Kernel&, const View& v, const PoseF& pose, int slot) {
    return pose.r[6] * v.X[slot] + pose.r[7] * v.Y[slot] + pose.r[8] * v.Z[slot] + pose.t[2];
}

/// Takes the gradient of all parameters to that of the pose with the others at their optimum.
template <class State, class Hessian>
Eigen::Matrix<double, 6, State::kParameters> pose_rows(const Hessian& bread) {
    constexpr int kRest = State::kParameters - 6;
    Eigen::Matrix<double, 6, State::kParameters> rows;
    rows.template leftCols<6>().setIdentity();
    rows.template rightCols<kRest>() = -bread.template topRightCorner<6, kRest>() *
                                       bread.template bottomRightCorner<kRest, kRest>().inverse();
    return rows;
}

/// What is known beside the points. A kernel with a prior has overloads of its own.
template <class Kernel, class State, class Equations>
void add_prior(const Kernel&, const State&, Equations*) {}
template <class Kernel, class Matrix>
void add_prior_information(const Kernel&, Matrix*) {}

inline void keep(const Pose& pose, const Mat6& covariance, FitResult* result) {
    result->pose = pose;
    result->covariance = covariance;
}

/// Expectation-maximisation: posterior weights and noise levels from the residuals, then one
/// Gauss-Newton step, until the step is small against the standard errors. Then the covariance and
/// the inliers.
///
/// `set` has the layout, view(), slice(cell), prior() and info(); `kernel` the equations and
/// errors2 of its residual; `base` the known relative information of each slot.
template <class Set, class Kernel, class State>
void robust_fit(const Kernels& kernels, Set* set, const Kernel& kernel, const float* base,
                float* e2, double floor2, int dof, bool local, double level_scale, int points,
                const State& start, FitResult* result) {
    constexpr int kParameters = State::kParameters;
    // Squared standard errors, of six in all. The step is still made, and what is left after it is
    // a few per cent of it; a little more with few points.
    const double settled = local ? 0.5 : 0.02;
    // Steps at fixed weights fall short by what is lost in not knowing the inliers. Residuals of
    // paired points are linear enough in the pose to make up for that at once.
    const bool full_steps = dof == 3;
    const auto view = set->view();
    float* info = set->info();
    State pose = start;
    kernel.errors2(view, pose.to_float(), e2);
    const double level = level_scale * initial_level(kernels, *set, e2, base, set->prior(), dof);
    NoiseField field(*set, set->prior(), level, floor2, dof, local);
    typename State::Equations eq;
    for (int pass = 0; pass < kMaxPasses; ++pass) {
        if (pass > 0) kernel.errors2(view, pose.to_float(), e2);
        // The first weights rest on a guess of the shares.
        if (pass == 0) {
            field.weigh(kernels, e2, base, info);
            field.update(kParameters);
        }
        field.weigh(kernels, e2, base, info);
        if (pass == 0) field.consider_tails(kernels, e2, base, kParameters, info);
        field.update(kParameters);
        kernel.equations(view, pose.to_float(), kNotRobust, &eq);
        typename State::Equations all = eq;
        add_prior(kernel, pose, &all);
        typename State::Step step;
        if (!solve_step(all, 0, &step)) return;
        double left = -gradient(all).dot(step);
        if (full_steps || field.tails()) {
            const double told = field.total().curvature / std::max(field.total().held, 1e-9),
                         reach = std::min(1.0, std::max(0.5, told));
            step /= reach;
            left *= (1 - reach) * (1 - reach);
        }
        pose = pose.perturbed(step);
        if (left < settled) break;
    }
    pose.normalize();

    const PosteriorSums& total = field.total();
    if (!pose.finite()) return;
    if (!(total.curvature > 0.05 * total.held) || !(total.weight > 3)) return;
    // Noise differs within and between cells, so each cell speaks for its own residuals.
    const double shared = total.meat / total.held, curvature = total.curvature / total.held;
    auto bread = (curvature * hessian(eq)).eval();
    add_prior_information(kernel, &bread);
    const double inlier2 = field.tails() ? kTailCut : dof == 2 ? kInlier2 : kInlier3;
    const auto final_pose = pose.to_float();
    std::vector<Vec6> gradients(set->cells());
    std::vector<double> counts(set->cells());
    std::unique_ptr<unsigned char[]> near(new unsigned char[set->slots()]);
    std::fill(std::begin(eq.h), std::end(eq.h), 0.0);
    // All that is wanted of a cell at once, while it is in the cache.
    for (int c = 0; c < set->cells(); ++c) {
        const int at = set->cell_begin(c);
        typename State::Equations part;
        kernel.equations(set->cell(c), final_pose, kNotRobust, &part);
        const PosteriorSums& s = field.sums(c);
        const double ratio = (s.meat + kCellPrior * shared) / (s.held + kCellPrior);
        for (std::size_t i = 0; i < std::size(part.h); ++i) eq.h[i] += ratio * part.h[i];
        if constexpr (kParameters == 6)
            gradients[c] = gradient(part);
        else
            gradients[c] = pose_rows<State>(bread) * gradient(part);
        counts[c] = field.near(c);
        kernel.errors2(set->cell(c), final_pose, e2 + at);
        kernels.flag_below(e2 + at, base + at, set->cell_end(c) - at,
                           static_cast<float>(inlier2 * field.variance(c)), near.get() + at);
    }
    auto meat = hessian(eq);
    add_prior_information(kernel, &meat);
    Mat6 of_pose;
    if constexpr (kParameters == 6) {
        of_pose = meat;
    } else {
        const auto rows = pose_rows<State>(bread);
        of_pose = rows * meat * rows.transpose();
    }
    const Eigen::LLT<Mat6> of_meat(of_pose);
    const Eigen::LLT<std::decay_t<decltype(bread)>> of_bread(bread);
    if (of_meat.info() != Eigen::Success || of_bread.info() != Eigen::Success) return;
    result->design_effect =
        design_effect(gradients, counts, set->columns(), of_meat.solve(Mat6::Identity()));
    const auto half = of_bread.solve(meat).eval();
    const auto covariance = of_bread.solve(half.transpose()).eval();
    keep(pose, (0.5 * result->design_effect) * (covariance + covariance.transpose()), result);
    result->sigma = std::sqrt(field.level());
    result->effective_points = total.weight / result->design_effect;

    result->inlier.assign(points, 0);
    unsigned char* inlier = result->inlier.data();
    set->each_run([&](int point, int slot, int count, int) {
        copy_short(near.get() + slot, count, inlier + point);
    });
    result->inliers = std::accumulate(result->inlier.begin(), result->inlier.end(), 0);
    double depth = 0;
    int seen = 0;
    set->each_run([&](int point, int slot, int count, int) {
        for (int k = (kDepthStep - point % kDepthStep) % kDepthStep; k < count; k += kDepthStep) {
            if (!inlier[point + k]) continue;
            depth += depth_of(kernel, view, final_pose, slot + k);
            ++seen;
        }
    });
    result->depth = depth / std::max(1, seen);
    result->ok = result->covariance.allFinite();
}

}  // namespace reloc
