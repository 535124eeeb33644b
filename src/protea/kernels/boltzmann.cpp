// Boltzmann machines whose units are mostly off: products that visit the units that are on alone, coins and the step.
//
//     rows      out_b = c + sum_i u_bi W_i                   what a layer asks of the centre, s(u) W
//     columns   out_bi = b_i + sum_j h_bj W_ij               what the centre asks of a layer, W h
//     outer     G_i = sum_b weight_b u_bi h_b                statistics, u^T (weight h)
//     flip      x = 1 with probability p = 1 / (1 + exp(-logit))
//     less      G - a b^T - c d^T
//     ascend    v = momentum v + g - decay p,  p += rate v
//
// The order of a sum depends on its own row (or unit) alone, never on the number of threads. Coins are numpy's Philox4x64-10 (Salmon et al. 2011; `protea/rng.py`, `coins`).

#include <omp.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "vectors.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

constexpr int L = Lanes<float>::count;
constexpr int WIDE = 16;       // vectors of sums held in registers
constexpr int CHUNK = 1 << 13; // numbers of one partial sum of `ascend`

// ---------------------------------------------------------------- which entries are not zero

template <class T> std::unique_ptr<T[]> room(int64_t n) { return std::unique_ptr<T[]>(new T[n]); }  // not cleared

struct List {  // of one row
    int n;
    bool ones;
};

// Indices and values of the entries of x (n) that are not zero; both outputs have room for n + L.
static List nonzero(const float* x, int n, int32_t* index, float* value) {
    int found = 0, i = 0;
    bool ones = true;
#if defined(__AVX512F__)
    __m512i place = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512 one = _mm512_set1_ps(1.0f), zero = _mm512_setzero_ps();
    for (; i + L <= n; i += L, place = _mm512_add_epi32(place, _mm512_set1_epi32(L))) {
        const __m512 v = _mm512_loadu_ps(x + i);
        const __mmask16 m = _mm512_cmp_ps_mask(v, zero, _CMP_NEQ_UQ);
        if (!m) continue;
        ones &= _mm512_mask_cmp_ps_mask(m, v, one, _CMP_NEQ_UQ) == 0;
        _mm512_storeu_si512(index + found, _mm512_maskz_compress_epi32(m, place));
        _mm512_storeu_ps(value + found, _mm512_maskz_compress_ps(m, v));
        found += __builtin_popcount(m);
    }
#endif
    for (; i < n; i++) {
        index[found] = i;
        value[found] = x[i];
        ones &= x[i] == 0.0f || x[i] == 1.0f;
        found += x[i] != 0.0f;
    }
    return {found, ones};
}

// A bit for each of n <= L entries that differs from a number.
static inline uint32_t which(const float* x, int n, float number) {
    uint32_t bits = 0;
#if defined(__AVX512F__)
    if (n == L) return _mm512_cmp_ps_mask(_mm512_loadu_ps(x), _mm512_set1_ps(number), _CMP_NEQ_UQ);
#endif
    for (int i = 0; i < n; i++) bits |= (uint32_t)(x[i] != number) << i;
    return bits;
}

static int64_t count_nonzero(const float* x, int64_t n) {
    ivecf found{};
    int64_t i = 0, total = 0;
    for (; i + L <= n; i += L) found -= load(x + i) != vecf{};  // true is -1
    for (int k = 0; k < L; k++) total += found[k];
    for (; i < n; i++) total += x[i] != 0.0f;
    return total;
}

// ---------------------------------------------------------------- sums of rows

// out (N vectors) = start + sum_k value_k rows[index_k]; start may be null.
template <int N, bool ONES>
static inline void sum_rows(const int32_t* index, const float* value, int n, const float* rows, int64_t stride,
                            const float* start, float* out) {
    vecf a[N];
    for (int v = 0; v < N; v++) a[v] = start ? load(start + v * L) : vecf{};
    for (int k = 0; k < n; k++) {
        const float* row = rows + index[k] * stride;
        for (int v = 0; v < N; v++) a[v] += ONES ? load(row + v * L) : value[k] * load(row + v * L);
    }
    for (int v = 0; v < N; v++) store(out + v * L, a[v]);
}

