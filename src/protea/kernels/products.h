// Products of rows with weights as a model keeps them, (n, k): out[b][r] = w_r . x_b.
//
// Each sum is W chains of additions, one a lane, in order of k; then halves of the lanes are added until one is left.
// That order depends on k alone: a row's products are the same bit for bit whatever rows are computed beside it.

#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "vectors.h"

constexpr int W = Lanes<float>::count;
typedef vecf vec;

// Have a value in a register: compilers would rather read it from memory again in each of the products it enters.
#if defined(__x86_64__)
#define HOLD(v) asm("" : "+v"(v))
#elif defined(__aarch64__)
#define HOLD(v) asm("" : "+w"(v))
#else
#define HOLD(v)
#endif

// Groups of 2 H lanes of a, then of b, become groups of H: the upper half of each is added to its lower half.
template <int H> [[gnu::always_inline]] static inline vec halved(vec a, vec b) {
    vec low, high;
#ifdef __clang__
    for (int i = 0; i < W; i++) {
        const int at = i % (W / 2) / H * 2 * H + i % H;
        low[i] = i < W / 2 ? a[at] : b[at];
        high[i] = i < W / 2 ? a[at + H] : b[at + H];
    }
#else
    ivecf at = {};
    for (int i = 0; i < W; i++) at[i] = (i < W / 2 ? 0 : W) + i % (W / 2) / H * 2 * H + i % H;
    low = __builtin_shuffle(a, b, at), high = __builtin_shuffle(a, b, at + H);
#endif
    return low + high;
}

// out[i] = the sum of the lanes of v[i]: two vectors become one in every round, so that W sums cost little more than one.
template <int N> [[gnu::always_inline]] static inline void totals(const vec* v, float* out) {
    for (int i = 0; i < N; i += W) {
        vec part[W];
        for (int j = 0; j < W; j++) part[j] = i + j < N ? v[i + j] : vec{};
        if constexpr (W >= 16)
            for (int j = 0; j < 8; j++) part[j] = halved<8>(part[2 * j], part[2 * j + 1]);
        if constexpr (W >= 8)
            for (int j = 0; j < 4; j++) part[j] = halved<4>(part[2 * j], part[2 * j + 1]);
        const vec sums = halved<1>(halved<2>(part[0], part[1]), halved<2>(part[2], part[3]));
        memcpy(out + i, &sums, (N - i < W ? N - i : W) * sizeof(float));
    }
}

[[gnu::always_inline]] static inline float total(vec v) {
    float sum;
    totals<1>(&v, &sum);
    return sum;
}

static inline vec tanhv(vec x) { return 1.0f - 2.0f / (exponential(2.0f * x) + 1.0f); }

enum Activation { SILU, GELU_TANH, GELU, RELU, RELU2 };
static vec activate(vec x, int kind) {
    switch (kind) {
        case SILU: return x / (1.0f + exponential(-x));
        case GELU_TANH: return 0.5f * x * (1.0f + tanhv(0.79788456f * (x + 0.044715f * x * x * x)));
        case GELU: {
            for (int i = 0; i < W; i++) x[i] = 0.5f * x[i] * (1.0f + erff(x[i] * 0.70710678f));
            return x;
        }
        case RELU: return x > vec{} ? x : vec{};
        default: x = x > vec{} ? x : vec{}; return x * x;
    }
}

#ifndef PREFETCH
#define PREFETCH 8192  // floats: weights are asked for this far ahead of their use
#endif
constexpr int GROUP = 8;   // inputs that share one reading of the weights
constexpr int CHUNK = 128; // most rows of weights taken at once (a multiple of 8)
constexpr int INNER = 5632; // floats of inputs that stay in the innermost cache beside weights (22 of 32 KiB)

