// What stands between two matrices, of a stretch of numbers.
#pragma once

#include "kernels.h"
#include "simd.h"

#include <cmath>

namespace ISA {

// Those that have no vectors.
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
            if (how == SILU) v *= sigmoid(v);
            else if (how == SIGMOID) v = sigmoid(v);
            else v *= sigmoid(1.59576912f * (v + 0.044715f * v * v * v));  // ½(1 + tanh z) is the sigmoid of 2z
            std::memcpy(x + i, &v, some * 4);
        }
        return;
    }
    for (; i < n; i++) x[i] = activate(x[i], how);
}

}  // namespace ISA
