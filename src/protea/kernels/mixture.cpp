// The expectation step of a mixture of K Gaussians in D dimensions: one pass over rows that stay in the cache.
//
//     b_k = log2 w_k p(x | k) = c_k - |z_k|^2,    r_k = 2^b_k / sum_j 2^b_j,    log p(x) = ln 2 log2 sum_k 2^b_k
//     full       z_k = W_k (x - origin) - m_k     W_k lower triangular, m_k = W_k (mu_k - origin)
//     diagonal   z_k = s_k * (x - origin) - m_k   by entries
//     tied       z_k = W (x - origin) - m_k       one W for all
//     sums       sum_b r_bk u_a u_b               for pairs of entries of u = (x - origin, 1)
//     pooled     sum_b u_a u_b                    for further pairs: what all members share
//
// W, s and m hold sqrt(log2(e) / 2). Differences are squared, never expanded: nothing cancels, and a triangle costs no
// more products than the expanded form. Rows of no finite density (an entry is NaN or infinite, all members overflow)
// count nowhere; their log p is NaN and the caller's business.
//
// Rows lie along vectors: x is turned, a block at a time, to (D + 1, block). Panels of rows, whose number does not
// depend on that of threads, are summed by one thread each and added up in their order.

#include <omp.h>

#include <cmath>
#include <cstdlib>
#include <limits>

#include "vectors.h"

enum Form { FULL, DIAGONAL, TIED };

struct Pass {
    int64_t n, d, k, stride, panels, pairs, pooled;
    int32_t form, threads;
    const void* x;        // (n, d), rows `stride` apart
    const int64_t* rows;  // which of them, (n,); null for 0 .. n - 1
    const void *origin, *constant, *scale, *shift;  // (d,), (k,), W or s, m (k, d)
    const int32_t* pair;  // (pairs + pooled, 2)
    void* sums;           // (k * pairs + pooled,); null where they are not wanted
    void* partial;        // (panels, k * pairs + pooled)
    double* log_prob;     // (panels + 1,): of each, and their sum
    void* row_log_prob;   // (n,); may be null
    void* shares;         // (n, k); may be null
};

constexpr bool MANY = WIDTH == 64;  // registers: 32 or 16
constexpr int V = 3;                // vectors of a stripe of rows
constexpr int FEATURES = MANY ? 6 : 3;  // pairs of entries whose sums are held in registers together

template <class T> struct Bits;
template <> struct Bits<float> { static constexpr int mantissa = 23, terms = 7, least = -125; };
template <> struct Bits<double> { static constexpr int mantissa = 52, terms = 12, least = -1021; };

// 2^x for x <= 0: 2^n 2^r with |r| <= 1/2, Taylor to the rounding; 0 below the least exponent and for NaN.
template <class T> static inline vec_of<T> power2(vec_of<T> x) {
    typedef typename Lanes<T>::ivec ivec;
    constexpr double c[] = {  // (ln 2)^i / i!
        1.0, 0.6931471805599453, 0.2402265069591007, 0.05550410866482158, 0.009618129107628477, 0.0013333558146428443,
        0.0001540353039338161, 1.5252733804059841e-05, 1.3215486790144308e-06, 1.0178086009239699e-07,
        7.054911620801123e-09, 4.4455382718708116e-10, 2.5678435993488206e-11};
    const T magic = (T)((int64_t)3 << (Bits<T>::mantissa - 1));
    vec_of<T> shifted = x + magic, r = x - (shifted - magic), p = all((T)c[Bits<T>::terms]);
    for (int i = Bits<T>::terms - 1; i >= 0; i--) p = p * r + (T)c[i];
    p = (vec_of<T>)((ivec)p + ((ivec)shifted << Bits<T>::mantissa));
    return x > all((T)Bits<T>::least) ? p : vec_of<T>{};
}

