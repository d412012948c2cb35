#include "reloc/noise.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "reloc/constants.hpp"
#include "ring.hpp"

namespace reloc {
namespace {

Ring ring_of(int dof, double cut, bool tails) {
    if (tails || dof == 2) return Ring::planar(cut, tails);
    // Three components: chi-square tail by its closed form; 4/3 pi r^3 over (2 pi)^(3/2).
    const double a = kRingStart;
    const auto tail = [](double q) {
        return std::erfc(std::sqrt(q / 2)) + std::sqrt(2 * q / M_PI) * std::exp(-q / 2);
    };
    return {tail(a) - tail(cut),
            (std::pow(cut, 1.5) - std::pow(a, 1.5)) * (4.0 / 3.0) * M_PI / std::pow(2 * M_PI, 1.5)};
}

}  // namespace

void CellLayout::group(const Kernels& kernels, const float* x, const float* y, const float* e2,
                       float limit, int n, int columns, int rows) {
    // The region from a sample: points outside it go to the border cells.
    float x0 = 1e30f, x1 = -1e30f, y0 = 1e30f, y1 = -1e30f;
    const int step = columns * rows > 1 ? std::max(1, n / 500) : n;
    for (int i = 0; i < n; i += step) {
        x0 = std::min(x0, x[i]);
        x1 = std::max(x1, x[i]);
        y0 = std::min(y0, y[i]);
        y1 = std::max(y1, y[i]);
    }
    FloatRows scratch;
    scratch.allocate(1, n);
    int* cell_of = reinterpret_cast<int*>(scratch.row(0));
    const CellGrid grid{
        x0,      y0,  columns / std::max(x1 - x0, 1e-9f), rows / std::max(y1 - y0, 1e-9f), limit,
        columns, rows};
    kernels.assign_cells(x, y, e2, n, grid, cell_of);
    place(cell_of, n, columns, rows);
}

void CellLayout::place(const int* cell_of, int n, int columns, int rows) {
    columns_ = columns;
    const int cells = columns * rows;
    // Neighbours in the input mostly share a cell: count and place by runs.
    count_.assign(cells + 1, 0);
    runs_.clear();
    runs_.reserve(n / 4 + 16);
    for (int i = 0; i < n;) {
        const int c = cell_of[i], from = i;
        while (i < n && cell_of[i] == c) ++i;
        if (c == cells) continue;
        runs_.push_back({from, count_[c], i - from, c});
        count_[c] += i - from;
    }
    start_.assign(cells + 1, 0);
    points_ = 0;
    for (int c = 0; c < cells; ++c) {
        start_[c + 1] = start_[c] + (count_[c] + kLanePad - 1) / kLanePad * kLanePad;
        points_ += count_[c];
    }
    for (Run& run : runs_) run.slot += start_[run.cell];
}

void CellLayout::append(const CellLayout& other, int first_point) {
    const int cell = cells(), slot = slots();
    for (const Run& run : other.runs_)
        runs_.push_back({first_point + run.point, slot + run.slot, run.count, cell + run.cell});
    for (int c = 1; c <= other.cells(); ++c) start_.push_back(slot + other.start_[c]);
    count_.insert(count_.end(), other.count_.begin(), other.count_.begin() + other.cells());
    points_ += other.points_;
    columns_ = other.columns_;
}

void CellLayout::gather(const float* from, float padding, float* to) const {
    for (const Run& run : runs_) copy_short(from + run.point, run.count, to + run.slot);
    pad(padding, to);
}

void CellLayout::mark(float* to) const {
    for (int c = 0; c < cells(); ++c) {
        std::fill(to + start_[c], to + start_[c] + count_[c], 1.0f);
        std::fill(to + start_[c] + count_[c], to + start_[c + 1], 0.0f);
    }
}

double initial_level(const Kernels& kernels, const CellLayout& cells, const float* e2,
                     const float* info, const float* prior, int dof) {
    static const RobustMoments moments[2] = {robust_moments(2, kProbeScale),
                                             robust_moments(3, kProbeScale)};
    const double quartile = dof == 2 ? kQuartile2 : kQuartile3;
    float q[kProbe];
    int m = 0;
    const int step = std::max(1, cells.slots() / kProbe);
    for (int i = step / 2; i < cells.slots() && m < kProbe; i += step) {
        if (prior[i] > 0 && e2[i] < 1e30f) q[m++] = e2[i] * info[i];
    }
    double level = 1;
    if (m > 0) {
        std::nth_element(q, q + m / 4, q + m);
        level = q[m / 4] / quartile;
    }
    level = std::max(level, 1e-12);
    for (int it = 0; it < 6; ++it) {
        double w, s;
        const double scale = 1 / (level * kProbeScale * kProbeScale);
        kernels.noise_sums(e2, info, prior, cells.slots(), static_cast<float>(scale), &w, &s);
        const double next =
            std::max(1e-12, s / std::max(1e-12, dof * w * moments[dof - 2].variance));
        const bool done = std::abs(next - level) < 0.1 * level;
        level = next;
        if (done) break;
    }
    return level;
}

NoiseField::NoiseField(const CellLayout& cells, const float* prior, double level, double floor,
                       int dof, bool local, bool tails)
    : cells_(&cells),
      prior_(prior),
      floor_(floor),
      dof_(dof),
      local_(local),
      tails_(tails),
      cut_(tails   ? kTailCut
           : local ? kLocalCut
                   : kGlobalCut),
      level_(std::max(level, floor)),
      ceiling_(level_ * kMaxGrowth) {
    sums_.resize(cells.cells());
    variance_.assign(cells.cells(), level_);
    kappa_.assign(cells.cells(), kFirstOutliers / ring_of(dof, cut_, tails).volume);
}

void NoiseField::weigh(const Kernels& kernels, const float* e2, const float* base, float* info) {
    total_ = PosteriorSums{};
    for (int c = 0; c < cells_->cells(); ++c) {
        const PosteriorSums& s = sums_[c];
        weigh(kernels, e2, base, cells_->cell_begin(c), cells_->cell_end(c), c, info, &sums_[c]);
        total_.weight += s.weight;
        total_.held += s.held;
        total_.spread += s.spread;
        total_.meat += s.meat;
        total_.curvature += s.curvature;
        total_.near += s.near;
        total_.ring += s.ring;
    }
}

void NoiseField::weigh(const Kernels& kernels, const float* e2, const float* base, int from, int to,
                       int cell, float* info, PosteriorSums* sums) const {
    kernels.posterior(e2 + from, base + from, prior_ + from, to - from,
                      static_cast<float>(1 / variance_[cell]), static_cast<float>(kappa_[cell]),
                      static_cast<float>(cut_), dof_, tails_, info + from, sums);
}

double NoiseField::pose_variance() const {
    const double told = total_.curvature;
    return told > 0 ? total_.meat * variance_[0] / (told * told)
                    : std::numeric_limits<double>::infinity();
}

void NoiseField::consider_tails(const Kernels& kernels, const float* e2, const float* base,
                                int parameters, float* info) {
    if (local_ || dof_ != 2 || total_.weight < kTailPoints) return;
    NoiseField heavy(*cells_, prior_, kTailLevel * level_, floor_, dof_, local_, true);
    heavy.ceiling_ = ceiling_;
    // One level and one density: all cells at once.
    const auto weigh_all = [&] {
        heavy.weigh(kernels, e2, base, 0, cells_->slots(), 0, info, &heavy.total_);
    };
    for (int i = 0; i < kTailUpdates; ++i) {
        weigh_all();
        heavy.update(parameters);
    }
    weigh_all();
    if (heavy.pose_variance() < kTailGain * pose_variance()) *this = std::move(heavy);
    weigh(kernels, e2, base, info);
}

void NoiseField::update(int parameters) {
    const double freedom = std::max(1.0, dof_ * total_.weight - parameters);
    level_ = std::min(ceiling_, std::max(floor_, total_.spread / freedom));
    const Ring ring = ring_of(dof_, cut_, tails_);
    if (!local_) {
        std::fill(variance_.begin(), variance_.end(), level_);
        std::fill(kappa_.begin(), kappa_.end(), ring.kappa(total_.ring, total_.weight));
        return;
    }
    // Each cell with half of its neighbours, along rows and then along columns.
    struct Parts {
        double ring, weight, spread;
    };
    const int cells = cells_->cells(), columns = cells_->columns();
    std::vector<Parts> of_row(cells);
    const auto add = [](Parts* to, double factor, const auto& part) {
        to->ring += factor * part.ring;
        to->weight += factor * part.weight;
        to->spread += factor * part.spread;
    };
    for (int k = 0; k < cells; ++k) {
        const int c = k % columns;
        Parts sum{sums_[k].ring, sums_[k].weight, sums_[k].spread};
        if (c > 0) add(&sum, 0.5, sums_[k - 1]);
        if (c + 1 < columns) add(&sum, 0.5, sums_[k + 1]);
        of_row[k] = sum;
    }
    const double share = total_.weight / std::max(total_.near, 1e-9),
                 in_ring = total_.ring / std::max(total_.near, 1e-9);
    for (int k = 0; k < cells; ++k) {
        Parts sum = of_row[k];
        if (k >= columns) add(&sum, 0.5, of_row[k - columns]);
        if (k + columns < cells) add(&sum, 0.5, of_row[k + columns]);
        variance_[k] = std::max(floor_, (sum.spread + kLevelPrior * dof_ * level_) /
                                            (dof_ * (sum.weight + kLevelPrior)));
        kappa_[k] = ring.kappa(sum.ring + kSharePrior * in_ring, sum.weight + kSharePrior * share);
    }
}

}  // namespace reloc
