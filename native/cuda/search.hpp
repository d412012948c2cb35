// Search by RANSAC in three kernels per round: propose (one thread per minimal sample), rank (one
// block per chunk of samples) and advance (one block per query).
//
// A round evaluates chunks that the serial search (src/search.hpp) might not have come to;
// `advance` goes through them in its order and with its bars, so that the outcome is that of the
// serial search, whatever the number of chunks in a round or of threads in a block.
#pragma once

#include "../src/search_rules.hpp"
#include "batch_arrays.hpp"
#include "block.hpp"
#include "p3p.hpp"
#include "reloc/rng.hpp"

namespace reloc::device {

constexpr int kMaxPreview = 256;

/// One round of all active queries.
struct Round {
    int queries, chunks;  ///< active queries; chunks of each
    int first_chunk;
    int one_round;  ///< the chunks are one round of the serial search, so that its bar is known
};

RELOC_HD inline int draw_one(const Query& q, const double* cumulative, Rng* rng) {
    if (!q.weighted) return static_cast<int>(rng->below(static_cast<std::uint32_t>(q.n)));
    const double at = rng->uniform() * cumulative[q.n - 1];
    int lo = 0, hi = q.n;
    while (lo < hi) {
        const int mid = (lo + hi) / 2;
        if (cumulative[mid] > at)
            hi = mid;
        else
            lo = mid + 1;
    }
    return lo < q.n - 1 ? lo : q.n - 1;
}

/// Three distinct points; false if none came up in a bounded number of draws.
RELOC_HD inline bool draw_triple(const Query& q, const double* cumulative, Rng* rng, int out[3]) {
    int filled = 0;
    for (int tries = 0; tries < kMaxDraws && filled < 3; ++tries) {
        const int i = draw_one(q, cumulative, rng);
        bool fresh = true;
        for (int k = 0; k < filled; ++k) fresh = fresh && out[k] != i;
        if (fresh) out[filled++] = i;
    }
    return filled == 3;
}

/// Poses of minimal sample `sample` of a chunk.
RELOC_HD inline void propose(const Arrays& a, const Round& round, int slot, int chunk, int sample) {
    const Query& q = a.queries[a.active[slot]];
    // The stream of the chunk from its start: drawing again is cheaper than handing indices over.
    Rng rng(a.settings.seed, static_cast<std::uint64_t>(round.first_chunk + chunk) + 1);
    int idx[3] = {0, 0, 0};
    bool drawn = false;
    for (int s = 0; s <= sample; ++s) drawn = draw_triple(q, a.cumulative + q.first, &rng, idx);
    const int at = (slot * round.chunks + chunk) * kChunk + sample;
    a.drawn[at] = 0;
    if (!drawn) return;
    const Points p = points_of(a, q);
    float x[3], y[3], X[3], Y[3], Z[3];
    for (int k = 0; k < 3; ++k) {
        x[k] = p.x[idx[k]];
        y[k] = p.y[idx[k]];
        X[k] = p.X[idx[k]];
        Y[k] = p.Y[idx[k]];
        Z[k] = p.Z[idx[k]];
    }
    a.drawn[at] = p3p(x, y, X, Y, Z, a.hypotheses + 4 * static_cast<std::size_t>(at));
}

struct RankShared {
    BlockScratch scratch;
    float tile[kSampleRowCount][kMaxPreview];
    float preview[2][kChunkPoses];
    int leaders[kLeaders], count;
    PoseF pose[kLeaders];
    double sums[3 * kLeaders];
};

/// Preview counts of all poses of a chunk; the leaders are scored on all points.
RELOC_HD inline void rank_chunk(const Block& block, const Arrays& a, const Round& round, int slot,
                                int chunk, RankShared* s) {
    const int query = a.active[slot];
    const Query& q = a.queries[query];
    const int at = slot * round.chunks + chunk;
    const int* drawn = a.drawn + at * kChunk;
    const PoseF* poses = a.hypotheses + static_cast<std::size_t>(at) * kChunkPoses;
    const float wide2 = static_cast<float>(q.search_radius * q.search_radius),
                narrow2 = static_cast<float>(a.settings.threshold * a.settings.threshold);
    const Points sample = sample_of(a, q);
    const float* rows[] = {sample.x, sample.y, sample.X, sample.Y, sample.Z, sample.s2};
    block.each(q.preview_n, [&](int i) {
        for (int r = 0; r < 6; ++r) s->tile[r][i] = rows[r][i];
        s->tile[6][i] = sample.weight(i);
    });
    // Two threads per pose: neighbouring threads read the same point of the tile.
    block.each(2 * kChunkPoses, [&](int item) {
        const int k = item % kChunkPoses, part = item / kChunkPoses;
        float count = -1;
        if (k % 4 < drawn[k / 4]) {
            const PoseF pose = poses[k];
            const int half = q.preview_n / 2, end = part ? q.preview_n : half;
            count = 0;
            for (int i = part ? half : 0; i < end; ++i) {
                if (within(pose, s->tile[0][i], s->tile[1][i], s->tile[2][i], s->tile[3][i],
                           s->tile[4][i], s->tile[5][i], wide2))
                    count += s->tile[6][i];
            }
        }
        s->preview[part][k] = count;
    });
    const double bar = round.one_round ? a.states[query].bar : 0;
    block.once([&] {
        s->count = 0;
        double least = -1;
        for (int k = 0; k < kChunkPoses; ++k) {
            if (s->preview[0][k] < 0) continue;
            const double value = static_cast<double>(s->preview[0][k]) + s->preview[1][k];
            if (value < bar || value <= least) continue;
            int j = s->count < kLeaders ? s->count++ : kLeaders - 1;
            for (; j > 0; --j) {
                const int other = s->leaders[j - 1];
                if (static_cast<double>(s->preview[0][other]) + s->preview[1][other] >= value)
                    break;
                s->leaders[j] = other;
            }
            s->leaders[j] = k;
            if (s->count == kLeaders) {
                const int last = s->leaders[kLeaders - 1];
                least = static_cast<double>(s->preview[0][last]) + s->preview[1][last];
            }
        }
        for (int j = 0; j < s->count; ++j) s->pose[j] = poses[s->leaders[j]];
    });
    const Points p = points_of(a, q);
    float parts[3 * kLeaders] = {};
    if (s->count > 0) {
        PoseF pose[kLeaders];
        for (int j = 0; j < kLeaders; ++j) pose[j] = s->pose[j < s->count ? j : 0];
        for (int i = block.thread(); i < p.n; i += block.threads()) {
            const float x = p.x[i], y = p.y[i], X = p.X[i], Y = p.Y[i], Z = p.Z[i], s2 = p.s2[i],
                        w = p.weight(i);
            for (int j = 0; j < kLeaders; ++j)
                add_score(pixel_error2(pose[j], x, y, X, Y, Z, s2), w, narrow2, wide2,
                          parts + 3 * j);
        }
    }
    block.sum(parts, s->sums);
    block.each(kLeaders, [&](int j) {
        Candidate& c = a.candidates[static_cast<std::size_t>(at) * kLeaders + j];
        c.preview = -1;
        if (j >= s->count) return;
        const int k = s->leaders[j];
        c.pose = s->pose[j];
        c.preview = static_cast<double>(s->preview[0][k]) + s->preview[1][k];
        c.narrow = s->sums[3 * j];
        c.wide = s->sums[3 * j + 1];
        c.score = s->sums[3 * j + 2];
    });
}

/// Shared memory of the local optimisation.
struct LocalShared {
    Rigid pose;
    NormalEquations eq;
    double sums[kMaxSums];
    int steps, more;
};

/// Sum of the truncated quadratic scores of s->pose over all points, into s->sums.
RELOC_HD inline void score_pose(const Block& block, const Points& p, float narrow2, float wide2,
                                LocalShared* s) {
    const PoseF pose = to_float(s->pose);
    float parts[3] = {};
    for (int i = block.thread(); i < p.n; i += block.threads())
        add_score(pixel_error2(pose, p, i), p.weight(i), narrow2, wide2, parts);
    block.sum(parts, s->sums);
}

/// Gauss-Newton on the Tukey-weighted reprojection error of s->pose; s->steps counts the steps.
RELOC_HD inline void optimise_locally(const Block& block, const Points& p, double radius,
                                      LocalShared* s) {
    const float radius2 = static_cast<float>(radius * radius), inverse = 1.0f / radius2;
    block.once([&] { s->steps = 0, s->more = 1; });
    while (s->more) {
        const PoseF pose = to_float(s->pose);
        float parts[ProjectionSums::kCount] = {};
        for (int i = block.thread(); i < p.n; i += block.threads()) {
            float cx, cy, cz;
            apply(pose, p.X[i], p.Y[i], p.Z[i], &cx, &cy, &cz);
            const float x = p.x[i], y = p.y[i], s2 = p.s2[i];
            const float a = cx - x * cz, b = cy - y * cz;
            if (!((a * a + b * b) * s2 < radius2 * (cz * cz) && cz > 0)) {
                parts[ProjectionSums::kCost] += 1.0f;
                continue;
            }
            const float iz = 1.0f / cz, u = a * iz, v = b * iz;
            const float k = 1.0f - (u * u + v * v) * s2 * inverse;
            parts[ProjectionSums::kCost] += 1.0f - k * k * k;
            ProjectionSums::add(k * k * s2 * p.weight(i), x + u, y + v, iz, u, v, parts);
        }
        block.sum(parts, s->sums);
        block.once([&] {
            ProjectionSums::expand(s->sums, &s->eq);
            s->eq.cost += p.padded - p.n;
            double step[6];
            s->more = 0;
            if (!solve_step(s->eq, 1e-9, step)) return;
            s->pose = perturbed(s->pose, step);
            ++s->steps;
            // A tenth of a standard error is below what the score can tell.
            const double variance = radius * radius * s->eq.cost / p.padded;
            s->more =
                s->steps < kLocalSteps && !(predicted_decrease(s->eq, step) < 0.01 * variance);
        });
    }
    block.once([&] { normalize(&s->pose); });
}

RELOC_HD inline bool is_done(const State& state, const Query& q, const Settings& settings) {
    return state.samples >= settings.max_iterations ||
           (state.samples >= settings.min_iterations &&
            state.samples >=
                patience(state.best_narrow, state.best_wide, q.total, q.residual != kReprojection) *
                    samples_needed(state.best_wide / q.total, 3, settings.confidence));
}

struct AdvanceShared {
    BlockScratch scratch;
    LocalShared local;
    State state;
    const Candidate* candidate;
    Rigid start;
};

/// Moves on to the next candidate that beats all earlier minimal poses; null at the end of the
/// round or of the search.
RELOC_HD inline const Candidate* next_candidate(const Candidate* candidates, const Round& round,
                                                const Query& q, const Settings& settings,
                                                State* state) {
    while (!state->done && state->chunk < round.first_chunk + round.chunks) {
        if (state->chunk < kSerialChunks || state->chunk % kRound == 0)
            state->bar = preview_bar(state->minimal_preview, q.preview_total);
        const Candidate* leaders = candidates + (state->chunk - round.first_chunk) * kLeaders;
        const Candidate* best = nullptr;
        for (int j = 0; j < kLeaders; ++j) {
            const Candidate& c = leaders[j];
            if (c.preview < 0 || c.preview < state->bar) continue;
            if (c.score > (best ? best->score : 0)) best = &c;
        }
        ++state->chunk;
        state->samples += kChunk;
        if (best && best->score > state->minimal_score) return best;
        state->done = is_done(*state, q, settings);
    }
    return nullptr;
}

/// Takes the chunks of a round in order: local optimisation of each new best minimal pose, and the
/// decision to stop.
RELOC_HD inline void advance(const Block& block, const Arrays& a, const Round& round, int slot,
                             AdvanceShared* s) {
    const int query = a.active[slot];
    const Query& q = a.queries[query];
    const Points all = points_of(a, q);
    const float wide2 = static_cast<float>(q.search_radius * q.search_radius),
                narrow2 = static_cast<float>(a.settings.threshold * a.settings.threshold);
    const Candidate* candidates =
        a.candidates + static_cast<std::size_t>(slot) * round.chunks * kLeaders;
    block.once([&] {
        s->state = a.states[query];
        s->candidate = next_candidate(candidates, round, q, a.settings, &s->state);
    });
    while (s->candidate) {
        const Candidate& c = *s->candidate;
        block.once([&] {
            s->state.minimal_preview = c.preview;
            s->state.minimal_score = c.score;
            ++s->state.optimised;
            s->local.pose = s->start = to_double(c.pose);
        });
        // With few inliers a sample of points holds too few of them.
        const bool few = c.wide < kFewShare * q.total;
        optimise_locally(block, few ? all : sample_of(a, q), q.search_radius, &s->local);
        score_pose(block, all, narrow2, wide2, &s->local);
        block.once([&] {
            State& state = s->state;
            const double* sums = s->local.sums;
            const bool better = s->local.steps > 0 && sums[2] > c.score && is_finite(s->local.pose);
            const double score = better ? sums[2] : c.score;
            if (score > state.best_score) {
                state.best_score = score;
                state.best_narrow = better ? sums[0] : c.narrow;
                state.best_wide = better ? sums[1] : c.wide;
                state.pose = better ? s->local.pose : s->start;
            }
            state.done = is_done(state, q, a.settings);
            s->candidate = next_candidate(candidates, round, q, a.settings, &state);
        });
    }
    const bool polish =
        s->state.done && s->state.best_score > 0 && !(s->state.best_wide > kManyShare * q.total);
    if (polish) {
        block.once([&] { s->local.pose = s->state.pose; });
        optimise_locally(block, all, q.search_radius, &s->local);
        score_pose(block, all, narrow2, wide2, &s->local);
        block.once([&] {
            const double* sums = s->local.sums;
            if (!(sums[2] > s->state.best_score) || !is_finite(s->local.pose)) return;
            s->state.best_narrow = sums[0];
            s->state.best_wide = sums[1];
            s->state.best_score = sums[2];
            s->state.pose = s->local.pose;
        });
    }
    block.once([&] {
        s->state.bar = preview_bar(s->state.minimal_preview, q.preview_total);
        a.states[query] = s->state;
        a.done[query] = s->state.done;
    });
}

}  // namespace reloc::device
