// Products with matrices in blocks (parts/blocks.py says what they mean). Weights stay whole numbers of few bits, and
// so do inputs, in 8 bits with a scale for each 32 of them; sums of products are whole numbers, exact, and only they
// are scaled.
//
//     Σ d·(q - zero)·s·p  =  d·s · (Σ q·p - zero · Σ p)         w = d·(q - zero), x = s·p
//
// A format is cut into spans, what fills vectors of this instruction set: a block or several. A struct says how its
// span becomes vectors of unsigned weights, which input belongs at each place, and what scale each lane (the sum of
// four neighbours' products) has.
#pragma once

#include "kernels.h"
#include "norm.h"
#include "simd.h"
#include "threads.h"

#include <algorithm>
#include <vector>

namespace ISA {
namespace {

constexpr int WIDE = 4 * LANES;  // bytes in a vector

typedef uint8_t Weights __attribute__((vector_size(WIDE)));
typedef int8_t Numbers __attribute__((vector_size(WIDE)));
typedef int16_t Pairs __attribute__((vector_size(WIDE)));
typedef uint16_t PairBits __attribute__((vector_size(WIDE)));

inline Weights every(uint8_t x) { return Weights{} + x; }

// Neighbours' products of 16 bits, of numbers that lie at even and at odd places; then their sums, four in a lane.
inline Ints add_fours(Ints total, Pairs even, Pairs x_even, Pairs odd, Pairs x_odd) {
    Pairs sums = even * x_even + odd * x_odd;
    return total + ((Ints)((Bits)sums << 16) >> 16) + ((Ints)sums >> 16);
}

// Each lane's total and four products of weights below 64 (where `SIGNED`: of signed ones) with numbers of x.
template <bool SIGNED = false> inline Ints dot(Ints total, Weights w, Numbers x) {
#if defined(__AVX512VNNI__)
    return (Ints)_mm512_dpbusd_epi32((__m512i)total, (__m512i)w, (__m512i)x);
#elif defined(__AVX2__)
    // The sum of two products fits 16 bits, since x is never -128.
    __m256i weights = SIGNED ? _mm256_abs_epi8((__m256i)w) : (__m256i)w;
    __m256i numbers = SIGNED ? _mm256_sign_epi8((__m256i)x, (__m256i)w) : (__m256i)x;
    __m256i pairs = _mm256_maddubs_epi16(weights, numbers);
    return total + (Ints)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#elif defined(__ARM_FEATURE_DOTPROD)
    return (Ints)vdotq_s32((int32x4_t)total, (int8x16_t)w, (int8x16_t)x);
#else
    Pairs even = SIGNED ? (Pairs)((PairBits)w << 8) >> 8 : (Pairs)((PairBits)w & 0xff);
    Pairs odd = SIGNED ? (Pairs)w >> 8 : (Pairs)((PairBits)w >> 8);
    return add_fours(total, even, (Pairs)((PairBits)x << 8) >> 8, odd, (Pairs)x >> 8);
#endif
}

inline float half(const uint8_t* from) {
    uint16_t bits = read<uint16_t>(from);
#if defined(__F16C__)
    return _cvtsh_ss(bits);
#else
    return f16(bits);
#endif
}

// The scales of a quarter as many blocks as there are lanes, `stride` bytes apart, each in its block's four lanes.
inline Vec in_fours(const uint8_t* from, [[maybe_unused]] int stride) {
#if LANES == 16
    __m128i halves = _mm_setzero_si128();
    halves = _mm_insert_epi16(halves, read<int16_t>(from), 0);
    halves = _mm_insert_epi16(halves, read<int16_t>(from + stride), 1);
    halves = _mm_insert_epi16(halves, read<int16_t>(from + 2 * stride), 2);
    halves = _mm_insert_epi16(halves, read<int16_t>(from + 3 * stride), 3);
    const __m512i fours = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    return (Vec)_mm512_permutexvar_ps(fours, _mm512_castps128_ps512(_mm_cvtph_ps(halves)));
#elif LANES == 8
    return (Vec)_mm256_set_m128(_mm_set1_ps(half(from + stride)), _mm_set1_ps(half(from)));
#else
    return all(half(from));
#endif
}

// 16 bytes of each of those blocks.
inline Weights sixteens(const uint8_t* from, [[maybe_unused]] int stride) {
#if LANES == 16
    auto part = [=](int i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i * stride)); };
    __m512i four = _mm512_castsi128_si512(part(0));
    four = _mm512_inserti32x4(four, part(1), 1);
    four = _mm512_inserti32x4(four, part(2), 2);
    return (Weights)_mm512_inserti32x4(four, part(3), 3);
#elif LANES == 8
    auto part = [=](int i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i * stride)); };
    return (Weights)_mm256_set_m128i(part(1), part(0));
