// Absolute pose at the camera's own focal length.
#pragma once

#include "reloc/absolute_options.hpp"
#include "reloc/camera.hpp"

namespace reloc {

struct CalibratedPose {
    FitResult fit;
    Residual residual = Residual::kReprojection;
    int iterations = 0, local_optimisations = 0;
};

/// Search and final fit of estimate_absolute_pose; `options` with the residual and the radius
/// settled. False if no sample gave a pose with support.
bool search_calibrated_pose(const Kernels& kernels, const Problem& problem, const Camera& camera,
                            const AbsolutePoseOptions& options, CalibratedPose* out);

}  // namespace reloc
