// Mixtures of experts of few tokens: which feed-forwards each of them is sent to, and what those make of it.
//
// A pair is a token and an expert that it chose. Pairs stand in the order of their experts, so that each chosen matrix
// is read once, with all of its tokens, and threads share the rows of all of them: as few regions as for one matrix.
#include "activation.h"
#include "kernels.h"
#include "products.h"
#include "threads.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <vector>

namespace ISA {

namespace {

void softmax(std::vector<float>& logits, int64_t count, float* shares) {
    std::fill(logits.begin() + count, logits.end(), -INFINITY);
    const float most = *std::max_element(logits.begin(), logits.end());
    float total = 0;
    for (int64_t e = 0; e < count; e += LANES) {
        const Vec grown = exp(read<Vec>(logits.data() + e) - most);
        total += sum(grown);
        std::memcpy(shares + e, &grown, 4 * std::min<int64_t>(LANES, count - e));
    }
    for (int64_t e = 0; e < count; e++) shares[e] /= total;
}

// The places of the best `count` scores, the best first, of those that are alike the first.
std::vector<int64_t> best(std::vector<float>& scores, int64_t count) {
    // What is no number is less than none, as in torch, and has its place in the order.
    for (float& score : scores) score = score == score ? score : INFINITY;
    std::vector<int64_t> order(scores.size());
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + count, order.end(), [&](int64_t a, int64_t b) {
        return scores[a] > scores[b] || (scores[a] == scores[b] && a < b);
    });
    order.resize(count);
    return order;
}

// The scores, but for those of experts outside of the best groups.
std::vector<float> of_best_groups(const std::vector<float>& scores, int64_t groups, int64_t top_groups) {
    const int64_t size = int64_t(scores.size()) / groups;
    std::vector<float> together(groups), open(scores.size(), -INFINITY);
    for (int64_t g = 0; g < groups; g++) {
        float two[2] = {};
        const auto first = scores.begin() + g * size;
        std::partial_sort_copy(first, first + size, two, two + 2, std::greater<float>());
        together[g] = two[0] + two[1];
    }
    for (const int64_t g : best(together, top_groups))
        std::copy_n(scores.begin() + g * size, size, open.begin() + g * size);
    return open;
}

}  // namespace

void choose(const Choose& it) {
    std::vector<float> logits((it.experts + LANES - 1) / LANES * LANES), scores(it.experts);
    for (int64_t row = 0; row < it.rows; row++) {
        float* shares = it.shares + row * it.experts;
        float* weight = it.weight + row * it.top_k;
        for (int64_t e = 0; e < it.experts; e++) logits[e] = number(it.logits, row * it.experts + e, it.type);
        if (it.sigmoid) {
            std::copy_n(logits.begin(), it.experts, shares);
            activate(shares, it.experts, SIGMOID);
        } else {
            softmax(logits, it.experts, shares);
        }
        for (int64_t e = 0; e < it.experts; e++) scores[e] = shares[e] + (it.correction ? it.correction[e] : 0);
        if (it.top_groups < it.groups) scores = of_best_groups(scores, it.groups, it.top_groups);
        const std::vector<int64_t> chosen = best(scores, it.top_k);
        std::copy(chosen.begin(), chosen.end(), it.chosen + row * it.top_k);
        float total = 1e-20f;  // sigmoids may all be nought
        for (int64_t k = 0; k < it.top_k; k++) total += weight[k] = shares[chosen[k]];
        for (int64_t k = 0; k < it.top_k; k++) weight[k] = it.factor * (it.normalize ? weight[k] / total : weight[k]);
    }
}

namespace {

struct Pair {
    int64_t expert, row;
    float weight;
};

// Those that chose one expert.
struct Group {
    int64_t expert;
    Stretch pairs;
};

// Matrices [experts, out, in] one after the other.
struct Stacked {
    const void *weight, *bias;
    int64_t out, in;
    int32_t type;

