#include "reloc/covariance.hpp"

#include <algorithm>
#include <cmath>

#include "reloc/constants.hpp"

namespace reloc {

RobustMoments robust_moments(int dof, double k) {
    // Chi distribution of the residual's length, integrated by the trapezoid rule.
    const int steps = 400;
    const double top = 8.0, h = top / steps;
    double norm = 0, w1 = 0, we2 = 0, w2e2 = 0, curv = 0;
    for (int i = 1; i < steps; ++i) {
        const double e = i * h, e2 = e * e;
        const double density = std::pow(e, dof - 1) * std::exp(-0.5 * e2);
        const double d = 1.0 / (1.0 + e2 / (k * k)), w = d * d;
        norm += density;
        w1 += density * w;
        we2 += density * w * e2;
        w2e2 += density * w * w * e2;
        // trace of d(w e)/de over dof: w + e w' / dof
        curv += density * (w - 4.0 * e2 / (k * k) * d * d * d / dof);
    }
    RobustMoments m;
    m.weight = w1 / norm;
    m.variance = we2 / (dof * w1);
    m.meat = w2e2 / (dof * norm);
    m.curvature = curv / norm;
    return m;
}

Mat6 hessian(const NormalEquations& eq) {
    Mat6 H;
    int k = 0;
    for (int i = 0; i < 6; ++i) {
        for (int j = i; j < 6; ++j) H(i, j) = H(j, i) = eq.h[k++];
    }
    return H;
}

Vec6 gradient(const NormalEquations& eq) {
    Vec6 g;
    for (int i = 0; i < 6; ++i) g[i] = eq.g[i];
    return g;
}

namespace {

/// Mean of g' M g over blocks against its expectation, and the number of blocks in use.
double block_ratio(const std::vector<Vec6>& gradients, const std::vector<double>& counts,
                   int columns, int size, const Mat6& inverse, int* blocks) {
    const int rows = static_cast<int>(gradients.size()) / columns;
    const int bc = (columns + size - 1) / size, br = (rows + size - 1) / size;
    std::vector<Vec6> sums(bc * br, Vec6::Zero());
    std::vector<double> weight(bc * br, 0.0);
    for (int r = 0; r < rows; ++r) {
        for (int c = 0; c < columns; ++c) {
            const int b = (r / size) * bc + c / size;
            sums[b] += gradients[r * columns + c];
            weight[b] += counts[r * columns + c];
        }
    }
    double quad = 0;
    int used = 0;
    for (std::size_t b = 0; b < sums.size(); ++b) {
        if (weight[b] <= 0) continue;
        ++used;
        quad += sums[b].dot(inverse * sums[b]);
    }
    *blocks = used;
    // The quadratic forms sum to six, less the part lost because all gradients together sum to
    // zero.
    return used > 1 ? quad / 6.0 * used / (used - 1.0) : 1.0;
}

}  // namespace

double design_effect(const std::vector<Vec6>& gradients, const std::vector<double>& counts,
                     int columns, const Mat6& inverse) {
    double worst = 1.0, ratio[2] = {1, 1};
    bool correlated = false;
    for (int size : {1, 2}) {
        int blocks = 0;
        const double r = block_ratio(gradients, counts, columns, size, inverse, &blocks);
        if (blocks < 8) continue;
        // Under independence the ratio scatters by about sqrt(2 / (6 blocks)).
        const double noise = std::sqrt(2.0 / (6.0 * blocks));
        ratio[size - 1] = r;
        correlated |= r - 1 > kCorrelated * noise;
        worst = std::max(worst, r - noise);
    }
    if (!correlated) return worst;
    // What neighbouring blocks share is missing in proportion to their circumference, so it halves
    // from one size to the next.
    return std::max(std::max(ratio[0], ratio[1]), 2 * ratio[1] - ratio[0]);
}

}  // namespace reloc
