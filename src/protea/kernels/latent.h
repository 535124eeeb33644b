// Multi-head latent attention in its absorbed form (`nn/mla.py`): all heads attend to the latents that are remembered.
//
//     q'_h = [W_UK,h^T q_h ; rotated q^R_h],   scores q'_h . [c_s ; k^R_s],   o_h = sum_s p_s c_s,   v_h = W_UV,h o_h

#pragma once
#include "plan.h"
#include "products.h"

// n: heads, width of a query without and with a position, of a latent, block, rotated, interleaved, takes the mean off
// p: queries, latents before their norm, blocks of latents, tables, cos, sin, gain, absorbed queries;  f: eps, plus
static void remember_latent(const Op& o, const Step& s, int thread, int threads) {
    const int heads = o.n[0], dn = o.n[1], dr = o.n[2], dc = o.n[3], block = o.n[4], half = o.n[5] / 2, d = dc + dr;
    const int32_t* const* tables = reinterpret_cast<const int32_t* const*>(o.p[3]);
    for (int i = thread; i < s.rows * (heads + 1); i += threads) {
        const int b = i / (heads + 1), h = i % (heads + 1), slot = s.slots[b];
        float* to = o.p[7] + ((int64_t)b * heads + h) * d;
        const float* from = o.p[0] + ((int64_t)b * heads + h) * (dn + dr) + dn;
        if (h == heads) {
            const float* c = o.p[1] + (int64_t)b * d;
            to = o.p[2] + ((int64_t)tables[b][slot / block] * block + slot % block) * d;
            norm_row(c, to, o.p[6], nullptr, dc, o.f[0], o.f[1], false);
            from = c + dc;
        }
        memcpy(to + dc, from, dr * sizeof(float));
        if (half) turn(to + dc, o.p[4] + (int64_t)slot * half, o.p[5] + (int64_t)slot * half, half, o.n[6]);
    }
}

// out[b][c] = sum_j x[b][j] w[j][c]: one chain in order of j; B rows share a reading of the weights.
template <int B> static void combination(const float* w, const float* x, int64_t xs, int k, int n, float* out, int64_t os) {
    constexpr int V = W == 16 ? 4 : 2;
    int c = 0;
    for (; c + V * W <= n; c += V * W) {
        vec acc[B][V] = {};
        for (int j = 0; j < k; j++)
            for (int u = 0; u < V; u++) {
                const vec wv = load(w + (int64_t)j * n + c + u * W);
                for (int b = 0; b < B; b++) acc[b][u] += wv * x[b * xs + j];
            }
        for (int b = 0; b < B; b++)
            for (int u = 0; u < V; u++) store(out + b * os + c + u * W, acc[b][u]);
    }
    for (; c < n; c++)
        for (int b = 0; b < B; b++) {
            float sum = 0;
            for (int j = 0; j < k; j++) sum = fmaf(w[(int64_t)j * n + c], x[b * xs + j], sum);
            out[b * os + c] = sum;
        }
}

// n: heads, d_nope, d_rope, d_c, d_v;  p: queries, absorbed queries, weights (of each head W_UK over W_UV)
static void absorb(const Op& o, int rows, std::atomic<int32_t>& next) {
    const int heads = o.n[0], dn = o.n[1], dr = o.n[2], dc = o.n[3], dv = o.n[4];
    const int64_t xs = (int64_t)heads * (dn + dr), os = (int64_t)heads * (dc + dr);
    for (int h; (h = next.fetch_add(1, std::memory_order_relaxed)) < heads;) {
        const float *w = o.p[2] + (int64_t)h * (dn + dv) * dc, *x = o.p[0] + h * (dn + dr);
        float* to = o.p[1] + h * (dc + dr);
        int b = 0;
        for (; b + 4 <= rows; b += 4) combination<4>(w, x + b * xs, xs, dn, dc, to + b * os, os);
        for (; b < rows; b++) combination<1>(w, x + b * xs, xs, dn, dc, to + b * os, os);
    }
}

// n as above; p: what the heads found, their values, weights
static void expand(const Op& o, int rows, std::atomic<int32_t>& next) {
    const int heads = o.n[0], dn = o.n[1], dc = o.n[3], dv = o.n[4], pieces = (dv + CHUNK - 1) / CHUNK;
    alignas(64) float out[GROUP * CHUNK];
    for (int i; (i = next.fetch_add(1, std::memory_order_relaxed)) < heads * pieces;) {
        const int h = i / pieces, r0 = i % pieces * CHUNK, m = r0 + CHUNK < dv ? CHUNK : dv - r0;
        const float* w = o.p[2] + ((int64_t)h * (dn + dv) + dn + r0) * dc;
        for (int b0 = 0; b0 < rows; b0 += GROUP) {
            const int bs = rows - b0 < GROUP ? rows - b0 : GROUP;
            product(w, o.p[0] + ((int64_t)b0 * heads + h) * dc, (int64_t)heads * dc, dc, m, bs, out);
            for (int b = 0; b < bs; b++)
                memcpy(o.p[1] + ((int64_t)(b0 + b) * heads + h) * dv + r0, out + b * CHUNK, m * sizeof(float));
        }
    }
}
