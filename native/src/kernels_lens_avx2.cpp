// avx2 instantiation of the lens kernels.
#define RELOC_VEC_BYTES 32
#define RELOC_KERNEL_TABLE lens_kernels_avx2
#include "kernels_lens_table.inl"