#else
    return read<Weights>(from);
#endif
}

inline Weights lower(Weights w) { return w & 15; }
inline Weights upper(Weights w) { return w >> 4; }

// d, 32 x 4 bits; with LEAST d, m, 32 x 4 bits: as many blocks as have 16 bytes in a vector.
template <bool LEAST> struct FourBits {
    static constexpr int HEAD = LEAST ? 4 : 2, SIZE = HEAD + 16, BLOCKS = LANES / 4;
    static constexpr int SPAN = 32 * BLOCKS, BYTES = SIZE * BLOCKS;
    static constexpr int VECTORS = 2, ALIKE = 2, SUMS = LEAST ? LANES : 0, ZERO = LEAST ? 0 : 8;
    static constexpr bool SIGNED = false;
    struct Scales {
        Vec scale, least;
    };
    static Scales scales(const uint8_t* span) {
        return {in_fours(span, SIZE), LEAST ? in_fours(span + 2, SIZE) : Vec{}};
    }
    static Vec scale(const Scales& found, int) { return found.scale; }
    static Vec least(const Scales& found, int) { return found.least; }
    static Weights weights(const uint8_t* span, int i) {
        Weights both = sixteens(span + HEAD, SIZE);
        return i ? upper(both) : lower(both);
    }
    static int place(int e) { return e % 32 / 16 * WIDE + e / 32 * 16 + e % 16; }
    static int sum_place(int block) { return 4 * block; }
};

// d, 32 x 8 bits.
struct EightBits {
    static constexpr int SIZE = 34, BLOCKS = LANES == 16 ? 2 : 1;
    static constexpr int SPAN = 32 * BLOCKS, BYTES = SIZE * BLOCKS;
    static constexpr int VECTORS = SPAN / WIDE, ALIKE = VECTORS, SUMS = 0;
#if defined(__AVX512VNNI__)
    static constexpr bool SIGNED = false;  // its products want weights without a sign: 128 more, and that taken off
    static constexpr int ZERO = 128;
#else
    static constexpr bool SIGNED = true;
    static constexpr int ZERO = 0;
#endif
    struct Scales {
        Vec scale;
    };
    static Scales scales(const uint8_t* span) {
#if LANES == 16
        __m256 second = _mm256_set1_ps(half(span + SIZE));
        return {(Vec)_mm512_insertf32x8(_mm512_set1_ps(half(span)), second, 1)};
#else
        return {all(half(span))};
#endif
    }
    static Vec scale(const Scales& found, int) { return found.scale; }
    static Vec least(const Scales&, int) { return Vec{}; }
    static Weights weights(const uint8_t* span, [[maybe_unused]] int i) {
#if LANES == 16
        __m256i one = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(span + 2));
        __m256i other = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(span + SIZE + 2));
        return (Weights)_mm512_inserti64x4(_mm512_castsi256_si512(one), other, 1) ^ uint8_t(ZERO);
#else
        return read<Weights>(span + 2 + i * WIDE);
#endif
    }
    static int place(int e) { return e; }
    static int sum_place(int block) { return block; }
};

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpsabi"  // how vectors are handed over matters between libraries only

typedef float Eight __attribute__((vector_size(32)));
typedef uint8_t EightBytes __attribute__((vector_size(8)));

