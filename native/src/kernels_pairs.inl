// RGB-D residuals and array layout; included inside an anonymous namespace after
// kernels_points.inl.

// --- RGB-D: the residual is the difference of two camera-frame points.

inline vf pair_error2(const PairsView& p, const PoseLanes& T, int i) {
    vf cx, cy, cz;
    T.apply(load(p.X + i), load(p.Y + i), load(p.Z + i), cx, cy, cz);
    const vf u = cx - load(p.Px + i), v = cy - load(p.Py + i), w = cz - load(p.Pz + i);
    return u * u + v * v + w * w;
}

double pair_preview(const PairsView& p, const PoseF& pose, float radius2) {
    const PoseLanes T(pose);
    vf total = zero();
    for (int i = 0; i < p.n; i += kF)
        total += pair_error2(p, T, i) < radius2 ? load(p.w + i) : zero();
    return sum(total);
}

PoseScore pair_score(const PairsView& p, const PoseF& pose, float narrow2, float wide2) {
    const PoseLanes T(pose);
    vf narrow = zero(), wide = zero(), total = zero();
    for (int i = 0; i < p.n; i += kF) {
        const vf e2 = pair_error2(p, T, i), w = load(p.w + i);
        const vi in_n = e2 < narrow2, in_w = e2 < wide2;
        narrow += in_n ? w : zero();
        wide += in_w ? w : zero();
        total += in_n ? w * (1.0f - e2 * (1.0f / narrow2)) : zero();
        total += in_w ? w * (1.0f - e2 * (1.0f / wide2)) : zero();
    }
    return PoseScore{sum(narrow), sum(wide), sum(total)};
}

void pair_errors2(const PairsView& p, const PoseF& pose, float* out) {
    const PoseLanes T(pose);
    for (int i = 0; i < p.n; i += kF) store(out + i, pair_error2(p, T, i));
}

/// The Jacobian of the difference of two points is [-[c]x, I].
template <bool kRobust>
void pair_impl(const PairsView& p, const PoseF& pose, float c2, NormalEquations* out) {
    const PoseLanes T(pose);
    const vi all = zero() == zero();
    const vf inv_c2 = splat(1.0f / c2);
    vf cost = zero(), weight = zero(), sx = zero(), sy = zero(), sz = zero();
    vf xx = zero(), xy = zero(), xz = zero(), yy = zero(), yz = zero(), zz = zero();
    vf g0 = zero(), g1 = zero(), g2 = zero(), g3 = zero(), g4 = zero(), g5 = zero();
    for (int i = 0; i < p.n; i += kF) {
        vf cx, cy, cz;
        T.apply(load(p.X + i), load(p.Y + i), load(p.Z + i), cx, cy, cz);
        const vf u = cx - load(p.Px + i), v = cy - load(p.Py + i), d = cz - load(p.Pz + i);
        const vf info = load(p.info + i);
        const vf q = (u * u + (v * v + d * d)) * (info * inv_c2);
        const vf w = info * geman_mcclure<kRobust>(cost, q, load(p.w + i), all);
        const vf wx = w * cx, wy = w * cy, wz = w * cz;
        weight += w;
        g0 += wy * d - wz * v;
        g1 += wz * u - wx * d;
        g2 += wx * v - wy * u;
        g3 += w * u;
        g4 += w * v;
        g5 += w * d;
        sx += wx;
        sy += wy;
        sz += wz;
        xx += wx * cx;
        xy += wx * cy;
        xz += wx * cz;
        yy += wy * cy;
        yz += wy * cz;
        zz += wz * cz;
    }
    const vf* grad[6] = {&g0, &g1, &g2, &g3, &g4, &g5};
    for (int i = 0; i < 6; ++i) out->g[i] = sum(*grad[i]);
    out->cost = sum(cost);
    out->weight = sum(weight);
    const double W = out->weight, X = sum(sx), Y = sum(sy), Z = sum(sz), XX = sum(xx), YY = sum(yy),
                 ZZ = sum(zz);
    const double h[21] = {YY + ZZ, -sum(xy), -sum(xz), 0, -Z, Y, XX + ZZ, -sum(yz), Z, 0, -X,
                          XX + YY, -Y,       X,        0, W,  0, 0,       W,        0, W};
    for (int i = 0; i < 21; ++i) out->h[i] = h[i];
}

