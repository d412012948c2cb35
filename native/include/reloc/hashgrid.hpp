// Multi-resolution hash encoding (Mueller et al., Instant NGP, SIGGRAPH 2022) on the CPU.
// Not of one method: any neural field encodes positions so. It is here although one plugin uses it
// (nefes_refine), which would otherwise need a compiler and a wheel for every Python and platform.
#pragma once

#include <cstddef>
#include <cstdint>

namespace reloc {

/// Layout of a grid: `levels` resolutions over the unit cube. Level i has `sizes[i]` rows of
/// `channels` values from row `offsets[i]` on; it is indexed densely when (resolution + 1)^3 rows
/// fit, else hashed.
struct HashGridLayout {
    int levels = 0, channels = 0;
    const std::int64_t* resolutions = nullptr;
    const std::int64_t* sizes = nullptr;
    const std::int64_t* offsets = nullptr;
};

/// Trilinear interpolation at `positions` (n x 3, unit cube) into `out` (n x levels * channels).
void hashgrid_encode(const HashGridLayout& layout, const float* positions, std::size_t n,
                     const float* table, float* out);

/// Adds the gradient of the table for the gradient `grad` (n x levels * channels) of the output to
/// `grad_table`, in the order of the positions, so that the sum is repeatable.
void hashgrid_backward(const HashGridLayout& layout, const float* positions, std::size_t n,
                       const float* grad, float* grad_table);

/// Writes the gradient of the positions (n x 3), per unit of the cube, for the gradient `grad` (n x
/// levels * channels) of the output. It jumps where a position passes into another cell.
void hashgrid_backward_positions(const HashGridLayout& layout, const float* positions,
                                 std::size_t n, const float* table, const float* grad,
                                 float* grad_positions);

}  // namespace reloc
