#include "reloc/rgbd_pose.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "reloc/align_triangles.hpp"
#include "reloc/constants.hpp"
#include "robust_fit.hpp"
#include "search.hpp"

namespace reloc {
namespace {

constexpr int kPairLeaders = 2, kPairSteps = 4;
constexpr double kWiden = 2.5;
constexpr double kMinDepth = 1e-6, kMaxCoordinate = 1e12;
// Noise of a millionth of the scene's extent is below what float coordinates resolve.
constexpr double kRelativeFloor = 1e-6;

enum Row { kPx, kPy, kPz, kX, kY, kZ, kW, kRows };

struct Pairs {
    FloatRows rows, sample;
    std::vector<int> source;
    Vec3 centre = Vec3::Zero();
    double extent = 1, total = 0, preview_total = 0;
    int n = 0, sample_n = 0, preview_n = 0;
    bool weighted = false;

    static PairsView view_of(const FloatRows& r, int n, const float* info) {
        PairsView v = view_of(r, 0, n);
        v.info = info;
        return v;
    }
    /// `n` pairs from `from` on.
    static PairsView view_of(const FloatRows& r, int from, int n) {
        return {r.row(kPx) + from, r.row(kPy) + from, r.row(kPz) + from,
                r.row(kX) + from,  r.row(kY) + from,  r.row(kZ) + from,
                nullptr,           r.row(kW) + from,  (n + kLanePad - 1) / kLanePad * kLanePad};
    }
};

void pad(FloatRows* rows, int from) {
    for (int i = from; i < rows->stride(); ++i) {
        for (int r = 0; r < kRows; ++r) rows->row(r)[i] = 0;
        rows->row(kPx)[i] = 1e15f;  // never near anything
        rows->row(kPz)[i] = 1;
    }
}

double median(const Correspondences& in, int axis) {
    double values[101];
    int m = 0;
    const std::size_t step = std::max<std::size_t>(1, in.n / 101);
    for (std::size_t i = step / 2; i < in.n && m < 101; i += step) {
        const double v = in.points3d[3 * i + axis];
        if (std::isfinite(v)) values[m++] = v;
    }
    if (m == 0) return 0;
    std::nth_element(values, values + m / 2, values + m);
    return values[m / 2];
}

/// Fills all points at once; false if some point must be dropped.
bool fill_plain(const Correspondences& in, const Kernels& kernels, Pairs* out) {
    const int n = static_cast<int>(in.n);
    const double one[3] = {1, 1, 1}, zero[3] = {0, 0, 0};
    const float limit = static_cast<float>(kMaxCoordinate);
    float* cam[3] = {out->rows.row(kPx), out->rows.row(kPy), out->rows.row(kPz)};
    float* scene[3] = {out->rows.row(kX), out->rows.row(kY), out->rows.row(kZ)};
    bool bad = kernels.split(in.points_cam.f32, in.points_cam.f64, 3, n, one, zero, limit, cam);
    bad |= kernels.split(in.points3d.f32, in.points3d.f64, 3, n, one, out->centre.data(), limit,
                         scene);
    if (bad || !(kernels.least(cam[2], n) > static_cast<float>(kMinDepth))) return false;
    double extent = 0;
    for (int i = 0; i < n; i += 16) extent += std::fabs(scene[0][i]);
    out->n = n;
    out->total = n;
    out->extent = std::max(3 * 16 * extent / n, 1e-9);
    return true;
}

template <class T, class U>
void fill(const T* cam, const U* scene, const Correspondences& in, Pairs* out) {
    float* row[kRows];
    for (int r = 0; r < kRows; ++r) row[r] = out->rows.row(r);
    const Vec3 c = out->centre;
    out->source.resize(in.n);
    int m = 0;
    double weight_sum = 0, extent = 0;
    for (std::size_t i = 0; i < in.n; ++i) {
        const double p[6] = {double(cam[3 * i]),
                             double(cam[3 * i + 1]),
                             double(cam[3 * i + 2]),
                             double(scene[3 * i]) - c.x(),
                             double(scene[3 * i + 1]) - c.y(),
                             double(scene[3 * i + 2]) - c.z()};
        bool ok = p[2] > kMinDepth;  // written so that NaN fails
        for (double v : p) ok = ok && std::abs(v) < kMaxCoordinate;
        const double weight = in.weights ? in.weights[i] : 1.0;
        if (!ok || !(weight > 0 && weight < 1e30)) continue;
        for (int r = 0; r < 6; ++r) row[r][m] = static_cast<float>(p[r]);
        row[kW][m] = static_cast<float>(weight);
        weight_sum += weight;
        extent += std::abs(p[3]) + std::abs(p[4]) + std::abs(p[5]);
        out->source[m++] = static_cast<int>(i);
    }
    out->n = m;
    out->extent = m > 0 ? std::max(extent / m, 1e-9) : 1;
    if (in.weights && m > 0) {
        const float scale = static_cast<float>(m / weight_sum);
        for (int i = 0; i < m; ++i) row[kW][i] *= scale;
    }
    out->total = m;
}

void build(const Correspondences& in, const Kernels& kernels, std::uint64_t seed, Pairs* out) {
    for (int a = 0; a < 3; ++a) out->centre[a] = median(in, a);
    out->rows.allocate(kRows, static_cast<int>(in.n));
    out->weighted = static_cast<bool>(in.weights);
    if (!in.weights && fill_plain(in, kernels, out)) {
    } else if (in.points_cam.f32) {
        if (in.points3d.f32)
            fill(in.points_cam.f32, in.points3d.f32, in, out);
        else
            fill(in.points_cam.f32, in.points3d.f64, in, out);
    } else {
        if (in.points3d.f32)
            fill(in.points_cam.f64, in.points3d.f32, in, out);
        else
            fill(in.points_cam.f64, in.points3d.f64, in, out);
    }
    pad(&out->rows, out->n);
    const int m = out->n, k = std::min(m, kSamplePoints);
    out->sample_n = k;
    out->preview_n = std::min(k, kPreviewPoints);
    out->sample.allocate(kRows, k);
    int chosen[kSamplePoints];
    even_sample(m, k, seed, chosen);
    for (int q = 0; q < (out->weighted ? kRows : kW); ++q) {
        const float* from = out->rows.row(q);
        float* to = out->sample.row(q);
        for (int j = 0; j < k; ++j) to[j] = from[chosen[j]];
    }
    if (!out->weighted) std::fill(out->sample.row(kW), out->sample.row(kW) + k, 1.0f);
    for (int j = 0; j < out->preview_n; ++j) out->preview_total += out->sample.row(kW)[j];
    pad(&out->sample, k);
}

/// Pairs near a pose in the layout of the fit kernels; cells by the direction of the camera-frame
/// point.
class PairSet : public CellLayout {
  public:
    void build(const Kernels& kernels, const Pairs& pairs, const Pose& pose, double radius,
               int columns, int rows) {
        constexpr int kBlock = 512;  // stays in the cache from step to step
        FloatRows cells, scratch;
        cells.allocate(1, pairs.n);
        scratch.allocate(3, kBlock);
        int* cell_of = reinterpret_cast<int*>(cells.row(0));
        float *e2 = scratch.row(0), *x = scratch.row(1), *y = scratch.row(2);
        const CellGrid grid = region(pairs, static_cast<float>(radius * radius), columns, rows);
        const PoseF at = pose.to_float();
        for (int from = 0; from < pairs.n; from += kBlock) {
            const PairsView v = Pairs::view_of(pairs.rows, from, std::min(kBlock, pairs.n - from));
            kernels.pair_errors2(v, at, e2);
            kernels.directions(v.Px, v.Py, v.Pz, v.n, x, y);
            kernels.assign_cells(x, y, e2, v.n, grid, cell_of + from);
        }
        place(cell_of, pairs.n, columns, rows);
        rows_.allocate(Row::kRows + 1, slots());
        const float* from[kW];
        float* to[kW];
        for (int r = 0; r < kW; ++r) {
            from[r] = pairs.rows.row(r);
            to[r] = rows_.row(r);
        }
        gather(from, to);
        if (pairs.weighted)
            gather(pairs.rows.row(kW), 0.0f, rows_.row(kW));
        else
            mark(rows_.row(kW));
    }
    PairsView view() const { return slice(0, slots()); }
    PairsView cell(int c) const { return slice(cell_begin(c), cell_end(c)); }
    float* info() { return rows_.row(Row::kRows); }
    const float* prior() const { return rows_.row(kW); }

