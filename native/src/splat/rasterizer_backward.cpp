#include <algorithm>

#include "reloc/parallel.hpp"
#include "reloc/splat/rasterizer.hpp"
#include "state.hpp"
#include "tiles.hpp"

namespace reloc::splat {
namespace {

/// Gradients at a tile's pixels, in the layout of the kernels.
struct TileGradients {
    AlignedFloats lanes, plain, behind, checkpoints;
    explicit TileGradients(const ChannelLayout& layout)
        : lanes(static_cast<std::size_t>(layout.lanes) * kTilePixels),
          plain(static_cast<std::size_t>(layout.plain + 1) * kTilePixels),
          behind(kTilePixels),
          checkpoints(0) {}

    void read(const TilePlace& place, const View& view, const ChannelLayout& layout, int channels,
              int acting, const float* transmittance, const float* background,
              const ImageGradients& in) {
        std::fill_n(lanes.data(), lanes.size(), 0.0f);
        std::fill_n(plain.data(), plain.size(), 0.0f);
        std::fill_n(behind.data(), behind.size(), 0.0f);
        place.each_pixel(view.width, [&](int p, std::int64_t pixel) {
            if (in.depth) plain[layout.plain * kTilePixels + p] = in.depth[pixel];
            float through = in.alpha ? -in.alpha[pixel] : 0.0f;
            if (in.channels) {
                const float* grad = in.channels + pixel * channels;
                for (int c = 0; c < layout.plain; ++c) plain[c * kTilePixels + p] = grad[c];
                each_pass(layout, channels, lanes.data(),
                          [&](int first, int held, float* to, int stride) {
                              std::copy_n(grad + first, held, to + p * stride);
                          });
                if (background) {
                    for (int c = 0; c < acting; ++c) through += background[c] * grad[c];
                }
            }
            behind[p] = transmittance[pixel] * through;
        });
    }
};

/// Everything that one backward pass shares.
struct Pass {
    const State& state;
    const Scene& scene;
    const View& view;
    const float* background;
    int geometry_channels;  ///< -1: channel gradients alone
    bool channels_wanted;
    ImageGradients in;
    ChannelLayout layout;
    int stride;  ///< floats per record
    AlignedFloats records;

    void gather_block(int block) {
        const Binning& bin = state.binning;
        const BlockTiles& tiles = state.blocks[block];
        float* block_records = records.data() + bin.offset[block] * stride;
        std::fill_n(block_records, (bin.offset[block + 1] - bin.offset[block]) * stride, 0.0f);
        TileGradients gradients(layout);
        for (int t = 0; t < kTilesPerBlock; ++t) {
            const TilePlace place(bin, view, block, t);
            if (place.empty() || tiles.chunks[t] == 0) continue;
            gradients.read(place, view, layout, scene.channel_count, geometry_channels,
                           state.transmittance.data(), background, in);
            const std::size_t kept = static_cast<std::size_t>(tiles.chunks[t]) * kTilePixels;
            if (gradients.checkpoints.size() < kept) gradients.checkpoints = AlignedFloats(kept);
            std::copy_n(tiles.checkpoints.data() + tiles.checkpoint[t], kept,
                        gradients.checkpoints.data());
            const Tile tile{bin.splats.data() + bin.offset[block],
                            tiles.slots.data() + tiles.offset[t],
                            tiles.offset[t + 1] - tiles.offset[t],
                            static_cast<float>(place.x0),
                            static_cast<float>(place.y0),
                            place.inside(),
                            scene.channels,
                            scene.channel_count,
                            layout.plain,
                            layout.lanes};
            const TileBackward job{gradients.lanes.data(),
                                   gradients.plain.data(),
                                   gradients.behind.data(),
                                   gradients.checkpoints.data(),
                                   geometry_channels,
                                   channels_wanted,
                                   block_records};
            state.kernels->backward(tile, tiles.chunks[t], job);
        }
    }

