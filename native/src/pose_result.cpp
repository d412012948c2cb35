#include "reloc/pose_result.hpp"

#include <algorithm>
#include <cmath>

#include "reloc/confidence.hpp"
#include "reloc/constants.hpp"
#include "reloc/refine.hpp"

namespace reloc {

const char* describe(Status status) {
    switch (status) {
        case Status::kOk:
            return "";
        case Status::kTooFewPoints:
            return "fewer than four usable correspondences";
        case Status::kNoHypothesis:
            return "no minimal sample gave a pose with support";
        case Status::kTooFewInliers:
            return "too few inliers to be told from chance";
        case Status::kChance:
            return "no more inliers than random correspondences have by chance";
        case Status::kDegenerate:
            return "the inliers do not determine the pose";
        case Status::kLowScore:
            return "the score is below the minimum: the pose is hardly ever right";
        case Status::kWrongFocal:
            return "the inliers contradict the camera's focal length";
    }
    return "";
}

PoseResult PoseResult::of(std::size_t n) {
    PoseResult result;
    result.covariance.setConstant(std::numeric_limits<double>::infinity());
    result.inlier.assign(n, 0);
    return result;
}

void finish(const FitResult& fit, const Vec3& centre, const std::vector<int>& source, int usable,
            const Demands& demands, PoseResult* result) {
    if (!fit.ok) {
        result->status = Status::kDegenerate;
        return;
    }
    result->cam_from_world = uncentred(fit.pose, centre);
    result->covariance = fit.covariance;
    if (source.empty()) {
        std::copy(fit.inlier.begin(), fit.inlier.end(), result->inlier.begin());
    } else {
        for (int i = 0; i < usable; ++i) result->inlier[source[i]] = fit.inlier[i];
    }
    result->inliers = fit.inliers;
    result->sigma = fit.sigma;
    result->effective_points = fit.effective_points;
    result->design_effect = fit.design_effect;
    result->false_alarms = log_false_alarms(usable, fit.inliers, demands.sample, demands.share);
    result->score =
        success_score(static_cast<double>(fit.inliers) / usable, fit.covariance, fit.depth);
    result->status = !result->cam_from_world.finite()         ? Status::kDegenerate
                     : fit.inliers < demands.min_inliers      ? Status::kTooFewInliers
                     : result->false_alarms > kMaxFalseAlarms ? Status::kChance
                     : result->score < demands.min_score      ? Status::kLowScore
                                                              : Status::kOk;
}

double pixel_noise(const Kernels& kernels, const Problem& problem, const FitResult& fit,
                   const PoseF& projection, bool ray) {
    if (problem.variance.empty() || fit.inlier.empty())
        return ray ? fit.sigma * problem.focal / std::max(fit.depth, 1e-12) : fit.sigma;
    // With given variances sigma is a factor of what they say.
    const double sum = squared_pixels(kernels, problem, projection, fit.inlier.data());
    return std::sqrt(0.5 * sum / std::max(fit.inliers, 1));
}

double squared_pixels(const Kernels& kernels, const Problem& problem, const PoseF& projection,
                      const unsigned char* inlier) {
    FloatRows errors;
    errors.allocate(1, problem.n);
    kernels.errors2(problem.view(), projection, errors.row(0));
    double sum = 0;
    for (int i = 0; i < problem.n; ++i) sum += inlier[i] ? errors.row(0)[i] : 0;
    return sum;
}

double random_share(double pixel_noise, double image_area) {
    return std::min(1.0, M_PI * kInlier2 * pixel_noise * pixel_noise / image_area);
}

bool determined(const ArrayRef& points, int components, std::size_t enough,
                const PoseResult& result) {
    return determined(enough, result, [&](std::size_t i, std::size_t j) {
        bool same = true;
        for (int c = 0; c < components; ++c)
            same &= points[components * i + c] == points[components * j + c];
        return same;
    });
}

}  // namespace reloc
