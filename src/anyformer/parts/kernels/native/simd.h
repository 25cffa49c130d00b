// A vector of as many floats as the instruction set has lanes for, in the compiler's own vector types.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#define LANES 16
#elif defined(__AVX2__)
#include <immintrin.h>
#define LANES 8
#else
#define LANES 4
#endif
#if defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace ISA {

typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Bits __attribute__((vector_size(4 * LANES)));
typedef uint16_t Shorts __attribute__((vector_size(2 * LANES)));
typedef int8_t Bytes __attribute__((vector_size(LANES)));
typedef uint8_t UnsignedBytes __attribute__((vector_size(LANES)));

template <class V> inline V read(const void* from) {
    V v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

template <class V> inline void write(void* to, V v) { std::memcpy(to, &v, sizeof v); }

inline Vec all(float x) { return x - Vec{}; }  // x + 0 would have to be computed, for -0

#if defined(__AVX2__)
// Its lanes added up to four.
inline __m128 four(Vec v) {
#if defined(__AVX512F__)
    const __m512 whole = (__m512)v;
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(whole), _mm512_extractf32x8_ps(whole, 1));
#else
    const __m256 half = (__m256)v;
#endif
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}
#endif

#if defined(__AVX512F__)
// Of four vectors, in each quarter the sums of that quarter of theirs.
inline __m512 quarters(Vec a, Vec b, Vec c, Vec d) {
    const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps((__m512)a, (__m512)b), _mm512_unpackhi_ps((__m512)a, (__m512)b));
    const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps((__m512)c, (__m512)d), _mm512_unpackhi_ps((__m512)c, (__m512)d));
    const __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
    const __m512d high = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
    return _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
}

// The quarters of two vectors, added up in pairs.
inline __m512 halves(__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}
#endif

inline float sum(Vec v) {
#if defined(__AVX512F__)
    const __m512 whole = quarters(v, v, v, v), half = halves(whole, whole);
    return _mm512_cvtss_f32(halves(half, half));
#else
    float total = 0;
    for (int i = 0; i < LANES; i++) total += v[i];
    return total;
#endif
}

// The sum of each of N vectors, to the same bits as alone; of many at a time in a fraction of the shuffles.
template <int N> inline void each_sum(const Vec* of, float* to) {
    int i = 0;
#if defined(__AVX512F__)
    for (; N - i >= 16; i += 16) {
        const Vec* v = of + i;
        const __m512 first = halves(quarters(v[0], v[1], v[2], v[3]), quarters(v[4], v[5], v[6], v[7]));
        const __m512 second = halves(quarters(v[8], v[9], v[10], v[11]), quarters(v[12], v[13], v[14], v[15]));
        _mm512_storeu_ps(to + i, halves(first, second));
    }
    for (; N - i > 2; i += 8) {
        const int n = N - i < 8 ? N - i : 8;
        Vec v[8] = {};
        for (int j = 0; j < n; j++) v[j] = of[i + j];
        const __m512 first = halves(quarters(v[0], v[1], v[2], v[3]), quarters(v[4], v[5], v[6], v[7]));
        const __m512 sums = halves(first, first);
        std::memcpy(to + i, &sums, 4 * n);
    }
#endif
    for (; i < N; i++) to[i] = sum(of[i]);
}

// The sums of four vectors, in a fraction of the shuffles that each alone would take.
inline void sums(const Vec (&of)[4], float* to) {
#if defined(__AVX2__)
    const __m128 first = _mm_hadd_ps(four(of[0]), four(of[1])), second = _mm_hadd_ps(four(of[2]), four(of[3]));
    _mm_storeu_ps(to, _mm_hadd_ps(first, second));
#else
    for (int i = 0; i < 4; i++) to[i] = sum(of[i]);
#endif
}

inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }

inline float largest(Vec v) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)v);
#else
    float most = v[0];
    for (int i = 1; i < LANES; i++) most = most > v[i] ? most : v[i];
    return most;
#endif
}

inline float bf16(uint16_t x) {
    uint32_t bits = uint32_t(x) << 16;
    float y;
    std::memcpy(&y, &bits, 4);
    return y;
}

// To the nearest, ties to even; NaN stays NaN.
inline uint16_t to_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t(bits >> 16) | 0x40;
    return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float f16(uint16_t h) {
    uint32_t sign = uint32_t(h & 0x8000) << 16, rest = h & 0x7fff, bits;
    if (rest >= 0x7c00) bits = (rest << 13) + (112u << 23) * 2;  // infinities and NaN keep their mantissa
    else if (rest >= 0x0400) bits = (rest << 13) + (112u << 23);
    else {  // too small to be normal: rest · 2^-24
        float y = float(rest) * 5.9604644775390625e-8f;
        std::memcpy(&bits, &y, 4);
    }
    bits |= sign;
    float y;
    std::memcpy(&y, &bits, 4);
    return y;
}

