// Attention of whole texts, forwards and backwards: o_i = sum_j p_ij v_j, p_ij = e^(s q_i k_j - z_i), with j <= i or all j.
//
//     delta_i = do_i o_i,  ds_ij = s p_ij (do_i v_j - delta_i)
//     dq_i = sum_j ds_ij k_j,   dk_j = sum_i ds_ij q_i,   dv_j = sum_i p_ij do_i
//
// Dao et al. 2022, "FlashAttention": scores are worked out again, never kept. One thread takes a key head with all query
// heads that read it, copies what it reads into rows of whole vectors (keys and values transposed too), and multiplies
// tiles of M rows by two vectors; tiles that lie wholly after their queries are left out. No sum depends on threads.

#include <vector>

#include "rows.h"

constexpr int M = W == 16 ? 8 : 4;  // rows of a tile: 2 M sums are kept in registers
constexpr int64_t QUERIES = 32;     // whose scores are kept at a time backwards

// c (M, n) = or += sum_k a(m, k) b(k, .), with a(m, k) = a[m am + k ak], rows of b and c `ldb` and `ldc` apart.
template <int N, bool ADD>
static inline void tile(const float* a, int64_t am, int64_t ak, const float* b, int64_t ldb, float* c, int64_t ldc,
                        int64_t k_end) {
    vecf s[M][N];
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) s[m][n] = ADD ? load(c + m * ldc + n * W) : vecf{};
    for (int64_t k = 0; k < k_end; k++) {
        vecf bv[N];
        for (int n = 0; n < N; n++) bv[n] = load(b + k * ldb + n * W);
        for (int m = 0; m < M; m++) {
            const vecf av = all(a[m * am + k * ak]);
            for (int n = 0; n < N; n++) s[m][n] += av * bv[n];
        }
    }
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) store(c + m * ldc + n * W, s[m][n]);
}

template <bool ADD>
static void product(const float* a, int64_t am, int64_t ak, const float* b, int64_t ldb, float* c, int64_t ldc,
                    int64_t n_end, int64_t k_end) {  // n_end is a multiple of W
    int64_t n = 0;
    for (; n + 2 * W <= n_end; n += 2 * W) tile<2, ADD>(a, am, ak, b + n, ldb, c + n, ldc, k_end);
    if (n < n_end) tile<1, ADD>(a, am, ak, b + n, ldb, c + n, ldc, k_end);
}

static void transpose(vecf* v) {  // W by W
#pragma GCC unroll 4
    for (int h = 1; h < W; h *= 2) {
        ivecf low = {}, high = {};
        for (int l = 0; l < W; l++) low[l] = l & h ? W + (l ^ h) : l, high[l] = l & h ? W + l : l ^ h;
#pragma GCC unroll 16
        for (int i = 0; i < W; i++)
            if (!(i & h)) {
#ifdef __clang__
                vecf a, b;
                for (int l = 0; l < W; l++) a[l] = l & h ? v[i + h][l ^ h] : v[i][l], b[l] = l & h ? v[i + h][l] : v[i][l ^ h];
#else
                vecf a = __builtin_shuffle(v[i], v[i + h], low), b = __builtin_shuffle(v[i], v[i + h], high);
#endif
                v[i] = a, v[i + h] = b;
            }
    }
}

struct Shape {
    int64_t batch, heads, kv, t, d;
    int64_t tp() const { return (t + 2 * W - 1) / (2 * W) * 2 * W; }  // padded with zeros
    int64_t dp() const { return (d + W - 1) / W * W; }
};
struct View {  // (B, H, T, D): where it starts, strides of the first three axes; entries of a head lie side by side
    float* p;
    int64_t s[3];
    float* at(int64_t b, int64_t h) const { return p + b * s[0] + h * s[1]; }
};

