// Few rows of x, made ready to be multiplied with matrices of one format.
#pragma once

#include "kernels.h"
#include "norm.h"

#include <memory>

namespace ISA {

constexpr int64_t ALONE = 1 << 14;  // weights, or inputs, below which a second thread costs more than it gives

struct Matrix {
    const void* weight;  // [out, in], as its format stores a row
    const void* bias;    // [out], of `type`, or null
    int64_t in;
    int32_t type;
};

struct Stretch {
    int64_t first, last;
};

struct Products {
    virtual ~Products() = default;

    // What a row of a matrix takes.
    virtual int64_t bytes(int64_t in) const = 0;

    // x Wᵀ + b of a stretch of x's rows with a stretch of W's; sums[row of x][row of W], both counted from their
    // stretches' first.
    virtual void multiply(const Matrix& matrix, Stretch x, Stretch w, float* sums, int64_t width) const = 0;
};

// Rows `which` of what a norm reads, or so many from the first, for matrices of a format.
std::unique_ptr<Products> ready(int32_t format, const Norm& from, int64_t rows, int threads,
                                const int64_t* which = nullptr);

}  // namespace ISA
