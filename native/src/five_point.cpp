#include "reloc/five_point.hpp"

#include <Eigen/Dense>
#include <cmath>
#include <complex>

namespace reloc {
namespace {

// Monomials x^i y^j z^k of degree up to three: the ten of degree three first, then the basis of the
// quotient ring.
constexpr int kMono[20][3] = {{3, 0, 0}, {2, 1, 0}, {2, 0, 1}, {1, 2, 0}, {1, 1, 1},
                              {1, 0, 2}, {0, 3, 0}, {0, 2, 1}, {0, 1, 2}, {0, 0, 3},
                              {2, 0, 0}, {1, 1, 0}, {1, 0, 1}, {0, 2, 0}, {0, 1, 1},
                              {0, 0, 2}, {1, 0, 0}, {0, 1, 0}, {0, 0, 1}, {0, 0, 0}};

int mono_index(int i, int j, int k) {
    for (int m = 0; m < 20; ++m) {
        if (kMono[m][0] == i && kMono[m][1] == j && kMono[m][2] == k) return m;
    }
    return -1;
}

struct ProductTable {
    signed char at[20][20];
    ProductTable() {
        for (int p = 0; p < 20; ++p) {
            for (int q = 0; q < 20; ++q) {
                at[p][q] = static_cast<signed char>(mono_index(kMono[p][0] + kMono[q][0],
                                                               kMono[p][1] + kMono[q][1],
                                                               kMono[p][2] + kMono[q][2]));
            }
        }
    }
};

using Poly = Eigen::Matrix<double, 20, 1>;

/// Product of polynomials whose degrees add up to at most three; terms below `from_*` are known to
/// vanish.
Poly multiply(const Poly& p, int from_p, const Poly& q, int from_q) {
    static const ProductTable table;
    Poly out = Poly::Zero();
    for (int i = from_p; i < 20; ++i) {
        for (int j = from_q; j < 20; ++j) {
            if (table.at[i][j] >= 0) out[table.at[i][j]] += p[i] * q[j];
        }
    }
    return out;
}
constexpr int kLinear = 16, kQuadratic = 10;

}  // namespace

int five_point(const Vec3 a[5], const Vec3 b[5], Mat3 out[10]) {
    Eigen::Matrix<double, 9, 5> A;
    for (int k = 0; k < 5; ++k) {
        for (int i = 0; i < 3; ++i) {
            for (int j = 0; j < 3; ++j) A(3 * i + j, k) = b[k][i] * a[k][j];
        }
    }
    const Eigen::HouseholderQR<Eigen::Matrix<double, 9, 5>> qr(A);
    const Eigen::Matrix<double, 9, 9> Q = qr.householderQ();
    // E = x N0 + y N1 + z N2 + N3 with entries as polynomials.
    Poly e[3][3];
    for (int i = 0; i < 3; ++i) {
        for (int j = 0; j < 3; ++j) {
            e[i][j].setZero();
            for (int k = 0; k < 4; ++k) e[i][j][kLinear + k] = Q(3 * i + j, 5 + k);
        }
    }
    Poly eet[3][3];
    for (int i = 0; i < 3; ++i) {
        for (int j = i; j < 3; ++j) {
            eet[i][j].setZero();
            for (int k = 0; k < 3; ++k) eet[i][j] += multiply(e[i][k], kLinear, e[j][k], kLinear);
            eet[j][i] = eet[i][j];
        }
    }
    const Poly half_trace = 0.5 * (eet[0][0] + eet[1][1] + eet[2][2]);
    Eigen::Matrix<double, 10, 20> M;
    for (int i = 0; i < 3; ++i) {
        for (int j = 0; j < 3; ++j) {
            Poly p = -multiply(half_trace, kQuadratic, e[i][j], kLinear);
            for (int k = 0; k < 3; ++k) p += multiply(eet[i][k], kQuadratic, e[k][j], kLinear);
            M.row(3 * i + j) = p.transpose();
        }
    }
    const auto minor = [&](int r, int c, int r2, int c2) {
        return Poly(multiply(e[r][c], kLinear, e[r2][c2], kLinear));
    };
    const Poly det = multiply(minor(1, 1, 2, 2) - minor(1, 2, 2, 1), kQuadratic, e[0][0], kLinear) +
                     multiply(minor(1, 2, 2, 0) - minor(1, 0, 2, 2), kQuadratic, e[0][1], kLinear) +
                     multiply(minor(1, 0, 2, 1) - minor(1, 1, 2, 0), kQuadratic, e[0][2], kLinear);
    M.row(9) = det.transpose();
    const Eigen::FullPivLU<Eigen::Matrix<double, 10, 10>> lu(M.leftCols<10>());
    if (!lu.isInvertible()) return 0;
    const Eigen::Matrix<double, 10, 10> C = lu.solve(M.rightCols<10>());
    // Multiplication by x in the quotient ring.
    Eigen::Matrix<double, 10, 10> action = Eigen::Matrix<double, 10, 10>::Zero();
    for (int m = 0; m < 10; ++m) {
        const int* p = kMono[10 + m];
        const int to = mono_index(p[0] + 1, p[1], p[2]);
        if (to < 10)
            action.row(m) = -C.row(to);
        else
            action(m, to - 10) = 1;
    }
    if (!action.allFinite()) return 0;
    const Eigen::EigenSolver<Eigen::Matrix<double, 10, 10>> solver(action);
    if (solver.info() != Eigen::Success) return 0;
    const Eigen::Matrix<std::complex<double>, 10, 1> values = solver.eigenvalues();
    const Eigen::Matrix<std::complex<double>, 10, 10> vectors = solver.eigenvectors();
    int found = 0;
    for (int k = 0; k < 10; ++k) {
        if (std::abs(values[k].imag()) > 1e-8 * (1 + std::abs(values[k].real()))) continue;
        const auto v = vectors.col(k);
        const double w = v[9].real();
        if (!(std::abs(w) > 1e-12)) continue;
        const double x = v[6].real() / w, y = v[7].real() / w, z = v[8].real() / w;
        Mat3 E;
        for (int i = 0; i < 3; ++i) {
            for (int j = 0; j < 3; ++j) {
                E(i, j) = x * Q(3 * i + j, 5) + y * Q(3 * i + j, 6) + z * Q(3 * i + j, 7) +
                          Q(3 * i + j, 8);
            }
        }
        E /= E.norm();
        if (E.allFinite()) out[found++] = E;
    }
    return found;
}

}  // namespace reloc
