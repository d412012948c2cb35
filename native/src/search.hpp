// The robust search of all solvers; internal to the library.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include "reloc/constants.hpp"
#include "reloc/kernels.hpp"
#include "reloc/parallel.hpp"
#include "reloc/pose_result.hpp"
#include "reloc/rng.hpp"
#include "reloc/search_options.hpp"
#include "search_rules.hpp"

namespace reloc {

/// Draws indices of distinct points, in proportion to the weights whose running sums are given.
class Sampler {
  public:
    explicit Sampler(int n) : n_(n) {}
    /// `cumulative` has to outlive the sampler; empty: all points alike.
    Sampler(int n, const std::vector<double>& cumulative)
        : n_(n), cumulative_(cumulative.empty() ? nullptr : &cumulative) {}

    int draw_one(Rng* rng) const {
        if (!cumulative_) return static_cast<int>(rng->below(static_cast<std::uint32_t>(n_)));
        const double at = rng->uniform() * cumulative_->back();
        const auto it = std::upper_bound(cumulative_->begin(), cumulative_->end(), at);
        return std::min(static_cast<int>(it - cumulative_->begin()), n_ - 1);
    }
    /// False if no K distinct points came up in a bounded number of draws.
    template <int K>
    bool draw(Rng* rng, int (&out)[K]) const {
        for (int& i : out) i = draw_one(rng);
        bool distinct = true;
        for (int k = 1; k < K; ++k) {
            for (int j = 0; j < k; ++j) distinct &= out[j] != out[k];
        }
        return distinct || redraw(rng, out, K);
    }

  private:
    /// Replaces repeated points of a first draw.
    bool redraw(Rng* rng, int* out, int count) const {
        int filled = 1;
        for (int tries = 1; tries < kMaxDraws && filled < count; ++tries) {
            const int i = tries < count ? out[tries] : draw_one(rng);
            if (std::find(out, out + filled, i) == out + filled) out[filled++] = i;
        }
        return filled == count;
    }

    int n_;
    const std::vector<double>* cumulative_ = nullptr;
};

/// A pose, its support and what the preview showed of that.
template <class State>
struct Candidate {
    State state;
    PoseScore value{0, 0, 0};
    double preview = -1;
};

/// The poses of a chunk that look best on the preview, best first.
template <class Minimal, int kCount>
class Leaders {
  public:
    explicit Leaders(double bar = 0) : bar_(bar) {}
    bool wants(double preview) const {
        return !(preview < bar_) && !(preview <= top_[kCount - 1].preview);
    }
    void take(const Minimal& pose, double preview) {
        int at = kCount - 1;
        for (; at > 0 && top_[at - 1].preview < preview; --at) top_[at] = top_[at - 1];
        top_[at].state = pose;
        top_[at].preview = preview;
    }
    /// The leader with the most support by `score`; left alone if none has more.
    template <class Score>
    void best(Score score, Candidate<Minimal>* out) {
        for (Candidate<Minimal>& leader : top_) {
            if (leader.preview < 0) break;
            leader.value = score(leader.state);
            if (leader.value.score > out->value.score) *out = leader;
        }
    }

  private:
    double bar_;
    std::array<Candidate<Minimal>, kCount> top_;
};

/// Locally optimised RANSAC (Chum, Matas, Kittler, "Locally Optimized RANSAC", DAGM 2003; Lebeda et
/// al., BMVC 2012) over the minimal samples of a model.
///
/// Samples come in chunks, each with its own random stream; within a chunk, poses are ranked on a
/// preview of the points and the leaders scored on all. A pose that beats all earlier minimal poses
/// is optimised locally. The search ends when a sample free of outliers has been drawn with the
/// wanted confidence.
///
/// A model has
///
///     Minimal, State          what a sample gives, and what is optimised
///     kSample                 points of a minimal sample
///     kChunk, kLeaders        samples of a chunk, and poses of it that are scored
///     total, preview_total    the support and the preview that a pose can have at most
///     propose(rng, leaders)   draws a chunk, and offers its poses to the leaders
///     lift(minimal)           the state of a minimal pose
///     score(pose)             its PoseScore, for both kinds of pose
///     optimise(all, state)    moves a state to its optimum over all points or over a sample that
///                             stands for them; false where that failed
///     patience(best)          how many times as long as the share of inliers asks to go on
template <class Model>
class Search {
  public:
    using Minimal = typename Model::Minimal;
    using State = typename Model::State;

    Search(const Model& model, const SearchOptions& options) : model_(model), options_(options) {}

    /// False if no sample gave a pose with support.
    bool run() {
        using Chunk = Candidate<Minimal>;
        std::vector<Chunk> round;
        for (std::uint64_t chunk = 0; samples < options_.max_iterations;) {
            const double bar = preview_bar(minimal_preview_, model_.preview_total());
            // Long searches go in rounds whose chunks know nothing of each other: these may run on
            // any number of threads, and rounds are the same for all. One thread looks no further
            // ahead than it must.
            const bool ahead = options_.threads > 1;
            const int chunks = chunk < kSerialChunks ? 1 : kRound;
            round.resize(chunks);
            const auto evaluate = [&](int i) {
                Rng rng(options_.seed, chunk + i + 1);
                Leaders<Minimal, Model::kLeaders> leaders(bar);
                model_.propose(&rng, &leaders);
                round[i].value.score = 0;
                leaders.best([&](const Minimal& pose) { return model_.score(pose); }, &round[i]);
            };
            if (ahead) parallel_for(chunks, options_.threads, evaluate);
            for (int i = 0; i < chunks; ++i) {
                if (!ahead) evaluate(i);
                samples += Model::kChunk;
                consider(round[i]);
                if (samples >= options_.max_iterations ||
                    (samples >= options_.min_iterations && samples >= needed()))
                    return best.value.score > 0;
            }
            chunk += chunks;
        }
        return best.value.score > 0;
    }

    /// The same; notes how long it took, and that no pose was found.
    bool run(PoseResult* result) {
        const bool found = run();
        result->iterations = samples;
        result->local_optimisations = optimised;
        if (!found) result->status = Status::kNoHypothesis;
        return found;
    }

    /// Optimises the best pose over all points, and keeps it where that adds to its support.
    void polish() {
        Candidate<State> polished = best;
        if (improve(true, &polished)) best = polished;
    }

    Candidate<State> best;
    int samples = 0, optimised = 0;

  private:
    void consider(const Candidate<Minimal>& minimal) {
        if (!(minimal.value.score > minimal_score_)) return;
        minimal_score_ = minimal.value.score;
        minimal_preview_ = minimal.preview;
        Candidate<State> candidate{model_.lift(minimal.state), minimal.value, minimal.preview};
        ++optimised;
        // With few inliers a sample of points holds too few of them.
        improve(candidate.value.wide < kFewShare * model_.total(), &candidate);
        if (candidate.value.score > best.value.score) best = candidate;
    }

    bool improve(bool all, Candidate<State>* candidate) const {
        State state = candidate->state;
        if (!model_.optimise(all, &state) || !state.finite()) return false;
        const PoseScore value = model_.score(state);
        if (!(value.score > candidate->value.score)) return false;
        candidate->state = state;
        candidate->value = value;
        return true;
    }

    double needed() const {
        return model_.patience(best.value) * samples_needed(best.value.wide / model_.total(),
                                                            Model::kSample, options_.confidence);
    }

    const Model& model_;
    const SearchOptions& options_;
    double minimal_score_ = 0, minimal_preview_ = 0;
};

}  // namespace reloc
