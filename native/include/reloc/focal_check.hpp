// Whether the inliers agree with the camera's focal length, and what follows if not.
#pragma once

#include "reloc/absolute_options.hpp"
#include "reloc/camera.hpp"
#include "reloc/pose_result.hpp"

namespace reloc {

/// What the points near a pose say about the logarithm of the focal length.
struct FocalCheck {
    double shift = 0;  ///< the change that they want, to first order
    double std = std::numeric_limits<double>::infinity();  ///< of it, for independent noise
    Vec6 per_focal = Vec6::Zero();                         ///< how the best pose moves with it
    double share = 1;  ///< of what they say, after none was heard for more than its part
};

/// Lagrange multiplier test (Aitchison and Silvey, Annals of Mathematical Statistics 1958) of the
/// focal length at a pose that was fitted without it, on the Geman-McClure weighted reprojection
/// error: one pass over the points, or over a sample where many are inliers. No point near the pose
/// has more than a limited influence (Mallows' weights, Hampel et al., "Robust Statistics", 1986).
/// A fit of the focal length is looked at where it ended.
FocalCheck check_focal(const Kernels& kernels, const Problem& problem, const Camera& camera,
                       const FitResult& fit, bool ray, double threshold);

/// Whether a camera's focal length is known too badly to begin with it.
bool sought_with_focal(const Camera& camera, const AbsolutePoseOptions& options);

/// Turns the fit at the camera's focal length into the result (null: there is none).
///
/// A camera of uncertain focal length (`focal_sigma` above the floor of the options) gets the joint
/// fit of pose and focal length with that prior. A calibrated one keeps its focal length as long as
/// the inliers do not contradict it beyond chance; the covariance takes in the floor. A small
/// contradiction moves pose and focal length by what exceeds the noise. A large one, a low score or
/// no success at all start a short search with the focal length free (focal_pose.hpp), whose answer
/// is taken where it is clearly different and sure; otherwise it is named in the result.
void conclude(const Kernels& kernels, const Correspondences& in, const Problem& problem,
              const Camera& camera, const AbsolutePoseOptions& options, const FitResult* fit,
              Residual residual, PoseResult* result);

}  // namespace reloc
