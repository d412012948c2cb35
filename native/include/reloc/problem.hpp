// Correspondences prepared for the kernels: checked, undistorted, centred, aligned.
#pragma once

#include <cstdlib>
#include <memory>
#include <vector>

#include "reloc/camera.hpp"
#include "reloc/kernels.hpp"

namespace reloc {

/// Returns a block to the cache of the calling thread.
struct ReleaseBlock {
    std::size_t bytes = 0;
    void operator()(float* p) const;
};

/// Rows of aligned floats in one block.
///
/// Blocks go back to a small cache of the calling thread: a solve takes about 0.1 ms, and fresh
/// pages from the system would cost more than that.
class FloatRows {
  public:
    void allocate(int rows, int columns);
    float* row(int r) { return data_.get() + static_cast<std::size_t>(r) * stride_; }
    const float* row(int r) const { return data_.get() + static_cast<std::size_t>(r) * stride_; }
    int stride() const { return stride_; }

  private:
    std::unique_ptr<float, ReleaseBlock> data_;
    int stride_ = 0;
};

/// A borrowed row-major array of float32 or float64; null when absent.
struct ArrayRef {
    const float* f32 = nullptr;
    const double* f64 = nullptr;
    explicit operator bool() const { return f32 || f64; }
    double operator[](std::size_t i) const { return f64 ? f64[i] : static_cast<double>(f32[i]); }
};

/// Input of the pose solvers; n correspondences.
struct Correspondences {
    ArrayRef points2d;    ///< (n, 2) pixels
    ArrayRef points3d;    ///< (n, 3) scene
    ArrayRef weights;     ///< (n,) or absent; nonnegative
    ArrayRef variances;   ///< (n,) scene units squared or absent
    ArrayRef points_cam;  ///< (n, 3) camera frame or absent
    std::size_t n = 0;
};

/// Points that carry information, in kernel layout, plus random subsets.
struct Problem {
    int n = 0;         ///< points kept
    double total = 0;  ///< sum of weights (= n: weights have mean one)
    bool weighted = false;
    Vec3 centre = Vec3::Zero();      ///< subtracted from the scene points
    double extent = 1;               ///< typical distance of a point from the centre
    double focal = 1;                ///< mean focal length, pixels
    double image_area = 1;           ///< square pixels; of the pixels' bounds where unknown
    std::vector<int> source;         ///< input index of each kept point; empty if all were kept
    std::vector<float> variance;     ///< per kept point, or empty
    std::vector<double> cumulative;  ///< of weights, for sampling; empty if unweighted
    FloatRows rows, sample_rows;
    int preview_n = 0, sample_n = 0;
    double preview_total = 0;

    PointsView view() const;
    /// A random subset that covers the input evenly, for work that need not see all points.
    PointsView sample() const;
    /// The first points of the sample, for ranking hypotheses.
    PointsView preview() const;
    int input_index(int i) const { return source.empty() ? i : source[i]; }
};

constexpr int kPreviewPoints = 256, kSamplePoints = 1024;

/// One random index of each of k equal runs of [0, n), k <= n and k <= kSamplePoints: a subset
/// without repeats that also covers the image when the input is a grid. Every fourth run comes
/// first, so that a prefix covers it too.
void even_sample(int n, int k, std::uint64_t seed, int* chosen);

/// Whether the pixels lie on a lattice: their coordinates repeat over rows and columns, so they
/// were laid out and not measured. Tells nothing of fewer than 64 points.
bool on_lattice(const Correspondences& in, std::uint64_t seed);

/// Drops points with non-finite coordinates, non-positive weights or no viewing ray, and lays out
/// the rest.
void build_problem(const Correspondences& in, const Camera& camera, const Kernels& kernels,
                   std::uint64_t seed, Problem* out);

/// Scene-to-kernel change of origin and back.
Pose centred(const Pose& pose, const Vec3& centre);
Pose uncentred(const Pose& pose, const Vec3& centre);

}  // namespace reloc
