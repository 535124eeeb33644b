// The elementwise work of a transformer's training step, one pass over memory forwards and one backwards.
//
//     norm      y = g h,  h = r x,  r = (mean x^2 + eps)^(-1/2);    dx = r (a - h mean(a h)),  a = g dy;  dg = sum dy h
//     gated     y = a(g) u;                                         dg = a'(g) u dy,  du = a(g) dy
//     rotate    y = R x, half-split pairs turned by angles;         dx = R^T dy
//     nats      z = log sum_j e^l_j,  y = z - l_t;                  dl = (dy + dz) e^(l - z) - dy [j = t]
//
// Threads share whole rows; sums over rows are taken in blocks of fixed size and added in order, so that a result
// does not depend on the number of threads.

#include <vector>

#include "rows.h"

constexpr int64_t BLOCK = 32;  // rows whose sums are kept together

// ---------------------------------------------------------------- norm

extern "C" void rms_norm(const float* x, const float* g, float* y, float* r, int64_t rows, int64_t d, float eps,
                         int threads) {
    threads = crew(rows * d, threads);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        const float* xi = x + i * d;
        float* yi = y + i * d;
        vecf s[2] = {};
        int64_t k = 0;
        for (; k + 2 * W <= d; k += 2 * W)
            for (int j = 0; j < 2; j++) s[j] += load(xi + k + j * W) * load(xi + k + j * W);
        float square = sum(s[0] + s[1]);
        for (; k < d; k++) square += xi[k] * xi[k];
        const float scale = r[i] = 1.0f / std::sqrt(square / d + eps);
        for (k = 0; k + W <= d; k += W) store(yi + k, load(xi + k) * scale * load(g + k));
        for (; k < d; k++) yi[k] = xi[k] * scale * g[k];
    }
}

extern "C" void rms_norm_back(const float* dy, const float* x, const float* g, const float* r, float* dx, float* dg,
                              int64_t rows, int64_t d, int threads) {
    const int64_t blocks = (rows + BLOCK - 1) / BLOCK;
    std::vector<float> sums(blocks * d, 0.0f);
    threads = crew(rows * d, threads);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t b = 0; b < blocks; b++) {
        float* dgb = sums.data() + b * d;
        for (int64_t i = b * BLOCK; i < rows && i < (b + 1) * BLOCK; i++) {
            const float *dyi = dy + i * d, *xi = x + i * d;
            float* dxi = dx + i * d;
            vecf s[2] = {};
            int64_t k = 0;
            for (; k + 2 * W <= d; k += 2 * W)
                for (int j = 0; j < 2; j++) s[j] += load(dyi + k + j * W) * load(g + k + j * W) * load(xi + k + j * W);
            float dot = sum(s[0] + s[1]);
            for (; k < d; k++) dot += dyi[k] * g[k] * xi[k];
            const float scale = r[i], c = dot / d * scale * scale;
            for (k = 0; k + W <= d; k += W) {
                vecf xv = load(xi + k), e = load(dyi + k);
                store(dxi + k, (e * load(g + k) - xv * c) * scale);
                store(dgb + k, load(dgb + k) + e * xv * scale);
            }
            for (; k < d; k++) {
                dxi[k] = (dyi[k] * g[k] - xi[k] * c) * scale;
                dgb[k] += dyi[k] * xi[k] * scale;
            }
        }
    }
    for (int64_t k = 0; k < d; k++) dg[k] = 0;
    for (int64_t b = 0; b < blocks; b++)
        for (int64_t k = 0; k < d; k++) dg[k] += sums[b * d + k];
}

// ---------------------------------------------------------------- gated

enum Activation { SILU, GELU_TANH };

struct Bent { vecf value, slope; };  // a(x) and a'(x)
template <int KIND> static inline Bent bent(vecf x) {
    if constexpr (KIND == SILU) {
        vecf s = 1.0f / (1.0f + exponential(-x));
        return {x * s, s * (1.0f + x * (1.0f - s))};
    } else {  // x s(2 z), z = sqrt(2 / pi) (x + 0.044715 x^3)
        vecf s = 1.0f / (1.0f + exponential(x * (1.0f + 0.044715f * x * x) * -1.5957691216f));
        vecf z = 1.5957691216f * (1.0f + 0.134145f * x * x);
        return {x * s, s * (1.0f + x * (1.0f - s) * z)};
    }
}

template <int KIND> static void gate(const float* g, const float* u, float* y, int64_t n, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t k = 0; k < n; k += W) {
        if (k + W <= n) store(y + k, bent<KIND>(load(g + k)).value * load(u + k));
        else part(y + k, bent<KIND>(part(g + k, n - k, 0)).value * part(u + k, n - k, 0), n - k);
    }
}

