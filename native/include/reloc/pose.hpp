// What is estimated and its tangent: a rigid motion cam_from_world, alone or with a focal length.
#pragma once

#include <Eigen/Core>
#include <Eigen/Geometry>
#include <cmath>

#include "reloc/kernels.hpp"

namespace reloc {

using Vec2 = Eigen::Vector2d;
using Vec3 = Eigen::Vector3d;
using Mat3 = Eigen::Matrix3d;
using Vec6 = Eigen::Matrix<double, 6, 1>;
using Mat6 = Eigen::Matrix<double, 6, 6>;

/// Exponential map of so(3) (Rodrigues).
inline Mat3 exp_so3(const Vec3& w) {
    const double angle = w.norm();
    if (angle < 1e-12) {
        Mat3 R;
        R << 1, -w.z(), w.y(), w.z(), 1, -w.x(), -w.y(), w.x(), 1;
        return R;
    }
    return Eigen::AngleAxisd(angle, w / angle).toRotationMatrix();
}

/// x_cam = R x_world + t.
struct Pose {
    static constexpr int kParameters = 6;
    using Step = Vec6;
    using Equations = NormalEquations;

    Mat3 R = Mat3::Identity();
    Vec3 t = Vec3::Zero();

    /// A pose of float with its orthonormality restored.
    static Pose from(const PoseF& f) {
        Pose p;
        for (int i = 0; i < 9; ++i) p.R(i / 3, i % 3) = f.r[i];
        for (int i = 0; i < 3; ++i) p.t[i] = f.t[i];
        p.normalize();
        return p;
    }
    /// Exp(delta) * this, delta = (rotation, translation) in the camera frame.
    Pose perturbed(const Vec6& delta) const {
        const Mat3 E = exp_so3(delta.head<3>());
        Pose out;
        out.R = E * R;
        out.t = E * t + delta.tail<3>();
        return out;
    }
    bool finite() const { return R.allFinite() && t.allFinite(); }
    /// Restores orthonormality lost by repeated products.
    void normalize() { R = Eigen::Quaterniond(R).normalized().toRotationMatrix(); }
    PoseF to_float() const {
        PoseF f;
        for (int i = 0; i < 3; ++i) {
            for (int j = 0; j < 3; ++j) f.r[3 * i + j] = static_cast<float>(R(i, j));
            f.t[i] = static_cast<float>(t[i]);
        }
        return f;
    }
};

/// x and y of what a pose gives times `scale`: a focal length that is so many times as long.
inline PoseF scaled(PoseF pose, float scale) {
    for (int i = 0; i < 6; ++i) pose.r[i] *= scale;
    for (int i = 0; i < 2; ++i) pose.t[i] *= scale;
    return pose;
}

/// A pose in float and the factor of the focal length.
struct FocalPoseF : PoseF {
    float scale;
};

/// A pose and the logarithm of the focal length over the camera's nominal one.
struct FocalPose {
    static constexpr int kParameters = 7;
    using Step = Eigen::Matrix<double, kParameters, 1>;
    using Equations = LensEquations;

    Pose pose;
    double log_focal = 0;

    double scale() const { return std::exp(log_focal); }
    FocalPose perturbed(const Step& step) const {
        return {pose.perturbed(step.head<6>()), log_focal + step[6]};
    }
    bool finite() const { return pose.finite() && std::isfinite(log_focal); }
    void normalize() { pose.normalize(); }
    FocalPoseF to_float() const {
        return {pose.to_float(), static_cast<float>(std::exp(log_focal))};
    }
    /// The matrix that projects by the nominal camera as this does by its own.
    PoseF projection() const { return scaled(pose.to_float(), static_cast<float>(scale())); }
};

}  // namespace reloc
