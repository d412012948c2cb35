// Residuals of the final fit by exact projection; internal to the library.
#pragma once

#include "reloc/camera.hpp"
#include "reloc/focal_pose.hpp"
#include "reloc/kernels.hpp"

namespace reloc {

inline Eigen::Matrix<double, 7, 7> hessian(const LensEquations& eq) {
    Eigen::Matrix<double, 7, 7> H;
    int k = 0;
    for (int i = 0; i < 7; ++i) {
        for (int j = i; j < 7; ++j) H(i, j) = H(j, i) = eq.h[k++];
    }
    return H;
}

inline Eigen::Matrix<double, 7, 1> gradient(const LensEquations& eq) {
    return Eigen::Map<const Eigen::Matrix<double, 7, 1>>(eq.g);
}

/// See robust_fit.hpp.
inline void keep(const FocalPose& state, const Eigen::Matrix<double, 7, 7>& covariance,
                 FitResult* result) {
    result->pose = state.pose;
    result->log_focal = state.log_focal;
    result->covariance = covariance.topLeftCorner<6, 6>();
    result->log_focal_std = std::sqrt(covariance(6, 6));
}

/// Reprojection through a known lens.
struct LensKernel {
    const LensKernels& kernels;
    LensF lens;

    void equations(const FitView& v, const PoseF& pose, float c2, NormalEquations* out) const {
        LensEquations eq;
        kernels.equations(v, pose, lens, c2, &eq);
        int from = 0, to = 0;
        for (int r = 0; r < 6; ++r) {
            for (int c = r; c < 6; ++c) out->h[to++] = eq.h[from++];
            ++from;  // the column of the focal length
        }
        keep(eq, out);
    }
    void gradient(const FitView& v, const PoseF& pose, float c2, NormalEquations* out) const {
        LensEquations eq;
        kernels.gradient(v, pose, lens, c2, &eq);
        keep(eq, out);
    }
    void errors2(const FitView& v, const PoseF& pose, float* out) const {
        kernels.errors2(v, pose, lens, out);
    }

  private:
    static void keep(const LensEquations& eq, NormalEquations* out) {
        for (int k = 0; k < 6; ++k) out->g[k] = eq.g[k];
        out->cost = eq.cost;
        out->weight = eq.weight;
    }
};

/// Reprojection through a lens of unknown focal length.
struct FocalKernel {
    const LensKernels& kernels;
    LensF lens;

    LensF scaled(float scale) const {
        LensF out = lens;
        out.sx *= scale;
        out.sy *= scale;
        return out;
    }
    void equations(const FitView& v, const FocalPoseF& pose, float c2, LensEquations* out) const {
        kernels.equations(v, pose, scaled(pose.scale), c2, out);
    }
    void gradient(const FitView& v, const FocalPoseF& pose, float c2, LensEquations* out) const {
        kernels.gradient(v, pose, scaled(pose.scale), c2, out);
    }
    void errors2(const FitView& v, const FocalPoseF& pose, float* out) const {
        kernels.errors2(v, pose, scaled(pose.scale), out);
    }
};

}  // namespace reloc
