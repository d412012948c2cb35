#include "reloc/splat/rasterizer.hpp"

#include <stdexcept>

#include "reloc/parallel.hpp"
#include "state.hpp"
#include "tiles.hpp"

namespace reloc::splat {
namespace {

ProjectionInput projection_of(const View& view, const Options& options) {
    ProjectionInput in{};
    std::copy(view.r, view.r + 9, in.r);
    std::copy(view.t, view.t + 3, in.t);
    in.fx = view.fx, in.fy = view.fy, in.cx = view.cx, in.cy = view.cy;
    in.x_min = view.x_min, in.x_max = view.x_max, in.y_min = view.y_min, in.y_max = view.y_max;
    in.near = options.near;
    in.antialias = options.antialias;
    return in;
}

/// Buffers of one tile, 64-byte aligned.
struct Scratch {
    AlignedFloats lanes, plain, transmittance, checkpoints;
    explicit Scratch(const ChannelLayout& layout)
        : lanes(static_cast<std::size_t>(layout.lanes) * kTilePixels),
          plain(static_cast<std::size_t>(layout.plain + 1) * kTilePixels),
          transmittance(kTilePixels),
          checkpoints(0) {}
};

void write_tile(const TilePlace& place, const View& view, const ChannelLayout& layout, int channels,
                const Scratch& scratch, const float* background, const Image& image,
                float* transmittance) {
    place.each_pixel(view.width, [&](int p, std::int64_t pixel) {
        const float light = scratch.transmittance[p];
        transmittance[pixel] = light;
        image.transmittance[pixel] = light;
        image.alpha[pixel] = 1.0f - light;
        image.depth[pixel] = scratch.plain[layout.plain * kTilePixels + p];
        float* out = image.channels + pixel * channels;
        for (int c = 0; c < layout.plain; ++c) out[c] = scratch.plain[c * kTilePixels + p];
        each_pass(layout, channels, scratch.lanes.data(),
                  [&](int first, int held, const float* sums, int stride) {
                      std::copy_n(sums + p * stride, held, out + first);
                  });
        if (background) {
            for (int c = 0; c < channels; ++c) out[c] += light * background[c];
        }
    });
}

void render_block(const Scene& scene, const View& view, const float* background, bool keep,
                  int block, State& state, float* slot_weights, const Image& image) {
    BlockTiles& tiles = state.blocks[block];
    bin_block(state, block, tiles);
    const Binning& bin = state.binning;
    const ChannelLayout layout(scene.channel_count);
    Scratch scratch(layout);
    for (int t = 0; t < kTilesPerBlock; ++t) {
        const TilePlace place(bin, view, block, t);
        if (place.empty()) continue;
        const int n = tiles.offset[t + 1] - tiles.offset[t];
        const Tile tile{bin.splats.data() + bin.offset[block],
                        tiles.slots.data() + tiles.offset[t],
                        n,
                        static_cast<float>(place.x0),
                        static_cast<float>(place.y0),
                        place.inside(),
                        scene.channels,
                        scene.channel_count,
                        layout.plain,
                        layout.lanes};
        if (keep) {
            const std::size_t chunks = (n + kChunk - 1) / kChunk;
            if (scratch.checkpoints.size() < chunks * kTilePixels)
                scratch.checkpoints = AlignedFloats(chunks * kTilePixels);
        }
        const TileForward job{scratch.lanes.data(),
                              scratch.plain.data(),
                              scratch.transmittance.data(),
                              slot_weights + bin.offset[block],
                              &tiles.pairs,
                              keep ? scratch.checkpoints.data() : nullptr};
        tiles.chunks[t] = state.kernels->forward(tile, job);
        write_tile(place, view, layout, scene.channel_count, scratch, background, image,
                   state.transmittance.data());
        if (keep) {
            tiles.checkpoint[t] = static_cast<std::int64_t>(tiles.checkpoints.size());
            tiles.checkpoints.insert(tiles.checkpoints.end(), scratch.checkpoints.data(),
                                     scratch.checkpoints.data() + tiles.chunks[t] * kTilePixels);
        }
    }
    if (keep) return;
    const long pairs = tiles.pairs;
    tiles = BlockTiles{};
    tiles.pairs = pairs;
}

}  // namespace

void StateDeleter::operator()(State* state) const { delete state; }

StatePtr rasterize(const Scene& scene, const View& view, const float* background,
                   const Options& options, const Image& image) {
    StatePtr state(new State);
    state->kernels = select_kernels(options.kernels);
    if (!state->kernels) throw std::invalid_argument("kernels not supported by this processor");
    state->projection = projection_of(view, options);
    {
        const std::vector<Placed> placed =
            project_scene(scene, view, options.threads, *state, image.radii, image.means2d);
        bin_scene(placed, view, options.threads, state->binning);
    }
    const Binning& bin = state->binning;
    const int blocks = bin.columns * bin.rows;
    state->blocks.resize(blocks);
    state->transmittance.resize(static_cast<std::size_t>(view.width) * view.height);
    std::vector<float> slot_weights(bin.splats.size(), 0.0f);
    parallel_for(blocks, options.threads, [&](int block) {
        render_block(scene, view, background, options.keep, block, *state, slot_weights.data(),
                     image);
    });
    *image.pairs = 0;
    for (const BlockTiles& tiles : state->blocks) *image.pairs += tiles.pairs;
    std::fill_n(image.weights, scene.n, 0.0f);
    for (std::size_t rank = 0; rank < bin.ids.size(); ++rank) {
        float total = 0;
        for (std::int64_t i = bin.first[rank]; i < bin.first[rank + 1]; ++i)
            total += slot_weights[bin.slots[i]];
        image.weights[bin.ids[rank]] = total;
    }
    if (!options.keep) return nullptr;
    return state;
}

}  // namespace reloc::splat
