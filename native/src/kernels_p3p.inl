// P3P in lanes; included after kernels_lanes.inl, or where vd is double and a lane is a CUDA
// thread.
//
// The three distances l = (l1, l2, l3) along the bearings satisfy three quadrics l' M_ij l = a_ij
// (law of cosines). Two homogeneous combinations D1, D2 remain when the scale is eliminated; a
// member D1 + g D2 of their pencil with zero determinant splits into two planes, and each plane
// meets the quadrics in at most two directions (the scheme of Persson and Nordberg, "Lambda Twist",
// ECCV 2018; the split is the classical one of a degenerate conic, Richter-Gebert, "Perspectives on
// Projective Geometry", 2011). Every step is a select, so that all lanes stay in step.

RELOC_LANE_FN vd vabs(vd v) { return v < vd{} ? -v : v; }

/// One real root of x^3 + b x^2 + c x + d, started on the outer side of the stationary points so
/// that Newton's iteration is monotone.
RELOC_LANE_FN vd cubic_root(vd b, vd c, vd d) {
    const vd third = splatd(1.0 / 3.0);
    const vd disc = b * b - 3.0 * c;
    const vl two_turns = disc > vd{};
    const vd v = vsqrt(two_turns ? disc : vd{});
    const vd x1 = (-b - v) * third, x2 = (-b + v) * third;
    const vd f1 = d + x1 * (c + x1 * (b + x1)), f2 = d + x2 * (c + x2 * (b + x2));
    const vd tiny = splatd(1e-300);
    // Near a stationary point the cubic is f + (3 x + b) (x - x_s)^2.
    const vd q1 = 3.0 * x1 + b, q2 = 3.0 * x2 + b;
    const vd left = x1 - vsqrt(vabs(f1 / (vabs(q1) > tiny ? q1 : splatd(-1.0))));
    const vd right = x2 + vsqrt(vabs(f2 / (vabs(q2) > tiny ? q2 : splatd(1.0))));
    const vd m = -b * third, fm = d + m * (c + m * (b + m));
    // Monotone cubic: beyond the inflection by the cube root's bound 1 + |f|.
    vd x = two_turns ? (f1 > vd{} ? left : right) : m - fm / (vabs(c - b * b * third) + 1.0);
    for (int it = 0; it < 12; ++it) {
        const vd f = d + x * (c + x * (b + x)), g = c + x * (2.0 * b + 3.0 * x);
        const vd step = vabs(g) > tiny ? f / g : vd{};
        x -= step;
        const vl moving = vabs(step) > 1e-13 * (1.0 + vabs(x));
        if (!any(moving)) break;
    }
    return x;
}

/// Symmetric 3x3 in lanes.
struct Sym {
    vd a00, a01, a02, a11, a12, a22;
};

RELOC_LANE_FN vd det(const Sym& s) {
    return s.a00 * (s.a11 * s.a22 - s.a12 * s.a12) - s.a01 * (s.a01 * s.a22 - s.a12 * s.a02) +
           s.a02 * (s.a01 * s.a12 - s.a11 * s.a02);
}

RELOC_LANE_FN Sym adjugate(const Sym& s) {
    return Sym{s.a11 * s.a22 - s.a12 * s.a12, s.a02 * s.a12 - s.a01 * s.a22,
               s.a01 * s.a12 - s.a02 * s.a11, s.a00 * s.a22 - s.a02 * s.a02,
               s.a01 * s.a02 - s.a00 * s.a12, s.a00 * s.a11 - s.a01 * s.a01};
}

RELOC_LANE_FN vd inner(const Sym& p, const Sym& q) {
    return p.a00 * q.a00 + p.a11 * q.a11 + p.a22 * q.a22 +
           2.0 * (p.a01 * q.a01 + p.a02 * q.a02 + p.a12 * q.a12);
}

struct V3 {
    vd x, y, z;
};
RELOC_LANE_FN V3 sub(const V3& p, const V3& q) { return V3{p.x - q.x, p.y - q.y, p.z - q.z}; }
RELOC_LANE_FN vd dot(const V3& p, const V3& q) { return p.x * q.x + p.y * q.y + p.z * q.z; }
RELOC_LANE_FN V3 cross(const V3& p, const V3& q) {
    return V3{p.y * q.z - p.z * q.y, p.z * q.x - p.x * q.z, p.x * q.y - p.y * q.x};
}
RELOC_LANE_FN V3 scale(const V3& p, vd s) { return V3{p.x * s, p.y * s, p.z * s}; }
RELOC_LANE_FN V3 pick(vl c, const V3& p, const V3& q) {
    return V3{c ? p.x : q.x, c ? p.y : q.y, c ? p.z : q.z};
}

/// Right-handed orthonormal frame of a triangle: first side, in-plane normal to it, plane normal.
struct Frame {
    V3 e0, e1, e2;
    RELOC_LANE_FN Frame(const V3& s12, const V3& s13) {
        e0 = scale(s12, 1.0 / vsqrt(dot(s12, s12)));
        const V3 n = cross(s12, s13);
        e2 = scale(n, 1.0 / vsqrt(dot(n, n)));
        e1 = cross(e2, e0);
    }
};

