#include <cstring>

#include "reloc/kernels.hpp"

namespace reloc {

extern const Kernels kernels_baseline;
extern const LensKernels lens_kernels_baseline;
#ifdef RELOC_X86_KERNELS
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const LensKernels lens_kernels_avx2;
extern const LensKernels lens_kernels_avx512;

namespace {
bool runs_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool runs_avx512() {
    return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}
}  // namespace
#endif

const Kernels* select_kernels(const char* name) {
    const bool any = std::strcmp(name, "auto") == 0;
#ifdef RELOC_X86_KERNELS
    if ((any || std::strcmp(name, "avx512") == 0) && runs_avx512()) return &kernels_avx512;
    if ((any || std::strcmp(name, "avx2") == 0) && runs_avx2()) return &kernels_avx2;
#endif
    if (any || std::strcmp(name, "baseline") == 0) return &kernels_baseline;
    return nullptr;
}

const LensKernels& lens_kernels(const Kernels& kernels) {
#ifdef RELOC_X86_KERNELS
    if (&kernels == &kernels_avx512) return lens_kernels_avx512;
    if (&kernels == &kernels_avx2) return lens_kernels_avx2;
#endif
    (void)kernels;
    return lens_kernels_baseline;
}

}  // namespace reloc
