// Threads: torch's own where its OpenMP can be found, so that two pools never spin against each other; else a pool here.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

// Call body(context, first, last) on disjoint stretches of 0 .. count that cover it, `threads` of them.
void parallel(int64_t count, int threads, void (*body)(void*, int64_t, int64_t), void* context);

template <class F> void parallel(int64_t count, int threads, F body) {
    parallel(
        count, threads, [](void* f, int64_t first, int64_t last) { (*static_cast<F*>(f))(first, last); }, &body);
}

// The same on stretches of `grain`: a thread that is done with its own takes from what others have left, for memory
// does not serve all of them alike.
template <class F> void parallel(int64_t count, int64_t grain, int threads, F body) {
    const int64_t pieces = (count + grain - 1) / grain, shares = std::min<int64_t>(threads, pieces);
    if (shares <= 1) {
        if (count > 0) body(int64_t(0), count);
        return;
    }
    struct alignas(64) Share {
        std::atomic<int64_t> next;
        int64_t last;
    };
    std::vector<Share> of(shares);
    for (int64_t i = 0; i < shares; i++) {
        of[i].next.store(pieces * i / shares, std::memory_order_relaxed);
        of[i].last = pieces * (i + 1) / shares;
    }
    parallel(shares, int(shares), [&](int64_t first, int64_t) {
        for (int64_t i = 0; i < shares; i++) {
            Share& share = of[(first + i) % shares];
            for (int64_t piece; (piece = share.next.fetch_add(1, std::memory_order_relaxed)) < share.last;)
                body(piece * grain, std::min(count, (piece + 1) * grain));
        }
    });
}
