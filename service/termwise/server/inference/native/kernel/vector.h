/* Vectors of floats: AVX512 or AVX2, by the flags that this file is compiled with. */
#ifndef TERMWISE_VECTOR_H
#define TERMWISE_VECTOR_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

#ifdef __AVX512F__
#define LANES 16
/* Rows and vectors of a tile: its sums fill 24 of 32 registers; three hold weights, one a broadcast. */
#define ROWS 8
typedef __m512 vector;
INLINE vector load(const float *from) { return _mm512_loadu_ps(from); }
INLINE void store(float *to, vector x) { _mm512_storeu_ps(to, x); }
INLINE vector all(float x) { return _mm512_set1_ps(x); }
/* Gives b where either is NaN: a NaN loses against a running maximum b. */
INLINE vector larger(vector a, vector b) { return _mm512_max_ps(a, b); }
INLINE vector smaller(vector a, vector b) { return _mm512_min_ps(a, b); }
INLINE vector fused(vector a, vector b, vector c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vector nearest(vector x) { return _mm512_roundscale_ps(x, 8); }
INLINE vector times_power(vector x, vector n) { return _mm512_scalef_ps(x, n); }
INLINE float sum(vector x) { return _mm512_reduce_add_ps(x); }
INLINE float largest(vector x) { return _mm512_reduce_max_ps(x); }
#else
#define LANES 8
#define ROWS 4
typedef __m256 vector;
INLINE vector load(const float *from) { return _mm256_loadu_ps(from); }
INLINE void store(float *to, vector x) { _mm256_storeu_ps(to, x); }
INLINE vector all(float x) { return _mm256_set1_ps(x); }
INLINE vector larger(vector a, vector b) { return _mm256_max_ps(a, b); }
INLINE vector smaller(vector a, vector b) { return _mm256_min_ps(a, b); }
INLINE vector fused(vector a, vector b, vector c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vector nearest(vector x) { return _mm256_round_ps(x, 8); }
INLINE vector times_power(vector x, vector n) {
    __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(x, _mm256_castsi256_ps(power));
}
INLINE float sum(vector x) {
    float lane[LANES], total = 0;
    store(lane, x);
    for (int i = 0; i < LANES; i++) total += lane[i];
    return total;
}
INLINE float largest(vector x) {
    float lane[LANES];
    store(lane, x);
    float most = lane[0];
    for (int i = 1; i < LANES; i++) most = lane[i] > most ? lane[i] : most;
    return most;
}
#endif

/* e to the x; the polynomial is that of Cephes' expf, its error below 2 units in the last place. */
INLINE vector exponential(vector x) {
    x = smaller(larger(x, all(-87.0f)), all(88.0f));
    const vector n = nearest(x * all(1.44269504088896341f));
    /* ln 2 in two parts, so that the rest is exact. */
    const vector r = x - n * all(0.693359375f) - n * all(-2.12194440e-4f);
    vector p = all(1.9875691500e-4f);
    p = fused(p, r, all(1.3981999507e-3f));
    p = fused(p, r, all(8.3334519073e-3f));
    p = fused(p, r, all(4.1665795894e-2f));
    p = fused(p, r, all(1.6666665459e-1f));
    p = fused(p, r, all(5.0000001201e-1f));
    return times_power(fused(p, r * r, r) + all(1), n);
}

/* The error function, by the rational approximation that Eigen and XLA use; its error is below 4e-7. */
INLINE vector error_function(vector x) {
    x = smaller(larger(x, all(-4)), all(4));
    const vector s = x * x;
    vector p = all(-2.72614225801306e-10f);
    p = fused(p, s, all(2.77068142495902e-08f));
    p = fused(p, s, all(-2.10102402082508e-06f));
    p = fused(p, s, all(-5.69250639462346e-05f));
    p = fused(p, s, all(-7.34990630326855e-04f));
    p = fused(p, s, all(-2.95459980854025e-03f));
    p = fused(p, s, all(-1.60960333262415e-02f));
    vector q = all(-1.45660718464996e-05f);
    q = fused(q, s, all(-2.13374055278905e-04f));
    q = fused(q, s, all(-1.68282697438203e-03f));
    q = fused(q, s, all(-7.37332916720468e-03f));
    q = fused(q, s, all(-1.42647390514189e-02f));
    return x * p / q;
}

INLINE vector gelu(vector x) { return all(0.5f) * x * (all(1) + error_function(x * all(0.70710678118654752f))); }

INLINE vector gelu_tanh(vector x) {
    /* 1 + tanh(y) is 2 / (1 + exp(-2 y)). */
    const vector y = all(0.79788456080286536f) * fused(all(0.044715f) * x * x, x, x);
    return x / (all(1) + exponential(all(-2) * y));
}

#define VECTORS 3
#define PANEL (LANES * VECTORS)

/* The first `count` floats at `from`, then zeros. */
INLINE vector load_some(const float *from, int64_t count) {
    if (count >= LANES) return load(from);
    float lane[LANES] = {0};
    if (count > 0) memcpy(lane, from, (size_t)count * sizeof(float));
    return load(lane);
}

INLINE void store_some(float *to, vector x, int64_t count) {
    if (count >= LANES) {
        store(to, x);
    } else if (count > 0) {
        float lane[LANES];
        store(lane, x);
        memcpy(to, lane, (size_t)count * sizeof(float));
    }
}

#endif
