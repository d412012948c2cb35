// Robust absolute pose from 2D-3D correspondences.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "reloc/camera.hpp"
#include "reloc/pose_result.hpp"
#include "reloc/problem.hpp"
#include "reloc/refine.hpp"

namespace reloc {

struct AbsolutePoseOptions {
    double search_radius = 0;  ///< pixels; width of the search; 0: 25, or 12 for reprojection
    double threshold = 10;     ///< pixels; narrow radius and first robust scale of the final fit
    double confidence = 0.99;  ///< probability of having drawn an outlier-free sample
    int min_iterations = 16;
    int max_iterations = 100000;
    std::uint64_t seed = 0;
    int threads = 1;  ///< of one query; the result does not depend on it
    Residual residual = Residual::kAuto;
    double pixel_noise = 1.0;  ///< pixels; image part of the noise when variances are given
    bool local_noise = true;
    bool estimate_focal = false;  ///< see focal_pose.hpp
    bool verify_focal = true;     ///< see focal_check.hpp
    double focal_floor = 0;       ///< standard deviation over the focal length, at least
    double redundancy = 1;        ///< correspondences that are worth an independent one
    int min_inliers = 6;
    double min_score =
        0.01;  ///< poses less likely to be right than this are not returned as a success
    const char* kernels = "auto";
};

/// The options with the residual (where variances or a lattice of pixels decide it) and the search
/// radius settled.
AbsolutePoseOptions resolve_options(const AbsolutePoseOptions& options, const Correspondences& in);

/// Locally optimised RANSAC over P3P hypotheses with a final robust fit.
///
/// Samples come in fixed chunks, each with its own random stream; within a chunk, poses are ranked
/// on a preview of 256 points and the leaders scored on all (truncated quadratic at two radii). A
/// pose that beats all earlier minimal poses is optimised locally (Chum, Matas, Kittler, "Locally
/// Optimized RANSAC", DAGM 2003; Lebeda et al., BMVC 2012). The loop ends when an all-inlier sample
/// has been drawn with the wanted confidence. The returned pose is the final robust fit
/// (refine.hpp), reconciled with what the inliers say about the focal length (focal_check.hpp).
/// With `estimate_focal` it is estimate_focal_pose.
PoseResult estimate_absolute_pose(const Correspondences& in, const Camera& camera,
                                  const AbsolutePoseOptions& options);

}  // namespace reloc
