// What stands between two matrices, of a stretch of numbers.
#pragma once

#include "kernels.h"
#include "simd.h"

#include <cmath>

namespace ISA {

// An activation of LANES numbers, and its slope there.
struct Curve {
    Vec value, slope;
};

template <int ACTIVATION> inline Curve curve(Vec x) {
    switch (ACTIVATION) {
        case RELU: return {x < Vec{} ? Vec{} : x, x > Vec{} ? all(1) : Vec{}};
        case SILU: {
            const Vec s = sigmoid(x);
            return {x * s, s * (1 + x * (1 - s))};
        }
        case SIGMOID: {
            const Vec s = sigmoid(x);
            return {s, s * (1 - s)};
        }
        case TANH: {
            const Vec t = tanh(x);
            return {t, 1 - t * t};
        }
        case GELU_TANH: {  // ½(1 + tanh z) is the sigmoid of 2z
            const Vec s = sigmoid(1.59576912f * (x + 0.044715f * x * x * x));
            return {x * s, s + x * s * (1 - s) * (1.59576912f + 0.214070923f * x * x)};
        }
        case GELU: {  // by erf of Abramowitz & Stegun 7.1.26, within 1.5e-7
            const Vec bell = exp(-0.5f * x * x), t = 1 / (1 + 0.231641888f * (x > Vec{} ? x : -x));
            Vec tail = t * 1.061405429f - 1.453152027f;
            tail = t * tail + 1.421413741f;
            tail = t * tail - 0.284496736f;
            tail = 0.5f * bell * t * (t * tail + 0.254829592f);
            const Vec share = x > Vec{} ? 1 - tail : tail;
            return {x * share, share + x * bell * 0.39894228f};
        }
        default: return {x, all(1)};
    }
}

// Of a product of few rows: those that `curve` has exactly or nearly so by it, the others one at a time.
inline void activate(float* x, int64_t n, int how) {
    auto curved = [&](auto curve) {
        for (int64_t i = 0; i < n; i += LANES) put_some(x + i, curve(some(x + i, n - i)).value, n - i);
    };
    switch (how) {
        case RELU: return curved(curve<RELU>);
        case SILU: return curved(curve<SILU>);
        case SIGMOID: return curved(curve<SIGMOID>);
        case GELU_TANH: return curved(curve<GELU_TANH>);
        case GELU:
            for (int64_t i = 0; i < n; i++) x[i] = 0.5f * x[i] * (1 + std::erf(x[i] * 0.70710678f));
            return;
        case TANH:
            for (int64_t i = 0; i < n; i++) x[i] = std::tanh(x[i]);
    }
}

}  // namespace ISA
