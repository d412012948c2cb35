#include "batch.hpp"
#include "cuda_backend.hpp"

namespace reloc::device {

std::vector<PoseResult> solve_on_cuda(const std::vector<BatchProblem>& problems,
                                      const AbsolutePoseOptions& options, int threads, int device) {
    const int count = cuda_device_count();
    if (count == 0) throw std::runtime_error("this machine has no CUDA device");
    if (device < 0 || device >= count)
        throw std::runtime_error("there is no CUDA device " + std::to_string(device) + " among " +
                                 std::to_string(count));
    CudaLease first(device), second(device);
    return solve_batch({first.get(), second.get()}, problems, options, threads);
}

}  // namespace reloc::device
