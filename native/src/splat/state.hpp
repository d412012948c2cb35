// What lies between the stages of the rasterizer: which Gaussian reaches which part of the image.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "kernels.hpp"
#include "reloc/splat/rasterizer.hpp"

namespace reloc::splat {

/// The image is divided into blocks, one work item each, and blocks into tiles.
constexpr int kBlockTiles = 4;
constexpr int kBlockSide = kBlockTiles * kTileSide;
constexpr int kTilesPerBlock = kBlockTiles * kBlockTiles;
/// Gaussians per work item where work is divided by Gaussian.
constexpr int kPiece = 2048;

/// Where a splat's alpha can reach 1/255: an ellipse around its centre.
struct Bounds {
    float half_x, half_y;  ///< 0 where not visible
    float y_of_right;      ///< offset of the rightmost point along y; the leftmost is its opposite
    float slope;           ///< x over y along the line through the middles of the rows
    float reach2;          ///< largest |L d|^2
};

/// Splats by block, each block's sorted by depth. A slot is a position in `splats`.
struct Binning {
    int columns = 0, rows = 0;         ///< blocks
    std::vector<std::int64_t> offset;  ///< first slot of each block, and the end
    std::vector<Splat> splats;         ///< by slot
    std::vector<Bounds> bounds;        ///< by slot
    std::vector<std::int32_t> ids;     ///< visible Gaussians by depth
    std::vector<std::int64_t>
        first;  ///< per visible Gaussian: its slots' begin in `slots`; the end
    std::vector<std::int64_t> slots;  ///< slots of each visible Gaussian
};

/// Tiles of one block after the forward pass.
struct BlockTiles {
    std::array<int, kTilesPerBlock + 1> offset{};  ///< into slots
    std::array<int, kTilesPerBlock> chunks{};      ///< blended
    std::array<std::int64_t, kTilesPerBlock> checkpoint{};
    long pairs = 0;                   ///< (splat, pixel) pairs blended
    std::vector<std::int32_t> slots;  ///< relative to the block's first, sorted by depth
    std::vector<float> checkpoints;
};

/// Asks for large pages where the memory is worth it: page faults would cost more than the work.
void advise_large_pages(void* begin, std::size_t bytes);

/// Uninitialised floats on a 64-byte boundary.
class AlignedFloats {
  public:
    explicit AlignedFloats(std::size_t n)
        : size_(n),
          data_(n ? static_cast<float*>(::operator new(n * sizeof(float), kAlignment)) : nullptr) {
        advise_large_pages(data_.get(), n * sizeof(float));
    }
    float* data() const { return data_.get(); }
    std::size_t size() const { return size_; }
    float& operator[](std::size_t i) const { return data_.get()[i]; }

  private:
    static constexpr std::align_val_t kAlignment{64};
    struct Free {
        void operator()(float* p) const { ::operator delete(p, kAlignment); }
    };
    std::size_t size_;
    std::unique_ptr<float, Free> data_;
};

class State {
  public:
    const Kernels* kernels = nullptr;
    ProjectionInput projection{};  ///< array pointers unset
    Binning binning;
    std::vector<BlockTiles> blocks;
    std::vector<float> transmittance;  ///< per pixel
};

/// How channels are laid out in a tile: the first `plain` with pixels along lanes, the rest padded
/// to `lanes` with channels along lanes, in passes of at most 64.
struct ChannelLayout {
    int plain, lanes;
    explicit ChannelLayout(int channels) {
        const int rest = channels % kLaneChannels;
        plain = channels <= kMaxPlain ? channels : rest <= 4 ? rest : 0;
        lanes = (channels - plain + kLaneChannels - 1) / kLaneChannels * kLaneChannels;
    }
};

/// A splat with its reach.
struct Placed {
    Splat splat;
    Bounds bounds;
};

/// Projects all Gaussians; fills radii and means2d too.
std::vector<Placed> project_scene(const Scene& scene, const View& view, int threads,
                                  const State& state, std::int32_t* radii, float* means2d);

/// Sorts by depth and distributes to blocks.
void bin_scene(const std::vector<Placed>& placed, const View& view, int threads, Binning& bin);

/// Distributes a block's slots to its tiles.
void bin_block(const State& state, int block, BlockTiles& tiles);

inline ProjectionInput with_arrays(ProjectionInput in, const Scene& scene) {
    in.means = scene.means;
    in.quaternions = scene.quaternions;
    in.scales = scene.scales;
    in.opacities = scene.opacities;
    return in;
}

}  // namespace reloc::splat
