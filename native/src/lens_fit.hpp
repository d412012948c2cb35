// Residuals of the final fit by exact projection; internal to the library.
#pragma once

#include "reloc/camera.hpp"
#include "reloc/refine.hpp"

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
        for (int k = 0; k < 6; ++k) out->g[k] = eq.g[k];
        out->cost = eq.cost;
        out->weight = eq.weight;
    }
    void errors2(const FitView& v, const PoseF& pose, float* out) const {
        kernels.errors2(v, pose, lens, out);
    }
};

/// Reprojection through a lens of unknown focal length.
struct FocalKernel {
    const LensKernels& kernels;
    LensF lens;
    double prior = 0;  ///< information about the logarithm of the focal length beside the points'

    LensF scaled(float scale) const {
        LensF out = lens;
        out.sx *= scale;
        out.sy *= scale;
        return out;
    }
    void equations(const FitView& v, const FocalPoseF& pose, float c2, LensEquations* out) const {
        kernels.equations(v, pose, scaled(pose.scale), c2, out);
    }
    void errors2(const FitView& v, const FocalPoseF& pose, float* out) const {
        kernels.errors2(v, pose, scaled(pose.scale), out);
    }
};

/// Distance of scene points from the rays of a pinhole of unknown focal length; (a, b, c) of the
/// points are unit bearings at the nominal one. Plain loops: it is called where the focal length is
/// in doubt.
struct FocalRayKernel {
    double prior = 0;  ///< as of FocalKernel

    struct Term {
        Vec3 point, residual,
            turn;      ///< camera frame; `turn`: of the bearing by the log focal length
        double along;  ///< of the point on its ray
    };
    static bool term(const FitView& v, const FocalPoseF& pose, int k, Term* out) {
        const float *r = pose.r, *t = pose.t;
        for (int i = 0; i < 3; ++i)
            out->point[i] = static_cast<double>(r[3 * i]) * v.X[k] +
                            static_cast<double>(r[3 * i + 1]) * v.Y[k] +
                            static_cast<double>(r[3 * i + 2]) * v.Z[k] + t[i];
        if (!(out->point.z() > 0) || !(v.c[k] > 0)) return false;
        const Vec3 ray =
            Vec3(v.a[k], v.b[k], static_cast<double>(v.c[k]) * pose.scale).normalized();
        out->along = ray.dot(out->point);
        out->residual = out->point - out->along * ray;
        out->turn = ray.z() * (Vec3::UnitZ() - ray.z() * ray);
        return out->residual.allFinite();
    }
    void equations(const FitView& v, const FocalPoseF& pose, float c2, LensEquations* out) const {
        Eigen::Matrix<double, 7, 7> H = Eigen::Matrix<double, 7, 7>::Zero();
        Eigen::Matrix<double, 7, 1> g = Eigen::Matrix<double, 7, 1>::Zero();
        out->cost = out->weight = 0;
        Term at;
        for (int k = 0; k < v.n; ++k) {
            if (!(v.info[k] > 0) || !(v.w[k] > 0) || !term(v, pose, k, &at)) continue;
            const double q = at.residual.squaredNorm() * v.info[k] / c2, inlying = 1 / (1 + q),
                         w = v.w[k] * v.info[k] * inlying * inlying;
            out->cost += v.w[k] * q * inlying;
            out->weight += w;
            const Vec3 ray = (at.point - at.residual) / at.along;
            Mat3 cross;
            const Vec3& p = at.point;
            cross << 0, -p.z(), p.y(), p.z(), 0, -p.x(), -p.y(), p.x(), 0;
            Eigen::Matrix<double, 3, 7> J;
            J.leftCols<3>() = -cross;
            J.middleCols<3>(3).setIdentity();
            J.leftCols<6>() -= (ray * (ray.transpose() * J.leftCols<6>()).eval()).eval();
            J.col(6) = -at.along * at.turn;
            H.noalias() += w * J.transpose() * J;
            g.noalias() += w * J.transpose() * at.residual;
        }
        int to = 0;
        for (int i = 0; i < 7; ++i) {
            out->g[i] = g[i];
            for (int j = i; j < 7; ++j) out->h[to++] = H(i, j);
        }
    }
    void errors2(const FitView& v, const FocalPoseF& pose, float* out) const {
        Term at;
        for (int k = 0; k < v.n; ++k)
            out[k] = term(v, pose, k, &at) ? static_cast<float>(at.residual.squaredNorm())
                                           : std::numeric_limits<float>::infinity();
    }
};

/// See robust_fit.hpp.
template <class Kernel>
void add_focal_prior(const Kernel& kernel, const FocalPose& state, LensEquations* eq) {
    eq->h[27] += kernel.prior;
    eq->g[6] += kernel.prior * state.log_focal;
}
inline void add_prior(const FocalRayKernel& kernel, const FocalPose& state, LensEquations* eq) {
    add_focal_prior(kernel, state, eq);
}
inline void add_prior_information(const FocalRayKernel& kernel, Eigen::Matrix<double, 7, 7>* H) {
    (*H)(6, 6) += kernel.prior;
}
inline void add_prior(const FocalKernel& kernel, const FocalPose& state, LensEquations* eq) {
    add_focal_prior(kernel, state, eq);
}
inline void add_prior_information(const FocalKernel& kernel, Eigen::Matrix<double, 7, 7>* H) {
    (*H)(6, 6) += kernel.prior;
}

}  // namespace reloc
