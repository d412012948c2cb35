// A block of cooperating threads, on a CUDA device or emulated by threads of the host.
//
// All algorithms of this folder are written against it, so that what runs on a device is compiled
// and tested without one.
#pragma once

#include "reloc/host_device.hpp"

namespace reloc::device {

#ifdef __CUDA_ARCH__
constexpr int kWarp = 32;
#else
constexpr int kWarp = 1;  // emulated: every thread is a warp of its own
#endif
constexpr int kMaxWarps = 32, kMaxSums = 32;

/// Shared memory of the reductions.
struct BlockScratch {
    float partial[kMaxSums][kMaxWarps];
};

/// Emulated barrier of all threads of a block; null with a single thread.
void wait_at_barrier(void* barrier);

class Block {
  public:
    RELOC_HD Block(int thread, int threads, BlockScratch* scratch, void* barrier)
        : thread_(thread), threads_(threads), scratch_(scratch), barrier_(barrier) {}

    RELOC_HD int thread() const { return thread_; }
    RELOC_HD int threads() const { return threads_; }

    RELOC_HD void sync() const {
#ifdef __CUDA_ARCH__
        __syncthreads();
#else
        if (barrier_) wait_at_barrier(barrier_);
#endif
    }

    /// body(i) for i in [0, n) over the threads, then a barrier.
    template <class Body>
    RELOC_HD void each(int n, Body body) const {
        for (int i = thread_; i < n; i += threads_) body(i);
        sync();
    }

    /// body() by one thread, then a barrier. What it writes must be in shared or global memory.
    template <class Body>
    RELOC_HD void once(Body body) const {
        if (thread_ == 0) body();
        sync();
    }

    /// body(i, lane, lanes) for i in [0, n), each i by one whole warp, then a barrier.
    template <class Body>
    RELOC_HD void each_warp(int n, Body body) const {
        for (int i = thread_ / kWarp; i < n; i += threads_ / kWarp) body(i, thread_ % kWarp, kWarp);
        sync();
    }

    /// Sum over the lanes of a warp; valid in lane 0.
    RELOC_HD static float warp_sum(float v) {
#ifdef __CUDA_ARCH__
        for (int offset = kWarp / 2; offset > 0; offset /= 2)
            v += __shfl_down_sync(0xffffffffu, v, offset);
#endif
        return v;
    }

    /// Sums of every thread's `parts` into `out`, which all threads see afterwards (so it must be
    /// in shared memory).
    template <int K>
    RELOC_HD void sum(const float (&parts)[K], double* out) const {
        static_assert(K <= kMaxSums, "more sums than scratch memory");
        const int warp = thread_ / kWarp, warps = threads_ / kWarp;
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
        for (int k = 0; k < K; ++k) {
            const float s = warp_sum(parts[k]);
            if (thread_ % kWarp == 0) scratch_->partial[k][warp] = s;
        }
        sync();
        for (int k = thread_; k < K; k += threads_) {
            double total = 0;
            for (int w = 0; w < warps; ++w) total += scratch_->partial[k][w];
            out[k] = total;
        }
        sync();
    }

  private:
    int thread_, threads_;
    BlockScratch* scratch_;
    void* barrier_;
};

}  // namespace reloc::device
