// The ring around the inliers that tells how many outliers there are; host and CUDA device share
// it.
#pragma once

#include <cmath>

#include "reloc/constants.hpp"
#include "reloc/host_device.hpp"
#include "reloc/kernels.hpp"

namespace reloc {

/// Share of inliers in the ring from kRingStart to the cut, and the ring's volume over the inliers'
/// peak density.
struct Ring {
    double share, volume;

    /// Of residuals with two components; `tails`: Student's t in place of a Gaussian.
    RELOC_HD static Ring planar(double cut, bool tails) {
        const double start = 0.5 * static_cast<double>(kRingStart), end = 0.5 * cut;
        const double at_start = 1 / (1 + start), at_end = 1 / (1 + end);
        if (tails) return {(at_start - at_end) / (1 - at_end), (end - start) / (1 - at_end)};
        return {exp(-start) - exp(-end), end - start};
    }

    /// Outlier density over the inliers' peak density.
    RELOC_HD double kappa(double in_ring, double inliers) const {
        const double outliers = in_ring - share * inliers, least = 1e-9;
        const double found =
            (outliers > 0 ? outliers : 0) / (volume * (inliers < least ? least : inliers));
        return found < kMinKappa ? kMinKappa : found > kMaxKappa ? kMaxKappa : found;
    }
};

}  // namespace reloc
