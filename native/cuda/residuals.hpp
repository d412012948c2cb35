// Per-point arithmetic: errors, scores and the sums that make up normal equations.
//
// The formulas are those of src/kernels_points.inl, where the derivations stand.
#pragma once

#include <cmath>

#include "reloc/host_device.hpp"
#include "reloc/kernels.hpp"

namespace reloc::device {

/// Correspondences of one query, or a sample of them; w is null where all weights are one.
struct Points {
    const float *x, *y, *X, *Y, *Z, *s2, *w;
    int n, padded;  ///< padded: the count that the CPU's vector kernels see

    RELOC_HD float weight(int i) const { return w ? w[i] : 1.0f; }
};

constexpr float kFar = 1e30f;  ///< squared error of points behind the camera

RELOC_HD inline void apply(const PoseF& p, float X, float Y, float Z, float* x, float* y,
                           float* z) {
    *x = p.r[0] * X + (p.r[1] * Y + (p.r[2] * Z + p.t[0]));
    *y = p.r[3] * X + (p.r[4] * Y + (p.r[5] * Z + p.t[1]));
    *z = p.r[6] * X + (p.r[7] * Y + (p.r[8] * Z + p.t[2]));
}

RELOC_HD inline float depth(const PoseF& p, float X, float Y, float Z) {
    return p.r[6] * X + p.r[7] * Y + p.r[8] * Z + p.t[2];
}

/// Squared pixel error; kFar at or behind the camera plane and where it is no number.
RELOC_HD inline float pixel_error2(const PoseF& pose, float x, float y, float X, float Y, float Z,
                                   float s2) {
    float cx, cy, cz;
    apply(pose, X, Y, Z, &cx, &cy, &cz);
    const float u = cx - x * cz, v = cy - y * cz;
    const float e2 = (u * u + v * v) * s2 / (cz * cz);
    return cz > 0 && e2 < kFar ? e2 : kFar;
}

RELOC_HD inline float pixel_error2(const PoseF& pose, const Points& p, int i) {
    return pixel_error2(pose, p.x[i], p.y[i], p.X[i], p.Y[i], p.Z[i], p.s2[i]);
}

/// Whether the pixel error is below the radius, without a division.
RELOC_HD inline bool within(const PoseF& pose, float x, float y, float X, float Y, float Z,
                            float s2, float radius2) {
    float cx, cy, cz;
    apply(pose, X, Y, Z, &cx, &cy, &cz);
    const float u = cx - x * cz, v = cy - y * cz;
    return (u * u + v * v) * s2 < radius2 * (cz * cz) && cz > 0;
}

/// Adds one point to {narrow, wide, score} of PoseScore.
RELOC_HD inline void add_score(float e2, float w, float narrow2, float wide2, float sums[3]) {
    if (e2 < narrow2) {
        sums[0] += w;
        sums[2] += w * (1.0f - e2 * (1.0f / narrow2));
    }
    if (e2 < wide2) {
        sums[1] += w;
        sums[2] += w * (1.0f - e2 * (1.0f / wide2));
    }
}

/// Sums that make up the normal equations of the reprojection error.
struct ProjectionSums {
    enum { kRr00, kRr01, kX, kY, kRr11, kR2, kXyi, kXxi, kYyi, kXki, kYki, kXi, kYi, kIi, kXii };
    enum { kYii = kXii + 1, kR2ii, kG, kCost = kG + 6, kWeight, kCount };

    RELOC_HD static void add(float w, float px, float py, float iz, float u, float v, float* s) {
        const float wu = w * u, wv = w * v;
        const float xx = px * px, yy = py * py, xy = px * py, xx1 = xx + 1.0f, yy1 = yy + 1.0f;
        const float iu = wu * iz, iv = wv * iz;
        s[kG + 0] -= xy * wu + yy1 * wv;
        s[kG + 1] += xx1 * wu + xy * wv;
        s[kG + 2] += px * wv - py * wu;
        s[kG + 3] += iu;
        s[kG + 4] += iv;
        s[kG + 5] -= px * iu + py * iv;
        s[kWeight] += w;
        const float r2 = xx + yy, k = r2 + 1.0f, wxy = w * xy, wi = w * iz, wx = w * px,
                    wy = w * py;
        s[kRr00] += w * (yy1 * yy1) + wxy * xy;
        s[kRr01] += wxy * (k + 1.0f);
        s[kRr11] += w * (xx1 * xx1) + wxy * xy;
        s[kX] += wx;
        s[kY] += wy;
        s[kR2] += w * r2;
        s[kXyi] += wi * xy;
        s[kXxi] += wi * xx1;
        s[kYyi] += wi * yy1;
        const float ki = k * iz;
        s[kXki] += wx * ki;
        s[kYki] += wy * ki;
        s[kXi] += wx * iz;
        s[kYi] += wy * iz;
        const float wii = wi * iz;
        s[kIi] += wii;
        s[kXii] += wii * px;
        s[kYii] += wii * py;
        s[kR2ii] += wii * r2;
    }

