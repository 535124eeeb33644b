// Hidden Markov models on the CPU: forward-backward in the linear domain, and Viterbi with logarithms.
//
//     alpha_t = (alpha_{t-1} A) * b_t / c_t,  beta_t = A w_{t+1},  w_t = b_t * beta_t / c_t,  gamma_t = alpha_t * beta_t
//     delta_t(j) = log b_t(j) + max_i (delta_{t-1}(i) + log A_ij),    z_t = argmax_i (delta_t(i) + log A_{i, z_{t+1}})
//
// b_t is divided by its largest entry and c_t makes alpha_t sum to one. Vectors run over states; up to GROUP sequences
// are stepped side by side, so that one's sums are done while another's wait. What a sequence needs (alpha, w, delta)
// stays in the cache from its first step to its last. log b has a row for each step, or is looked up in a table (M, K):
// a step's code names the row, or its features phi (M, N) weigh all rows, as in exponential families.
//
// Sums over sequences are taken in SHARES parts, and those in order: the same bits on any number of threads.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "lanes.h"

constexpr int GROUP = 4;    // most sequences side by side
constexpr int SHARES = 32;  // most parts of a sum over sequences
constexpr int BLOCK = 32;   // steps whose b is computed, or whose pairs are summed, while they are in the nearest cache
constexpr int ROWS = 4;     // of a sum of outer products, taken at once
constexpr int LEVEL = 4;    // steps of Viterbi after which the largest delta is made zero again
constexpr double INF = std::numeric_limits<double>::infinity();

struct Call {  // row-major arrays of the kernel's type where it says void; see compiled.py
    int64_t count, k, rows, total, threads, watch, last_rows;
    const int64_t *order, *start, *length;  // sequences, longest first; their first rows; their numbers of steps
    const int64_t* codes;                   // of each step, or null
    const void *phi, *log_b, *pi, *a, *last, *weights;  // pi is a logarithm; for Viterbi so are a and last
    void *gamma, *first, *finals;
    double *pairs, *counts, *log_p;
    uint8_t* lost;
    int64_t* path;
};

// e^x; zero where that is below the type's smallest number, and NaN stays.
template <class T> static inline vec_of<T> power(vec_of<T> x) {
    return x < all(T(sizeof(T) == 4 ? -87 : -708)) ? vec_of<T>{} : x == x ? exponential(x) : x;
}

template <class T> struct Chain {  // what all sequences share, K padded to whole vectors
    int k, kp;
    std::vector<T> pi, a, back, table;  // back is the transpose of A, table of use to phi

    Chain(const Call& c, T pad) : k(c.k), kp((k + W<T> - 1) / W<T> * W<T>), pi(kp, T(-INF)), a(kp * kp, pad), back(a) {
        for (int i = 0; i < k; i++) {
            pi[i] = ((const T*)c.pi)[i];
            for (int j = 0; j < k; j++) back[j * kp + i] = a[i * kp + j] = ((const T*)c.a)[i * k + j];
        }
        if (c.phi) table.assign(c.rows * kp, 0);
        for (int64_t m = 0; c.phi && m < c.rows; m++)
            for (int j = 0; j < k; j++) table[m * kp + j] = ((const T*)c.log_b)[m * k + j];
    }
};

template <class T> struct Group {  // sequences side by side, the longest first
    int n, kp, share;
    int64_t id[GROUP], length[GROUP], row[GROUP], keep, keep_w;  // masks of the steps kept of alpha and of w
    T *alpha[GROUP], *w[GROUP], *inv[GROUP], *end, *peak, *gamma;  // beta_T, the largest beta, BLOCK steps of gamma

    T* alpha_at(int g, int64_t t) { return alpha[g] + (t & keep) * kp; }
    T* w_at(int g, int64_t t) { return w[g] + (t & keep_w) * kp; }
    T* gamma_at(int g, int64_t t) { return gamma + (g * BLOCK + t % BLOCK) * kp; }
    int running(int64_t t) const {  // how many have a step t
        int g = n;
        while (g && length[g - 1] <= t) g--;
        return g;
    }
};

