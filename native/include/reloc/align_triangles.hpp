// Minimal pose of RGB-D: three points in two frames.
#pragma once

#include "reloc/pose.hpp"

namespace reloc {

/// The rotation and translation that align three points with three others by their triangle frames.
///
/// Exact where the triangles are congruent; with noise it errs more than the least-squares
/// alignment (Kabsch, Acta Crystallographica A32, 1976) but costs a tenth, and local optimisation
/// removes the difference. False for collinear points.
bool align_triangles(const Vec3 cam[3], const Vec3 scene[3], Pose* out);

}  // namespace reloc
