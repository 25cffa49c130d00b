// What a layer does besides its products: norms of the stream or of heads, and keys and values into their cache.
#include "int8_rows.h"
#include "kernels.h"
#include "norm.h"
#include "simd.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace ISA {

void normed(const Normed& it) {
    const Norm norm{it.x, it.norm, it.norm_bias, it.width, it.type, it.norm_kind, it.eps};
    std::vector<float> row(it.width);
    for (int64_t r = 0; r < it.rows; r++) {
        normalize(norm, r / it.heads * it.x_stride + r % it.heads * it.head_stride, row.data());
        for (int64_t c = 0; c < it.width; c += LANES) {
            const int64_t at = r * it.width + c, left = it.width - c;
            Vec value = some(row.data() + c, left);
            if (it.residual) value += some(it.residual, at, left, it.type);
            put_some(it.y, at, value, left, it.type);
        }
    }
}

namespace {

// C numbers in 8 bits and the scales of each group of them, to the nearest, ties to even. A group with a NaN or an
// infinity comes back as no number, too.
void quantize(const char* x, int type, int64_t C, char* row) {
    for (int64_t first = 0; first < C; first += INT8_GROUP) {
        const int64_t end = std::min(C, first + INT8_GROUP);
        float most = 0;
        for (int64_t c = first; c < end; c++) {
            const float size = std::fabs(number(x, c, type));
            if (size > most || size != size) most = size;
        }
        const uint16_t stored = to_bf16(most / 127);
        const float scale = bf16(stored);
        for (int64_t c = first; c < end; c++) {
            const float steps = std::nearbyint(number(x, c, type) / scale);  // no number where the scale is none or 0
            row[c] = steps == steps ? int8_t(std::max(-127.0f, std::min(127.0f, steps))) : 0;
        }
        write(row + int8_scales(C) + first / INT8_GROUP * 2, stored);
    }
}

}  // namespace

void keep(const Keep& it) {
    const int64_t size = it.type == FLOAT32 ? 4 : 2, kept = it.kept == INT8 ? 1 : size;
    for (int64_t b = 0; b < it.B; b++)
        for (int64_t t = 0; t < it.T; t++) {
            const int64_t slot = it.slots ? it.slots[b * it.T + t] : it.first + t;
            if (slot < 0) continue;
            for (int64_t h = 0; h < it.heads; h++) {
                const int64_t from = b * it.x_strides[0] + h * it.x_strides[1] + t * it.x_strides[2];
                const int64_t to = b * it.store_strides[0] + h * it.store_strides[1] + slot * it.store_strides[2];
                const char* x = static_cast<const char*>(it.x) + size * from;
                char* row = static_cast<char*>(it.store) + kept * to;
                if (it.kept == INT8) quantize(x, it.type, it.C, row);
                else std::memcpy(row, x, size * it.C);
            }
        }
}

}  // namespace ISA
