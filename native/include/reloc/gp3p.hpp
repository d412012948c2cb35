// Minimal pose of a generalized camera: three rays that need not meet in one centre.
#pragma once

#include "reloc/pose.hpp"

namespace reloc {

/// All poses rig_from_world that put three scene points onto three rays, in front of their origins;
/// up to eight (Nister and Stewenius, "A Minimal Solution to the Generalised 3-Point Pose Problem",
/// JMIV 2007). Rays are origins + depth * unit directions, in the rig's frame.
///
/// The three distances between the points give quadrics in two depths each. With the third depth
/// hidden they are linear in the squares and the product of the other two, and their compatibility
/// is a polynomial of degree eight (the scheme of Kukelova, Heller, Fitzgibbon, "Efficient
/// Intersection of Three Quadrics and Applications in Computer Vision", CVPR 2016). Not for three
/// rays that are pairwise orthogonal.
int gp3p(const Vec3 origins[3], const Vec3 directions[3], const Vec3 points[3], Pose out[8]);

}  // namespace reloc
