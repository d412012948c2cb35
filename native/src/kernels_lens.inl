// Reprojection through a lens; included inside an anonymous namespace after kernels_lanes.inl.

enum LensKind { kNoLens, kPolynomial, kFisheye };

/// Angle whose tangent is r >= 0, relative error below 4e-7: three halvings of the angle, then its
/// series.
inline vf angle_of_tangent(vf r) {
    for (int i = 0; i < 3; ++i) r = r / (1.0f + vsqrt(1.0f + r * r));
    const vf q = r * r;
    return 8.0f * r * (1.0f + q * (-1.0f / 3.0f + q * (0.2f + q * (-1.0f / 7.0f + q / 9.0f))));
}

/// Distorted coordinates of a point on the plane z = 1 and their derivative, which is symmetric.
struct Distorted {
    vf x, y, xx, xy, yy;
};

template <int kKind>
inline Distorted distorted(const LensF& lens, vf u, vf v) {
    if (kKind == kNoLens) return {u, v, splat(1.0f), zero(), splat(1.0f)};
    const float* k = lens.k;
    const vf r2 = u * u + v * v;
    vf s, ds;  // radial factor and (d s / d r) / r
    if (kKind == kFisheye) {
        const vi near_axis = r2 < 1e-4f;
        const vf safe2 = near_axis ? splat(1.0f) : r2;
        const vf r = vsqrt(safe2), th = angle_of_tangent(r), q = th * th;
        const vf f = 1.0f + q * (k[0] + q * (k[1] + q * (k[2] + q * k[3])));
        const vf df =
            1.0f + q * (3.0f * k[0] + q * (5.0f * k[1] + q * (7.0f * k[2] + q * (9.0f * k[3]))));
        const float bend = k[0] - 1.0f / 3.0f;
        s = near_axis ? 1.0f + r2 * bend : th * f / r;
        ds = near_axis ? splat(2.0f * bend) : (df / (1.0f + safe2) - s) / safe2;
    } else {
        const vf num = 1.0f + r2 * (k[0] + r2 * (k[1] + r2 * k[2]));
        const vf inv = 1.0f / (1.0f + r2 * (k[3] + r2 * (k[4] + r2 * k[5])));
        const vf dnum = k[0] + r2 * (2.0f * k[1] + r2 * (3.0f * k[2]));
        const vf dden = k[3] + r2 * (2.0f * k[4] + r2 * (3.0f * k[5]));
        s = num * inv;
        ds = 2.0f * (dnum - s * dden) * inv;
    }
    const float p1 = lens.p1, p2 = lens.p2;
    const vf uu = u * u, vv = v * v, uv = u * v;
    return {u * s + 2.0f * p1 * uv + p2 * (r2 + 2.0f * uu),
            v * s + p1 * (r2 + 2.0f * vv) + 2.0f * p2 * uv,
            s + ds * uu + 2.0f * p1 * v + 6.0f * p2 * u, ds * uv + 2.0f * p1 * u + 2.0f * p2 * v,
            s + ds * vv + 6.0f * p1 * v + 2.0f * p2 * u};
}

/// Residuals larger than this (squared, focal lengths) are no longer computed.
constexpr float kAbsurd2 = 1e4f;

/// The rows of J' of the plane's (x, y) by the pose, applied to (a, b). With k = inverse depth, the
/// Jacobian's rows are (-x y, 1 + x^2, -y, k, 0, -x k) and (-1 - y^2, x y, x, 0, k, -y k).
struct PlaneRows {
    vf x, y, k;
    void apply(vf a, vf b, vf out[6]) const {
        const vf inner = x * a + y * b;
        out[0] = -(y * inner + b);
        out[1] = x * inner + a;
        out[2] = x * b - y * a;
        out[3] = k * a;
        out[4] = k * b;
        out[5] = -k * inner;
    }
};

/// Scale from which the weight is 1 for all that matters: plain least squares.
constexpr float kPlain2 = 1e29f;

