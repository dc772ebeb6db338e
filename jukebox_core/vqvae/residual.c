/* The codec's residual block y = x + W2 relu(conv(W1, relu(x)) + b1) + b2, W1 of three dilated taps, and
 * its gradients. Arrays are [items, time, channels], channels a multiple of PANEL.
 *
 * Compiled on first use (jukebox_core/compiled.py); residual.py describes it. Weights are packed as
 * [panels, taps, inputs, PANEL]. A sum has one order, whatever the number of items or threads. */

#include <stdint.h>
#include <string.h>

#include "vectors.h"

#define CHUNK 96 /* points in time at once */

enum { RELU, PLUS, MASKED, GRADIENT };

/* `rows` points in time of one panel of outputs, from taps of x that are `apart` points apart.
 *
 * RELU: out = max(sums, 0). PLUS: out = other + sums. MASKED: out = sums where other > 0, else 0.
 * GRADIENT: MASKED, plus more. bias: null for zeros. */
INLINE void points(const int rows, const float *x, int64_t inputs, int taps, int64_t apart,
                   const float *panel, const float *bias, const int kind, const float *other,
                   const float *more, float *out, int64_t channels) {
    tile_sums sums;
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < PARTS; i++)
            sums[r][i] = bias ? *(const vector *)(bias + i * VECTOR) : (vector){0.0f};
    for (int tap = 0; tap < taps; tap++)
        multiply(rows, sums, x + tap * apart * inputs, inputs, panel + tap * inputs * PANEL,
                 inputs);
    const vector zero = {0.0f};
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < PARTS; i++) {
            const int64_t at = r * channels + i * VECTOR;
            vector sum = sums[r][i];
            if (kind == RELU) sum = (vector)((integers)sum & ~(sum < zero)); /* NaN stays */
            if (kind == PLUS) sum += *(const vector *)(other + at);
            if (kind == MASKED || kind == GRADIENT)
                sum = (vector)((integers)sum & ~(*(const vector *)(other + at) <= zero));
            if (kind == GRADIENT) sum += *(const vector *)(more + at);
            *(vector *)(out + at) = sum;
        }
}

/* All panels of `count` points in time. x [.., inputs]; out, other, more [.., outputs]. */
INLINE void layer(int64_t count, const float *x, int64_t inputs, int taps, int64_t apart,
                  const float *packed, const float *bias, const int kind, const float *other,
                  const float *more, float *out, int64_t outputs) {
    for (int64_t p = 0; p < outputs; p += PANEL) {
        const float *panel = packed + p * taps * inputs;
        int64_t t = 0;
#define POINTS(N)                                                                                  \
    points(N, x + t * inputs, inputs, taps, apart, panel, bias ? bias + p : 0, kind,               \
           other ? other + t * outputs + p : 0, more ? more + t * outputs + p : 0,                 \
           out + t * outputs + p, outputs)
        for (; t + HEIGHT <= count; t += HEIGHT) POINTS(HEIGHT);
#if HEIGHT > 4
        for (; t + 4 <= count; t += 4) POINTS(4);
#endif
        for (; t < count; t++) POINTS(1);
    }
}

/* out [inputs, outputs] += sum over time of x [.., inputs] g [.., outputs]. */
INLINE void outer_rows(const int rows, const float *x, int64_t inputs, const float *g,
                       int64_t outputs, int64_t count, float *out) {
    tile_sums sums = {{{0.0f}}};
    for (int64_t t = 0; t < count; t++)
        multiply(rows, sums, x + t * inputs, 1, g + t * outputs, 1);
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < PARTS; i++) *(vector *)(out + r * outputs + i * VECTOR) += sums[r][i];
}

static void outer(const float *x, int64_t inputs, const float *g, int64_t outputs, int64_t count,
                  float *out) {
    for (int64_t p = 0; p < outputs; p += PANEL) {
        int64_t a = 0;
        for (; a + HEIGHT <= inputs; a += HEIGHT)
            outer_rows(HEIGHT, x + a, inputs, g + p, outputs, count, out + a * outputs + p);
#if HEIGHT > 4
        for (; a + 4 <= inputs; a += 4)
            outer_rows(4, x + a, inputs, g + p, outputs, count, out + a * outputs + p);
#endif
        for (; a < inputs; a++)
            outer_rows(1, x + a, inputs, g + p, outputs, count, out + a * outputs + p);
    }
}

static void add_up(const float *g, int64_t width, int64_t count, float *out) {
    for (int64_t c = 0; c < width; c += VECTOR) {
        vector sum = {0.0f};
        for (int64_t t = 0; t < count; t++) sum += *(const vector *)(g + t * width + c);
        *(vector *)(out + c) += sum;
    }
}