    Matrix of(int64_t expert, int64_t row_bytes) const {
        const int64_t size = type == FLOAT32 ? 4 : 2;
        const char* own = static_cast<const char*>(bias);
        return {static_cast<const char*>(weight) + expert * out * row_bytes, own ? own + expert * out * size : own, in,
                type};
    }
};

// A stretch of every chosen matrix's rows times its pairs': to[pair][row of W].
void multiply(const Products& inputs, const Stacked& matrices, const std::vector<Group>& groups, Stretch w, float* to) {
    const int64_t bytes = inputs.bytes(matrices.in);
    for (const Group& group : groups)
        inputs.multiply(matrices.of(group.expert, bytes), group.pairs, w,
                        to + group.pairs.first * matrices.out + w.first, matrices.out);
}

// What stands between an expert's matrices: act(gate) · up, or act(up) without a gate.
void between(const Experts& it, float* gate, float* up, int64_t n) {
    if (it.activation == CLAMPED) {
        for (int64_t i = 0; i < n; i++) {
            gate[i] = gate[i] > it.limit ? it.limit : gate[i];
            up[i] = 1 + (up[i] > it.limit ? it.limit : up[i] < -it.limit ? -it.limit : up[i]);
            up[i] *= gate[i];
            gate[i] *= it.gain;
        }
        activate(gate, n, SIGMOID);
    } else {
        activate(gate ? gate : up, n, it.activation);
    }
    for (int64_t i = 0; gate && i < n; i++) up[i] *= gate[i];
}

}  // namespace

void experts(const Experts& it) {
    std::vector<Pair> pairs;
    for (int64_t i = 0; i < it.rows * it.top_k; i++)
        if (it.chosen[i] >= 0 && it.chosen[i] < it.experts)
            pairs.push_back({it.chosen[i], i / it.top_k, it.weight[i]});
    std::stable_sort(pairs.begin(), pairs.end(), [](const Pair& a, const Pair& b) { return a.expert < b.expert; });
    const int64_t count = int64_t(pairs.size()), F = it.hidden;
    std::vector<Group> groups;
    std::vector<int64_t> rows(count);
    for (int64_t p = 0; p < count; p++) {
        rows[p] = pairs[p].row;
        if (groups.empty() || groups.back().expert != pairs[p].expert) groups.push_back({pairs[p].expert, {p, p}});
        groups.back().pairs.last = p + 1;
    }
    const int threads = int64_t(groups.size()) * it.width * F < ALONE ? 1 : it.threads;

    const Norm plain{it.x, nullptr, nullptr, it.width, it.type, NO_NORM, 0};
    const Stacked gate{it.gate, it.gate_bias, F, it.width, it.type}, up{it.up, it.up_bias, F, it.width, it.type};
    const auto inward = ready(it.up_format, plain, count, threads, rows.data());
    const bool alike = !it.gate || it.gate_format == it.up_format;
    const auto gating = alike ? nullptr : ready(it.gate_format, plain, count, threads, rows.data());
    std::vector<float> gates(it.gate ? count * F : 0), hidden(count * F);
    parallel(F, threads, [&](int64_t first, int64_t last) {
        if (it.gate) multiply(alike ? *inward : *gating, gate, groups, {first, last}, gates.data());
        multiply(*inward, up, groups, {first, last}, hidden.data());
        for (int64_t p = 0; p < count; p++)
            between(it, it.gate ? &gates[p * F + first] : nullptr, &hidden[p * F + first], last - first);
    });

    const Stacked down{it.down, it.down_bias, it.width, F, it.type};
    const auto outward = ready(it.down_format, {hidden.data(), nullptr, nullptr, F, FLOAT32, NO_NORM, 0}, count, threads);
    std::vector<float> made(count * it.width), sums(it.rows * it.width);
    parallel(it.width, threads, [&](int64_t first, int64_t last) {
        multiply(*outward, down, groups, {first, last}, made.data());
        for (int64_t p = 0; p < count; p++) {
            float* sum = &sums[pairs[p].row * it.width];
            for (int64_t c = first; c < last; c++) sum[c] += pairs[p].weight * made[p * it.width + c];
        }
        for (int64_t row = 0; row < it.rows; row++)
            for (int64_t at = row * it.width + first; at < row * it.width + last; at++)
                put(it.y, at, sums[at], it.type);
    });
}

}  // namespace ISA
