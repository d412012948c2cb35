// Instantiates the lens kernels for RELOC_VEC_BYTES under the symbol RELOC_KERNEL_TABLE.
#include "reloc/kernels.hpp"

#if RELOC_VEC_BYTES > 16
#include <immintrin.h>
#endif

namespace reloc {
namespace {
// In order of use.
// clang-format off
#include "kernels_lanes.inl"
#include "kernels_lens.inl"
// clang-format on
}  // namespace

extern const LensKernels RELOC_KERNEL_TABLE;
const LensKernels RELOC_KERNEL_TABLE = {lens_equations, lens_errors2, lens_project};
}  // namespace reloc