template <int kKind, bool kRobust>
void lens_impl(const FitView& p, const PoseF& pose, const LensF& lens, float c2,
               LensEquations* out) {
    const PoseLanes T(pose);
    const vf inv_c2 = splat(1.0f / c2), sx = splat(lens.sx), sy = splat(lens.sy);
    vf h[28], g[7], cost = zero(), weight = zero();
    for (vf& v : h) v = zero();
    for (vf& v : g) v = zero();
    for (int i = 0; i < p.n; i += kF) {
        vf cx, cy, cz;
        T.apply(load(p.X + i), load(p.Y + i), load(p.Z + i), cx, cy, cz);
        const vi front = cz > zero();
        PlaneRows J;
        J.k = 1.0f / (front ? cz : splat(1.0f));
        J.x = cx * J.k;
        J.y = cy * J.k;
        const Distorted d = distorted<kKind>(lens, J.x, J.y);
        const vf px = sx * d.x, py = sy * d.y;
        vf u = px - load(p.a + i), v = py - load(p.b + i);
        const vf info = load(p.info + i), e2 = u * u + v * v;
        const vi ok = front & (e2 < kAbsurd2) & (info > zero());
        u = ok ? u : zero();
        v = ok ? v : zero();
        const vf prior = ok ? load(p.w + i) : zero();
        vf w = info * prior;
        if (kRobust) {
            // Geman-McClure: loss q / (1 + q), weight 1 / (1 + q)^2.
            const vf q = (ok ? e2 : zero()) * (info * inv_c2), inlying = 1.0f / (1.0f + q);
            cost += prior * q * inlying;
            w *= inlying * inlying;
        }
        w = ok ? w : zero();
        J.x = ok ? J.x : zero();
        J.y = ok ? J.y : zero();
        weight += w;
        const vf axx = ok ? sx * d.xx : zero(), axy = ok ? sx * d.xy : zero(),
                 ayx = ok ? sy * d.xy : zero(), ayy = ok ? sy * d.yy : zero();
        const vf fx = ok ? px : zero(), fy = ok ? py : zero();
        const vf wu = w * u, wv = w * v;
        vf q[6];
        J.apply(axx * wu + ayx * wv, axy * wu + ayy * wv, q);
        for (int k = 0; k < 6; ++k) g[k] += q[k];
        g[6] += fx * wu + fy * wv;
        const vf one = zero() + 1.0f, txx = w * (axx * axx + ayx * ayx),
                 txy = w * (axx * axy + ayx * ayy), tyy = w * (axy * axy + ayy * ayy);
        // Columns of the plane's Jacobian, through the lens and back.
        const vf jx[6] = {-J.x * J.y, one + J.x * J.x, -J.y, J.k, zero(), -J.x * J.k};
        const vf jy[6] = {-one - J.y * J.y, J.x * J.y, J.x, zero(), J.k, -J.y * J.k};
        int at = 0;
        vf of_focal[6];
        const vf wx = w * fx, wy = w * fy;
        J.apply(axx * wx + ayx * wy, axy * wx + ayy * wy, of_focal);
        for (int r = 0; r < 6; ++r) {
            J.apply(txx * jx[r] + txy * jy[r], txy * jx[r] + tyy * jy[r], q);
            for (int c = r; c < 6; ++c) h[at++] += q[c];
            h[at++] += of_focal[r];
        }
        h[at] += wx * fx + wy * fy;
    }
    for (int k = 0; k < 7; ++k) out->g[k] = sum(g[k]);
    for (int k = 0; k < 28; ++k) out->h[k] = sum(h[k]);
    out->cost = sum(cost);
    out->weight = sum(weight);
}

void lens_equations(const FitView& p, const PoseF& pose, const LensF& lens, float c2,
                    LensEquations* out) {
    const bool robust = c2 < kPlain2;
    switch (lens.kind) {
        case kNoLens:
            return robust ? lens_impl<kNoLens, true>(p, pose, lens, c2, out)
                          : lens_impl<kNoLens, false>(p, pose, lens, c2, out);
        case kPolynomial:
            return robust ? lens_impl<kPolynomial, true>(p, pose, lens, c2, out)
                          : lens_impl<kPolynomial, false>(p, pose, lens, c2, out);
        default:
            return robust ? lens_impl<kFisheye, true>(p, pose, lens, c2, out)
                          : lens_impl<kFisheye, false>(p, pose, lens, c2, out);
    }
}

template <int kKind>
void lens_errors2_impl(const FitView& p, const PoseF& pose, const LensF& lens, float* out) {
    const PoseLanes T(pose);
    const vf far = splat(__builtin_inff());
    for (int i = 0; i < p.n; i += kF) {
        vf cx, cy, cz;
        T.apply(load(p.X + i), load(p.Y + i), load(p.Z + i), cx, cy, cz);
        const vf iz = 1.0f / cz;
        const Distorted d = distorted<kKind>(lens, cx * iz, cy * iz);
        const vf u = lens.sx * d.x - load(p.a + i), v = lens.sy * d.y - load(p.b + i),
                 e2 = u * u + v * v;
        store(out + i, (cz > zero()) & (e2 < kAbsurd2) ? e2 : far);
    }
}

void lens_errors2(const FitView& p, const PoseF& pose, const LensF& lens, float* out) {
    switch (lens.kind) {
        case kNoLens:
            return lens_errors2_impl<kNoLens>(p, pose, lens, out);
        case kPolynomial:
            return lens_errors2_impl<kPolynomial>(p, pose, lens, out);
        default:
            return lens_errors2_impl<kFisheye>(p, pose, lens, out);
    }
}

template <int kKind>
void lens_project_impl(const LensF& lens, int n, float* x, float* y) {
    for (int i = 0; i < n; i += kF) {
        const Distorted d = distorted<kKind>(lens, load(x + i), load(y + i));
        store(x + i, lens.sx * d.x);
        store(y + i, lens.sy * d.y);
    }
}

void lens_project(const LensF& lens, int n, float* x, float* y) {
    switch (lens.kind) {
        case kNoLens:
            return lens_project_impl<kNoLens>(lens, n, x, y);
        case kPolynomial:
            return lens_project_impl<kPolynomial>(lens, n, x, y);
        default:
            return lens_project_impl<kFisheye>(lens, n, x, y);
    }
}
