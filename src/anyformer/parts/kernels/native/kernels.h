// What the library offers: a plain C interface over addresses, made once for each instruction set.
#pragma once

#include <cstdint>

// How numbers are stored, by ggml's numbers. FLOAT32 and BFLOAT16 are also what inputs and outputs may be.
enum Format : int32_t { FLOAT32 = 0, Q4_0 = 2, Q4_1 = 3, Q8_0 = 8, Q4_K = 12, Q6_K = 14, INT8 = 24, BFLOAT16 = 30 };

enum Activation : int32_t { NONE = 0, RELU = 1, GELU = 2, GELU_TANH = 3, SILU = 4, SIGMOID = 5, TANH = 6, CLAMPED = 7 };

enum NormKind : int32_t { NO_NORM = 0, RMS = 1, LAYER = 2, OFFSET = 4 };  // OFFSET: the factor is 1 + weight

// y = residual + act(norm(x) Wᵀ + b), for few rows x; gated: W holds the rows of a gate and then those of an up
// projection, and y = residual + act(gate) · up. Everything but the weight is of one type.
struct Linear {
    const void* x;         // [rows, in]
    void* y;               // [rows, out], out halved where gated
    const void* weight;    // [out, in], as `format` stores a row
    const void* bias;      // [out] or null
    const void* norm;      // [in] or null
    const void* norm_bias; // [in] or null
    const void* residual;  // [rows, out] or null
    int64_t rows, in, out;
    int32_t type, format, norm_kind, activation, gated, threads;  // norm_kind: NormKind's together
    float eps;
};

// softmax(cap(scale · q kᵀ) + added) v, of few queries over a cache; strides in elements.
struct Attention {
    const void* q;      // [B, H, T, C]
    const void* k;      // [B, K, S, C]
    const void* v;      // [B, K, S, V]; in 8 bits, rows as int8_rows.h has them
    void* y;            // [B, T, H, V]
    const float* added; // [B or 1, H or 1, T, S] or null; -infinity hides
    const void* sinks;  // [H], of q's type, or null
    int64_t B, H, K, T, S, C, V;
    int64_t q_strides[3], k_strides[3], v_strides[3], added_strides[3];
    int32_t type, kept, threads;  // kept: how k and v are stored
    float scale, cap;             // cap 0: none
};

// Heads in place: [B, T, heads, C] turned by their positions' angles.
struct Rotary {
    void* x;           // first head of the first token
    const float* cos;  // [B or 1, T, dim], and the sine with its sign, as `RotaryAngles.tables` gives them
    const float* sin;
    int64_t B, T, heads, C, dim;  // heads lie C apart
    int64_t x_strides[2], table_stride;
    int32_t type, interleaved;
};

// y = residual + norm(x), of each row.
struct Normed {
    const void* x;         // [rows, width]
    void* y;
    const void* norm;      // [width] or null
    const void* norm_bias; // [width] or null
    const void* residual;  // [rows, width] or null
    int64_t rows, width, x_stride, heads, head_stride;  // row r of x begins at r / heads strides and r % heads head strides
    int32_t type, norm_kind;
    float eps;
};

// New keys or values into their slots of a cache.
struct Keep {
    const void* x;         // [B, heads, T, C]
    void* store;           // [B, heads, slots, C], of x's type; or rows in 8 bits (int8_rows.h)
    const int64_t* slots;  // [B, T], -1 for none; or null: token t goes to slot `first` + t
    int64_t B, heads, T, C, first;
    int64_t x_strides[3], store_strides[3];
    int32_t type, kept;
};

// Rows in blocks as the numbers that they stand for.
struct Expand {
    const void* weight;  // [rows, in], as `format` stores a row
    float* y;            // [rows, in]
    int64_t rows, in;
    int32_t format, threads;
};

