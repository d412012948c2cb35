// What the kernels read and write: plain structures, the same on host and device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "algebra.hpp"
#include "reloc/constants.hpp"
#include "residuals.hpp"

namespace reloc::device {

constexpr int kChunkPoses = 4 * kChunk;  // a minimal sample has up to four
constexpr int kMaxColumns = 10, kMaxRows = 8, kMaxCells = kMaxColumns * kMaxRows;
constexpr int kRowCount = 8, kSampleRowCount = 7;  // x y X Y Z s2 w, and the variance

/// Values of reloc::Residual.
enum : int { kReprojection = 0, kRay = 1, kAuto = 2 };

/// What all queries of a batch share.
struct Settings {
    double threshold, confidence, pixel_noise;
    double probe_variance;  ///< RobustMoments::variance of the first noise estimate
    std::uint64_t seed;
    int min_iterations, max_iterations, local_noise;
};

/// One query: its points are [first, first + n) in the rows of the batch.
struct Query {
    int first, n, sample_first, sample_n, preview_n;
    int weighted, has_variance, residual;
    std::size_t slots_first;  ///< of the fit's rows
    double search_radius, total, preview_total;
    float x0, x1, y0, y1;  ///< region that the cells of the fit divide
};

/// A pose of one chunk among the leaders of its preview.
struct Candidate {
    PoseF pose;
    double preview;  ///< negative: none
    double narrow, wide, score;
};

/// Progress of one search.
struct State {
    double minimal_preview, minimal_score;
    double bar;  ///< preview count that poses of the current round must reach
    double best_wide, best_narrow, best_score;
    Rigid pose;
    int chunk, samples, optimised, done;
};

/// Outcome of one query; the pose is relative to the query's centre.
struct Output {
    int ray;  ///< whether the noise was taken to sit in the scene points
    Rigid pose;
    double covariance[36], sigma, effective_points, design_effect, depth;
    int found, ok, inliers, samples, optimised;
    int inlier_buffer;  ///< which of the two rows of inlier flags holds them
};

/// Rows of the fit, one value per slot.
enum SlotRow : int {
    kSlotA,
    kSlotB,
    kSlotC,
    kSlotX,
    kSlotY,
    kSlotZ,
    kSlotW,
    kSlotScale,
    kSlotInfo,
    kSlotBase,
    kSlotE2,
    kSlotRows
};

/// Slots that the cells of a query with n points can fill.
inline std::size_t slot_capacity(int n) {
    return static_cast<std::size_t>((n + kLanePad - 1) / kLanePad + kMaxCells) * kLanePad;
}

/// Everything in device memory; filled by `lay_out`.
struct Arrays {
    // Sent by the host.
    Query* queries;
    float* rows[kRowCount];
    float* sample_rows[kSampleRowCount];
    double* cumulative;  ///< of weights, per point
    // Sent before each round.
    int* active;  ///< queries whose search goes on
    // Work.
    int* drawn;         ///< poses of each sample
    PoseF* hypotheses;  ///< per active query, chunk and sample, up to four
    Candidate* candidates;
    State* states;
    float* slots[kSlotRows];
    int *point_of, *cell_of;
    // Fetched by the host.
    int* done;
    Output* outputs;
    unsigned char* inlier[2];

    Settings settings;
};

RELOC_HD inline Points points_of(const Arrays& a, const Query& q) {
    const int f = q.first;
    return {a.rows[0] + f,
            a.rows[1] + f,
            a.rows[2] + f,
            a.rows[3] + f,
            a.rows[4] + f,
            a.rows[5] + f,
            q.weighted ? a.rows[6] + f : nullptr,
            q.n,
            (q.n + kLanePad - 1) / kLanePad * kLanePad};
}

RELOC_HD inline Points sample_of(const Arrays& a, const Query& q) {
    const int f = q.sample_first;
    return {a.sample_rows[0] + f,
            a.sample_rows[1] + f,
            a.sample_rows[2] + f,
            a.sample_rows[3] + f,
            a.sample_rows[4] + f,
            a.sample_rows[5] + f,
            q.weighted ? a.sample_rows[6] + f : nullptr,
            q.sample_n,
            (q.sample_n + kLanePad - 1) / kLanePad * kLanePad};
}

}  // namespace reloc::device
