// Attention of each row over its text, whose keys and values lie in blocks of a few tokens found by a table.

#pragma once
#include "plan.h"
#include "products.h"

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

// scores[j] = q . k_j of the keys lo .. hi - 1 of one block: whole vectors of keys at once, so that lanes are added together
static void block_scores(const float* q, const float* keys, int d, int lo, int hi, int block, float* scores) {
    const int whole = d / W * W;
    for (int group = lo / W * W; group < hi; group += W) {
        float sums[W];
        const int from = lo > group ? lo - group : 0, to = hi - group < W ? hi - group : W;
        if (group + W <= block) {
            vec acc[W] = {};
            for (int c = 0; c < whole; c += W) {
                vec qv = load(q + c);
                HOLD(qv);
                for (int j = 0; j < W; j++) acc[j] += qv * load(keys + (group + j) * d + c);
            }
            totals<W>(acc, sums);
        } else {  // the last keys of a block that is no whole number of vectors
            for (int j = from; j < to; j++) {
                vec acc = {};
                for (int c = 0; c < whole; c += W) acc += load(q + c) * load(keys + (group + j) * d + c);
                sums[j] = total(acc);
            }
        }
        for (int j = from; j < to; j++) {
            float x = sums[j];
            for (int c = whole; c < d; c++) x = fmaf(q[c], keys[(group + j) * d + c], x);
            scores[group + j - lo] = x;
        }
    }
}

static inline void ask(const float* from, int count) {  // for memory that will soon be read
    for (int i = 0; i < count; i += 16) __builtin_prefetch(from + i, 0, 2);
}

// What the values of a text are read by: the table of a row, its first key, and how many.
struct Span {
    const float* values;  // of the first block of the layer
    const int32_t* table;
    int block, kv, g, apart, first, count;
};

// y[c ..] = inverse sum_j p_j v_j[c ..] of N vectors
template <int N> static void mixed(const Span& s, const float* p, float inverse, int c, float* y) {
    vec acc[N] = {};
    for (int at = s.first, end = s.first + s.count; at < end;) {
        const int stop = (at / s.block + 1) * s.block < end ? (at / s.block + 1) * s.block : end;
        const float* v = s.values + (((int64_t)s.table[at / s.block] * s.kv + s.g) * s.block + at % s.block) * s.apart + c;
        for (; at < stop; at++, v += s.apart)
            for (int u = 0; u < N; u++) acc[u] += load(v + u * W) * p[at - s.first];
    }
    for (int u = 0; u < N; u++) store(y + c + u * W, acc[u] * inverse);
}

// n: heads, key heads, width of keys, of values, block, -, -, window (0: none), width of a row, values' distance
// f: scale, soft cap (0: none); p: queries first in their rows, keys, values, tables, slopes of ALiBi, result
static void attend(const Op& o, const Step& s, int thread, int threads) {
    const int heads = o.n[0], kv = o.n[1], d = o.n[2], dv = o.n[3], block = o.n[4], window = o.n[7];
    const int width = o.n[8], apart = o.n[9], share = heads / kv;
    const float scale = o.f[0], cap = o.f[1];
    const int32_t* const* tables = reinterpret_cast<const int32_t* const*>(o.p[3]);
    float* scores = s.scores + thread * s.scores_stride;
    auto at_block = [&](const float* all, int b, int place, int g, int width) {
        return all + ((int64_t)tables[b][place / block] * kv + g) * block * width;
    };
    for (int i = thread; i < s.rows * heads; i += threads) {
        const int b = i / heads, h = i % heads, slot = s.slots[b], g = h / share;
        const int first = window && slot >= window ? slot - window + 1 : 0, count = slot + 1 - first;
        const float* q = o.p[0] + (int64_t)b * width + h * d;
        const bool cold = b == 0 || tables[b] != tables[b - 1];  // the first row of its text: nothing is near yet
        for (int at = first; at <= slot;) {
            const int begin = at / block * block, stop = begin + block <= slot ? begin + block : slot + 1;
            if (cold) {
                ask(at_block(o.p[2], b, at, g, apart), (stop - begin) * apart);
                if (stop <= slot) ask(at_block(o.p[1], b, stop, g, d), (slot + 1 - stop < block ? slot + 1 - stop : block) * d);
            }
            block_scores(q, at_block(o.p[1], b, at, g, d), d, at - begin, stop - begin, block, scores + at - first);
            at = stop;
        }
        const float slope = o.p[4] ? o.p[4][h] : 0.0f;
        for (int j = 0; j < count; j++) scores[j] *= scale;
        if (cap)
            for (int j = 0; j < count; j++) scores[j] = cap * tanhf(scores[j] / cap);
        if (slope)
            for (int j = 0; j < count; j++) scores[j] += slope * (first + j - slot);
        for (int j = count; j < count + W; j++) scores[j] = -INFINITY;
        vec highest = all(-INFINITY), sums = {};
        for (int j = 0; j < count; j += W) highest = maximum(load(scores + j), highest);
        float most = highest[0];
        for (int j = 1; j < W; j++) most = highest[j] > most ? highest[j] : most;
        for (int j = 0; j < count; j += W) {
            vec e = load(scores + j) - most;
            e = e < all(-87.0f) ? vec{} : exponential(e);
            store(scores + j, e);
            sums += e;
        }
        const float inverse = 1.0f / total(sums);
        const Span span = {o.p[2], tables[b], block, kv, g, apart, first, count};
        float* y = o.p[5] + (int64_t)b * heads * dv + h * dv;
        if (const int next = i + threads; next < s.rows * heads && cold && next / heads == b)
            ask(at_block(o.p[1], b, first, next % heads / share, d), block * d);
        int c = 0;
        for (; c + 4 * W <= dv; c += 4 * W) mixed<4>(span, scores, inverse, c, y);
        for (; c + W <= dv; c += W) mixed<1>(span, scores, inverse, c, y);
        for (; c < dv; c++) {
            float sum = 0;
            for (int j = 0; j < count; j++) {
                const int at = first + j;
                sum += o.p[2][(((int64_t)tables[b][at / block] * kv + g) * block + at % block) * apart + c] * scores[j];
            }
            y[c] = sum * inverse;
        }
    }
}
