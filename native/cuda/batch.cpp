#include "batch.hpp"

#include <algorithm>
#include <cstring>
#include <limits>

#include "noise.hpp"
#include "reloc/covariance.hpp"
#include "reloc/focal_check.hpp"
#include "reloc/parallel.hpp"

namespace reloc::device {
namespace {

constexpr int kMaxQueries = 256;             // of one part
constexpr std::size_t kMaxPoints = 1 << 21;  // of one part, unless a single query has more
constexpr int kFirstChunks = 8;              // of the first round: easy problems need no more
constexpr int kAlign = 32;                   // points; rows of all queries start on a cache line

template <class T>
T round_up(T n, T multiple) {
    return (n + multiple - 1) / multiple * multiple;
}

/// Deals out a buffer; without one it only counts.
class Carver {
  public:
    explicit Carver(char* base) : base_(base) {}
    template <class T>
    T* take(std::size_t n) {
        T* p = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
        used_ = round_up<std::size_t>(used_ + n * sizeof(T), 256);
        return p;
    }
    std::size_t used() const { return used_; }

  private:
    char* base_;
    std::size_t used_ = 0;
};

struct Sizes {
    std::size_t queries = 0, points = 0, samples = 0, slots = 0;
    bool weighted = false, variance = false;
};

/// Addresses of all arrays within three buffers; returns the bytes of each that are used.
struct Layout {
    Arrays arrays{};
    std::size_t input, work, output, active_bytes, done_bytes;

