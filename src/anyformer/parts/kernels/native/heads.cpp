// Heads of few rows, each times a matrix of its own: as fast as the matrices come from memory.
#include "kernels.h"
#include "norm.h"
#include "products.h"
#include "simd.h"
#include "threads.h"

#include <algorithm>
#include <vector>

namespace ISA {
namespace {

constexpr int STEP = 4;  // rows of a transposed matrix at a time

// x in float32, [heads, rows, in].
std::vector<float> floats(const Heads& it) {
    std::vector<float> x(it.heads * it.rows * it.in);
    for (int64_t h = 0; h < it.heads; h++)
        for (int64_t r = 0; r < it.rows; r++)
            normalize({it.x, nullptr, nullptr, it.in, it.type, NO_NORM, 0}, r * it.x_stride + h * it.head_stride,
                      &x[(h * it.rows + r) * it.in]);
    return x;
}

// What C rows of a matrix [in, out], from `at` on, add to each row's sums [rows, out]; x is each row's share of them.
// The rows that follow are fetched meanwhile: these are too short for the machine to see those coming.
template <int C> void add(const Heads& it, const float* x, int64_t at, float* sums) {
    const int64_t whole = it.out / LANES * LANES, size = it.type == FLOAT32 ? 4 : 2;
    const char* next = static_cast<const char*>(it.weight) + (at + C * it.out) * size;
    for (int64_t o = 0; o < whole; o += LANES) {
        Vec w[C];
        for (int c = 0; c < C; c++) {
            __builtin_prefetch(next + (c * it.out + o) * size);
            w[c] = widened(it.weight, at + c * it.out + o, it.type);
        }
        for (int64_t r = 0; r < it.rows; r++) {
            Vec sum = read<Vec>(sums + r * it.out + o);
            for (int c = 0; c < C; c++) sum += x[r * it.in + c] * w[c];
            write(sums + r * it.out + o, sum);
        }
    }
    for (int64_t o = whole; o < it.out; o++)
        for (int64_t r = 0; r < it.rows; r++)
            for (int c = 0; c < C; c++)
                sums[r * it.out + o] += x[r * it.in + c] * number(it.weight, at + c * it.out + o, it.type);
}

void put_row(void* to, int64_t at, const float* sums, int64_t count, int type) {
    for (int64_t o = 0; o < count; o += LANES) put_some(to, at + o, some(sums + o, count - o), count - o, type);
}

// Threads share the heads.
void transposed(const Heads& it, int threads) {
    const std::vector<float> x = floats(it);
    parallel(it.heads, threads, [&](int64_t first, int64_t last) {
        std::vector<float> sums(it.rows * it.out);
        for (int64_t h = first; h < last; h++) {
            std::fill(sums.begin(), sums.end(), 0.0f);
            const float* own = &x[h * it.rows * it.in];
            int64_t c = 0;
            for (; c + STEP <= it.in; c += STEP) add<STEP>(it, own + c, (h * it.in + c) * it.out, sums.data());
            for (; c < it.in; c++) add<1>(it, own + c, (h * it.in + c) * it.out, sums.data());
            for (int64_t r = 0; r < it.rows; r++)
                put_row(it.y, (r * it.heads + h) * it.out, &sums[r * it.out], it.out, it.made);
        }
    });
}

// Threads share the rows of all matrices.
void plain(const Heads& it, int threads) {
    const std::vector<float> x = floats(it);
    const Norm from{x.data(), nullptr, nullptr, it.in, FLOAT32, NO_NORM, 0};
    const auto inputs = ready(it.type, from, it.heads * it.rows, threads);
    const int64_t bytes = it.out * inputs->bytes(it.in);
    parallel(it.heads * it.out, threads, [&](int64_t first, int64_t last) {
        std::vector<float> sums(it.rows * it.out);
        for (int64_t h = first / it.out; h * it.out < last; h++) {
            const Matrix matrix{static_cast<const char*>(it.weight) + h * bytes, nullptr, it.in, it.type};
            const Stretch w{std::max<int64_t>(first - h * it.out, 0), std::min(last - h * it.out, it.out)};
            inputs->multiply(matrix, {h * it.rows, (h + 1) * it.rows}, w, sums.data(), it.out);
            for (int64_t r = 0; r < it.rows; r++)
                put_row(it.y, (r * it.heads + h) * it.out + w.first, &sums[r * it.out], w.last - w.first, it.made);
        }
    });
}

}  // namespace

void heads(const Heads& it) {
    const int threads = it.heads * it.in * it.out < ALONE ? 1 : it.threads;
    it.transposed ? transposed(it, threads) : plain(it, threads);
}

}  // namespace ISA
