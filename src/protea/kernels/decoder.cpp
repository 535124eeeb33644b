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

#include "attention.h"
#include "experts.h"
#include "latent.h"
#include "plan.h"
#include "products.h"
#include "states.h"

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

// n: k, segments, rows of each, where each is written, width of a row of the result, adds, activation, rows taken at once, width of a row read
static void linear(const Op& o, int rows, std::atomic<int32_t>& next) {
    const int k = o.n[0], segments = o.n[1], stride = o.n[8], add = o.n[9], act = o.n[10];
    const bool glu = o.kind == GLU;
    const float* x = o.p[0];
    float* y = o.p[1];
    const int chunk = o.n[11], xs = o.n[12];
    float out[GROUP * CHUNK], up[GROUP * CHUNK];
    int piece = next.fetch_add(1, std::memory_order_relaxed), before = 0;
    for (int s = 0; s < (glu ? 1 : segments); s++) {
        const int n = o.n[2 + s], pieces = (n + chunk - 1) / chunk;
        for (; piece < before + pieces; piece = next.fetch_add(1, std::memory_order_relaxed)) {
            const int r0 = (piece - before) * chunk, m = r0 + chunk < n ? chunk : n - r0;
            for (int b0 = 0; b0 < rows; b0 += GROUP) {
                const int bs = rows - b0 < GROUP ? rows - b0 : GROUP;
                const float* xb = x + (int64_t)b0 * xs;
                product(o.p[2 + s] + (int64_t)r0 * k, xb, xs, k, m, bs, out);
                if (glu) product(o.p[3] + (int64_t)r0 * k, xb, xs, k, m, bs, up);
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

static void run(const Op& o, const Step& s, std::atomic<int32_t>& next, int thread, int threads) {
    const int rows = o.wanted ? s.n_wanted : s.rows;
    switch (o.kind) {
        case LINEAR:
        case GLU: return linear(o, rows, next);
        case REMEMBER: return remember(o, s, thread, threads);
        case ATTEND: return attend(o, s, thread, threads);
        case EXPERTS: return experts(o, s, next, thread);
        case CONVOLVE: return convolve(o, s, thread, threads);
        case SCAN: return scan(o, s, thread, threads);
        case SCAN_HEADS: return scan_heads(o, s, thread, threads);
        case REMEMBER_LATENT: return remember_latent(o, s, thread, threads);
        case ABSORB: return absorb(o, rows, next);
        case EXPAND: return expand(o, rows, next);
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
            case NORM: norm_row(o.p[0] + (int64_t)b * o.n[2], o.p[1] + (int64_t)b * o.n[2], o.p[2], o.p[3], d, o.f[0], o.f[1], o.n[1]); break;
            case ADD:
                for (int i = 0; i < d; i++) y[i] += o.p[0][(int64_t)b * d + i];
                break;
            case CHOOSE: choose(o, s, b); break;
            case GATED_NORM: gated_norm(o, b); break;
            case COMBINE: combine(o, b); break;
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