// d, m, 8 x (6 bits, 6 bits), 256 x 4 bits: of each 64 numbers the lower halves of 32 bytes, then the upper.
struct FourBitsOfMany {
    static constexpr int SPAN = 256, BYTES = 144, VECTORS = SPAN / WIDE, ALIKE = LANES == 4 ? 2 : 1;
    static constexpr int SUMS = LANES == 16 ? 16 : 8, ZERO = 0;
    static constexpr bool SIGNED = false;
    struct Scales {
        Eight scale, least;
    };
    static Eight spread(uint32_t low, uint32_t high, float by) {
        return __builtin_convertvector((EightBytes)(low | uint64_t(high) << 32), Eight) * by;
    }
    static Scales scales(const uint8_t* span) {
        const uint32_t a = read<uint32_t>(span + 4), b = read<uint32_t>(span + 8), c = read<uint32_t>(span + 12);
        const uint32_t low = 0x0f0f0f0f, six = 0x3f3f3f3f, high = 0x30303030;
        return {spread(a & six, (c & low) | (a >> 2 & high), half(span)),
                spread(b & six, (c >> 4 & low) | (b >> 2 & high), -half(span + 2))};
    }
    static Vec scale(const Scales& found, int group) {
#if LANES == 16
        const int first = group / 2 * 4 + group % 2, second = first + 2;
        const __m512i places = _mm512_setr_epi32(first, first, first, first, first, first, first, first, second, second,
                                                 second, second, second, second, second, second);
        return (Vec)_mm512_permutexvar_ps(places, _mm512_castps256_ps512((__m256)found.scale));
#else
        return all(found.scale[group]);
#endif
    }
    static Vec least(const Scales& found, [[maybe_unused]] int part) {
#if LANES == 16
        return (Vec)_mm512_zextps256_ps512((__m256)found.least);
#else
        return read<Vec>(reinterpret_cast<const char*>(&found.least) + part * WIDE);
#endif
    }
    static Weights weights(const uint8_t* span, int i) {
        // Vectors of lower and of upper halves take turns; four lanes hold half of either.
        const int turn = LANES == 4 ? 2 : 1;
        Weights both = read<Weights>(span + 16 + (i / (2 * turn) * turn + i % turn) * WIDE);
        return i / turn % 2 ? upper(both) : lower(both);
    }
    static int place(int e) {
        if (LANES < 16) return e;
        return (e / 128 * 2 + e / 32 % 2) * WIDE + e / 64 % 2 * 32 + e % 32;
    }
    static int sum_place(int block) { return block; }
};

#pragma GCC diagnostic pop

// 256 x 4 bits, 256 x 2 bits, 16 x 8 bits, d: of each 128 numbers the lower halves of 64 bytes, then the upper; of 32
// bytes of high bits, two for each of its quarters.
struct SixBits {
    static constexpr int SPAN = 256, BYTES = 210, VECTORS = SPAN / WIDE, ALIKE = 1, SUMS = 0, ZERO = 32;
    static constexpr bool SIGNED = false;
    struct Scales {
        float each[16];
    };
    static Scales scales(const uint8_t* span) {
        Scales found;
        const float d = half(span + 208);
        for (int i = 0; i < 16; i++) found.each[i] = d * float(int8_t(span[192 + i]));
        return found;
    }
    static Vec scale(const Scales& found, int group) {
#if LANES == 16
        const __m512i fours = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
        __m512i places = _mm512_add_epi32(fours, _mm512_set1_epi32(4 * group));
        return (Vec)_mm512_permutexvar_ps(places, _mm512_loadu_ps(found.each));
#elif LANES == 8
        return (Vec)_mm256_set_m128(_mm_set1_ps(found.each[2 * group + 1]), _mm_set1_ps(found.each[2 * group]));
#else
        return all(found.each[group]);
#endif
    }
    static Vec least(const Scales&, int) { return Vec{}; }
    static Weights weights(const uint8_t* span, int i) {
        const int per = 128 / WIDE, part = i % per;  // vectors of 128 numbers; the first half of them are lower halves
        Weights both = read<Weights>(span + i / per * 64 + part % (per / 2) * WIDE);
        Weights low = part < per / 2 ? lower(both) : upper(both);
        const uint8_t* bits = span + 128 + i / per * 32;
#if LANES == 16
        __m512i two = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(bits)));
        const __m512i first = _mm512_inserti64x4(_mm512_set1_epi16(4), _mm256_set1_epi16(2), 1);
        const __m512i second = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(2), 1);
        two = part ? _mm512_srlv_epi16(two, second) : _mm512_sllv_epi16(two, first);
        return low | ((Weights)two & 0x30);
