// y = residual + act(norm(x) Wᵀ + b) for few rows of x: as fast as the weights come from memory.
//
// The rows of x are made ready once: normalised, widened to float32 and laid out as the format wants them. Threads
// then share the rows of W. Each takes a few of them at a time through all rows of x, so that a weight is read from
// memory once, and every sum runs in the same order however many rows or threads there are.
#include "blocks.h"
#include "kernels.h"
#include "norm.h"
#include "simd.h"
#include "threads.h"

#include <cmath>
#include <vector>

namespace ISA {
namespace {

constexpr int ROWS = LANES >= 16 ? 4 : 2;  // of W at a time
constexpr int INPUTS = 4;                  // rows of x at a time
constexpr int STEP = 2 * LANES;            // columns at a time
constexpr int64_t ALONE = 1 << 14;         // weights below which a second thread costs more than it gives

struct Float32 {
    static constexpr int64_t bytes(int64_t n) { return 4 * n; }
    static void read(const char* row, int64_t c, Vec& a, Vec& b) {
        a = ISA::read<Vec>(row + 4 * c);
        b = ISA::read<Vec>(row + 4 * (c + LANES));
    }
    static void arrange(const float* step, float* to) { std::memcpy(to, step, 4 * STEP); }
};

struct Bfloat16 {
    static constexpr int64_t bytes(int64_t n) { return 2 * n; }
    static void read(const char* row, int64_t c, Vec& a, Vec& b) {
        read_bf16(reinterpret_cast<const uint16_t*>(row) + c, a, b);
    }
    static void arrange(const float* step, float* to) {
        for (int i = 0; i < LANES; i++) to[i] = step[2 * i];
        for (int i = 0; i < LANES; i++) to[LANES + i] = step[2 * i + 1];
    }
};

// A step of a row of x; aligned, for a vector that lies across two lines of the cache is read as two.
struct alignas(64) Step {
    float x[STEP];
};

// Rows of x in float32, padded to whole steps, as tiles read them: of so many rows a step, then the next. Numbers stand
// within a step where the format's vectors have them.
template <class F> struct Floats {
    int64_t rows, width;
    std::vector<Step> x;

    explicit Floats(const Linear& it)
        : rows(it.rows), width((it.in + STEP - 1) / STEP), x((it.rows + INPUTS - 1) / INPUTS * INPUTS * width) {
        std::vector<float> plain(width * STEP);
        for (int64_t row = 0; row < it.rows; row++) {
            normalize({it.x, it.norm, it.norm_bias, it.in, it.type, it.norm_kind, it.eps}, row * it.in, plain.data());
            for (int64_t c = 0; c < width; c++) F::arrange(plain.data() + c * STEP, x[place(row, c)].x);
        }
    }

    int64_t place(int64_t row, int64_t c) const { return (row / INPUTS * width + c) * INPUTS + row % INPUTS; }

    static int64_t row_bytes(int64_t in) { return F::bytes(in); }

    template <int R, int M> void tile(const char* w, int64_t in, int64_t m, float (*sums)[INPUTS]) const {
        const int64_t stride = F::bytes(in), whole = in / STEP;
        const Step* inputs = x.data() + place(m, 0);
        Vec total[R][M] = {};
        // The next tile follows these rows of W. Its streams are too short for the machine to see them coming, and it has
        // only so many reads under way: each tile of x asks for its share, so that memory and products take turns.
        const int64_t turn = m / INPUTS, turns = (rows + INPUTS - 1) / INPUTS;
        const int first = int(R * turn / turns), last = int(R * (turn + 1) / turns);
        for (int64_t c = 0; c < whole; c++) {
            for (int r = first; r < last; r++) __builtin_prefetch(w + (r + R) * stride + F::bytes(c * STEP), 0, 2);
            step<R, M>(w, stride, c * STEP, inputs + c * INPUTS, total);
        }
        if (whole * STEP < in) {
            const int64_t done = F::bytes(whole * STEP);
            char tail[R * STEP * 4] = {};
            for (int r = 0; r < R; r++) std::memcpy(tail + r * F::bytes(STEP), w + r * stride + done, stride - done);
            step<R, M>(tail, F::bytes(STEP), 0, inputs + whole * INPUTS, total);
        }
        if constexpr (M == INPUTS)
            each_sum<R * M>(total[0], sums[0]);
        else
            for (int r = 0; r < R; r++) each_sum<M>(total[r], sums[r]);
    }

    template <int R, int M>
    static void step(const char* w, int64_t stride, int64_t c, const Step* inputs, Vec (&total)[R][M]) {
        Vec even[R], odd[R];
        for (int r = 0; r < R; r++) F::read(w + r * stride, c, even[r], odd[r]);
        for (int i = 0; i < M; i++) {
            const Vec a = read<Vec>(inputs[i].x), b = read<Vec>(inputs[i].x + LANES);
            for (int r = 0; r < R; r++) {
                total[r][i] += even[r] * a;
                total[r][i] += odd[r] * b;
            }
        }
    }
};

// Those that have no vectors.
float activate(float x, int how) {
    switch (how) {
        case RELU: return x > 0 ? x : 0;
        case GELU: return 0.5f * x * (1 + std::erf(x * 0.70710678f));
        case TANH: return std::tanh(x);
        default: return x;
    }
}

void activate(float* x, int64_t n, int how) {
    int64_t i = 0;
    if (how == SILU || how == SIGMOID || how == GELU_TANH) {
        for (; i < n; i += LANES) {
            Vec v = {};
            int64_t some = n - i < LANES ? n - i : LANES;
            std::memcpy(&v, x + i, some * 4);
            if (how == SILU) v *= sigmoid(v);
            else if (how == SIGMOID) v = sigmoid(v);
            else v *= sigmoid(1.59576912f * (v + 0.044715f * v * v * v));  // ½(1 + tanh z) is the sigmoid of 2z
            std::memcpy(x + i, &v, some * 4);
        }
        return;
    }
    for (; i < n; i++) x[i] = activate(x[i], how);
}

// Products of rows `first` .. `last` of W with all rows of x: sums[row of x][row of W - first].
template <class Inputs>
void products(const Linear& it, const Inputs& inputs, int64_t first, int64_t last, float* sums, int64_t width) {
    const int64_t bytes = Inputs::row_bytes(it.in);
    float found[ROWS][INPUTS];
    for (int64_t r = first; r < last; r += ROWS) {
        const char* w = static_cast<const char*>(it.weight) + r * bytes;
        const int64_t rows = last - r < ROWS ? last - r : ROWS;
        for (int64_t m = 0; m < it.rows; m += INPUTS) {
            const int64_t count = it.rows - m < INPUTS ? it.rows - m : INPUTS;
            if (rows < ROWS)
                for (int64_t i = 0; i < rows; i++)
                    for (int64_t j = 0; j < count; j++) {
                        float one[ROWS][INPUTS];
                        inputs.template tile<1, 1>(w + i * bytes, it.in, m + j, one);
                        found[i][j] = one[0][0];
                    }
            else if (count == 4) inputs.template tile<ROWS, 4>(w, it.in, m, found);
            else if (count == 3) inputs.template tile<ROWS, 3>(w, it.in, m, found);
            else if (count == 2) inputs.template tile<ROWS, 2>(w, it.in, m, found);
            else inputs.template tile<ROWS, 1>(w, it.in, m, found);
            for (int64_t i = 0; i < rows; i++)
                for (int64_t j = 0; j < count; j++) sums[(m + j) * width + r - first + i] = found[i][j];
        }
    }
    if (it.bias)
        for (int64_t m = 0; m < it.rows; m++)
            for (int64_t r = first; r < last; r++) sums[m * width + r - first] += number(it.bias, r, it.type);
}

template <class Inputs> void run(const Linear& it) {
    const Inputs inputs(it);
    const int64_t out = it.gated ? it.out / 2 : it.out;
    constexpr int64_t STRETCH = 16 * ROWS;
    parallel(out, it.in * it.out < ALONE ? 1 : it.threads, [&](int64_t first, int64_t last) {
        std::vector<float> sums(it.rows * STRETCH), gates(it.gated ? it.rows * STRETCH : 0);
        for (int64_t r = first; r < last; r += STRETCH) {
            const int64_t end = last - r < STRETCH ? last : r + STRETCH, n = end - r;
            if (it.gated) {
                products(it, inputs, r, end, gates.data(), STRETCH);
                products(it, inputs, out + r, out + end, sums.data(), STRETCH);
            } else {
                products(it, inputs, r, end, sums.data(), STRETCH);
            }
            for (int64_t m = 0; m < it.rows; m++) {
                float* y = sums.data() + m * STRETCH;
                float* gate = it.gated ? gates.data() + m * STRETCH : y;
                if (it.activation) activate(gate, n, it.activation);
                for (int64_t i = 0; i < n; i++) {
                    const int64_t at = m * out + r + i;
                    float value = it.gated ? gate[i] * y[i] : y[i];
                    if (it.residual) value += number(it.residual, at, it.type);
                    put(it.y, at, value, it.type);
                }
            }
        }
    });
}

}  // namespace

void linear(const Linear& it) {
    switch (it.format) {
        case FLOAT32: return run<Floats<Float32>>(it);
        case BFLOAT16: return run<Floats<Bfloat16>>(it);
        case Q4_0: return run<Blocks<FourBits<false>>>(it);
        case Q4_1: return run<Blocks<FourBits<true>>>(it);
        case Q8_0: return run<Blocks<EightBits>>(it);
        case Q4_K: return run<Blocks<FourBitsOfMany>>(it);
        case Q6_K: return run<Blocks<SixBits>>(it);
    }
}

void expand(const Expand& it) {
    switch (it.format) {
        case Q4_0: return expand<FourBits<false>>(it);
        case Q4_1: return expand<FourBits<true>>(it);
        case Q8_0: return expand<EightBits>(it);
        case Q4_K: return expand<FourBitsOfMany>(it);
        case Q6_K: return expand<SixBits>(it);
    }
}

}  // namespace ISA
