#include "reloc/gp3p.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include "reloc/align_triangles.hpp"

namespace reloc {
namespace {

constexpr int kDegree = 8;

/// Coefficients from the constant upwards.
struct Poly {
    std::array<double, kDegree + 1> c{};
    int degree = 0;

    Poly() = default;
    Poly(std::initializer_list<double> values) : degree(static_cast<int>(values.size()) - 1) {
        std::copy(values.begin(), values.end(), c.begin());
    }
    double operator()(double x) const {
        double v = 0;
        for (int i = degree; i >= 0; --i) v = v * x + c[i];
        return v;
    }
    Poly derivative() const {
        Poly d;
        d.degree = std::max(0, degree - 1);
        for (int i = 1; i <= degree; ++i) d.c[i - 1] = i * c[i];
        return d;
    }
};

Poly operator+(const Poly& p, const Poly& q) {
    Poly out;
    out.degree = std::max(p.degree, q.degree);
    for (int i = 0; i <= out.degree; ++i) out.c[i] = p.c[i] + q.c[i];
    return out;
}
Poly operator*(double s, const Poly& p) {
    Poly out = p;
    for (double& c : out.c) c *= s;
    return out;
}
Poly operator-(const Poly& p, const Poly& q) { return p + -1.0 * q; }
Poly operator*(const Poly& p, const Poly& q) {
    Poly out;
    out.degree = std::min(kDegree, p.degree + q.degree);
    for (int i = 0; i <= p.degree; ++i) {
        for (int j = 0; j <= q.degree && i + j <= kDegree; ++j) out.c[i + j] += p.c[i] * q.c[j];
    }
    return out;
}

/// The root of p between a and b, where it changes its sign: Newton's iteration kept in the
/// bracket. Its error is of the order of the square of the tolerance.
double bracketed_root(const Poly& p, double a, double b, double at_a) {
    constexpr double kTolerance = 1e-6;
    double x = 0.5 * (a + b);
    for (int it = 0; it < 100; ++it) {
        double f = p.c[p.degree], g = 0;
        for (int i = p.degree - 1; i >= 0; --i) {
            g = g * x + f;
            f = f * x + p.c[i];
        }
        if (f == 0) return x;
        ((f > 0) == (at_a > 0) ? a : b) = x;
        double next = x - f / g;
        if (!(next > a && next < b)) next = 0.5 * (a + b);
        if (std::abs(next - x) <= kTolerance * std::abs(x)) return next;
        x = next;
    }
    return x;
}

/// Bound on the magnitude of all roots, and so of those of all derivatives (Gauss-Lucas):
/// Fujiwara's, rounded up to a power of two.
double root_bound(const Poly& p) {
    const int lead = std::ilogb(p.c[p.degree]);
    int most = -64;
    for (int k = 1; k <= p.degree; ++k) {
        const double c = p.c[p.degree - k];
        // Twice the k-th root of a ratio below 2^e.
        if (c == 0) continue;
        const int e = std::ilogb(c) - lead + 1;
        most = std::max(most, e > 0 ? (e + k - 1) / k : e / k);
    }
    return std::ldexp(2.0, std::min(most, 64));
}

/// Roots of p in (0, top), simple ones: between neighbouring roots of its derivative it is
/// monotone.
int positive_roots(const Poly& p, double top, double roots[kDegree]) {
    for (double c : p.c) {
        if (!std::isfinite(c)) return 0;
    }
    if (p.c[p.degree] == 0) return 0;
    top = std::min(top, root_bound(p));
    Poly chain[kDegree + 1];
    chain[p.degree] = p;
    for (int d = p.degree; d > 1; --d) chain[d - 1] = chain[d].derivative();
    double found[kDegree + 2];
    int n = 0;
    for (int d = 1; d <= p.degree; ++d) {
        const Poly& q = chain[d];
        double next[kDegree + 2];
        int m = 0;
        double a = 0, fa = q(a);
        for (int k = 0; k <= n; ++k) {
            const double b = k < n ? found[k] : top, fb = q(b);
            if ((fa > 0) != (fb > 0)) next[m++] = bracketed_root(q, a, b, fa);
            a = b;
            fa = fb;
        }
        n = m;
        std::copy(next, next + n, found);
    }
    std::copy(found, found + n, roots);
    return n;
}

/// Squared distance of two points on rays i and j less its known value, as a quadric in the depths:
/// l_i^2 + l_j^2 - 2 c l_i l_j + u l_i + v l_j + k.
struct Pair {
    double c, u, v, k;
    double operator()(double li, double lj) const {
        return li * li + lj * lj - 2 * c * li * lj + u * li + v * lj + k;
    }
};

/// Newton's iteration on the three quadrics; false if it does not settle.
bool polish(const Pair& e01, const Pair& e02, const Pair& e12, Vec3* l) {
    Vec3 r;
    for (int it = 0; it < 4; ++it) {
        const double x = l->x(), y = l->y(), z = l->z();
        r = Vec3(e01(x, y), e02(x, z), e12(y, z));
        Mat3 J;
        J << 2 * x - 2 * e01.c * y + e01.u, 2 * y - 2 * e01.c * x + e01.v, 0,
            2 * x - 2 * e02.c * z + e02.u, 0, 2 * z - 2 * e02.c * x + e02.v, 0,
            2 * y - 2 * e12.c * z + e12.u, 2 * z - 2 * e12.c * y + e12.v;
        const Vec3 step = J.inverse() * r;
        if (!step.allFinite()) break;
        *l -= step;
        if (step.squaredNorm() < 1e-24 * l->squaredNorm()) break;
    }
    return r.norm() < 1e-8 * (1 + l->squaredNorm());
}

}  // namespace

int gp3p(const Vec3 origins[3], const Vec3 directions[3], const Vec3 points[3], Pose out[8]) {
    // Division is by the cosine between the first two rays.
    int order[3] = {0, 1, 2};
    double largest = -1;
    for (int k = 0; k < 3; ++k) {
        const double c = std::abs(directions[k].dot(directions[(k + 1) % 3]));
        if (c <= largest) continue;
        largest = c;
        for (int i = 0; i < 3; ++i) order[i] = (k + i) % 3;
    }
    if (!(largest > 1e-9)) return 0;
    const double unit = std::max({(points[0] - points[1]).norm(), (points[1] - points[2]).norm(),
                                  (points[2] - points[0]).norm()});
    if (!(unit > 0) || !std::isfinite(unit)) return 0;
    Vec3 p[3], d[3], X[3];
    for (int i = 0; i < 3; ++i) {
        p[i] = (origins[order[i]] - origins[order[0]]) / unit;
        d[i] = directions[order[i]];
        X[i] = points[order[i]] / unit;
    }
    const auto pair = [&](int i, int j) {
        const Vec3 b = p[i] - p[j];
        return Pair{d[i].dot(d[j]), 2 * b.dot(d[i]), -2 * b.dot(d[j]),
                    b.squaredNorm() - (X[i] - X[j]).squaredNorm()};
    };
    const Pair e01 = pair(0, 1), e02 = pair(0, 2), e12 = pair(1, 2);
    // x^2 = P1 x + P0, y^2 = Q1 y + Q0, x y = R x + S y + T with coefficients in z.
    const Poly P1{-e02.u, 2 * e02.c}, P0{-e02.k, -e02.v, -1.0};
    const Poly Q1{-e12.u, 2 * e12.c}, Q0{-e12.k, -e12.v, -1.0};
    const double s = 0.5 / e01.c;
    const Poly R = s * (P1 + Poly{e01.u}), S = s * (Q1 + Poly{e01.v}),
               T = s * (P0 + Q0 + Poly{e01.k});
    // x^2 y = x (x y), x y^2 = y (x y), (x y)^2 = x^2 y^2, each as a x + b y + c = 0.
    const Poly RS = R * S, mixed = 2.0 * RS - P1 * Q1, PS = P1 - S, QR = Q1 - R;
    const Poly row[3][3] = {{-1.0 * (RS + T), PS * S + P0, PS * T - R * P0},
                            {QR * R + Q0, -1.0 * (RS + T), QR * T - S * Q0},
                            {R * R * P1 + 2.0 * (R * T) - P1 * Q0 + mixed * R,
                             S * S * Q1 + 2.0 * (S * T) - P0 * Q1 + mixed * S,
                             R * R * P0 + S * S * Q0 + T * T - P0 * Q0 + mixed * T}};
    const Poly det = row[2][0] * (row[0][1] * row[1][2] - row[0][2] * row[1][1]) -
                     row[2][1] * (row[0][0] * row[1][2] - row[0][2] * row[1][0]) +
                     row[2][2] * (row[0][0] * row[1][1] - row[0][1] * row[1][0]);
    // Depths beyond this, in distances between the points, are no minimal problem worth solving.
    constexpr double kDeepest = 1e4;
    double roots[kDegree];
    const int n = positive_roots(det, kDeepest, roots);
    int found = 0;
    for (int k = 0; k < n; ++k) {
        const double z = roots[k];
        Mat3 M;
        for (int i = 0; i < 3; ++i) {
            for (int j = 0; j < 3; ++j) M(i, j) = row[i][j](z);
            M.row(i).normalize();
        }
        // The null vector (x, y, 1) from the two rows that determine it best.
        Vec3 best = Vec3::Zero();
        for (int i = 0; i < 3; ++i) {
            const Vec3 v = M.row(i).cross(M.row((i + 1) % 3)).transpose();
            if (v.squaredNorm() > best.squaredNorm()) best = v;
        }
        Vec3 l(best.x() / best.z(), best.y() / best.z(), z);
        if (!l.allFinite() || !polish(e01, e02, e12, &l) || !(l.minCoeff() > 0)) continue;
        Vec3 Y[3];
        for (int i = 0; i < 3; ++i) Y[i] = p[i] + l[i] * d[i];
        Pose& pose = out[found];
        if (!align_triangles(Y, X, &pose)) continue;
        pose.t = pose.t * unit + origins[order[0]];
        ++found;
    }
    return found;
}

}  // namespace reloc