  private:
    /// Cells over the directions of a sample; points outside go to the border cells.
    static CellGrid region(const Pairs& pairs, float limit, int columns, int rows) {
        const float *X = pairs.rows.row(kPx), *Y = pairs.rows.row(kPy), *Z = pairs.rows.row(kPz);
        float x0 = 1e30f, x1 = -1e30f, y0 = 1e30f, y1 = -1e30f;
        for (int i = 0; i < pairs.n; i += std::max(1, pairs.n / 500)) {
            const float x = X[i] / Z[i], y = Y[i] / Z[i];
            x0 = std::min(x0, x);
            x1 = std::max(x1, x);
            y0 = std::min(y0, y);
            y1 = std::max(y1, y);
        }
        return {x0,
                y0,
                columns / std::max(x1 - x0, 1e-9f),
                rows / std::max(y1 - y0, 1e-9f),
                limit,
                columns,
                rows};
    }
    PairsView slice(int from, int to) const {
        return {rows_.row(kPx) + from,        rows_.row(kPy) + from, rows_.row(kPz) + from,
                rows_.row(kX) + from,         rows_.row(kY) + from,  rows_.row(kZ) + from,
                rows_.row(Row::kRows) + from, rows_.row(kW) + from,  to - from};
    }
    FloatRows rows_;
};

double search_radius(const RgbdPoseOptions& options) {
    return options.search_radius > 0 ? options.search_radius : kWiden * options.threshold;
}

struct PairKernel {
    void (*equations)(const PairsView&, const PoseF&, float, NormalEquations*);
    void (*errors2)(const PairsView&, const PoseF&, float*);
};

/// Poses of triangles whose sides agree in both frames, as search.hpp takes them. A sample of
/// points tells them apart well enough: three distances leave little ambiguity.
class Model {
  public:
    using Minimal = Pose;
    using State = Pose;
    static constexpr int kSample = 3, kChunk = reloc::kChunk, kLeaders = kPairLeaders;