static int shares_of(int64_t entries) { return std::max<int64_t>(1, std::min<int64_t>(SHARES, (1 << 22) / entries)); }

// work(group) for all groups; those of a share in order, by one thread. All steps of alpha, of w are kept, or a few.
template <class T, class Work>
static void all_groups(const Call& c, int kp, bool whole, bool whole_w, int shares, Work work) {
    const int64_t size = std::max<int64_t>(1, std::min<int64_t>(GROUP, c.count / 8));
    const int64_t longest = c.count ? c.length[c.order[0]] : 0;
    const int64_t kept = whole ? longest : 2, kept_w = whole_w ? longest : BLOCK;
    const int64_t more = GROUP * kp, line = 64 / sizeof(T);
    const int64_t one = (kept * (kp + 1) + kept_w * kp) / line * line + 3 * line;
#pragma omp parallel num_threads(c.threads)
    {
        std::vector<T> memory(size * one + (2 + BLOCK) * more + line);
        T* base = (T*)(((uintptr_t)memory.data() + 63) / 64 * 64);
#pragma omp for schedule(dynamic, 1)
        for (int share = 0; share < shares; share++)
            for (int64_t first = share * size; first < c.count; first += shares * size) {
                Group<T> s;
                s.n = std::min(size, c.count - first), s.kp = kp, s.share = share;
                s.keep = whole ? -1 : 1, s.keep_w = whole_w ? -1 : BLOCK - 1;
                s.end = base + size * one, s.peak = s.end + more, s.gamma = s.peak + more;
                for (int g = 0; g < s.n; g++) {
                    s.id[g] = c.order[first + g], s.length[g] = c.length[s.id[g]], s.row[g] = c.start[s.id[g]];
                    s.alpha[g] = base + g * one, s.w[g] = s.alpha[g] + kept * kp, s.inv[g] = s.w[g] + kept_w * kp;
                }
                work(s);
            }
    }
}

template <class T> static inline const T* end_of(const Call& c, int64_t id) {
    return (const T*)c.last + (c.last_rows ? id * c.k : 0);
}

#define FOR_EACH_SIZE(running, call)       \
    switch (running) {                     \
        case 4: call(4); break;            \
        case 3: call(3); break;            \
        case 2: call(2); break;            \
        default: call(1);                  \
    }

// ---------------------------------------------------------------- products of rows by a matrix

template <class T> struct Sum {
    static vec_of<T> none() { return vec_of<T>{}; }
    static vec_of<T> add(vec_of<T> all_before, T x, vec_of<T> a) { return all_before + x * a; }
};
template <class T> struct Max {
    static vec_of<T> none() { return all(T(-INF)); }
    static vec_of<T> add(vec_of<T> best, T x, vec_of<T> a) { return maximum(best, x + a); }
};

template <class T, class Op, int G, int V, class Then>
static inline void product(const T* m, const T* const* in, int64_t stride, int k, int kp, int j, Then then) {
    vec_of<T> acc[G][V];
    for (auto& row : acc)
        for (auto& x : row) x = Op::none();
    for (int i = 0; i < k; i++)
        for (int v = 0; v < V; v++) {
            auto a = load(m + i * kp + j + v * W<T>);
            for (int g = 0; g < G; g++) acc[g][v] = Op::add(acc[g][v], in[g][i * stride], a);
        }
    for (int g = 0; g < G; g++)
        for (int v = 0; v < V; v++) then(g, j + v * W<T>, acc[g][v]);
}

// then(g, j, entries j .. j + W of in_g M) for G rows, whose entries lie `stride` apart.
template <class T, class Op, int G, class Then>
static inline void products(const T* m, const T* const* in, int64_t stride, int k, int kp, Then then) {
    int j = 0;
    for (; j + 2 * W<T> <= kp; j += 2 * W<T>) product<T, Op, G, 2>(m, in, stride, k, kp, j, then);
    if (j < kp) product<T, Op, G, 1>(m, in, stride, k, kp, j, then);
}