// The same for any width: tiles of 16, 8, ... vectors, then single numbers.
template <bool ONES, int N = WIDE>
static void sum_wide(const int32_t* index, const float* value, int n, const float* rows, int64_t stride,
                     const float* start, float* out, int width, int from = 0) {
    for (; from + N * L <= width; from += N * L)
        sum_rows<N, ONES>(index, value, n, rows + from, stride, start ? start + from : nullptr, out + from);
    if constexpr (N > 1) {
        sum_wide<ONES, N / 2>(index, value, n, rows, stride, start, out, width, from);
    } else {
        for (; from < width; from++) {
            float a = start ? start[from] : 0.0f;
            for (int k = 0; k < n; k++) {
                const float x = rows[index[k] * stride + from];
                a += ONES ? x : value[k] * x;
            }
            out[from] = a;
        }
    }
}

static void sum_any(const List& list, const int32_t* index, const float* value, const float* rows, int64_t stride,
                    const float* start, float* out, int width) {
    if (list.ones)
        sum_wide<true>(index, value, list.n, rows, stride, start, out, width);
    else
        sum_wide<false>(index, value, list.n, rows, stride, start, out, width);
}

// L rows of L numbers turned round: pairs of rows exchange halves, then quarters ...
static inline void turn(vecf* a) {
    for (int d = 1; d < L; d *= 2) {
        ivecf first, second;
        for (int i = 0; i < L; i++) first[i] = i & d ? L + i - d : i, second[i] = i & d ? L + i : i + d;
        for (int r = 0; r < L; r++) {
            if (r & d) continue;
            const vecf x = a[r], y = a[r + d];
            a[r] = __builtin_shuffle(x, y, first);
            a[r + d] = __builtin_shuffle(x, y, second);
        }
    }
}

// Columns j .. j + n of `here` rows of w, turned round: (n, L), with zeros where w has no more. n is a multiple of L.
static void turn_tile(const float* w, int64_t stride, int here, int64_t j, int n, float* out) {
    for (const int64_t end = j + n; j < end; j += L, out += L * L) {
        vecf block[L];
        if (here == L && j + L <= stride) {
            for (int r = 0; r < L; r++) block[r] = load(w + r * stride + j);
        } else {
            for (int r = 0; r < L; r++)
                for (int64_t i = 0; i < L; i++) block[r][i] = r < here && j + i < stride ? w[r * stride + j + i] : 0.0f;
        }
        turn(block);
        for (int r = 0; r < L; r++) store(out + r * L, block[r]);
    }
}

// ---------------------------------------------------------------- coins

