/* Vectors of floats, and the tiles of a matrix product that fit in registers. */

#ifndef VECTORS_H
#define VECTORS_H

#include <stdint.h>

#define PANEL 32 /* outputs of a matrix product that are summed side by side */
#ifdef __AVX512F__
#define VECTOR 16 /* floats of a register */
#define HEIGHT 12 /* rows at a time: 24 of 32 registers hold sums */
#elif defined(__AVX__)
#define VECTOR 8
#define HEIGHT 3 /* 12 of 16 registers */
#elif defined(__aarch64__)
#define VECTOR 4
#define HEIGHT 3 /* 24 of 32 registers */
#else
#define VECTOR 4
#define HEIGHT 1 /* 8 of 16 registers */
#endif
#define PARTS (PANEL / VECTOR)
typedef float vector __attribute__((vector_size(4 * VECTOR), aligned(4)));
typedef int32_t integers __attribute__((vector_size(4 * VECTOR), aligned(4)));

#define INLINE static inline __attribute__((always_inline))

typedef vector tile_sums[HEIGHT][PARTS];

/* sums += rows of x, `stride` floats apart, times a panel of weights [inputs, PANEL]. */
INLINE void multiply(const int rows, tile_sums sums, const float *x, int64_t stride,
                     const float *panel, int64_t inputs) {
    for (int64_t m = 0; m < inputs; m++) {
        const float *weights = panel + m * PANEL;
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
            for (int i = 0; i < PARTS; i++)
                sums[r][i] += x[r * stride + m] * *(const vector *)(weights + i * VECTOR);
    }
}

#endif
