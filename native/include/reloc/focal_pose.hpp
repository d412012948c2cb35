// Absolute pose of a camera whose focal length is unknown.
#pragma once

#include "reloc/absolute_options.hpp"
#include "reloc/camera.hpp"
#include "reloc/pose_result.hpp"

namespace reloc {

/// What is known of the focal length before a search.
struct FocalSearch {
    double sigma = 0;             ///< of its logarithm; 0: nothing is known
    double trust = 1;             ///< how many times over the points count what they know
    int max_samples = 0;          ///< 0: as many as the options say
    const Pose* start = nullptr;  ///< centred; no search, but a fit from here
};

/// As estimate_absolute_pose, with the focal length of `camera` replaced by an estimate; both focal
/// lengths by one factor. The reprojection residual is used.
///
/// Every triple is solved for all focal lengths of a grid, a ratio of 1.2 apart, at once in vector
/// lanes (in the spirit of Sattler, Sweeney, Pollefeys, "On Sampling Focal Length Values to Solve
/// the Absolute Pose Problem", ECCV 2014): three points at sixteen focal lengths cost less than one
/// four-point solver with unknown focal length and are free of outliers more often. Local
/// optimisation and final fit are over pose and focal length; the covariance of the pose is
/// marginalised over the focal length. With a `sigma` the grid spans what is likely and the final
/// fit takes the camera's focal length for one more observation, with a Gaussian error of its
/// logarithm.
PoseResult estimate_focal_pose(const Kernels& kernels, const Correspondences& in,
                               const Problem& problem, const Camera& camera,
                               const AbsolutePoseOptions& options, const FocalSearch& focal);

}  // namespace reloc
