#include "reloc/confidence.hpp"

#include <algorithm>
#include <cmath>

namespace reloc {

double success_score(double inlier_share, const Mat6& covariance, double depth) {
    constexpr double kBias = -0.263, kShare = 2.215, kRotation = -2.824, kPosition = -0.731;
    constexpr double kDegrees = 180.0 / M_PI;
    const double rotation = std::sqrt(covariance.topLeftCorner<3, 3>().trace()) * kDegrees;
    const double position =
        std::sqrt(covariance.bottomRightCorner<3, 3>().trace()) / std::max(depth, 1e-12);
    if (!std::isfinite(rotation) || !std::isfinite(position) || !(inlier_share > 0)) return 0;
    const auto log_of = [](double v) { return std::log(std::min(std::max(v, 1e-6), 1e6)); };
    const double x = kBias + kShare * log_of(inlier_share) + kRotation * log_of(rotation) +
                     kPosition * log_of(position);
    return 1 / (1 + std::exp(-x));
}

}  // namespace reloc
