#include "reloc/problem.hpp"

#include <algorithm>
#include <bitset>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>

#include "reloc/rng.hpp"

namespace reloc {

namespace {

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define RELOC_SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(RELOC_SANITIZED)
constexpr int kCached = 0;  // let the sanitizer see every block's life
#else
constexpr int kCached = 8;
#endif
constexpr std::size_t kMaxCachedBytes = 4u << 20;

struct BlockCache {
    float* block[kCached + 1] = {};
    std::size_t bytes[kCached + 1] = {};
    ~BlockCache() {
        for (float* p : block) std::free(p);
    }
};
thread_local BlockCache block_cache;

// Squares and products of these stay finite in float.
constexpr double kMaxCoordinate = 1e12;
constexpr float kPadRay = 1e18f;

enum Row { kX2, kY2, kX3, kY3, kZ3, kS2, kW, kRows };

/// Median of a strided sample of one coordinate; a mean would follow a single absurd point.
template <class Get>
double sample_median(std::size_t n, Get get) {
    double values[101];
    int m = 0;
    const std::size_t step = std::max<std::size_t>(1, n / 101);
    for (std::size_t i = step / 2; i < n && m < 101; i += step) {
        const double v = get(i);
        if (std::isfinite(v)) values[m++] = v;
    }
    if (m == 0) return 0;
    std::nth_element(values, values + m / 2, values + m);
    return values[m / 2];
}

double image_area(const Correspondences& in, const Camera& camera) {
    if (camera.width > 0 && camera.height > 0)
        return static_cast<double>(camera.width) * camera.height;
    double low[2] = {1e30, 1e30}, high[2] = {-1e30, -1e30};
    for (std::size_t i = 0; i < 2 * in.n; ++i) {
        const double v = in.points2d[i];
        if (!std::isfinite(v)) continue;
        low[i & 1] = std::min(low[i & 1], v);
        high[i & 1] = std::max(high[i & 1], v);
    }
    return std::max(1.0, high[0] - low[0]) * std::max(1.0, high[1] - low[1]);
}

/// Fills all points at once; false if some point must be dropped.
bool fill_plain(const Correspondences& in, const Camera& cam, const Kernels& kernels,
                Problem* out) {
    const int n = static_cast<int>(in.n);
    float* image[2] = {out->rows.row(kX2), out->rows.row(kY2)};
    float* scene[3] = {out->rows.row(kX3), out->rows.row(kY3), out->rows.row(kZ3)};
    const double focal[2] = {1 / cam.fx, 1 / cam.fy},
                 origin[2] = {cam.cx / cam.fx, cam.cy / cam.fy}, one[3] = {1, 1, 1};
    bool bad = kernels.split(in.points2d.f32, in.points2d.f64, 2, n, focal, origin, 1e6f, image);
    bad |= kernels.split(in.points3d.f32, in.points3d.f64, 3, n, one, out->centre.data(),
                         static_cast<float>(kMaxCoordinate), scene);
    if (bad) return false;
    std::fill(out->rows.row(kS2), out->rows.row(kS2) + n, static_cast<float>(cam.fx * cam.fy));
    out->n = n;
    return true;
}

template <class T2, class T3>
void fill(const T2* p2, const T3* p3, const Correspondences& in, const Camera& cam, Problem* out) {
    float *x = out->rows.row(kX2), *y = out->rows.row(kY2), *X = out->rows.row(kX3),
          *Y = out->rows.row(kY3), *Z = out->rows.row(kZ3), *s2 = out->rows.row(kS2),
          *w = out->rows.row(kW);
    const double ifx = 1 / cam.fx, ify = 1 / cam.fy, area = cam.fx * cam.fy;
    const Vec3 c = out->centre;
    int m = 0;
    for (std::size_t i = 0; i < in.n; ++i) {
        const double X3 = static_cast<double>(p3[3 * i]) - c.x(),
                     Y3 = static_cast<double>(p3[3 * i + 1]) - c.y(),
                     Z3 = static_cast<double>(p3[3 * i + 2]) - c.z();
        double u = (p2[2 * i] - cam.cx) * ifx, v = (p2[2 * i + 1] - cam.cy) * ify, scale2 = area;
        // Written so that NaN fails.
        bool ok = std::abs(X3) < kMaxCoordinate && std::abs(Y3) < kMaxCoordinate &&
                  std::abs(Z3) < kMaxCoordinate && std::abs(u) < 1e6 && std::abs(v) < 1e6;
        if (ok && cam.distorted) {
            Vec2 uv;
            ok = cam.from_pixel(Vec2(p2[2 * i], p2[2 * i + 1]), &uv);
            if (ok) {
                Eigen::Matrix2d J;
                cam.to_pixel(uv, &J);
                scale2 = std::abs(J.determinant());
                u = uv.x();
                v = uv.y();
            }
        }
        double weight = 1;
        if (ok && in.weights) {
            weight = in.weights[i];
            ok = weight > 0 && weight < 1e30;
        }
        if (ok && in.variances) {
            const double var = in.variances[i];
            ok = var >= 0 && var < kMaxCoordinate;
            if (ok) out->variance.push_back(static_cast<float>(var));
        }
        if (!ok) {
            // The first loss starts the index of survivors.
            if (out->source.empty() && static_cast<std::size_t>(m) == i) {
                out->source.reserve(in.n);
                for (int k = 0; k < m; ++k) out->source.push_back(k);
            }
            continue;
        }
        if (static_cast<std::size_t>(m) != i) out->source.push_back(static_cast<int>(i));
        x[m] = static_cast<float>(u);
        y[m] = static_cast<float>(v);
        X[m] = static_cast<float>(X3);
        Y[m] = static_cast<float>(Y3);
        Z[m] = static_cast<float>(Z3);
        s2[m] = static_cast<float>(scale2);
        if (in.weights) w[m] = static_cast<float>(weight);
        ++m;
    }
    out->n = m;
}

void pad(FloatRows* rows, int from, bool weighted) {
    for (int i = from; i < rows->stride(); ++i) {
        // Far from any projection; a scale of zero would make the error zero.
        rows->row(kX2)[i] = rows->row(kY2)[i] = kPadRay;
        for (int r : {kX3, kY3, kZ3}) rows->row(r)[i] = 0;
        rows->row(kS2)[i] = 1;
        if (weighted) rows->row(kW)[i] = 0;
    }
}

PointsView view_of(const FloatRows& rows, int n, bool weighted) {
    const int padded = (n + kLanePad - 1) / kLanePad * kLanePad;
    return {rows.row(kX2),
            rows.row(kY2),
            rows.row(kX3),
            rows.row(kY3),
            rows.row(kZ3),
            rows.row(kS2),
            weighted ? rows.row(kW) : nullptr,
            padded};
}

}  // namespace

PointsView Problem::view() const { return view_of(rows, n, weighted); }
PointsView Problem::sample() const { return view_of(sample_rows, sample_n, weighted); }
PointsView Problem::preview() const { return view_of(sample_rows, preview_n, weighted); }

void even_sample(int n, int k, std::uint64_t seed, int* chosen) {
    constexpr int kSpread = kSamplePoints / kPreviewPoints;
    if (k < 1) return;
    Rng rng(seed, 0x70726576ULL);
    // Borders of the runs in fixed point.
    const std::uint64_t length =
        (static_cast<std::uint64_t>(n) << 32) / static_cast<std::uint64_t>(k);
    for (int r = 0; r < kSpread; ++r) {
        for (int j = r; j < k; j += kSpread) {
            const std::uint32_t lo = static_cast<std::uint32_t>(j * length >> 32),
                                hi = static_cast<std::uint32_t>((j + 1) * length >> 32);
            *chosen++ = static_cast<int>(lo + rng.below(hi - lo));
        }
    }
}

bool on_lattice(const Correspondences& in, std::uint64_t seed) {
    constexpr int kLeast = 64, kBits = 12;
    const int n = static_cast<int>(in.n), k = std::min(n, kSamplePoints);
    if (k < kLeast) return false;
    int chosen[kSamplePoints];
    even_sample(n, k, seed, chosen);
    for (int axis = 0; axis < 2; ++axis) {
        // Distinct values by their hashes; a few that fall together do no harm.
        std::bitset<1 << kBits> seen;
        for (int j = 0; j < k; ++j) {
            const float value =
                static_cast<float>(in.points2d[2 * static_cast<std::size_t>(chosen[j]) + axis]);
            std::uint32_t bits;
            std::memcpy(&bits, &value, sizeof bits);
            seen.set(bits * 2654435769u >> (32 - kBits));
        }
        if (4 * static_cast<int>(seen.count()) > k) return false;
    }
    return true;
}

void build_problem(const Correspondences& in, const Camera& camera, const Kernels& kernels,
                   std::uint64_t seed, Problem* out) {
    const std::size_t n = in.n;
    out->focal = camera.mean_focal();
    out->image_area = image_area(in, camera);
    out->weighted = static_cast<bool>(in.weights);
    if (in.variances) out->variance.reserve(n);
    for (int a = 0; a < 3; ++a)
        out->centre[a] = sample_median(n, [&](std::size_t i) { return in.points3d[3 * i + a]; });
    out->extent = sample_median(n, [&](std::size_t i) {
        return (Vec3(in.points3d[3 * i], in.points3d[3 * i + 1], in.points3d[3 * i + 2]) -
                out->centre)
            .norm();
    });
    if (!(out->extent > 1e-9)) out->extent = 1e-9;
    out->rows.allocate(kRows, static_cast<int>(n));
    if (!camera.distorted && !in.weights && !in.variances && fill_plain(in, camera, kernels, out)) {
    } else if (in.points2d.f32) {
        if (in.points3d.f32)
            fill(in.points2d.f32, in.points3d.f32, in, camera, out);
        else
            fill(in.points2d.f32, in.points3d.f64, in, camera, out);
    } else {
        if (in.points3d.f32)
            fill(in.points2d.f64, in.points3d.f32, in, camera, out);
        else
            fill(in.points2d.f64, in.points3d.f64, in, camera, out);
    }
    const int m = out->n;
    out->total = m;
    if (out->weighted && m > 0) {
        float* w = out->rows.row(kW);
        double sum = 0;
        for (int i = 0; i < m; ++i) sum += w[i];
        const float scale = static_cast<float>(m / sum);
        out->cumulative.resize(m);
        double running = 0;
        for (int i = 0; i < m; ++i) {
            w[i] *= scale;
            running += w[i];
            out->cumulative[i] = running;
        }
        out->total = running;
    }
    pad(&out->rows, m, out->weighted);

    const int k = std::min(m, kSamplePoints);
    out->sample_n = k;
    out->preview_n = std::min(k, kPreviewPoints);
    out->sample_rows.allocate(kRows, k);
    int chosen[kSamplePoints];
    even_sample(m, k, seed, chosen);
    for (int r = 0; r < (out->weighted ? kRows : kW); ++r) {
        const float* from = out->rows.row(r);
        float* to = out->sample_rows.row(r);
        for (int j = 0; j < k; ++j) to[j] = from[chosen[j]];
    }
    out->preview_total = out->preview_n;
    if (out->weighted) {
        out->preview_total = 0;
        for (int j = 0; j < out->preview_n; ++j) out->preview_total += out->sample_rows.row(kW)[j];
    }
    pad(&out->sample_rows, k, out->weighted);
}

void FloatRows::allocate(int rows, int columns) {
    stride_ = (std::max(columns, 1) + kLanePad - 1) / kLanePad * kLanePad;
    const std::size_t bytes = sizeof(float) * stride_ * std::max(rows, 1);
    data_.reset();
    BlockCache& cache = block_cache;
    int best = -1;
    for (int i = 0; i < kCached; ++i) {
        if (cache.block[i] && cache.bytes[i] >= bytes &&
            (best < 0 || cache.bytes[i] < cache.bytes[best]))
            best = i;
    }
    if (best >= 0 && cache.bytes[best] <= 4 * bytes + 4096) {
        data_ = std::unique_ptr<float, ReleaseBlock>(cache.block[best],
                                                     ReleaseBlock{cache.bytes[best]});
        cache.block[best] = nullptr;
        return;
    }
    // Rounded up, so that problems of similar size share blocks.
    const std::size_t rounded = (bytes + bytes / 4 + 4095) / 4096 * 4096;
    float* p = static_cast<float*>(std::aligned_alloc(64, rounded));
    if (!p) throw std::bad_alloc();
    data_ = std::unique_ptr<float, ReleaseBlock>(p, ReleaseBlock{rounded});
}

void ReleaseBlock::operator()(float* p) const {
    BlockCache& cache = block_cache;
    if (bytes <= kMaxCachedBytes) {
        for (int i = 0; i < kCached; ++i) {
            if (cache.block[i]) continue;
            cache.block[i] = p;
            cache.bytes[i] = bytes;
            return;
        }
    }
    std::free(p);
}

Pose centred(const Pose& pose, const Vec3& centre) {
    Pose out = pose;
    out.t = pose.t + pose.R * centre;
    return out;
}

Pose uncentred(const Pose& pose, const Vec3& centre) {
    Pose out = pose;
    out.t = pose.t - pose.R * centre;
    return out;
}

}  // namespace reloc
