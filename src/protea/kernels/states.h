// Layers whose memory is a state (`nn/mamba.py`, `nn/mamba2.py`): the short convolution and the recurrences.
//
//     h_t = exp(Delta_t A) h_{t-1} + Delta_t B_t x_t,   y_t = C_t h_t + D x_t
//
// Threads share out channels; the rows of a text follow each other, as its tokens do. A text's states lie in one piece:
// the first row of a text reads the piece it had and all write another, so that who shares the old one keeps it.

#pragma once
#include "plan.h"
#include "products.h"

constexpr int TAPS = 8;  // most taps of a convolution

// log(1 + e^x) = max(x, 0) + 2 artanh(u / (2 + u)), u = e^-|x|
static inline vec softplus(vec x) {
    const vec u = exponential(x > vec{} ? -x : x), s = u / (u + 2.0f), q = s * s;
    vec p = all(1.0f / 15);
    for (float c : {1.0f / 13, 1.0f / 11, 1.0f / 9, 1.0f / 7, 0.2f, 1.0f / 3, 1.0f}) p = p * q + c;
    return maximum(x, vec{}) + 2.0f * s * p;
}

struct Share {  // of n things in vectors of W, what a thread does
    int begin, end;
    Share(int n, int thread, int threads) {
        const int each = ((n + W - 1) / W + threads - 1) / threads * W;
        begin = thread * each < n ? thread * each : n, end = begin + each < n ? begin + each : n;
    }
};

// Rows b .. that belong to one text; where its states are read (null: zeros) and written.
struct Run {
    int begin, end;
    const float* from;
    float* to;
    Run(const Step& s, int b, int offset) : begin(b), end(b + 1), from(s.from[b]), to(s.to[b] + offset) {
        if (from) from += offset;
        while (end < s.rows && s.to[end] == s.to[b]) end++;
    }
};

// silu(beta + sum_j w_{K-1-j} x_{t-j});  n: channels, taps, width of a row read, place of the states;  p: x, y, w, beta
template <int N> static void convolved(const Op& o, const Step& s, int c) {  // N channels from c on: W or 1
    const int channels = o.n[0], taps = o.n[1], before = taps - 1;
    vec w[TAPS], window[TAPS], bias = {};
    for (int k = 0; k < taps; k++)
        for (int i = 0; i < N; i++) w[k][i] = o.p[2][(int64_t)(c + i) * taps + k];
    if (o.p[3]) memcpy(&bias, o.p[3] + c, N * sizeof(float));
    for (int b = 0; b < s.rows;) {
        const Run run(s, b, o.n[3]);
        for (int k = 0; k < before; k++) {
            window[k] = vec{};
            if (run.from) memcpy(&window[k], run.from + (int64_t)k * channels + c, N * sizeof(float));
        }
        for (; b < run.end; b++) {
            window[before] = vec{};
            memcpy(&window[before], o.p[0] + (int64_t)b * o.n[2] + c, N * sizeof(float));
            vec y = window[before] * w[before];
            for (int k = before - 1; k >= 0; k--) y += window[k] * w[k];
            y = activate(y + bias, SILU);
            memcpy(o.p[1] + (int64_t)b * channels + c, &y, N * sizeof(float));
            for (int k = 0; k < before; k++) window[k] = window[k + 1];
        }
        for (int k = 0; k < before; k++) memcpy(run.to + (int64_t)k * channels + c, &window[k], N * sizeof(float));
    }
}

static void convolve(const Op& o, const Step& s, int thread, int threads) {
    const Share share(o.n[0], thread, threads);
    int c = share.begin;
    for (; c + W <= share.end; c += W) convolved<W>(o, s, c);
    for (; c < share.end; c++) convolved<1>(o, s, c);
}