// log2 x of normal x > 0: its exponent, and 2 artanh((m - 1) / (m + 1)) / ln 2 of its mantissa m in [2^-1/2, 2^1/2).
template <class T> static inline vec_of<T> log2v(vec_of<T> x) {
    typedef typename Lanes<T>::ivec ivec;
    ivec least = (ivec)all((T)0.7071067811865476), e = ((ivec)x - least) >> Bits<T>::mantissa;
    vec_of<T> m = (vec_of<T>)((ivec)x - (e << Bits<T>::mantissa));
    vec_of<T> s = (m - (T)1) / (m + (T)1), square = s * s, p = all((T)(1.0 / 21));
    for (int i = 19; i > 0; i -= 2) p = p * square + (T)(1.0 / i);
    return __builtin_convertvector(e, vec_of<T>) + s * p * (T)2.8853900817779268;
}

// ---------------------------------------------------------------- densities of a stripe of V vectors of rows

template <class T, int R>
static void whitened(const Pass& p, int64_t k, const T* x, int64_t ld, T* bits) {
    constexpr int W = Lanes<T>::count;
    typedef vec_of<T> vec;
    const int64_t d = p.d;
    const T *w = (const T*)p.scale + k * d * d, *m = (const T*)p.shift + k * d, *c = (const T*)p.constant + k;
    vec acc[R][V];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) acc[r][v] = all(c[r]);
    for (int64_t i = 0; i < d; i++) {
        vec z[R][V];
        for (int r = 0; r < R; r++)
            for (int v = 0; v < V; v++) z[r][v] = all(-m[r * d + i]);
        for (int64_t j = 0; j <= i; j++) {
            vec xv[V];
            for (int v = 0; v < V; v++) xv[v] = load(x + j * ld + v * W);
            for (int r = 0; r < R; r++) {
                vec s = all(w[(r * d + i) * d + j]);
                for (int v = 0; v < V; v++) z[r][v] += s * xv[v];
            }
        }
        for (int r = 0; r < R; r++)
            for (int v = 0; v < V; v++) acc[r][v] -= z[r][v] * z[r][v];
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) store(bits + (k + r) * ld + v * W, acc[r][v]);
}

template <class T, int R, bool UNIT>
static void squared(const Pass& p, int64_t k, const T* x, int64_t ld, T* bits, int64_t out) {
    constexpr int W = Lanes<T>::count;
    typedef vec_of<T> vec;
    const int64_t d = p.d;
    const T *s = (const T*)p.scale + k * d, *m = (const T*)p.shift + k * d, *c = (const T*)p.constant + k;
    vec acc[R][V];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) acc[r][v] = all(c[r]);
    for (int64_t i = 0; i < d; i++) {
        vec xv[V];
        for (int v = 0; v < V; v++) xv[v] = load(x + i * ld + v * W);
        for (int r = 0; r < R; r++) {
            vec shift = all(m[r * d + i]), scale = UNIT ? vec{} : all(s[r * d + i]);
            for (int v = 0; v < V; v++) {
                vec z = UNIT ? xv[v] - shift : xv[v] * scale - shift;
                acc[r][v] -= z * z;
            }
        }
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) store(bits + (k + r) * out + v * W, acc[r][v]);
}

template <class T>
static void turned(const Pass& p, const T* x, int64_t ld, T* y) {  // y = W x, (d, V W)
    constexpr int W = Lanes<T>::count;
    const T* w = (const T*)p.scale;
    for (int64_t i = 0; i < p.d; i++) {
        vec_of<T> z[V] = {};
        for (int64_t j = 0; j <= i; j++)
            for (int v = 0; v < V; v++) z[v] += load(x + j * ld + v * W) * all(w[i * p.d + j]);
        for (int v = 0; v < V; v++) store(y + (i * V + v) * W, z[v]);
    }
}

template <class T, int R>
static void densities(const Pass& p, int64_t k, const T* x, int64_t ld, T* y, T* bits) {
    constexpr int Q = R < 4 ? R : 4;
    for (; k + R <= p.k; k += R)
        switch (p.form) {
            case FULL: for (int i = 0; i < R; i += Q) whitened<T, Q>(p, k + i, x, ld, bits); break;
            case DIAGONAL: squared<T, R, false>(p, k, x, ld, bits, ld); break;
            default: squared<T, R, true>(p, k, y, V * Lanes<T>::count, bits, ld);
        }
    if constexpr (R > 1) densities<T, R / 2>(p, k, x, ld, y, bits);
}

