#include "reloc/located_pose.hpp"

#include <Eigen/Cholesky>
#include <Eigen/Geometry>
#include <cmath>
#include <vector>

namespace reloc {

namespace {

using Mat2 = Eigen::Matrix2d;
using Mat23 = Eigen::Matrix<double, 2, 3>;
using Mat26 = Eigen::Matrix<double, 2, 6>;
using RowMat3 = Eigen::Matrix<double, 3, 3, Eigen::RowMajor>;

constexpr double kConverged = 1e-6;  // of a step: radians, and of the points' distance

struct Point {
    Vec3 ray;      // unit
    Mat23 across;  // two unit vectors across it
    Vec3 world;
    Mat3 covariance;
    double variance;
};

std::vector<Point> usable(const LocatedPoints& in) {
    std::vector<Point> found;
    found.reserve(in.count);
    for (int i = 0; i < in.count; ++i) {
        Point p;
        p.ray = Eigen::Map<const Vec3>(in.rays + 3 * i).normalized();
        p.world = Eigen::Map<const Vec3>(in.points + 3 * i);
        p.covariance = Eigen::Map<const RowMat3>(in.covariances + 9 * i);
        p.variance = in.variances[i];
        if (!p.ray.allFinite() || !p.world.allFinite() || !p.covariance.allFinite() ||
            !std::isfinite(p.variance))
            continue;
        const Vec3 first = p.ray.unitOrthogonal();
        p.across.row(0) = first;
        p.across.row(1) = p.ray.cross(first);
        found.push_back(p);
    }
    return found;
}

struct System {
    Mat6 hessian = Mat6::Zero();
    Vec6 gradient = Vec6::Zero();
    double distance = 0;  // of the points near the pose, summed
    int near = 0;

    void add(const Point& p, const Pose& pose, const LocatedOptions& options) {
        const Vec3 local = pose.R * p.world + pose.t;
        const double length = local.norm();
        if (!(length > 0) || local.dot(p.ray) <= 0) return;
        const Vec3 direction = local / length;
        const Vec2 residual = p.across * direction;
        const Mat23 slope = (p.across - residual * direction.transpose()) / length;
        const Mat23 world = slope * pose.R;
        Mat2 spread = world * p.covariance * world.transpose();
        spread.diagonal().array() += p.variance;
        const Mat2 information = spread.inverse();
        const double squared = residual.dot(information * residual);
        if (!(squared >= 0 && squared < options.far * options.far)) return;
        const double root = 1 / (1 + squared / (options.scale * options.scale));
        // A turn w and a move v of the camera's view take the point to local + w x local + v.
        Mat26 jacobian;
        for (int i = 0; i < 2; ++i)
            jacobian.row(i).head<3>() = local.cross(slope.row(i).transpose()).transpose();
        jacobian.rightCols<3>() = slope;
        const Mat26 weighted = root * root * information * jacobian;
        hessian.noalias() += jacobian.transpose() * weighted;
        gradient.noalias() += weighted.transpose() * residual;
        distance += length;
        ++near;
    }
};

}  // namespace

bool fit_located_pose(const LocatedPoints& points, const LocatedOptions& options, Pose* pose) {
    const std::vector<Point> all = usable(points);
    Pose now = *pose;
    for (int step = 0; step < options.steps; ++step) {
        System system;
        for (const Point& p : all) system.add(p, now, options);
        if (system.near < options.min_points) return false;
        const Eigen::LDLT<Mat6> solver(system.hessian);
        if (solver.info() != Eigen::Success || !(solver.rcond() > 1e-15)) return false;
        const Vec6 delta = solver.solve(-system.gradient);
        if (!delta.allFinite()) return false;
        now = now.perturbed(delta);
        if (delta.head<3>().norm() < kConverged &&
            delta.tail<3>().norm() < kConverged * system.distance / system.near)
            break;
    }
    if (!now.finite()) return false;
    now.normalize();
    *pose = now;
    return true;
}

}  // namespace reloc