// ---------------------------------------------------------------- forward and backward

struct Scale {  // the logarithm of a product
    double log_p = 0, mass = 1;
    void times(double c) {
        if (c < 1e-100 || mass < 1e-200) log_p += std::log(mass), mass = 1;
        mass *= c;
    }
    double log() const { return log_p + std::log(mass); }
};

template <class T> static inline const T* row_of(const Call& c, int64_t step) {
    return (const T*)c.log_b + (c.codes ? c.codes[step] : step) * c.k;
}

// log b of steps t .. end of one sequence, in the place of w.
template <class T>
static void log_emissions(const Call& c, const Chain<T>& chain, Group<T>& s, int g, int64_t t, int64_t end) {
    for (; !c.phi && t < end; t++) copy(row_of<T>(c, s.row[g] + t), s.w_at(g, t), chain.k, s.kp, T(-INF));
    if (t == end) return;
    for (int64_t i = t; i < end; i += 4) {
        const T *first = (const T*)c.phi + s.row[g] + i, *in[4];
        const int n = std::min<int64_t>(4, end - i);
        for (int r = 0; r < 4; r++) in[r] = first + std::min(r, n - 1);
        products<T, Sum<T>, 4>(chain.table.data(), in, c.total, c.rows, s.kp, [&](int r, int j, vec_of<T> x) {
            if (r < n) store(s.w_at(g, i + r) + j, x);
        });
        for (int r = 0; r < n; r++)
            for (int j = chain.k; j < s.kp; j++) s.w_at(g, i + r)[j] = T(-INF);
    }
}

// b of steps t .. end of one sequence, each row's largest entry 1; returns the sum of the logarithms taken out.
template <class T>
static double emissions(const Call& c, const Chain<T>& chain, Group<T>& s, int g, int64_t t, int64_t end) {
    double taken = 0;
    log_emissions(c, chain, s, g, t, end);
    for (; t < end; t++) {
        T* b = s.w_at(g, t);
        auto high = all(T(-INF));
        for (int j = 0; j < s.kp; j += W<T>) {
            if (!t) store(b + j, load(b + j) + load(&chain.pi[j]));
            high = maximum(high, load(b + j));
        }
        T top = max_of<T>(high)[0];
        if (top == T(-INF)) top = 0;
        for (int j = 0; j < s.kp; j += W<T>) store(b + j, power<T>(load(b + j) - top));
        taken += top;
    }
    return taken;
}

template <class T, int G>
static void forward_step(const Chain<T>& chain, Group<T>& s, int64_t t, Scale* scale) {
    vec_of<T> sum[G] = {};
    T* now[G];
    const T *b[G], *before[G];
    for (int g = 0; g < G; g++) now[g] = s.alpha_at(g, t), before[g] = s.alpha_at(g, t - 1), b[g] = s.w_at(g, t);
    auto then = [&](int g, int j, vec_of<T> x) {
        x *= load(b[g] + j);
        sum[g] += x;
        store(now[g] + j, x);
    };
    if (t) products<T, Sum<T>, G>(chain.a.data(), before, 1, chain.k, s.kp, then);
    else
        for (int g = 0; g < G; g++)
            for (int j = 0; j < s.kp; j += W<T>) then(g, j, all(T(1)));
    for (int g = 0; g < G; g++) {
        T c = sum_of<T>(sum[g])[0], inv = 1 / c;
        scale[g].times(c);
        s.inv[g][t & s.keep] = inv;
        for (int j = 0; j < s.kp; j += W<T>) store(now[g] + j, load(now[g] + j) * inv);
    }
}