#else
        Weights two = read<Weights>(bits + part * WIDE % 32);
        const int quarter = part * WIDE / 32;
        return low | (two >> (2 * quarter) << 4 & 0x30);
#endif
    }
    static int place(int e) { return e; }
    static int sum_place(int block) { return block; }
};

// Rows of x in 8 bits and where the vectors of a format have them, with a scale for each lane.
template <class B> struct Blocks {
    int64_t spans;
    std::vector<int8_t> numbers;
    std::vector<float> scales, sums;

    Blocks(const Norm& from, int64_t rows, int threads, const int64_t* which)
        : spans((from.width + B::SPAN - 1) / B::SPAN),
          numbers(rows * spans * B::SPAN),
          scales(rows * spans * B::SPAN / 4),
          sums(rows * spans * B::SUMS) {
        parallel(rows, rows * from.width < ALONE ? 1 : threads, [&](int64_t first, int64_t last) {
            std::vector<float> plain(from.width);
            for (int64_t row = first; row < last; row++) {
                normalize(from, (which ? which[row] : row) * from.width, plain.data());
                for (int64_t block = 0; block < from.width / 32; block++) quantize(plain.data() + 32 * block, row, block);
            }
        });
    }

    static int64_t row_bytes(int64_t in) { return in / B::SPAN * B::BYTES + in % B::SPAN * B::BYTES / B::SPAN; }

    // 32 numbers of a row: whole numbers from -127 to 127, and a scale that is no number where one of them is none.
    void quantize(const float* x, int64_t row, int64_t block) {
        Vec most = {}, none = {};
        for (int c = 0; c < 32; c += LANES) {
            Vec v = read<Vec>(x + c);
            most = larger(most, larger(v, -v));
            none += v - v;
        }
        float largest = most[0];
        for (int i = 1; i < LANES; i++) largest = most[i] > largest ? most[i] : largest;
        const float scale = largest / 127 + sum(none), inverse = largest > 0 ? 127 / largest : 0;
        const int64_t span = row * spans + block / (B::SPAN / 32);
        const int within = int(block % (B::SPAN / 32));
        Bits total = {};  // of what is no number any whole numbers come, whose sum wraps around
        for (int c = 0; c < 32; c += LANES) {
            const Vec magic = all(12582912.0f);  // adding it rounds to whole numbers, which its last bits then hold
            const Bits whole = (Bits)(read<Vec>(x + c) * inverse + magic) - (Bits)magic;
            total += whole;
            const int place = B::place(32 * within + c);
            write(numbers.data() + span * B::SPAN + place, __builtin_convertvector((Ints)whole, Bytes));
            for (int i = 0; i < LANES; i += 4) scales[(span * B::SPAN + place + i) / 4] = scale;
        }
        if (!B::SUMS) return;
        uint32_t sum_of_all = 0;
        for (int i = 0; i < LANES; i++) sum_of_all += total[i];
        sums[span * B::SUMS + B::sum_place(within)] = scale * float(int32_t(sum_of_all));
    }

    template <int R, int M, class Turn, class Sums>
    void tile(const char* w, int64_t in, int64_t m, Turn, Sums found) const {
        const int64_t stride = row_bytes(in), whole = in / B::SPAN;
        const auto* rows = reinterpret_cast<const uint8_t*>(w);
        Vec total[R][M] = {};
        for (int64_t s = 0; s < whole; s++) span<R, M>(rows + s * B::BYTES, stride, s, m, total);
        if (whole < spans) {
            uint8_t tail[R * B::BYTES] = {};
            for (int r = 0; r < R; r++)
                std::memcpy(tail + r * B::BYTES, rows + r * stride + whole * B::BYTES, stride - whole * B::BYTES);
            span<R, M>(tail, B::BYTES, whole, m, total);
        }
        float each[R * M];
        each_sum<R * M>(total[0], each);
        for (int r = 0; r < R; r++)
            for (int i = 0; i < M; i++) found[r][i] = each[r * M + i];
    }

    template <int R, int M>
    void span(const uint8_t* w, int64_t stride, int64_t s, int64_t m, Vec (&total)[R][M]) const {
        typename B::Scales own[R];
        for (int r = 0; r < R; r++) {
            // Rows are short for the processor's own prefetching, which starts anew with each: ask for those after these.
            for (int i = 0; i < B::BYTES; i += 64) __builtin_prefetch(w + (r + R) * stride + i);
            own[r] = B::scales(w + r * stride);
        }
#pragma GCC unroll 16
        for (int group = 0; group < B::VECTORS / B::ALIKE; group++) {
            Numbers x[M][B::ALIKE];
            Ints start[M];
            Vec scale[M];
            for (int i = 0; i < M; i++) {
                const int64_t at = ((m + i) * spans + s) * B::SPAN + group * B::ALIKE * WIDE;
                start[i] = Ints{};
                for (int c = 0; c < B::ALIKE; c++) {
                    x[i][c] = read<Numbers>(numbers.data() + at + c * WIDE);
                    if (B::ZERO) start[i] = dot(start[i], every(B::ZERO), x[i][c]);
                }
                scale[i] = read<Vec>(scales.data() + at / 4);
            }
            for (int r = 0; r < R; r++) {
                Weights q[B::ALIKE];
                for (int c = 0; c < B::ALIKE; c++) q[c] = B::weights(w + r * stride, group * B::ALIKE + c);
                for (int i = 0; i < M; i++) {
                    Ints product = -start[i];
                    for (int c = 0; c < B::ALIKE; c++) product = dot<B::SIGNED>(product, q[c], x[i][c]);
                    total[r][i] += __builtin_convertvector(product, Vec) * (B::scale(own[r], group) * scale[i]);
                }
            }
        }
        for (int part = 0; part < B::SUMS / LANES; part++)
            for (int r = 0; r < R; r++)
                for (int i = 0; i < M; i++)
                    total[r][i] += B::least(own[r], part) *
                                   read<Vec>(sums.data() + ((m + i) * spans + s) * B::SUMS + part * LANES);
    }
};

