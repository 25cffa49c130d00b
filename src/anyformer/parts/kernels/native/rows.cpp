// What stands between the products of many rows, and its gradients: RMS norms and activations, each number read once.
#include "activation.h"
#include "kernels.h"
#include "norm.h"
#include "simd.h"
#include "threads.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace ISA {
namespace {

constexpr int64_t PARTS = 32;      // of a norm's rows, over which its weight's gradient is added up apart: on any machine
constexpr int64_t STRETCH = 4096;  // numbers of an activation at a time

// The gradients of y = x · scale · w in one row; with x̂ = x · scale and g = dy · w
//
//     dx = scale · (g - x̂ · mean(g · x̂))     dw = Σ dy · x̂
void norm_back(const NormRows& it, int64_t row, float* d_weight) {
    const int64_t n = it.width;
    const float *x = it.x + row * n, *d_y = it.d_y + row * n;
    const float offset = it.norm_kind & OFFSET ? 1 : 0;
    Vec squares = {}, meets = {};  // Σ x², Σ g · x
    for (int64_t c = 0; c < n; c += LANES) {
        const Vec here = some(x + c, n - c), d = some(d_y + c, n - c);
        squares += here * here;
        meets += here * (it.weight ? d * (some(it.weight + c, n - c) + offset) : d);
    }
    const float scale = 1 / std::sqrt(sum(squares) / float(n) + it.eps);
    const float across = scale * scale * sum(meets) / float(n);
    for (int64_t c = 0; c < n; c += LANES) {
        const Vec here = some(x + c, n - c), d = some(d_y + c, n - c);
        const Vec g = it.weight ? d * (some(it.weight + c, n - c) + offset) : d;
        put_some(it.d_x + row * n + c, scale * (g - here * across), n - c);
        put_some(d_weight + c, some(d_weight + c, n - c) + d * here * scale, n - c);
    }
}

template <int TYPE, int ACTIVATION, bool GATED, bool BACK>
void activate(const ActivatedRows it, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i += LANES) {
        const int64_t n = last - i;
        const Curve found = curve<ACTIVATION>(some(it.x, i, n, TYPE));
        if (BACK) {
            Vec d = some(it.d_y, i, n, TYPE);
            if (GATED) {
                put_some(it.d_up, i, d * found.value, n, TYPE);
                d *= some(it.up, i, n, TYPE);
            }
            put_some(it.d_x, i, d * found.slope, n, TYPE);
        } else {
            put_some(it.y, i, GATED ? found.value * some(it.up, i, n, TYPE) : found.value, n, TYPE);
        }
    }
}

template <int TYPE, int ACTIVATION> void activate(const ActivatedRows& it, int64_t first, int64_t last) {
    if (it.up && it.d_y) activate<TYPE, ACTIVATION, true, true>(it, first, last);
    else if (it.up) activate<TYPE, ACTIVATION, true, false>(it, first, last);
    else if (it.d_y) activate<TYPE, ACTIVATION, false, true>(it, first, last);
    else activate<TYPE, ACTIVATION, false, false>(it, first, last);
}

template <int TYPE> void activate(const ActivatedRows& it, int64_t first, int64_t last) {
    switch (it.activation) {
        case RELU: return activate<TYPE, RELU>(it, first, last);
        case GELU: return activate<TYPE, GELU>(it, first, last);
        case GELU_TANH: return activate<TYPE, GELU_TANH>(it, first, last);
        case SILU: return activate<TYPE, SILU>(it, first, last);
        case SIGMOID: return activate<TYPE, SIGMOID>(it, first, last);
        case TANH: return activate<TYPE, TANH>(it, first, last);
        default: return activate<TYPE, NONE>(it, first, last);
    }
}

}  // namespace

void norm_rows(const NormRows& it) {
    const int64_t size = (it.rows + PARTS - 1) / PARTS, n = it.width;
    if (!it.d_y) {
        const Norm norm{it.x, it.weight, nullptr, n, FLOAT32, it.norm_kind, it.eps};
        parallel(it.rows, it.threads, [&](int64_t first, int64_t last) {
            for (int64_t row = first; row < last; row++) normalize(norm, row * n, it.y + row * n);
        });
        return;
    }
    std::vector<float> sums(PARTS * n);
    parallel(PARTS, it.threads, [&](int64_t first, int64_t last) {
        for (int64_t part = first; part < last; part++)
            for (int64_t row = part * size; row < std::min(it.rows, (part + 1) * size); row++)
                norm_back(it, row, &sums[part * n]);
    });
    for (int64_t c = 0; c < n; c++) {
        it.d_weight[c] = 0;
        for (int64_t part = 0; part < PARTS; part++) it.d_weight[c] += sums[part * n + c];
    }
}

void activated_rows(const ActivatedRows& it) {
    parallel((it.count + STRETCH - 1) / STRETCH, it.threads, [&](int64_t first, int64_t last) {
        const int64_t from = first * STRETCH, to = std::min(it.count, last * STRETCH);
        if (it.type == FLOAT32) activate<FLOAT32>(it, from, to);
        else activate<BFLOAT16>(it, from, to);
    });
}

}  // namespace ISA
