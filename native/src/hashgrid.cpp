#include "reloc/hashgrid.hpp"

#include <algorithm>

namespace reloc {
namespace {

constexpr std::uint64_t kPrimeY = 2654435761u, kPrimeZ = 805459861u;

/// The eight table rows around a position and their trilinear weights: corner k has along axis a
/// the share `share[a][bit a of k]`.
struct Corners {
    std::size_t row[8];
    float weight[8];
    float share[3][2];
};

struct Level {
    std::uint64_t resolution, size, offset;
    bool dense;
    Level(const HashGridLayout& layout, int i)
        : resolution(static_cast<std::uint64_t>(layout.resolutions[i])),
          size(static_cast<std::uint64_t>(layout.sizes[i])),
          offset(static_cast<std::uint64_t>(layout.offsets[i])),
          dense((resolution + 1) * (resolution + 1) * (resolution + 1) <= size) {}

    Corners corners(const float* position) const {
        std::uint64_t low[3];
        Corners c;
        const float n = static_cast<float>(resolution);
        for (int a = 0; a < 3; ++a) {
            const float scaled = position[a] * n;
            const float cell =
                std::min(std::max(0.0f, static_cast<float>(static_cast<int>(scaled))), n - 1);
            low[a] = static_cast<std::uint64_t>(cell);
            c.share[a][0] = 1 - (scaled - cell);
            c.share[a][1] = scaled - cell;
        }
        // The order of the bits does not matter: both directions use this function.
        for (int k = 0; k < 8; ++k) {
            const std::uint64_t x = low[0] + (k & 1), y = low[1] + ((k >> 1) & 1),
                                z = low[2] + (k >> 2);
            const std::uint64_t index = dense ? x + (resolution + 1) * (y + (resolution + 1) * z)
                                              : (x ^ (y * kPrimeY) ^ (z * kPrimeZ)) & (size - 1);
            c.row[k] = static_cast<std::size_t>(offset + index);
            c.weight[k] = c.share[0][k & 1] * c.share[1][(k >> 1) & 1] * c.share[2][k >> 2];
        }
        return c;
    }
};

/// `kChannels` is a constant so that the inner loops become vector instructions; 0 means any.
template <int kChannels>
void encode(const HashGridLayout& layout, const float* positions, std::size_t n, const float* table,
            float* out) {
    const int channels = kChannels ? kChannels : layout.channels;
    const std::size_t width = static_cast<std::size_t>(layout.levels) * channels;
    for (int i = 0; i < layout.levels; ++i) {
        const Level level(layout, i);
        for (std::size_t p = 0; p < n; ++p) {
            const Corners c = level.corners(positions + 3 * p);
            float* target = out + p * width + static_cast<std::size_t>(i) * channels;
            for (int j = 0; j < channels; ++j) target[j] = 0;
            for (int k = 0; k < 8; ++k) {
                const float* source = table + c.row[k] * channels;
                for (int j = 0; j < channels; ++j) target[j] += c.weight[k] * source[j];
            }
        }
    }
}

template <int kChannels>
void backward(const HashGridLayout& layout, const float* positions, std::size_t n,
              const float* grad, float* grad_table) {
    const int channels = kChannels ? kChannels : layout.channels;
    const std::size_t width = static_cast<std::size_t>(layout.levels) * channels;
    for (int i = 0; i < layout.levels; ++i) {
        const Level level(layout, i);
        for (std::size_t p = 0; p < n; ++p) {
            const Corners c = level.corners(positions + 3 * p);
            const float* source = grad + p * width + static_cast<std::size_t>(i) * channels;
            for (int k = 0; k < 8; ++k) {
                float* target = grad_table + c.row[k] * channels;
                for (int j = 0; j < channels; ++j) target[j] += c.weight[k] * source[j];
            }
        }
    }
}

template <int kChannels>
void backward_positions(const HashGridLayout& layout, const float* positions, std::size_t n,
                        const float* table, const float* grad, float* grad_positions) {
    const int channels = kChannels ? kChannels : layout.channels;
    const std::size_t width = static_cast<std::size_t>(layout.levels) * channels;
    std::fill(grad_positions, grad_positions + 3 * n, 0.0f);
    for (int i = 0; i < layout.levels; ++i) {
        const Level level(layout, i);
        const float cells = static_cast<float>(level.resolution);
        for (std::size_t p = 0; p < n; ++p) {
            const Corners c = level.corners(positions + 3 * p);
            const float* upstream = grad + p * width + static_cast<std::size_t>(i) * channels;
            float* target = grad_positions + 3 * p;
            for (int k = 0; k < 8; ++k) {
                const float* source = table + c.row[k] * channels;
                float pull = 0;
                for (int j = 0; j < channels; ++j) pull += upstream[j] * source[j];
                const int x = k & 1, y = (k >> 1) & 1, z = k >> 2;
                pull *= cells;
                target[0] += (2 * x - 1) * c.share[1][y] * c.share[2][z] * pull;
                target[1] += (2 * y - 1) * c.share[0][x] * c.share[2][z] * pull;
                target[2] += (2 * z - 1) * c.share[0][x] * c.share[1][y] * pull;
            }
        }
    }
}

}  // namespace

void hashgrid_encode(const HashGridLayout& layout, const float* positions, std::size_t n,
                     const float* table, float* out) {
    (layout.channels == 4   ? encode<4>
     : layout.channels == 2 ? encode<2>
                            : encode<0>)(layout, positions, n, table, out);
}

void hashgrid_backward(const HashGridLayout& layout, const float* positions, std::size_t n,
                       const float* grad, float* grad_table) {
    (layout.channels == 4   ? backward<4>
     : layout.channels == 2 ? backward<2>
                            : backward<0>)(layout, positions, n, grad, grad_table);
}

void hashgrid_backward_positions(const HashGridLayout& layout, const float* positions,
                                 std::size_t n, const float* table, const float* grad,
                                 float* grad_positions) {
    (layout.channels == 4 ? backward_positions<4>
     : layout.channels == 2
         ? backward_positions<2>
         : backward_positions<0>)(layout, positions, n, table, grad, grad_positions);
}

}  // namespace reloc