// The experts of each row: shares are a softmax of the logits, or sigmoids; the best are chosen, the first of those that
// are alike. A correction counts in the choice alone, and of `groups` of experts only the `top_groups` stay whose two
// best are the best together.
struct Choose {
    const void* logits;       // [rows, experts]
    const float* correction;  // [experts] or null
    float* shares;            // [rows, experts]
    float* weight;            // [rows, top_k], the best first; `factor` times a share
    int64_t* chosen;          // [rows, top_k]
    int64_t rows, experts, top_k, groups, top_groups;
    int32_t type, sigmoid, normalize;  // normalize: shares of the chosen are made to sum to one
    float factor;
};

// y = Σ_k weight · expert_k(x) of few rows, an expert being down(act(gate(x)) · up(x)), or down(act(up(x))). CLAMPED, of
// gate g and up u: g' · σ(gain · g') · (u' + 1), g' not above `limit`, u' within it.
struct Experts {
    const void* x;          // [rows, width]
    void* y;                // [rows, width]
    const float* weight;    // [rows, top_k]
    const int64_t* chosen;  // [rows, top_k]; what is no expert's number, none
    const void *gate, *up, *down;                 // [experts, out, in], as their formats store a row; the first may be null
    const void *gate_bias, *up_bias, *down_bias;  // [experts, out], of x's type, or null
    int64_t rows, top_k, experts, width, hidden;
    int32_t type, gate_format, up_format, down_format, activation, threads;
    float limit, gain;
};

// y = W x of each head of few rows, or Wᵀ x, each with a matrix of its own.
struct Heads {
    const void* x;       // [rows, heads, in]
    const void* weight;  // [heads, out, in]; transposed, [heads, in, out]
    void* y;             // [rows, heads, out], of the type `made`
    int64_t rows, heads, in, out, x_stride, head_stride;
    int32_t type, made, transposed, threads;
};

// softmax(scale · q kᵀ) v of many queries, each over one span of the keys; with d_y, its gradients. All in float32.
struct Spans {
    const float* q;    // [B, H, T, C]
    const float* k;    // [B, K, S, C]
    const float* v;    // [B, K, S, V]
    float* y;          // [B, T, H, V]
    float* log_sums;   // [B, T, H]: the logarithm of the sum of exp(score); 0 where nothing is seen
    const int32_t* first;  // [B or 1, T]: query t sees the keys first[t] .. last[t] - 1
    const int32_t* last;
    const float* d_y;  // [B, H, T, V], or null: only y and log_sums are made
    float* d_q;        // [B, T, H, C]
    float* d_k;        // [B, S, K, C]
    float* d_v;        // [B, S, K, V]
    int64_t B, H, K, T, S, C, V, span_stride;
    int64_t q_strides[3], k_strides[3], v_strides[3], d_y_strides[3];
    int32_t threads;
    float scale;
};

// y = x / √(mean(x²) + eps) · w of many rows; with d_y, the gradients instead. All in float32.
struct NormRows {
    const float* x;       // [rows, width]
    const float* weight;  // [width] or null
    float* y;
    const float* d_y;     // or null: only y is made
    float* d_x;
    float* d_weight;      // [width]
    int64_t rows, width;
    int32_t norm_kind, threads;  // RMS, and OFFSET or not
    float eps;
};

// y = act(x) · up, or act(x) alone, of `count` numbers of `type`; with d_y, the gradients instead.
struct ActivatedRows {
    const void* x;
    const void* up;  // or null
    void* y;
    const void* d_y; // or null: only y is made
    void* d_x;
    void* d_up;      // null where `up` is
    int64_t count;
    int32_t type, activation, threads;
};

enum Kind : int32_t { LINEAR, ATTENTION, ROTARY, NORMED, KEEP, EXPAND, CHOOSE, EXPERTS, HEADS };

// A call that can be made again.
struct Call {
    int32_t kind;
    const void* it;
};

struct Kernels {
    const char* name;
    void (*linear)(const Linear&);
    void (*attention)(const Attention&);
    void (*rotary)(const Rotary&);
    void (*normed)(const Normed&);
    void (*keep)(const Keep&);
    void (*expand)(const Expand&);
    void (*choose)(const Choose&);
    void (*experts)(const Experts&);
    void (*heads)(const Heads&);
    void (*spans)(const Spans&);
    void (*norm_rows)(const NormRows&);
    void (*activated_rows)(const ActivatedRows&);
};
