// Products of few rows with matrices in any format.
//
// The rows of x are made ready once: normalised, widened to float32 and laid out as the format wants them. A few rows
// of W at a time then meet all rows of x, so that a weight is read from memory once, and every sum runs in the same
// order however many rows or threads there are.
#include "products.h"

#include "blocks.h"
#include "simd.h"
#include "threads.h"

#include <vector>

namespace ISA {
namespace {

constexpr int ROWS = LANES >= 16 ? 6 : 2;  // of W at a time
constexpr int INPUTS = 4;                  // rows of x at a time
constexpr int STEP = 2 * LANES;            // columns at a time
constexpr int64_t AHEAD = 8192;            // bytes asked for before they are met, at least

struct Float32 {
    static constexpr int64_t bytes(int64_t n) { return 4 * n; }
    static Vec read(const char* row, int64_t c, int half) { return ISA::read<Vec>(row + 4 * (c + half * LANES)); }
    static void arrange(const float* step, float* to) { std::memcpy(to, step, 4 * STEP); }
};

struct Bfloat16 {
    static constexpr int64_t bytes(int64_t n) { return 2 * n; }
    static Vec read(const char* row, int64_t c, int half) {
        return half_of_bf16(reinterpret_cast<const uint16_t*>(row) + c, half);
    }
    static void arrange(const float* step, float* to) { take_apart(step, to); }
};

// A step of a row of x; aligned, for a vector that lies across two lines of the cache is read as two.
struct alignas(64) Step {
    float x[STEP];
};

// Which of the tiles of x this one is that meet the same rows of W.
struct Turn {
    int64_t index, of;
};

// Rows of x in float32, padded to whole steps, as tiles read them: of so many rows a step, then the next. Numbers stand
// within a step where the format's vectors have them.
template <class F> struct Floats {
    int64_t width;
    std::vector<Step> x;

    Floats(const Norm& from, int64_t rows, int threads, const int64_t* which)
        : width((from.width + STEP - 1) / STEP), x((rows + INPUTS - 1) / INPUTS * INPUTS * width) {
        parallel(rows, rows * from.width < ALONE ? 1 : threads, [&](int64_t first, int64_t last) {
            std::vector<float> plain(width * STEP);
            for (int64_t row = first; row < last; row++) {
                normalize(from, (which ? which[row] : row) * from.width, plain.data());
                for (int64_t c = 0; c < width; c++) F::arrange(plain.data() + c * STEP, x[place(row, c)].x);
            }
        });
    }

    int64_t place(int64_t row, int64_t c) const { return (row / INPUTS * width + c) * INPUTS + row % INPUTS; }

    static int64_t row_bytes(int64_t in) { return F::bytes(in); }

    template <int R, int M> void tile(const char* w, int64_t in, int64_t m, Turn turn, float (*sums)[INPUTS]) const {
        const int64_t stride = F::bytes(in), whole = in / STEP;
        const Step* inputs = x.data() + place(m, 0);
        Vec total[R][M] = {};
        // What follows these rows of W is asked for in the order of memory, so that the machine sees one long stream and
        // runs ahead; each tile of x asks for its share, so that memory and products take turns.
        const int64_t share = R * F::bytes(STEP) / turn.of;
        const char* ahead = w + std::max(R * stride, AHEAD) + turn.index * whole * share;
        for (int64_t c = 0; c < whole; c++) {
            for (int64_t line = 0; line < share; line += 64) __builtin_prefetch(ahead + c * share + line, 0, 2);
            step<R, M>(w, stride, c * STEP, inputs + c * INPUTS, total);
        }
        if (whole * STEP < in) {
            const int64_t done = F::bytes(whole * STEP);
            char tail[R * STEP * 4] = {};
            for (int r = 0; r < R; r++) std::memcpy(tail + r * F::bytes(STEP), w + r * stride + done, stride - done);
            step<R, M>(tail, F::bytes(STEP), 0, inputs + whole * INPUTS, total);
        }
        float each[R * M];
        each_sum<R * M>(total[0], each);
        for (int r = 0; r < R; r++)
            for (int i = 0; i < M; i++) sums[r][i] = each[r * M + i];
    }

    template <int R, int M>
    static void step(const char* w, int64_t stride, int64_t c, const Step* inputs, Vec (&total)[R][M]) {
        for (int half = 0; half < 2; half++) {
            Vec own[R];
            for (int r = 0; r < R; r++) own[r] = F::read(w + r * stride, c, half);
            for (int i = 0; i < M; i++) {
                const Vec a = read<Vec>(inputs[i].x + half * LANES);
                for (int r = 0; r < R; r++) total[r][i] += own[r] * a;
            }
        }
    }
};

template <class Inputs> struct Of final : Products {
    const Inputs inputs;

    Of(const Norm& from, int64_t rows, int threads, const int64_t* which) : inputs(from, rows, threads, which) {}

    int64_t bytes(int64_t in) const override { return Inputs::row_bytes(in); }

    void multiply(const Matrix& matrix, Stretch x, Stretch w, float* sums, int64_t width) const override {
        const int64_t bytes = Inputs::row_bytes(matrix.in);
        const char* row = static_cast<const char*>(matrix.weight) + w.first * bytes;
        int64_t r = 0;
        for (; r + ROWS <= w.last - w.first; r += ROWS) meet<ROWS>(row + r * bytes, matrix.in, x, sums + r, width);
        for (; r < w.last - w.first; r++) meet<1>(row + r * bytes, matrix.in, x, sums + r, width);
        if (matrix.bias)
            for (int64_t m = 0; m < x.last - x.first; m++)
                for (int64_t r = w.first; r < w.last; r++)
                    sums[m * width + r - w.first] += number(matrix.bias, r, matrix.type);
    }

    // R rows of W with a stretch of x's. A tile begins and ends where those of x's layout do, or with the stretch.
    template <int R> void meet(const char* w, int64_t in, Stretch x, float* sums, int64_t width) const {
        float found[R][INPUTS];
        Turn turn{0, (x.last - 1) / INPUTS - x.first / INPUTS + 1};
        for (int64_t m = x.first, end; m < x.last; m = end, turn.index++) {
            end = std::min(x.last, (m / INPUTS + 1) * INPUTS);
            switch (end - m) {
                case 4: inputs.template tile<R, 4>(w, in, m, turn, found); break;
                case 3: inputs.template tile<R, 3>(w, in, m, turn, found); break;
                case 2: inputs.template tile<R, 2>(w, in, m, turn, found); break;
                default: inputs.template tile<R, 1>(w, in, m, turn, found);
            }
            for (int64_t j = m; j < end; j++)
                for (int r = 0; r < R; r++) sums[(j - x.first) * width + r] = found[r][j - m];
        }
    }
};

}  // namespace

std::unique_ptr<Products> ready(int32_t format, const Norm& from, int64_t rows, int threads, const int64_t* which) {
    switch (format) {
        case FLOAT32: return std::make_unique<Of<Floats<Float32>>>(from, rows, threads, which);
        case BFLOAT16: return std::make_unique<Of<Floats<Bfloat16>>>(from, rows, threads, which);
        case Q4_0: return std::make_unique<Of<Blocks<FourBits<false>>>>(from, rows, threads, which);
        case Q4_1: return std::make_unique<Of<Blocks<FourBits<true>>>>(from, rows, threads, which);
        case Q8_0: return std::make_unique<Of<Blocks<EightBits>>>(from, rows, threads, which);
        case Q4_K: return std::make_unique<Of<Blocks<FourBitsOfMany>>>(from, rows, threads, which);
        default: return std::make_unique<Of<Blocks<SixBits>>>(from, rows, threads, which);
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
