#include "reloc/relative_pose.hpp"

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <complex>

#include "reloc/confidence.hpp"
#include "reloc/constants.hpp"
#include "reloc/rng.hpp"

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

struct Match {
    Vec3 a, b;    // unit bearings
    Vec2 pa, pb;  // plane coordinates
};

/// Squared Sampson distance on the plane z = 1.
double sampson2(const Mat3& E, const Match& m) {
    const Vec3 x(m.pa.x(), m.pa.y(), 1), y(m.pb.x(), m.pb.y(), 1);
    const Vec3 Ex = E * x, Ey = E.transpose() * y;
    const double r = y.dot(Ex), d = Ex.head<2>().squaredNorm() + Ey.head<2>().squaredNorm();
    return d > 0 ? r * r / d : 1e30;
}

Mat3 skew(const Vec3& v) {
    Mat3 S;
    S << 0, -v.z(), v.y(), v.z(), 0, -v.x(), -v.y(), v.x(), 0;
    return S;
}

/// Whether the rays of a match meet in front of both cameras.
bool in_front(const Pose& T, const Match& m) {
    const Vec3 Ra = T.R * m.a;
    const double c = Ra.dot(m.b), ta = Ra.dot(T.t), tb = m.b.dot(T.t);
    // Depths of the mutually nearest points, up to the positive factor 1 / (1 - c^2).
    return c * tb - ta > 0 && tb - c * ta > 0;
}

int count(const std::vector<Match>& matches, const Mat3& E, double limit2, double* score) {
    int n = 0;
    double s = 0;
    for (const Match& m : matches) {
        const double e2 = sampson2(E, m);
        if (e2 >= limit2) continue;
        ++n;
        s += 1 - e2 / limit2;
    }
    *score = s;
    return n;
}

/// The decomposition of E with the most of `probe` in front of both cameras.
Pose decompose(const Mat3& E, const std::vector<Match>& matches, double limit2) {
    const Eigen::JacobiSVD<Mat3> svd(E, Eigen::ComputeFullU | Eigen::ComputeFullV);
    Mat3 U = svd.matrixU(), V = svd.matrixV();
    if (U.determinant() < 0) U.col(2) *= -1;
    if (V.determinant() < 0) V.col(2) *= -1;
    Mat3 W;
    W << 0, -1, 0, 1, 0, 0, 0, 0, 1;
    Pose best;
    int best_count = -1;
    for (int k = 0; k < 4; ++k) {
        Pose T;
        T.R = k < 2 ? Mat3(U * W * V.transpose()) : Mat3(U * W.transpose() * V.transpose());
        T.t = (k % 2 ? -1.0 : 1.0) * U.col(2);
        int n = 0;
        for (const Match& m : matches) n += sampson2(E, m) < limit2 && in_front(T, m);
        if (n > best_count) {
            best_count = n;
            best = T;
        }
    }
    return best;
}

/// Gauss-Newton on the Geman-McClure weighted Sampson residual over rotation (3) and direction (2).
Pose refine(const std::vector<Match>& matches, const Pose& start, double scale2, int steps) {
    Pose T = start;
    for (int it = 0; it < steps; ++it) {
        const Vec3 t = T.t.normalized();
        const Vec3 u = t.unitOrthogonal(), v = t.cross(u);
        const Mat3 E = skew(t) * T.R;
        Mat3 dE[5];
        for (int k = 0; k < 3; ++k) dE[k] = skew(t) * skew(Vec3::Unit(k)) * T.R;
        dE[3] = skew(u) * T.R;
        dE[4] = skew(v) * T.R;
        Eigen::Matrix<double, 5, 5> H = Eigen::Matrix<double, 5, 5>::Zero();
        Eigen::Matrix<double, 5, 1> g = Eigen::Matrix<double, 5, 1>::Zero();
        for (const Match& m : matches) {
            const Vec3 x(m.pa.x(), m.pa.y(), 1), y(m.pb.x(), m.pb.y(), 1);
            const Vec3 Ex = E * x, Ey = E.transpose() * y;
            const double r = y.dot(Ex),
                         d2 = Ex.head<2>().squaredNorm() + Ey.head<2>().squaredNorm();
            if (!(d2 > 1e-20)) continue;
            const double q = r * r / d2 / scale2;
            if (q > 25) continue;
            const double w = 1 / ((1 + q) * (1 + q)) / d2;
            Eigen::Matrix<double, 5, 1> J;
            for (int k = 0; k < 5; ++k) {
                // The denominator changes with E too; without it the minimum would be that of
                // another cost.
                const Vec3 dEx = dE[k] * x, dEy = dE[k].transpose() * y;
                J[k] = y.dot(dEx) -
                       r / d2 * (Ex.head<2>().dot(dEx.head<2>()) + Ey.head<2>().dot(dEy.head<2>()));
            }
            H += w * J * J.transpose();
            g += w * r * J;
        }
        H.diagonal() *= 1 + 1e-9;
        const Eigen::LDLT<Eigen::Matrix<double, 5, 5>> ldlt(H);
        const Eigen::Matrix<double, 5, 1> step = ldlt.solve(-g);
        if (!step.allFinite()) return start;
        T.R = exp_so3(step.head<3>()) * T.R;
        T.t = (t + step[3] * u + step[4] * v).normalized();
        if (step.squaredNorm() < 1e-20) break;
    }
    T.normalize();
    return T;
}

