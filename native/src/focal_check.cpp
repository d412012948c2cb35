#include "reloc/focal_check.hpp"

#include <Eigen/Cholesky>
#include <algorithm>
#include <cmath>

#include "lens_fit.hpp"
#include "reloc/constants.hpp"
#include "reloc/focal_pose.hpp"

namespace reloc {
namespace {

constexpr float kFocalStep = 0.01f;  // focal lengths, for derivatives of a lens
constexpr int kFocalRounds = 4;      // in which points that say too much are heard less

/// Sums of a pass over the points: normal equations of pose and logarithm of the focal length, and
/// the mean squared residual per component of what the estimate weighs.
struct Sums {
    Mat6 hessian;
    Vec6 of_focal = Vec6::Zero(), gradient;
    double information = 0, score = 0, variance = 0;
    // Of the reprojection alone: squared residuals over that of the radius, information, and where
    // points were seen on the plane z = 1 behind the lens.
    std::vector<float> q, info, seen_x, seen_y;
    LensF lens;
};

/// Geman-McClure weights of the residuals; returns 0 where there is none.
float weight_of(float prior, float q) {
    const float d = 1 / (1 + q);
    return q < 1e6f ? prior * d * d : 0;
}

/// Reprojection, through the lens if there is one; n points of the view are not padding.
Sums by_reprojection(const Kernels& kernels, const Camera& camera, const PointsView& v, int n,
                     const FocalPoseF& pose, double radius) {
    enum Row { kInfo, kOnes, kE2, kA, kB, kRows };
    FloatRows rows;
    rows.allocate(kRows, v.n);
    std::copy(v.s2, v.s2 + v.n, rows.row(kInfo));
    if (!v.w) std::fill(rows.row(kOnes), rows.row(kOnes) + v.n, 1.0f);
    const float* w = v.w ? v.w : rows.row(kOnes);
    FitView view{v.x, v.y, nullptr, v.X, v.Y, v.Z, rows.row(kInfo), w, v.n};
    LensF lens{{0, 0, 0, 0, 0, 0}, 0, 0, 1, 1, 0};
    if (camera.distorted) {
        lens = camera.lens();
        std::copy(v.x, v.x + v.n, rows.row(kA));
        std::copy(v.y, v.y + v.n, rows.row(kB));
        lens_kernels(kernels).project(lens, n, rows.row(kA), rows.row(kB));
        view.a = rows.row(kA);
        view.b = rows.row(kB);
        std::fill(rows.row(kInfo), rows.row(kInfo) + n, static_cast<float>(camera.fx * camera.fy));
    }
    const float c2 = static_cast<float>(radius * radius);
    const FocalKernel kernel{lens_kernels(kernels), lens};
    LensEquations eq;
    kernel.equations(view, pose, c2, &eq);
    kernel.errors2(view, pose, rows.row(kE2));
    Sums sums;
    sums.q.resize(n);
    sums.seen_x.assign(view.a, view.a + n);
    sums.seen_y.assign(view.b, view.b + n);
    sums.info.assign(view.info, view.info + n);
    sums.lens = kernel.scaled(pose.scale);
    float meat = 0, held = 0;
    for (int k = 0; k < n; ++k) {
        const float q = rows.row(kE2)[k] * rows.row(kInfo)[k] / c2, weight = weight_of(w[k], q);
        sums.q[k] = q;
        held += weight;
        meat += weight > 0 ? weight * weight * q : 0;
    }
    const Eigen::Matrix<double, 7, 7> H = reloc::hessian(eq);
    sums.hessian = H.topLeftCorner<6, 6>();
    sums.of_focal = H.topRightCorner<6, 1>();
    sums.gradient = reloc::gradient(eq).head<6>();
    sums.information = H(6, 6);
    sums.score = eq.g[6];
    sums.variance = held > 0 ? 0.5 * c2 * meat / held : 0;
    return sums;
}

/// Distance from the rays, in units of the scene. `turn` is how a bearing moves with the logarithm
/// of the focal length.
Sums by_ray(const Kernels& kernels, const PointsView& v, int n, const PoseF& pose, double radius) {
    enum Row { kInfo, kOnes, kA, kB, kC, kRows };
    FloatRows rows;
    rows.allocate(kRows, v.n);
    std::fill(rows.row(kInfo), rows.row(kInfo) + v.n, 1.0f);
    if (!v.w) std::fill(rows.row(kOnes), rows.row(kOnes) + v.n, 1.0f);
    const float* w = v.w ? v.w : rows.row(kOnes);
    std::copy(v.x, v.x + v.n, rows.row(kA));
    std::copy(v.y, v.y + v.n, rows.row(kB));
    kernels.bearings(rows.row(kA), rows.row(kB), rows.row(kC), v.n);
    const FitView view{rows.row(kA), rows.row(kB), rows.row(kC), v.X, v.Y, v.Z, rows.row(kInfo), w,
                       v.n};
    const float c2 = static_cast<float>(radius * radius), *r = pose.r;
    NormalEquations eq;
    kernels.ray.equations(view, pose, c2, &eq);
    Sums sums;
    sums.hessian = reloc::hessian(eq);
    sums.gradient = reloc::gradient(eq);
    float meat = 0, held = 0, information = 0, score = 0, of_focal[6] = {0, 0, 0, 0, 0, 0};
    for (int k = 0; k < n; ++k) {
        const float X = v.X[k], Y = v.Y[k], Z = v.Z[k], a = view.a[k], b = view.b[k], c = view.c[k];
        const float px = r[0] * X + r[1] * Y + r[2] * Z + pose.t[0],
                    py = r[3] * X + r[4] * Y + r[5] * Z + pose.t[1],
                    pz = r[6] * X + r[7] * Y + r[8] * Z + pose.t[2];
        const float along = a * px + b * py + c * pz;
        const float ex = px - along * a, ey = py - along * b, ez = pz - along * c;
        const float q = (ex * ex + ey * ey + ez * ez) / c2;
        const float weight = pz > 0 ? weight_of(w[k], q) : 0;
        const float dx = -c * c * a, dy = -c * c * b, dz = c - c * c * c, wa = weight * along;
        held += weight;
        meat += weight > 0 ? weight * weight * q : 0;
        information += wa * along * c * c * (1 - c * c);
        score -= wa * (ex * dx + ey * dy + ez * dz);
        of_focal[0] -= wa * (py * dz - pz * dy);
        of_focal[1] -= wa * (pz * dx - px * dz);
        of_focal[2] -= wa * (px * dy - py * dx);
        of_focal[3] -= wa * dx;
        of_focal[4] -= wa * dy;
        of_focal[5] -= wa * dz;
    }
    for (int i = 0; i < 6; ++i) sums.of_focal[i] = of_focal[i];
    sums.information = information;
    sums.score = score;
    sums.variance = held > 0 ? 0.5 * c2 * meat / held : 0;
    return sums;
}

/// Where points (a, b) of the plane z = 1 are seen behind a lens, and the derivatives of that.
struct Seen {
    FloatRows at;  ///< a and b of the points, and of a step to either side along a and along b

