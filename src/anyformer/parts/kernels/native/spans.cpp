// Attention of many queries and its gradients, where every query sees one span of the keys: all of them, those up to its
// own, a window, its document. What no query of a tile sees is left out, and no weight is ever kept: they are made again
// from the logarithm of their sum on the way back (Dao et al. 2022, algorithms 1 and 4).
//
// A unit of work is a head (on the way back a key head with its group of heads). Its keys and values are laid out once,
// in rows padded to whole vectors and, turned, in panels:
//
//     rows     [S, width]                     panels   [S / PANEL, width, PANEL]
//
// so that every product of a tile is one form: rows times vectors, added up in registers.
#include "kernels.h"
#include "simd.h"
#include "threads.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace ISA {
namespace {

constexpr int64_t PANEL = 2 * LANES;
constexpr int ROWS = LANES == 16 ? 8 : 4;  // of a product at a time: so many that their sums stay in registers
constexpr int64_t TILE = 64;                // queries at a time, at most
constexpr int64_t BLOCK = 128;             // keys at a time

// Few keys are cut finer, where more of a tile would be what is hidden.
int64_t tile_of(const Spans& it) { return it.S <= 512 ? TILE / 2 : TILE; }

int64_t padded(int64_t n) { return (n + PANEL - 1) / PANEL * PANEL; }

// [rows, inner], an element of which lies `row` and `column` apart from its neighbours.
struct Left {
    const float* at;
    int64_t row, column;
};

// y [R, PANEL] = or += left [R, inner] · right [inner, PANEL].
template <int R, bool ADD>
inline void product(Left left, const float* right, int64_t right_row, int64_t inner, float* y, int64_t y_row) {
    Vec sums[R][2];
    for (int i = 0; i < R; i++)
        for (int j = 0; j < 2; j++) sums[i][j] = ADD ? read<Vec>(y + i * y_row + j * LANES) : Vec{};
    for (int64_t k = 0; k < inner; k++) {
        const Vec first = read<Vec>(right + k * right_row), second = read<Vec>(right + k * right_row + LANES);
        const float* a = left.at + k * left.column;
        for (int i = 0; i < R; i++) {
            const Vec factor = all(a[i * left.row]);
            sums[i][0] += factor * first;
            sums[i][1] += factor * second;
        }
    }
    for (int i = 0; i < R; i++)
        for (int j = 0; j < 2; j++) write(y + i * y_row + j * LANES, sums[i][j]);
}

// y [rows, PANEL] = or += left [rows, inner] · right [inner, PANEL].
template <bool ADD>
void products(Left left, int64_t rows, const float* right, int64_t right_row, int64_t inner, float* y, int64_t y_row) {
    for (; rows >= ROWS; rows -= ROWS, left.at += ROWS * left.row, y += ROWS * y_row)
        product<ROWS, ADD>(left, right, right_row, inner, y, y_row);
    for (; rows > 0; rows--, left.at += left.row, y += y_row) product<1, ADD>(left, right, right_row, inner, y, y_row);
}

// y [rows, width] += left [rows, inner] · right [inner, width], all in rows.
void add_products(Left left, int64_t rows, const float* right, int64_t width, int64_t inner, float* y) {
    for (int64_t c = 0; c < width; c += PANEL) products<true>(left, rows, right + c, width, inner, y + c, width);
}

// Rows [n, width] of a head, padded with zeros and multiplied.
void lay(const float* from, int64_t stride, int64_t n, int64_t width, float factor, float* to) {
    const int64_t whole = padded(width);
    for (int64_t i = 0; i < n; i++, from += stride, to += whole) {
        for (int64_t c = 0; c < width; c++) to[c] = factor * from[c];
        std::fill(to + width, to + whole, 0.0f);
    }
}

// The same rows turned, in panels of PANEL of them, the last of which was zeros before.
void turn(const float* from, int64_t stride, int64_t n, int64_t width, float* to) {
    for (int64_t i = 0; i < n; i++, from += stride) {
        float* panel = to + i / PANEL * PANEL * width + i % PANEL;
        for (int64_t c = 0; c < width; c++) panel[c * PANEL] = from[c];
    }
}

float dot(const float* a, const float* b, int64_t n) {
    Vec sums = {};
    int64_t c = 0;
    for (; c + LANES <= n; c += LANES) sums += read<Vec>(a + c) * read<Vec>(b + c);
    float total = sum(sums);
    for (; c < n; c++) total += a[c] * b[c];
    return total;
}

// A head's tile of queries: the span of each, and of all together.
struct Tile {
    int64_t first, rows, low, high;
    const int32_t *begins, *ends;

