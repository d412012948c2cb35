// Contract of the vectorised inner loops. Plain data only: this header is compiled with
// wide-instruction flags, so nothing in it may instantiate code that other translation units share.
#pragma once

#include <cstdint>

namespace reloc {

/// Arrays are 64-byte aligned and padded to a multiple of kLanePad entries with points that never
/// count.
constexpr int kLanePad = 16;

/// Correspondences as structure of arrays.
///
/// x, y: undistorted image coordinates on the plane z = 1. X, Y, Z: scene point minus the problem's
/// centre. s2: squared local scale, pixels per unit of (x, y). w: prior weight (mean 1) or null for
/// all ones.
struct PointsView {
    const float *x, *y, *X, *Y, *Z, *s2, *w;
    int n;  ///< padded count
};

/// cam_from_world in float: row-major rotation and translation (of centred points).
struct PoseF {
    float r[9], t[3];
};

/// Weighted evidence for a pose at a narrow and a wide radius.
struct PoseScore {
    double narrow, wide;  ///< weight of points within each radius
    double score;         ///< sum over both radii of max(0, 1 - e^2 / radius^2)
};

/// Points of the final fit. (a, b, c): unit bearing for the ray residual; (a, b) = observed (x, y)
/// on the plane z = 1 for reprojection. info = 1 / sigma^2 in the unit of the residual (scene
/// units; plane units).
struct FitView {
    const float *a, *b, *c, *X, *Y, *Z, *info, *w;
    int n;  ///< padded count
};

/// Camera-frame / scene point pairs for RGB-D. info as in FitView.
struct PairsView {
    const float *Px, *Py, *Pz, *X, *Y, *Z, *info, *w;
    int n;
};

/// Upper triangle of J^T W J (row by row), J^T W r, robust cost and the summed weight.
struct NormalEquations {
    double h[21], g[6], cost, weight;
};

/// A lens in units of its mean focal length: distortion of the plane z = 1 (see camera.hpp), then a
/// scale per axis. `kind`: 0 none, 1 radial and tangential, 2 fisheye.
struct LensF {
    float k[6], p1, p2, sx, sy;
    int kind;
};

/// NormalEquations of the pose and of the logarithm of the focal length: seven parameters, 28
/// entries.
struct LensEquations {
    double h[28], g[7], cost, weight;
};

/// Reprojection through a lens: (a, b) of the points are distorted coordinates relative to the
/// principal point, in mean focal lengths. The projection and its derivatives are exact.
struct LensKernels {
    void (*equations)(const FitView&, const PoseF&, const LensF&, float c2, LensEquations*);
    void (*errors2)(const FitView&, const PoseF&, const LensF&, float* out);
    /// Coordinates on the plane z = 1 through the lens, in place.
    void (*project)(const LensF&, int n, float* x, float* y);
};

/// Minimal problems in lanes: kP3PBatch samples of three bearings and three points,
/// component-major.
constexpr int kP3PBatch = 8;
struct P3PBatch {
    double bx[3][kP3PBatch], by[3][kP3PBatch], bz[3][kP3PBatch];  ///< unit bearings
    double X[3][kP3PBatch], Y[3][kP3PBatch], Z[3][kP3PBatch];
    double r[4][9][kP3PBatch], t[4][3][kP3PBatch];  ///< out: cam_from_world of up to four solutions
    double valid[4][kP3PBatch];                     ///< out: nonzero where the solution exists
};

/// Squared sigmas from which points are counted as mostly outliers.
constexpr float kRingStart = 9.0f;

/// Sums over points of w p, of w t and w t e2 base with t the weight in the equations (p of
/// Gaussian inliers), and of the pieces of the estimator's variance (see covariance.hpp).
struct PosteriorSums {
    double weight, held, spread, meat, curvature;
    double near, ring;  ///< prior weight within the cut, and of that beyond kRingStart
};

/// Cells of an image region; see assign_cells.
struct CellGrid {
    float x0, y0, sx, sy;  ///< cell coordinates are (x - x0) sx, (y - y0) sy
    float limit;           ///< of e2
    int columns, rows;
};

/// One residual of the final fit. `equations` are Geman-McClure weighted, with c2 in squared
/// sigmas; `errors2` gives squared residuals (infinity behind the
/// camera).
struct FitKernels {
    void (*equations)(const FitView&, const PoseF&, float c2, NormalEquations*);
    void (*errors2)(const FitView&, const PoseF&, float* out);
};

struct Kernels {
    const char* name;
    double (*preview)(const PointsView&, const PoseF&, float radius2);
    PoseScore (*score)(const PointsView&, const PoseF&, float narrow2, float wide2);
    /// sum of w * sigmoid(beta * (radius - e)), e in pixels clamped to max_error (behind the
    /// camera: max_error).
    double (*soft_inliers)(const PointsView&, const PoseF&, float radius, float beta,
                           float max_error);
    /// Squared reprojection error in pixels^2; infinity behind the camera.
    void (*errors2)(const PointsView&, const PoseF&, float* out);
    /// Reprojection normal equations with Tukey weights (1 - e^2 / radius^2)^2; cost 1 - (1 - e^2 /
    /// radius^2)^3.
    void (*search_equations)(const PointsView&, const PoseF&, float radius2, NormalEquations*);
    FitKernels ray, reprojection;
    /// Weighted mean square pieces of a noise estimate: sums of w d^2 and w d^2 e2 info, d = 1 / (1
    /// + e2 info inv).
    void (*noise_sums)(const float* e2, const float* info, const float* w, int n, float inv,
                       double* weight, double* spread);
    /// Posterior p = g / (g + kappa), q = e2 base inv_level, of being an inlier with a Gaussian
    /// residual, g = exp(-q / 2), or with `tails` one of Student's t with two degrees of freedom in
    /// the plane, g = (1 + q / 2)^-2. info = t base inv_level with t = p, or 2 p / (1 + q / 2); 0
    /// where q exceeds `cut`.
    void (*posterior)(const float* e2, const float* base, const float* w, int n, float inv_level,
                      float kappa, float cut, int dof, bool tails, float* info, PosteriorSums*);
    void (*p3p)(P3PBatch*);
    double (*pair_preview)(const PairsView&, const PoseF&, float radius2);
    PoseScore (*pair_score)(const PairsView&, const PoseF&, float narrow2, float wide2);
    void (*pair_errors2)(const PairsView&, const PoseF&, float* out);
    void (*pair_equations)(const PairsView&, const PoseF&, float c2, NormalEquations*);
    /// Rows of float from an interleaved array (one of the two pointers is null): row_k = src_k *
    /// scale_k - offset_k. True if some value is not below `limit` in magnitude.
    bool (*split)(const float* f32, const double* f64, int components, int n, const double* scale,
                  const double* offset, float limit, float* const* rows);
    /// Flags of values[i] * scale[i] < limit; n a multiple of kLanePad.
    void (*flag_below)(const float* values, const float* scale, int n, float limit,
                       unsigned char* flags);
    /// The least of n > 0 values.
    float (*least)(const float* values, int n);
    /// Row-major cell of every point, points outside go to the border; columns * rows where e2 is
    /// not below the limit.
    void (*assign_cells)(const float* x, const float* y, const float* e2, int n, const CellGrid&,
                         int* cell);
    /// x = X / Z, y = Y / Z.
    void (*directions)(const float* X, const float* Y, const float* Z, int n, float* x, float* y);
    /// Unit bearings from coordinates on the plane z = 1, in place for the first two components.
    void (*bearings)(float* x, float* y, float* z, int n);
};

/// The best kernels this processor runs, or those asked for by name ("avx512", "avx2", "baseline",
/// "auto"); null if the name is unknown or the processor cannot run them.
const Kernels* select_kernels(const char* name);

/// The lens kernels for the same instruction set. They are compiled apart: in one unit with the
/// other kernels they would change what the compiler inlines there.
const LensKernels& lens_kernels(const Kernels& kernels);

}  // namespace reloc
