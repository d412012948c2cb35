// Robust absolute pose from pairs of camera-frame and scene points (RGB-D).
#pragma once

#include "reloc/absolute_pose.hpp"

namespace reloc {

struct RgbdPoseOptions {
    double threshold =
        0.05;  ///< scene units; narrow radius and first robust scale of the final fit
    double search_radius = 0;  ///< scene units; 0: 2.5 times the threshold
    double confidence = 0.99;
    int min_iterations = 16;
    int max_iterations = 100000;
    std::uint64_t seed = 0;
    bool local_noise = true;
    int min_inliers = 6;
    double min_score = 0.01;
    const char* kernels = "auto";
};

/// The rotation and translation that align three points with three others by their triangle frames.
///
/// Exact where the triangles are congruent; with noise it errs more than the least-squares
/// alignment (Kabsch, Acta Crystallographica A32, 1976) but costs a tenth, and local optimisation
/// removes the difference. False for collinear points.
bool align_triangles(const Vec3 cam[3], const Vec3 scene[3], Pose* out);

/// Weighted least-squares alignment of n point pairs (Kabsch 1976; Umeyama, PAMI 1991): cam = R
/// scene + t. False if the points do not span a plane.
bool align_points(const Vec3* cam, const Vec3* scene, const double* weights, int n, Pose* out);

/// Locally optimised RANSAC on triangles whose sides agree in both frames, then the final fit of
/// refine.hpp with the distance between paired points as the residual.
///
/// Uses points_cam, points3d, weights of `in`; points2d and variances are ignored.
PoseResult estimate_rgbd_pose(const Correspondences& in, const RgbdPoseOptions& options);

}  // namespace reloc
