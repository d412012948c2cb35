// Instantiates the rasterizer's kernels for RELOC_VEC_BYTES under the symbol RELOC_KERNEL_TABLE.
#include "kernels.hpp"
#include "reloc/kernels.hpp"

#if RELOC_VEC_BYTES > 16
#include <immintrin.h>
#elif defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace reloc {
namespace splat {
namespace {
// In order of use.
// clang-format off
#include "../kernels_lanes.inl"
#include "lanes.inl"
#include "project.inl"
#include "project_backward.inl"
#include "shade.inl"
#include "forward.inl"
#include "backward.inl"
// clang-format on
}  // namespace

extern const Kernels RELOC_KERNEL_TABLE;
const Kernels RELOC_KERNEL_TABLE = {
    RELOC_KERNEL_NAME, project, project_backward, forward, backward,
};
}  // namespace splat
}  // namespace reloc