template <int KIND>
static void gate_back(const float* dy, const float* g, const float* u, float* dg, float* du, float* y, int64_t n,
                      int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t k = 0; k < n; k += W) {
        const bool whole = k + W <= n;
        vecf d = whole ? load(dy + k) : part(dy + k, n - k, 0), uv = whole ? load(u + k) : part(u + k, n - k, 0);
        Bent a = bent<KIND>(whole ? load(g + k) : part(g + k, n - k, 0));
        if (whole) {
            store(dg + k, d * uv * a.slope);
            store(du + k, d * a.value);
            store(y + k, a.value * uv);
        } else {
            part(dg + k, d * uv * a.slope, n - k);
            part(du + k, d * a.value, n - k);
            part(y + k, a.value * uv, n - k);
        }
    }
}

extern "C" void gated(const float* g, const float* u, float* y, int64_t n, int kind, int threads) {
    threads = crew(n, threads);
    kind == SILU ? gate<SILU>(g, u, y, n, threads) : gate<GELU_TANH>(g, u, y, n, threads);
}

// y, the product forwards, is worked out again rather than kept.
extern "C" void gated_back(const float* dy, const float* g, const float* u, float* dg, float* du, float* y, int64_t n,
                           int kind, int threads) {
    threads = crew(n, threads);
    kind == SILU ? gate_back<SILU>(dy, g, u, dg, du, y, n, threads)
                 : gate_back<GELU_TANH>(dy, g, u, dg, du, y, n, threads);
}

// ---------------------------------------------------------------- rotate

// x and y are (B, H, T, 2 half) with these strides, entries of a head side by side; cos and sin are (B or 1, T, half),
// side by side but for the batch. `sign` -1 turns back. y may be x.
extern "C" void rotate(const float* x, float* y, const float* cosine, const float* sine, const int64_t* shape,
                       const int64_t* xs, const int64_t* ys, int64_t angles, float sign, int threads) {
    const int64_t heads = shape[1], length = shape[2], half = shape[3];
    threads = crew(shape[0] * heads * length * half * 2, threads);
#pragma omp parallel for collapse(2) num_threads(threads) schedule(static)
    for (int64_t b = 0; b < shape[0]; b++)
        for (int64_t t = 0; t < length; t++) {
            const float *c = cosine + b * angles + t * half, *s = sine + b * angles + t * half;
            for (int64_t h = 0; h < heads; h++) {
                const float* from = x + b * xs[0] + h * xs[1] + t * xs[2];
                float* to = y + b * ys[0] + h * ys[1] + t * ys[2];
                int64_t k = 0;
                for (; k + W <= half; k += W) {
                    vecf p = load(from + k), q = load(from + half + k), cv = load(c + k), sv = sign * load(s + k);
                    store(to + k, p * cv - q * sv);
                    store(to + half + k, q * cv + p * sv);
                }
                for (; k < half; k++) {
                    float p = from[k], q = from[half + k], sk = sign * s[k];
                    to[k] = p * c[k] - q * sk;
                    to[half + k] = q * c[k] + p * sk;
                }
            }
        }
}

// ---------------------------------------------------------------- nats

// A row whose target is negative is left out: y = 0, and z all the same.
// `parts` is (rows, 2): the largest logit and log sum_j e^(l_j - largest), whose sum z would round away small differences.
extern "C" void nats(const float* l, const int64_t* target, float* y, float* z, float* parts, int64_t rows, int64_t n,
                     int threads) {
    threads = crew(rows * n, threads);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        const float* li = l + i * n;
        const int64_t whole = n / W * W;
        vecf m = all(-INFINITY), none = {};
        ivecf broken = {};
        for (int64_t k = 0; k < whole; k += W) {
            vecf v = load(li + k);
            m = maximum(m, v);
            broken |= v != v;
        }
        vecf last = part(li + whole, n - whole, -INFINITY);
        m = maximum(m, last);
        broken |= last != last;
        bool nan = false;
        for (int j = 0; j < W; j++) nan |= broken[j] != 0;
        const float top = largest(m);
        for (int64_t k = 0; k < whole; k += W) none += exp0(load(li + k) - top);
        none += exp0(last - top);
        const float rest = nan ? NAN : std::log(sum(none));
        z[i] = top + rest;
        y[i] = target[i] < 0 ? 0.0f : rest - (li[target[i]] - top);
        parts[2 * i] = top, parts[2 * i + 1] = rest;
    }
}

extern "C" void nats_back(const float* dy, const float* dz, const float* l, const int64_t* target,
                          const float* parts, float* dl, int64_t rows, int64_t n, int threads) {
    threads = crew(rows * n, threads);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        const float *li = l + i * n, a = target[i] < 0 ? 0.0f : dy[i], both = a + dz[i];
        const float top = parts[2 * i], rest = parts[2 * i + 1];
        float* di = dl + i * n;
        int64_t k = 0;
        for (; k + W <= n; k += W) store(di + k, both * exp0(load(li + k) - top - rest));
        part(di + k, both * exp0(part(li + k, n - k, 0) - top - rest), n - k);
        if (target[i] >= 0) di[target[i]] -= a;
    }
}
