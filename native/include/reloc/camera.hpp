// Central camera models with COLMAP's names and parameter order; pixel (0, 0) is the centre of the
// top-left pixel.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "reloc/pose.hpp"

namespace reloc {

/// Projection of one of COLMAP's models, brought to one common form.
///
/// Perspective models: radial factor (1 + k1 r^2 + k2 r^4 + k3 r^6) / (1 + k4 r^2 + k5 r^4 + k6
/// r^6) and tangential p1, p2 (Brown, 1971; the rational form of OpenCV). Fisheye models: Kannala
/// and Brandt, 2006, theta (1 + k1 theta^2 + ... + k4 theta^8).
struct Camera {
    double fx = 1, fy = 1, cx = 0, cy = 0;
    double k[6] = {0, 0, 0, 0, 0, 0}, p1 = 0, p2 = 0;
    bool fisheye = false, distorted = false;
    int width = 0, height = 0;
    double focal_sigma = 0;  ///< standard deviation of the focal length over it; 0: calibrated

    /// Throws std::invalid_argument for an unknown model, a wrong number of parameters, non-finite
    /// values, a focal length that is not positive, or a negative image size or focal_sigma.
    static Camera create(const std::string& model, int width, int height,
                         const std::vector<double>& params, double focal_sigma = 0);

    double mean_focal() const { return 0.5 * (fx + fy); }

    /// Whether a residual on the plane z = 1 times one focal length is a residual in pixels.
    bool plain() const { return !distorted && std::abs(fx / fy - 1) < 0.01; }

    /// The lens for the kernels, in units of the geometric mean of the focal lengths.
    LensF lens() const;

    /// Plane z = 1 to pixels. `jacobian`, if not null, receives d pixel / d (u, v).
    Vec2 to_pixel(const Vec2& uv, Eigen::Matrix2d* jacobian = nullptr) const;

    /// Pixels to the plane z = 1; false where the model has no inverse or the ray is 89 degrees or
    /// more off the axis.
    bool from_pixel(const Vec2& pixel, Vec2* uv) const;

  private:
    Vec2 distort(const Vec2& uv, Eigen::Matrix2d* jacobian) const;
};

}  // namespace reloc