// Step t of the first G sequences, of which `going` have another.
template <class T, int G>
static void backward_step(const Call& c, const Chain<T>& chain, Group<T>& s, int64_t t, int going, double* counts) {
    auto then = [&](int g, int j, vec_of<T> beta) {
        T *alpha = s.alpha_at(g, t) + j, *w = s.w_at(g, t) + j, *high = s.peak + g * s.kp + j;
        store(s.gamma_at(g, t) + j, load(alpha) * beta);
        store(w, load(w) * beta * s.inv[g][t & s.keep]);
        if (c.watch) store(high, maximum(load(high), beta));
    };
    const T* after[G];
    for (int g = 0; g < G; g++) after[g] = s.w_at(g, t + 1);
    if (going >= G) products<T, Sum<T>, G>(chain.back.data(), after, 1, chain.k, s.kp, then);
    else
        for (int g = 0; g < G; g++)
            if (g < going) products<T, Sum<T>, 1>(chain.back.data(), after + g, 1, chain.k, s.kp,
                                                  [&](int, int j, vec_of<T> beta) { then(g, j, beta); });
            else
                for (int j = 0; j < s.kp; j += W<T>) then(g, j, load(s.end + g * s.kp + j));
    for (int g = 0; g < G; g++) {
        if (c.lost[s.id[g]]) continue;
        int64_t row = s.row[g] + t;
        const T* from = s.gamma_at(g, t);
        if (c.gamma) copy(from, (T*)c.gamma + row * chain.k, chain.k, chain.k, T(0));
        if (c.first && !t) copy(from, (T*)c.first + s.id[g] * chain.k, chain.k, chain.k, T(0));
        if (c.codes && counts)
            for (int j = 0; j < chain.k; j++) counts[c.codes[row] * s.kp + j] += from[j];
    }
}

// sums_ij += sum_t a_t(i) b_t(j) for R rows i and V vectors of j. Entries of a lie `apart`, its steps `as`, b's kp.
template <class T, int R, int V>
static inline void outer(const T* a, int64_t apart, int64_t as, const T* b, int kp, int64_t steps, double* sums) {
    vec_of<T> acc[R][V] = {};
    for (; steps--; a += as, b += kp)
        for (int v = 0; v < V; v++) {
            auto x = load(b + v * W<T>);
            for (int r = 0; r < R; r++) acc[r][v] += a[r * apart] * x;
        }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++)
            for (int l = 0; l < W<T>; l++) sums[r * kp + v * W<T> + l] += acc[r][v][l];
}

template <class T, int R>
static void outers(const T* a, int64_t apart, int64_t as, int rows, const T* b, int kp, int64_t steps, double* sums) {
    int i = 0;
    for (; i + R <= rows; i += R) {
        int j = 0;
        for (; j + 2 * W<T> <= kp; j += 2 * W<T>)
            outer<T, R, 2>(a + i * apart, apart, as, b + j, kp, steps, sums + i * kp + j);
        if (j < kp) outer<T, R, 1>(a + i * apart, apart, as, b + j, kp, steps, sums + i * kp + j);
    }
    if constexpr (R > 1) outers<T, 1>(a + i * apart, apart, as, rows - i, b, kp, steps, sums + i * kp);
}

