// Mixtures of experts (`nn/router_choices.py`, `nn/moe.py`): each row's choice, and the chosen experts' products.
//
// Rows that chose the same expert share one reading of its weights; a row's own sums and the order in which its experts'
// answers are added know nothing of the others.

#pragma once
#include <algorithm>
#include <vector>

#include "plan.h"
#include "products.h"

static inline float logistic(float x) { return 1.0f / (1.0f + expf(-x)); }

// The index of the largest entry that is not yet taken (the first of equals); it becomes taken.
static int best_of(float* x, int n) {
    int best = 0;
    for (int i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    x[best] = -INFINITY;
    return best;
}

// n: experts, chosen, sigmoid, normalise, groups, groups kept, experts that rank a group; f: scale
// p: logits, choice of each row (its experts as integers, then their weights), bias of the selection
static void choose(const Op& o, const Step& s, int b) {
    const int e = o.n[0], k = o.n[1], sigmoid = o.n[2], groups = o.n[4];
    static thread_local std::vector<float> memory;
    memory.resize(3 * e + groups);
    float *score = memory.data(), *wanted = score + e, *left = wanted + e, *worth = left + e;
    const float* logits = o.p[0] + (int64_t)b * e;
    float most = logits[0], sum = 0;
    for (int i = 1; i < e; i++) most = logits[i] > most ? logits[i] : most;
    for (int i = 0; i < e; i++) sum += score[i] = sigmoid ? logistic(logits[i]) : expf(logits[i] - most);
    for (int i = 0; i < e; i++) {
        if (!sigmoid) score[i] /= sum;
        wanted[i] = score[i] + (o.p[2] ? o.p[2][i] : 0.0f);
    }
    if (groups > 1) {
        const int size = e / groups, best = o.n[6] < size ? o.n[6] : size;
        memcpy(left, wanted, e * sizeof(float));
        for (int g = 0; g < groups; g++) {
            worth[g] = 0;
            for (int i = 0; i < best; i++) {
                float* of = left + g * size;
                float highest = *std::max_element(of, of + size);
                best_of(of, size);
                worth[g] += highest;
            }
        }
        memcpy(left, wanted, e * sizeof(float));
        std::fill(wanted, wanted + e, -INFINITY);
        for (int i = 0; i < o.n[5]; i++) {
            const int g = best_of(worth, groups);
            memcpy(wanted + g * size, left + g * size, size * sizeof(float));
        }
    }
    int32_t* chosen = reinterpret_cast<int32_t*>(o.p[1] + (int64_t)b * 2 * k);
    float* weight = o.p[1] + (int64_t)b * 2 * k + k;
    sum = sigmoid ? 1e-20f : 0.0f;
    for (int j = 0; j < k; j++) {
        chosen[j] = best_of(wanted, e);
        sum += weight[j] = score[chosen[j]];
    }
    for (int j = 0; j < k; j++) weight[j] *= o.n[3] ? o.f[0] / sum : o.f[0];
}

// n: experts, chosen, width read, width written, rows of weights at once, activation (-1: none; else gate and up), whether
// each pair of a row and an expert reads its own input; p: input, output of each pair, weights, choices
static void experts(const Op& o, const Step& s, std::atomic<int32_t>& next, int thread) {
    const int e = o.n[0], top = o.n[1], k = o.n[2], n = o.n[3], chunk = o.n[4], act = o.n[5], pairs = s.rows * top;
    static thread_local std::vector<int> ends, order;
    ends.assign(e + 1, 0), order.resize(pairs);
    auto expert = [&](int pair) { return reinterpret_cast<const int32_t*>(o.p[3] + (int64_t)(pair / top) * 2 * top)[pair % top]; };
    for (int p = 0; p < pairs; p++) ends[expert(p) + 1]++;
    for (int i = 0; i < e; i++) ends[i + 1] += ends[i];
    for (int p = 0; p < pairs; p++) order[ends[expert(p)]++] = p;  // now ends[i] is where expert i's pairs end

    float* in = s.scores + thread * s.scores_stride;
    alignas(64) float out[GROUP * CHUNK], up[GROUP * CHUNK];
    const int pieces = (n + chunk - 1) / chunk;
    int piece = next.fetch_add(1, std::memory_order_relaxed), before = 0;
    for (int i = 0; i < e; i++) {
        const int begin = i ? ends[i - 1] : 0, end = ends[i];
        if (begin == end) continue;
        const float* w = o.p[2] + (int64_t)i * (act < 0 ? 1 : 2) * n * k;
        for (; piece < before + pieces; piece = next.fetch_add(1, std::memory_order_relaxed)) {
            const int r0 = (piece - before) * chunk, m = r0 + chunk < n ? chunk : n - r0;
            for (int p0 = begin; p0 < end; p0 += GROUP) {
                const int b = end - p0 < GROUP ? end - p0 : GROUP;
                for (int j = 0; j < b; j++) {
                    const int pair = order[p0 + j];
                    memcpy(in + j * k, o.p[0] + (int64_t)(o.n[6] ? pair : pair / top) * k, k * sizeof(float));
                }
                product(w + (int64_t)r0 * k, in, k, k, m, b, out);
                if (act >= 0) product(w + (int64_t)(n + r0) * k, in, k, k, m, b, up);
                for (int j = 0; j < b; j++) {
                    float* from = out + j * CHUNK;
                    if (act >= 0)
                        for (int r = 0; r < m; r += W) store(from + r, activate(load(from + r), act) * load(up + j * CHUNK + r));
                    memcpy(o.p[1] + (int64_t)order[p0 + j] * n + r0, from, m * sizeof(float));
                }
            }
        }
        before += pieces;
    }
}

// y (+)= sum_j g_j answer_j + sigmoid(gate) shared;  n: width, chosen, adds; p: answers, y, choices, shared, gate
static void combine(const Op& o, int b) {
    const int d = o.n[0], k = o.n[1];
    float* y = o.p[1] + (int64_t)b * d;
    const float *answers = o.p[0] + (int64_t)b * k * d, *weight = o.p[2] + (int64_t)b * 2 * k + k;
    const float* shared = o.p[3] ? o.p[3] + (int64_t)b * d : nullptr;
    const float gate = shared ? logistic(o.p[4][b]) : 0.0f;
    for (int i = 0; i < d; i++) {
        float sum = 0;
        for (int j = 0; j < k; j++) sum += weight[j] * answers[(int64_t)j * d + i];
        if (shared) sum += gate * shared[i];
        y[i] = o.n[2] ? y[i] + sum : sum;
    }
}