// out[b][r] = w_r . x_b for R rows of weights and B of inputs: one chain of additions a lane, in order of k.
template <int R, int B>
static void tile(const float* w, const float* x, int64_t xs, int k0, int k1, int k_end, vec* state, float* out, int out_stride) {
    vec acc[B * R];
    for (int i = 0; i < B * R; i++) acc[i] = k0 ? state[i] : vec{};
    for (int k = k0; k + W <= k1; k += W) {
        vec wv[R];
        for (int r = 0; r < R; r++) {
            const float* at = w + (int64_t)r * k_end + k;
            wv[r] = load(at);
            __builtin_prefetch(at + PREFETCH, 0, 2);
        }
        for (int b = 0; b < B; b++) {
            vec xv = load(x + b * xs + k);
            HOLD(xv);
            for (int r = 0; r < R; r++) acc[b * R + r] += wv[r] * xv;
        }
    }
    if (k1 < k_end) {
        for (int i = 0; i < B * R; i++) state[i] = acc[i];
        return;
    }
    float sums[B * R];
    totals<B * R>(acc, sums);
    for (int b = 0; b < B; b++)
        for (int r = 0; r < R; r++) {
            float sum = sums[b * R + r];
            for (int j = k_end / W * W; j < k_end; j++) sum = fmaf(w[(int64_t)r * k_end + j], x[b * xs + j], sum);
            out[b * out_stride + r] = sum;
        }
}

// All n rows of weights, in pieces of k whose inputs stay in the innermost cache.
template <int R, int B>
static void tiles(const float* w, const float* x, int64_t xs, int k, int n, float* out, int out_stride) {
    alignas(64) vec state[CHUNK * B];
    const int pieces = 1 + k * B / INNER, depth = (k / pieces + W) / W * W;
    int k0 = 0;
    do {
        const int k1 = k0 + depth < k / W * W ? k0 + depth : k;
        int r = 0;
        for (; r + R <= n; r += R) tile<R, B>(w + (int64_t)r * k, x, xs, k0, k1, k, state + (int64_t)r * B, out + r, out_stride);
        for (; r < n; r++) tile<1, B>(w + (int64_t)r * k, x, xs, k0, k1, k, state + (int64_t)r * B, out + r, out_stride);
        k0 = k1;
    } while (k0 < k);
}

static void product(const float* w, const float* x, int64_t xs, int k, int n, int b, float* out) {
    constexpr int wide = W == 16 ? 2 : 1;  // registers: 32 of 16 floats, or 16
    switch (b) {
        case 1: return tiles<4, 1>(w, x, xs, k, n, out, CHUNK);
        case 2: return tiles<4, 2>(w, x, xs, k, n, out, CHUNK);
        case 3: return tiles<wide == 2 ? 4 : 3, 3>(w, x, xs, k, n, out, CHUNK);
        case 4: return tiles<2 * wide, 4>(w, x, xs, k, n, out, CHUNK);
        case 5: return tiles<2 * wide, 5>(w, x, xs, k, n, out, CHUNK);
        case 6: return tiles<wide, 6>(w, x, xs, k, n, out, CHUNK);
        case 7: return tiles<wide, 7>(w, x, xs, k, n, out, CHUNK);
        default: return tiles<wide, 8>(w, x, xs, k, n, out, CHUNK);
    }
}

// (x - mean) / sqrt(mean square + eps) * (g + plus) + bias
static void norm_row(const float* x, float* y, const float* g, const float* bias, int d, float eps, float plus, bool center) {
    float mean = 0;
    vec acc = {};
    int i = 0;
    if (center) {
        for (; i + W <= d; i += W) acc += load(x + i);
        mean = total(acc);
        for (; i < d; i++) mean += x[i];
        mean /= d;
    }
    acc = vec{};
    for (i = 0; i + W <= d; i += W) {
        vec c = load(x + i) - mean;
        acc += c * c;
    }
    float square = total(acc);
    for (; i < d; i++) square += (x[i] - mean) * (x[i] - mean);
    float scale = 1.0f / sqrtf(square / d + eps);
    for (i = 0; i < d; i++) y[i] = (x[i] - mean) * scale * (g ? g[i] + plus : 1.0f) + (bias ? bias[i] : 0.0f);
}

static void turn(float* x, const float* cos, const float* sin, int half, bool interleaved) {
    for (int i = 0; i < half; i++) {
        float *a = x + (interleaved ? 2 * i : i), *b = interleaved ? a + 1 : a + half;
        float u = *a, v = *b;
        *a = u * cos[i] - v * sin[i];
        *b = v * cos[i] + u * sin[i];
    }
}
