// Noise levels and outlier shares over image cells: the device counterpart of src/noise.cpp, for
// residuals with two components.
#pragma once

#include "../src/ring.hpp"
#include "batch_arrays.hpp"
#include "block.hpp"

namespace reloc::device {

/// Sums of one cell, in the order of reloc::PosteriorSums.
struct CellSums {
    enum { kWeight, kHeld, kSpread, kMeat, kCurvature, kNear, kRing, kCount };
    double v[kCount];
};

/// Points of a query that take part in the fit, grouped by cell, each cell padded to full lanes.
struct FitSet {
    const float* row[kSlotRows];
    float *info, *base, *e2;
    const int* point_of;  ///< -1: padding
    int cells, columns, slots, points;
    int ray;
    int begin[kMaxCells + 1];
};

/// The mixture model, in shared memory.
struct NoiseField {
    double floor, level, ceiling, cut;
    int local, tails;
    double gaussian[3];  ///< level, kappa and variance of the pose, while tails are considered
    CellSums total, sums[kMaxCells];
    double variance[kMaxCells], kappa[kMaxCells];
};

/// Scratch of the first estimate, in shared memory.
struct ProbeShared {
    float value[2 * kProbe];
    int included;
    double level, sums[2];
    int more;
    unsigned char in[2 * kProbe];
};

constexpr int kDof = 2;

RELOC_HD inline double larger(double a, double b) { return a < b ? b : a; }
RELOC_HD inline double smaller(double a, double b) { return b < a ? b : a; }

RELOC_HD inline Ring ring_of(const NoiseField& f) { return Ring::planar(f.cut, f.tails); }

/// Squared scale of the residuals relative to 1 / info, into s->level: the lower quartile of a
/// sample, then a robust estimate over all slots.
RELOC_HD inline void initial_level(const Block& block, const FitSet& set, const float* info,
                                   double probe_variance, ProbeShared* s) {
    const int step = set.slots / kProbe > 1 ? set.slots / kProbe : 1;
    const int probes = set.slots > step / 2 ? (set.slots - step / 2 + step - 1) / step : 0;
    const float* weight = set.row[kSlotW];
    block.each(probes, [&](int j) {
        const int i = step / 2 + j * step;
        s->value[j] = weight[i] > 0 && set.e2[i] < kFar ? set.e2[i] * info[i] : -1;
    });
    // The first kProbe usable ones count.
    block.each(probes, [&](int j) {
        int before = 0;
        for (int i = 0; i < j; ++i) before += s->value[i] >= 0;
        s->in[j] = s->value[j] >= 0 && before < kProbe;
    });
    float count[1] = {};
    for (int j = block.thread(); j < probes; j += block.threads()) count[0] += s->in[j];
    block.sum(count, s->sums);
    block.once([&] {
        s->included = static_cast<int>(s->sums[0]);
        s->level = 1;
        s->more = 6;
    });
    block.each(probes, [&](int j) {
        if (!s->in[j]) return;
        int rank = 0;
        for (int i = 0; i < probes; ++i) {
            if (!s->in[i]) continue;
            rank += s->value[i] < s->value[j] || (s->value[i] == s->value[j] && i < j);
        }
        if (rank == s->included / 4) s->level = s->value[j] / kQuartile2;
    });
    block.once([&] { s->level = larger(s->level, 1e-12); });
    while (s->more > 0) {
        const float inverse = static_cast<float>(1 / (s->level * kProbeScale * kProbeScale));
        float parts[2] = {};
        for (int i = block.thread(); i < set.slots; i += block.threads()) {
            if (!(set.e2[i] < kFar)) continue;
            const float q = set.e2[i] * info[i], d = 1.0f / (1.0f + q * inverse);
            const float k = weight[i] * d * d;
            parts[0] += k;
            parts[1] += k * q;
        }
        block.sum(parts, s->sums);
        block.once([&] {
            const double next =
                larger(1e-12, s->sums[1] / larger(1e-12, kDof * s->sums[0] * probe_variance));
            --s->more;
            if (fabs(next - s->level) < 0.1 * s->level) s->more = 0;
            s->level = next;
        });
    }
}

RELOC_HD inline void start_field(const Block& block, int cells, double level, double floor,
                                 bool local, NoiseField* f) {
    block.once([&] {
        f->floor = floor;
        f->local = local;
        f->tails = 0;
        f->cut = local ? kLocalCut : kGlobalCut;
        f->level = larger(level, floor);
        f->ceiling = f->level * kMaxGrowth;
    });
    block.each(cells, [&](int c) {
        f->variance[c] = f->level;
        f->kappa[c] = kFirstOutliers / ring_of(*f).volume;
    });
}

/// Posterior weights at the current parameters, written as information; one warp per cell.
RELOC_HD inline void weigh(const Block& block, const FitSet& set, NoiseField* f) {
    const float* weight = set.row[kSlotW];
    block.each_warp(set.cells, [&](int c, int lane, int lanes) {
        const float inverse = static_cast<float>(1 / f->variance[c]),
                    kappa = static_cast<float>(f->kappa[c]), cut = static_cast<float>(f->cut);
        constexpr float kPerDof = 1.0f / kDof;
        const bool tails = f->tails;
        float sums[CellSums::kCount] = {};
        for (int i = set.begin[c] + lane; i < set.begin[c + 1]; i += lanes) {
            const float scale = set.base[i] * inverse, q = set.e2[i] * scale;
            if (!(q < cut)) {
                set.info[i] = 0;
                continue;
            }
            const float prior = weight[i], u = 1.0f / (1.0f + 0.5f * q);
            const float g = tails ? u * u : expf(-0.5f * q), p = g / (g + kappa);
            const float t = tails ? 2.0f * u * p : p, k = prior * t, kq = k * q;
            const float fall = tails ? u * (3.0f - 2.0f * p) : 1.0f - p;
            set.info[i] = t * scale;
            sums[CellSums::kWeight] += prior * p;
            sums[CellSums::kHeld] += k;
            sums[CellSums::kSpread] += kq;
            sums[CellSums::kMeat] += kq * t * kPerDof;
            sums[CellSums::kCurvature] += k - kq * fall * kPerDof;
            sums[CellSums::kNear] += prior;
            sums[CellSums::kRing] += q >= kRingStart ? prior : 0.0f;
        }
        for (int k = 0; k < CellSums::kCount; ++k) {
            const double total = Block::warp_sum(sums[k]);
            if (lane == 0) f->sums[c].v[k] = k == CellSums::kSpread ? total / inverse : total;
        }
    });
    block.each(CellSums::kCount, [&](int k) {
        double total = 0;
        for (int c = 0; c < set.cells; ++c) total += f->sums[c].v[k];
        f->total.v[k] = total;
    });
}

/// New noise levels and shares from the last weights; `parameters` degrees of freedom went into the
/// residuals.
RELOC_HD inline void update(const Block& block, const FitSet& set, int parameters, NoiseField* f) {
    const double* total = f->total.v;
    block.once([&] {
        const double freedom = larger(1.0, kDof * total[CellSums::kWeight] - parameters);
        f->level = smaller(f->ceiling, larger(f->floor, total[CellSums::kSpread] / freedom));
    });
    if (!f->local) {
        block.each(set.cells, [&](int cell) {
            f->variance[cell] = f->level;
            f->kappa[cell] = ring_of(*f).kappa(total[CellSums::kRing], total[CellSums::kWeight]);
        });
        return;
    }
    const int columns = set.columns, rows = set.cells / columns;
    block.each(set.cells, [&](int cell) {
        const double near = larger(total[CellSums::kNear], 1e-9),
                     share = total[CellSums::kWeight] / near,
                     in_ring = total[CellSums::kRing] / near;
        const int r = cell / columns, c = cell % columns;
        double out = 0, m = 0, s = 0;
        for (int rr = r > 0 ? r - 1 : 0; rr <= r + 1 && rr < rows; ++rr) {
            for (int cc = c > 0 ? c - 1 : 0; cc <= c + 1 && cc < columns; ++cc) {
                const double kernel = (rr == r ? 1.0 : 0.5) * (cc == c ? 1.0 : 0.5);
                const double* k = f->sums[rr * columns + cc].v;
                out += kernel * k[CellSums::kRing];
                m += kernel * k[CellSums::kWeight];
                s += kernel * k[CellSums::kSpread];
            }
        }
        f->variance[cell] =
            larger(f->floor, (s + kLevelPrior * kDof * f->level) / (kDof * (m + kLevelPrior)));
        f->kappa[cell] = ring_of(*f).kappa(out + kSharePrior * in_ring, m + kSharePrior * share);
    });
}

/// Variance of a parameter of the pose at the last weights, up to the geometry. Not for local
/// fields.
RELOC_HD inline double pose_variance(const NoiseField& f) {
    const double told = f.total.v[CellSums::kCurvature];
    return told > 0 ? f.total.v[CellSums::kMeat] * f.variance[0] / (told * told) : kFar;
}

/// After weigh: from here on inliers have heavy tails (Student's t in place of the Gaussian) if the
/// pose gets a smaller variance by that. Leaves the weights of what is chosen.
RELOC_HD inline void consider_tails(const Block& block, const FitSet& set, int parameters,
                                    NoiseField* f) {
    if (f->local || f->total.v[CellSums::kWeight] < kTailPoints) return;
    block.once([&] {
        f->gaussian[0] = f->level;
        f->gaussian[1] = f->kappa[0];
        f->gaussian[2] = pose_variance(*f);
        f->tails = 1;
        f->cut = kTailCut;
        f->level = larger(kTailLevel * f->level, f->floor);
    });
    block.each(set.cells, [&](int c) {
        f->variance[c] = f->level;
        f->kappa[c] = kFirstOutliers / ring_of(*f).volume;
    });
    for (int i = 0; i < kTailUpdates; ++i) {
        weigh(block, set, f);
        update(block, set, parameters, f);
    }
    weigh(block, set, f);
    block.once([&] {
        if (pose_variance(*f) < kTailGain * f->gaussian[2]) return;
        f->tails = 0;
        f->cut = kGlobalCut;
        f->level = f->gaussian[0];
    });
    if (f->tails) return;
    block.each(set.cells, [&](int c) {
        f->variance[c] = f->gaussian[0];
        f->kappa[c] = f->gaussian[1];
    });
    weigh(block, set, f);
}

}  // namespace reloc::device
