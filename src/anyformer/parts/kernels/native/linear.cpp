// y = residual + act(norm(x) Wᵀ + b) for few rows of x: as fast as the weights come from memory. Threads share the rows
// of W.
#include "activation.h"
#include "kernels.h"
#include "products.h"
#include "threads.h"

#include <algorithm>
#include <vector>

namespace ISA {

void linear(const Linear& it) {
    const Norm from{it.x, it.norm, it.norm_bias, it.in, it.type, it.norm_kind, it.eps};
    const auto inputs = ready(it.format, from, it.rows, it.threads);
    const Matrix matrix{it.weight, it.bias, it.in, it.type};
    const int64_t out = it.gated ? it.out / 2 : it.out;
    constexpr int64_t STRETCH = 48;  // rows of W that a thread takes at a time
    parallel(out, STRETCH, it.in * it.out < ALONE ? 1 : it.threads, [&](int64_t first, int64_t last) {
        std::vector<float> sums(it.rows * STRETCH), gates(it.gated ? it.rows * STRETCH : 0);
        for (int64_t r = first; r < last; r += STRETCH) {
            const int64_t end = std::min(last, r + STRETCH), n = end - r;
            if (it.gated) {
                inputs->multiply(matrix, {0, it.rows}, {r, end}, gates.data(), STRETCH);
                inputs->multiply(matrix, {0, it.rows}, {out + r, out + end}, sums.data(), STRETCH);
            } else {
                inputs->multiply(matrix, {0, it.rows}, {r, end}, sums.data(), STRETCH);
            }
            for (int64_t m = 0; m < it.rows; m++) {
                float* y = sums.data() + m * STRETCH;
                float* gate = it.gated ? gates.data() + m * STRETCH : y;
                if (it.activation) activate(gate, n, it.activation);
                for (int64_t i = 0; i < n; i += LANES) {
                    const int64_t at = m * out + r + i, left = n - i;
                    Vec value = some(y + i, left);
                    if (it.gated) value *= some(gate + i, left);
                    if (it.residual) value += some(it.residual, at, left, it.type);
                    put_some(it.y, at, value, left, it.type);
                }
            }
        }
    });
}

}  // namespace ISA
