// Helpers on top of kernels_lanes.inl.

constexpr int kVectors = kTilePixels / kF;  // vectors of pixels in a tile

/// A vector of floats at any address.
typedef float vfu __attribute__((vector_size(kBytes), aligned(4)));
inline vf load_any(const float* p) { return *reinterpret_cast<const vfu*>(p); }
inline void store_any(float* p, vf v) { *reinterpret_cast<vfu*>(p) = v; }

// The outcome of a comparison: a mask register with AVX-512 (compilers take generic vector selects
// apart there), else a vector of all-ones and zeros.
#if RELOC_VEC_BYTES == 64
typedef __mmask16 Lanes;
inline Lanes greater(vf a, vf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ); }
inline Lanes both(Lanes a, Lanes b) { return _kand_mask16(a, b); }
inline Lanes but_not(Lanes a, Lanes b) { return _kandn_mask16(b, a); }
inline vf pick(Lanes m, vf a, vf b) { return (vf)_mm512_mask_blend_ps(m, (__m512)b, (__m512)a); }
inline unsigned lane_bits(Lanes m) { return m; }
inline void set_bits(vi& v, Lanes m, int bits) {
    v = (vi)_mm512_mask_or_epi32((__m512i)v, m, (__m512i)v, _mm512_set1_epi32(bits));
}
#else
typedef vi Lanes;
inline Lanes greater(vf a, vf b) { return a > b; }
inline Lanes both(Lanes a, Lanes b) { return a & b; }
inline Lanes but_not(Lanes a, Lanes b) { return a & ~b; }
inline vf pick(Lanes m, vf a, vf b) { return m ? a : b; }
inline unsigned lane_bits(Lanes m) {
#if RELOC_VEC_BYTES == 32
    return (unsigned)_mm256_movemask_ps((__m256)m);
#elif defined(__SSE2__)
    return (unsigned)_mm_movemask_ps((__m128)m);
#else
    unsigned bits = 0;
    for (int i = 0; i < kF; ++i) bits |= (m[i] ? 1u : 0u) << i;
    return bits;
#endif
}
inline void set_bits(vi& v, Lanes m, int bits) { v |= m & bits; }
#endif
