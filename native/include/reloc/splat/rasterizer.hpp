// Tile-based rasterizer of 3D Gaussians for any number of channels, forward and backward.
//
// Image model: B. Kerbl et al., "3D Gaussian Splatting for Real-Time Radiance Field Rendering",
// SIGGRAPH 2023, on the EWA splatting of M. Zwicker et al. 2001; the antialiased variant after
// Z. Yu et al., "Mip-Splatting", CVPR 2024. A Gaussian counts at every pixel where its alpha
// reaches 1/255, so the image does not depend on how it is divided into tiles.
//
// Results do not depend on the number of threads: work is divided into fixed pieces and partial
// sums are added in a fixed order.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace reloc::splat {

/// N Gaussians, row-major float32 arrays.
struct Scene {
    const float* means;        ///< N x 3, world
    const float* quaternions;  ///< N x 4, w x y z, any length; zero counts as the identity
    const float* scales;       ///< N x 3, standard deviations
    const float* opacities;    ///< N
    const float* channels;     ///< N x channel_count, may be null when channel_count is 0
    int n = 0, channel_count = 0;
};

/// Pinhole camera; pixel (0, 0) is the centre of the top-left pixel.
struct View {
    double r[9], t[3];  ///< cam_from_world
    double fx, fy, cx, cy;
    int width, height;
    /// Bounds of x/z and y/z inside the Jacobian of the projection.
    double x_min, x_max, y_min, y_max;
};

struct Options {
    double near = 0.2;       ///< centres at or before this depth are dropped
    bool antialias = false;  ///< scale opacity by sqrt(det(undilated) / det(dilated))
    bool keep = false;       ///< keep what the backward pass needs
    int threads = 1;
    const char* kernels = "auto";
};

/// Where the forward pass writes. Row-major.
struct Image {
    float* channels;       ///< height x width x channel_count
    float* alpha;          ///< height x width
    float* transmittance;  ///< height x width: 1 - alpha without its rounding
    float* depth;          ///< height x width: sum of weight times camera z
    float* weights;        ///< N: blending weight summed over pixels
    float* means2d;        ///< N x 2
    std::int32_t* radii;   ///< N: ceil(3 standard deviations), 0 where not visible
    std::int64_t* pairs;   ///< one number: (Gaussian, pixel) pairs blended
};

/// What the forward pass leaves for the backward pass.
class State;
struct StateDeleter {
    void operator()(State* state) const;
};
using StatePtr = std::unique_ptr<State, StateDeleter>;

/// Renders. `background` (channel_count floats) may be null. Returns the state when
/// options.keep, else null.
StatePtr rasterize(const Scene& scene, const View& view, const float* background,
                   const Options& options, const Image& image);

/// Gradients of the loss with respect to the forward pass's image; null means zero.
struct ImageGradients {
    const float* channels;
    const float* alpha;
    const float* depth;  ///< of the depth sum
};

/// Where the backward pass writes; the channel and the geometry part may be null (not wanted).
struct SceneGradients {
    float* channels = nullptr;  ///< N x channel_count
    float* means = nullptr;     ///< N x 3; if set, so are the next six
    float* quaternions = nullptr;
    float* scales = nullptr;
    float* opacities = nullptr;
    float* means2d = nullptr;      ///< N x 2, per pixel
    float* means2d_abs = nullptr;  ///< N x 2, sum of absolute values over pixels
    double* pose = nullptr;        ///< 12: d/dR row-major, d/dt of cam_from_world
};

/// `geometry_channels`: only the first so many channels act on everything but the channels
/// themselves.
void rasterize_backward(const State& state, const Scene& scene, const View& view,
                        const float* background, int geometry_channels, int threads,
                        const ImageGradients& in, const SceneGradients& out);

/// Per Gaussian, the sum over pixels of blending weight times `features` (height x width x
/// channel_count) into `sums` (N x channel_count) and of the weight into `weights` (N).
void accumulate(const Scene& scene, const View& view, const float* features, int channel_count,
                const Options& options, float* sums, float* weights);

}  // namespace reloc::splat
