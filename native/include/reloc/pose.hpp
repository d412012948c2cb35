// Rigid motion cam_from_world and its tangent.
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

}  // namespace reloc
