// The forward pass of DSAC*: hypotheses from minimal sets, soft inlier counting, refinement.
#pragma once

#include "reloc/camera.hpp"
#include "reloc/pose_result.hpp"

namespace reloc {

struct DsacOptions {
    int hypotheses = 64;
    double threshold = 10;   ///< pixels
    double alpha = 100;      ///< score of a hypothesis = alpha * mean soft inlier
    double max_error = 100;  ///< pixels; larger errors count as this
    int max_tries = 1000;    ///< minimal sets drawn per hypothesis
    int refine_steps = 100;
    std::uint64_t seed = 0;
    int threads = 1;
    const char* kernels = "auto";
};

/// Brachmann and Rother, "Visual Camera Re-Localization from RGB and RGB-D Images Using DSAC",
/// TPAMI 2021.
///
/// Each hypothesis is a P3P pose of three cells that also brings a fourth within the threshold. The
/// hypothesis with the highest soft inlier count, sum of sigmoid(5 / threshold * (threshold -
/// error)), is refined by least squares on all its inliers until their number stops growing.
///
/// Differences from the public implementation, none of which changes the scheme: points behind the
/// camera never count; the four points of a sample are distinct; each hypothesis has a random
/// stream of its own, so the result depends neither on threads nor on earlier calls; the number of
/// tries is bounded, and a hypothesis without a valid sample drops out in place of keeping an
/// invalid pose. Weights and variances are ignored, as published. The covariance is that of least
/// squares on the inliers.
PoseResult estimate_pose_dsac(const Correspondences& in, const Camera& camera,
                              const DsacOptions& options);

}  // namespace reloc
