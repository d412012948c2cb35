// Relative pose of two calibrated images from point matches.
#pragma once

#include <cstdint>
#include <vector>

#include "reloc/absolute_pose.hpp"

namespace reloc {

/// Essential matrices through five matches of unit bearings, b_k' E a_k = 0; at most ten.
///
/// Nister, "An Efficient Solution to the Five-Point Relative Pose Problem", PAMI 2004, solved
/// through the action matrix of the quotient ring (Stewenius, Engels, Nister, ISPRS 2006).
int five_point(const Vec3 a[5], const Vec3 b[5], Mat3 out[10]);

struct RelativePoseOptions {
    double threshold = 2;  ///< pixels, Sampson distance
    double confidence = 0.99;
    int min_iterations = 32;
    int max_iterations = 10000;
    int min_inliers = 8;
    std::uint64_t seed = 0;
};

struct RelativePoseResult {
    Status status = Status::kTooFewPoints;
    Pose b_from_a;                      ///< unit translation: the scale is not observable
    std::vector<unsigned char> inlier;  ///< per match
    int inliers = 0, iterations = 0;
};

/// Robust relative pose: five-point RANSAC with local optimisation, then a Geman-McClure fit of the
/// Sampson error over rotation and direction. Matches must lie in front of both cameras.
RelativePoseResult estimate_relative_pose(const ArrayRef& points_a, const ArrayRef& points_b,
                                          std::size_t n, const Camera& camera_a,
                                          const Camera& camera_b,
                                          const RelativePoseOptions& options);

}  // namespace reloc