    Tile(const Spans& it, int64_t b, int64_t first)
        : first(first), rows(std::min(tile_of(it), it.T - first)), low(it.S), high(0) {
        begins = it.first + b * it.span_stride + first;
        ends = it.last + b * it.span_stride + first;
        for (int64_t i = 0; i < rows; i++)
            if (begins[i] < ends[i]) {
                low = std::min<int64_t>(low, begins[i]);
                high = std::max<int64_t>(high, ends[i]);
            }
        low = low / PANEL * PANEL;
    }

    // Of `keys` keys from s on, those that query i sees.
    int64_t begin(int64_t i, int64_t s, int64_t keys) const { return std::clamp<int64_t>(begins[i] - s, 0, keys); }
    int64_t end(int64_t i, int64_t s, int64_t keys) const {
        return std::clamp<int64_t>(ends[i] - s, begin(i, s, keys), keys);
    }
};

// left [rows, inner] times panels: the panels' columns from key s on, side by side in rows of BLOCK.
void scores(Left left, int64_t rows, const float* panels, int64_t inner, int64_t s, int64_t keys, float* to) {
    for (int64_t at = 0; at < keys; at += PANEL)
        products<false>(left, rows, panels + (s + at) * inner, PANEL, inner, to + at, BLOCK);
}

const float* place(const float* x, const int64_t (&strides)[3], int64_t b, int64_t head, int64_t row) {
    return x + b * strides[0] + head * strides[1] + row * strides[2];
}

// What a thread works on.
struct Forward {
    const Spans& it;
    const int64_t keys, C, V;  // padded
    std::vector<float> k_panels, v_rows, q, y, weights;

    explicit Forward(const Spans& it)
        : it(it), keys(padded(it.S)), C(padded(it.C)), V(padded(it.V)), k_panels(keys * it.C), v_rows(keys * V), q(TILE * C), y(TILE * V), weights(TILE * BLOCK) {}

    void head(int64_t b, int64_t h) {
        const int64_t kv = h / (it.H / it.K);
        turn(place(it.k, it.k_strides, b, kv, 0), it.k_strides[2], it.S, it.C, k_panels.data());
        lay(place(it.v, it.v_strides, b, kv, 0), it.v_strides[2], it.S, it.V, 1, v_rows.data());
        for (int64_t first = 0; first < it.T; first += tile_of(it)) tile(Tile(it, b, first), b, h);
    }

    void tile(const Tile& tile, int64_t b, int64_t h) {
        lay(place(it.q, it.q_strides, b, h, tile.first), it.q_strides[2], tile.rows, it.C, it.scale, q.data());
        std::fill(y.begin(), y.end(), 0.0f);
        float most[TILE], total[TILE] = {};
        std::fill(most, most + TILE, -INFINITY);
        for (int64_t s = tile.low; s < tile.high; s += BLOCK) {
            const int64_t n = std::min(BLOCK, padded(tile.high - s));
            scores({q.data(), C, 1}, tile.rows, k_panels.data(), it.C, s, n, weights.data());
            for (int64_t i = 0; i < tile.rows; i++)
                weigh(weights.data() + i * BLOCK, tile.begin(i, s, n), tile.end(i, s, n), n, most[i], total[i], i);
            add_products({weights.data(), BLOCK, 1}, tile.rows, v_rows.data() + s * V, V, n, y.data());
        }
        for (int64_t i = 0; i < tile.rows; i++) {
            const int64_t row = (b * it.T + tile.first + i) * it.H + h;
            const float share = total[i] > 0 ? 1 / total[i] : 0;
            for (int64_t c = 0; c < it.V; c++) it.y[row * it.V + c] = share * y[i * V + c];
            it.log_sums[row] = total[i] > 0 ? most[i] + std::log(total[i]) : 0;
        }
    }

    // From scores to weights relative to the largest so far; what was added up before shrinks by as much.
    void weigh(float* row, int64_t begin, int64_t end, int64_t n, float& most, float& total, int64_t i) {
        std::fill(row, row + begin, -INFINITY);
        std::fill(row + end, row + n, -INFINITY);
        Vec highest = all(most);
        for (int64_t s = 0; s < n; s += LANES) highest = larger(highest, read<Vec>(row + s));
        const float peak = largest(highest);
        if (begin == end) {
            std::fill(row, row + n, 0.0f);
            return;
        }
        if (peak > most) {
            const float shrink = most == -INFINITY ? 0 : std::exp(most - peak);
            total *= shrink;
            for (int64_t c = 0; c < V; c += LANES) write(&y[i * V + c], read<Vec>(&y[i * V + c]) * shrink);
            most = peak;
        }
        Vec sums = {};
        for (int64_t s = 0; s < n; s += LANES) {
            const Vec weight = exp(read<Vec>(row + s) - most);
            sums += weight;
            write(row + s, weight);
        }
        total += sum(sums);
    }
};

// P = exp(S - log Σ)     dV += Pᵀ dO     dP = dO Vᵀ     dS = P ∘ (dP - rowsum(dO ∘ O))     dQ += dS K     dK += dSᵀ Q
struct Backward {
    const Spans& it;
    const int64_t keys, C, V;
    std::vector<float> k_rows, k_panels, v_panels, d_k, d_v, q, d_q, d_y, weights, d_scores;

