// avx512 instantiation of the lens kernels.
#define RELOC_VEC_BYTES 64
#define RELOC_KERNEL_TABLE lens_kernels_avx512
#include "kernels_lens_table.inl"