/// Newton steps on the three distance equations polish what the elimination lost to cancellation.
RELOC_LANE_FN void polish(vd& l1, vd& l2, vd& l3, vd b12, vd b13, vd b23, vd a12, vd a13, vd a23) {
    for (int it = 0; it < 2; ++it) {
        const vd r1 = l1 * l1 + l2 * l2 - 2.0 * b12 * l1 * l2 - a12;
        const vd r2 = l1 * l1 + l3 * l3 - 2.0 * b13 * l1 * l3 - a13;
        const vd r3 = l2 * l2 + l3 * l3 - 2.0 * b23 * l2 * l3 - a23;
        const vd j11 = l1 - b12 * l2, j12 = l2 - b12 * l1;
        const vd j21 = l1 - b13 * l3, j23 = l3 - b13 * l1;
        const vd j32 = l2 - b23 * l3, j33 = l3 - b23 * l2;
        const vd d = -j11 * j23 * j32 - j12 * j21 * j33;
        const vd s = 0.5 / (vabs(d) > 1e-300 ? d : splatd(1e300));
        l1 -= s * (-j23 * j32 * r1 - j12 * j33 * r2 + j12 * j23 * r3);
        l2 -= s * (-j21 * j33 * r1 + j11 * j33 * r2 - j11 * j23 * r3);
        l3 -= s * (j21 * j32 * r1 - j11 * j32 * r2 - j12 * j21 * r3);
    }
}

