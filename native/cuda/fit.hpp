// The final robust fit of one query by one block: the device counterpart of src/refine.cpp and
// src/robust_fit.hpp.
#pragma once

#include "uncertainty.hpp"

namespace reloc::device {

/// Reprojection or ray, by the likelihood of the residuals within the radius of the search.
RELOC_HD inline void choose_residual(const Block& block, const Points& p, const PoseF& pose,
                                     double radius, FitShared* s) {
    const float limit = static_cast<float>(radius * radius);
    float parts[4] = {};
    for (int i = block.thread(); i < p.n; i += block.threads()) {
        const float e2 = pixel_error2(pose, p, i);
        if (!(e2 < limit)) continue;
        const float z = depth(pose, p.X[i], p.Y[i], p.Z[i]), z2 = z * z;
        parts[0] += e2;
        parts[1] += e2 * z2;
        parts[2] += logf(z2);
        parts[3] += 1.0f;
    }
    block.sum(parts, s->local.sums);
    block.once([&] {
        const double* v = s->local.sums;
        const double n = v[3];
        const double gain = log(v[0] / n + 1e-30) - (log(v[1] / n + 1e-30) - v[2] / n);
        s->residual = n > 0 && gain > kRayGain ? kRay : kReprojection;
    });
}

/// Levenberg-Marquardt on s->local.pose at a fixed Geman-McClure scale; s->ok tells whether it went
/// well.
RELOC_HD inline void minimise(const Block& block, double c2, int evaluations, double tolerance,
                              FitShared* s) {
    fit_equations(block, s->set, to_float(s->local.pose), true, c2, s->local.sums, &s->eq);
    // Sets s->trial, or the final pose; s->running tells which.
    const auto propose_step = [s, tolerance] {
        double step[6];
        s->running = 0;
        while (!solve_step(s->eq, s->damping, step)) {
            s->damping = s->damping == 0 ? 1e-6 : s->damping * 10;
            if (s->damping > 1) {
                s->ok = 0;
                return;
            }
        }
        s->trial = perturbed(s->local.pose, step);
        if (predicted_decrease(s->eq, step) < tolerance)
            s->local.pose = s->trial;
        else
            s->running = s->left-- > 0;
    };
    block.once([&] {
        s->damping = 0;
        s->ok = 1;
        s->left = evaluations - 1;
        propose_step();
    });
    while (s->running) {
        fit_equations(block, s->set, to_float(s->trial), true, c2, s->local.sums, &s->trial_eq);
        block.once([&] {
            // Rounding of the float sums must not pass for an increase.
            if (s->trial_eq.cost <= s->eq.cost * (1 + 1e-5)) {
                s->local.pose = s->trial;
                s->eq = s->trial_eq;
                s->damping = s->damping > 1e-6 ? s->damping * 0.1 : 0;
            } else {
                s->damping = s->damping == 0 ? 1e-3 : s->damping * 10;
            }
            if (s->damping > 1e6)
                s->running = 0;
            else
                propose_step();
        });
    }
    block.once([&] {
        normalize(&s->local.pose);
        s->ok = s->ok && is_finite(s->local.pose);
    });
}

/// Brings s->local.pose to where the noise can be judged, and chooses the selection radius.
RELOC_HD inline void coarse_fit(const Block& block, const Arrays& a, const Query& q,
                                const State& state, FitShared* s) {
    const bool ray = s->residual == kRay;
    const double support = state.best_wide / q.total, select = 2 * q.search_radius;
    const bool few = support * q.sample_n < kEnoughSupport;
    const Points p = few ? points_of(a, q) : sample_of(a, q);
    const PoseF start = to_float(s->local.pose);
    build_set(block, a, q, p, start, select, 1, 1, ray, &s->group, &s->set);
    if (s->set.points < 4) {
        block.once([&] { s->ok = 0; });
        return;
    }
    const FitSet& set = s->set;
    block.each(set.slots, [&](int k) {
        const float z = depth(start, set.row[kSlotX][k], set.row[kSlotY][k], set.row[kSlotZ][k]),
                    z2 = z * z, scale = set.row[kSlotScale][k];
        set.info[k] = ray ? scale / (z2 > 1e-18f ? z2 : 1e-18f) : scale;
    });
    minimise(block, a.settings.threshold * a.settings.threshold, 5, 0.1, s);
    if (!s->ok) return;
    fit_errors2(block, set, to_float(s->local.pose));
    initial_level(block, set, set.info, a.settings.probe_variance, &s->probe);
    block.once([&] {
        // The more noise, the wider the selection that holds its tails.
        const double sigmas = support < kPoorSupport ? kSelectSigmasPoor : kSelectSigmas;
        s->radius = smaller(larger(sigmas * sqrt(s->probe.level), a.settings.threshold),
                            kMaxWiden * select);
    });
}

/// Known relative information of every slot; returns the least credible noise variance in its unit.
RELOC_HD inline double base_information(const Block& block, const Arrays& a, const Query& q,
                                        FitShared* s) {
    const FitSet& set = s->set;
    const PoseF pose = to_float(s->local.pose);
    const double least2 = kMinPixelNoise * kMinPixelNoise;
    const auto depth_of = [&](int k) {
        return depth(pose, set.row[kSlotX][k], set.row[kSlotY][k], set.row[kSlotZ][k]);
    };
    if (!q.has_variance) {
        float parts[2] = {};
        for (int k = block.thread(); k < set.slots; k += block.threads()) {
            const float scale = set.row[kSlotScale][k], z = depth_of(k);
            set.base[k] = set.ray ? 1.0f : scale;
            // Mean squared size of a pixel at the points' depth, from a sample.
            if (k % 13 != 0 || !(set.row[kSlotW][k] > 0)) continue;
            parts[0] += z * z / scale;
            parts[1] += 1.0f;
        }
        block.sum(parts, s->local.sums);
        const double* v = s->local.sums;
        return set.ray ? least2 * (v[1] > 0 ? v[0] / v[1] : 1) : least2;
    }
    const double px2 = a.settings.pixel_noise * a.settings.pixel_noise;
    const float* variance = a.rows[7] + q.first;
    block.each(set.slots, [&](int k) {
        const int i = set.point_of[k];
        const double z = depth_of(k), given = i < 0 ? 1.0 : variance[i];
        const double scene2 = larger(1e-14, given + px2 * z * z / set.row[kSlotScale][k]);
        set.base[k] = static_cast<float>(set.ray ? 1 / scene2 : z * z / scene2);
    });
    return 1e-6;
}

/// Flags the inliers of the fit and takes their mean depth.
RELOC_HD inline void mark_inliers(const Block& block, const Query& q, unsigned char* inlier,
                                  FitShared* s) {
    const FitSet& set = s->set;
    const PoseF pose = to_float(s->local.pose);
    fit_errors2(block, set, pose);
    block.each(q.n, [&](int i) { inlier[i] = 0; });
    float parts[3] = {};
    const double inlier2 = s->field.tails ? kTailCut : kInlier2;
    for (int c = 0; c < set.cells; ++c) {
        const float limit = static_cast<float>(inlier2 * s->field.variance[c]);
        for (int k = set.begin[c] + block.thread(); k < set.begin[c + 1]; k += block.threads()) {
            const int i = set.point_of[k];
            if (i < 0 || !(set.e2[k] * set.base[k] < limit)) continue;
            inlier[i] = 1;
            parts[0] += 1.0f;
            if (i % kDepthStep != 0) continue;
            parts[1] += depth(pose, set.row[kSlotX][k], set.row[kSlotY][k], set.row[kSlotZ][k]);
            parts[2] += 1.0f;
        }
    }
    block.sum(parts, s->local.sums);
    block.once([&] {
        s->out.inliers = static_cast<int>(s->local.sums[0]);
        s->out.depth = s->local.sums[1] / larger(1.0, s->local.sums[2]);
    });
}

/// Expectation-maximisation from s->local.pose; the outcome goes to s->out.
RELOC_HD inline void robust_fit(const Block& block, const Arrays& a, const Query& q, double floor2,
                                double level_scale, unsigned char* inlier, FitShared* s) {
    constexpr int kParameters = 6;
    const FitSet& set = s->set;
    const bool local = set.columns == kMaxColumns;
    const double settled = local ? 0.5 : 0.02;  // squared standard errors, of six in all
    fit_errors2(block, set, to_float(s->local.pose));
    initial_level(block, set, set.base, a.settings.probe_variance, &s->probe);
    start_field(block, set.cells, level_scale * s->probe.level, floor2, local, &s->field);
    block.once([&] { s->running = 1, s->ok = 1, s->out.ok = 0; });
    for (int pass = 0; pass < kMaxPasses && s->running; ++pass) {
        if (pass > 0) fit_errors2(block, set, to_float(s->local.pose));
        // The first weights rest on a guess of the shares.
        if (pass == 0) {
            weigh(block, set, &s->field);
            update(block, set, kParameters, &s->field);
        }
        weigh(block, set, &s->field);
        if (pass == 0) consider_tails(block, set, kParameters, &s->field);
        update(block, set, kParameters, &s->field);
        fit_equations(block, set, to_float(s->local.pose), false, kNotRobust, s->local.sums,
                      &s->eq);
        block.once([&] {
            double step[6];
            s->ok = solve_step(s->eq, 0, step);
            double left = predicted_decrease(s->eq, step);
            if (s->field.tails) {
                // What is lost in not knowing the inliers; see src/robust_fit.hpp.
                const double* total = s->field.total.v;
                const double told =
                    total[CellSums::kCurvature] / larger(total[CellSums::kHeld], 1e-9);
                const double reach = smaller(1.0, larger(0.5, told));
                for (double& v : step) v /= reach;
                left *= (1 - reach) * (1 - reach);
            }
            if (s->ok) s->local.pose = perturbed(s->local.pose, step);
            s->running = s->ok && !(left < settled);
        });
    }
    block.once([&] {
        if (!s->ok) return;
        normalize(&s->local.pose);
        s->ok = is_finite(s->local.pose);
    });
    if (!s->ok || !covariance(block, s)) return;
    mark_inliers(block, q, inlier, s);
    block.once([&] {
        Output& out = s->out;
        out.pose = s->local.pose;
        out.sigma = sqrt(s->field.level);
        out.effective_points = s->field.total.v[CellSums::kWeight] / out.design_effect;
        double sum = 0;
        for (double v : out.covariance) sum += v - v;
        out.ok = sum == 0;
    });
}

/// Final fit of one query, from where its search ended.
RELOC_HD inline void fit(const Block& block, const Arrays& a, int query, FitShared* s) {
    const Query& q = a.queries[query];
    const State& state = a.states[query];
    Output& result = a.outputs[query];
    block.once([&] {
        result.ok = result.inliers = result.ray = 0;
        result.found = state.best_score > 0;
        result.samples = state.samples;
        result.optimised = state.optimised;
        result.inlier_buffer = 0;
        s->local.pose = state.pose;
        s->residual = q.residual;
        s->ok = 1;
    });
    if (!(state.best_score > 0)) return;
    const Points all = points_of(a, q);
    if (q.residual == kAuto)
        choose_residual(block, all, to_float(s->local.pose), q.search_radius, s);
    coarse_fit(block, a, q, state, s);
    if (!s->ok) return;
    const bool ray = s->residual == kRay;
    const bool dense = ray && a.settings.local_noise && q.n >= kDensePoints;
    build_set(block, a, q, all, to_float(s->local.pose), s->radius, dense ? kMaxColumns : 4,
              dense ? kMaxRows : 3, ray, &s->group, &s->set);
    if (s->set.points < 4) return;
    const double floor2 = base_information(block, a, q, s);
    block.once([&] { s->trial = s->local.pose; });

    // Patches of near outliers can widen the noise estimate until it takes them in. Support for the
    // fit then falls behind that for its start, and a fit that is held to less noise is tried.
    const float wide2 = static_cast<float>(q.search_radius * q.search_radius),
                narrow2 = static_cast<float>(a.settings.threshold * a.settings.threshold);
    const bool poor = !(state.best_wide > kPoorShare * q.total);
    const double enough =
        (state.best_wide < kPoorShare * q.total ? kKeptSupportPoor : kKeptSupport) *
        state.best_score;
    double best = -1, level_scale = 1;
    int buffer = 0;
    for (int attempt = 0; attempt < kFitAttempts; ++attempt, level_scale *= kTighter) {
        block.once([&] { s->local.pose = s->trial; });
        robust_fit(block, a, q, floor2, level_scale, a.inlier[buffer] + q.first, s);
        double support = -1;
        if (s->out.ok) {
            score_pose(block, all, narrow2, wide2, &s->local);
            support = s->local.sums[2];
            block.sync();
        }
        if (attempt == 0 || support > best) {
            best = support;
            block.once([&] {
                s->out.found = 1;
                s->out.ray = ray;
                s->out.samples = state.samples;
                s->out.optimised = state.optimised;
                s->out.inlier_buffer = buffer;
                result = s->out;
            });
            buffer = 1 - buffer;
        }
        if (best > enough && !poor) break;
    }
}

}  // namespace reloc::device