    /// Adds the records of the visible Gaussians begin..end in the order of their blocks.
    void reduce(int begin, int end, double* sums, float* channels, float* weights) const {
        const Binning& bin = state.binning;
        const int count = end - begin;
        for (int rank = begin; rank < end; ++rank) {
            double total[kSums] = {};
            float* row =
                channels ? channels + std::int64_t{bin.ids[rank]} * scene.channel_count : nullptr;
            for (std::int64_t i = bin.first[rank]; i < bin.first[rank + 1]; ++i) {
                const float* record = records.data() + bin.slots[i] * stride;
                for (int k = 0; k < kSums; ++k) total[k] += record[k];
                if (!row) continue;
                const int rest = scene.channel_count - layout.plain;
                for (int c = 0; c < layout.plain; ++c) row[c] += record[kPlain + c];
                for (int c = 0; c < rest; ++c) row[layout.plain + c] += record[kSums + c];
            }
            if (sums) {
                for (int k = 0; k < kSums; ++k) sums[k * count + rank - begin] = total[k];
            }
            if (weights) weights[bin.ids[rank]] = static_cast<float>(total[kWeightSum]);
        }
    }
};

Pass gather(const State& state, const Scene& scene, const View& view, const float* background,
            int geometry_channels, bool channels_wanted, int threads, const ImageGradients& in) {
    const ChannelLayout layout(scene.channel_count);
    const int stride = kSums + layout.lanes;
    Pass pass{state,           scene, view,   background, geometry_channels,
              channels_wanted, in,    layout, stride,     AlignedFloats(0)};
    pass.records = AlignedFloats(state.binning.splats.size() * stride);
    parallel_for(static_cast<int>(state.blocks.size()), threads,
                 [&](int block) { pass.gather_block(block); });
    return pass;
}

}  // namespace

void rasterize_backward(const State& state, const Scene& scene, const View& view,
                        const float* background, int geometry_channels, int threads,
                        const ImageGradients& in, const SceneGradients& out) {
    const bool geometry = out.means != nullptr;
    const Pass pass = gather(state, scene, view, background, geometry ? geometry_channels : -1,
                             out.channels != nullptr, threads, in);
    const int n = static_cast<int>(state.binning.ids.size());
    const int pieces = (n + kPiece - 1) / kPiece;
    std::vector<std::array<double, 12>> poses(pieces, std::array<double, 12>{});
    const ProjectionInput projection = with_arrays(state.projection, scene);
    parallel_for(pieces, threads, [&](int piece) {
        const int begin = piece * kPiece, end = std::min(n, begin + kPiece);
        std::vector<double> sums(static_cast<std::size_t>(kSums) * (end - begin));
        pass.reduce(begin, end, sums.data(), out.channels, nullptr);
        if (!geometry) return;
        const ProjectionGradients job{sums.data(),     out.means,          out.quaternions,
                                      out.scales,      out.opacities,      out.means2d,
                                      out.means2d_abs, poses[piece].data()};
        state.kernels->project_backward(projection, state.binning.ids.data() + begin, end - begin,
                                        job);
    });
    if (!out.pose) return;
    std::fill_n(out.pose, 12, 0.0);
    for (const auto& pose : poses) {
        for (int c = 0; c < 12; ++c) out.pose[c] += pose[c];
    }
}

void accumulate(const Scene& scene, const View& view, const float* features, int channel_count,
                const Options& options, float* sums, float* weights) {
    Scene bare = scene;
    bare.channels = nullptr;
    bare.channel_count = 0;
    Options keeping = options;
    keeping.keep = true;
    const std::size_t pixels = static_cast<std::size_t>(view.width) * view.height;
    std::vector<float> alpha(pixels), transmittance(pixels), depth(pixels),
        centres(2 * std::size_t(scene.n));
    std::vector<std::int32_t> radii(scene.n);
    std::int64_t pairs;
    const Image image{nullptr, alpha.data(),   transmittance.data(), depth.data(),
                      weights, centres.data(), radii.data(),         &pairs};
    const StatePtr state = rasterize(bare, view, nullptr, keeping, image);
    bare.channel_count = channel_count;
    const Pass pass = gather(*state, bare, view, nullptr, -1, true, options.threads,
                             {features, nullptr, nullptr});
    const int n = static_cast<int>(state->binning.ids.size());
    parallel_for((n + kPiece - 1) / kPiece, options.threads, [&](int piece) {
        const int begin = piece * kPiece, end = std::min(n, begin + kPiece);
        pass.reduce(begin, end, nullptr, sums, nullptr);
    });
}

}  // namespace reloc::splat
