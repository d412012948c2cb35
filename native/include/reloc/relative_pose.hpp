// Relative pose of two calibrated images from point matches.
#pragma once

#include "reloc/camera.hpp"
#include "reloc/pose_result.hpp"
#include "reloc/search_options.hpp"

namespace reloc {

struct RelativePoseOptions : SearchOptions {
    RelativePoseOptions() {
        min_iterations = 32;
        max_iterations = 10000;
        min_inliers = 8;
    }
    double threshold = 2;  ///< pixels, Sampson distance
};

/// Locally optimised RANSAC over five-point samples, then a Geman-McClure fit of the Sampson error
/// over rotation and direction. Matches must lie in front of both cameras. `cam_from_world` of the
/// result is b_from_a with a translation of unit length: the scale is not observable, and neither
/// covariance nor score are estimated.
PoseResult estimate_relative_pose(const ArrayRef& points_a, const ArrayRef& points_b, std::size_t n,
                                  const Camera& camera_a, const Camera& camera_b,
                                  const RelativePoseOptions& options);

}  // namespace reloc
