// Products of few rows with matrices in any format.
//
// The rows of x are made ready once: normalised, widened to float32 and laid out as the format wants them. A few rows
// of W at a time then meet all rows of x, so that a weight is read from memory once, and every sum runs in the same
// order however many rows or threads there are.
#include "products.h"

#include "blocks.h"
#include "simd.h"

#include <vector>

namespace ISA {
namespace {

constexpr int ROWS = LANES >= 16 ? 4 : 2;  // of W at a time
constexpr int INPUTS = 4;                  // rows of x at a time
constexpr int STEP = 2 * LANES;            // columns at a time

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

// Which of the tiles of x this one is that meet the same rows of W.
struct Turn {
    int64_t index, of;
};

// Rows of x in float32, padded to whole steps, as tiles read them: of so many rows a step, then the next. Numbers stand
// within a step where the format's vectors have them.
template <class F> struct Floats {
    int64_t width;
    std::vector<Step> x;

    Floats(const Norm& from, int64_t rows, const int64_t* which)
        : width((from.width + STEP - 1) / STEP), x((rows + INPUTS - 1) / INPUTS * INPUTS * width) {
        std::vector<float> plain(width * STEP);
        for (int64_t row = 0; row < rows; row++) {
            normalize(from, (which ? which[row] : row) * from.width, plain.data());
            for (int64_t c = 0; c < width; c++) F::arrange(plain.data() + c * STEP, x[place(row, c)].x);
        }
    }

    int64_t place(int64_t row, int64_t c) const { return (row / INPUTS * width + c) * INPUTS + row % INPUTS; }

    static int64_t row_bytes(int64_t in) { return F::bytes(in); }

    template <int R, int M> void tile(const char* w, int64_t in, int64_t m, Turn turn, float (*sums)[INPUTS]) const {
        const int64_t stride = F::bytes(in), whole = in / STEP;
        const Step* inputs = x.data() + place(m, 0);
        Vec total[R][M] = {};
        // The next tile follows these rows of W. Its streams are too short for the machine to see them coming, and it has
        // only so many reads under way: each tile of x asks for its share, so that memory and products take turns.
        const int first = int(R * turn.index / turn.of), last = int(R * (turn.index + 1) / turn.of);
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

template <class Inputs> struct Of final : Products {
    const Inputs inputs;

    Of(const Norm& from, int64_t rows, const int64_t* which) : inputs(from, rows, which) {}

    int64_t bytes(int64_t in) const override { return Inputs::row_bytes(in); }

    void multiply(const Matrix& matrix, Stretch x, Stretch w, float* sums, int64_t width) const override {
        const int64_t bytes = Inputs::row_bytes(matrix.in), turns = (x.last - 1) / INPUTS - x.first / INPUTS + 1;
        float found[ROWS][INPUTS];
        for (int64_t r = w.first; r < w.last; r += ROWS) {
            const char* row = static_cast<const char*>(matrix.weight) + r * bytes;
            const int64_t rows = w.last - r < ROWS ? w.last - r : ROWS;
            Turn turn{0, turns};
            // A tile begins and ends where those of x's layout do, or with the stretch.
            for (int64_t m = x.first, end; m < x.last; m = end, turn.index++) {
                end = std::min(x.last, (m / INPUTS + 1) * INPUTS);
                const int64_t count = end - m;
                if (rows < ROWS)
                    for (int64_t i = 0; i < rows; i++)
                        for (int64_t j = 0; j < count; j++) {
                            float one[ROWS][INPUTS];
                            inputs.template tile<1, 1>(row + i * bytes, matrix.in, m + j, turn, one);
                            found[i][j] = one[0][0];
                        }
                else if (count == 4) inputs.template tile<ROWS, 4>(row, matrix.in, m, turn, found);
                else if (count == 3) inputs.template tile<ROWS, 3>(row, matrix.in, m, turn, found);
                else if (count == 2) inputs.template tile<ROWS, 2>(row, matrix.in, m, turn, found);
                else inputs.template tile<ROWS, 1>(row, matrix.in, m, turn, found);
                for (int64_t i = 0; i < rows; i++)
                    for (int64_t j = 0; j < count; j++)
                        sums[(m + j - x.first) * width + r - w.first + i] = found[i][j];
            }
        }
        if (matrix.bias)
            for (int64_t m = 0; m < x.last - x.first; m++)
                for (int64_t r = w.first; r < w.last; r++)
                    sums[m * width + r - w.first] += number(matrix.bias, r, matrix.type);
    }
};

}  // namespace

std::unique_ptr<Products> ready(int32_t format, const Norm& from, int64_t rows, const int64_t* which) {
    switch (format) {
        case FLOAT32: return std::make_unique<Of<Floats<Float32>>>(from, rows, which);
        case BFLOAT16: return std::make_unique<Of<Floats<Bfloat16>>>(from, rows, which);
        case Q4_0: return std::make_unique<Of<Blocks<FourBits<false>>>>(from, rows, which);
        case Q4_1: return std::make_unique<Of<Blocks<FourBits<true>>>>(from, rows, which);
        case Q8_0: return std::make_unique<Of<Blocks<EightBits>>>(from, rows, which);
        case Q4_K: return std::make_unique<Of<Blocks<FourBitsOfMany>>>(from, rows, which);
        default: return std::make_unique<Of<Blocks<SixBits>>>(from, rows, which);
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
