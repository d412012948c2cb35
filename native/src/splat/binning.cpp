#include <algorithm>
#include <cmath>
#include <cstring>

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
    b.y_of_right = static_cast<float>(std::clamp(f.xy * std::sqrt(reach2 / f.xx),
                                                 -4 * kScreenLimit, 4 * kScreenLimit));
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
    for (int row = row_first; row <= row_last; ++row) {
        float left, right;
        if (!band(s, b, row * cell - y, row * cell + (cell - 1) - y, &left, &right)) continue;
        if (x + right < 0 || x + left > columns * cell - 1) continue;
        body(row, clamp_floor((x + left) / cell, 0, columns - 1),
             clamp_floor((x + right) / cell, 0, columns - 1));
    }
}

/// Stable sort of ids by the depth of their splats, which are positive.
std::vector<std::int32_t> sort_by_depth(const std::vector<Splat>& splats,
                                        std::vector<std::int32_t> ids) {
    constexpr int kBits = 11, kBuckets = 1 << kBits;
    const std::size_t n = ids.size();
    std::vector<std::uint32_t> keys(n), keys2(n);
    std::vector<std::int32_t> ids2(n);
    for (std::size_t i = 0; i < n; ++i) std::memcpy(&keys[i], &splats[ids[i]].depth, 4);
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

std::vector<Splat> project_scene(const Scene& scene, const View& view, int threads, State& state,
                                 std::int32_t* radii, float* means2d) {
    std::vector<Splat> splats(scene.n);
    state.bounds.resize(scene.n);
    const ProjectionInput in = with_arrays(state.projection, scene);
    parallel_for(pieces_of(scene.n), threads, [&](int piece) {
        const int begin = piece * kPiece, end = std::min(scene.n, begin + kPiece);
        std::vector<Footprint> footprints(kPiece);
        state.kernels->project(in, begin, end, splats.data() + begin, footprints.data());
        for (int i = begin; i < end; ++i) {
            Splat& s = splats[i];
            const Footprint& f = footprints[i - begin];
            Bounds b = bounds_of(s, f);
            const bool reaches = b.half_x > 0 && s.x + b.half_x >= 0 &&
                                 s.x - b.half_x <= view.width - 1 && s.y + b.half_y >= 0 &&
                                 s.y - b.half_y <= view.height - 1;
            if (!reaches) b = {};
            state.bounds[i] = b;
            const double mid = 0.5 * (f.xx + f.yy), off = 0.5 * (f.xx - f.yy);
            const double largest = mid + std::sqrt(off * off + f.xy * f.xy);
            radii[i] = reaches ? static_cast<std::int32_t>(
                                     std::min(std::ceil(3 * std::sqrt(largest)), kScreenLimit))
                               : 0;
            means2d[2 * i] = s.x;
            means2d[2 * i + 1] = s.y;
        }
    });
    return splats;
}

void bin_scene(const std::vector<Splat>& splats, const View& view, int threads, State& state) {
    Binning& bin = state.binning;
    bin.columns = (view.width + kBlockSide - 1) / kBlockSide;
    bin.rows = (view.height + kBlockSide - 1) / kBlockSide;
    const int blocks = bin.columns * bin.rows;
    std::vector<std::int32_t> visible;
    for (std::size_t i = 0; i < splats.size(); ++i) {
        if (state.bounds[i].half_x > 0) visible.push_back(static_cast<std::int32_t>(i));
    }
    bin.ids = sort_by_depth(splats, std::move(visible));
    const int n = static_cast<int>(bin.ids.size());

    // Counted, then placed, by consecutive parts; where a splat lands depends on its rank alone.
    const int parts = std::max(1, std::min(threads, pieces_of(n)));
    const auto begin_of = [&](int part) { return static_cast<int>(std::int64_t{n} * part / parts); };
    std::vector<std::int64_t> next(static_cast<std::size_t>(parts) * blocks, 0);
    bin.first.assign(n + 1, 0);
    const auto for_part = [&](int part, auto body) {
        for (int rank = begin_of(part); rank < begin_of(part + 1); ++rank) {
            const std::int32_t id = bin.ids[rank];
            visit_cells(splats[id], state.bounds[id], kBlockSide, 0, 0, bin.columns, bin.rows,
                        [&](int row, int from, int to) { body(rank, id, row, from, to); });
        }
    };
    parallel_for(parts, threads, [&](int part) {
        std::int64_t* count = next.data() + static_cast<std::size_t>(part) * blocks;
        for_part(part, [&](int rank, std::int32_t, int row, int from, int to) {
            for (int c = from; c <= to; ++c) ++count[row * bin.columns + c];
            bin.first[rank + 1] += to - from + 1;
        });
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
    bin.slots.resize(total);
    parallel_for(parts, threads, [&](int part) {
        std::int64_t* to_slot = next.data() + static_cast<std::size_t>(part) * blocks;
        std::int64_t entry = bin.first[begin_of(part)];
        for_part(part, [&](int, std::int32_t id, int row, int from, int to) {
            for (int c = from; c <= to; ++c) {
                const std::int64_t slot = to_slot[row * bin.columns + c]++;
                bin.splats[slot] = splats[id];
                bin.slots[entry++] = slot;
            }
        });
    });
}

void bin_block(const State& state, int block, BlockTiles& tiles) {
    const Binning& bin = state.binning;
    const int x0 = block % bin.columns * kBlockSide, y0 = block / bin.columns * kBlockSide;
    const std::int64_t begin = bin.offset[block];
    const int n = static_cast<int>(bin.offset[block + 1] - begin);
    std::array<std::vector<std::int32_t>, kTilesPerBlock> lists;
    for (int slot = 0; slot < n; ++slot) {
        const Splat& s = bin.splats[begin + slot];
        visit_cells(s, state.bounds[s.id], kTileSide, x0, y0, kBlockTiles, kBlockTiles,
                    [&](int row, int from, int to) {
                        for (int c = from; c <= to; ++c)
                            lists[row * kBlockTiles + c].push_back(slot);
                    });
    }
    for (int t = 0; t < kTilesPerBlock; ++t) {
        tiles.offset[t] = static_cast<int>(tiles.slots.size());
        tiles.slots.insert(tiles.slots.end(), lists[t].begin(), lists[t].end());
    }
    tiles.offset[kTilesPerBlock] = static_cast<int>(tiles.slots.size());
}

}  // namespace reloc::splat