// Mamba's recurrence and gate.  n: channels, N, widths of rows of z and of (B, C), place of the states
// p: x, Delta before its softplus (overwritten by y), z, B then C, log -A, D
static void scan(const Op& o, const Step& s, int thread, int threads) {
    const int channels = o.n[0], n = o.n[1];
    const Share share(channels, thread, threads);
    for (int b = 0; b < s.rows; b++) {
        float* delta = o.p[1] + (int64_t)b * channels;
        int c = share.begin;
        for (; c + W <= share.end; c += W) store(delta + c, softplus(load(delta + c)));
        for (; c < share.end; c++) delta[c] = softplus(all(delta[c]))[0];
    }
    for (int c = share.begin; c < share.end; c++) {
        const float *a = o.p[4] + (int64_t)c * n, skip = o.p[5][c];
        for (int i = 0; i < n; i += W) {  // a vector of states of a channel, along all rows
            const int wide = n - i < W ? n - i : W;
            vec A = {};
            memcpy(&A, a + i, wide * sizeof(float));
            A = -exponential(A);
            for (int b = 0; b < s.rows;) {
                const Run run(s, b, o.n[4]);
                vec h = {};
                if (run.from) memcpy(&h, run.from + (int64_t)c * n + i, wide * sizeof(float));
                for (; b < run.end; b++) {
                    const float* bc = o.p[3] + (int64_t)b * o.n[3] + i;
                    const float x = o.p[0][(int64_t)b * channels + c];
                    float* place = o.p[1] + (int64_t)b * channels + c;
                    float& carried = s.scores[thread * s.scores_stride + b];  // y so far, while Delta is needed again
                    vec B = {}, C = {};
                    memcpy(&B, bc, wide * sizeof(float)), memcpy(&C, bc + n, wide * sizeof(float));
                    h = exponential(A * *place) * h + B * (*place * x);
                    carried = (i ? carried : skip * x) + total(h * C);
                    if (i + W >= n) *place = carried;
                }
                memcpy(run.to + (int64_t)c * n + i, &h, wide * sizeof(float));
            }
        }
    }
    for (int b = 0; b < s.rows; b++) {
        float* y = o.p[1] + (int64_t)b * channels;
        const float* z = o.p[2] + (int64_t)b * o.n[2];
        int c = share.begin;
        for (; c + W <= share.end; c += W) store(y + c, load(y + c) * activate(load(z + c), SILU));
        for (; c < share.end; c++) y[c] *= activate(all(z[c]), SILU)[0];
    }
}

// Mamba-2's recurrence, one decay a head.  n: heads, P, N, groups, widths of rows of (x, B, C) and of Delta, place of the
// states (H, N, P);  f: least and greatest Delta;  p: (x, B, C), Delta, y, shift of Delta, log -A, D
static void scan_heads(const Op& o, const Step& s, int thread, int threads) {
    const int heads = o.n[0], P = o.n[1], n = o.n[2], groups = o.n[3], d = heads * P;
    for (int h = thread; h < heads; h += threads) {
        const float A = -exponential(all(o.p[4][h]))[0], skip = o.p[5][h];
        const int g = h / (heads / groups);
        for (int b = 0; b < s.rows;) {
            const Run run(s, b, o.n[6]);
            const float* old = run.from ? run.from + (int64_t)h * n * P : nullptr;
            float* state = run.to + (int64_t)h * n * P;
            for (; b < run.end; b++, old = state) {
                const float *xbc = o.p[0] + (int64_t)b * o.n[4], *x = xbc + h * P, *B = xbc + d + g * n, *C = B + groups * n;
                float delta = softplus(all(o.p[1][(int64_t)b * o.n[5] + h] + o.p[3][h]))[0];
                delta = fminf(fmaxf(delta, o.f[0]), o.f[1]);
                const float keep = exponential(all(A * delta))[0];
                float* y = o.p[2] + (int64_t)b * d + h * P;
                for (int i = 0; i < P; i++) y[i] = skip * x[i];
                int i = 0;
                for (; i + W <= P; i += W) {
                    const vec xd = load(x + i) * delta;
                    vec sum = {};
                    for (int j = 0; j < n; j++) {
                        const vec now = (old ? load(old + j * P + i) * keep : vec{}) + xd * B[j];
                        store(state + j * P + i, now);
                        sum += now * C[j];
                    }
                    store(y + i, load(y + i) + sum);
                }
                for (; i < P; i++)
                    for (int j = 0; j < n; j++) {
                        state[j * P + i] = fmaf(x[i] * delta, B[j], old ? old[j * P + i] * keep : 0.0f);
                        y[i] = fmaf(state[j * P + i], C[j], y[i]);
                    }
            }
        }
    }
}

// g RMSNorm(x silu(z)) over groups of channels.  n: channels, groups, width of a row of z;  f: eps;  p: x, y, z, g
static void gated_norm(const Op& o, int b) {
    const int d = o.n[0], wide = d / o.n[1];
    float* x = o.p[0] + (int64_t)b * d;
    const float* z = o.p[2] + (int64_t)b * o.n[2];
    int i = 0;
    for (; i + W <= d; i += W) store(x + i, load(x + i) * activate(load(z + i), SILU));
    for (; i < d; i++) x[i] *= activate(all(z[i]), SILU)[0];
    for (int g = 0; g < d; g += wide) norm_row(x + g, o.p[1] + (int64_t)b * d + g, o.p[3] + g, nullptr, wide, o.f[0], 0, false);
}
