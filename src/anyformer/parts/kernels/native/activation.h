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

// A product of few rows takes these one at a time: exact where `curve` is near.
inline float activate(float x, int how) {
    switch (how) {
        case RELU: return x > 0 ? x : 0;
        case GELU: return 0.5f * x * (1 + std::erf(x * 0.70710678f));
        case TANH: return std::tanh(x);
        default: return x;
    }
}

inline void activate(float* x, int64_t n, int how) {
    int64_t i = 0;
    if (how == SILU || how == SIGMOID || how == GELU_TANH) {
        for (; i < n; i += LANES) {
            Vec v = {};
            int64_t some = n - i < LANES ? n - i : LANES;
            std::memcpy(&v, x + i, some * 4);
            v = how == SILU ? curve<SILU>(v).value : how == SIGMOID ? curve<SIGMOID>(v).value : curve<GELU_TANH>(v).value;
            std::memcpy(x + i, &v, some * 4);
        }
        return;
    }
    for (; i < n; i++) x[i] = activate(x[i], how);
}

}  // namespace ISA