    Seen(const Kernels& kernels, const LensF& lens, const std::vector<float>& a,
         const std::vector<float>& b) {
        constexpr float steps[5][2] = {
            {0, 0}, {kFocalStep, 0}, {-kFocalStep, 0}, {0, kFocalStep}, {0, -kFocalStep}};
        const int n = static_cast<int>(a.size());
        at.allocate(10, n);
        for (int i = 0; i < 5; ++i) {
            float *x = at.row(2 * i), *y = at.row(2 * i + 1);
            for (int k = 0; k < n; ++k) {
                x[k] = a[k] + steps[i][0];
                y[k] = b[k] + steps[i][1];
            }
            lens_kernels(kernels).project(lens, n, x, y);
        }
    }
    Eigen::Vector2d point(int k) { return {at.row(0)[k], at.row(1)[k]}; }
    Eigen::Matrix2d derivative(int k) {
        Eigen::Matrix2d out;
        for (int c = 0; c < 2; ++c)
            out.row(c) << at.row(2 + c)[k] - at.row(4 + c)[k], at.row(6 + c)[k] - at.row(8 + c)[k];
        return out / (2 * kFocalStep);
    }
};

/// What the points near a pose say of the focal length if none may say more than its share, and how
/// the pose moves with it then. Over a flat scene those that agree say nothing, and the few
/// mismatches that happen to lie near would say it all.
void bound_influence(const Kernels& kernels, const PointsView& v, const FocalPoseF& pose,
                     const Sums& sums, FocalCheck* check) {
    using Row = Eigen::Matrix<double, 2, 6>;
    struct Point {
        Row by_pose;
        Eigen::Vector2d by_focal, error;
        double weight, information, score, heard;
    };
    std::vector<Point> points;
    std::vector<int> which;
    std::vector<float> along, across;
    const float *r = pose.r, *t = pose.t;
    for (int k = 0; k < static_cast<int>(sums.q.size()); ++k) {
        const float weight = weight_of(v.w ? v.w[k] : 1.0f, sums.q[k]);
        if (!(sums.q[k] < 1 && weight > 0)) continue;
        const double x = r[0] * v.X[k] + r[1] * v.Y[k] + r[2] * v.Z[k] + t[0],
                     y = r[3] * v.X[k] + r[4] * v.Y[k] + r[5] * v.Z[k] + t[1],
                     z = r[6] * v.X[k] + r[7] * v.Y[k] + r[8] * v.Z[k] + t[2];
        if (!(z > 0)) continue;
        const double a = x / z, b = y / z;
        Point p;
        p.by_pose << -a * b, 1 + a * a, -b, 1 / z, 0, -a / z, -1 - b * b, a * b, a, 0, 1 / z,
            -b / z;
        p.weight = static_cast<double>(weight) * sums.info[k];
        p.heard = 1;
        points.push_back(p);
        which.push_back(k);
        along.push_back(static_cast<float>(a));
        across.push_back(static_cast<float>(b));
    }
    Seen seen(kernels, sums.lens, along, across);
    for (int i = 0; i < static_cast<int>(points.size()); ++i) {
        Point& p = points[i];
        p.by_pose = (seen.derivative(i) * p.by_pose).eval();
        p.by_focal = seen.point(i);
        p.error = p.by_focal - Eigen::Vector2d(sums.seen_x[which[i]], sums.seen_y[which[i]]);
    }
    const double few = std::clamp(points.size() * kFocalShare, kFocalLeastSay, kFocalMostSay);
    double total = 0, sum = 0, score = 0;
    for (int round = 0; round < kFocalRounds; ++round) {
        Mat6 H = Mat6::Zero();
        Vec6 h = Vec6::Zero();
        for (const Point& p : points) {
            const Row weighted = (p.heard * p.weight) * p.by_pose;
            H.noalias() += p.by_pose.transpose() * weighted;
            h.noalias() += weighted.transpose() * p.by_focal;
        }
        const Eigen::LLT<Mat6> llt(H);
        if (llt.info() != Eigen::Success) return;
        const Vec6 per_focal = -llt.solve(h);
        if (!per_focal.allFinite()) return;
        check->per_focal = per_focal;
        sum = score = 0;
        double most = 0;
        for (Point& p : points) {
            const Eigen::Vector2d moves = p.by_focal + p.by_pose * per_focal;
            p.information = p.weight * moves.squaredNorm();
            p.score = p.weight * moves.dot(p.error);
            sum += p.information;
            score += p.score;
            most = std::max(most, p.information);
        }
        if (round == 0) total = sum;
        if (few * most <= sum) break;
        for (int k = 0; k < kFocalBoundSteps && few * most > 1.001 * sum; ++k) {
            most = sum / few;
            sum = 0;
            for (const Point& p : points) sum += std::min(p.information, most);
        }
        score = 0;
        for (Point& p : points) {
            p.heard = p.information > most ? most / p.information : 1;
            score += p.heard * p.score;
        }
    }
    check->share = total > 0 ? std::min(sum / total, 1.0) : 0;
    // Beyond a factor of e it is rounding that speaks.
    const bool told = sums.variance < sum;
    check->std = told ? std::sqrt(sums.variance / sum) : FocalCheck().std;
    check->shift = told ? -score / sum : 0;
}

/// Moves the result along the focal length and widens its covariance by what is not known of it.
void account_for_focal(const FocalCheck& check, double std2, double prior, const Vec3& centre,
                       PoseResult* result) {
    const double beyond =
        std::max(0.0, check.shift * check.shift - kFocalNoise * kFocalNoise * std2);
    if (beyond > 0) {
        const double step = check.shift * beyond / (beyond + std2);
        if (!(std::abs(step) < kFocalLargest)) {
            // No step of first order goes so far: nothing is known of the focal length.
            result->covariance +=
                kFocalLargest * kFocalLargest * check.per_focal * check.per_focal.transpose();
            return;
        }
        const Pose moved =
            centred(result->cam_from_world, centre).perturbed(step * check.per_focal);
        if (!moved.finite()) return;
        result->cam_from_world = uncentred(moved, centre);
        result->cam_from_world.normalize();
        result->focal_scale = std::exp(step);
    }
    const double prior2 = std::max(prior * prior, beyond);
    if (!(prior2 > 0)) return;
    const double variance = std::isfinite(std2) ? prior2 * std2 / (prior2 + std2) : prior2;
    result->covariance += variance * check.per_focal * check.per_focal.transpose();
    if (beyond > 0 || prior >= kFocalGuess)
        result->focal_std = result->focal_scale * std::sqrt(variance);
}

/// The pose with the focal length free is another and a better answer.
bool to_be_taken(const PoseResult& fixed, const PoseResult& free, double prior) {
    if (free.status != Status::kOk) return false;
    const double change = std::abs(std::log(free.focal_scale)),
                 std = free.focal_std / free.focal_scale;
    if (!(change > std::max(kFocalTaken, kFocalPriorSigmas * prior))) return false;
    if (!(change > kFocalSigmas * std)) return false;
    if (fixed.status == Status::kOk)
        return free.false_alarms < kFocalKept * fixed.false_alarms || free.score > fixed.score;
    return free.score > kFocalSureScore && free.false_alarms < fixed.false_alarms - kFocalGain;
}

}  // namespace

FocalCheck check_focal(const Kernels& kernels, const Problem& problem, const Camera& camera,
                       const FitResult& fit, bool ray, double threshold) {
    FocalCheck check;
    const bool few = fit.inliers < kPoorSupport * problem.n;
    const PointsView v = few ? problem.view() : problem.sample();
    const int n = few ? problem.n : problem.sample_n;
    const double pixel = std::max(fit.depth, 1e-12) / problem.focal;  // scene units
    const FocalPose at{fit.pose, fit.log_focal};
    const FocalPoseF pose = at.to_float();
    const double radius =
        std::max(threshold, 3 * pixel_noise(kernels, problem, fit, at.projection(), ray));
    const Sums sums = ray && !camera.distorted
                          ? by_ray(kernels, v, n, pose, radius * pixel)
                          : by_reprojection(kernels, camera, v, n, pose, radius);
    const Eigen::LLT<Mat6> llt(sums.hessian);
    if (llt.info() != Eigen::Success) return check;
    const Vec6 per_focal = -llt.solve(sums.of_focal);
    const double information = sums.information + sums.of_focal.dot(per_focal);
    if (!per_focal.allFinite()) return check;
    check.per_focal = per_focal;
    if (!(information > 1e-9 * sums.information)) return check;
    check.shift = -(sums.score + per_focal.dot(sums.gradient)) / information;
    check.std = std::sqrt(sums.variance / information);
    if (!sums.q.empty()) bound_influence(kernels, v, pose, sums, &check);
    return check;
}

bool sought_with_focal(const Camera& camera, const AbsolutePoseOptions& options) {
    return options.verify_focal && !camera.fisheye && camera.focal_sigma >= kFocalGuess;
}

void conclude(const Kernels& kernels, const Correspondences& in, const Problem& problem,
              const Camera& camera, const AbsolutePoseOptions& options, const FitResult* fit,
              Residual residual, PoseResult* result) {
    const bool ray = residual == Residual::kRay;
    if (fit) {
        const Demands demands{
            options.min_inliers, options.min_score, 3,
            random_share(pixel_noise(kernels, problem, *fit, fit->pose.to_float(), ray),
                         problem.image_area)};
        finish(*fit, problem.centre, problem.source, problem.n, demands, result);
        if (result->status == Status::kOk && !determined(in.points2d, 2, 4, *result))
            result->status = Status::kDegenerate;
        result->covariance *= options.redundancy;
    } else {
        result->status = Status::kNoHypothesis;
    }
    const double prior = std::max(camera.focal_sigma, options.focal_floor);
    if (!options.verify_focal) return;
    FocalCheck check;
    if (fit && fit->ok) {
        check = check_focal(kernels, problem, camera, *fit, ray, options.threshold);
        result->focal_shift = check.shift;
        result->focal_shift_std = check.std;
    }
    const bool ok = result->status == Status::kOk, free = !camera.fisheye;
    const double change = std::abs(check.shift);
    const bool contradicted = change > kFocalDoubtSigmas * check.std &&
                              change > std::max(kFocalShift, kFocalPriorSigmas * prior);
    if (free && problem.n >= kFocalLeastPoints &&
        (contradicted || !ok || result->score < kFocalDoubt)) {
        FocalSearch search;
        search.max_samples = kFocalSamples;
        AbsolutePoseOptions of_focal = options;
        of_focal.residual = residual;
        // With so much freedom the radius for noisy points would take in structured outliers.
        if (ray) of_focal.search_radius = 0;
        of_focal.threads = 1;
        PoseResult other = estimate_focal_pose(kernels, in, problem, camera, of_focal, search);
        if (to_be_taken(*result, other, prior)) {
            other.iterations += result->iterations;
            other.local_optimisations += result->local_optimisations;
            other.focal_shift = result->focal_shift;
            other.focal_shift_std = result->focal_shift_std;
            *result = std::move(other);
            return;
        }
        if (ok && change > std::max(kFocalTaken, kFocalPriorSigmas * prior) &&
            change > kFocalSureSigmas * check.std * std::sqrt(options.redundancy) &&
            change < kFocalLargest) {
            result->status = Status::kWrongFocal;
            result->focal_scale = std::exp(check.shift);
            return;
        }
        if (!ok) {
            // Worth a word where it is more than chance finds.
            if (other.false_alarms < std::min(result->false_alarms, 0.0) - kFocalGain &&
                std::abs(std::log(other.focal_scale)) > kFocalTaken)
                result->focal_scale = other.focal_scale;
            return;
        }
    }
    if (!ok) return;
    const double trust = options.redundancy * result->design_effect;
    // Where the points know less than came with the image, or agree with it, they do not choose the
    // focal length.
    const double std = check.std * std::sqrt(trust);
    const bool tell = camera.focal_sigma < kFocalGuess ||
                      (std < kFocalTold * camera.focal_sigma && change > kFocalAgrees * std);
    if (camera.focal_sigma > options.focal_floor && free && tell) {
        FocalSearch search;
        search.sigma = camera.focal_sigma;
        search.trust = trust;
        search.start = &fit->pose;
        AbsolutePoseOptions of_focal = options;
        of_focal.residual = residual;
        PoseResult joint = estimate_focal_pose(kernels, in, problem, camera, of_focal, search);
        if (joint.status == Status::kOk) {
            joint.iterations = result->iterations;
            joint.local_optimisations = result->local_optimisations;
            joint.focal_shift = result->focal_shift;
            joint.focal_shift_std = result->focal_shift_std;
            *result = std::move(joint);
            return;
        }
    }
    if (free)
        account_for_focal(check, trust * check.std * check.std, prior, problem.centre, result);
}

}  // namespace reloc
