// Gradients of one tile. Walks the chunks back to front; inside a chunk the transmittance is
// recomputed front to back from the checkpoint of the forward pass, so nothing is divided out.
//
// With q = c . dL/dC the loss's slope along splat i's own channels and S = sum over all behind of
// w q (plus the background's share), dL/dalpha_i = T_i q_i - S / (1 - alpha_i): scalars per pixel,
// whatever the number of channels.

struct ChunkLight {
    alignas(64) float alpha[kChunk * kTilePixels];
    alignas(64) float front[kChunk * kTilePixels];
    alignas(64) float weight[kChunk * kTilePixels];
    alignas(64) float slope[kChunk * kTilePixels];  // q of the lane channels
    unsigned long long drawn[kChunk];
};

/// One splat, M vectors of channels: slope += features . grad per pixel, grads += w grad.
template <int M, bool kSlope, bool kGrad>
inline void gather_splat(unsigned long long pixels, const float* weight, const float* features,
                         const float* grad, int lanes, float* slope, float* record) {
    vf f[M], g[M];
    for (int m = 0; m < M; ++m) {
        if (kSlope) f[m] = load(features + m * kF);
        if (kGrad) g[m] = load_any(record + m * kF);
    }
    for (; pixels; pixels &= pixels - 1) {
        const int p = __builtin_ctzll(pixels);
        const float* from = grad + p * lanes;
        const vf w = splat(weight[p]);
        vf q = zero();
        for (int m = 0; m < M; ++m) {
            const vf pixel = load(from + m * kF);
            if (kSlope) q += f[m] * pixel;
            if (kGrad) g[m] += w * pixel;
        }
        if (kSlope) slope[p] += (float)sum(q);
    }
    if (kGrad) {
        for (int m = 0; m < M; ++m) store_any(record + m * kF, g[m]);
    }
}

template <bool kSlope, bool kGrad>
void gather_lanes(unsigned long long pixels, const float* weight, const float* features,
                  const float* grad, int lanes, float* slope, float* record) {
    constexpr int kWide = 4;
    int c = 0;
    for (; c + kWide * kF <= lanes; c += kWide * kF)
        gather_splat<kWide, kSlope, kGrad>(pixels, weight, features + c, grad + c, lanes, slope,
                                           record + c);
    for (; c < lanes; c += kF)
        gather_splat<1, kSlope, kGrad>(pixels, weight, features + c, grad + c, lanes, slope,
                                       record + c);
}

/// Recomputes the light of one chunk.
inline void relight(const Tile& tile, const Grid& grid, const float* checkpoint, int first,
                    int count, ChunkLight& chunk) {
    Light light;
    for (int v = 0; v < kVectors; ++v) light.front[v] = light.final[v] = load(checkpoint + v * kF);
    for (int k = 0; k < count; ++k) {
        const Splat& s = tile.splats[tile.slots[first + k]];
        const float least = least_power(s.opacity);
        chunk.drawn[k] = 0;
        for (int v = 0; v < kVectors; ++v) {
            Shade sh;
            if (!shade(s, grid.x[v], grid.y[v], least, light.front[v], light.final[v], sh))
                continue;
            chunk.drawn[k] |= (unsigned long long)sh.bits << (v * kF);
            const int at = k * kTilePixels + v * kF;
            store(chunk.alpha + at, pick(sh.drawn, sh.alpha, zero()));
            store(chunk.front + at, sh.front);
            store(chunk.weight + at, sh.weight);
            store(chunk.slope + at, zero());
        }
    }
}