// Bits become shares; the mask (0 where a row has no finite density, and shares of 0) and log p of the rows.
template <class T>
static void normalised(int64_t k, T* bits, int64_t ld, T* mask, T* log_p) {
    constexpr int W = Lanes<T>::count;
    typedef vec_of<T> vec;
    vec top[V], mass[V] = {};
    const vec least = all(std::numeric_limits<T>::lowest());
    for (int v = 0; v < V; v++) top[v] = load(bits + v * W);
    for (int64_t j = 1; j < k; j++)
        for (int v = 0; v < V; v++) top[v] = maximum(load(bits + j * ld + v * W), top[v]);
    for (int64_t j = 0; j < k; j++)
        for (int v = 0; v < V; v++) {
            T* at = bits + j * ld + v * W;
            vec e = power2<T>(load(at) - top[v]);
            store(at, e);
            mass[v] += e;
        }
    for (int v = 0; v < V; v++) {
        vec one = top[v] > least ? all((T)1) : vec{};
        store(mask + v * W, one);
        store(log_p + v * W, one > vec{} ? (top[v] + log2v<T>(mass[v])) * (T)0.6931471805599453 : all((T)NAN));
        mass[v] = one > vec{} ? one / mass[v] : vec{};
    }
    for (int64_t j = 0; j < k; j++)
        for (int v = 0; v < V; v++) store(bits + j * ld + v * W, load(bits + j * ld + v * W) * mass[v]);
}

// ---------------------------------------------------------------- sums

// lanes[r][c] += sum over rows of r u: R members, C pairs; `apart` between members.
template <class T, int R, int C>
static void gathered(const T* r, const T* u, int64_t ld, int64_t steps, vec_of<T>* lanes, int64_t apart) {
    constexpr int W = Lanes<T>::count;
    vec_of<T> acc[R][C] = {};
    for (int64_t v = 0; v < steps; v++) {
        vec_of<T> uv[C];
        for (int c = 0; c < C; c++) uv[c] = load(u + c * ld + v * W);
        for (int i = 0; i < R; i++) {
            vec_of<T> rv = load(r + i * ld + v * W);
            for (int c = 0; c < C; c++) acc[i][c] += rv * uv[c];
        }
    }
    for (int i = 0; i < R; i++)
        for (int c = 0; c < C; c++) lanes[i * apart + c] += acc[i][c];
}

template <class T, int R, int C>
static void members(const T* r, int64_t k, const T* u, int64_t ld, int64_t steps, vec_of<T>* lanes, int64_t apart) {
    for (; k >= R; k -= R, r += R * ld, lanes += R * apart) gathered<T, R, C>(r, u, ld, steps, lanes, apart);
    if constexpr (R > 1) members<T, R / 2, C>(r, k, u, ld, steps, lanes, apart);
}

template <class T, int C>
static void sums(const Pass& p, int64_t first, int64_t count, const T* x, const T* r, int64_t k, T* u, int64_t ld,
                 int64_t steps, vec_of<T>* lanes, int64_t apart) {
    constexpr int W = Lanes<T>::count;
    int64_t f = 0;
    for (; f + C <= count; f += C) {
        for (int c = 0; c < C; c++) {
            const T *a = x + p.pair[2 * (first + f + c)] * ld, *b = x + p.pair[2 * (first + f + c) + 1] * ld;
            for (int64_t v = 0; v < steps * W; v += W) store(u + c * ld + v, load(a + v) * load(b + v));
        }
        members<T, MANY ? 4 : 2, C>(r, k, u, ld, steps, lanes + f, apart);
    }
    if constexpr (C > 1) sums<T, C - 1>(p, first + f, count - f, x, r, k, u, ld, steps, lanes + f, apart);
}

// ---------------------------------------------------------------- the pass

