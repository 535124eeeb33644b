// Vectors of the machine's width, of floats and of doubles, with the exponential that -O3 does not vectorise.

#pragma once
#include <cstdint>
#include <cstring>
#include <initializer_list>

#if defined(__AVX512F__)
constexpr int WIDTH = 64;  // bytes of a vector
#elif defined(__AVX__)
constexpr int WIDTH = 32;
#else
constexpr int WIDTH = 16;
#endif

typedef float vecf __attribute__((vector_size(WIDTH), aligned(4), may_alias));
typedef double vecd __attribute__((vector_size(WIDTH), aligned(8), may_alias));
typedef int32_t ivecf __attribute__((vector_size(WIDTH), aligned(4), may_alias));
typedef int64_t ivecd __attribute__((vector_size(WIDTH), aligned(8), may_alias));

template <class T> struct Lanes;
template <> struct Lanes<float> { typedef vecf vec; typedef ivecf ivec; static constexpr int count = WIDTH / 4; };
template <> struct Lanes<double> { typedef vecd vec; typedef ivecd ivec; static constexpr int count = WIDTH / 8; };
template <class T> using vec_of = typename Lanes<T>::vec;

template <class T> static inline vec_of<T> load(const T* p) { return *reinterpret_cast<const vec_of<T>*>(p); }
static inline void store(float* p, vecf v) { *reinterpret_cast<vecf*>(p) = v; }
static inline void store(double* p, vecd v) { *reinterpret_cast<vecd*>(p) = v; }
template <class T> static inline vec_of<T> all(T x) { return x - vec_of<T>{}; }

static inline vecf maximum(vecf a, vecf b) { return a > b ? a : b; }
static inline vecd maximum(vecd a, vecd b) { return a > b ? a : b; }
static inline vecf minimum(vecf a, vecf b) { return a < b ? a : b; }
static inline vecd minimum(vecd a, vecd b) { return a < b ? a : b; }

// e^x = 2^n e^r with |r| <= ln 2 / 2. Adding 1.5 2^m rounds to the integer n, whose bits are then the sum's lowest.
static inline vecf exponential(vecf x) {  // Taylor to r^7: 1e-7 relative; -inf gives 1e-38
    x = minimum(maximum(x, all(-87.0f)), all(88.0f));
    vecf shifted = x * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;
    vecf r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vecf p = all(1.0f / 5040);
    for (float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = p * r + c;
    return p * (vecf)(((ivecf)shifted + 127) << 23);
}

static inline vecd exponential(vecd x) {  // Taylor to r^13: 2e-16 relative; -inf gives 3e-308
    x = minimum(maximum(x, all(-708.0)), all(709.0));
    vecd shifted = x * 1.4426950408889634 + 6755399441055744.0, n = shifted - 6755399441055744.0;
    vecd r = x - n * 0.693147180369123816490 - n * 1.90821492927058770002e-10;
    vecd p = all(1.0 / 6227020800.0);
    for (double c : {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040, 1.0 / 720,
                     1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5, 1.0, 1.0})
        p = p * r + c;
    return p * (vecd)(((ivecd)shifted + 1023) << 52);
}