// Rows (t, d) into rows of dp, and, if asked, transposed into rows of tp.
static void copy(const Shape& z, const float* x, int64_t stride, float scale, float* rows, float* columns) {
    const int64_t tp = z.tp(), dp = z.dp();
    for (int64_t t = 0; t < tp; t++)
        for (int64_t c = 0; c < dp; c += W) {
            const int64_t left = t < z.t ? z.d - c : 0;
            vecf v = left >= W ? load(x + t * stride + c) : part(x + t * stride + c, left, 0);
            store(rows + t * dp + c, v * scale);
        }
    if (!columns) return;
    for (int64_t t = 0; t < tp; t += W)
        for (int64_t c = 0; c < dp; c += W) {
            vecf v[W];
            for (int i = 0; i < W; i++) v[i] = load(rows + (t + i) * dp + c);
            transpose(v);
            for (int i = 0; i < W; i++) store(columns + (c + i) * tp + t, v[i]);
        }
}

static void write(const float* row, float scale, float* to, int64_t d) {
    int64_t c = 0;
    for (; c + W <= d; c += W) store(to + c, load(row + c) * scale);
    if (c < d) part(to + c, load(row + c) * scale, d - c);
}

static inline vecf lanes() {
    vecf v;
    for (int i = 0; i < W; i++) v[i] = i;
    return v;
}

// Keys that a tile of queries i .. i + M - 1 needs, in whole vectors; and how many of them query `row` sees.
static inline int64_t reach(const Shape& z, bool causal, int64_t i) {
    return causal && i + M < z.t ? (i + M + W - 1) / W * W : (z.t + W - 1) / W * W;
}
static inline int64_t sees(const Shape& z, bool causal, int64_t row) { return causal && row < z.t ? row + 1 : z.t; }

static void forward(const Shape& z, const View& q, const View& k, const View& v, const View& o, float* lse,
                    bool causal, float scale, int64_t unit, float* room) {
    const int64_t tp = z.tp(), dp = z.dp(), b = unit / z.kv, hk = unit % z.kv, group = z.heads / z.kv;
    float *kr = room, *kt = kr + tp * dp, *vr = kt + tp * dp, *qr = vr + tp * dp, *p = qr + tp * dp, *out = p + M * tp;
    copy(z, k.at(b, hk), k.s[2], 1, kr, kt);
    copy(z, v.at(b, hk), v.s[2], 1, vr, nullptr);
    const vecf lane = lanes();
    for (int64_t h = hk * group; h < (hk + 1) * group; h++) {
        copy(z, q.at(b, h), q.s[2], scale, qr, nullptr);
        for (int64_t i = 0; i < z.t; i += M) {
            const int64_t keys = reach(z, causal, i);
            float over[M];
            product<false>(qr + i * dp, dp, 1, kt, tp, p, tp, keys, z.d);
            for (int m = 0; m < M; m++) {
                float* row = p + m * tp;
                const float n = sees(z, causal, i + m);
                vecf top = all(-INFINITY), total = {};
                for (int64_t j = 0; j < keys; j += W) {
                    vecf s = lane + float(j) < all(n) ? load(row + j) : all(-INFINITY);
                    top = maximum(top, s);
                    store(row + j, s);
                }
                const float most = largest(top);
                for (int64_t j = 0; j < keys; j += W) {
                    vecf s = load(row + j), e = s - most;
                    e = s == s ? exp0(e) : s;  // NaN stays
                    total += e;
                    store(row + j, e);
                }
                over[m] = sum(total);
                if (i + m < z.t) lse[(b * z.heads + h) * z.t + i + m] = most + std::log(over[m]);
            }
            product<false>(p, tp, 1, vr, dp, out, dp, dp, keys < z.t ? keys : z.t);
            for (int m = 0; m < M && i + m < z.t; m++) write(out + m * dp, 1 / over[m], o.at(b, h) + (i + m) * o.s[2], z.d);
        }
    }
}