static int64_t least(int64_t one, int64_t other) { return one < other ? one : other; }

/* x, y [items, time, width]; rectified: relu(x) with `dilation` zeros before and after each item;
 * hidden [items, time, inner]: what W2 multiplies. */
void residual_forward(const float *x, const float *w1, const float *b1, const float *w2,
                      const float *b2, float *rectified, float *hidden, float *y, int64_t items,
                      int64_t time, int64_t width, int64_t inner, int64_t dilation) {
    const int64_t chunks = (time + CHUNK - 1) / CHUNK, padded = (time + 2 * dilation) * width;
    const int64_t margin = dilation * width;
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < items * chunks; i++) {
            const int64_t n = i / chunks, t = i % chunks * CHUNK;
            const float *from = x + n * time * width;
            float *to = rectified + n * padded;
            const int64_t stop = least(time, t + CHUNK) * width;
            for (int64_t k = t * width; k < stop; k++)
                to[margin + k] = from[k] < 0.0f ? 0.0f : from[k];
            if (t == 0) memset(to, 0, margin * sizeof(float));
            if (stop == time * width) memset(to + margin + stop, 0, margin * sizeof(float));
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < items * chunks; i++) {
            const int64_t n = i / chunks, t = i % chunks * CHUNK;
            const int64_t count = least(CHUNK, time - t), at = n * time + t;
            float *inside = hidden + at * inner;
            layer(count, rectified + n * padded + t * width, width, 3, dilation, w1, b1, RELU, 0, 0,
                  inside, inner);
            layer(count, inside, inner, 1, 0, w2, b2, PLUS, x + at * width, 0, y + at * width,
                  width);
        }
    }
}

/* The gradient gx of x from gy and, per item, those of weights and biases, which the caller adds up
 * (null: not wanted): gw1 [items, 3, width, inner], gb1 [items, inner], gw2 [items, inner, width],
 * gb2 [items, width]. w1, w2: transposed, the taps of w1 reversed. inside: scratch for the gradient
 * before W1, [items, time + 2 dilation, inner]. */
void residual_backward(const float *gy, const float *w1, const float *w2, const float *rectified,
                       const float *hidden, float *inside, float *gx, float *gw1, float *gb1,
                       float *gw2, float *gb2, int64_t items, int64_t time, int64_t width,
                       int64_t inner, int64_t dilation) {
    const int64_t chunks = (time + CHUNK - 1) / CHUNK, points = time + 2 * dilation;
    const int64_t margin = dilation * inner;
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < items * chunks; i++) {
            const int64_t n = i / chunks, t = i % chunks * CHUNK;
            const int64_t count = least(CHUNK, time - t), at = n * time + t;
            float *start = inside + n * points * inner;
            layer(count, gy + at * width, width, 1, 0, w2, 0, MASKED, hidden + at * inner, 0,
                  start + margin + t * inner, inner);
            if (t == 0) memset(start, 0, margin * sizeof(float));
            if (t + count == time)
                memset(start + margin + time * inner, 0, margin * sizeof(float));
        }
#pragma omp for schedule(static) nowait
        for (int64_t i = 0; i < items * chunks; i++) {
            const int64_t n = i / chunks, t = i % chunks * CHUNK;
            const int64_t count = least(CHUNK, time - t), at = n * time + t;
            layer(count, inside + (n * points + t) * inner, inner, 3, dilation, w1, 0, GRADIENT,
                  rectified + (n * points + dilation + t) * width, gy + at * width,
                  gx + at * width, width);
        }
#pragma omp for collapse(2) schedule(static)
        for (int64_t n = 0; n < (gw1 ? items : 0); n++)
            for (int part = 0; part < 4; part++) /* a tap of W1, or W2 */
                for (int64_t t = 0; t < time; t += CHUNK) {
                    const int64_t count = least(CHUNK, time - t), at = n * time + t;
                    const float *own = inside + (n * points + dilation + t) * inner;
                    if (part < 3) {
                        const float *tap = rectified + (n * points + t + part * dilation) * width;
                        outer(tap, width, own, inner, count, gw1 + (n * 3 + part) * width * inner);
                    } else {
                        outer(hidden + at * inner, inner, gy + at * width, width, count,
                              gw2 + n * inner * width);
                        add_up(gy + at * width, width, count, gb2 + n * width);
                    }
                    if (part == 0) add_up(own, inner, count, gb1 + n * inner);
                }
    }
}
