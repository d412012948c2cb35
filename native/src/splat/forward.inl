// Blending of one tile, front to back.

/// Adds the chunk's splats to one pixel, M vectors of channels at a time.
template <int M>
inline void blend_pixel(unsigned splats, const float* weights, const float* features, int lanes,
                        float* sums) {
    vf acc[M];
    for (int m = 0; m < M; ++m) acc[m] = load(sums + m * kF);
    for (; splats; splats &= splats - 1) {
        const int k = __builtin_ctz(splats);
        const vf w = splat(weights[k * kTilePixels]);
        const float* f = features + k * lanes;
        for (int m = 0; m < M; ++m) acc[m] += w * load(f + m * kF);
    }
    for (int m = 0; m < M; ++m) store(sums + m * kF, acc[m]);
}

template <int M>
void blend_channels(const vi* listed, const float* weights, const float* features, int lanes,
                    float* sums) {
    const unsigned* pixels = reinterpret_cast<const unsigned*>(listed);
    for (int p = 0; p < kTilePixels; ++p) {
        if (pixels[p]) blend_pixel<M>(pixels[p], weights + p, features, lanes, sums + p * lanes);
    }
}

inline void blend_lanes(const vi* listed, const float* weights, const float* features, int lanes,
                        float* sums) {
    constexpr int kWide = kF == 16 ? 4 : 8;
    int c = 0;
    for (; c + kWide * kF <= lanes; c += kWide * kF)
        blend_channels<kWide>(listed, weights, features + c, lanes, sums + c);
    for (; c + 2 * kF <= lanes; c += 2 * kF)
        blend_channels<2>(listed, weights, features + c, lanes, sums + c);
    for (; c < lanes; c += kF) blend_channels<1>(listed, weights, features + c, lanes, sums + c);
}

inline void start_light(unsigned long inside, Light& light) {
    alignas(kBytes) float start[kTilePixels];
    for (int p = 0; p < kTilePixels; ++p) start[p] = (inside >> p) & 1 ? 1.0f : 0.0f;
    for (int v = 0; v < kVectors; ++v) light.front[v] = light.final[v] = load(start + v * kF);
}

int forward(const Tile& tile, const TileForward& out) {
    alignas(64) float weights[kChunk * kTilePixels];
    alignas(64) float features[kChunk * kPassChannels];
    alignas(64) vi listed[kVectors];
    const Grid grid(tile.x0, tile.y0);
    Light light;
    start_light(tile.inside, light);
    for (int i = 0; i < kTilePixels * tile.lanes; ++i) out.sum_lanes[i] = 0.0f;
    for (int i = 0; i < (tile.plain + 1) * kTilePixels; ++i) out.sum_plain[i] = 0.0f;
    int chunks = 0;
    for (int first = 0; first < tile.n && any_light(light); first += kChunk, ++chunks) {
        if (out.checkpoints) {
            for (int v = 0; v < kVectors; ++v)
                store(out.checkpoints + chunks * kTilePixels + v * kF, light.front[v]);
        }
        for (int v = 0; v < kVectors; ++v) listed[v] = vi{};
        unsigned used = 0;
        const int count = tile.n - first < kChunk ? tile.n - first : kChunk;
        for (int k = 0; k < count; ++k) {
            const int slot = tile.slots[first + k];
            const Splat& s = tile.splats[slot];
            const float* row = tile.channels + (long)s.id * tile.channel_count;
            const float least = least_power(s.opacity);
            vf total = zero();
            unsigned any = 0;
            for (int v = 0; v < kVectors; ++v) {
                Shade sh;
                if (!shade(s, grid.x[v], grid.y[v], least, light.front[v], light.final[v], sh))
                    continue;
                any += (unsigned)__builtin_popcount(sh.bits);
                total += sh.weight;
                store(weights + k * kTilePixels + v * kF, sh.weight);
                set_bits(listed[v], sh.drawn, (int)(1u << k));
                float* plain = out.sum_plain + v * kF;
                for (int c = 0; c < tile.plain; ++c, plain += kTilePixels)
                    store(plain, load(plain) + sh.weight * row[c]);
                store(plain, load(plain) + sh.weight * s.depth);
            }
            if (!any) continue;
            used |= 1u << k;
            *out.pairs += any;
            out.weights[slot] += (float)sum(total);
        }
        if (!used) continue;
        for (int c = 0; c < tile.lanes; c += kPassChannels) {
            const int width = tile.lanes - c < kPassChannels ? tile.lanes - c : kPassChannels;
            const int held = tile.channel_count - tile.plain - c;
            for (unsigned bits = used; bits; bits &= bits - 1) {
                const int k = __builtin_ctz(bits);
                const Splat& s = tile.splats[tile.slots[first + k]];
                copy_channels(tile.channels + (long)s.id * tile.channel_count + tile.plain + c,
                              held < width ? held : width, width, features + k * width);
            }
            // Sums of one pass lie together: pass-major.
            blend_lanes(listed, weights, features, width, out.sum_lanes + c * kTilePixels);
        }
    }
    for (int v = 0; v < kVectors; ++v) store(out.transmittance + v * kF, light.final[v]);
    return chunks;
}