RELOC_LANE_FN void p3p_lanes(P3PBatch* io, int at) {
    V3 y[3], X[3];
    for (int k = 0; k < 3; ++k) {
        y[k] = V3{load(io->bx[k] + at), load(io->by[k] + at), load(io->bz[k] + at)};
        X[k] = V3{load(io->X[k] + at), load(io->Y[k] + at), load(io->Z[k] + at)};
    }
    const V3 X12 = sub(X[0], X[1]), X13 = sub(X[0], X[2]), X23 = sub(X[1], X[2]);
    vd a12 = dot(X12, X12), a13 = dot(X13, X13), a23 = dot(X23, X23);
    const vd b12 = dot(y[0], y[1]), b13 = dot(y[0], y[2]), b23 = dot(y[1], y[2]);
    // Work with the side 2-3 as the unit of length: the equations become free of scale.
    const vd unit2 = a23, unit = vsqrt(a23);
    a12 /= unit2;
    a13 /= unit2;
    a23 = splatd(1.0);
    // D1 = M12 - a12 M23, D2 = M13 - a13 M23
    const vd nil = vd{};
    const Sym D1{splatd(1.0), -b12, nil, 1.0 - a12, b23 * a12, -a12};
    const Sym D2{splatd(1.0), nil, -b13, -a13, b23 * a13, 1.0 - a13};
    const Sym A1 = adjugate(D1), A2 = adjugate(D2);
    const vd c3 = det(D2), c2 = inner(A2, D1), c1 = inner(A1, D2), c0 = det(D1);
    // The better conditioned of g and 1/g: the pencil has a finite root on at least one end.
    const vl flip = vabs(c3) < vabs(c0);
    const vd lead = flip ? c0 : c3;
    const vd inv = 1.0 / (vabs(lead) > 1e-300 ? lead : splatd(1e300));
    const vd g = cubic_root((flip ? c1 : c2) * inv, (flip ? c2 : c1) * inv, (flip ? c3 : c0) * inv);
    const vd k1 = flip ? g : splatd(1.0), k2 = flip ? splatd(1.0) : g;
    const Sym S{k1 * D1.a00 + k2 * D2.a00, k1 * D1.a01 + k2 * D2.a01, k1 * D1.a02 + k2 * D2.a02,
                k1 * D1.a11 + k2 * D2.a11, k1 * D1.a12 + k2 * D2.a12, k1 * D1.a22 + k2 * D2.a22};
    // S = l m' + m l'; with p = l x m the adjugate is -p p', and S + [p]x has rank one with rows ~
    // one plane and columns ~ the other.
    const Sym A = adjugate(S);
    const vd d0 = -A.a00, d1 = -A.a11, d2 = -A.a22;
    const vl use0 = (d0 >= d1) & (d0 >= d2), use1 = d1 >= d2;
    const vd top = use0 ? d0 : (use1 ? d1 : d2);
    const vl real = top > vd{};
    const vd root = 1.0 / vsqrt(real ? top : splatd(1.0));
    V3 p = pick(use0, V3{A.a00, A.a01, A.a02},
                pick(use1, V3{A.a01, A.a11, A.a12}, V3{A.a02, A.a12, A.a22}));
    p = scale(p, -root);
    const V3 row0{S.a00, S.a01 - p.z, S.a02 + p.y}, row1{S.a01 + p.z, S.a11, S.a12 - p.x},
        row2{S.a02 - p.y, S.a12 + p.x, S.a22};
    const vd n0 = dot(row0, row0), n1 = dot(row1, row1), n2 = dot(row2, row2);
    const V3 line_r = pick((n0 >= n1) & (n0 >= n2), row0, pick(n1 >= n2, row1, row2));
    const V3 col0{row0.x, row1.x, row2.x}, col1{row0.y, row1.y, row2.y},
        col2{row0.z, row1.z, row2.z};
    const vd m0 = dot(col0, col0), m1 = dot(col1, col1), m2 = dot(col2, col2);
    const V3 line_c = pick((m0 >= m1) & (m0 >= m2), col0, pick(m1 >= m2, col1, col2));

    const Frame FX(X12, X13);
    for (int plane = 0; plane < 2; ++plane) {
        const V3 l = plane == 0 ? line_r : line_c;
        const vd il = 1.0 / (vabs(l.x) > 1e-300 ? l.x : splatd(1e-300));
        const vd w0 = -l.y * il, w1 = -l.z * il;  // l1 = w0 l2 + w1 l3
        // D1 along l3 = tau l2: qa tau^2 + qb tau + qc = 0.
        const vd qa = D1.a00 * w1 * w1 + D1.a22;
        const vd qb = 2.0 * (D1.a00 * w0 * w1 + D1.a01 * w1 + D1.a12);
        const vd qc = D1.a00 * w0 * w0 + 2.0 * D1.a01 * w0 + D1.a11;
        const vd disc = qb * qb - 4.0 * qa * qc;
        // A slightly negative discriminant is a double root seen through rounding.
        const vl exists = (disc > -1e-9 * qb * qb) & real;
        const vd sq = vsqrt(disc > vd{} ? disc : vd{});
        const vd q = -0.5 * (qb + (qb < vd{} ? -sq : sq));
        for (int sign = 0; sign < 2; ++sign) {
            const vd tau = sign == 0 ? q / qa : qc / q;
            const vd e = 1.0 + tau * (tau - 2.0 * b23);
            vl ok = exists & (tau > vd{}) & (e > 1e-30);
            vd l2 = 1.0 / vsqrt(ok ? e : splatd(1.0));
            vd l3 = tau * l2, l1 = w0 * l2 + w1 * l3;
            ok = ok & (l1 > vd{});
            polish(l1, l2, l3, b12, b13, b23, a12, a13, a23);
            const vd res = vabs(l1 * l1 + l2 * l2 - 2.0 * b12 * l1 * l2 - a12) +
                           vabs(l1 * l1 + l3 * l3 - 2.0 * b13 * l1 * l3 - a13);
            ok = ok & (l1 > vd{}) & (l2 > vd{}) & (l3 > vd{}) & (res < 1e-6 * (1.0 + a12 + a13));
            const V3 P1 = scale(y[0], l1 * unit), P2 = scale(y[1], l2 * unit),
                     P3 = scale(y[2], l3 * unit);
            const Frame FY(sub(P1, P2), sub(P1, P3));
            const V3 *f0 = &FY.e0, *f1 = &FY.e1, *f2 = &FY.e2;
            const vd r[9] = {f0->x * FX.e0.x + f1->x * FX.e1.x + f2->x * FX.e2.x,
                             f0->x * FX.e0.y + f1->x * FX.e1.y + f2->x * FX.e2.y,
                             f0->x * FX.e0.z + f1->x * FX.e1.z + f2->x * FX.e2.z,
                             f0->y * FX.e0.x + f1->y * FX.e1.x + f2->y * FX.e2.x,
                             f0->y * FX.e0.y + f1->y * FX.e1.y + f2->y * FX.e2.y,
                             f0->y * FX.e0.z + f1->y * FX.e1.z + f2->y * FX.e2.z,
                             f0->z * FX.e0.x + f1->z * FX.e1.x + f2->z * FX.e2.x,
                             f0->z * FX.e0.y + f1->z * FX.e1.y + f2->z * FX.e2.y,
                             f0->z * FX.e0.z + f1->z * FX.e1.z + f2->z * FX.e2.z};
            const vd tx = P1.x - (r[0] * X[0].x + r[1] * X[0].y + r[2] * X[0].z);
            const vd ty = P1.y - (r[3] * X[0].x + r[4] * X[0].y + r[5] * X[0].z);
            const vd tz = P1.z - (r[6] * X[0].x + r[7] * X[0].y + r[8] * X[0].z);
            const vd check = (tx + ty + tz) * 0.0 + (r[0] + r[4] + r[8]) * 0.0;
            ok = ok & (check == check);  // collinear samples end in NaN
            const int k = 2 * plane + sign;
            for (int i = 0; i < 9; ++i) store(io->r[k][i] + at, r[i]);
            store(io->t[k][0] + at, tx);
            store(io->t[k][1] + at, ty);
            store(io->t[k][2] + at, tz);
            store(io->valid[k] + at, ok ? splatd(1.0) : vd{});
        }
    }
}
