// Attention of few queries over many keys: as fast as the keys and values come from memory.
//
// The keys of each key head are read once for all of its queries (G heads times T), a chunk at a time; a chunk keeps
// its own maximum, sum and weighted values, and the chunks of a head are put together at the end (the online softmax
// of Milakov & Gimelshein 2018). How keys are cut depends on their number alone: the same sums for any batch and any
// number of threads.
#include "int8_rows.h"
#include "kernels.h"
#include "simd.h"
#include "threads.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace ISA {
namespace {

constexpr int64_t BLOCK = 64;   // keys whose scores are held at a time
constexpr int64_t CHUNKS = 8;   // of a head at most
constexpr int64_t ALONE = 1 << 15;  // products below which a second thread costs more than it gives
constexpr int64_t PAIR = 2 * LANES;  // channels read at a time, in two vectors
constexpr int KEYS = 4;              // scored at a time
constexpr int TILE = LANES == 16 ? 4 : 2;  // queries at a time, so many that what they add up stays in registers

// How keys and values are kept: PAIR channels in two vectors, in whichever order costs nothing. Queries are laid out
// alike, and answers are brought back.
struct Floats {
    static constexpr int64_t SIZE = 4;
    static constexpr bool INTERLEAVED = false;
    static void read(const char* from, Vec (&to)[2]) {
        to[0] = ISA::read<Vec>(from);
        to[1] = ISA::read<Vec>(from + sizeof(Vec));
    }
    static void scale(const char*, int64_t, int64_t, Vec (&)[2]) {}
};

struct BFloats {
    static constexpr int64_t SIZE = 2;
    static constexpr bool INTERLEAVED = true;
    static void read(const char* from, Vec (&to)[2]) {
        for (int odd = 0; odd < 2; odd++) to[odd] = half_of_bf16(reinterpret_cast<const uint16_t*>(from), odd);
    }
    static void scale(const char*, int64_t, int64_t, Vec (&)[2]) {}
};

struct Int8s {
    static constexpr int64_t SIZE = 1;
    static constexpr bool INTERLEAVED = false;
    static void read(const char* from, Vec (&to)[2]) {
        to[0] = int8s(from);
        to[1] = int8s(from + LANES);
    }
    static void scale(const char* row, int64_t first, int64_t width, Vec (&to)[2]) {
        const float scale = bf16(ISA::read<uint16_t>(row + int8_scales(width) + first / INT8_GROUP * 2));
        to[0] *= scale;
        to[1] *= scale;
    }
};

// PAIR channels in their order as Kept has them, and back.
template <class Kept> inline void lay(const float* plain, float* to) {
    if (Kept::INTERLEAVED) take_apart(plain, to);
    else std::memcpy(to, plain, 4 * PAIR);
}

template <class Kept> inline void bring_back(const float* laid, float* to) {
    if (Kept::INTERLEAVED) put_together(laid, to);
    else std::memcpy(to, laid, 4 * PAIR);
}

// The channels of a row from `first` on, zeros past its end.
template <class Kept> inline void channels(const char* row, int64_t first, int64_t width, Vec (&to)[2]) {
    if (width - first >= PAIR) {
        Kept::read(row + first * Kept::SIZE, to);
    } else {
        char padded[PAIR * Kept::SIZE] = {};
        std::memcpy(padded, row + first * Kept::SIZE, (width - first) * Kept::SIZE);
        Kept::read(padded, to);
    }
    Kept::scale(row, first, width, to);
}

// Have rows on their way from memory while others are worked on.
inline void fetch(const char* row, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(row + at);
}

int64_t padded(int64_t width) { return (width + 2 * PAIR - 1) / (2 * PAIR) * (2 * PAIR); }

struct Shape {
    int64_t queries, chunk, chunks, keys, record;  // keys: width of a query; record: maximum, sum, values of a query

