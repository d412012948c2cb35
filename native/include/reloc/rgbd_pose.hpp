// Robust absolute pose from pairs of camera-frame and scene points (RGB-D).
#pragma once

#include "reloc/pose_result.hpp"
#include "reloc/search_options.hpp"

namespace reloc {

struct RgbdPoseOptions : SearchOptions {
    double threshold =
        0.05;  ///< scene units; narrow radius and first robust scale of the final fit
    double search_radius = 0;  ///< scene units; 0: 2.5 times the threshold
    bool local_noise = true;
    double min_score = 0.01;
    const char* kernels = "auto";
};

/// Locally optimised RANSAC on triangles whose sides agree in both frames, then the final fit of
/// refine.hpp with the distance between paired points as the residual.
///
/// Uses points_cam, points3d, weights of `in`; points2d and variances are ignored.
PoseResult estimate_rgbd_pose(const Correspondences& in, const RgbdPoseOptions& options);

}  // namespace reloc