    explicit Backward(const Spans& it)
        : it(it), keys(padded(it.S)), C(padded(it.C)), V(padded(it.V)), k_rows(keys * C), k_panels(keys * it.C),
          v_panels(keys * it.V), d_k(keys * C), d_v(keys * V), q(TILE * C), d_q(TILE * C),
          d_y(TILE * V), weights(TILE * BLOCK), d_scores(TILE * BLOCK) {}

    void key_head(int64_t b, int64_t kv) {
        lay(place(it.k, it.k_strides, b, kv, 0), it.k_strides[2], it.S, it.C, 1, k_rows.data());
        turn(place(it.k, it.k_strides, b, kv, 0), it.k_strides[2], it.S, it.C, k_panels.data());
        turn(place(it.v, it.v_strides, b, kv, 0), it.v_strides[2], it.S, it.V, v_panels.data());
        std::fill(d_k.begin(), d_k.end(), 0.0f);
        std::fill(d_v.begin(), d_v.end(), 0.0f);
        const int64_t G = it.H / it.K;
        for (int64_t h = kv * G; h < (kv + 1) * G; h++)
            for (int64_t first = 0; first < it.T; first += tile_of(it)) tile(Tile(it, b, first), b, h);
        for (int64_t s = 0; s < it.S; s++) {
            const int64_t row = (b * it.S + s) * it.K + kv;
            std::copy_n(d_k.data() + s * C, it.C, it.d_k + row * it.C);
            std::copy_n(d_v.data() + s * V, it.V, it.d_v + row * it.V);
        }
    }

    void tile(const Tile& tile, int64_t b, int64_t h) {
        lay(place(it.q, it.q_strides, b, h, tile.first), it.q_strides[2], tile.rows, it.C, it.scale, q.data());
        lay(place(it.d_y, it.d_y_strides, b, h, tile.first), it.d_y_strides[2], tile.rows, it.V, 1, d_y.data());
        std::fill(d_q.begin(), d_q.end(), 0.0f);
        float meets[TILE], log_sums[TILE];  // rowsum(dO ∘ O)
        for (int64_t i = 0; i < tile.rows; i++) {
            const int64_t row = (b * it.T + tile.first + i) * it.H + h;
            log_sums[i] = it.log_sums[row];
            meets[i] = dot(&d_y[i * V], it.y + row * it.V, it.V);
        }
        for (int64_t s = tile.low; s < tile.high; s += BLOCK) {
            const int64_t n = std::min(BLOCK, padded(tile.high - s));
            scores({q.data(), C, 1}, tile.rows, k_panels.data(), it.C, s, n, weights.data());
            scores({d_y.data(), V, 1}, tile.rows, v_panels.data(), it.V, s, n, d_scores.data());
            for (int64_t i = 0; i < tile.rows; i++) {
                float *row = weights.data() + i * BLOCK, *d = d_scores.data() + i * BLOCK;
                std::fill(row, row + tile.begin(i, s, n), -INFINITY);
                std::fill(row + tile.end(i, s, n), row + n, -INFINITY);
                for (int64_t at = 0; at < n; at += LANES) {
                    const Vec weight = exp(read<Vec>(row + at) - log_sums[i]);
                    write(row + at, weight);
                    write(d + at, weight * (read<Vec>(d + at) - meets[i]));
                }
            }
            add_products({d_scores.data(), BLOCK, 1}, tile.rows, k_rows.data() + s * C, C, n, d_q.data());
            add_products({d_scores.data(), 1, BLOCK}, n, q.data(), C, tile.rows, d_k.data() + s * C);
            add_products({weights.data(), 1, BLOCK}, n, d_y.data(), V, tile.rows, d_v.data() + s * V);
        }
        for (int64_t i = 0; i < tile.rows; i++) {
            float* to = it.d_q + ((b * it.T + tile.first + i) * it.H + h) * it.C;
            for (int64_t c = 0; c < it.C; c++) to[c] = it.scale * d_q[i * C + c];
        }
    }
};

}  // namespace

void spans(const Spans& it) {
    if (it.d_y) {
        parallel(it.B * it.K, it.threads, [&](int64_t first, int64_t last) {
            Backward work(it);
            for (int64_t unit = first; unit < last; unit++) work.key_head(unit / it.K, unit % it.K);
        });
    } else {
        parallel(it.B * it.H, it.threads, [&](int64_t first, int64_t last) {
            Forward work(it);
            for (int64_t unit = first; unit < last; unit++) work.head(unit / it.H, unit % it.H);
        });
    }
}

}  // namespace ISA
