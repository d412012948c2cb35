// A pose fitted to scene points of which each has a covariance of its own.
#pragma once

#include "reloc/pose.hpp"

namespace reloc {

/// N points and the rays that see them, row-major. Rows with anything that is not finite take no
/// part.
struct LocatedPoints {
    int count = 0;
    const double* rays = nullptr;         ///< (N, 3), camera axes, of any length
    const double* points = nullptr;       ///< (N, 3), world
    const double* covariances = nullptr;  ///< (N, 3, 3), of the points in the world
    const double* variances =
        nullptr;  ///< (N,), of the rays about each axis across them, radians^2
};

struct LocatedOptions {
    int steps = 12;       ///< at most
    double scale = 5;     ///< standard deviations at which a residual has a quarter of its weight
    double far = 30;      ///< standard deviations from which on one has none
    int min_points = 12;  ///< nearer than `far`
};

/// Iteratively reweighted Gauss-Newton steps from `pose` (cam_from_world) on the angles between
/// rays and points, each weighed by the covariance of its residual and Geman-McClure's function of
/// its length. False, and the pose as it was, where too few points are near or they leave it open.
bool fit_located_pose(const LocatedPoints& points, const LocatedOptions& options, Pose* pose);

}  // namespace reloc
