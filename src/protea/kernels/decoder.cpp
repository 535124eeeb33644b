// One step of a decoder on the CPU: every row is one token of some text, its keys and values lie in blocks.
//
// A plan is a list of operations; all threads walk it together, with a barrier after each. Sums run in an order
// that depends on the row alone (never on the other rows, on tiling or on threads), so a row's result is the same
// bit for bit whatever is computed beside it. Weights are read where the model keeps them: nothing is copied.

#include <omp.h>
#include <sched.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "vectors.h"

constexpr int W = Lanes<float>::count;
typedef vecf vec;

typedef float vec8 __attribute__((vector_size(32)));
typedef float vec4 __attribute__((vector_size(16)));

static inline float total(vec v) {  // lanes, halved again and again
    vec4 quarter;
    if constexpr (W >= 8) {
        vec8 half;
        memcpy(&half, &v, sizeof half);
        if constexpr (W == 16) {
            vec8 high;
            memcpy(&high, reinterpret_cast<char*>(&v) + 32, sizeof high);
            half += high;
        }
        vec4 high;
        memcpy(&quarter, &half, sizeof quarter);
        memcpy(&high, reinterpret_cast<char*>(&half) + 16, sizeof high);
        quarter += high;
    } else {
        memcpy(&quarter, &v, sizeof quarter);
    }
    return (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
}

static inline float exponential1(float x) { return exponential(all(x))[0]; }
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

// ---------------------------------------------------------------- matrix products

#ifndef PREFETCH
#define PREFETCH 8192  // floats: weights are asked for this far ahead of their use
#endif
// out[b][r] = w_r . x_b for R rows of weights and B of inputs: one chain of additions a lane, in order of k.
template <int R, int B>
static void tile(const float* w, const float* x, int64_t xs, int k_end, float* out, int out_stride) {
    vec acc[R][B] = {};
    int k = 0;
    for (; k + W <= k_end; k += W) {
        vec wv[R];
        for (int r = 0; r < R; r++) {
            const float* at = w + (int64_t)r * k_end + k;
            wv[r] = load(at);
            __builtin_prefetch(at + PREFETCH, 0, 2);
        }
        for (int b = 0; b < B; b++) {
            vec xv = load(x + b * xs + k);
            for (int r = 0; r < R; r++) acc[r][b] += wv[r] * xv;
        }
    }
    for (int b = 0; b < B; b++)
        for (int r = 0; r < R; r++) {
            float sum = total(acc[r][b]);
            for (int j = k; j < k_end; j++) sum = fmaf(w[(int64_t)r * k_end + j], x[b * xs + j], sum);
            out[b * out_stride + r] = sum;
        }
}

template <int R, int B>
static void tiles(const float* w, const float* x, int64_t xs, int k, int n, float* out, int out_stride) {
    int r = 0;
    for (; r + R <= n; r += R) tile<R, B>(w + (int64_t)r * k, x, xs, k, out + r, out_stride);
    for (; r < n; r++) tile<1, B>(w + (int64_t)r * k, x, xs, k, out + r, out_stride);
}

constexpr int GROUP = 8;   // inputs that share one reading of the weights
constexpr int CHUNK = 128; // most rows of weights taken at once (a multiple of 8)

static void product(const float* w, const float* x, int64_t xs, int k, int n, int b, float* out) {
    constexpr int wide = W == 16 ? 2 : 1;  // registers: 32 of 16 floats, or 16
    switch (b) {
        case 1: return tiles<4, 1>(w, x, xs, k, n, out, CHUNK);
        case 2: return tiles<4, 2>(w, x, xs, k, n, out, CHUNK);
        case 3: return tiles<wide == 2 ? 4 : 3, 3>(w, x, xs, k, n, out, CHUNK);
        case 4: return tiles<2 * wide, 4>(w, x, xs, k, n, out, CHUNK);
        case 5: return tiles<2 * wide, 5>(w, x, xs, k, n, out, CHUNK);
        case 6: return tiles<wide == 2 ? 4 : 1, 6>(w, x, xs, k, n, out, CHUNK);
        case 7: return tiles<wide == 2 ? 3 : 1, 7>(w, x, xs, k, n, out, CHUNK);
        default: return tiles<wide == 2 ? 3 : 1, 8>(w, x, xs, k, n, out, CHUNK);
    }
}

// ---------------------------------------------------------------- the plan

enum Kind { EMBED, NORM, LINEAR, GLU, REMEMBER, ATTEND, ADD, GATHER, SOFTCAP };

struct Op {
    int32_t kind, wanted;  // wanted: only the rows that were asked for
    int32_t n[14];
    float f[4];
    float* p[12];
};

struct Step {
    int32_t rows, n_wanted, n_ops, threads;
    const int32_t *tokens, *slots, *wanted;
    const Op* ops;
    std::atomic<int32_t>* next;  // for each operation, the next piece of work
    float* scores;               // threads x longest text
    int64_t scores_stride;
};

struct Barrier {
    std::atomic<int> waiting{0}, round{0};
    void wait(int threads) {
        if (threads == 1) return;
        int now = round.load(std::memory_order_acquire);
        if (waiting.fetch_add(1, std::memory_order_acq_rel) == threads - 1) {
            waiting.store(0, std::memory_order_relaxed);
            round.store(now + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; round.load(std::memory_order_acquire) == now; spins++)
            if (spins > 4000) sched_yield();
    }
};

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

// n: k, segments, rows of each, where each is written, width of a row of the result, adds, activation, rows taken at once
static void linear(const Op& o, int rows, std::atomic<int32_t>& next) {
    const int k = o.n[0], segments = o.n[1], stride = o.n[8], add = o.n[9], act = o.n[10];
    const bool glu = o.kind == GLU;
    const float* x = o.p[0];
    float* y = o.p[1];
    int chunk = o.n[11];
    float out[GROUP * CHUNK], up[GROUP * CHUNK];
    int piece = next.fetch_add(1, std::memory_order_relaxed), before = 0;
    for (int s = 0; s < (glu ? 1 : segments); s++) {
        const int n = o.n[2 + s], pieces = (n + chunk - 1) / chunk;
        for (; piece < before + pieces; piece = next.fetch_add(1, std::memory_order_relaxed)) {
            const int r0 = (piece - before) * chunk, m = r0 + chunk < n ? chunk : n - r0;
            for (int b0 = 0; b0 < rows; b0 += GROUP) {
                const int bs = rows - b0 < GROUP ? rows - b0 : GROUP;
                const float* xb = x + (int64_t)b0 * k;
                product(o.p[2 + s] + (int64_t)r0 * k, xb, k, k, m, bs, out);
                if (glu) product(o.p[3] + (int64_t)r0 * k, xb, k, k, m, bs, up);
                for (int b = 0; b < bs; b++) {
                    float* to = y + (int64_t)(b0 + b) * stride + o.n[5 + s] + r0;
                    float* from = out + b * CHUNK;
                    if (const float* bias = o.p[6 + s])
                        for (int r = 0; r < m; r++) from[r] += bias[r0 + r];
                    if (glu) {
                        float* u = up + b * CHUNK;
                        if (const float* bias = o.p[7])
                            for (int r = 0; r < m; r++) u[r] += bias[r0 + r];
                        for (int r = 0; r < CHUNK && r < m; r += W) store(from + r, activate(load(from + r), act) * load(u + r));
                    } else if (act >= 0) {
                        for (int r = 0; r < CHUNK && r < m; r += W) store(from + r, activate(load(from + r), act));
                    }
                    if (add)
                        for (int r = 0; r < m; r++) to[r] += from[r];
                    else
                        memcpy(to, from, m * sizeof(float));
                }
            }
        }
        before += pieces;
    }
}

// n: heads, key heads, width of keys, of values, block, rotated, interleaved; p: qkv, keys, values, tables, cos, sin, gains
static void remember(const Op& o, const Step& s, int thread, int threads) {
    const int heads = o.n[0], kv = o.n[1], d = o.n[2], dv = o.n[3], block = o.n[4], half = o.n[5] / 2;
    const int width = (heads + kv) * d + kv * dv;
    const int32_t* const* tables = reinterpret_cast<const int32_t* const*>(o.p[3]);
    for (int i = thread; i < s.rows * (heads + kv); i += threads) {
        const int b = i / (heads + kv), h = i % (heads + kv), slot = s.slots[b];
        float* x = o.p[0] + (int64_t)b * width + h * d;
        if (const float* gain = h < heads ? o.p[6] : o.p[7]) norm_row(x, x, gain, nullptr, d, o.f[0], o.f[1], false);
        if (half) turn(x, o.p[4] + (int64_t)slot * half, o.p[5] + (int64_t)slot * half, half, o.n[6]);
        if (h >= heads) {
            const int64_t row = ((int64_t)tables[b][slot / block] * kv + h - heads) * block + slot % block;
            memcpy(o.p[1] + row * d, x, d * sizeof(float));
            memcpy(o.p[2] + row * dv, o.p[0] + (int64_t)b * width + (heads + kv) * d + (h - heads) * dv, dv * sizeof(float));
        }
    }
}

// n as above, n[7] window (0: none); f: scale, soft cap (0: none); p[4]: slopes of ALiBi, p[5]: result
static void attend(const Op& o, const Step& s, int thread, int threads) {
    const int heads = o.n[0], kv = o.n[1], d = o.n[2], dv = o.n[3], block = o.n[4], window = o.n[7];
    const int width = (heads + kv) * d + kv * dv, share = heads / kv;
    const float scale = o.f[0], cap = o.f[1];
    const int32_t* const* tables = reinterpret_cast<const int32_t* const*>(o.p[3]);
    float* scores = s.scores + thread * s.scores_stride;
    for (int i = thread; i < s.rows * heads; i += threads) {
        const int b = i / heads, h = i % heads, slot = s.slots[b], g = h / share;
        const int first = window && slot >= window ? slot - window + 1 : 0, count = slot + 1 - first;
        const float* q = o.p[0] + (int64_t)b * width + h * d;
        const float slope = o.p[4] ? o.p[4][h] : 0.0f;
        float most = -INFINITY;
        for (int j = 0; j < count; j++) {
            const int at = first + j;
            const float* k = o.p[1] + (((int64_t)tables[b][at / block] * kv + g) * block + at % block) * d;
            vec acc = {};
            int c = 0;
            for (; c + W <= d; c += W) acc += load(q + c) * load(k + c);
            float x = total(acc);
            for (; c < d; c++) x = fmaf(q[c], k[c], x);
            x *= scale;
            if (cap) x = cap * tanhf(x / cap);
            x += slope * (at - slot);
            scores[j] = x;
            most = x > most ? x : most;
        }
        for (int j = count; j < count + W; j++) scores[j] = -INFINITY;
        vec sums = {};
        for (int j = 0; j < count; j += W) {
            vec e = load(scores + j) - most;
            e = e < all(-87.0f) ? vec{} : exponential(e);
            store(scores + j, e);
            sums += e;
        }
        const float inverse = 1.0f / total(sums);
        float* y = o.p[5] + (int64_t)b * heads * dv + h * dv;
        int c = 0;
        for (; c + W <= dv; c += 4 * W) {
            vec acc[4] = {};
            const int vecs = (dv - c) / W < 4 ? (dv - c) / W : 4;
            for (int j = 0; j < count; j++) {
                const int at = first + j;
                const float* v = o.p[2] + (((int64_t)tables[b][at / block] * kv + g) * block + at % block) * dv + c;
                const float p = scores[j];
                for (int u = 0; u < vecs; u++) acc[u] += load(v + u * W) * p;
            }
            for (int u = 0; u < vecs; u++) store(y + c + u * W, acc[u] * inverse);
            if (vecs < 4) { c += vecs * W; break; }
        }
        for (; c < dv; c++) {
            float sum = 0;
            for (int j = 0; j < count; j++) {
                const int at = first + j;
                sum += o.p[2][(((int64_t)tables[b][at / block] * kv + g) * block + at % block) * dv + c] * scores[j];
            }
            y[c] = sum * inverse;
        }
    }
}

static void run(const Op& o, const Step& s, std::atomic<int32_t>& next, int thread, int threads) {
    const int rows = o.wanted ? s.n_wanted : s.rows;
    switch (o.kind) {
        case LINEAR:
        case GLU: return linear(o, rows, next);
        case REMEMBER: return remember(o, s, thread, threads);
        case ATTEND: return attend(o, s, thread, threads);
    }
    const int d = o.n[0];
    for (int b = thread; b < rows; b += threads) {
        float* y = o.p[1] + (int64_t)b * d;
        switch (o.kind) {
            case EMBED: {
                const float *e = o.p[0] + (int64_t)s.tokens[b] * d, *at = o.p[2] ? o.p[2] + (int64_t)s.slots[b] * d : nullptr;
                for (int i = 0; i < d; i++) y[i] = e[i] * o.f[0] + (at ? at[i] : 0.0f);
                break;
            }
            case NORM: norm_row(o.p[0] + (int64_t)b * d, y, o.p[2], o.p[3], d, o.f[0], o.f[1], o.n[1]); break;
            case ADD:
                for (int i = 0; i < d; i++) y[i] += o.p[0][(int64_t)b * d + i];
                break;
            case GATHER: memcpy(y, o.p[0] + (int64_t)s.wanted[b] * d, d * sizeof(float)); break;
            case SOFTCAP:
                for (int i = 0; i < d; i++) y[i] = o.f[1] ? o.f[1] * tanhf(y[i] * o.f[0] / o.f[1]) : y[i] * o.f[0];
                break;
        }
    }
}

extern "C" int protea_step(const Step* step) {
    for (int i = 0; i < step->n_ops; i++) step->next[i].store(0, std::memory_order_relaxed);
    Barrier barrier;
#pragma omp parallel num_threads(step->threads)
    {
        const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
        for (int i = 0; i < step->n_ops; i++) {
            run(step->ops[i], *step, step->next[i], thread, threads);
            barrier.wait(threads);
        }
    }
    return 0;
}

extern "C" int protea_sizes(int i) { return i == 0 ? sizeof(Op) : i == 1 ? sizeof(Step) : W; }