    Model(const Pairs& pairs, const RgbdPoseOptions& options, const Kernels& kernels)
        : pairs_(pairs),
          kernels_(kernels),
          sampler_(pairs.n),
          wide_(search_radius(options)),
          narrow2_(options.threshold * options.threshold) {
        ones_.allocate(1, pairs.sample_n);
        std::fill(ones_.row(0), ones_.row(0) + ones_.stride(), 1.0f);
        for (int i = 0; i < pairs.sample_n; ++i) total_ += pairs.sample.row(kW)[i];
    }

    double total() const { return total_; }
    double preview_total() const { return pairs_.preview_total; }

    void propose(Rng* rng, Leaders<Minimal, kLeaders>* leaders) const {
        const PairsView preview = Pairs::view_of(pairs_.sample, pairs_.preview_n, nullptr);
        const float wide2 = static_cast<float>(wide_ * wide_);
        for (int k = 0; k < kChunk; ++k) {
            Pose pose;
            if (!draw(rng, &pose)) continue;
            const double seen = kernels_.pair_preview(preview, pose.to_float(), wide2);
            if (leaders->wants(seen)) leaders->take(pose, seen);
        }
    }

    Pose lift(const Pose& pose) const { return pose; }
    PoseScore score(const Pose& pose) const {
        return kernels_.pair_score(Pairs::view_of(pairs_.sample, pairs_.sample_n, nullptr),
                                   pose.to_float(), static_cast<float>(narrow2_),
                                   static_cast<float>(wide_ * wide_));
    }
    bool optimise(bool, Pose* pose) const {
        const PairsView sample = Pairs::view_of(pairs_.sample, pairs_.sample_n, ones_.row(0));
        const auto evaluate = [&](const PoseF& p, NormalEquations* eq) {
            kernels_.pair_equations(sample, p, static_cast<float>(narrow2_), eq);
        };
        return minimise(evaluate, kPairSteps, 0.1 * narrow2_, pose);
    }
    double patience(const PoseScore&) const { return 1; }

