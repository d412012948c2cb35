// Contract of the vectorised inner loops of the rasterizer. Plain data only: this header is
// compiled with wide-instruction flags (see reloc/kernels.hpp).
#pragma once

#include <cstdint>

namespace reloc::splat {

constexpr int kTileSide = 8;
constexpr int kTilePixels = kTileSide * kTileSide;
/// Gaussians blended per step; the bits of one pixel's list of them fit a lane.
constexpr int kChunk = 32;
/// Channels are padded to a multiple of this where they lie along lanes.
constexpr int kLaneChannels = 16;
/// Lane channels are blended in passes of at most this many; a tile's sums are pass-major.
constexpr int kPassChannels = 64;
/// At most this many leading channels are blended with pixels along lanes.
constexpr int kMaxPlain = 6;

constexpr float kAlphaMin = 1.0f / 255.0f;
constexpr float kAlphaMax = 0.99f;
constexpr float kTransmittanceMin = 1e-4f;
constexpr double kDilation = 0.3;
constexpr double kScreenLimit = 1e9;

/// A Gaussian in the image. With y = L (mean - pixel), L = [l11 l12; 0 l22] upper triangular, it
/// weighs opacity * exp(-|y|^2 / 2) there. The factor, unlike the inverse covariance itself, does
/// not cancel for needles.
struct Splat {
    float x, y, l11, l12, l22, opacity, depth;
    std::int32_t id;
};

/// What projection gives besides the splat: covariance entries for the bounds and the radius.
struct Footprint {
    double xx, xy, yy;
};

/// Input of projection: arrays of N Gaussians and the camera.
struct ProjectionInput {
    const float *means, *quaternions, *scales, *opacities;
    double r[9], t[3], fx, fy, cx, cy, x_min, x_max, y_min, y_max, near;
    bool antialias;
};

/// Sums over the pixels of a splat that the backward pass gathers. With g = dL/dp, p the
/// exponent, and y = (a, b) from above:
enum Sum {
    kG,
    kGa,
    kGb,
    kGaa,
    kGab,
    kGbb,  // g times 1, a, b, aa, ab, bb
    kAbsX,
    kAbsY,       // |dL/d mean2d|
    kDepthSum,   // w times the gradient of the depth sum
    kWeightSum,  // w
    kPlain,      // w times the gradient of the plain channels
    kSums = 16
};

/// Backward through projection for one block of Gaussians.
struct ProjectionGradients {
    const double* sums;  ///< kSums x count, one row per sum
    float *means, *quaternions, *scales, *opacities, *means2d, *means2d_abs;
    double* pose;  ///< 12, added to
};

/// One tile. Lists hold slots: positions in the block's list of splats.
struct Tile {
    const Splat* splats;        ///< indexed by slot
    const std::int32_t* slots;  ///< depth-sorted
    int n;
    float x0, y0;                     ///< first pixel
    std::uint64_t inside;             ///< bit per pixel of the tile: lies in the image
    const float* channels;            ///< N x channel_count
    int channel_count, plain, lanes;  ///< lanes: padded count of the channels after the plain
};

struct TileForward {
    float* sum_lanes;  ///< kTilePixels x lanes, zeroed by the kernel
    float* sum_plain;  ///< (plain + 1) x kTilePixels, the last row is depth; zeroed by the kernel
    float* transmittance;  ///< kTilePixels
    float* weights;        ///< per slot, added to
    long* pairs;           ///< number of (splat, pixel) pairs blended, added to
    float* checkpoints;    ///< null or (chunks + 0) x kTilePixels: transmittance before each chunk
};

struct TileBackward {
    const float* grad_lanes;  ///< kTilePixels x lanes
    const float* grad_plain;  ///< (plain + 1) x kTilePixels, the last row is depth
    const float* behind;      ///< kTilePixels: T_final (background . grad - grad_alpha)
    const float* checkpoints;
    int geometry_channels;  ///< -1: channel gradients alone
    bool channels_wanted;
    float* records;  ///< per slot: kSums + lanes floats, added to
};

struct Kernels {
    const char* name;
    /// Projects Gaussians begin..end to the outputs' first entries; opacity 0 marks those that are
    /// not drawn.
    void (*project)(const ProjectionInput&, int begin, int end, Splat*, Footprint*);
    void (*project_backward)(const ProjectionInput&, const std::int32_t* ids, int count,
                             const ProjectionGradients&);
    /// Returns the number of chunks blended until all pixels were opaque.
    int (*forward)(const Tile&, const TileForward&);
    void (*backward)(const Tile&, int chunks, const TileBackward&);
};

/// Best kernels of this processor ("auto") or the named ones; null when not available.
const Kernels* select_kernels(const char* name);

}  // namespace reloc::splat
