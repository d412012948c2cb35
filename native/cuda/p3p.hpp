// The P3P solver of the vector kernels with one sample per thread.
#pragma once

#include <cmath>

#include "reloc/host_device.hpp"
#include "reloc/kernels.hpp"

namespace reloc::device {
namespace scalar {

using vd = double;
using vl = bool;

/// Takes the place of the batch of lanes.
struct P3PBatch {
    double bx[3][1], by[3][1], bz[3][1], X[3][1], Y[3][1], Z[3][1];
    double r[4][9][1], t[4][3][1], valid[4][1];
};

RELOC_HD inline vd load(const double* p) { return *p; }
RELOC_HD inline void store(double* p, vd v) { *p = v; }
RELOC_HD inline vd splatd(double s) { return s; }
RELOC_HD inline vd vsqrt(vd v) { return sqrt(v); }
RELOC_HD inline bool any(vl condition) { return condition; }

#define RELOC_LANE_FN RELOC_HD inline
#include "../src/kernels_p3p.inl"
#undef RELOC_LANE_FN

}  // namespace scalar

/// Up to four poses for points given as image coordinates (x, y) on the plane z = 1 and scene
/// points; returns their number.
RELOC_HD inline int p3p(const float x[3], const float y[3], const float X[3], const float Y[3],
                        const float Z[3], PoseF out[4]) {
    scalar::P3PBatch batch;
    for (int k = 0; k < 3; ++k) {
        const double u = x[k], v = y[k], inv = 1.0 / sqrt(u * u + v * v + 1.0);
        batch.bx[k][0] = u * inv;
        batch.by[k][0] = v * inv;
        batch.bz[k][0] = inv;
        batch.X[k][0] = X[k];
        batch.Y[k][0] = Y[k];
        batch.Z[k][0] = Z[k];
    }
    scalar::p3p_lanes(&batch, 0);
    int found = 0;
    for (int k = 0; k < 4; ++k) {
        if (batch.valid[k][0] == 0) continue;
        for (int i = 0; i < 9; ++i) out[found].r[i] = static_cast<float>(batch.r[k][i][0]);
        for (int i = 0; i < 3; ++i) out[found].t[i] = static_cast<float>(batch.t[k][i][0]);
        ++found;
    }
    return found;
}

}  // namespace reloc::device
