// Moments of the Geman-McClure estimator and cluster-robust inflation of the pose covariance.
#pragma once

#include <vector>

#include "reloc/kernels.hpp"
#include "reloc/pose.hpp"

namespace reloc {

/// Expectations under unit isotropic Gaussian noise of a residual with `dof` components, for the
/// weight 1 / (1 + e^2 / k^2)^2.
struct RobustMoments {
    double weight;     ///< E[w]
    double variance;   ///< E[w e^2] / (dof E[w]): the weighted variance seen in place of 1
    double meat;       ///< E[w^2 e^2] / dof
    double curvature;  ///< expected Hessian over the summed information
    /// Covariance of the estimate over the inverse of (J' W J).
    double inflation() const { return meat * weight / (curvature * curvature); }
};

RobustMoments robust_moments(int dof, double k);

/// Symmetric matrix from the 21 sums of NormalEquations.
Mat6 hessian(const NormalEquations& eq);
Vec6 gradient(const NormalEquations& eq);

/// Variance inflation of an estimate by correlation between neighbouring observations.
///
/// `gradients` are the weighted gradient sums of image cells (columns x rows, row-major) at the
/// optimum and `inverse` the inverse of the summed normal matrix times the expected variance of a
/// gradient. With independent noise the gradient sums of disjoint blocks have exactly this
/// variance, whatever the block size; correlation makes the sums of blocks larger than it. The
/// ratio is taken for cells and for blocks of 2 x 2 cells and the larger one is returned, shrunk
/// towards 1 within its own sampling error (cluster-robust variance: Liang and Zeger, Biometrika
/// 1986; Conley, J. Econometrics 1999).
double design_effect(const std::vector<Vec6>& gradients, const std::vector<double>& counts,
                     int columns, const Mat6& inverse);

}  // namespace reloc