    RELOC_HD static void expand(const double* s, NormalEquations* out) {
        const double h[21] = {s[kRr00], -s[kRr01], -s[kX],  -s[kXyi], -s[kYyi], s[kYki],  s[kRr11],
                              -s[kY],   s[kXxi],   s[kXyi], -s[kXki], s[kR2],   -s[kYi],  s[kXi],
                              0,        s[kIi],    0,       -s[kXii], s[kIi],   -s[kYii], s[kR2ii]};
        for (int i = 0; i < 21; ++i) out->h[i] = h[i];
        for (int i = 0; i < 6; ++i) out->g[i] = s[kG + i];
        out->cost = s[kCost];
        out->weight = s[kWeight];
    }
};

/// Sums that make up the normal equations of the distance between point and ray.
struct RaySums {
    enum { kX, kY, kZ, kXx, kXy, kXz, kYy, kYz, kZz, kDxx, kDxy, kDxz, kDyy, kDyz };
    enum { kG = kDyz + 1, kCost = kG + 6, kWeight, kCount };

    /// c: point, d: unit bearing, u = c x d.
    RELOC_HD static void add(float w, const float c[3], const float d[3], const float u[3],
                             float* s) {
        const float along = c[0] * d[0] + (c[1] * d[1] + c[2] * d[2]), ws = w * along;
        const float wdx = w * d[0], wdy = w * d[1], wdz = w * d[2];
        const float wx = w * c[0], wy = w * c[1], wz = w * c[2];
        s[kG + 0] -= ws * u[0];
        s[kG + 1] -= ws * u[1];
        s[kG + 2] -= ws * u[2];
        s[kG + 3] += wx - ws * d[0];
        s[kG + 4] += wy - ws * d[1];
        s[kG + 5] += wz - ws * d[2];
        s[kWeight] += w;
        s[kX] += wx;
        s[kY] += wy;
        s[kZ] += wz;
        s[kXx] += wx * c[0];
        s[kXy] += wx * c[1];
        s[kXz] += wx * c[2];
        s[kYy] += wy * c[1];
        s[kYz] += wy * c[2];
        s[kZz] += wz * c[2];
        s[kDxx] += wdx * d[0];
        s[kDxy] += wdx * d[1];
        s[kDxz] += wdx * d[2];
        s[kDyy] += wdy * d[1];
        s[kDyz] += wdz * d[1];
    }

    RELOC_HD static void expand(const double* s, NormalEquations* out) {
        const double W = s[kWeight], X = s[kX], Y = s[kY], Z = s[kZ], XX = s[kXx], YY = s[kYy],
                     ZZ = s[kZz], DX = s[kDxx], DY = s[kDyy];
        const double h[21] = {YY + ZZ, -s[kXy], -s[kXz],  0,        -Z,      Y,        XX + ZZ,
                              -s[kYz], Z,       0,        -X,       XX + YY, -Y,       X,
                              0,       W - DX,  -s[kDxy], -s[kDxz], W - DY,  -s[kDyz], DX + DY};
        for (int i = 0; i < 21; ++i) out->h[i] = h[i];
        for (int i = 0; i < 6; ++i) out->g[i] = s[kG + i];
        out->cost = s[kCost];
        out->weight = W;
    }
};

/// Geman-McClure weight 1 / (1 + q)^2, q = e^2 / c^2; its loss is added to `cost`. Without
/// `robust` the weight is the prior alone.
RELOC_HD inline float geman_mcclure(bool robust, float q, float prior, bool ok, float* cost) {
    if (!ok) return 0;
    if (!robust) return prior;
    const float d = 1.0f / (1.0f + q);
    *cost += prior * q * d;
    return prior * d * d;
}

}  // namespace reloc::device
