// A plan: what one step of a decoder does, operation by operation. `serving/library.py` has the same structures.

#pragma once
#include <atomic>
#include <cstdint>

enum Kind {
    EMBED, NORM, LINEAR, GLU, REMEMBER, ATTEND, ADD, GATHER, SOFTCAP, CHOOSE, EXPERTS, COMBINE, REMEMBER_LATENT, ABSORB, EXPAND,
    CONVOLVE, SCAN, SCAN_HEADS, GATED_NORM
};

struct Op {
    int32_t kind, wanted;  // wanted: only the rows that were asked for
    int32_t n[14];
    float f[4];
    float* p[12];
};

struct Step {
    int32_t rows, n_wanted, n_ops, threads;
    const int32_t *tokens, *slots, *wanted;
    const Op* ops;
    std::atomic<int32_t>* next;  // for each operation, the next piece of work
    float* scores;               // for each thread: scores of the longest text, or inputs brought together
    int64_t scores_stride;
    const float* const* from;    // for each row, the states of its text before; null: none
    float* const* to;            // and after
};
