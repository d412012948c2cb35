// Scoring and normal equations; included inside an anonymous namespace after kernels_lanes.inl.

template <bool kWeighted>
double preview_impl(const PointsView& p, const PoseF& pose, float radius2) {
    const PoseLanes T(pose);
    vf total = zero();
    for (int i = 0; i < p.n; i += kF) {
        vf cx, cy, cz;
        T.apply(load(p.X + i), load(p.Y + i), load(p.Z + i), cx, cy, cz);
        const vf u = cx - load(p.x + i) * cz, v = cy - load(p.y + i) * cz;
        const vf e2 = (u * u + v * v) * load(p.s2 + i);
        const vi in = (e2 < radius2 * (cz * cz)) & (cz > zero());
        total += in ? (kWeighted ? load(p.w + i) : splat(1.0f)) : zero();
    }
    return sum(total);
}

double preview(const PointsView& p, const PoseF& pose, float radius2) {
    return p.w ? preview_impl<true>(p, pose, radius2) : preview_impl<false>(p, pose, radius2);
}

/// Squared pixel error; lanes at or behind the camera plane get `behind`.
inline vf pixel_error2(const PointsView& p, const PoseLanes& T, int i, vf behind) {
    vf cx, cy, cz;
    T.apply(load(p.X + i), load(p.Y + i), load(p.Z + i), cx, cy, cz);
    const vf u = cx - load(p.x + i) * cz, v = cy - load(p.y + i) * cz;
    const vi front = cz > zero();
    const vf e2 = (u * u + v * v) * load(p.s2 + i) / (cz * cz);
    return front ? e2 : behind;
}

template <bool kWeighted>
PoseScore score_impl(const PointsView& p, const PoseF& pose, float narrow2, float wide2) {
    const PoseLanes T(pose);
    const vf far = splat(1e30f), inv_n = splat(1.0f / narrow2), inv_w = splat(1.0f / wide2);
    vf narrow = zero(), wide = zero(), total = zero();
    for (int i = 0; i < p.n; i += kF) {
        const vf e2 = pixel_error2(p, T, i, far);
        const vf w = kWeighted ? load(p.w + i) : splat(1.0f);
        const vi in_n = e2 < narrow2, in_w = e2 < wide2;
        narrow += in_n ? w : zero();
        wide += in_w ? w : zero();
        total += in_n ? w * (1.0f - e2 * inv_n) : zero();
        total += in_w ? w * (1.0f - e2 * inv_w) : zero();
    }
    return PoseScore{sum(narrow), sum(wide), sum(total)};
}

PoseScore score(const PointsView& p, const PoseF& pose, float narrow2, float wide2) {
    return p.w ? score_impl<true>(p, pose, narrow2, wide2)
               : score_impl<false>(p, pose, narrow2, wide2);
}

double soft_inliers(const PointsView& p, const PoseF& pose, float radius, float beta,
                    float max_error) {
    const PoseLanes T(pose);
    const vf cap = splat(max_error), cap2 = splat(max_error * max_error);
    vf total = zero();
    for (int i = 0; i < p.n; i += kF) {
        vf e2 = pixel_error2(p, T, i, cap2);
        e2 = e2 < cap2 ? e2 : cap2;  // also catches NaN
        const vf e = vsqrt(e2);
        const vf z = beta * (radius - e);
        const vf ez = vexp_nonpositive(z > zero() ? -z : z);
        const vf s = (z > zero() ? splat(1.0f) : ez) / (1.0f + ez);
        const vf w = p.w ? load(p.w + i) : (load(p.s2 + i) > zero() ? splat(1.0f) : zero());
        total += e < cap ? w * s : zero();
    }
    return sum(total);
}

void errors2(const PointsView& p, const PoseF& pose, float* out) {
    const PoseLanes T(pose);
    const vf far = splat(__builtin_inff());
    for (int i = 0; i < p.n; i += kF) {
        const vf e2 = pixel_error2(p, T, i, far);
        store(out + i, e2 == e2 ? e2 : far);
    }
}

/// Sums that make up the reprojection normal equations. With projection (x, y), inverse depth i and
/// k = 1 + x^2 + y^2 the rows are (-x y, 1 + x^2, -y, i, 0, -x i) and (-1 - y^2, x y, x, 0, i, -y
/// i); their products repeat, which leaves 17 distinct entries.
struct ProjectionSums {
    vf rr00, rr01, x, y, rr11, r2, xyi, xxi, yyi, xki, yki, xi, yi, ii, xii, yii, r2ii;
    vf g0, g1, g2, g3, g4, g5, cost, weight;