template <class T, class X>
static int64_t run(const Pass& p) {
    constexpr int W = Lanes<T>::count, S = V * W;
    typedef vec_of<T> vec;
    const int64_t d = p.d, k = p.k, entries = k * p.pairs + p.pooled;
    const int64_t height = (p.n + p.panels * S - 1) / (p.panels * S) * S;  // rows of a panel
    const int64_t fit = (512 << 10) / (int64_t)sizeof(T) / (d + k + FEATURES) / S;  // stripes in half of a core's cache
    const int64_t most = fit < 1 ? 1 : fit > 480 / S ? 480 / S : fit, blocks = (height / S + most - 1) / most;
    const int64_t ld = (height / S + blocks - 1) / blocks * S;  // rows of a block
    const int64_t room = ((d + k + FEATURES + 3) * ld + d * S) * sizeof(T) + (p.sums ? entries * sizeof(vec) : 0);
    int64_t left_out = 0;
#pragma omp parallel num_threads(p.threads) reduction(+ : left_out)
    {
        vec* lanes = (vec*)std::aligned_alloc(64, (room + 63) / 64 * 64);
        T *x = (T*)(lanes + (p.sums ? entries : 0)), *r = x + (d + 1) * ld, *mask = r + k * ld, *u = mask + ld;
        T *log_p = u + FEATURES * ld, *y = log_p + ld;
#pragma omp for schedule(dynamic, 1)
        for (int64_t panel = 0; panel < p.panels; panel++) {
            double log_prob = 0;
            for (int64_t i = 0; p.sums && i < entries; i++) lanes[i] = vec{};
            const int64_t end = (panel + 1) * height < p.n ? (panel + 1) * height : p.n;
            for (int64_t start = panel * height; start < end; start += ld) {
                const int64_t rows = end - start < ld ? end - start : ld, filled = (rows + S - 1) / S * S;
                for (int64_t b = 0; b < filled; b++) {
                    x[d * ld + b] = 1;
                    const int64_t at = b < rows ? (p.rows ? p.rows[start + b] : start + b) : -1;
                    const X* row = (const X*)p.x + at * p.stride;
                    for (int64_t i = 0; i < d; i++) x[i * ld + b] = at < 0 ? 0 : (T)row[i] - ((const T*)p.origin)[i];
                }
                for (int64_t b = 0; b < filled; b += S) {
                    if (p.form == TIED) turned<T>(p, x + b, ld, y);
                    densities<T, MANY ? 8 : 2>(p, 0, x + b, ld, y, r + b);
                    normalised<T>(k, r + b, ld, mask + b, log_p + b);
                }
                for (int64_t b = rows; b < filled; b++)
                    for (int64_t j = 0; j <= k; j++) r[j * ld + b] = 0;  // and mask, which follows
                for (int64_t b = 0; b < rows; b++) {
                    if (mask[b] != 0) log_prob += log_p[b];
                    else {
                        left_out++;
                        for (int64_t i = 0; i < d; i++) x[i * ld + b] = 0;
                    }
                    if (p.row_log_prob) ((T*)p.row_log_prob)[start + b] = log_p[b];
                    if (p.shares)
                        for (int64_t j = 0; j < k; j++) ((T*)p.shares)[(start + b) * k + j] = r[j * ld + b];
                }
                if (!p.sums) continue;
                sums<T, FEATURES>(p, 0, p.pairs, x, r, k, u, ld, filled / W, lanes, p.pairs);
                sums<T, FEATURES>(p, p.pairs, p.pooled, x, mask, 1, u, ld, filled / W, lanes + k * p.pairs, p.pooled);
            }
            p.log_prob[panel] = log_prob;
            for (int64_t i = 0; p.sums && i < entries; i++) {
                T sum = 0;
                for (int j = 0; j < W; j++) sum += lanes[i][j];
                ((T*)p.partial)[panel * entries + i] = sum;
            }
        }
        std::free(lanes);
    }
    double log_prob = 0;
    for (int64_t panel = 0; panel < p.panels; panel++) log_prob += p.log_prob[panel];
    p.log_prob[p.panels] = log_prob;
    for (int64_t panel = 0; p.sums && panel < p.panels; panel++)
        for (int64_t i = 0; i < entries; i++) {
            const T part = ((const T*)p.partial)[panel * entries + i];
            ((T*)p.sums)[i] = panel ? ((T*)p.sums)[i] + part : part;
        }
    return left_out;
}

extern "C" {
int64_t protea_mixture_size() { return sizeof(Pass); }
// Rows that counted nowhere. Types: of all numbers but x's (0 double, 1 float), and of x.
int64_t protea_mixture(const Pass* p, int32_t type, int32_t x_type) {
    if (type == 0) return x_type == 0 ? run<double, double>(*p) : run<double, float>(*p);
    return x_type == 0 ? run<float, double>(*p) : run<float, float>(*p);
}
}
