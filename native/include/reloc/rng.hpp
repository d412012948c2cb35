// Small counter-seeded random generator: one independent stream per unit of work.
#pragma once

#include <cstdint>

#include "reloc/host_device.hpp"

namespace reloc {

/// SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
///
/// A stream is a pure function of (seed, stream id), so that work units can be executed in any
/// order and by any number of threads with the same outcome.
class Rng {
  public:
    RELOC_HD Rng(std::uint64_t seed, std::uint64_t stream)
        : state_(mix(seed) ^ mix(stream * kGamma + 1)) {}

    RELOC_HD std::uint64_t next() {
        state_ += kGamma;
        return mix(state_);
    }

    /// Uniform integer in [0, n) by Lemire's multiply-shift; the bias is below n / 2^32.
    RELOC_HD std::uint32_t below(std::uint32_t n) {
        return static_cast<std::uint32_t>(((next() >> 32) * static_cast<std::uint64_t>(n)) >> 32);
    }

    /// Uniform double in [0, 1).
    RELOC_HD double uniform() {
        return static_cast<double>(next() >> 11) * (1.0 / 9007199254740992.0);
    }

  private:
    static constexpr std::uint64_t kGamma = 0x9E3779B97F4A7C15ULL;
    RELOC_HD static std::uint64_t mix(std::uint64_t z) {
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
        return z ^ (z >> 31);
    }
    std::uint64_t state_;
};

}  // namespace reloc