  private:
    bool draw(Rng* rng, Pose* out) const {
        int idx[3];
        if (!sampler_.draw(rng, idx)) return false;
        Vec3 P[3], X[3];
        for (int k = 0; k < 3; ++k) {
            const int i = idx[k];
            P[k] = Vec3(pairs_.rows.row(kPx)[i], pairs_.rows.row(kPy)[i], pairs_.rows.row(kPz)[i]);
            X[k] = Vec3(pairs_.rows.row(kX)[i], pairs_.rows.row(kY)[i], pairs_.rows.row(kZ)[i]);
            // Rigid motion keeps the sides: most wrong triangles end here.
            for (int j = 0; j < k; ++j) {
                if (!(std::abs((P[k] - P[j]).norm() - (X[k] - X[j]).norm()) < wide_)) return false;
            }
        }
        return align_triangles(P, X, out);
    }

    const Pairs& pairs_;
    const Kernels& kernels_;
    Sampler sampler_;
    FloatRows ones_;
    double wide_, narrow2_, total_ = 0;
};

/// Share of the pairs' bounding box that is within the inlier radius at the fit's noise.
double random_share(const Pairs& pairs, const FitResult& fit) {
    double volume = 1;
    for (int r : {kPx, kPy, kPz}) {
        const float* p = pairs.sample.row(r);
        const auto [low, high] = std::minmax_element(p, p + pairs.sample_n);
        volume *= std::max(static_cast<double>(*high) - *low, 2 * fit.sigma);
    }
    return std::min(1.0, 4.0 / 3 * M_PI * std::pow(kInlier3 * fit.sigma * fit.sigma, 1.5) /
                             std::max(volume, 1e-300));
}

}  // namespace

PoseResult estimate_rgbd_pose(const Correspondences& in, const RgbdPoseOptions& options) {
    const Kernels& kernels = *select_kernels(options.kernels);
    PoseResult result = PoseResult::of(in.n);
    if (in.n < 4) return result;
    Pairs pairs;
    build(in, kernels, options.seed, &pairs);
    if (pairs.n < 4) return result;
    const Model model(pairs, options, kernels);
    Search<Model> search(model, options);
    if (!search.run(&result)) return result;
    const bool local = options.local_noise && pairs.n >= kDensePoints;
    PairSet set;
    const Pose& start = search.best.state;
    set.build(kernels, pairs, start, 2 * search_radius(options), local ? 10 : 4, local ? 8 : 3);
    if (set.points() < 4) return result;
    FloatRows scratch;
    scratch.allocate(2, set.slots());
    std::fill(scratch.row(1), scratch.row(1) + set.slots(), 1.0f);
    const PairKernel kernel{kernels.pair_equations, kernels.pair_errors2};
    const double floor2 = std::pow(kRelativeFloor * pairs.extent, 2);
    FitResult fit;
    robust_fit(kernels, &set, kernel, scratch.row(1), scratch.row(0), floor2, 3, local, 1.0,
               pairs.n, start, &fit);
    const Demands demands{options.min_inliers, options.min_score, 3, random_share(pairs, fit)};
    finish(fit, pairs.centre, pairs.source, pairs.n, demands, &result);
    if (result.status == Status::kOk && !determined(in.points_cam, 3, 4, result))
        result.status = Status::kDegenerate;
    return result;
}

}  // namespace reloc
