// Minimal relative pose of two calibrated images: five matches.
#pragma once

#include "reloc/pose.hpp"

namespace reloc {

/// Essential matrices through five matches of unit bearings, b_k' E a_k = 0; at most ten.
///
/// Nister, "An Efficient Solution to the Five-Point Relative Pose Problem", PAMI 2004, solved
/// through the action matrix of the quotient ring (Stewenius, Engels, Nister, ISPRS 2006).
int five_point(const Vec3 a[5], const Vec3 b[5], Mat3 out[10]);

}  // namespace reloc
