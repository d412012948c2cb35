// Covariance of the final fit: the device counterpart of src/covariance.cpp.
#pragma once

#include "fit_set.hpp"
#include "search.hpp"

namespace reloc::device {

/// Shared memory of the fit.
struct FitShared {
    BlockScratch scratch;
    FitSet set;
    NoiseField field;
    ProbeShared probe;
    GroupShared group;
    LocalShared local;  ///< pose and sums
    NormalEquations eq, trial_eq;
    Rigid trial;
    Cholesky meat, bread;
    double damping, half[6][6], gradients[kMaxCells][6], quads[kMaxCells], used[kMaxCells];
    double radius, support, ratio[2];
    int left, running, ok, residual;
    Output out;
};

/// Mean of g' M g over blocks of size x size cells against its expectation, into s->ratio; see
/// reloc/covariance.hpp.
RELOC_HD inline void block_ratio(const Block& block, int size, FitShared* s) {
    const int columns = s->set.columns, rows = s->set.cells / columns;
    const int wide = (columns + size - 1) / size, blocks = wide * ((rows + size - 1) / size);
    block.each(blocks, [&](int b) {
        double sum[6] = {}, near = 0;
        for (int r = b / wide * size; r < (b / wide + 1) * size && r < rows; ++r) {
            for (int c = b % wide * size; c < (b % wide + 1) * size && c < columns; ++c) {
                for (int k = 0; k < 6; ++k) sum[k] += s->gradients[r * columns + c][k];
                near += s->field.sums[r * columns + c].v[CellSums::kNear];
            }
        }
        double x[6];
        for (int k = 0; k < 6; ++k) x[k] = sum[k];
        s->meat.solve(x);
        s->quads[b] = 0;
        for (int k = 0; k < 6; ++k) s->quads[b] += near > 0 ? sum[k] * x[k] : 0;
        s->used[b] = near > 0;
    });
    block.once([&] {
        double quad = 0, used = 0;
        for (int b = 0; b < blocks; ++b) {
            quad += s->quads[b];
            used += s->used[b];
        }
        const double ratio = used > 1 ? quad / 6.0 * used / (used - 1.0) : 1.0;
        s->ratio[size - 1] = used < 8 ? -1 : ratio;
        s->used[size - 1] = used;
    });
}

/// Variance inflation by correlation between neighbours, into s->out.design_effect.
RELOC_HD inline void design_effect(const Block& block, FitShared* s) {
    double worst = 1.0, ratio[2] = {1, 1};
    bool correlated = false;
    for (int size = 1; size <= 2; ++size) {
        block_ratio(block, size, s);
        const double r = s->ratio[size - 1], noise = sqrt(2.0 / (6.0 * s->used[size - 1]));
        block.sync();
        if (r < 0) continue;
        ratio[size - 1] = r;
        correlated = correlated || r - 1 > kCorrelated * noise;
        worst = larger(worst, r - noise);
    }
    block.once([&] {
        s->out.design_effect =
            correlated ? larger(larger(ratio[0], ratio[1]), 2 * ratio[1] - ratio[0]) : worst;
    });
}

/// Covariance of s->local.pose by the sandwich of the estimator; false if the points do not
/// determine the pose. s->eq holds the equations of the last pass.
RELOC_HD inline bool covariance(const Block& block, FitShared* s) {
    const FitSet& set = s->set;
    const double* total = s->field.total.v;
    const PoseF pose = to_float(s->local.pose);
    if (!(total[CellSums::kCurvature] > 0.05 * total[CellSums::kHeld]) ||
        !(total[CellSums::kWeight] > 3))
        return false;
    cell_gradients(block, set, pose, s->gradients);
    const double held = total[CellSums::kHeld], shared = total[CellSums::kMeat] / held;
    block.once([&] {
        double h[21];
        for (int k = 0; k < 21; ++k) h[k] = s->eq.h[k] * (total[CellSums::kCurvature] / held);
        s->bread.factor(h, 0);
    });
    // Noise differs within and between cells, so each cell speaks for its own residuals.
    block.each_warp(set.cells, [&](int c, int lane, int lanes) {
        const double* v = s->field.sums[c].v;
        const float ratio = static_cast<float>((v[CellSums::kMeat] + kCellPrior * shared) /
                                               (v[CellSums::kHeld] + kCellPrior));
        for (int k = set.begin[c] + lane; k < set.begin[c + 1]; k += lanes) set.info[k] *= ratio;
    });
    fit_equations(block, set, pose, false, kNotRobust, s->local.sums, &s->eq);
    block.once([&] { s->meat.factor(s->eq.h, 0); });
    if (!s->meat.ok || !s->bread.ok) return false;
    design_effect(block, s);
    block.each(6, [&](int column) {
        double x[6];
        // Column of the symmetric meat from its upper triangle, whose row i starts at 6 i - i (i -
        // 1) / 2.
        for (int i = 0; i < 6; ++i) {
            const int lo = i < column ? i : column, hi = i < column ? column : i;
            x[i] = s->eq.h[6 * lo - lo * (lo - 1) / 2 + hi - lo];
        }
        s->bread.solve(x);
        for (int i = 0; i < 6; ++i) s->half[i][column] = x[i];
    });
    block.each(6, [&](int row) {
        double x[6];  // column `row` of half transposed
        for (int i = 0; i < 6; ++i) x[i] = s->half[row][i];
        s->bread.solve(x);
        for (int i = 0; i < 6; ++i) s->gradients[i][row] = x[i];
    });
    block.each(36, [&](int k) {
        const int i = k / 6, j = k % 6;
        s->out.covariance[k] =
            0.5 * s->out.design_effect * (s->gradients[i][j] + s->gradients[j][i]);
    });
    return true;
}

}  // namespace reloc::device
