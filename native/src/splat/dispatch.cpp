#include <cstring>
#include <initializer_list>

#include "kernels.hpp"
#include "reloc/kernels.hpp"

namespace reloc::splat {

extern const Kernels kernels_baseline;
#ifdef RELOC_X86_KERNELS
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

const Kernels* select_kernels(const char* name) {
    // The solvers' dispatch knows what the processor can run.
    const reloc::Kernels* chosen = reloc::select_kernels(name);
    if (!chosen) return nullptr;
#ifdef RELOC_X86_KERNELS
    for (const Kernels* kernels : {&kernels_avx512, &kernels_avx2}) {
        if (std::strcmp(kernels->name, chosen->name) == 0) return kernels;
    }
#endif
    return &kernels_baseline;
}

}  // namespace reloc::splat
