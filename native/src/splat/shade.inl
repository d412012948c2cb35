// The one place that decides what a Gaussian does to a pixel; forward and backward share it.

/// Transmittance of a tile's pixels. `front` is 0 where the pixel takes nothing any more.
struct Light {
    vf front[kVectors], final[kVectors];
};

/// Pixel coordinates of a tile's vectors.
struct Grid {
    vf x[kVectors], y[kVectors];
    Grid(float x0, float y0) {
        for (int v = 0; v < kVectors; ++v) {
            for (int l = 0; l < kF; ++l) {
                x[v][l] = x0 + (float)((v * kF + l) % kTileSide);
                y[v][l] = y0 + (float)((v * kF + l) / kTileSide);
            }
        }
    }
};

/// One splat on one vector of pixels.
struct Shade {
    vf alpha, front, weight;  // valid where drawn
    Lanes drawn;
    unsigned bits;
};

/// Exponent below which alpha cannot reach 1/255, with room for rounding.
inline float least_power(float opacity) {
    // ln(255 o) <= 255 o / e^k + k - 1 for any k (tangent of the logarithm); the best of a few.
    const float v = 255.0f * opacity;
    const float t0 = v * 0.36787944f, t2 = v * 0.049787068f + 2.0f, t4 = v * 0.0067379470f + 4.0f;
    float t = t0 < t2 ? t0 : t2;
    t = t < t4 ? t : t4;
    return -t - 1e-3f;
}

/// Returns false, leaving the light alone, when no pixel of the vector gets anything.
inline bool shade(const Splat& s, vf px, vf py, float least, vf& front, vf& final, Shade& out) {
    const vf dx = s.x - px, dy = s.y - py;
    const vf a = s.l11 * dx + s.l12 * dy, b = s.l22 * dy;
    const vf power = -0.5f * (a * a + b * b);
    const Lanes near = both(greater(power, splat(least)), greater(front, zero()));
    if (!lane_bits(near)) return false;
    vf alpha = s.opacity * vexp_nonpositive(power);
    alpha = pick(greater(alpha, splat(kAlphaMax)), splat(kAlphaMax), alpha);
    const Lanes counts = but_not(near, greater(splat(kAlphaMin), alpha));
    const vf after = front - alpha * front;
    const Lanes stops = greater(splat(kTransmittanceMin), after);
    out.drawn = but_not(counts, stops);
    out.alpha = alpha;
    out.front = front;
    out.weight = pick(out.drawn, alpha * front, zero());
    out.bits = lane_bits(out.drawn);
    final = pick(out.drawn, after, final);
    front = pick(counts, pick(stops, zero(), after), front);
    return out.bits != 0;
}

inline bool any_light(const Light& light) {
    vf most = light.front[0];
    for (int v = 1; v < kVectors; ++v)
        most = pick(greater(most, light.front[v]), most, light.front[v]);
    return lane_bits(greater(most, zero())) != 0;
}

/// Copies the lane channels of a splat, `used` of them, and pads with zeros.
inline void copy_channels(const float* row, int used, int padded, float* out) {
    int c = 0;
    for (; c + kF <= used; c += kF) store(out + c, load_any(row + c));
    for (; c < used; ++c) out[c] = row[c];
    for (; c < padded; ++c) out[c] = 0.0f;
}
