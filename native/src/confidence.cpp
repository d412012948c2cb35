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

double log_false_alarms(int points, int inliers, int sample, double share) {
    const double n = points, k = inliers, s = sample;
    if (k <= s || !(n >= k)) return std::log10(std::max(n, 1.0));
    // Stirling's series to 1e-3; std::lgamma writes a global.
    const auto log_factorial = [](double m) {
        return m < 1 ? 0 : (m + 0.5) * std::log(m) - m + 0.5 * std::log(2 * M_PI) + 1 / (12 * m);
    };
    const auto log_choose = [&](double a, double b) {
        return log_factorial(a) - log_factorial(b) - log_factorial(a - b);
    };
    // share^(k - s) is no more than 1, however wide the radius.
    const double log_share = std::log(std::min(1.0, std::max(share, 1e-12)));
    return (std::log(std::max(n - s, 1.0)) + log_choose(n, k) + log_choose(k, s) +
            (k - s) * log_share) /
           std::log(10.0);
}

}  // namespace reloc
