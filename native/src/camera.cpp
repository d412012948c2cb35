#include "reloc/camera.hpp"

#include <cmath>
#include <stdexcept>

namespace reloc {
namespace {

constexpr int kMaxNewton = 25;
constexpr double kMaxTan = 57.3;  // 89 degrees

struct Layout {
    const char* name;
    int focals, count;
    bool fisheye;
    int distortion[8];  // destination of each parameter after the principal point: k1..k6 = 0..5,
                        // p1 = 6, p2 = 7
};

constexpr Layout kLayouts[] = {
    {"SIMPLE_PINHOLE", 1, 3, false, {}},
    {"PINHOLE", 2, 4, false, {}},
    {"SIMPLE_RADIAL", 1, 4, false, {0}},
    {"RADIAL", 1, 5, false, {0, 1}},
    {"OPENCV", 2, 8, false, {0, 1, 6, 7}},
    {"FULL_OPENCV", 2, 12, false, {0, 1, 6, 7, 2, 3, 4, 5}},
    {"SIMPLE_RADIAL_FISHEYE", 1, 4, true, {0}},
    {"RADIAL_FISHEYE", 1, 5, true, {0, 1}},
    {"OPENCV_FISHEYE", 2, 8, true, {0, 1, 2, 3}},
};

}  // namespace

Camera Camera::create(const std::string& model, int width, int height,
                      const std::vector<double>& params, double focal_sigma) {
    if (!(focal_sigma >= 0 && focal_sigma <= 1))
        throw std::invalid_argument("focal_sigma must be between 0 and 1");
    for (const Layout& layout : kLayouts) {
        if (model != layout.name) continue;
        if (static_cast<int>(params.size()) != layout.count) {
            throw std::invalid_argument("camera model " + model + " takes " +
                                        std::to_string(layout.count) + " parameters, got " +
                                        std::to_string(params.size()));
        }
        for (double value : params) {
            if (!std::isfinite(value))
                throw std::invalid_argument("camera parameters must be finite");
        }
        if (width < 0 || height < 0)
            throw std::invalid_argument("camera size must not be negative");
        Camera cam;
        cam.width = width;
        cam.height = height;
        cam.focal_sigma = focal_sigma;
        cam.fisheye = layout.fisheye;
        cam.fx = params[0];
        cam.fy = params[layout.focals - 1];
        if (!(cam.fx > 0 && cam.fy > 0))
            throw std::invalid_argument("focal length must be positive");
        cam.cx = params[layout.focals];
        cam.cy = params[layout.focals + 1];
        cam.distorted = layout.fisheye;
        for (int i = layout.focals + 2; i < layout.count; ++i) {
            const int slot = layout.distortion[i - layout.focals - 2];
            (slot == 6 ? cam.p1 : slot == 7 ? cam.p2 : cam.k[slot]) = params[i];
            cam.distorted |= params[i] != 0;
        }
        return cam;
    }
    throw std::invalid_argument("unknown camera model '" + model + "'");
}

LensF Camera::lens() const {
    LensF out;
    for (int i = 0; i < 6; ++i) out.k[i] = static_cast<float>(k[i]);
    out.p1 = static_cast<float>(p1);
    out.p2 = static_cast<float>(p2);
    const double aspect = std::sqrt(fx / fy);
    out.sx = static_cast<float>(aspect);
    out.sy = static_cast<float>(1 / aspect);
    out.kind = fisheye ? 2 : distorted ? 1 : 0;
    return out;
}

Vec2 Camera::distort(const Vec2& uv, Eigen::Matrix2d* jacobian) const {
    const double u = uv.x(), v = uv.y(), r2 = u * u + v * v;
    if (fisheye) {
        const double r = std::sqrt(r2);
        if (r < 1e-8) {
            if (jacobian) jacobian->setIdentity();
            return uv;
        }
        const double th = std::atan(r), t2 = th * th;
        const double thd = th * (1 + t2 * (k[0] + t2 * (k[1] + t2 * (k[2] + t2 * k[3]))));
        const double s = thd / r;
        if (jacobian) {
            const double dthd =
                1 + t2 * (3 * k[0] + t2 * (5 * k[1] + t2 * (7 * k[2] + t2 * 9 * k[3])));
            const double ds = (dthd / (1 + r2) - s) / r2;  // (d s / d r) / r
            *jacobian << s + ds * u * u, ds * u * v, ds * u * v, s + ds * v * v;
        }
        return s * uv;
    }
    const double num = 1 + r2 * (k[0] + r2 * (k[1] + r2 * k[2]));
    const double den = 1 + r2 * (k[3] + r2 * (k[4] + r2 * k[5]));
    const double s = num / den;
    if (jacobian) {
        const double dnum = k[0] + r2 * (2 * k[1] + 3 * r2 * k[2]);
        const double dden = k[3] + r2 * (2 * k[4] + 3 * r2 * k[5]);
        const double ds = 2 * (dnum - s * dden) / den;  // (d s / d r) / r
        *jacobian << s + ds * u * u + 2 * p1 * v + 6 * p2 * u, ds * u * v + 2 * p1 * u + 2 * p2 * v,
            ds * u * v + 2 * p2 * v + 2 * p1 * u, s + ds * v * v + 6 * p1 * v + 2 * p2 * u;
    }
    return {u * s + 2 * p1 * u * v + p2 * (r2 + 2 * u * u),
            v * s + p1 * (r2 + 2 * v * v) + 2 * p2 * u * v};
}

Vec2 Camera::to_pixel(const Vec2& uv, Eigen::Matrix2d* jacobian) const {
    Vec2 d = uv;
    if (distorted) {
        d = distort(uv, jacobian);
    } else if (jacobian) {
        jacobian->setIdentity();
    }
    if (jacobian) {
        jacobian->row(0) *= fx;
        jacobian->row(1) *= fy;
    }
    return {fx * d.x() + cx, fy * d.y() + cy};
}

bool Camera::from_pixel(const Vec2& pixel, Vec2* uv) const {
    const Vec2 target((pixel.x() - cx) / fx, (pixel.y() - cy) / fy);
    if (!distorted) {
        *uv = target;
        return target.allFinite();
    }
    if (fisheye) {
        const double thd = target.norm();
        if (thd < 1e-8) {
            *uv = target;
            return true;
        }
        double th = thd < 1.5 ? thd : 1.5;
        for (int it = 0; it < kMaxNewton; ++it) {
            const double t2 = th * th;
            const double f = th * (1 + t2 * (k[0] + t2 * (k[1] + t2 * (k[2] + t2 * k[3])))) - thd;
            const double g =
                1 + t2 * (3 * k[0] + t2 * (5 * k[1] + t2 * (7 * k[2] + t2 * 9 * k[3])));
            if (!(g > 1e-6)) return false;
            const double step = f / g;
            th -= step;
            if (std::abs(step) < 1e-12) {
                if (!(th > 0 && th < 1.5533)) return false;
                *uv = target * (std::tan(th) / thd);
                return true;
            }
        }
        return false;
    }
    Vec2 p = target;
    for (int it = 0; it < kMaxNewton; ++it) {
        Eigen::Matrix2d J;
        const Vec2 f = distort(p, &J) - target;
        const double det = J.determinant();
        // Beyond a fold of the distortion one or both directions are mirrored: no ray of the lens
        // ends there.
        if (!(det > 1e-6 && J.trace() > 0)) return false;
        const Vec2 step((J(1, 1) * f.x() - J(0, 1) * f.y()) / det,
                        (J(0, 0) * f.y() - J(1, 0) * f.x()) / det);
        p -= step;
        if (!(p.squaredNorm() < kMaxTan * kMaxTan)) return false;
        if (step.squaredNorm() < 1e-22) {
            *uv = p;
            return true;
        }
    }
    return false;
}

}  // namespace reloc