    void clear() {
        rr00 = rr01 = x = y = rr11 = r2 = xyi = xxi = yyi = xki = yki = xi = yi = ii = xii = yii =
            r2ii = zero();
        g0 = g1 = g2 = g3 = g4 = g5 = cost = weight = zero();
    }
    void add(vf w, vf px, vf py, vf iz, vf u, vf v) {
        const vf wu = w * u, wv = w * v;
        const vf xx = px * px, yy = py * py, xy = px * py, xx1 = xx + 1.0f, yy1 = yy + 1.0f;
        const vf iu = wu * iz, iv = wv * iz;
        g0 -= xy * wu + yy1 * wv;
        g1 += xx1 * wu + xy * wv;
        g2 += px * wv - py * wu;
        g3 += iu;
        g4 += iv;
        g5 -= px * iu + py * iv;
        weight += w;
        const vf s = xx + yy, k = s + 1.0f, wxy = w * xy, wi = w * iz, wx = w * px, wy = w * py;
        rr00 += w * (yy1 * yy1) + wxy * xy;
        rr01 += wxy * (k + 1.0f);
        rr11 += w * (xx1 * xx1) + wxy * xy;
        x += wx;
        y += wy;
        r2 += w * s;
        xyi += wi * xy;
        xxi += wi * xx1;
        yyi += wi * yy1;
        const vf ki = k * iz;
        xki += wx * ki;
        yki += wy * ki;
        xi += wx * iz;
        yi += wy * iz;
        const vf wii = wi * iz;
        ii += wii;
        xii += wii * px;
        yii += wii * py;
        r2ii += wii * s;
    }
    void reduce(NormalEquations* out) const {
        const double XY = sum(xyi), X = sum(x), Y = sum(y), XII = sum(xii), YII = sum(yii),
                     II = sum(ii);
        const double h[21] = {sum(rr00), -sum(rr01), -X, -XY,       -sum(yyi), sum(yki), sum(rr11),
                              -Y,        sum(xxi),   XY, -sum(xki), sum(r2),   -sum(yi), sum(xi),
                              0,         II,         0,  -XII,      II,        -YII,     sum(r2ii)};
        for (int i = 0; i < 21; ++i) out->h[i] = h[i];
        const vf* grad[6] = {&g0, &g1, &g2, &g3, &g4, &g5};
        for (int i = 0; i < 6; ++i) out->g[i] = sum(*grad[i]);
        out->cost = sum(cost);
        out->weight = sum(weight);
    }
};

template <bool kWeighted>
void search_impl(const PointsView& p, const PoseF& pose, float radius2, NormalEquations* out) {
    const PoseLanes T(pose);
    const vf inv = splat(1.0f / radius2);
    ProjectionSums s;
    s.clear();
    for (int i = 0; i < p.n; i += kF) {
        vf cx, cy, cz;
        T.apply(load(p.X + i), load(p.Y + i), load(p.Z + i), cx, cy, cz);
        const vf x = load(p.x + i), y = load(p.y + i), s2 = load(p.s2 + i);
        // The test is made without division, so that what is divided is near the image.
        const vf a = cx - x * cz, b = cy - y * cz, z2 = cz * cz;
        const vi in = ((a * a + b * b) * s2 < radius2 * z2) & (cz > zero());
        const vf iz = 1.0f / (in ? cz : splat(1.0f));
        const vf u = in ? a * iz : zero(), v = in ? b * iz : zero();
        const vf k = 1.0f - (u * u + v * v) * s2 * inv;
        vf w = k * k * s2;
        if (kWeighted) w = w * load(p.w + i);
        w = in ? w : zero();
        s.cost += in ? 1.0f - k * k * k : splat(1.0f);
        s.add(w, in ? x + u : zero(), in ? y + v : zero(), iz, u, v);
    }
    s.reduce(out);
}

void search_equations(const PointsView& p, const PoseF& pose, float radius2, NormalEquations* out) {
    if (p.w)
        search_impl<true>(p, pose, radius2, out);
    else
        search_impl<false>(p, pose, radius2, out);
}

/// Scale from which the weight is 1 for all that matters: plain least squares.
constexpr float kPlain2 = 1e29f;

/// Geman-McClure: weight 1 / (1 + q)^2 and loss q / (1 + q), with q = e^2 / c^2.
template <bool kRobust>
inline vf geman_mcclure(vf& cost, vf q, vf prior, vi ok) {
    if (!kRobust) return ok ? prior : zero();
    const vf d = 1.0f / (1.0f + q);
    cost += ok ? prior * q * d : zero();
    return ok ? prior * d * d : zero();
}

