// avx512 instantiation of the rasterizer's kernels.
#define RELOC_VEC_BYTES 64
#define RELOC_KERNEL_NAME "avx512"
#define RELOC_KERNEL_TABLE kernels_avx512
#include "kernels_table.inl"