void pair_equations(const PairsView& p, const PoseF& pose, float c2, NormalEquations* out) {
    c2 < kPlain2 ? pair_impl<true>(p, pose, c2, out) : pair_impl<false>(p, pose, c2, out);
}

// --- Layout

/// Splits K interleaved components into rows of float: row_k = src_k * scale_k - offset_k. Returns
/// whether some value is not below `limit` in magnitude (NaN included).
template <int K, class T>
bool split_impl(const T* src, int n, const double* scale, const double* offset, float limit,
                float* const* rows) {
    constexpr int kBlock = 512;  // checked while it is in the cache
    int bad = 0;
    const double sa = scale[0], sb = scale[1], sc = K == 3 ? scale[2] : 0, oa = offset[0],
                 ob = offset[1], oc = K == 3 ? offset[2] : 0;
    for (int from = 0; from < n; from += kBlock) {
        const int m = n - from < kBlock ? n - from : kBlock;
        const T* in = src + static_cast<long>(K) * from;
        float *a = rows[0] + from, *b = rows[1] + from, *c = K == 3 ? rows[2] + from : nullptr;
        for (int i = 0; i < m; ++i) {
            a[i] = static_cast<float>(in[K * i] * sa - oa);
            b[i] = static_cast<float>(in[K * i + 1] * sb - ob);
            if (K == 3) c[i] = static_cast<float>(in[K * i + 2] * sc - oc);
        }
        for (int k = 0; k < K; ++k) {
            const float* r = rows[k] + from;
            for (int i = 0; i < m; ++i) bad |= !(__builtin_fabsf(r[i]) < limit);
        }
    }
    return bad != 0;
}

bool split(const float* f32, const double* f64, int components, int n, const double* scale,
           const double* offset, float limit, float* const* rows) {
    if (components == 2) {
        return f64 ? split_impl<2>(f64, n, scale, offset, limit, rows)
                   : split_impl<2>(f32, n, scale, offset, limit, rows);
    }
    return f64 ? split_impl<3>(f64, n, scale, offset, limit, rows)
               : split_impl<3>(f32, n, scale, offset, limit, rows);
}

void bearings(float* x, float* y, float* z, int n) {
    for (int i = 0; i < n; i += kF) {
        const vf a = load(x + i), b = load(y + i), c = 1.0f / vsqrt(a * a + (b * b + 1.0f));
        store(x + i, a * c);
        store(y + i, b * c);
        store(z + i, c);
    }
}

void flag_below(const float* values, const float* scale, int n, float limit, unsigned char* flags) {
    typedef unsigned char vb __attribute__((vector_size(kF)));
    for (int i = 0; i < n; i += kF) {
        const vi below = load(values + i) * load(scale + i) < limit;
        const vb out = __builtin_convertvector(below & 1, vb);
        __builtin_memcpy(flags + i, &out, kF);
    }
}

float least(const float* values, int n) {
    vf lanes = splat(values[0]);
    int i = 0;
    for (; i + kF <= n; i += kF) {
        const vf v = load(values + i);
        lanes = v < lanes ? v : lanes;
    }
    float out = values[0];
    for (int k = 0; k < kF; ++k) out = lanes[k] < out ? lanes[k] : out;
    for (; i < n; ++i) out = values[i] < out ? values[i] : out;
    return out;
}

void directions(const float* X, const float* Y, const float* Z, int n, float* x, float* y) {
    for (int i = 0; i < n; i += kF) {
        const vf iz = 1.0f / load(Z + i);
        store(x + i, load(X + i) * iz);
        store(y + i, load(Y + i) * iz);
    }
}

void assign_cells(const float* x, const float* y, const float* e2, int n, const CellGrid& grid,
                  int* cell) {
    const vf last_column = splat(grid.columns - 1.0f), last_row = splat(grid.rows - 1.0f);
    const vi outside = grid.columns * grid.rows - vi{};
    for (int i = 0; i < n; i += kF) {
        vf c = max0((load(x + i) - grid.x0) * grid.sx), r = max0((load(y + i) - grid.y0) * grid.sy);
        c = c < last_column ? c : last_column;
        r = r < last_row ? r : last_row;
        const vi at =
            __builtin_convertvector(r, vi) * grid.columns + __builtin_convertvector(c, vi);
        *reinterpret_cast<vi*>(cell + i) = load(e2 + i) < grid.limit ? at : outside;
    }
}
