// Vector types and helpers shared by the kernel bodies; included inside an anonymous namespace.
// GCC/Clang vector extensions keep one source for all instruction sets.

#define RELOC_LANE_FN inline

constexpr int kBytes = RELOC_VEC_BYTES;
constexpr int kF = kBytes / 4;
constexpr int kD = kBytes / 8;
typedef float vf __attribute__((vector_size(kBytes)));
typedef int vi __attribute__((vector_size(kBytes)));
typedef double vd __attribute__((vector_size(kBytes)));
typedef long long vl __attribute__((vector_size(kBytes)));

inline vf load(const float* p) { return *reinterpret_cast<const vf*>(p); }
inline void store(float* p, vf v) { *reinterpret_cast<vf*>(p) = v; }
inline vd load(const double* p) { return *reinterpret_cast<const vd*>(p); }
inline void store(double* p, vd v) { *reinterpret_cast<vd*>(p) = v; }
inline vf splat(float s) { return s - vf{}; }
inline vd splatd(double s) { return s - vd{}; }
inline vf zero() { return vf{}; }
inline vf max0(vf v) { return v > zero() ? v : zero(); }

inline bool any(vl condition) {
    bool found = false;
    for (int i = 0; i < kD; ++i) found |= condition[i] != 0;
    return found;
}

inline double sum(vf v) {
#if RELOC_VEC_BYTES == 64
    return _mm512_reduce_add_ps((__m512)v);
#elif RELOC_VEC_BYTES == 32
    const __m256 x = (__m256)v;
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#else
    float s = 0;
    for (int i = 0; i < kF; ++i) s += v[i];
    return s;
#endif
}

inline vd vsqrt(vd v) {
#if RELOC_VEC_BYTES == 64
    return (vd)_mm512_sqrt_pd((__m512d)v);
#elif RELOC_VEC_BYTES == 32
    return (vd)_mm256_sqrt_pd((__m256d)v);
#else
    vd out;
    for (int i = 0; i < kD; ++i) out[i] = __builtin_sqrt(v[i]);
    return out;
#endif
}

inline vf vsqrt(vf v) {
#if RELOC_VEC_BYTES == 64
    return (vf)_mm512_sqrt_ps((__m512)v);
#elif RELOC_VEC_BYTES == 32
    return (vf)_mm256_sqrt_ps((__m256)v);
#else
    vf out;
    for (int i = 0; i < kF; ++i) out[i] = __builtin_sqrtf(v[i]);
    return out;
#endif
}

/// exp(v) for v <= 0 with a relative error below 3e-7 (range reduction and a degree-6 polynomial).
inline vf vexp_nonpositive(vf v) {
    v = v < splat(-87.0f) ? splat(-87.0f) : v;
    const vf scaled = v * 1.44269504088896341f;
    const vi k = __builtin_convertvector(scaled - 0.5f, vi);  // truncation of a nonpositive number
    const vf r = v - __builtin_convertvector(k, vf) * 0.693147180559945309f;
    vf p = splat(1.0f / 720.0f);
    p = p * r + 1.0f / 120.0f;
    p = p * r + 1.0f / 24.0f;
    p = p * r + 1.0f / 6.0f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * (vf)((k + 127) << 23);
}

/// A pose broadcast to all lanes.
struct PoseLanes {
    vf r0, r1, r2, r3, r4, r5, r6, r7, r8, t0, t1, t2;
    explicit PoseLanes(const PoseF& p)
        : r0(splat(p.r[0])),
          r1(splat(p.r[1])),
          r2(splat(p.r[2])),
          r3(splat(p.r[3])),
          r4(splat(p.r[4])),
          r5(splat(p.r[5])),
          r6(splat(p.r[6])),
          r7(splat(p.r[7])),
          r8(splat(p.r[8])),
          t0(splat(p.t[0])),
          t1(splat(p.t[1])),
          t2(splat(p.t[2])) {}
    void apply(vf X, vf Y, vf Z, vf& cx, vf& cy, vf& cz) const {
        cx = r0 * X + (r1 * Y + (r2 * Z + t0));
        cy = r3 * X + (r4 * Y + (r5 * Z + t1));
        cz = r6 * X + (r7 * Y + (r8 * Z + t2));
    }
};
