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

/// Decimal logarithm of the number of poses with this many inliers that are expected by chance.
///
/// Among `points` correspondences of which each agrees with a given pose with probability `share`,
/// over all choices of a minimal sample of `sample` of them: (n - s) C(n, k) C(k, s) share^(k - s)
/// for k inliers (Moisan and Stival, "A Probabilistic Criterion to Detect Rigid Point Matches
/// Between Two Images", IJCV 2004). Correspondences are taken to be independent: copies of one
/// point, or a patch that moved as a whole, make it too small.
double log_false_alarms(int points, int inliers, int sample, double share);

}  // namespace reloc
