// Absolute pose of a generalized camera: several images with known poses relative to each other.
#pragma once

#include <vector>

#include "reloc/absolute_options.hpp"
#include "reloc/camera.hpp"
#include "reloc/pose_result.hpp"

namespace reloc {

/// One image of a rig; `points_cam` of the correspondences is ignored.
struct RigImage {
    Correspondences points;
    const Camera* camera = nullptr;
    Pose cam_from_rig;
};

/// Locally optimised RANSAC over triples of rays of all images (gp3p.hpp), then the final fit of
/// refine.hpp over all of them. `cam_from_world` of the result is rig_from_world, the covariance is
/// in the rig's axes, and inliers are those of the images one after the other.
///
/// Weights are comparable between images. `estimate_focal` is ignored.
PoseResult estimate_generalized_pose(const std::vector<RigImage>& images,
                                     const AbsolutePoseOptions& options);

}  // namespace reloc