static void backward(const Shape& z, const View& q, const View& k, const View& v, const View& o, const float* lse,
                     const View& go, const View& gq, const View& gk, const View& gv, bool causal, float scale,
                     int64_t unit, float* room) {
    const int64_t tp = z.tp(), dp = z.dp(), b = unit / z.kv, hk = unit % z.kv, group = z.heads / z.kv, one = tp * dp;
    float *kr = room, *kt = kr + one, *vr = kt + one, *vt = vr + one, *qr = vt + one, *gr = qr + one;
    float *dk = gr + one, *dv = dk + one, *p = dv + one, *ds = p + QUERIES * tp, *out = ds + QUERIES * tp;
    copy(z, k.at(b, hk), k.s[2], 1, kr, kt);
    copy(z, v.at(b, hk), v.s[2], 1, vr, vt);
    memset(dk, 0, 2 * one * sizeof(float));
    const vecf lane = lanes();
    for (int64_t h = hk * group; h < (hk + 1) * group; h++) {
        copy(z, q.at(b, h), q.s[2], scale, qr, nullptr);
        copy(z, go.at(b, h), go.s[2], 1, gr, nullptr);
        for (int64_t first = 0; first < z.t; first += QUERIES) {
            const int64_t end = first + QUERIES < tp ? first + QUERIES : tp;
            int64_t most = 0;
            for (int64_t i = first; i < end && i < z.t; i += M) {
                const int64_t keys = most = reach(z, causal, i);
                float *pi = p + (i - first) * tp, *di = ds + (i - first) * tp;
                product<false>(qr + i * dp, dp, 1, kt, tp, pi, tp, keys, z.d);
                product<false>(gr + i * dp, dp, 1, vt, tp, di, tp, keys, z.d);
                for (int m = 0; m < M; m++) {
                    const bool real = i + m < z.t;
                    const float n = real ? sees(z, causal, i + m) : 0;
                    const float zi = real ? lse[(b * z.heads + h) * z.t + i + m] : 0;
                    float delta = 0;
                    if (real) {
                        const float *oi = o.at(b, h) + (i + m) * o.s[2], *gi = gr + (i + m) * dp;
                        vecf dot = {};
                        int64_t c = 0;
                        for (; c + W <= z.d; c += W) dot += load(oi + c) * load(gi + c);
                        delta = sum(dot + part(oi + c, z.d - c, 0) * part(gi + c, z.d - c, 0));
                    }
                    for (int64_t j = 0; j < keys; j += W) {
                        vecf e = lane + float(j) < all(n) ? exp0(load(pi + m * tp + j) - zi) : vecf{};
                        store(pi + m * tp + j, e);
                        store(di + m * tp + j, e * (load(di + m * tp + j) - delta));
                    }
                }
                product<false>(di, tp, 1, kr, dp, out, dp, dp, keys < z.t ? keys : z.t);
                for (int m = 0; m < M && i + m < z.t; m++) write(out + m * dp, scale, gq.at(b, h) + (i + m) * gq.s[2], z.d);
            }
            for (int64_t j = 0; j < most; j += M) {  // the queries of this round that see some of these keys
                const int64_t from = causal && j > first ? j / M * M : first, to = (z.t + M - 1) / M * M;
                const int64_t count = (end < to ? end : to) - from, at = (from - first) * tp + j;
                product<true>(p + at, 1, tp, gr + from * dp, dp, dv + j * dp, dp, dp, count);
                product<true>(ds + at, 1, tp, qr + from * dp, dp, dk + j * dp, dp, dp, count);
            }
        }
    }
    for (int64_t t = 0; t < z.t; t++) {
        write(dk + t * dp, 1, gk.at(b, hk) + t * gk.s[2], z.d);
        write(dv + t * dp, 1, gv.at(b, hk) + t * gv.s[2], z.d);
    }
}

// views: q, k, v, o, and backwards do, dq, dk, dv. shape: B, H, H_kv, T, D. lse is (B, H, T).
extern "C" void attend(const Shape* shape, const View* x, float* lse, int causal, float scale, int threads) {
    const Shape z = *shape;
    const int64_t tp = z.tp(), dp = z.dp();
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> room(4 * tp * dp + M * (tp + dp));
#pragma omp for schedule(static)
        for (int64_t unit = 0; unit < z.batch * z.kv; unit++)
            forward(z, x[0], x[1], x[2], x[3], lse, causal, scale, unit, room.data());
    }
}

extern "C" void attend_back(const Shape* shape, const View* x, float* lse, int causal, float scale, int threads) {
    const Shape z = *shape;
    const int64_t tp = z.tp(), dp = z.dp();
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> room(8 * tp * dp + 2 * QUERIES * tp + M * dp);
#pragma omp for schedule(static)
        for (int64_t unit = 0; unit < z.batch * z.kv; unit++)
            backward(z, x[0], x[1], x[2], x[3], lse, x[4], x[5], x[6], x[7], causal, scale, unit, room.data());
    }
}
