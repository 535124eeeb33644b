// What kernels that walk over rows share: ends of rows that fill no vector, sums over lanes, how many threads are worth it.

#pragma once
#include <omp.h>

#include <cmath>

#include "vectors.h"

constexpr int W = Lanes<float>::count;
constexpr int64_t GRAIN = 1 << 14;  // entries below which a second thread costs more than it gives

static inline int crew(int64_t entries, int threads) {
    int64_t most = entries / GRAIN + 1;
    return most < threads ? (int)most : threads;
}

static inline vecf part(const float* p, int64_t n, float rest) {  // the last n < W entries, filled up
    vecf v = all(rest);
    for (int64_t i = 0; i < n; i++) v[i] = p[i];
    return v;
}
static inline void part(float* p, vecf v, int64_t n) {
    for (int64_t i = 0; i < n; i++) p[i] = v[i];
}

typedef float vec8 __attribute__((vector_size(32), may_alias));
typedef float vec4 __attribute__((vector_size(16), may_alias));
// All lanes into one: the upper half is joined to the lower, again and again.
template <class Join> static inline float fold(vecf v, Join join) {
    vec4 low, high;
    if constexpr (W >= 8) {
        vec8 half, upper;
        memcpy(&half, &v, sizeof half);
        if constexpr (W == 16) {
            memcpy(&upper, reinterpret_cast<char*>(&v) + 32, sizeof upper);
            half = join(half, upper);
        }
        memcpy(&low, &half, sizeof low);
        memcpy(&high, reinterpret_cast<char*>(&half) + 16, sizeof high);
        low = join(low, high);
    } else {
        memcpy(&low, &v, sizeof low);
    }
    return join(join(low[0], low[2]), join(low[1], low[3]));
}
static inline float sum(vecf v) {
    return fold(v, [](auto a, auto b) { return a + b; });
}
static inline float largest(vecf v) {
    return fold(v, [](auto a, auto b) { return a > b ? a : b; });
}
static inline vecf exp0(vecf x) {  // e^x, and 0 where float32 has no normal number left
    return x < all(-87.0f) ? vecf{} : exponential(x);
}
