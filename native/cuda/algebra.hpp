// Rigid motions and 6x6 systems in plain arrays: the device counterpart of reloc/pose.hpp.
#pragma once

#include <cmath>

#include "reloc/host_device.hpp"
#include "reloc/kernels.hpp"

namespace reloc::device {

/// x_cam = r x + t; r row-major.
struct Rigid {
    double r[9], t[3];
};

RELOC_HD inline bool is_finite(double v) { return v - v == 0; }

RELOC_HD inline bool is_finite(const Rigid& p) {
    double sum = 0;
    for (double v : p.r) sum += v - v;
    for (double v : p.t) sum += v - v;
    return sum == 0;
}

RELOC_HD inline PoseF to_float(const Rigid& p) {
    PoseF f;
    for (int i = 0; i < 9; ++i) f.r[i] = static_cast<float>(p.r[i]);
    for (int i = 0; i < 3; ++i) f.t[i] = static_cast<float>(p.t[i]);
    return f;
}

/// Restores orthonormality, through the unit quaternion.
RELOC_HD inline void normalize(Rigid* p) {
    double* r = p->r;
    double q[4];  // x, y, z, w
    const double trace = r[0] + r[4] + r[8];
    if (trace > 0) {
        double s = sqrt(trace + 1);
        q[3] = 0.5 * s;
        s = 0.5 / s;
        q[0] = (r[7] - r[5]) * s;
        q[1] = (r[2] - r[6]) * s;
        q[2] = (r[3] - r[1]) * s;
    } else {
        int i = r[4] > r[0] ? 1 : 0;
        if (r[8] > r[4 * i]) i = 2;
        const int j = (i + 1) % 3, k = (j + 1) % 3;
        double s = sqrt(r[4 * i] - r[4 * j] - r[4 * k] + 1);
        q[i] = 0.5 * s;
        s = 0.5 / s;
        q[3] = (r[3 * k + j] - r[3 * j + k]) * s;
        q[j] = (r[3 * j + i] + r[3 * i + j]) * s;
        q[k] = (r[3 * k + i] + r[3 * i + k]) * s;
    }
    const double scale = 1 / sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3]);
    const double x = q[0] * scale, y = q[1] * scale, z = q[2] * scale, w = q[3] * scale;
    r[0] = 1 - 2 * (y * y + z * z);
    r[1] = 2 * (x * y - w * z);
    r[2] = 2 * (x * z + w * y);
    r[3] = 2 * (x * y + w * z);
    r[4] = 1 - 2 * (x * x + z * z);
    r[5] = 2 * (y * z - w * x);
    r[6] = 2 * (x * z - w * y);
    r[7] = 2 * (y * z + w * x);
    r[8] = 1 - 2 * (x * x + y * y);
}

RELOC_HD inline Rigid to_double(const PoseF& f) {
    Rigid p;
    for (int i = 0; i < 9; ++i) p.r[i] = f.r[i];
    for (int i = 0; i < 3; ++i) p.t[i] = f.t[i];
    normalize(&p);
    return p;
}

/// Exp(delta) p, delta = (rotation, translation) in the camera frame.
RELOC_HD inline Rigid perturbed(const Rigid& p, const double delta[6]) {
    const double x = delta[0], y = delta[1], z = delta[2];
    const double angle2 = x * x + y * y + z * z, angle = sqrt(angle2);
    double a = 1, b = 0.5;  // sin(angle) / angle, (1 - cos(angle)) / angle^2
    if (angle >= 1e-12) {
        const double half = sin(0.5 * angle);
        a = sin(angle) / angle;
        b = 2 * half * half / angle2;
    }
    const double E[9] = {1 - b * (y * y + z * z), b * x * y - a * z,       b * x * z + a * y,
                         b * x * y + a * z,       1 - b * (x * x + z * z), b * y * z - a * x,
                         b * x * z - a * y,       b * y * z + a * x,       1 - b * (x * x + y * y)};
    Rigid out;
    for (int i = 0; i < 3; ++i) {
        const double* e = E + 3 * i;
        for (int j = 0; j < 3; ++j)
            out.r[3 * i + j] = e[0] * p.r[j] + e[1] * p.r[3 + j] + e[2] * p.r[6 + j];
        out.t[i] = e[0] * p.t[0] + e[1] * p.t[1] + e[2] * p.t[2] + delta[3 + i];
    }
    return out;
}

/// Cholesky factor of a symmetric 6x6 matrix, row-major, lower triangle.
struct Cholesky {
    double l[36];
    bool ok;

    /// From the 21 sums of NormalEquations, the diagonal scaled by 1 + damping.
    RELOC_HD void factor(const double h[21], double damping) {
        ok = false;
        for (int i = 0, k = 0; i < 6; ++i) {
            for (int j = i; j < 6; ++j, ++k) l[6 * j + i] = i == j ? h[k] * (1 + damping) : h[k];
        }
        for (int j = 0; j < 6; ++j) {
            double d = l[7 * j];
            for (int k = 0; k < j; ++k) d -= l[6 * j + k] * l[6 * j + k];
            if (!(d > 0)) return;
            d = sqrt(d);
            l[7 * j] = d;
            for (int i = j + 1; i < 6; ++i) {
                double v = l[6 * i + j];
                for (int k = 0; k < j; ++k) v -= l[6 * i + k] * l[6 * j + k];
                l[6 * i + j] = v / d;
            }
        }
        ok = true;
    }

    /// Solves in place.
    RELOC_HD void solve(double* x) const {
        for (int i = 0; i < 6; ++i) {
            for (int k = 0; k < i; ++k) x[i] -= l[6 * i + k] * x[k];
            x[i] /= l[7 * i];
        }
        for (int i = 5; i >= 0; --i) {
            for (int k = i + 1; k < 6; ++k) x[i] -= l[6 * k + i] * x[k];
            x[i] /= l[7 * i];
        }
    }
};

/// Gauss-Newton step; false if the system is singular.
RELOC_HD inline bool solve_step(const NormalEquations& eq, double damping, double step[6]) {
    Cholesky factor;
    factor.factor(eq.h, damping);
    if (!factor.ok) return false;
    for (int i = 0; i < 6; ++i) step[i] = -eq.g[i];
    factor.solve(step);
    double sum = 0;
    for (int i = 0; i < 6; ++i) sum += step[i] - step[i];
    return sum == 0;
}

/// Decrease of the quadratic model that the step predicts, twice.
RELOC_HD inline double predicted_decrease(const NormalEquations& eq, const double step[6]) {
    double sum = 0;
    for (int i = 0; i < 6; ++i) sum -= eq.g[i] * step[i];
    return sum;
}

}  // namespace reloc::device
