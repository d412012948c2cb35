#include <algorithm>
#include <cmath>
#include <cstring>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "reloc/parallel.hpp"
#include "state.hpp"

namespace reloc::splat {
namespace {

int pieces_of(std::size_t n) { return static_cast<int>((n + kPiece - 1) / kPiece); }

Bounds bounds_of(const Splat& s, const Footprint& f) {
    if (s.opacity <= 0) return {};
    // alpha >= 1/255 needs |L d|^2 <= 2 ln(255 opacity); a little more for rounding.
    const double reach2 = 2.0 * std::log(255.0 * s.opacity) * 1.0001 + 1e-3;
    const double half_x = std::sqrt(reach2 * f.xx), half_y = std::sqrt(reach2 * f.yy);
    Bounds b;
    b.half_x = static_cast<float>(std::min(half_x * 1.0001 + 0.01, 4 * kScreenLimit));
    b.half_y = static_cast<float>(std::min(half_y * 1.0001 + 0.01, 4 * kScreenLimit));
    b.y_of_right = static_cast<float>(
        std::clamp(f.xy * std::sqrt(reach2 / f.xx), -4 * kScreenLimit, 4 * kScreenLimit));
    b.slope = static_cast<float>(f.xy / f.yy);
    b.reach2 = static_cast<float>(reach2);
    return b;
}

/// The x range, relative to the centre, of the ellipse between two rows (relative too).
bool band(const Splat& s, const Bounds& b, float top, float bottom, float* left, float* right) {
    top = std::max(top, -b.half_y);
    bottom = std::min(bottom, b.half_y);
    if (top > bottom) return false;
    const float margin = 0.02f + 1e-5f * b.half_x;
    const auto half = [&](float y) {
        const float v = s.l22 * y;
        const float rest = std::max(b.reach2 - v * v, 0.0f);
        return s.l11 > 0 ? std::min(std::sqrt(rest) / s.l11, b.half_x) : b.half_x;
    };
    const float middle_top = b.slope * top, middle_bottom = b.slope * bottom;
    const float half_top = half(top), half_bottom = half(bottom);
    *right = std::max(middle_top + half_top, middle_bottom + half_bottom);
    *left = std::min(middle_top - half_top, middle_bottom - half_bottom);
    if (top <= b.y_of_right && b.y_of_right <= bottom) *right = b.half_x;
    if (top <= -b.y_of_right && -b.y_of_right <= bottom) *left = -b.half_x;
    *right += margin;
    *left -= margin;
    return true;
}

int clamp_floor(float v, int low, int high) {
    return v <= low ? low : v >= high ? high : static_cast<int>(std::floor(v));
}

/// Calls body(row, first column, last column) for the cells of a grid that the splat reaches.
/// Cells have `side` pixels, the grid starts at pixel (x0, y0).
template <class Body>
void visit_cells(const Splat& s, const Bounds& b, int side, int x0, int y0, int columns, int rows,
                 Body body) {
    const float cell = static_cast<float>(side);
    const float y = s.y - y0, x = s.x - x0;
    if (y + b.half_y < 0 || y - b.half_y > rows * cell - 1) return;
    const int row_first = clamp_floor((y - b.half_y) / cell, 0, rows - 1);
    const int row_last = clamp_floor((y + b.half_y) / cell, 0, rows - 1);
    const int from = clamp_floor((x - b.half_x) / cell, 0, columns - 1);
    const int to = clamp_floor((x + b.half_x) / cell, 0, columns - 1);
    if (x + b.half_x < 0 || x - b.half_x > columns * cell - 1) return;
    if (row_last - row_first <= 1 && to - from <= 1) {
        // The box is hardly larger than the ellipse: spare the exact test.
        for (int row = row_first; row <= row_last; ++row) body(row, from, to);
        return;
    }
    for (int row = row_first; row <= row_last; ++row) {
        float left, right;
        if (!band(s, b, row * cell - y, row * cell + (cell - 1) - y, &left, &right)) continue;
        if (x + right < 0 || x + left > columns * cell - 1) continue;
        body(row, clamp_floor((x + left) / cell, 0, columns - 1),
             clamp_floor((x + right) / cell, 0, columns - 1));
    }
}

/// Stable sort of ids by the depth of their splats, which are positive.
std::vector<std::int32_t> sort_by_depth(const std::vector<Placed>& placed,
                                        std::vector<std::int32_t> ids) {
    constexpr int kBits = 11, kBuckets = 1 << kBits;
    const std::size_t n = ids.size();
    std::vector<std::uint32_t> keys(n), keys2(n);
    std::vector<std::int32_t> ids2(n);
    for (std::size_t i = 0; i < n; ++i) std::memcpy(&keys[i], &placed[ids[i]].splat.depth, 4);
    for (int shift = 0; shift < 32; shift += kBits) {
        std::vector<std::uint32_t> start(kBuckets + 1, 0);
        for (const std::uint32_t key : keys) ++start[((key >> shift) & (kBuckets - 1)) + 1];
        for (int b = 0; b < kBuckets; ++b) start[b + 1] += start[b];
        for (std::size_t i = 0; i < n; ++i) {
            const std::uint32_t to = start[(keys[i] >> shift) & (kBuckets - 1)]++;
            keys2[to] = keys[i];
            ids2[to] = ids[i];
        }
        keys.swap(keys2);
        ids.swap(ids2);
    }
    return ids;
}

}  // namespace

void advise_large_pages(void* begin, std::size_t bytes) {
#ifdef __linux__
    constexpr std::uintptr_t kPage = std::uintptr_t{1} << 21;
    const auto first = (reinterpret_cast<std::uintptr_t>(begin) + kPage - 1) / kPage * kPage;
    const auto last = (reinterpret_cast<std::uintptr_t>(begin) + bytes) / kPage * kPage;
    if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
    (void)begin, (void)bytes;
#endif
}

std::vector<Placed> project_scene(const Scene& scene, const View& view, int threads,
                                  const State& state, std::int32_t* radii, float* means2d) {
    std::vector<Placed> placed(scene.n);
    const ProjectionInput in = with_arrays(state.projection, scene);
    parallel_for(pieces_of(scene.n), threads, [&](int piece) {
        const int begin = piece * kPiece, end = std::min(scene.n, begin + kPiece);
        std::vector<Footprint> footprints(kPiece);
        std::vector<Splat> splats(kPiece);
        state.kernels->project(in, begin, end, splats.data(), footprints.data());
        for (int i = begin; i < end; ++i) {
            const Splat& s = splats[i - begin];
            const Footprint& f = footprints[i - begin];
            Bounds b = bounds_of(s, f);
            const bool reaches = b.half_x > 0 && s.x + b.half_x >= 0 &&
                                 s.x - b.half_x <= view.width - 1 && s.y + b.half_y >= 0 &&
                                 s.y - b.half_y <= view.height - 1;
            if (!reaches) b = {};
            placed[i] = {s, b};
            const double mid = 0.5 * (f.xx + f.yy), off = 0.5 * (f.xx - f.yy);
            const double largest = mid + std::sqrt(off * off + f.xy * f.xy);
            radii[i] = reaches ? static_cast<std::int32_t>(
                                     std::min(std::ceil(3 * std::sqrt(largest)), kScreenLimit))
                               : 0;
            means2d[2 * i] = s.x;
            means2d[2 * i + 1] = s.y;
        }
    });
    return placed;
}

void bin_scene(const std::vector<Placed>& placed, const View& view, int threads, Binning& bin) {
    bin.columns = (view.width + kBlockSide - 1) / kBlockSide;
    bin.rows = (view.height + kBlockSide - 1) / kBlockSide;
    const int blocks = bin.columns * bin.rows;
    std::vector<std::int32_t> visible;
    visible.reserve(placed.size());
    for (std::size_t i = 0; i < placed.size(); ++i) {
        if (placed[i].bounds.half_x > 0) visible.push_back(static_cast<std::int32_t>(i));
    }
    bin.ids = sort_by_depth(placed, std::move(visible));
    const int n = static_cast<int>(bin.ids.size());

    // Counted, then placed, by consecutive parts; where a splat lands depends on its rank alone.
    const int parts = std::max(1, std::min(threads, pieces_of(n)));
    const auto begin_of = [&](int part) {
        return static_cast<int>(std::int64_t{n} * part / parts);
    };
    std::vector<std::int64_t> next(static_cast<std::size_t>(parts) * blocks, 0);
    std::vector<std::vector<std::int32_t>> reached(parts);  // blocks of each splat, one by one
    bin.first.assign(n + 1, 0);
    parallel_for(parts, threads, [&](int part) {
        std::int64_t* count = next.data() + static_cast<std::size_t>(part) * blocks;
        std::vector<std::int32_t>& list = reached[part];
        list.reserve(2 * static_cast<std::size_t>(begin_of(part + 1) - begin_of(part)));
        for (int rank = begin_of(part); rank < begin_of(part + 1); ++rank) {
            const Placed& p = placed[bin.ids[rank]];
            const std::size_t before = list.size();
            visit_cells(p.splat, p.bounds, kBlockSide, 0, 0, bin.columns, bin.rows,
                        [&](int row, int from, int to) {
                            for (int c = from; c <= to; ++c) {
                                list.push_back(row * bin.columns + c);
                                ++count[row * bin.columns + c];
                            }
                        });
            bin.first[rank + 1] = static_cast<std::int64_t>(list.size() - before);
        }
    });
    bin.offset.assign(blocks + 1, 0);
    std::int64_t total = 0;
    for (int block = 0; block < blocks; ++block) {
        bin.offset[block] = total;
        for (int part = 0; part < parts; ++part) {
            std::int64_t& entry = next[static_cast<std::size_t>(part) * blocks + block];
            const std::int64_t count = entry;
            entry = total;
            total += count;
        }
    }
    bin.offset[blocks] = total;
    for (int rank = 0; rank < n; ++rank) bin.first[rank + 1] += bin.first[rank];
    bin.splats.resize(total);
    bin.bounds.resize(total);
    bin.slots.resize(total);
    parallel_for(parts, threads, [&](int part) {
        std::int64_t* to_slot = next.data() + static_cast<std::size_t>(part) * blocks;
        const std::int32_t* block = reached[part].data();
        for (int rank = begin_of(part); rank < begin_of(part + 1); ++rank) {
            const Placed& p = placed[bin.ids[rank]];
            for (std::int64_t i = bin.first[rank]; i < bin.first[rank + 1]; ++i) {
                const std::int64_t slot = to_slot[*block++]++;
                bin.splats[slot] = p.splat;
                bin.bounds[slot] = p.bounds;
                bin.slots[i] = slot;
            }
        }
    });
}

void bin_block(const State& state, int block, BlockTiles& tiles) {
    const Binning& bin = state.binning;
    const int x0 = block % bin.columns * kBlockSide, y0 = block / bin.columns * kBlockSide;
    const std::int64_t begin = bin.offset[block];
    const int n = static_cast<int>(bin.offset[block + 1] - begin);
    std::vector<std::uint16_t> reached(n);  // a bit per tile
    std::array<int, kTilesPerBlock> next{};
    for (int slot = 0; slot < n; ++slot) {
        unsigned bits = 0;
        visit_cells(bin.splats[begin + slot], bin.bounds[begin + slot], kTileSide, x0, y0,
                    kBlockTiles, kBlockTiles, [&](int row, int from, int to) {
                        bits |= ((2u << (to - from)) - 1) << (row * kBlockTiles + from);
                    });
        reached[slot] = static_cast<std::uint16_t>(bits);
        for (; bits; bits &= bits - 1) ++next[__builtin_ctz(bits)];
    }
    for (int t = 0; t < kTilesPerBlock; ++t) {
        tiles.offset[t + 1] = tiles.offset[t] + next[t];
        next[t] = tiles.offset[t];
    }
    tiles.slots.resize(tiles.offset[kTilesPerBlock]);
    for (int slot = 0; slot < n; ++slot) {
        for (unsigned bits = reached[slot]; bits; bits &= bits - 1)
            tiles.slots[next[__builtin_ctz(bits)]++] = slot;
    }
}

}  // namespace reloc::splat