// The numbers of a span, in their order.
template <class B> void expand(const uint8_t* span, float* y) {
    const auto own = B::scales(span);
    uint8_t weights[B::SPAN];
    float scales[B::SPAN / 4], least[B::SUMS + 1] = {};
    for (int i = 0; i < B::VECTORS; i++) {
        write(weights + i * WIDE, B::weights(span, i));
        write(scales + i * LANES, B::scale(own, i / B::ALIKE));
    }
    for (int part = 0; part < B::SUMS / LANES; part++) write(least + part * LANES, B::least(own, part));
    for (int e = 0; e < B::SPAN; e += LANES) {
        const int place = B::place(e);
        const Vec whole = B::SIGNED ? int8s(weights + place) : uint8s(weights + place) - float(B::ZERO);
        write(y + e, whole * scales[place / 4] + least[B::SUMS ? B::sum_place(e / 32) : 0]);
    }
}

// Rows of spans, the last of which may end in the middle.
template <class B> void expand(const Expand& it) {
    const int64_t whole = it.in / B::SPAN, bytes = Blocks<B>::row_bytes(it.in);
    parallel(it.rows, it.threads, [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; row++) {
            const uint8_t* from = static_cast<const uint8_t*>(it.weight) + row * bytes;
            float* y = it.y + row * it.in;
            for (int64_t s = 0; s < whole; s++) expand<B>(from + s * B::BYTES, y + s * B::SPAN);
            if (whole * B::SPAN == it.in) continue;
            uint8_t tail[B::BYTES] = {};
            float numbers[B::SPAN];
            std::memcpy(tail, from + whole * B::BYTES, bytes - whole * B::BYTES);
            expand<B>(tail, numbers);
            std::copy(numbers, numbers + it.in - whole * B::SPAN, y + whole * B::SPAN);
        }
    });
}

}  // namespace
}  // namespace ISA
