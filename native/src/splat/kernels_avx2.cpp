// avx2 instantiation of the rasterizer's kernels.
#define RELOC_VEC_BYTES 32
#define RELOC_KERNEL_NAME "avx2"
#define RELOC_KERNEL_TABLE kernels_avx2
#include "kernels_table.inl"
