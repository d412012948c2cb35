#include "reloc/p3p.hpp"

#include <cmath>

namespace reloc {

void load_sample(const Problem& problem, const int idx[3], int lane, P3PBatch* batch) {
    const PointsView p = problem.view();
    for (int k = 0; k < 3; ++k) {
        const int i = idx[k];
        const double x = p.x[i], y = p.y[i], inv = 1.0 / std::sqrt(x * x + y * y + 1.0);
        batch->bx[k][lane] = x * inv;
        batch->by[k][lane] = y * inv;
        batch->bz[k][lane] = inv;
        batch->X[k][lane] = p.X[i];
        batch->Y[k][lane] = p.Y[i];
        batch->Z[k][lane] = p.Z[i];
    }
}

bool solution(const P3PBatch& batch, int k, int lane, PoseF* out) {
    if (batch.valid[k][lane] == 0) return false;
    for (int i = 0; i < 9; ++i) out->r[i] = static_cast<float>(batch.r[k][i][lane]);
    for (int i = 0; i < 3; ++i) out->t[i] = static_cast<float>(batch.t[k][i][lane]);
    return true;
}

int p3p(const Vec3 bearings[3], const Vec3 points[3], const Kernels& kernels, Pose out[4]) {
    alignas(64) P3PBatch batch;
    for (int lane = 0; lane < kP3PBatch; ++lane) {
        for (int k = 0; k < 3; ++k) {
            batch.bx[k][lane] = bearings[k].x();
            batch.by[k][lane] = bearings[k].y();
            batch.bz[k][lane] = bearings[k].z();
            batch.X[k][lane] = points[k].x();
            batch.Y[k][lane] = points[k].y();
            batch.Z[k][lane] = points[k].z();
        }
    }
    kernels.p3p(&batch);
    int found = 0;
    for (int k = 0; k < 4; ++k) {
        if (batch.valid[k][0] == 0) continue;
        Pose& pose = out[found++];
        for (int i = 0; i < 9; ++i) pose.R(i / 3, i % 3) = batch.r[k][i][0];
        for (int i = 0; i < 3; ++i) pose.t[i] = batch.t[k][i][0];
    }
    return found;
}

}  // namespace reloc