/// Share of random matches within the threshold: a band along a line across the second image, over
/// the bounds of its pixels.
double random_share(const std::vector<Match>& matches, double threshold, double focal) {
    Vec2 low = matches[0].pb, high = low;
    for (const Match& m : matches) {
        low = low.cwiseMin(m.pb);
        high = high.cwiseMax(m.pb);
    }
    const Vec2 size = (focal * (high - low)).cwiseMax(1.0);
    // Sampson's distance shares the error between both images.
    return std::min(1.0, 2 * std::sqrt(2.0) * threshold * size.norm() / (size.x() * size.y()));
}

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

RelativePoseResult estimate_relative_pose(const ArrayRef& points_a, const ArrayRef& points_b,
                                          std::size_t n, const Camera& camera_a,
                                          const Camera& camera_b,
                                          const RelativePoseOptions& options) {
    RelativePoseResult result;
    result.inlier.assign(n, 0);
    std::vector<Match> matches;
    std::vector<int> source;
    for (std::size_t i = 0; i < n; ++i) {
        Match m;
        if (!camera_a.from_pixel({points_a[2 * i], points_a[2 * i + 1]}, &m.pa) ||
            !camera_b.from_pixel({points_b[2 * i], points_b[2 * i + 1]}, &m.pb) ||
            !(m.pa.squaredNorm() < 1e8) || !(m.pb.squaredNorm() < 1e8)) {
            continue;
        }
        m.a = Vec3(m.pa.x(), m.pa.y(), 1).normalized();
        m.b = Vec3(m.pb.x(), m.pb.y(), 1).normalized();
        matches.push_back(m);
        source.push_back(static_cast<int>(i));
    }
    const int total = static_cast<int>(matches.size());
    if (total < 6) return result;
    const double focal = 0.5 * (camera_a.mean_focal() + camera_b.mean_focal());
    const double limit2 = options.threshold * options.threshold / (focal * focal);
    Rng rng(options.seed, 1);
    Mat3 best_E = Mat3::Zero();
    double best = 0, best_minimal = 0;
    int best_count = 0;
    for (int it = 0; it < options.max_iterations; ++it) {
        const double share = static_cast<double>(best_count) / total, good = std::pow(share, 5);
        const double needed = good > 1 - 1e-9 ? 1
                              : good < 1e-12 ? 1e12
                                             : std::log(1 - options.confidence) / std::log1p(-good);
        if (it >= options.min_iterations && it >= needed) break;
        ++result.iterations;
        int idx[5];
        bool distinct = true;
        Vec3 a[5], b[5];
        for (int k = 0; k < 5; ++k) {
            idx[k] = static_cast<int>(rng.below(static_cast<std::uint32_t>(total)));
            for (int j = 0; j < k; ++j) distinct &= idx[j] != idx[k];
            a[k] = matches[idx[k]].a;
            b[k] = matches[idx[k]].b;
        }
        if (!distinct) continue;
        Mat3 candidates[10];
        const int found = five_point(a, b, candidates);
        for (int k = 0; k < found; ++k) {
            double score;
            int inliers = count(matches, candidates[k], limit2, &score);
            if (!(score > best_minimal)) continue;
            best_minimal = score;
            Mat3 E = candidates[k];
            const Pose T = refine(matches, decompose(E, matches, limit2), 4 * limit2, 6);
            const Mat3 improved = skew(T.t) * T.R;
            double after;
            const int after_inliers = count(matches, improved, limit2, &after);
            if (after > score) {
                score = after;
                inliers = after_inliers;
                E = improved;
            }
            if (score > best) {
                best = score;
                best_count = inliers;
                best_E = E;
            }
        }
    }
    if (!(best > 0)) {
        result.status = Status::kNoHypothesis;
        return result;
    }
    Pose T = refine(matches, decompose(best_E, matches, limit2), 4 * limit2, 10);
    T = refine(matches, decompose(skew(T.t) * T.R, matches, limit2), 4 * limit2, 10);
    if (!T.finite()) {
        result.status = Status::kDegenerate;
        return result;
    }
    const Mat3 E = skew(T.t) * T.R;
    for (int i = 0; i < total; ++i) {
        if (!(sampson2(E, matches[i]) < limit2) || !in_front(T, matches[i])) continue;
        result.inlier[source[i]] = 1;
        ++result.inliers;
    }
    result.b_from_a = T;
    // Ten essential matrices come of a sample.
    const double alarms = 1 + log_false_alarms(total, result.inliers, 5,
                                               random_share(matches, options.threshold, focal));
    result.status = result.inliers < options.min_inliers ? Status::kTooFewInliers
                    : alarms > kMaxFalseAlarms           ? Status::kChance
                                                         : Status::kOk;
    return result;
}

}  // namespace reloc
