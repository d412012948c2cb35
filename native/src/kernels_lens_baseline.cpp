// baseline instantiation of the lens kernels.
#define RELOC_VEC_BYTES 16
#define RELOC_KERNEL_TABLE lens_kernels_baseline
#include "kernels_lens_table.inl"
