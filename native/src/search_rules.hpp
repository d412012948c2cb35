// Rules of the robust search that host and CUDA device share; internal to the library.
#pragma once

#include <cmath>

#include "reloc/constants.hpp"
#include "reloc/host_device.hpp"

namespace reloc {

/// The preview below which a pose is not worth a full score: it looks worse than the best one,
/// which showed `seen` of `total`, beyond what the preview's size explains.
RELOC_HD inline double preview_bar(double seen, double total) {
    const double part = seen > 0 ? seen / total : 0, share = part < 1 ? part : 1;
    return total * share - 2.5 * sqrt(total * share * (1 - share));
}

/// Samples of `size` points until one is free of outliers with the wanted confidence.
RELOC_HD inline double samples_needed(double inlier_share, int size, double confidence) {
    const double share = inlier_share < 1 ? inlier_share : 1;
    double good = 1;
    for (int k = 0; k < size; ++k) good *= share;
    if (good >= 1.0 - 1e-9) return 1;
    if (good < 1e-12) return 1e12;
    return log(1 - confidence) / log1p(-good);
}

/// How many times as long to go on: where the points are noisy and inliers are few, most
/// outlier-free samples give poses too poor to be told from chance.
RELOC_HD inline double patience(double narrow, double wide, double total, bool noisy) {
    return noisy && wide / total < kPoorShare && narrow < 0.8 * wide ? kPoorFactor : 1;
}

}  // namespace reloc
