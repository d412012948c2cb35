// Robust absolute pose from 2D-3D correspondences.
#pragma once

#include "reloc/absolute_options.hpp"
#include "reloc/camera.hpp"
#include "reloc/pose_result.hpp"

namespace reloc {

/// Locally optimised RANSAC over P3P hypotheses (src/search.hpp), scored by a truncated quadratic
/// at two radii, with a final robust fit (refine.hpp), reconciled with what the inliers say about
/// the focal length (focal_check.hpp). With `estimate_focal` it is estimate_focal_pose.
PoseResult estimate_absolute_pose(const Correspondences& in, const Camera& camera,
                                  const AbsolutePoseOptions& options);

}  // namespace reloc