static inline void philox(const uint64_t (&key)[10][2], uint64_t counter, uint64_t draw, uint64_t* out) {
    uint64_t c0 = counter, c1 = draw, c2 = 0, c3 = 0;
    for (int round = 0; round < 10; round++) {
        const unsigned __int128 a = (unsigned __int128)0xD2E7470EE14C6C93u * c0, b = (unsigned __int128)0xCA5A826395121157u * c2;
        c0 = (uint64_t)(b >> 64) ^ c1 ^ key[round][0];
        c2 = (uint64_t)(a >> 64) ^ c3 ^ key[round][1];
        c1 = (uint64_t)b;
        c3 = (uint64_t)a;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

static inline vecf logistic(vecf x) {  // not-a-number stays one
    const vecf p = 1.0f / (1.0f + exponential(-x));
    return x == x ? p : x;
}

// ---------------------------------------------------------------- what Python calls

// `rows` and `outer` return 1 without doing anything where more than `most` entries are not zero.

extern "C" int protea_rows(const float* u, int64_t batch, int64_t size, const float* w, int64_t centre, float* out,
                           int64_t most, int threads) {
    if (count_nonzero(u, batch * size) > most) return 1;
#pragma omp parallel num_threads(threads)
    {
        auto index = room<int32_t>(size + L);
        auto value = room<float>(size + L);
#pragma omp for schedule(static)
        for (int64_t b = 0; b < batch; b++) {
            const List list = nonzero(u + b * size, size, index.get(), value.get());
            sum_any(list, index.get(), value.get(), w, centre, nullptr, out + b * centre, centre);
        }
    }
    return 0;
}

// Of binary h, at any share of ones: the 16 sums of 4 units' weights are made once and looked up by every row ("four
// Russians", Arlazarov et al. 1970). Returns 1 where an entry is neither 0 nor 1.
extern "C" int protea_columns(const float* h, int64_t batch, int64_t centre, const float* w, int64_t size, float* out,
                              int threads) {
    constexpr int SECTION = 64, GROUPS = SECTION / 4;  // units whose sums lie in the first cache
    const int64_t sections = (centre + SECTION - 1) / SECTION;
    auto bits = room<uint64_t>(sections * batch);  // a bit for each unit that is on
    int other = 0;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static) reduction(| : other)
        for (int64_t b = 0; b < batch; b++)
            for (int64_t s = 0; s < sections; s++) {
                uint64_t on = 0;
                for (int64_t j = s * SECTION; j < std::min((s + 1) * SECTION, centre); j += L) {
                    const float* x = h + b * centre + j;
                    const int here = std::min<int64_t>(L, centre - j);
                    on |= (uint64_t)which(x, here, 0.0f) << (j % SECTION);
                    other |= (which(x, here, 0.0f) & which(x, here, 1.0f)) != 0;
                }
                bits[s * batch + b] = on;
            }
        auto turned = room<float>(SECTION * L), table = room<float>(GROUPS * 16 * L), sums = room<float>(batch * L);
#pragma omp for schedule(static)
        for (int64_t from = 0; from < (other ? 0 : size); from += L) {
            const int here = std::min<int64_t>(L, size - from);
            for (int64_t s = 0; s < sections; s++) {
                turn_tile(w + from * centre, centre, here, s * SECTION, SECTION, turned.get());
                for (int g = 0; g < GROUPS; g++) {
                    const float* r = &turned[4 * g * L];
                    float* t = &table[g * 16 * L];
                    const vecf a = load(r), b = load(r + L), c = load(r + 2 * L), d = load(r + 3 * L), ab = a + b;
                    const vecf low[8] = {vecf{}, a, b, ab, c, c + a, c + b, c + ab};
#pragma GCC unroll 8
                    for (int k = 0; k < 8; k++) store(t + k * L, low[k]), store(t + (8 + k) * L, low[k] + d);
                }
                for (int64_t b = 0; b < batch; b++) {
                    const uint64_t on = bits[s * batch + b];
                    vecf even = s ? load(&sums[b * L]) : vecf{}, odd{};
#pragma GCC unroll 8
                    for (int g = 0; g < GROUPS; g += 2) {
                        even += load(&table[(g * 16 + (on >> 4 * g & 15)) * L]);
                        odd += load(&table[((g + 1) * 16 + (on >> (4 * g + 4) & 15)) * L]);
                    }
                    store(&sums[b * L], even + odd);
                }
            }
            for (int64_t b = 0; b < batch; b++) {
                float* place = out + b * size + from;
                if (here == L)
                    store(place, load(&sums[b * L]));
                else
                    for (int i = 0; i < here; i++) place[i] = sums[b * L + i];
            }
        }
    }
    return other;
}

// Two phases, of which the second may be empty: rows of u, h and their weights.
extern "C" int protea_outer(const float* const* u, const float* const* h, const float* const* weight,
                            const int64_t* batch, int64_t size, int64_t centre, float* out, int64_t most, int threads) {
    if (count_nonzero(u[0], batch[0] * size) + count_nonzero(u[1], batch[1] * size) > most) return 1;
    const int64_t longest = std::max(batch[0], batch[1]);
#pragma omp parallel num_threads(threads)
    {
        auto index = room<int32_t>(L * longest);  // for each of L units: the rows where it is not zero, and how much
        auto value = room<float>(L * longest);
#pragma omp for schedule(static)
        for (int64_t from = 0; from < size; from += L) {
            const int here = std::min<int64_t>(L, size - from);
            for (int phase = 0; phase < 2; phase++) {
                int found[L] = {};
                for (int64_t b = 0; b < batch[phase]; b++) {
                    const float* x = u[phase] + b * size + from;
                    const float w = weight[phase][b];
                    for (uint32_t on = which(x, here, 0.0f); on; on &= on - 1) {
                        const int i = __builtin_ctz(on), at = i * longest + found[i]++;
                        index[at] = b;
                        value[at] = w * x[i];
                    }
                }
                for (int i = 0; i < here; i++) {
                    float* sum = out + (from + i) * centre;
                    sum_wide<false>(&index[i * longest], &value[i * longest], found[i], h[phase], centre,
                                    phase ? sum : nullptr, sum, centre);
                }
            }
        }
    }
    return 0;
}

