// Noise levels and outlier shares that differ over the image.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "reloc/covariance.hpp"
#include "reloc/problem.hpp"

namespace reloc {

/// Copies few values, eight at a time: a call would cost more than they do.
template <class T>
inline void copy_short(const T* from, int count, T* to) {
    constexpr int kShort = 8;
    int k = 0;
    for (; k + kShort <= count; k += kShort) std::memcpy(to + k, from + k, kShort * sizeof(T));
    for (; k < count; ++k) to[k] = from[k];
}

/// Slots of points grouped by image cell, each cell padded to full lanes.
///
/// Grouping makes per-cell sums (noise level, gradient) plain kernel calls over a slice.
class CellLayout {
  public:
    int points() const { return points_; }
    int cells() const { return static_cast<int>(start_.size()) - 1; }
    int slots() const { return start_.back(); }
    int columns() const { return columns_; }
    int cell_begin(int c) const { return start_[c]; }
    int cell_end(int c) const { return start_[c + 1]; }
    /// Calls visit(point, slot, count, cell) for every stretch of points that are neighbours in the
    /// problem and in the cell; slots outside these are padding.
    template <class Visit>
    void each_run(Visit visit) const {
        for (const Run& run : runs_) visit(run.point, run.slot, run.count, run.cell);
    }

    /// to[slot] = from[point]; padding gets `padding`.
    void gather(const float* from, float padding, float* to) const;
    /// The same for several rows, each padded by its first value.
    template <int kRows>
    void gather(const float* const (&from)[kRows], float* const (&to)[kRows]) const {
        for (const Run& run : runs_) {
            for (int r = 0; r < kRows; ++r)
                copy_short(from[r] + run.point, run.count, to[r] + run.slot);
        }
        for (int r = 0; r < kRows; ++r) pad(*from[r], to[r]);
    }

  protected:
    /// to[slot] = 1 for points, 0 for padding.
    void mark(float* to) const;
    /// Groups `n` points, those with e2 < limit, by their image coordinates over the region that
    /// all of them span.
    void group(const Kernels& kernels, const float* x, const float* y, const float* e2, float limit,
               int n, int columns, int rows);
    /// Groups points whose cells are known; those of cell columns * rows take no part.
    void place(const int* cell_of, int n, int columns, int rows);
    /// Puts the cells of another layout behind those of this, its points counted from
    /// `first_point`.
    void append(const CellLayout& other, int first_point);

  private:
    void pad(float padding, float* to) const {
        for (int c = 0; c < cells(); ++c)
            std::fill(to + start_[c] + count_[c], to + start_[c + 1], padding);
    }

    /// `count` points from `point` on, placed from `slot` on.
    struct Run {
        int point, slot, count, cell;
    };
    std::vector<int> start_{0}, count_;
    std::vector<Run> runs_;
    int points_ = 0, columns_ = 1;
};

/// Scale of the residuals relative to 1 / info, squared, from their lower quartile upwards.
double initial_level(const Kernels& kernels, const CellLayout& cells, const float* e2,
                     const float* info, const float* prior, int dof);

/// Mixture of inliers with a Gaussian residual and outliers spread evenly over a disc of a few
/// sigmas, with one noise level and outlier density, or where local with those of each image cell
/// (smoothed over neighbours). Weights and noise levels follow expectation-maximisation; the
/// density is counted in the ring where few inliers are, which settles at once.
///
/// Where outliers come in patches the share of inliers falls locally and with it the weight of
/// points that only happen to be near; where there are none the fit is least squares up to about
/// four sigmas.
class NoiseField {
  public:
    /// `level`, `floor`: initial and least noise variance in the unit of e2 * base. `local`: one
    /// level per cell.
    NoiseField(const CellLayout& cells, const float* prior, double level, double floor, int dof,
               bool local, bool tails = false);
    /// Posterior weights at the current parameters, written as information.
    void weigh(const Kernels& kernels, const float* e2, const float* base, float* info);
    /// New noise levels and shares from the last weights; `parameters` degrees of freedom went into
    /// the residuals.
    void update(int parameters);

    /// After weigh: from here on inliers have heavy tails (Student's t in place of the Gaussian) if
    /// the pose gets a smaller variance by that. Leaves the weights of what is chosen in `info`.
    void consider_tails(const Kernels& kernels, const float* e2, const float* base, int parameters,
                        float* info);

    bool tails() const { return tails_; }
    double variance(int c) const { return variance_[c]; }
    double near(int c) const { return sums_[c].near; }
    double level() const { return level_; }
    const PosteriorSums& sums(int c) const { return sums_[c]; }
    const PosteriorSums& total() const { return total_; }

  private:
    /// Of the points in slots from..to, at the parameters of one cell.
    void weigh(const Kernels& kernels, const float* e2, const float* base, int from, int to,
               int cell, float* info, PosteriorSums* sums) const;
    /// Variance of a parameter of the pose at the last weights, up to the geometry. Not for local
    /// fields.
    double pose_variance() const;

    const CellLayout* cells_;
    const float* prior_;
    double floor_;
    int dof_;
    bool local_, tails_;
    double cut_, level_, ceiling_;
    std::vector<PosteriorSums> sums_;
    std::vector<double> variance_, kappa_;
    PosteriorSums total_{};
};

}  // namespace reloc
