// Where was the camera? 500 matches of pixels and scene points with a pixel of noise, 30 % of them
// wrong. Prints the pose that was found and its error; exit code 1 where there is none.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "reloc/absolute_pose.hpp"

int main() {
    constexpr int kMatches = 500, kWrong = 150;
    // COLMAP's name and order of parameters, with pixel (0, 0) in the centre of the first pixel.
    const reloc::Camera camera = reloc::Camera::create(
        "OPENCV", 640, 480, {520.0, 525.0, 322.0, 237.0, 0.05, -0.08, 1e-3, -5e-4});
    reloc::Pose truth;
    truth.R = reloc::exp_so3({0.3, -0.8, 0.2});
    truth.t = {0.5, -0.2, 1.5};

    std::mt19937 random(1);
    std::uniform_real_distribution<double> unit(0, 1);
    std::normal_distribution<double> noise(0, 1);
    std::vector<double> pixels, points;
    while (points.size() < 3 * kMatches) {
        const double depth = 1 + 4 * unit(random);
        const reloc::Vec2 pixel(639 * unit(random), 479 * unit(random));
        reloc::Vec2 ray;
        if (!camera.from_pixel(pixel, &ray)) continue;
        reloc::Vec3 point = truth.R.transpose() * (depth * ray.homogeneous() - truth.t);
        if (points.size() < 3 * kWrong) point += reloc::Vec3(unit(random), unit(random), 2);
        for (int i = 0; i < 2; ++i) pixels.push_back(pixel[i] + noise(random));
        for (int i = 0; i < 3; ++i) points.push_back(point[i]);
    }

    reloc::Correspondences matches;
    matches.points2d.f64 = pixels.data();
    matches.points3d.f64 = points.data();
    matches.n = kMatches;
    const reloc::PoseResult found =
        reloc::estimate_absolute_pose(matches, camera, reloc::AbsolutePoseOptions());
    if (found.status != reloc::Status::kOk) {
        std::printf("not localized: %s\n", reloc::describe(found.status));
        return 1;
    }
    const reloc::Pose& pose = found.cam_from_world;
    const reloc::Vec3 position = -pose.R.transpose() * pose.t,
                      off = position + truth.R.transpose() * truth.t;
    const double angle = Eigen::AngleAxisd(pose.R * truth.R.transpose()).angle();
    const Eigen::Vector3d std = found.covariance.diagonal().tail<3>().cwiseSqrt();
    std::printf("camera at (%.3f, %.3f, %.3f), %d of %d matches agree\n", position.x(),
                position.y(), position.z(), found.inliers, kMatches);
    std::printf("error %.4f (expected %.4f), %.4f degrees\n", off.norm(), std.norm(),
                angle * 180 / M_PI);
    return 0;
}