/// Point-to-ray distance. With c the point, d the bearing, s = c.d and m = c x d the residual
/// vector is c - s d, its length |m|, its gradient (-s m, c - s d). The Hessian leaves out products
/// with m, which is small against c wherever a point has weight; the gradient, and so the solution,
/// is exact.
template <bool kRobust>
void ray_impl(const FitView& p, const PoseF& pose, float c2, NormalEquations* out) {
    const PoseLanes T(pose);
    const vf inv_c2 = splat(1.0f / c2);
    vf cost = zero(), weight = zero(), sx = zero(), sy = zero(), sz = zero();
    vf xx = zero(), xy = zero(), xz = zero(), yy = zero(), yz = zero(), zz = zero();
    vf dxx = zero(), dxy = zero(), dxz = zero(), dyy = zero(), dyz = zero();
    vf mx = zero(), my = zero(), mz = zero(), ex = zero(), ey = zero(), ez = zero();
    for (int i = 0; i < p.n; i += kF) {
        vf cx, cy, cz;
        T.apply(load(p.X + i), load(p.Y + i), load(p.Z + i), cx, cy, cz);
        const vf dx = load(p.a + i), dy = load(p.b + i), dz = load(p.c + i),
                 info = load(p.info + i);
        const vf s = cx * dx + (cy * dy + cz * dz);
        const vf ux = cy * dz - cz * dy, uy = cz * dx - cx * dz, uz = cx * dy - cy * dx;
        const vf q = (ux * ux + (uy * uy + uz * uz)) * (info * inv_c2);
        const vf w = info * geman_mcclure<kRobust>(cost, q, load(p.w + i), cz > zero());
        const vf ws = w * s, wdx = w * dx, wdy = w * dy, wdz = w * dz;
        mx += ws * ux;
        my += ws * uy;
        mz += ws * uz;
        ex += w * cx - ws * dx;
        ey += w * cy - ws * dy;
        ez += w * cz - ws * dz;
        weight += w;
        const vf wx = w * cx, wy = w * cy, wz = w * cz;
        sx += wx;
        sy += wy;
        sz += wz;
        xx += wx * cx;
        xy += wx * cy;
        xz += wx * cz;
        yy += wy * cy;
        yz += wy * cz;
        zz += wz * cz;
        dxx += wdx * dx;
        dxy += wdx * dy;
        dxz += wdx * dz;
        dyy += wdy * dy;
        dyz += wdz * dy;
    }
    out->g[0] = -sum(mx);
    out->g[1] = -sum(my);
    out->g[2] = -sum(mz);
    out->g[3] = sum(ex);
    out->g[4] = sum(ey);
    out->g[5] = sum(ez);
    out->cost = sum(cost);
    out->weight = sum(weight);
    const double W = out->weight, X = sum(sx), Y = sum(sy), Z = sum(sz), XX = sum(xx), YY = sum(yy),
                 ZZ = sum(zz);
    const double DX = sum(dxx), DY = sum(dyy);
    const double h[21] = {YY + ZZ,  -sum(xy), -sum(xz),  0,         -Z,      Y,         XX + ZZ,
                          -sum(yz), Z,        0,         -X,        XX + YY, -Y,        X,
                          0,        W - DX,   -sum(dxy), -sum(dxz), W - DY,  -sum(dyz), DX + DY};
    for (int i = 0; i < 21; ++i) out->h[i] = h[i];
}

void ray_equations(const FitView& p, const PoseF& pose, float c2, NormalEquations* out) {
    c2 < kPlain2 ? ray_impl<true>(p, pose, c2, out) : ray_impl<false>(p, pose, c2, out);
}

void ray_errors2(const FitView& p, const PoseF& pose, float* out) {
    const PoseLanes T(pose);
    const vf far = splat(__builtin_inff());
    for (int i = 0; i < p.n; i += kF) {
        vf cx, cy, cz;
        T.apply(load(p.X + i), load(p.Y + i), load(p.Z + i), cx, cy, cz);
        const vf dx = load(p.a + i), dy = load(p.b + i), dz = load(p.c + i);
        const vf ux = cy * dz - cz * dy, uy = cz * dx - cx * dz, uz = cx * dy - cy * dx;
        store(out + i, cz > zero() ? ux * ux + (uy * uy + uz * uz) : far);
    }
}