    Layout(const Sizes& n, const Backend::Buffers& buffers) {
        Carver in(buffers.input), work_memory(buffers.work), out(buffers.output);
        Arrays& a = arrays;
        a.active = in.take<int>(n.queries);
        active_bytes = in.used();
        a.queries = in.take<Query>(n.queries);
        a.states = in.take<State>(n.queries);
        for (int r = 0; r < kRowCount; ++r) {
            const bool used = r < 6 || (r == 6 ? n.weighted : n.variance);
            a.rows[r] = in.take<float>(used ? n.points : 0);
        }
        for (int r = 0; r < kSampleRowCount; ++r)
            a.sample_rows[r] = in.take<float>(r < 6 || n.weighted ? n.samples : 0);
        a.cumulative = in.take<double>(n.weighted ? n.points : 0);

        const std::size_t chunks = n.queries * kRound;
        a.drawn = work_memory.take<int>(chunks * kChunk);
        a.hypotheses = work_memory.take<PoseF>(chunks * kChunkPoses);
        a.candidates = work_memory.take<Candidate>(chunks * kLeaders);
        for (float*& row : a.slots) row = work_memory.take<float>(n.slots);
        a.point_of = work_memory.take<int>(n.slots);
        a.cell_of = work_memory.take<int>(n.points);

        a.done = out.take<int>(n.queries);
        done_bytes = out.used();
        a.outputs = out.take<Output>(n.queries);
        for (unsigned char*& row : a.inlier) row = out.take<unsigned char>(n.points);

        input = in.used();
        work = work_memory.used();
        output = out.used();
    }
};

struct Prepared {
    Problem problem;
    AbsolutePoseOptions options;  ///< with the residual and the radius settled
};

/// Describes the queries; their places are those of `sizes` so far.
Query describe_query(const Prepared& prepared, const Correspondences& in, Sizes* sizes) {
    const Problem& p = prepared.problem;
    Query q{};
    q.first = static_cast<int>(sizes->points);
    q.n = p.n;
    q.sample_first = static_cast<int>(sizes->samples);
    q.sample_n = p.sample_n;
    q.preview_n = p.preview_n;
    q.weighted = p.weighted;
    q.has_variance = static_cast<bool>(in.variances);
    q.residual = prepared.options.residual == Residual::kAuto  ? kAuto
                 : prepared.options.residual == Residual::kRay ? kRay
                                                               : kReprojection;
    q.slots_first = sizes->slots;
    q.search_radius = prepared.options.search_radius;
    q.total = p.total;
    q.preview_total = p.preview_total;
    // As CellLayout::group: the region from a sample of the points.
    const PointsView v = p.view();
    q.x0 = q.y0 = 1e30f;
    q.x1 = q.y1 = -1e30f;
    for (int i = 0; i < p.n; i += std::max(1, p.n / 500)) {
        q.x0 = std::min(q.x0, v.x[i]);
        q.x1 = std::max(q.x1, v.x[i]);
        q.y0 = std::min(q.y0, v.y[i]);
        q.y1 = std::max(q.y1, v.y[i]);
    }
    sizes->queries += 1;
    sizes->points += round_up(p.n, kAlign);
    sizes->samples += round_up(p.sample_n, kAlign);
    sizes->slots += slot_capacity(p.n);
    sizes->weighted |= p.weighted;
    sizes->variance |= q.has_variance != 0;
    return q;
}

State initial_state() {
    State s{};
    s.minimal_preview = -1;
    for (int i = 0; i < 3; ++i) s.pose.r[4 * i] = 1;
    return s;
}

void copy_query(const Problem& p, const Query& q, int index, const Arrays& a) {
    a.queries[index] = q;
    a.states[index] = initial_state();
    a.active[index] = index;
    const auto copy = [](const PointsView& v, int n, float* const* rows, int first) {
        const float* from[] = {v.x, v.y, v.X, v.Y, v.Z, v.s2, v.w};
        for (int r = 0; r < 7; ++r)
            if (from[r]) std::memcpy(rows[r] + first, from[r], sizeof(float) * n);
    };
    copy(p.view(), p.n, a.rows, q.first);
    copy(p.sample(), p.sample_n, a.sample_rows, q.sample_first);
    if (q.has_variance) std::copy(p.variance.begin(), p.variance.end(), a.rows[7] + q.first);
    std::copy(p.cumulative.begin(), p.cumulative.end(), a.cumulative + q.first);
}

/// Rounds until every search has ended.
void run_search(Backend* backend, const Layout& device, const Layout& host, int queries) {
    int active = queries, chunk = 0;
    while (active > 0) {
        const int chunks = chunk == 0              ? kFirstChunks
                           : chunk < kSerialChunks ? kSerialChunks - chunk
                                                   : kRound;
        backend->search(device.arrays, {active, chunks, chunk, chunk >= kSerialChunks});
        chunk += chunks;
        backend->fetch(0, host.done_bytes);
        int left = 0;
        for (int k = 0; k < active; ++k) {
            const int query = host.arrays.active[k];
            if (!host.arrays.done[query]) host.arrays.active[left++] = query;
        }
        if (left > 0 && left < active) backend->send(0, host.active_bytes);
        active = left;
    }
}

FitResult to_fit(const Output& out, const unsigned char* inlier, int n) {
    FitResult fit;
    fit.ok = out.ok != 0;
    if (!fit.ok) return fit;
    for (int i = 0; i < 9; ++i) fit.pose.R(i / 3, i % 3) = out.pose.r[i];
    for (int i = 0; i < 3; ++i) fit.pose.t[i] = out.pose.t[i];
    for (int i = 0; i < 36; ++i) fit.covariance(i / 6, i % 6) = out.covariance[i];
    fit.sigma = out.sigma;
    fit.effective_points = out.effective_points;
    fit.design_effect = out.design_effect;
    fit.inlier.assign(inlier, inlier + n);
    fit.inliers = out.inliers;
    fit.depth = out.depth;
    return fit;
}

/// Solves problems [from, to) into their results.
void solve_part(Backend* backend, const std::vector<BatchProblem>& problems, int from, int to,
                const AbsolutePoseOptions& options, int threads, std::vector<PoseResult>* results) {
    const Kernels& kernels = *select_kernels(options.kernels);
    std::vector<Prepared> prepared(to - from);
    parallel_for(to - from, threads, [&](int i) {
        const Correspondences& in = problems[from + i].points;
        PoseResult& result = (*results)[from + i];
        result = PoseResult::of(in.n);
        if (in.n >= 4)
            build_problem(in, *problems[from + i].camera, kernels, options.seed,
                          &prepared[i].problem);
        prepared[i].options = resolve_options(options, in);
    });
    std::vector<Query> queries;
    std::vector<int> index;  // of the query's problem
    Sizes sizes;
    for (int i = 0; i < to - from; ++i) {
        if (prepared[i].problem.n < 4) continue;
        queries.push_back(describe_query(prepared[i], problems[from + i].points, &sizes));
        index.push_back(i);
    }
    if (queries.empty()) return;
    const int count = static_cast<int>(queries.size());

    const Layout bytes(sizes, {nullptr, nullptr, nullptr});
    backend->reserve(bytes.input, bytes.work, bytes.output);
    Layout device(sizes, backend->device());
    const Layout host(sizes, backend->host());
    device.arrays.settings = {options.threshold,      options.confidence,
                              options.pixel_noise,    robust_moments(kDof, kProbeScale).variance,
                              options.seed,           options.min_iterations,
                              options.max_iterations, options.local_noise};
    parallel_for(count, threads, [&](int k) {
        copy_query(prepared[index[k]].problem, queries[k], k, host.arrays);
    });
    backend->send(0, bytes.input);
    run_search(backend, device, host, count);
    backend->fit(device.arrays, count);
    backend->fetch(0, bytes.output);

    parallel_for(count, threads, [&](int k) {
        const Output& out = host.arrays.outputs[k];
        const Correspondences& in = problems[from + index[k]].points;
        const Problem& problem = prepared[index[k]].problem;
        PoseResult& result = (*results)[from + index[k]];
        result.iterations = out.samples;
        result.local_optimisations = out.optimised;
        const unsigned char* inlier = host.arrays.inlier[out.inlier_buffer] + queries[k].first;
        const FitResult fit = out.found ? to_fit(out, inlier, problem.n) : FitResult();
        conclude(kernels, in, problem, *problems[from + index[k]].camera,
                 prepared[index[k]].options, out.found ? &fit : nullptr,
                 out.ray ? Residual::kRay : Residual::kReprojection, &result);
    });
}

struct Part {
    int from, to;
};

/// Parts that bound the memory of a batch.
std::vector<Part> divide(const std::vector<BatchProblem>& problems) {
    std::vector<Part> parts;
    std::size_t points = 0;
    for (int i = 0; i < static_cast<int>(problems.size()); ++i) {
        const std::size_t n = problems[i].points.n;
        if (parts.empty() || i - parts.back().from == kMaxQueries || points + n > kMaxPoints) {
            parts.push_back({i, i});
            points = 0;
        }
        points += n;
        parts.back().to = i + 1;
    }
    return parts;
}

}  // namespace

std::vector<PoseResult> solve_batch(const std::vector<Backend*>& backends,
                                    const std::vector<BatchProblem>& problems,
                                    const AbsolutePoseOptions& options, int threads) {
    std::vector<PoseResult> results(problems.size());
    const std::vector<Part> parts = divide(problems);
    const int workers = static_cast<int>(std::min(backends.size(), parts.size()));
    // Worker w takes every workers-th part, so that one prepares while another's kernels run.
    parallel_for(workers, workers, [&](int w) {
        for (std::size_t k = w; k < parts.size(); k += workers)
            solve_part(backends[w], problems, parts[k].from, parts[k].to, options, threads,
                       &results);
    });
    return results;
}

}  // namespace reloc::device
