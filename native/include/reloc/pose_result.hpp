// What the pose solvers return.
#pragma once

#include <vector>

#include "reloc/pose.hpp"
#include "reloc/problem.hpp"

namespace reloc {

enum class Status {
    kOk = 0,
    kTooFewPoints,   ///< fewer than four usable correspondences
    kNoHypothesis,   ///< no sample gave a pose with support
    kTooFewInliers,  ///< the best pose has less support than asked for
    kChance,         ///< random correspondences agree as well with some pose
    kDegenerate,     ///< the support does not determine the pose
    kLowScore,       ///< the pose is hardly ever right with a score this low
    kWrongFocal,     ///< the support contradicts the focal length, and gives no sure other one
};

const char* describe(Status status);

struct PoseResult {
    Status status = Status::kTooFewPoints;
    Pose cam_from_world;  ///< of a relative pose: b_from_a
    Mat6 covariance;      ///< of world_from_cam, right tangent (rotation, translation)
    std::vector<unsigned char> inlier;  ///< per input correspondence
    int inliers = 0;
    int iterations = 0;  ///< minimal samples drawn
    int local_optimisations = 0;
    double score = 0;  ///< 0..1, chance of success
    double sigma = 0;
    double effective_points = 0;
    double design_effect = 1;
    double false_alarms = 0;  ///< decimal logarithm; see log_false_alarms
    /// Focal length over that of the camera and its standard deviation (0: not estimated). Of a
    /// result that is no success: the one that would fit better, if it is not 1.
    double focal_scale = 1, focal_std = 0;
    /// By how much the logarithm of the focal length would have to change for the inliers, and the
    /// standard deviation of that; infinite where it was not looked at. See focal_check.hpp.
    double focal_shift = 0, focal_shift_std = std::numeric_limits<double>::infinity();

    /// No answer yet about n correspondences.
    static PoseResult of(std::size_t n);
};

struct FitResult;

/// What a fit must have to be a success.
struct Demands {
    int min_inliers;
    double min_score;
    int sample;    ///< correspondences of a minimal sample, for the count of false alarms
    double share;  ///< of random correspondences that would pass for inliers
};

/// Copies a fit into the result and decides whether it is a success.
void finish(const FitResult& fit, const Vec3& centre, const std::vector<int>& source, int usable,
            const Demands& demands, PoseResult* result);

/// Standard deviation of the inliers' noise, per component, in pixels.
/// `projection` is the fit's pose, scaled by its focal length where that was fitted.
double pixel_noise(const Kernels& kernels, const Problem& problem, const FitResult& fit,
                   const PoseF& projection, bool ray);

/// Sum of the squared reprojection errors of the flagged points.
double squared_pixels(const Kernels& kernels, const Problem& problem, const PoseF& projection,
                      const unsigned char* inlier);

/// Share of the image that is within the inlier radius of a point at that noise.
double random_share(double pixel_noise, double image_area);

/// Whether at least `enough` of the inliers differ: copies of a minimal sample fit any of its
/// solutions. `same(i, j)` compares correspondences.
template <class Same>
bool determined(std::size_t enough, const PoseResult& result, Same same) {
    std::vector<std::size_t> seen;
    for (std::size_t i = 0; i < result.inlier.size() && seen.size() < enough; ++i) {
        if (!result.inlier[i]) continue;
        bool known = false;
        for (std::size_t k = 0; k < seen.size() && !known; ++k) known = same(seen[k], i);
        if (!known) seen.push_back(i);
    }
    return seen.size() >= enough;
}

/// The same by their points, of `components` each.
bool determined(const ArrayRef& points, int components, std::size_t enough,
                const PoseResult& result);

}  // namespace reloc