template <bool kRobust>
void reprojection_impl(const FitView& p, const PoseF& pose, float c2, NormalEquations* out) {
    const PoseLanes T(pose);
    const vf inv_c2 = splat(1.0f / c2);
    ProjectionSums s;
    s.clear();
    for (int i = 0; i < p.n; i += kF) {
        vf cx, cy, cz;
        T.apply(load(p.X + i), load(p.Y + i), load(p.Z + i), cx, cy, cz);
        const vi front = cz > zero();
        const vf iz = 1.0f / (front ? cz : splat(1.0f));
        const vf px = cx * iz, py = cy * iz;
        const vf u = px - load(p.a + i), v = py - load(p.b + i), info = load(p.info + i);
        const vf w = info * geman_mcclure<kRobust>(s.cost, (u * u + v * v) * (info * inv_c2),
                                                   load(p.w + i), front);
        s.add(w, px, py, iz, u, v);
    }
    s.reduce(out);
}

void reprojection_equations(const FitView& p, const PoseF& pose, float c2, NormalEquations* out) {
    c2 < kPlain2 ? reprojection_impl<true>(p, pose, c2, out)
                 : reprojection_impl<false>(p, pose, c2, out);
}

void reprojection_errors2(const FitView& p, const PoseF& pose, float* out) {
    const PoseLanes T(pose);
    const vf far = splat(__builtin_inff());
    for (int i = 0; i < p.n; i += kF) {
        vf cx, cy, cz;
        T.apply(load(p.X + i), load(p.Y + i), load(p.Z + i), cx, cy, cz);
        const vf iz = 1.0f / cz;
        const vf u = cx * iz - load(p.a + i), v = cy * iz - load(p.b + i);
        store(out + i, cz > zero() ? u * u + v * v : far);
    }
}

/// Sums of w / (1 + q)^2 and w q' / (1 + q)^2 with q' = e2 * info and q = q' * inv.
void noise_sums(const float* e2, const float* info, const float* w, int n, float inv,
                double* weight, double* spread) {
    vf a = zero(), b = zero();
    for (int i = 0; i < n; i += kF) {
        const vf e = load(e2 + i);
        const vi ok = e < 1e30f;
        const vf q = (ok ? e : zero()) * load(info + i), d = 1.0f / (1.0f + q * inv);
        const vf k = ok ? load(w + i) * d * d : zero();
        a += k;
        b += k * q;
    }
    *weight = sum(a);
    *spread = sum(b);
}

template <bool kTails>
void posterior_impl(const float* e2, const float* base, const float* w, int n, float inv_level,
                    float kappa, float cut, int dof, float* info, PosteriorSums* out) {
    const vf half = splat(-0.5f), per_dof = splat(1.0f / dof);
    vf m = zero(), s = zero(), meat = zero(), curvature = zero(), near = zero(), ring = zero(),
       held = zero();
    for (int i = 0; i < n; i += kF) {
        const vf scale = load(base + i) * inv_level, q0 = load(e2 + i) * scale;
        const vi ok = q0 < cut;
        const vf q = ok ? q0 : zero();
        const vf prior = load(w + i);
        near += ok ? prior : zero();
        ring += (ok & (q >= kRingStart)) ? prior : zero();
        if (kTails) {
            const vf u = 1.0f / (1.0f + 0.5f * q), g = u * u;
            const vf p = ok ? g / (g + kappa) : zero(), t = 2.0f * u * p;
            store(info + i, t * scale);
            const vf k = prior * t, kq = k * q;
            m += prior * p;
            held += k;
            s += kq;
            meat += kq * t * per_dof;
            curvature += k - kq * u * (3.0f - 2.0f * p) * per_dof;
        } else {
            const vf g = vexp_nonpositive(half * q);
            const vf p = ok ? g / (g + kappa) : zero();
            store(info + i, p * scale);
            const vf k = prior * p, kq = k * q;
            m += k;
            s += kq;
            meat += kq * p * per_dof;
            curvature += k - kq * (1.0f - p) * per_dof;
        }
    }
    out->weight = sum(m);
    out->held = kTails ? sum(held) : out->weight;
    out->spread = sum(s) / inv_level;
    out->meat = sum(meat);
    out->curvature = sum(curvature);
    out->near = sum(near);
    out->ring = sum(ring);
}

void posterior(const float* e2, const float* base, const float* w, int n, float inv_level,
               float kappa, float cut, int dof, bool tails, float* info, PosteriorSums* out) {
    if (tails)
        posterior_impl<true>(e2, base, w, n, inv_level, kappa, cut, dof, info, out);
    else
        posterior_impl<false>(e2, base, w, n, inv_level, kappa, cut, dof, info, out);
}
