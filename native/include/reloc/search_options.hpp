// What all robust searches are asked for.
#pragma once

#include <cstdint>

namespace reloc {

struct SearchOptions {
    double confidence = 0.99;  ///< probability of having drawn an outlier-free sample
    int min_iterations = 16;
    int max_iterations = 100000;
    int min_inliers = 6;
    std::uint64_t seed = 0;
    int threads = 1;  ///< of one query; the result does not depend on it
};

}  // namespace reloc