/// Sums of one splat over the tile's pixels, moving `behind` past it.
inline void gather_geometry(const Tile& tile, const TileBackward& job, const Grid& grid,
                            const Splat& s, const ChunkLight& chunk, int k, vf* behind,
                            float* record) {
    vf acc[kSums] = {};
    const int acting = job.geometry_channels < tile.plain ? job.geometry_channels : tile.plain;
    for (int v = 0; v < kVectors; ++v) {
        const unsigned bits = (unsigned)(chunk.drawn[k] >> (v * kF)) & (unsigned)((1ull << kF) - 1);
        if (!bits) continue;
        const int at = k * kTilePixels + v * kF;
        const vf w = load(chunk.weight + at);
        const float* grad = job.grad_plain + v * kF;
        if (job.channels_wanted) {
            for (int c = 0; c < tile.plain; ++c)
                acc[kPlain + c] += w * load(grad + c * kTilePixels);
        }
        acc[kWeightSum] += w;
        if (job.geometry_channels < 0) continue;
        const float* row = tile.channels + (long)s.id * tile.channel_count;
        const vf alpha = load(chunk.alpha + at);
        const vf grad_depth = load(grad + tile.plain * kTilePixels);
        vf q = load(chunk.slope + at) + grad_depth * s.depth;
        for (int c = 0; c < acting; ++c) q += load(grad + c * kTilePixels) * row[c];
        const vf g_alpha = load(chunk.front + at) * q - behind[v] / (1.0f - alpha);
        behind[v] += w * q;
        const vf g = pick(greater(splat(kAlphaMax), alpha), alpha * g_alpha, zero());
        const vf dx = s.x - grid.x[v], dy = s.y - grid.y[v];
        const vf a = s.l11 * dx + s.l12 * dy, b = s.l22 * dy;
        const vf ga = g * a, gb = g * b;
        acc[kG] += g;
        acc[kGa] += ga;
        acc[kGb] += gb;
        acc[kGaa] += ga * a;
        acc[kGab] += ga * b;
        acc[kGbb] += gb * b;
        const vf gx = s.l11 * ga, gy = s.l12 * ga + s.l22 * gb;
        acc[kAbsX] += pick(greater(gx, zero()), gx, -gx);
        acc[kAbsY] += pick(greater(gy, zero()), gy, -gy);
        acc[kDepthSum] += w * grad_depth;
    }
    for (int c = 0; c < kSums; ++c) record[c] += (float)sum(acc[c]);
}

void backward(const Tile& tile, int chunks, const TileBackward& job) {
    ChunkLight chunk;
    alignas(64) float features[kPassChannels];
    const Grid grid(tile.x0, tile.y0);
    const int stride = kSums + tile.lanes;
    const int acting_lanes = job.geometry_channels - tile.plain;  // lane channels moving geometry
    vf behind[kVectors];
    for (int v = 0; v < kVectors; ++v) behind[v] = load(job.behind + v * kF);
    for (int i = chunks - 1; i >= 0; --i) {
        const int first = i * kChunk;
        const int count = tile.n - first < kChunk ? tile.n - first : kChunk;
        relight(tile, grid, job.checkpoints + i * kTilePixels, first, count, chunk);
        for (int k = count - 1; k >= 0; --k) {
            if (!chunk.drawn[k]) continue;
            const int slot = tile.slots[first + k];
            const Splat& s = tile.splats[slot];
            float* record = job.records + (long)slot * stride;
            for (int c = 0; c < tile.lanes; c += kPassChannels) {
                const int width = tile.lanes - c < kPassChannels ? tile.lanes - c : kPassChannels;
                const int at = k * kTilePixels;
                const float* grad = job.grad_lanes + c * kTilePixels;
                float* into = record + kSums + c;
                const bool acts = acting_lanes > c;
                if (acts) {
                    const int used = acting_lanes - c < width ? acting_lanes - c : width;
                    copy_channels(tile.channels + (long)s.id * tile.channel_count + tile.plain + c,
                                  used, width, features);
                }
                if (acts && job.channels_wanted)
                    gather_lanes<true, true>(chunk.drawn[k], chunk.weight + at, features, grad,
                                             width, chunk.slope + at, into);
                else if (acts)
                    gather_lanes<true, false>(chunk.drawn[k], chunk.weight + at, features, grad,
                                              width, chunk.slope + at, into);
                else if (job.channels_wanted)
                    gather_lanes<false, true>(chunk.drawn[k], chunk.weight + at, features, grad,
                                              width, chunk.slope + at, into);
            }
            gather_geometry(tile, job, grid, s, chunk, k, behind, record);
        }
    }
}
