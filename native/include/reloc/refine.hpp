// Robust non-linear least squares on a pose: the local optimisation of the search and the final
// fit.
#pragma once

#include <vector>

#include "reloc/noise.hpp"
#include "reloc/problem.hpp"

namespace reloc {

enum class Residual {
    kReprojection,  ///< pixels between projection and observation: noise in the image
    kRay,           ///< distance of the scene point from the viewing ray: noise in the scene point
    kAuto,          ///< by the evidence: see resolve_options, then choose_residual
};

/// Gauss-Newton on the Tukey-weighted reprojection error within `radius` pixels; `pose` in the
/// problem's centred frame. Returns the number of steps, 0 if the first system was singular.
int optimise_locally(const Kernels& kernels, const PointsView& points, double radius, int steps,
                     Pose* pose);

/// Points near a pose in the layout of the fit kernels.
class FitSet : public CellLayout {
  public:
    /// Takes the first `n` points of `points` that lie within `radius` pixels at `pose`.
    void build(const Kernels& kernels, const PointsView& points, int n, Residual residual,
               const PoseF& pose, double radius, int columns, int rows);

    /// Replaces observations on the plane z = 1 by what the lens makes of them.
    void through(const Kernels& kernels, const LensF& lens);

    FitView view() const { return slice(0, slots()); }
    FitView cell(int c) const { return slice(cell_begin(c), cell_end(c)); }
    float* info() { return rows_.row(kInfo); }
    const float* info() const { return rows_.row(kInfo); }
    const float* prior() const { return rows_.row(kW); }
    /// Squared pixels per unit of the image plane.
    const float* scale2() const { return rows_.row(kScale); }

  private:
    enum Row { kA, kB, kC, kX3, kY3, kZ3, kInfo, kW, kScale, kRows };
    FitView slice(int from, int to) const;
    FloatRows rows_;
};

struct FitOptions {
    Residual residual = Residual::kReprojection;
    double coarse_scale = 10;   ///< pixels; Geman-McClure scale of the first stage
    double select_radius = 50;  ///< pixels; points further off take no part
    double support = 1;         ///< share of points that the search found near the pose
    double pixel_noise = 0;     ///< pixels; added to given variances
    double level_scale = 1;     ///< of the first estimate of the noise variance, and of its bound
    bool local_noise = true;    ///< estimate the noise level per image cell
    /// The reprojection residual of the last stage is by its exact projection; null: by one scale.
    const Camera* lens = nullptr;
};

struct FitResult {
    bool ok = false;
    Pose pose;                    ///< centred frame
    Mat6 covariance;              ///< camera-frame tangent
    double sigma = 0;             ///< typical noise: pixels (reprojection) or scene units (ray)
    double effective_points = 0;  ///< independent observations after the correlation correction
    double design_effect = 1;     ///< variance inflation by correlation between neighbours
    std::vector<unsigned char> inlier;  ///< per problem point
    int inliers = 0;
    double depth = 0;                         ///< mean depth of the inliers
    double log_focal = 0, log_focal_std = 0;  ///< relative to the nominal one, where it was fitted
};

/// Decides where the noise sits: in the image (equal residuals in pixels at every depth) or in the
/// scene points (equal in scene units), by the likelihood of the residuals of points within
/// `radius` pixels of `pose`, which must speak clearly for the scene points.
Residual choose_residual(const Kernels& kernels, const Problem& problem, const Pose& pose,
                         double radius);

/// Known relative information of every slot of a set that is not yet seen through a lens, for the
/// residual (and lens) of the options; returns the least credible noise variance in its unit.
double base_information(const FitSet& set, const Problem& problem, const Pose& pose,
                        const FitOptions& options, float* base);

/// Robust fit: Geman-McClure at a fixed pixel scale on a sample of points, then on all points with
/// the weights of a NoiseField.
FitResult fit_pose(const Kernels& kernels, const Problem& problem, const Pose& start,
                   const FitOptions& options);

}  // namespace reloc