// log p of each sequence; with c.pairs also gamma, or its sums by code, the sums of pairs, and alpha_T / p.
// A sequence whose probability is zero, or of which a path may have been lost, is marked and gives nothing else.
template <class T> static void forward_backward(const Call& c) {
    const Chain<T> chain(c, 0);
    const int k = chain.k, kp = chain.kp;
    const int64_t squares = (int64_t)k * kp, entries = c.pairs ? squares + c.rows * kp : 1;
    const int shares = shares_of(entries);
    const double limit = std::pow(std::numeric_limits<T>::min(), -2.0 / 3);
    std::vector<double> sums(c.pairs ? shares * entries : 0);
    all_groups<T>(c, kp, c.pairs || c.gamma, c.pairs, shares, [&](Group<T>& s) {
        Scale scale[GROUP];
        double taken[GROUP] = {}, *pairs = sums.data() + s.share * entries;
        double* counts = c.counts ? pairs + squares : nullptr;
        for (int64_t t = 0; t < s.length[0]; t++) {
            const int running = s.running(t);
            for (int g = 0; t % BLOCK == 0 && g < running; g++)
                taken[g] += emissions(c, chain, s, g, t, std::min<int64_t>(t + BLOCK, s.length[g]));
#define STEP(G) forward_step<T, G>(chain, s, t, scale)
            FOR_EACH_SIZE(running, STEP)
#undef STEP
        }
        T weight[GROUP];
        for (int g = 0; g < s.n; g++) {
            const int64_t id = s.id[g];
            const T *end = c.last ? end_of<T>(c, id) : nullptr, *alpha = s.alpha_at(g, s.length[g] - 1);
            T mass = 0;
            for (int j = 0; j < k && s.length[g]; j++) mass += end ? alpha[j] * end[j] : alpha[j];
            c.lost[id] = s.length[g] && !(mass > 0);
            c.log_p[id] = s.length[g] ? taken[g] + scale[g].log() + std::log(mass) : 0;
            weight[g] = c.weights ? ((const T*)c.weights)[id] : T(1);
            for (int64_t t = 0; c.gamma && !c.pairs && t < s.length[g]; t++)
                copy(s.alpha_at(g, t), (T*)c.gamma + (s.row[g] + t) * k, k, k, T(0));
            if (!c.pairs || !s.length[g] || c.lost[id]) continue;
            for (int j = 0; j < kp; j++) {
                s.end[g * kp + j] = j < k ? (end ? end[j] : T(1)) / mass * weight[g] : 0;
                s.peak[g * kp + j] = 0;
                if (j < k) ((T*)c.finals)[id * k + j] = alpha[j] / mass * weight[g];
            }
        }
        if (!c.pairs) return;
        for (int64_t t = s.length[0] - 1; t >= 0; t--) {
            const int running = s.running(t), going = s.running(t + 1);
#define STEP(G) backward_step<T, G>(c, chain, s, t, going, counts)
            FOR_EACH_SIZE(running, STEP)
#undef STEP
            for (int g = 0; counts && c.phi && t % BLOCK == 0 && g < running; g++) {
                const int64_t steps = std::min<int64_t>(BLOCK, s.length[g] - t);
                const T* phi = (const T*)c.phi + s.row[g] + t;
                if (!c.lost[s.id[g]]) outers<T, ROWS>(phi, c.total, 1, c.rows, s.gamma_at(g, t), kp, steps, counts);
            }
        }
        for (int g = 0; g < s.n; g++) {
            for (int j = 0; c.watch && j < k && s.length[g]; j++)
                if (!(s.peak[g * kp + j] <= limit * weight[g])) c.lost[s.id[g]] = 1;
            for (int64_t t = 0, steps; !c.lost[s.id[g]] && t < s.length[g] - 1; t += steps) {
                steps = std::min<int64_t>(BLOCK, s.length[g] - 1 - t);
                outers<T, ROWS>(s.alpha_at(g, t), 1, kp, k, s.w_at(g, t + 1), kp, steps, pairs);
            }
        }
    });
    for (int share = 0; c.pairs && share < shares; share++) {
        const double* from = sums.data() + share * entries;
        for (int i = 0; i < k; i++)
            for (int j = 0; j < k; j++) c.pairs[i * k + j] += from[i * kp + j];
        for (int64_t i = 0; c.counts && i < c.rows; i++)
            for (int j = 0; j < k; j++) c.counts[i * k + j] += from[squares + i * kp + j];
    }
}

// ---------------------------------------------------------------- Viterbi

