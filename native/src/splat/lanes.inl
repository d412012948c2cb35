// Helpers on top of kernels_lanes.inl.

constexpr int kVectors = kTilePixels / kF;  // vectors of pixels in a tile

/// A vector of floats at any address.
typedef float vfu __attribute__((vector_size(kBytes), aligned(4)));
inline vf load_any(const float* p) { return *reinterpret_cast<const vfu*>(p); }
inline void store_any(float* p, vf v) { *reinterpret_cast<vfu*>(p) = v; }

/// One bit per lane of a comparison.
inline unsigned lane_bits(vi mask) {
#if RELOC_VEC_BYTES == 64
    return _mm512_movepi32_mask((__m512i)mask);
#elif RELOC_VEC_BYTES == 32
    return (unsigned)_mm256_movemask_ps((__m256)mask);
#elif defined(__SSE2__)
    return (unsigned)_mm_movemask_ps((__m128)mask);
#else
    unsigned bits = 0;
    for (int i = 0; i < kF; ++i) bits |= (mask[i] ? 1u : 0u) << i;
    return bits;
#endif
}

inline vd gather(const float* p, int stride, int valid) {
    vd out;
    for (int l = 0; l < kD; ++l) out[l] = p[(l < valid ? l : 0) * stride];
    return out;
}
