// Projection of Gaussians to the image, in double: needles have covariances far from square.

/// Everything between a Gaussian's parameters and its splat; the backward pass needs it again.
struct Projection {
    vd mx, my, mz;  // mean, world
    vd x, y, z;     // mean, camera; z is 1 where the Gaussian is not drawn
    vl drawn;
    vd qw, qx, qy, qz, inverse_norm;
    vl no_rotation;        // zero quaternion
    vd s[3], rotation[9];  // scales, Gaussian's axes in the world
    vd slope_x, slope_y;   // clamped x/z, y/z
    vl inside_x, inside_y;
    vd j00, j02, j11, j12;
    vd t0[3], t1[3];  // rows of jacobian * cam rotation
    vd a0[3], a1[3];  // rows of the factor of the undilated covariance
    vd vxx, vxy, vyy, determinant0, cxx, cyy, determinant;
    vd opacity, ratio, compensation;
    vd u, v;
};

inline vd select(vl mask, vd a, vd b) { return mask ? a : b; }

inline vd dot3(const vd* a, const vd* b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }

inline void rotation_of(Projection& p) {
    const vd w = p.qw, x = p.qx, y = p.qy, z = p.qz;
    p.rotation[0] = 1 - 2 * (y * y + z * z);
    p.rotation[1] = 2 * (x * y - w * z);
    p.rotation[2] = 2 * (x * z + w * y);
    p.rotation[3] = 2 * (x * y + w * z);
    p.rotation[4] = 1 - 2 * (x * x + z * z);
    p.rotation[5] = 2 * (y * z - w * x);
    p.rotation[6] = 2 * (x * z - w * y);
    p.rotation[7] = 2 * (y * z + w * x);
    p.rotation[8] = 1 - 2 * (x * x + y * y);
}

inline vl is_finite(vd v) { return (v - v) == vd{}; }

