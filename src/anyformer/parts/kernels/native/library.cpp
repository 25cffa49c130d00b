// The entries that Python calls: each hands over to the kernels of the best instruction set that this machine has.
#include "kernels.h"

#include <atomic>
#include <cstring>
#include <new>

#if defined(__x86_64__)
#include <cpuid.h>
namespace avx512 { extern const Kernels kernels; }
namespace avx2 { extern const Kernels kernels; }
#elif defined(__aarch64__)
#if defined(__linux__)
#include <sys/auxv.h>
#endif
namespace dotprod { extern const Kernels kernels; }
#endif
namespace portable { extern const Kernels kernels; }

namespace {

struct Sets {
    const Kernels* best_first[3] = {};
    int count = 0;

    Sets() {
#if defined(__x86_64__)
        __builtin_cpu_init();
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
            __builtin_cpu_supports("avx512vnni"))
            best_first[count++] = &avx512::kernels;
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
            best_first[count++] = &avx2::kernels;
#elif defined(__aarch64__) && defined(__linux__)
        if (getauxval(AT_HWCAP) & (1ul << 20)) best_first[count++] = &dotprod::kernels;  // HWCAP_ASIMDDP
#elif defined(__aarch64__) && defined(__APPLE__)
        best_first[count++] = &dotprod::kernels;  // every Mac with such a processor has it
#endif
        best_first[count++] = &portable::kernels;
    }
};

const Sets& sets() {
    static const Sets found;
    return found;
}

// What `use` chose in place of the best.
std::atomic<const Kernels*> chosen{nullptr};

const Kernels& kernels() {
    const Kernels* found = chosen.load(std::memory_order_relaxed);
    return found ? *found : *sets().best_first[0];
}

// No exception may leave a C function; 1 says that memory ran out.
template <class It> int run(void (*kernel)(const It&), const It* it) {
    try {
        kernel(*it);
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

}  // namespace

#define EXPORT __attribute__((visibility("default")))

extern "C" {

EXPORT const char* anyformer_instructions() { return kernels().name; }

// Use an instruction set by name; 0 where this machine does not have it.
EXPORT int anyformer_use(const char* name) {
    for (int i = 0; i < sets().count; i++)
        if (!std::strcmp(sets().best_first[i]->name, name)) {
            chosen = sets().best_first[i];
            return 1;
        }
    return 0;
}

// Whether this machine multiplies bfloat16 faster than float32: with matrix units, or at twice the numbers an
// instruction. Intel's AVX-512 instruction for it runs at half the rate of float32's; without one it is emulated.
EXPORT int anyformer_narrow_pays() {
#if defined(__x86_64__)
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    if (d & (1u << 22)) return 1;  // AMX
    a = 0;
    if (!__get_cpuid_count(7, 1, &a, &b, &c, &d)) return 0;
    return (a & (1u << 5)) && !__builtin_cpu_is("intel");
#else
    return 1;
#endif
}

EXPORT int anyformer_linear(const Linear* it) { return run(kernels().linear, it); }
EXPORT int anyformer_attention(const Attention* it) { return run(kernels().attention, it); }
EXPORT int anyformer_rotary(const Rotary* it) { return run(kernels().rotary, it); }
EXPORT int anyformer_normed(const Normed* it) { return run(kernels().normed, it); }
EXPORT int anyformer_keep(const Keep* it) { return run(kernels().keep, it); }
EXPORT int anyformer_expand(const Expand* it) { return run(kernels().expand, it); }
EXPORT int anyformer_choose(const Choose* it) { return run(kernels().choose, it); }
EXPORT int anyformer_experts(const Experts* it) { return run(kernels().experts, it); }
EXPORT int anyformer_heads(const Heads* it) { return run(kernels().heads, it); }
EXPORT int anyformer_spans(const Spans* it) { return run(kernels().spans, it); }
EXPORT int anyformer_norm_rows(const NormRows* it) { return run(kernels().norm_rows, it); }
EXPORT int anyformer_activated_rows(const ActivatedRows* it) { return run(kernels().activated_rows, it); }

// Make calls again, in their order.
EXPORT int anyformer_replay(const Call* calls, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        int code = 0;
        switch (calls[i].kind) {
            case LINEAR: code = anyformer_linear(static_cast<const Linear*>(calls[i].it)); break;
            case ATTENTION: code = anyformer_attention(static_cast<const Attention*>(calls[i].it)); break;
            case ROTARY: code = anyformer_rotary(static_cast<const Rotary*>(calls[i].it)); break;
            case NORMED: code = anyformer_normed(static_cast<const Normed*>(calls[i].it)); break;
            case KEEP: code = anyformer_keep(static_cast<const Keep*>(calls[i].it)); break;
            case EXPAND: code = anyformer_expand(static_cast<const Expand*>(calls[i].it)); break;
            case CHOOSE: code = anyformer_choose(static_cast<const Choose*>(calls[i].it)); break;
            case EXPERTS: code = anyformer_experts(static_cast<const Experts*>(calls[i].it)); break;
            case HEADS: code = anyformer_heads(static_cast<const Heads*>(calls[i].it)); break;
        }
        if (code) return code;
    }
    return 0;
}
}
