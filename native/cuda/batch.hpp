// Batches of absolute pose problems on a backend.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "backend.hpp"
#include "reloc/absolute_pose.hpp"

namespace reloc::device {

struct BatchProblem {
    Correspondences points;
    const Camera* camera;
};

/// Solves problems as estimate_absolute_pose does; sums are added in another order, so results
/// agree to rounding. `threads` prepare the problems on the host. Large batches go in parts, over
/// as many backends as there are.
std::vector<PoseResult> solve_batch(const std::vector<Backend*>& backends,
                                    const std::vector<BatchProblem>& problems,
                                    const AbsolutePoseOptions& options, int threads);

/// The same on a CUDA device; two parts are under way at once. Throws std::runtime_error with
/// the reason where the device cannot be used.
std::vector<PoseResult> solve_on_cuda(const std::vector<BatchProblem>& problems,
                                      const AbsolutePoseOptions& options, int threads, int device);

}  // namespace reloc::device
