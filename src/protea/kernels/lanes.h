// Reductions over the lanes of a vector, and rows that end within one.

#pragma once
#include "vectors.h"

template <class T> constexpr int W = Lanes<T>::count;

// The sum, or the like, of all N lanes, in each lane: halves turned onto each other again and again.
template <class I, int N, int HALF, class V, class Op> static inline V folded(V v, Op op) {
    V turned;
#ifdef __clang__
    for (int i = 0; i < N; i++) turned[i] = v[(i + HALF) % N];
#else
    I at = {};
    for (int i = 0; i < N; i++) at[i] = (i + HALF) % N;
    turned = __builtin_shuffle(v, at);
#endif
    v = op(v, turned);
    if constexpr (HALF > 1) v = folded<I, N, HALF / 2>(v, op);
    return v;
}
template <class T> using ivec_of = typename Lanes<T>::ivec;
template <class T> static inline vec_of<T> sum_of(vec_of<T> v) {
    return folded<ivec_of<T>, W<T>, W<T> / 2>(v, [](auto a, auto b) { return a + b; });
}
template <class T> static inline vec_of<T> max_of(vec_of<T> v) {
    return folded<ivec_of<T>, W<T>, W<T> / 2>(v, [](auto a, auto b) { return maximum(a, b); });
}
template <class T> static inline ivec_of<T> least_of(ivec_of<T> v) {
    return folded<ivec_of<T>, W<T>, W<T> / 2>(v, [](auto a, auto b) { return a < b ? a : b; });
}

// k entries, and `pad` up to `width`.
template <class T> static inline void copy(const T* from, T* to, int k, int width, T pad) {
    int i = 0;
    for (; i + W<T> <= k; i += W<T>) store(to + i, load(from + i));
    for (; i < k; i++) to[i] = from[i];
    for (; i < width; i++) to[i] = pad;
}