// Of 2 · LANES numbers in bfloat16, those at even places or those at odd ones: a shift or a mask, no shuffle.
inline Vec half_of_bf16(const uint16_t* from, int odd) {
    const Bits pairs = read<Bits>(from);
    return (Vec)(odd ? pairs & 0xffff0000u : pairs << 16);
}

// The same of 2 · LANES floats, to meet those; and back.
inline void take_apart(const float* plain, float* halves) {
    for (int i = 0; i < LANES; i++) halves[i] = plain[2 * i];
    for (int i = 0; i < LANES; i++) halves[LANES + i] = plain[2 * i + 1];
}

inline void put_together(const float* halves, float* plain) {
    for (int i = 0; i < LANES; i++) {
        plain[2 * i] = halves[i];
        plain[2 * i + 1] = halves[LANES + i];
    }
}

// LANES numbers of either type an input may have, in their order.
inline Vec widened(const void* from, int64_t at, int type) {
    if (type == 0) return read<Vec>(static_cast<const float*>(from) + at);
    return (Vec)(__builtin_convertvector(read<Shorts>(static_cast<const uint16_t*>(from) + at), Bits) << 16);
}

// LANES numbers in bfloat16: to the nearest, ties to even; NaN stays NaN.
inline Shorts narrowed(Vec v) {
    const Bits bits = (Bits)v, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return __builtin_convertvector(v == v ? rounded : (bits >> 16) | 0x40, Shorts);
}

// LANES integers of 8 bits, each as a number. GCC makes a slow sequence of the conversion where it is not told how.
inline Vec int8s(const void* from) {
#if defined(__AVX512F__)
    return (Vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(from))));
#elif defined(__AVX2__)
    return (Vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(from))));
#else
    return __builtin_convertvector(__builtin_convertvector(read<Bytes>(from), Ints), Vec);
#endif
}

inline Vec uint8s(const void* from) {
#if defined(__AVX512F__)
    return (Vec)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(from))));
#elif defined(__AVX2__)
    return (Vec)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(from))));
#else
    return __builtin_convertvector(__builtin_convertvector(read<UnsignedBytes>(from), Ints), Vec);
#endif
}

inline float number(const void* from, int64_t at, int type) {
    return type == 0 ? static_cast<const float*>(from)[at] : bf16(static_cast<const uint16_t*>(from)[at]);
}

inline void put(void* to, int64_t at, float value, int type) {
    if (type == 0) static_cast<float*>(to)[at] = value;
    else static_cast<uint16_t*>(to)[at] = to_bf16(value);
}

// Up to LANES numbers, zeros behind them; and back.
inline Vec some(const float* from, int64_t n) {
    if (n >= LANES) return read<Vec>(from);
    Vec v = {};
    std::memcpy(&v, from, 4 * n);
    return v;
}

inline void put_some(float* to, Vec v, int64_t n) {
    if (n >= LANES) write(to, v);
    else std::memcpy(to, &v, 4 * n);
}

// The same of either type.
inline Vec some(const void* from, int64_t at, int64_t n, int type) {
    if (type == 0) return some(static_cast<const float*>(from) + at, n);
    if (n >= LANES) return widened(from, at, type);
    Vec v = {};
    for (int64_t i = 0; i < n; i++) v[i] = number(from, at + i, type);
    return v;
}

inline void put_some(void* to, int64_t at, Vec v, int64_t n, int type) {
    if (type == 0) return put_some(static_cast<float*>(to) + at, v, n);
    if (n >= LANES) return write(static_cast<uint16_t*>(to) + at, narrowed(v));
    for (int64_t i = 0; i < n; i++) put(to, at + i, v[i], type);
}

// e^x within 2 units in the last place: 2^n by the exponent's bits, the rest by a polynomial (Cephes' expf).
inline Vec exp(Vec x) {
    x = x > all(88.0f) ? all(88.0f) : x;
    Ints tiny = x < all(-87.0f);
    x = tiny ? all(-87.0f) : x;
    Vec turns = x * 1.44269504088896341f + all(0.5f);
    Ints whole = __builtin_convertvector(turns, Ints);
    whole += (Ints)(__builtin_convertvector(whole, Vec) > turns);  // towards minus infinity: true is -1
    Vec n = __builtin_convertvector(whole, Vec);
    Vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Vec p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    p *= (Vec)((whole + 127) << 23);
    return tiny ? Vec{} : p;
}

inline Vec sigmoid(Vec x) { return 1.0f / (1.0f + exp(-x)); }
inline Vec tanh(Vec x) { return 1.0f - 2.0f / (1.0f + exp(2.0f * x)); }

}  // namespace ISA