    explicit Shape(const Attention& it) {
        queries = it.H / it.K * it.T;
        chunk = std::max(BLOCK, (it.S + CHUNKS - 1) / CHUNKS);
        chunk = (chunk + BLOCK - 1) / BLOCK * BLOCK;
        chunks = (it.S + chunk - 1) / chunk;
        keys = padded(it.C);
        record = 2 + padded(it.V);
    }
};

// One chunk of one key head: all of its queries, TILE of them at a time.
template <class Kept> struct Chunk {
    const Attention& it;
    const Shape& shape;
    int64_t b, kv, first, last;
    const char *k, *v;
    float* records;
    std::vector<float> q;
    float scores[TILE][BLOCK];

    Chunk(const Attention& it, const Shape& shape, int64_t b, int64_t kv, int64_t chunk, float* records)
        : it(it), shape(shape), b(b), kv(kv), first(chunk * shape.chunk),
          last(std::min(it.S, first + shape.chunk)),
          k(static_cast<const char*>(it.k) + (b * it.k_strides[0] + kv * it.k_strides[1]) * Kept::SIZE),
          v(static_cast<const char*>(it.v) + (b * it.v_strides[0] + kv * it.v_strides[1]) * Kept::SIZE),
          records(records), q(shape.queries * shape.keys) {
        for (int64_t i = 0; i < shape.queries; i++) {
            const int64_t at = b * it.q_strides[0] + head(i) * it.q_strides[1] + i % it.T * it.q_strides[2];
            for (int64_t c = 0; c < it.C; c += PAIR) {
                float plain[PAIR] = {};
                write(plain, it.scale * some(it.q, at + c, it.C - c, it.type));
                if (it.C - c > LANES)
                    write(plain + LANES, it.scale * some(it.q, at + c + LANES, it.C - c - LANES, it.type));
                lay<Kept>(plain, q.data() + i * shape.keys + c);
            }
            float* record = records + i * shape.record;
            std::fill(record, record + shape.record, 0.0f);
            record[0] = -INFINITY;
        }
    }

    int64_t head(int64_t query) const { return kv * (it.H / it.K) + query / it.T; }
    const char* key(int64_t s) const { return k + s * it.k_strides[2] * Kept::SIZE; }
    const char* value(int64_t s) const { return v + s * it.v_strides[2] * Kept::SIZE; }

    void read_all() {
        for (int64_t block = first; block < last; block += BLOCK) {
            const int64_t keys = std::min(BLOCK, last - block);
            for (int64_t i = 0; i < shape.queries; i += TILE) {
                const int64_t left = shape.queries - i;
                if (left >= TILE) take<TILE>(i, block, keys);
                else if (TILE > 3 && left == 3) take<TILE < 3 ? TILE : 3>(i, block, keys);
                else if (TILE > 2 && left == 2) take<2>(i, block, keys);
                else take<1>(i, block, keys);
            }
        }
    }

    template <int Q> void take(int64_t query, int64_t block, int64_t keys) {
        score<Q>(query, block, keys);
        float shrinks[Q];
        for (int i = 0; i < Q; i++) shrinks[i] = weigh(query + i, scores[i], block, keys);
        for (int64_t c = 0; c < it.V; c += 2 * PAIR) {
            if (it.V - c > PAIR) gather<Q, 2>(query, block, keys, c, shrinks);
            else gather<Q, 1>(query, block, keys, c, shrinks);
        }
    }

    template <int Q> void score(int64_t query, int64_t block, int64_t keys) {
        const float* queries = q.data() + query * shape.keys;
        const int64_t bytes = it.V * Kept::SIZE;
        for (int64_t s = 0; s < keys; s += KEYS) {
            const char* rows[KEYS];
            for (int i = 0; i < KEYS; i++) {
                const int64_t slot = block + std::min(s + i, keys - 1);  // the last again, where there are no four
                rows[i] = key(slot);
                fetch(value(slot), bytes);
            }
            Vec totals[Q][KEYS] = {};
            for (int64_t c = 0; c < it.C; c += PAIR) {
                Vec found[KEYS][2];
                for (int i = 0; i < KEYS; i++) channels<Kept>(rows[i], c, it.C, found[i]);
                for (int i = 0; i < Q; i++)
                    for (int half = 0; half < 2; half++) {
                        const Vec asked = read<Vec>(queries + i * shape.keys + c + half * LANES);
                        for (int j = 0; j < KEYS; j++) totals[i][j] += asked * found[j][half];
                    }
            }
            for (int i = 0; i < Q; i++) sums(totals[i], scores[i] + s);
        }
    }

    // From scores to weights, relative to the largest score so far; what earlier weights shrink by.
    float weigh(int64_t query, float* weights, int64_t block, int64_t keys) {
        float* record = records + query * shape.record;
        std::fill(weights + keys, weights + BLOCK, 0.0f);
        if (it.cap > 0)
            for (int64_t s = 0; s < BLOCK; s += LANES)
                write(weights + s, it.cap * tanh(read<Vec>(weights + s) / it.cap));
        if (it.added) {
            const float* added = it.added + b * it.added_strides[0] + head(query) * it.added_strides[1] +
                                 query % it.T * it.added_strides[2] + block;
            for (int64_t s = 0; s < keys; s++) weights[s] += added[s];
        }
        std::fill(weights + keys, weights + BLOCK, -INFINITY);
        const float before = record[0];
        Vec highest = all(before);
        for (int64_t s = 0; s < BLOCK; s += LANES) highest = larger(highest, read<Vec>(weights + s));
        const float most = largest(highest);
        if (most == -INFINITY) {
            std::fill(weights, weights + BLOCK, 0.0f);
            return 1;
        }
        const float shrink = before == -INFINITY ? 0 : std::exp(before - most);
        Vec total = {};
        for (int64_t s = 0; s < BLOCK; s += LANES) {
            Vec weight = exp(read<Vec>(weights + s) - most);
            total += weight;
            write(weights + s, weight);
        }
        record[0] = most;
        record[1] = record[1] * shrink + sum(total);
        return shrink;
    }

    // P pairs of channels of the values from c on, weighted, on top of what there is.
    template <int Q, int P> void gather(int64_t query, int64_t block, int64_t keys, int64_t c, const float* shrinks) {
        float* record = records + query * shape.record + 2 + c;
        Vec values[Q][P][2];
        for (int i = 0; i < Q; i++)
            for (int p = 0; p < 2 * P; p++)
                values[i][p / 2][p % 2] = read<Vec>(record + i * shape.record + p * LANES) * shrinks[i];
        const int64_t bytes = std::min(it.C - c, 2 * PAIR) * Kept::SIZE;
        for (int64_t s = 0; s < keys; s++) {
            fetch(key(block + BLOCK + s) + c * Kept::SIZE, bytes);
            for (int p = 0; p < P; p++) {
                Vec found[2];
                channels<Kept>(value(block + s), c + p * PAIR, it.V, found);
                for (int i = 0; i < Q; i++)
                    for (int half = 0; half < 2; half++) values[i][p][half] += scores[i][s] * found[half];
            }
        }
        for (int i = 0; i < Q; i++)
            for (int p = 0; p < 2 * P; p++) write(record + i * shape.record + p * LANES, values[i][p / 2][p % 2]);
    }
};

// One query's answer out of its chunks' records.
template <class Kept>
void join(const Attention& it, const Shape& shape, const float* records, int64_t head, int64_t out) {
    const int64_t stride = shape.queries * shape.record;
    const float sink = it.sinks ? number(it.sinks, head, it.type) : -INFINITY;
    float most = sink;
    for (int64_t c = 0; c < shape.chunks; c++) most = std::max(most, records[c * stride]);
    float total = it.sinks ? std::exp(sink - most) : 0, shares[CHUNKS];
    for (int64_t c = 0; c < shape.chunks; c++) {
        const float peak = records[c * stride];
        shares[c] = peak == -INFINITY ? 0 : std::exp(peak - most);
        total += shares[c] * records[c * stride + 1];
    }
    if (total == 0) total = 1;  // nothing is seen
    for (int64_t v = 0; v < it.V; v += PAIR) {
        Vec values[2] = {};
        for (int64_t c = 0; c < shape.chunks; c++) {
            const float* record = records + c * stride + 2 + v;
            for (int half = 0; half < 2; half++) values[half] += shares[c] * read<Vec>(record + half * LANES);
        }
        float laid[PAIR], plain[PAIR];
        for (int half = 0; half < 2; half++) write(laid + half * LANES, values[half] / total);
        bring_back<Kept>(laid, plain);
        for (int64_t c = 0; c < std::min(PAIR, it.V - v); c += LANES)
            put_some(it.y, out + v + c, read<Vec>(plain + c), it.V - v - c, it.type);
    }
}

template <class Kept> void run(const Attention& it) {
    const Shape shape(it);
    const int64_t G = it.H / it.K, units = it.B * it.K * shape.chunks, size = shape.queries * shape.record;
    std::vector<float> records(units * size);
    const int threads = it.B * it.H * it.T * it.S * it.C < ALONE ? 1 : it.threads;
    parallel(units, 1, threads, [&](int64_t first, int64_t last) {
        for (int64_t unit = first; unit < last; unit++) {
            const int64_t head = unit / shape.chunks, chunk = unit % shape.chunks;
            Chunk<Kept>(it, shape, head / it.K, head % it.K, chunk, records.data() + unit * size).read_all();
        }
    });
    parallel(it.B * it.H, threads, [&](int64_t first, int64_t last) {
        for (int64_t unit = first; unit < last; unit++)
            for (int64_t t = 0; t < it.T; t++) {
                const int64_t b = unit / it.H, head = unit % it.H, query = head % G * it.T + t;
                const float* found = records.data() + (b * it.K + head / G) * shape.chunks * size + query * shape.record;
                join<Kept>(it, shape, found, head, ((b * it.T + t) * it.H + head) * it.V);
            }
    });
}

}  // namespace

void attention(const Attention& it) {
    if (it.kept == FLOAT32) return run<Floats>(it);
    if (it.kept == BFLOAT16) return run<BFloats>(it);
    return run<Int8s>(it);
}

}  // namespace ISA
