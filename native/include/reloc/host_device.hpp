// Marks functions that run on the host and on a CUDA device.
#pragma once

#ifdef __CUDACC__
#define RELOC_HD __host__ __device__
#else
#define RELOC_HD
#endif
