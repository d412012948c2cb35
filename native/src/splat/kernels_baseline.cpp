// baseline instantiation of the rasterizer's kernels.
#define RELOC_VEC_BYTES 16
#define RELOC_KERNEL_NAME "baseline"
#define RELOC_KERNEL_TABLE kernels_baseline
#include "kernels_table.inl"
