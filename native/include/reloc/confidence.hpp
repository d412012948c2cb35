// How likely a pose is right.
#pragma once

#include "reloc/pose.hpp"

namespace reloc {

/// Probability that a pose is right, from what the fit knows of itself.
///
/// A logistic model of the share of inliers among the usable points, the predicted standard
/// deviation of the rotation, and that of the position relative to the depth of the inliers.
/// "Right" means a position within 2.5 % of the depth (5 cm in a room) and 5 degrees. Fitted on
/// simulated problems over seven noise levels, independent and correlated, with 0 to 100 %
/// outliers; docs/solvers.md has the reliability table.
double success_score(double inlier_share, const Mat6& covariance, double depth);

}  // namespace reloc