template <class T, int G>
static void viterbi_step(const Call& c, const Chain<T>& chain, Group<T>& s, int64_t t, bool copied, double* level) {
    T* now[G];
    const T *b[G], *before[G];
    for (int g = 0; g < G; g++) {
        now[g] = s.alpha_at(g, t), before[g] = s.alpha_at(g, t - 1);
        b[g] = copied ? s.w_at(g, t) : row_of<T>(c, s.row[g] + t);
    }
    auto then = [&](int g, int j, vec_of<T> x) { store(now[g] + j, x + load(b[g] + j)); };
    if (t) products<T, Max<T>, G>(chain.a.data(), before, 1, chain.k, s.kp, then);
    else
        for (int g = 0; g < G; g++)
            for (int j = 0; j < s.kp; j += W<T>) then(g, j, load(&chain.pi[j]));
    for (int g = 0; g < G && t % LEVEL == 0; g++) {
        auto high = load(now[g]);
        for (int j = W<T>; j < s.kp; j += W<T>) high = maximum(high, load(now[g] + j));
        T top = max_of<T>(high)[0];
        if (!(top > T(-INF))) continue;
        level[g] += top;
        for (int j = 0; j < s.kp; j += W<T>) store(now[g] + j, load(now[g] + j) - top);
    }
}

// The first i of the largest delta(i) + a(i), and that.
template <class T> static inline int best(const T* delta, const T* a, int k, int kp, T& top) {
    auto high = load(delta) + load(a);
    ivec_of<T> at, now;
    for (int l = 0; l < W<T>; l++) now[l] = l;
    at = now;
    for (int j = W<T>; j < kp; j += W<T>) {
        auto x = load(delta + j) + load(a + j);
        now += W<T>;
        at = x > high ? now : at;
        high = maximum(x, high);
    }
    const auto most = max_of<T>(high);
    top = most[0];
    return std::min<int>(least_of<T>(high == most ? at : ivec_of<T>{} + kp)[0], k - 1);
}

template <class T> static void viterbi(const Call& c) {
    const Chain<T> chain(c, T(-INF));
    const bool copied = c.phi || chain.k < chain.kp;
    all_groups<T>(c, chain.kp, true, false, c.count, [&](Group<T>& s) {
        double level[GROUP] = {};
        int64_t z[GROUP];
        for (int64_t t = 0; t < s.length[0]; t++) {
            const int running = s.running(t);
            for (int g = 0; copied && t % BLOCK == 0 && g < running; g++)
                log_emissions(c, chain, s, g, t, std::min<int64_t>(t + BLOCK, s.length[g]));
#define STEP(G) viterbi_step<T, G>(c, chain, s, t, copied, level)
            FOR_EACH_SIZE(running, STEP)
#undef STEP
        }
        for (int g = 0; g < s.n; g++) {
            c.log_p[s.id[g]] = 0;
            if (!s.length[g]) continue;
            copy(c.last ? end_of<T>(c, s.id[g]) : s.end, s.end, c.last ? chain.k : 0, s.kp, T(c.last ? -INF : 0));
            T top;
            z[g] = best(s.alpha_at(g, s.length[g] - 1), s.end, chain.k, s.kp, top);
            c.path[s.row[g] + s.length[g] - 1] = z[g], c.log_p[s.id[g]] = level[g] + top;
        }
        for (int64_t t = s.length[0] - 2; t >= 0; t--)
            for (int g = 0, going = s.running(t + 1); g < going; g++) {
                T top;
                z[g] = best(s.alpha_at(g, t), &chain.back[z[g] * s.kp], chain.k, s.kp, top);
                c.path[s.row[g] + t] = z[g];
            }
    });
}

extern "C" {
int64_t protea_markov_size() { return sizeof(Call); }
void protea_forward_backward_float(const Call* c) { forward_backward<float>(*c); }
void protea_forward_backward_double(const Call* c) { forward_backward<double>(*c); }
void protea_viterbi_float(const Call* c) { viterbi<float>(*c); }
void protea_viterbi_double(const Call* c) { viterbi<double>(*c); }
}