extern "C" void protea_flip(const float* logit, int64_t batch, int64_t width, const int64_t* ids, uint64_t seed,
                            uint64_t draw, float* mean, float* out, int threads) {
    const int64_t quads = (width + 7) / 8;
    uint64_t key[10][2] = {{seed, 0}};
    for (int r = 1; r < 10; r++) {
        key[r][0] = key[r - 1][0] + 0x9E3779B97F4A7C15u;
        key[r][1] = key[r - 1][1] + 0xBB67AE8584CAA73Bu;
    }
#pragma omp parallel num_threads(threads)
    {
        auto words = room<int32_t>(8 * quads + L);
#pragma omp for schedule(static)
        for (int64_t b = 0; b < batch; b++) {
            for (int64_t q = 0; q < quads; q++) {
                uint64_t four[4];
                philox(key, (uint64_t)ids[b] * quads + q + 1, draw, four);
                memcpy(&words[8 * q], four, sizeof four);
            }
            const float* l = logit + b * width;
            for (int64_t i = 0; i < width; i += L) {
                vecf z = vecf{};
                if (i + L <= width)
                    z = load(l + i);
                else
                    for (int64_t k = 0; k < width - i; k++) z[k] = l[i + k];
                const vecf chance = logistic(z);
                const ivecf word = *reinterpret_cast<const ivecf*>(&words[i]) >> 8;
                const vecf coin = __builtin_convertvector(word, vecf) * 0x1p-24f + 0.5f;
                const vecf one = coin < chance ? all(1.0f) : vecf{};
                if (i + L <= width) {
                    store(out + b * width + i, one);
                    if (mean) store(mean + b * width + i, chance);
                } else
                    for (int64_t k = 0; k < width - i; k++) {
                        out[b * width + i + k] = one[k];
                        if (mean) mean[b * width + i + k] = chance[k];
                    }
            }
        }
    }
}

extern "C" void protea_less(float* g, int64_t size, int64_t centre, const float* a, const float* b, const float* c,
                            const float* d, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < size; i++) {
        float* row = g + i * centre;
        int64_t j = 0;
        for (; j + L <= centre; j += L) store(row + j, load(row + j) - a[i] * load(b + j) - c[i] * load(d + j));
        for (; j < centre; j++) row[j] = row[j] - a[i] * b[j] - c[i] * d[j];
    }
}

extern "C" double protea_square(const float* g, int64_t n, int threads) {
    std::vector<double> parts((n + CHUNK - 1) / CHUNK);  // added in order, whatever the threads
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t block = 0; block < (int64_t)parts.size(); block++) {
        const int64_t to = std::min(n, (block + 1) * CHUNK);
        int64_t i = block * CHUNK;
        vecf a{}, b{};
        for (; i + 2 * L <= to; i += 2 * L) {
            const vecf x = load(g + i), y = load(g + i + L);
            a += x * x, b += y * y;
        }
        double part = 0;
        for (int k = 0; k < L; k++) part += (double)a[k] + b[k];
        for (; i < to; i++) part += (double)g[i] * g[i];
        parts[block] = part;
    }
    double total = 0;
    for (double part : parts) total += part;
    return total;
}

// clip < 0 is none; without momentum v is not touched.
extern "C" void protea_ascend(float* p, const float* g, float* v, int64_t n, float rate, float momentum, float decay,
                              float clip, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t block = 0; block < (n + CHUNK - 1) / CHUNK; block++) {
        const int64_t to = std::min(n, (block + 1) * CHUNK);
        int64_t i = block * CHUNK;
        for (; i + L <= to; i += L) {
            vecf x = load(g + i);
            if (decay != 0) x -= decay * load(p + i);
            if (clip >= 0) x = minimum(maximum(x, all(-clip)), all(clip));
            if (momentum != 0) store(v + i, x += momentum * load(v + i));
            store(p + i, load(p + i) + rate * x);
        }
        for (; i < to; i++) {
            float x = g[i];
            if (decay != 0) x -= decay * p[i];
            if (clip >= 0) x = std::min(std::max(x, -clip), clip);
            if (momentum != 0) v[i] = x += momentum * v[i];
            p[i] += rate * x;
        }
    }
}
