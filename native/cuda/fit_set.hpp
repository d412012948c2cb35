// Selection and grouping of points for the fit, and its two residuals.
#pragma once

#include "noise.hpp"

namespace reloc::device {

/// Shared memory of the grouping.
struct GroupShared {
    enum { kSegments = 64 };
    int count[kMaxCells][kSegments];
};

/// Squared residuals at a pose into set.e2; infinity behind the camera.
RELOC_HD inline void fit_errors2(const Block& block, const FitSet& set, const PoseF& pose) {
    const float* const* row = set.row;
    block.each(set.slots, [&](int i) {
        float x, y, z;
        apply(pose, row[kSlotX][i], row[kSlotY][i], row[kSlotZ][i], &x, &y, &z);
        const float a = row[kSlotA][i], b = row[kSlotB][i];
        float e2;
        if (set.ray) {
            const float c = row[kSlotC][i];
            const float ux = y * c - z * b, uy = z * a - x * c, uz = x * b - y * a;
            e2 = ux * ux + (uy * uy + uz * uz);
        } else {
            const float u = x / z - a, v = y / z - b;
            e2 = u * u + v * v;
        }
        set.e2[i] = z > 0 && e2 < kFar ? e2 : static_cast<float>(INFINITY);
    });
}

/// Adds slot i to the sums of the normal equations; info times the Geman-McClure weight at scale
/// c2 where `robust`.
RELOC_HD inline void add_ray(const FitSet& set, const PoseF& pose, int i, bool robust,
                             float inverse_c2, float* sums) {
    const float* const* row = set.row;
    float c[3];
    apply(pose, row[kSlotX][i], row[kSlotY][i], row[kSlotZ][i], c, c + 1, c + 2);
    const float d[3] = {row[kSlotA][i], row[kSlotB][i], row[kSlotC][i]}, info = set.info[i];
    const float u[3] = {c[1] * d[2] - c[2] * d[1], c[2] * d[0] - c[0] * d[2],
                        c[0] * d[1] - c[1] * d[0]};
    const float q = (u[0] * u[0] + (u[1] * u[1] + u[2] * u[2])) * (info * inverse_c2);
    const float w =
        info * geman_mcclure(robust, q, row[kSlotW][i], c[2] > 0, sums + RaySums::kCost);
    RaySums::add(w, c, d, u, sums);
}

RELOC_HD inline void add_reprojection(const FitSet& set, const PoseF& pose, int i, bool robust,
                                      float inverse_c2, float* sums) {
    const float* const* row = set.row;
    float x, y, z;
    apply(pose, row[kSlotX][i], row[kSlotY][i], row[kSlotZ][i], &x, &y, &z);
    const bool front = z > 0;
    const float iz = 1.0f / (front ? z : 1.0f), px = x * iz, py = y * iz;
    const float u = px - row[kSlotA][i], v = py - row[kSlotB][i], info = set.info[i];
    const float w = info * geman_mcclure(robust, (u * u + v * v) * (info * inverse_c2),
                                         row[kSlotW][i], front, sums + ProjectionSums::kCost);
    ProjectionSums::add(w, px, py, iz, u, v, sums);
}

/// Normal equations over all slots at a pose into `out` (shared memory).
RELOC_HD inline void fit_equations(const Block& block, const FitSet& set, const PoseF& pose,
                                   bool robust, double c2, double* sums, NormalEquations* out) {
    const float inverse = robust ? 1.0f / static_cast<float>(c2) : 0.0f;
    if (set.ray) {
        float parts[RaySums::kCount] = {};
        for (int i = block.thread(); i < set.slots; i += block.threads())
            add_ray(set, pose, i, robust, inverse, parts);
        block.sum(parts, sums);
        block.once([&] { RaySums::expand(sums, out); });
    } else {
        float parts[ProjectionSums::kCount] = {};
        for (int i = block.thread(); i < set.slots; i += block.threads())
            add_reprojection(set, pose, i, robust, inverse, parts);
        block.sum(parts, sums);
        block.once([&] { ProjectionSums::expand(sums, out); });
    }
}

/// Gradient of each cell; one warp per cell.
RELOC_HD inline void cell_gradients(const Block& block, const FitSet& set, const PoseF& pose,
                                    double (*out)[6]) {
    block.each_warp(set.cells, [&](int c, int lane, int lanes) {
        float g[6];
        if (set.ray) {
            float parts[RaySums::kCount] = {};
            for (int i = set.begin[c] + lane; i < set.begin[c + 1]; i += lanes)
                add_ray(set, pose, i, false, 0, parts);
            for (int k = 0; k < 6; ++k) g[k] = parts[RaySums::kG + k];
        } else {
            float parts[ProjectionSums::kCount] = {};
            for (int i = set.begin[c] + lane; i < set.begin[c + 1]; i += lanes)
                add_reprojection(set, pose, i, false, 0, parts);
            for (int k = 0; k < 6; ++k) g[k] = parts[ProjectionSums::kG + k];
        }
        for (int k = 0; k < 6; ++k) {
            const float total = Block::warp_sum(g[k]);
            if (lane == 0) out[c][k] = total;
        }
    });
}

/// Selects the points within `radius` pixels at `pose` and groups them by cell, in their order.
///
/// A stable counting sort: every segment of points is counted and placed by one thread. `set` is in
/// shared memory and `variance`, if not null, per point.
RELOC_HD inline void build_set(const Block& block, const Arrays& a, const Query& q, const Points& p,
                               const PoseF& pose, double radius, int columns, int rows, bool ray,
                               GroupShared* s, FitSet* set) {
    constexpr int kSegments = GroupShared::kSegments;
    const int cells = columns * rows, length = (p.n + kSegments - 1) / kSegments;
    const float limit = static_cast<float>(radius * radius);
    const float sx = columns / fmaxf(q.x1 - q.x0, 1e-9f), sy = rows / fmaxf(q.y1 - q.y0, 1e-9f);
    int* cell_of = a.cell_of + q.first;
    float* out[kSlotRows];
    for (int r = 0; r < kSlotRows; ++r) out[r] = a.slots[r] + q.slots_first;
    int* point_of = a.point_of + q.slots_first;
    block.each(kMaxCells * kSegments, [&](int i) { (&s->count[0][0])[i] = 0; });
    block.each(p.n, [&](int i) {
        int cell = cells;
        if (pixel_error2(pose, p, i) < limit) {
            const float c = fminf(fmaxf((p.x[i] - q.x0) * sx, 0.0f), columns - 1.0f),
                        r = fminf(fmaxf((p.y[i] - q.y0) * sy, 0.0f), rows - 1.0f);
            cell = static_cast<int>(r) * columns + static_cast<int>(c);
        }
        cell_of[i] = cell;
    });
    block.each(kSegments, [&](int segment) {
        const int next = (segment + 1) * length, end = next < p.n ? next : p.n;
        for (int i = segment * length; i < end; ++i)
            if (cell_of[i] < cells) ++s->count[cell_of[i]][segment];
    });
    // Counts to places within the cell; the cell's own count is left in begin[cell + 1].
    block.each(cells, [&](int c) {
        int total = 0;
        for (int k = 0; k < kSegments; ++k) {
            const int here = s->count[c][k];
            s->count[c][k] = total;
            total += here;
        }
        set->begin[c + 1] = total;
    });
    block.once([&] {
        set->begin[0] = set->points = 0;
        for (int c = 0; c < cells; ++c) {
            const int count = set->begin[c + 1];
            set->points += count;
            set->begin[c + 1] = set->begin[c] + (count + kLanePad - 1) / kLanePad * kLanePad;
        }
        set->cells = cells;
        set->columns = columns;
        set->slots = set->begin[cells];
        set->ray = ray;
        for (int r = 0; r < kSlotRows; ++r) set->row[r] = out[r];
        set->info = out[kSlotInfo];
        set->base = out[kSlotBase];
        set->e2 = out[kSlotE2];
        set->point_of = point_of;
    });
    block.each(set->slots, [&](int i) { point_of[i] = -1; });
    block.each(kSegments, [&](int segment) {
        const int next = (segment + 1) * length, end = next < p.n ? next : p.n;
        for (int i = segment * length; i < end; ++i) {
            const int c = cell_of[i];
            if (c < cells) point_of[set->begin[c] + s->count[c][segment]++] = i;
        }
    });
    // Padding repeats the first point with weight zero.
    block.each(set->slots, [&](int k) {
        const int i = point_of[k] < 0 ? 0 : point_of[k];
        float x = p.x[i], y = p.y[i], z = 0;
        if (ray) {
            z = 1.0f / sqrtf(x * x + (y * y + 1.0f));
            x *= z;
            y *= z;
        }
        out[kSlotA][k] = x;
        out[kSlotB][k] = y;
        out[kSlotC][k] = z;
        out[kSlotX][k] = p.X[i];
        out[kSlotY][k] = p.Y[i];
        out[kSlotZ][k] = p.Z[i];
        out[kSlotScale][k] = p.s2[i];
        out[kSlotW][k] = point_of[k] < 0 ? 0.0f : p.weight(i);
    });
}

}  // namespace reloc::device