/// `ids` null: Gaussians first, first + 1, ...; else the `valid` Gaussians ids[0..].
inline void project_lanes(const ProjectionInput& in, const int* ids, int first, int valid,
                          Projection& p) {
    double buffer[11][kD];
    for (int l = 0; l < kD; ++l) {
        const int k = l < valid ? l : 0;
        const long id = ids ? ids[k] : first + k;
        for (int c = 0; c < 3; ++c) buffer[c][l] = in.means[3 * id + c];
        for (int c = 0; c < 4; ++c) buffer[3 + c][l] = in.quaternions[4 * id + c];
        for (int c = 0; c < 3; ++c) buffer[7 + c][l] = in.scales[3 * id + c];
        buffer[10][l] = in.opacities[id];
    }
    const auto take = [&](int i) {
        vd out;
        __builtin_memcpy(&out, buffer[i], sizeof(out));
        return out;
    };
    p.mx = take(0), p.my = take(1), p.mz = take(2);
    p.qw = take(3), p.qx = take(4), p.qy = take(5), p.qz = take(6);
    for (int c = 0; c < 3; ++c) p.s[c] = take(7 + c);
    p.opacity = take(10);

    p.x = in.r[0] * p.mx + in.r[1] * p.my + in.r[2] * p.mz + in.t[0];
    p.y = in.r[3] * p.mx + in.r[4] * p.my + in.r[5] * p.mz + in.t[1];
    p.z = in.r[6] * p.mx + in.r[7] * p.my + in.r[8] * p.mz + in.t[2];
    p.drawn = p.z > splatd(in.near);
    p.z = select(p.drawn, p.z, splatd(1.0));

    const vd norm2 = p.qw * p.qw + p.qx * p.qx + p.qy * p.qy + p.qz * p.qz;
    p.no_rotation = norm2 <= splatd(1e-30);
    p.inverse_norm = 1.0 / vsqrt(select(p.no_rotation, splatd(1.0), norm2));
    p.qw = select(p.no_rotation, splatd(1.0), p.qw * p.inverse_norm);
    p.qx *= p.inverse_norm, p.qy *= p.inverse_norm, p.qz *= p.inverse_norm;
    rotation_of(p);

    const vd inverse_z = 1.0 / p.z;
    p.slope_x = p.x * inverse_z, p.slope_y = p.y * inverse_z;
    p.u = in.fx * p.slope_x + in.cx, p.v = in.fy * p.slope_y + in.cy;
    const vl low_x = p.slope_x<splatd(in.x_min), high_x = p.slope_x> splatd(in.x_max);
    const vl low_y = p.slope_y<splatd(in.y_min), high_y = p.slope_y> splatd(in.y_max);
    p.inside_x = ~(low_x | high_x), p.inside_y = ~(low_y | high_y);
    p.slope_x = select(low_x, splatd(in.x_min), select(high_x, splatd(in.x_max), p.slope_x));
    p.slope_y = select(low_y, splatd(in.y_min), select(high_y, splatd(in.y_max), p.slope_y));
    p.j00 = in.fx * inverse_z, p.j02 = -in.fx * p.slope_x * inverse_z;
    p.j11 = in.fy * inverse_z, p.j12 = -in.fy * p.slope_y * inverse_z;
    for (int c = 0; c < 3; ++c) {
        p.t0[c] = p.j00 * in.r[c] + p.j02 * in.r[6 + c];
        p.t1[c] = p.j11 * in.r[3 + c] + p.j12 * in.r[6 + c];
    }
    for (int k = 0; k < 3; ++k) {
        const vd axis[3] = {p.rotation[k] * p.s[k], p.rotation[3 + k] * p.s[k],
                            p.rotation[6 + k] * p.s[k]};
        p.a0[k] = dot3(p.t0, axis);
        p.a1[k] = dot3(p.t1, axis);
    }
    p.vxx = dot3(p.a0, p.a0), p.vxy = dot3(p.a0, p.a1), p.vyy = dot3(p.a1, p.a1);
    // Sum of squared minors (Cauchy-Binet) in place of xx yy - xy^2, which cancels.
    const vd m0 = p.a0[1] * p.a1[2] - p.a0[2] * p.a1[1], m1 = p.a0[2] * p.a1[0] - p.a0[0] * p.a1[2],
             m2 = p.a0[0] * p.a1[1] - p.a0[1] * p.a1[0];
    p.determinant0 = m0 * m0 + m1 * m1 + m2 * m2;
    p.cxx = p.vxx + kDilation, p.cyy = p.vyy + kDilation;
    p.determinant = p.determinant0 + kDilation * (p.vxx + p.vyy) + kDilation * kDilation;
    p.ratio = p.determinant0 / p.determinant;
    p.compensation = splatd(1.0);
    if (in.antialias) {
        p.compensation = select(p.ratio > splatd(1e-12), vsqrt(p.ratio), vd{});
    }
    p.drawn &= (p.u < splatd(kScreenLimit)) & (p.u > splatd(-kScreenLimit)) &
               (p.v < splatd(kScreenLimit)) & (p.v > splatd(-kScreenLimit)) &
               is_finite(p.determinant * p.cyy) & is_finite(p.opacity) & is_finite(p.qw);
}

void project(const ProjectionInput& in, int begin, int end, Splat* splats, Footprint* footprints) {
    for (int i = begin; i < end; i += kD) {
        const int valid = end - i < kD ? end - i : kD;
        Projection p;
        project_lanes(in, nullptr, i, valid, p);
        const vd root = vsqrt(p.cyy), root_determinant = vsqrt(p.determinant);
        const vd l11 = root / root_determinant, l12 = -p.vxy / (root * root_determinant),
                 l22 = 1.0 / root;
        const vd opacity = p.opacity * p.compensation;
        for (int l = 0; l < valid; ++l) {
            Splat& s = splats[i - begin + l];
            s.x = (float)p.u[l], s.y = (float)p.v[l];
            s.l11 = (float)l11[l], s.l12 = (float)l12[l], s.l22 = (float)l22[l];
            s.depth = (float)p.z[l];
            const float o = (float)opacity[l];
            s.opacity = p.drawn[l] && o >= kAlphaMin ? o : 0.0f;
            s.id = i + l;
            footprints[i - begin + l] = {p.cxx[l], p.vxy[l], p.cyy[l]};
        }
    }
}
