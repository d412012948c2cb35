// Instantiates the kernels for RELOC_VEC_BYTES under the symbol RELOC_KERNEL_TABLE.
#include "reloc/kernels.hpp"

#if RELOC_VEC_BYTES > 16
#include <immintrin.h>
#endif

namespace reloc {
namespace {
// In order of use.
// clang-format off
#include "kernels_lanes.inl"
#include "kernels_p3p.inl"
#include "kernels_points.inl"
#include "kernels_pairs.inl"
// clang-format on

void p3p(P3PBatch* io) {
    for (int at = 0; at < kP3PBatch; at += kD) p3p_lanes(io, at);
}
}  // namespace

extern const Kernels RELOC_KERNEL_TABLE;
const Kernels RELOC_KERNEL_TABLE = {
    RELOC_KERNEL_NAME,
    preview,
    score,
    soft_inliers,
    errors2,
    search_equations,
    {ray_equations, ray_errors2},
    {reprojection_equations, reprojection_errors2},
    noise_sums,
    posterior,
    p3p,
    pair_preview,
    pair_score,
    pair_errors2,
    pair_equations,
    split,
    flag_below,
    least,
    assign_cells,
    directions,
    bearings,
};
}  // namespace reloc
