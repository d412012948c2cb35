#include "reloc/relative_pose.hpp"

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>

#include "reloc/confidence.hpp"
#include "reloc/constants.hpp"
#include "reloc/five_point.hpp"
#include "search.hpp"

namespace reloc {
namespace {

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

/// The decomposition of E with the most matches in front of both cameras.
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

/// Essential matrices of five matches, as search.hpp takes them.
class Model {
  public:
    using Minimal = Mat3;
    using State = Pose;
    static constexpr int kSample = 5, kChunk = reloc::kChunk, kLeaders = reloc::kLeaders;

    Model(const std::vector<Match>& matches, double limit2, std::uint64_t seed)
        : matches_(matches), limit2_(limit2), sampler_(static_cast<int>(matches.size())) {
        const int n = static_cast<int>(matches.size()), k = std::min(n, kPreviewPoints);
        int chosen[kPreviewPoints];
        even_sample(n, k, seed, chosen);
        for (int i = 0; i < k; ++i) preview_.push_back(matches[chosen[i]]);
    }

    double total() const { return static_cast<double>(matches_.size()); }
    double preview_total() const { return static_cast<double>(preview_.size()); }

    void propose(Rng* rng, Leaders<Minimal, kLeaders>* leaders) const {
        for (int s = 0; s < kChunk; ++s) {
            int idx[5];
            if (!sampler_.draw(rng, idx)) continue;
            Vec3 a[5], b[5];
            for (int k = 0; k < 5; ++k) {
                a[k] = matches_[idx[k]].a;
                b[k] = matches_[idx[k]].b;
            }
            Mat3 candidates[10];
            const int found = five_point(a, b, candidates);
            for (int k = 0; k < found; ++k) {
                double seen = 0;
                for (const Match& m : preview_) seen += sampson2(candidates[k], m) < limit2_;
                if (leaders->wants(seen)) leaders->take(candidates[k], seen);
            }
        }
    }

    Pose lift(const Mat3& E) const { return decompose(E, matches_, limit2_); }
    PoseScore score(const Pose& pose) const { return score(Mat3(skew(pose.t) * pose.R)); }
    PoseScore score(const Mat3& E) const {
        PoseScore sum{0, 0, 0};
        for (const Match& m : matches_) {
            const double e2 = sampson2(E, m);
            if (e2 >= limit2_) continue;
            ++sum.wide;
            sum.score += 1 - e2 / limit2_;
        }
        return sum;
    }
    bool optimise(bool, Pose* pose) const {
        *pose = refine(matches_, *pose, 4 * limit2_, 6);
        return true;
    }
    double patience(const PoseScore&) const { return 1; }

  private:
    const std::vector<Match>& matches_;
    double limit2_;
    Sampler sampler_;
    std::vector<Match> preview_;
};

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

PoseResult estimate_relative_pose(const ArrayRef& points_a, const ArrayRef& points_b, std::size_t n,
                                  const Camera& camera_a, const Camera& camera_b,
                                  const RelativePoseOptions& options) {
    PoseResult result = PoseResult::of(n);
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
    const Model model(matches, limit2, options.seed);
    Search<Model> search(model, options);
    if (!search.run(&result)) return result;
    Pose T = refine(matches, search.best.state, 4 * limit2, 10);
    T = refine(matches, model.lift(skew(T.t) * T.R), 4 * limit2, 10);
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
    result.cam_from_world = T;
    // Ten essential matrices come of a sample.
    result.false_alarms = 1 + log_false_alarms(total, result.inliers, 5,
                                               random_share(matches, options.threshold, focal));
    result.status = result.inliers < options.min_inliers    ? Status::kTooFewInliers
                    : result.false_alarms > kMaxFalseAlarms ? Status::kChance
                    : !determined(points_a, 2, 6, result)   ? Status::kDegenerate
                                                            : Status::kOk;
    return result;
}

}  // namespace reloc
