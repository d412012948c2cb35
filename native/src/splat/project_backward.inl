// Backward through projection: from sums over pixels to a Gaussian's parameters and the pose.

void project_backward(const ProjectionInput& in, const int* ids, int count,
                      const ProjectionGradients& out) {
    vd pose[12] = {};
    for (int i = 0; i < count; i += kD) {
        const int valid = count - i < kD ? count - i : kD;
        Projection p;
        project_lanes(in, ids + i, 0, valid, p);
        const auto sum = [&](int k) {
            vd v;
            for (int l = 0; l < kD; ++l) v[l] = l < valid ? out.sums[(long)k * count + i + l] : 0.0;
            return v;
        };
        const vd root = vsqrt(p.cyy), root_determinant = vsqrt(p.determinant);
        const vd l11 = root / root_determinant, l12 = -p.vxy / (root * root_determinant),
                 l22 = 1.0 / root;
        const vd ga = sum(kGa), gb = sum(kGb);
        const vd gu = -l11 * ga, gv = -(l12 * ga + l22 * gb);

        // G = dL/d covariance = 1/2 L^T (sum g y y^T) L, symmetric.
        const vd gaa = sum(kGaa), gab = sum(kGab), gbb = sum(kGbb);
        const vd k00 = gaa * l11, k01 = gaa * l12 + gab * l22, k11 = gab * l12 + gbb * l22;
        vd gxx = 0.5 * l11 * k00, gxy = 0.5 * l11 * k01, gyy = 0.5 * (l12 * k01 + l22 * k11);

        const vd effective = p.opacity * p.compensation;
        const vd g_effective = sum(kG) / select(effective > vd{}, effective, splatd(1.0));
        const vd g_opacity = g_effective * p.compensation;
        if (in.antialias) {
            const vl drawn = p.compensation > vd{};
            const vd g_ratio = select(
                drawn, g_effective * p.opacity / (2.0 * select(drawn, p.compensation, splatd(1.0))),
                vd{});
            const vd scale = g_ratio / p.determinant;
            gxx += scale * (p.vyy - p.ratio * p.cyy);
            gyy += scale * (p.vxx - p.ratio * p.cxx);
            gxy -= scale * (p.vxy - p.ratio * p.vxy);
        }

        // Covariance = A A^T, A = T M, M = rotation * diag(s), T = jacobian * cam rotation.
        vd g_t0[3] = {}, g_t1[3] = {}, e[9], g_scale[3];
        for (int k = 0; k < 3; ++k) {
            const vd g_a0 = 2.0 * (gxx * p.a0[k] + gxy * p.a1[k]);
            const vd g_a1 = 2.0 * (gxy * p.a0[k] + gyy * p.a1[k]);
            g_scale[k] = vd{};
            for (int r = 0; r < 3; ++r) {
                const vd axis = p.rotation[3 * r + k];
                const vd g_axis = p.t0[r] * g_a0 + p.t1[r] * g_a1;  // dL/dM
                g_scale[k] += axis * g_axis;
                e[3 * r + k] = g_axis * p.s[k];
                g_t0[r] += g_a0 * axis * p.s[k];
                g_t1[r] += g_a1 * axis * p.s[k];
            }
        }
        const vd w = p.qw, x = p.qx, y = p.qy, z = p.qz;
        vd gq[4] = {
            2.0 * (x * (e[7] - e[5]) + y * (e[2] - e[6]) + z * (e[3] - e[1])),
            2.0 * (y * (e[1] + e[3]) + z * (e[2] + e[6]) + w * (e[7] - e[5]) -
                   2.0 * x * (e[4] + e[8])),
            2.0 * (x * (e[1] + e[3]) + z * (e[5] + e[7]) + w * (e[2] - e[6]) -
                   2.0 * y * (e[0] + e[8])),
            2.0 * (x * (e[2] + e[6]) + y * (e[5] + e[7]) + w * (e[3] - e[1]) -
                   2.0 * z * (e[0] + e[4])),
        };
        const vd along = w * gq[0] + x * gq[1] + y * gq[2] + z * gq[3];
        const vd unit[4] = {w, x, y, z};
        for (int c = 0; c < 4; ++c) {
            gq[c] = select(p.no_rotation, vd{}, (gq[c] - along * unit[c]) * p.inverse_norm);
        }

        vd j00{}, j02{}, j11{}, j12{};
        for (int c = 0; c < 3; ++c) {
            j00 += g_t0[c] * in.r[c], j02 += g_t0[c] * in.r[6 + c];
            j11 += g_t1[c] * in.r[3 + c], j12 += g_t1[c] * in.r[6 + c];
        }
        const vd inverse_z = 1.0 / p.z, inverse_z2 = inverse_z * inverse_z;
        const vd one_x = select(p.inside_x, splatd(1.0), vd{}),
                 one_y = select(p.inside_y, splatd(1.0), vd{});
        const vd gx = in.fx * (gu * inverse_z - one_x * inverse_z2 * j02);
        const vd gy = in.fy * (gv * inverse_z - one_y * inverse_z2 * j12);
        const vd gz = -inverse_z2 * (in.fx * (p.x * gu + j00 - (1.0 + one_x) * p.slope_x * j02) +
                                     in.fy * (p.y * gv + j11 - (1.0 + one_y) * p.slope_y * j12)) +
                      sum(kDepthSum);

        vd g_pose[12] = {gx * p.mx, gx * p.my, gx * p.mz, gy * p.mx, gy * p.my, gy * p.mz,
                         gz * p.mx, gz * p.my, gz * p.mz, gx,        gy,        gz};
        for (int c = 0; c < 3; ++c) {
            g_pose[c] += p.j00 * g_t0[c];
            g_pose[3 + c] += p.j11 * g_t1[c];
            g_pose[6 + c] += p.j02 * g_t0[c] + p.j12 * g_t1[c];
        }
        vl counted;
        for (int l = 0; l < kD; ++l) counted[l] = l < valid ? -1 : 0;
        for (int c = 0; c < 12; ++c) pose[c] += select(counted, g_pose[c], vd{});

        const vd g_mean[3] = {in.r[0] * gx + in.r[3] * gy + in.r[6] * gz,
                              in.r[1] * gx + in.r[4] * gy + in.r[7] * gz,
                              in.r[2] * gx + in.r[5] * gy + in.r[8] * gz};
        const vd abs_x = sum(kAbsX), abs_y = sum(kAbsY);
        for (int l = 0; l < valid; ++l) {
            const long id = ids[i + l];
            for (int c = 0; c < 3; ++c) out.means[3 * id + c] = (float)g_mean[c][l];
            for (int c = 0; c < 4; ++c) out.quaternions[4 * id + c] = (float)gq[c][l];
            for (int c = 0; c < 3; ++c) out.scales[3 * id + c] = (float)g_scale[c][l];
            out.opacities[id] = (float)g_opacity[l];
            out.means2d[2 * id] = (float)gu[l], out.means2d[2 * id + 1] = (float)gv[l];
            out.means2d_abs[2 * id] = (float)abs_x[l];
            out.means2d_abs[2 * id + 1] = (float)abs_y[l];
        }
    }
    for (int c = 0; c < 12; ++c) {
        for (int l = 0; l < kD; ++l) out.pose[c] += pose[c][l];
    }
}
