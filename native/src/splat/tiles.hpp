// Moves pixels between images and the layout that the tile kernels work on.
#pragma once

#include <algorithm>
#include <cstdint>

#include "state.hpp"

namespace reloc::splat {

/// Position of a tile in the image.
struct TilePlace {
    int x0, y0, width, height;  ///< first pixel; pixels inside the image, at most the tile's side

    TilePlace(const Binning& bin, const View& view, int block, int tile)
        : x0(block % bin.columns * kBlockSide + tile % kBlockTiles * kTileSide),
          y0(block / bin.columns * kBlockSide + tile / kBlockTiles * kTileSide),
          width(std::min(kTileSide, view.width - x0)),
          height(std::min(kTileSide, view.height - y0)) {}

    bool empty() const { return width <= 0 || height <= 0; }
    std::uint64_t inside() const {
        std::uint64_t bits = 0;
        for (int y = 0; y < height; ++y) bits |= ((1ull << width) - 1) << (y * kTileSide);
        return bits;
    }
    /// Calls body(index in the tile, index in the image) for the pixels inside.
    template <class Body>
    void each_pixel(int image_width, Body body) const {
        for (int y = 0; y < height; ++y) {
            for (int x = 0; x < width; ++x) {
                body(y * kTileSide + x, static_cast<std::int64_t>(y0 + y) * image_width + (x0 + x));
            }
        }
    }
};

/// Calls body(first channel, channels held, address of pixel 0, floats between pixels) for each
/// pass of lane channels.
template <class Pointer, class Body>
void each_pass(const ChannelLayout& layout, int channels, Pointer lanes, Body body) {
    for (int c = 0; c < layout.lanes; c += kPassChannels) {
        const int width = std::min(layout.lanes - c, kPassChannels);
        body(layout.plain + c, std::min(width, channels - layout.plain - c),
             lanes + c * kTilePixels, width);
    }
}

}  // namespace reloc::splat
