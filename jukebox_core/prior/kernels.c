/* The operations of a decoding step, in one pass each.
 *
 * Compiled on first use (jukebox_core/compiled.py); every function has a PyTorch twin in kernels.py.
 * Activations and caches are float or bfloat16 (uint16_t: the upper half of a float), sums are float
 * or exact. Threads are OpenMP's, the same pool that PyTorch uses. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "vectors.h"

typedef uint16_t bf16;

static inline float from_bf16(bf16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* Round to nearest, ties to even. NaN is not preserved: the caller's inputs are finite. */
static inline bf16 to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (bf16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

static inline float from_float(float x) { return x; }
static inline float to_float(float x) { return x; }

#define CHUNK 256 /* components of a value vector accumulated in registers */
#define MAX_WIDTH 1024

/* One position of B sequences: stores key and value, then attends.
 *
 * qkv: [B, 3 * heads * width]. keys, values: the part written to, [B, heads, rows, width], row
 * `row`. read_keys, read_values: the part attended to, its first `count` rows (none: zeros).
 * out: [B, heads * width]. scores: scratch, [B * heads, rows]. */
#define DEFINE_ATTEND(NAME, TYPE, FROM, TO)                                                        \
    void NAME(const TYPE *qkv, TYPE *keys, TYPE *values, const TYPE *read_keys,                    \
              const TYPE *read_values, TYPE *out, float *scores, int64_t batch, int64_t heads,     \
              int64_t width, int64_t rows, int64_t row, int64_t count) {                           \
        const float scale = 1.0f / sqrtf((float)width);                                            \
        const int64_t inner = heads * width;                                                       \
        _Pragma("omp parallel for schedule(static)")                                               \
        for (int64_t i = 0; i < batch * heads; i++) {                                              \
            const int64_t b = i / heads, h = i % heads;                                            \
            const TYPE *query = qkv + b * 3 * inner + h * width;                                   \
            const int64_t at = (i * rows + row) * width;                                           \
            memcpy(keys + at, query + inner, width * sizeof(TYPE));                                \
            memcpy(values + at, query + 2 * inner, width * sizeof(TYPE));                          \
            TYPE *result = out + b * inner + h * width;                                            \
            if (count == 0) {                                                                      \
                for (int64_t d = 0; d < width; d++) result[d] = TO(0.0f);                          \
                continue;                                                                          \
            }                                                                                      \
            float q[MAX_WIDTH];                                                                    \
            for (int64_t d = 0; d < width; d++) q[d] = scale * FROM(query[d]);                     \
            const TYPE *key = read_keys + i * rows * width;                                        \
            const TYPE *value = read_values + i * rows * width;                                    \
            float *score = scores + i * rows;                                                      \
            float largest = -3.4e38f;                                                              \
            for (int64_t j = 0; j < count; j++) {                                                  \
                float sum = 0.0f;                                                                  \
                for (int64_t d = 0; d < width; d++) sum += q[d] * FROM(key[j * width + d]);        \
                score[j] = sum;                                                                    \
                largest = sum > largest ? sum : largest;                                           \
            }                                                                                      \
            float total = 0.0f;                                                                    \
            for (int64_t j = 0; j < count; j++) {                                                  \
                score[j] = expf(score[j] - largest);                                               \
                total += score[j];                                                                 \
            }                                                                                      \
            const float weight = 1.0f / total;                                                     \
            int64_t d = 0;                                                                         \
            for (; d + CHUNK <= width; d += CHUNK) {                                               \
                float sum[CHUNK] = {0};                                                            \
                for (int64_t j = 0; j < count; j++) {                                              \
                    const TYPE *v = value + j * width + d;                                         \
                    for (int64_t k = 0; k < CHUNK; k++) sum[k] += score[j] * FROM(v[k]);           \
                }                                                                                  \
                for (int64_t k = 0; k < CHUNK; k++) result[d + k] = TO(weight * sum[k]);           \
            }                                                                                      \
            for (; d < width; d++) {                                                               \
                float sum = 0.0f;                                                                  \
                for (int64_t j = 0; j < count; j++) sum += score[j] * FROM(value[j * width + d]);  \
                result[d] = TO(weight * sum);                                                      \
            }                                                                                      \
        }                                                                                          \
    }

DEFINE_ATTEND(attend_float, float, from_float, to_float)
DEFINE_ATTEND(attend_bf16_plain, bf16, from_bf16, to_bf16)

#if defined(__AVX512BF16__) && defined(__AVX512F__)
#include <immintrin.h>

/* attend_bf16_plain's loop body for a constant width, which keeps all sums in registers. */
INLINE void attend_one(const int width, const bf16 *query, const bf16 *key, const bf16 *value,
                       bf16 *result, float *score, int64_t count) {
    const float scale = 1.0f / sqrtf((float)width);
    __m512bh q[8];
    for (int d = 0; d < width / 32; d++) q[d] = (__m512bh)_mm512_loadu_si512(query + 32 * d);
    float largest = -3.4e38f;
    for (int64_t j = 0; j < count; j++) {
        __m512 sums[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
        for (int d = 0; d < width / 32; d++) {
            const __m512bh k = (__m512bh)_mm512_loadu_si512(key + j * width + 32 * d);
            sums[d % 2] = _mm512_dpbf16_ps(sums[d % 2], q[d], k);
        }
        score[j] = scale * _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1]));
        largest = score[j] > largest ? score[j] : largest;
    }
    float total = 0.0f;
    for (int64_t j = 0; j < count; j++) {
        score[j] = expf(score[j] - largest);
        total += score[j];
    }
    __m512 sums[16];
    for (int d = 0; d < width / 16; d++) sums[d] = _mm512_setzero_ps();
    for (int64_t j = 0; j < count; j++) {
        const __m512 p = _mm512_set1_ps(score[j]);
        for (int d = 0; d < width / 16; d++) {
            const __m256i half = _mm256_loadu_si256((const __m256i *)(value + j * width + 16 * d));
            const __m512i bits = _mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
            sums[d] = _mm512_fmadd_ps(p, _mm512_castsi512_ps(bits), sums[d]);
        }
    }
    const __m512 weight = _mm512_set1_ps(1.0f / total);
    for (int d = 0; d < width / 16; d++) {
        const __m256bh half = _mm512_cvtneps_pbh(_mm512_mul_ps(weight, sums[d]));
        _mm256_storeu_si256((__m256i *)(result + 16 * d), (__m256i)half);
    }
}

void attend_bf16(const bf16 *qkv, bf16 *keys, bf16 *values, const bf16 *read_keys,
                 const bf16 *read_values, bf16 *out, float *scores, int64_t batch, int64_t heads,
                 int64_t width, int64_t rows, int64_t row, int64_t count) {
    if (count == 0 || (width != 64 && width != 128 && width != 256)) {
        attend_bf16_plain(qkv, keys, values, read_keys, read_values, out, scores, batch, heads,
                          width, rows, row, count);
        return;
    }
    const int64_t inner = heads * width;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < batch * heads; i++) {
        const int64_t b = i / heads, h = i % heads;
        const bf16 *query = qkv + b * 3 * inner + h * width;
        const int64_t at = (i * rows + row) * width, from = i * rows * width;
        memcpy(keys + at, query + inner, width * sizeof(bf16));
        memcpy(values + at, query + 2 * inner, width * sizeof(bf16));
        bf16 *result = out + b * inner + h * width;
        float *score = scores + i * rows;
        const bf16 *key = read_keys + from, *value = read_values + from;
        if (width == 256)
            attend_one(256, query, key, value, result, score, count);
        else if (width == 128)
            attend_one(128, query, key, value, result, score, count);
        else
            attend_one(64, query, key, value, result, score, count);
    }
}
#else
void attend_bf16(const bf16 *qkv, bf16 *keys, bf16 *values, const bf16 *read_keys,
                 const bf16 *read_values, bf16 *out, float *scores, int64_t batch, int64_t heads,
                 int64_t width, int64_t rows, int64_t row, int64_t count) {
    attend_bf16_plain(qkv, keys, values, read_keys, read_values, out, scores, batch, heads, width,
                      rows, row, count);
}
#endif

/* out = (x - mean) / sqrt(variance + epsilon) of every row of x [B, width]. */
#define DEFINE_NORM(NAME, TYPE, TO)                                                                \
    void NAME(const float *x, TYPE *out, int64_t batch, int64_t width, float epsilon) {            \
        _Pragma("omp parallel for schedule(static)")                                               \
        for (int64_t b = 0; b < batch; b++) {                                                      \
            const float *row = x + b * width;                                                      \
            float sum = 0.0f, squares = 0.0f;                                                      \
            for (int64_t d = 0; d < width; d++) sum += row[d];                                     \
            const float mean = sum / (float)width;                                                 \
            for (int64_t d = 0; d < width; d++) {                                                  \
                const float centred = row[d] - mean;                                               \
                squares += centred * centred;                                                      \
            }                                                                                      \
            const float inverse = 1.0f / sqrtf(squares / (float)width + epsilon);                  \
            for (int64_t d = 0; d < width; d++)                                                    \
                out[b * width + d] = TO((row[d] - mean) * inverse);                                \
        }                                                                                          \
    }

DEFINE_NORM(norm_float, float, to_float)
DEFINE_NORM(norm_bf16, bf16, to_bf16)

/* Matrix products. Weights are packed in panels of PANEL outputs, zero-padded. A thread takes whole
 * panels, which stay in its cache while all rows of x pass. An output is summed in one order,
 * whatever the number of rows. */
enum { STORE, SWISH, ADD };

/* In float: [panels, inputs, 32]. */
#define BLOCK 64 /* terms of a partial sum */

void pack_float(const float *weight, float *packed, int64_t outputs, int64_t inputs) {
    const int64_t panels = (outputs + PANEL - 1) / PANEL;
#pragma omp parallel for schedule(static)
    for (int64_t p = 0; p < panels; p++)
        for (int64_t k = 0; k < inputs; k++)
            for (int64_t j = 0; j < PANEL; j++) {
                const int64_t output = p * PANEL + j;
                packed[(p * inputs + k) * PANEL + j] =
                    output < outputs ? weight[output * inputs + k] : 0.0f;
            }
}

/* While a panel is computed, the next one is brought into the L2 cache, a few cache lines at a time:
 * many at once would hold up the products. Not for one row, whose products wait for the memory. */
#define LINE 64 /* bytes of a cache line */
#define LINES 24 /* fetched at once, at most */

/* Steps from one fetch to the next, a power of two, if `lines` are fetched in so many steps. */
static inline int64_t between(int64_t steps, int64_t lines) {
    int64_t few = BLOCK;
    while (few > 1 && few * lines > LINES * steps) few /= 2;
    return few;
}

/* The part of the next panel that is fetched meanwhile. */
typedef struct {
    const char *from;
    int64_t lines;
} coming;

/* Of panel p, tile t; `bytes` of a panel. */
static inline coming after(const void *panel, int64_t bytes, int64_t batch, int64_t p,
                           int64_t panels, int64_t t, int64_t tiles) {
    const int64_t lines = bytes / LINE, line = lines * t / tiles;
    const int64_t more = batch > 1 && p + 1 < panels;
    return (coming){(const char *)panel + bytes + LINE * line,
                    more ? lines * (t + 1) / tiles - line : 0};
}

/* Steps `step` to `stop` of `steps`: their share of the lines. */
static inline void fetch(coming next, int64_t step, int64_t stop, int64_t steps) {
    const int64_t end = stop * next.lines / steps;
    for (int64_t line = step * next.lines / steps; line < end; line++)
        __builtin_prefetch(next.from + LINE * line, 0, 2);
}

static inline vector choose(integers mask, vector one, vector other) {
    return (vector)((mask & (integers)one) | (~mask & (integers)other));
}

/* x sigmoid(x); exp to about 2 ulp: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2]. */
static inline vector swish(vector x) {
    const vector zero = {0.0f}, large = zero + 87.0f;
    vector y = -x;
    y = choose(y > large, large, choose(y < -large, -large, y));
    const vector scaled = y * 1.44269504f;
    const vector half = choose(scaled < zero, zero - 0.5f, zero + 0.5f);
    const vector rounded = scaled + half;
    integers n;
    vector whole;
    for (int i = 0; i < VECTOR; i++) n[i] = (int32_t)rounded[i], whole[i] = (float)n[i];
    const vector r = (y - whole * 0.693359375f) + whole * 2.12194440e-4f;
    vector p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return x / (1.0f + p * (vector)((n + 127) << 23));
}

/* Writes the first `left` sums of a panel: plain, as x sigmoid(x), or added. */
INLINE void put(const vector *sums, float *to, int64_t left, int post) {
    vector values[PARTS];
    for (int i = 0; i < PARTS; i++) values[i] = post == SWISH ? swish(sums[i]) : sums[i];
    if (left < PANEL) {
        float end[PANEL];
        memcpy(end, values, sizeof end);
        for (int64_t j = 0; j < left; j++) to[j] = post == ADD ? to[j] + end[j] : end[j];
        return;
    }
    for (int i = 0; i < PARTS; i++) {
        vector *place = (vector *)(to + i * VECTOR);
        *place = post == ADD ? *place + values[i] : values[i];
    }
}

/* Sums of `rows` rows. */
INLINE void float_tile(const int rows, const float *x, const float *panel, const float *bias,
                       float *out, int64_t inputs, int64_t outputs, int64_t left, int post,
                       coming next) {
    tile_sums sums, part;
    float start[PANEL] = {0};
    memcpy(start, bias, left * sizeof(float));
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < PARTS; i++) sums[r][i] = *(const vector *)(start + i * VECTOR);
    const int64_t step = between(inputs, next.lines);
    for (int64_t k = 0; k < inputs; k += BLOCK) {
        const int64_t stop = k + BLOCK < inputs ? k + BLOCK : inputs;
        for (int r = 0; r < rows; r++)
            for (int i = 0; i < PARTS; i++) part[r][i] = (vector){0.0f};
        for (int64_t m = k; m < stop; m += step) {
            const int64_t end = m + step < stop ? m + step : stop;
            fetch(next, m, end, inputs);
            multiply(rows, part, x + m, inputs, panel + m * PANEL, end - m);
        }
        for (int r = 0; r < rows; r++)
            for (int i = 0; i < PARTS; i++) sums[r][i] += part[r][i];
    }
    for (int r = 0; r < rows; r++) put(sums[r], out + r * outputs, left, post);
}

/* out = x W^T + bias, all rows, or x sigmoid(x) of it, or added to out. x [B, inputs]. */
void product_float(const float *x, const float *packed, const float *bias, float *out,
                   int64_t batch, int64_t inputs, int64_t outputs, int64_t post) {
    const int64_t panels = (outputs + PANEL - 1) / PANEL;
    const int64_t tiles = (batch + HEIGHT - 1) / HEIGHT; /* of nearly equal height */
#pragma omp parallel for schedule(static)
    for (int64_t p = 0; p < panels; p++) {
        const float *panel = packed + p * inputs * PANEL, *begin = bias + p * PANEL;
        const int64_t left = outputs - p * PANEL < PANEL ? outputs - p * PANEL : PANEL;
        for (int64_t t = 0; t < tiles; t++) {
            const int64_t b = batch * t / tiles, rows = batch * (t + 1) / tiles - b;
            const float *from = x + b * inputs;
            float *to = out + b * outputs + p * PANEL;
            const coming next = after(panel, inputs * PANEL * 4, batch, p, panels, t, tiles);
            switch (rows) {
#define ROWS(N)                                                                                    \
    case N:                                                                                        \
        float_tile(N, from, panel, begin, to, inputs, outputs, left, (int)post, next);             \
        break;
                ROWS(1)
#if HEIGHT > 1
                ROWS(2) ROWS(3)
#endif
#if HEIGHT > 3
                ROWS(4) ROWS(5) ROWS(6) ROWS(7) ROWS(8) ROWS(9) ROWS(10) ROWS(11) ROWS(12)
#endif
            }
        }
    }
}

/* In integers: weights and rows of x are integers up to +-LIMIT times a step; sums are exact. Packed
 * weights: [panels, inputs / 4, 32, 4], inputs padded to a multiple of 8. Rows are stored unsigned,
 * plus LIMIT + 1; sums start at minus what this adds. Processors that add four 8-bit products to a
 * 32-bit sum (VNNI) have a LIMIT of 127; for others it is 63, so that four products fit in 16 bits. */
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__) || defined(__AVX2__)
#include <immintrin.h>
#endif
#if defined(__AVX512VNNI__)
typedef __m512i quads;
#define LIMIT 127
#define QUADS 16 /* sums of a register */
#define ROWS_AT_ONCE 12 /* rows of x at a time: 24 of 32 registers hold sums */
static inline quads repeat(int32_t x) { return _mm512_set1_epi32(x); }
static inline quads four(quads sum, quads x, const int8_t *w) {
    return _mm512_dpbusd_epi32(sum, x, _mm512_loadu_si512(w));
}
#elif defined(__AVXVNNI__)
typedef __m256i quads;
#define LIMIT 127
#define QUADS 8
#define ROWS_AT_ONCE 3 /* 12 of 16 registers */
static inline quads repeat(int32_t x) { return _mm256_set1_epi32(x); }
static inline quads four(quads sum, quads x, const int8_t *w) {
    return _mm256_dpbusd_avx_epi32(sum, x, _mm256_loadu_si256((const __m256i *)w));
}
#elif defined(__AVX512BW__)
typedef __m512i quads;
#define LIMIT 63
#define QUADS 16
#define ROWS_AT_ONCE 12
static inline quads repeat(int32_t x) { return _mm512_set1_epi32(x); }
static inline quads eight(quads sum, quads x, quads y, const int8_t *w) {
    const quads first = _mm512_maddubs_epi16(x, _mm512_loadu_si512(w));
    const quads second = _mm512_maddubs_epi16(y, _mm512_loadu_si512(w + 4 * PANEL));
    const quads both = _mm512_add_epi16(first, second);
    return _mm512_add_epi32(sum, _mm512_madd_epi16(both, _mm512_set1_epi16(1)));
}
#elif defined(__AVX2__)
typedef __m256i quads;
#define LIMIT 63
#define QUADS 8
#define ROWS_AT_ONCE 4
static inline quads repeat(int32_t x) { return _mm256_set1_epi32(x); }
static inline quads eight(quads sum, quads x, quads y, const int8_t *w) {
    const __m256i *at = (const __m256i *)w, *next = (const __m256i *)(w + 4 * PANEL);
    const quads first = _mm256_maddubs_epi16(x, _mm256_loadu_si256(at));
    const quads second = _mm256_maddubs_epi16(y, _mm256_loadu_si256(next));
    const quads both = _mm256_add_epi16(first, second);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(both, _mm256_set1_epi16(1)));
}
#endif

#if LIMIT == 127
static inline quads eight(quads sum, quads x, quads y, const int8_t *w) {
    return four(four(sum, x, w), y, w + 4 * PANEL);
}
#endif

#ifdef LIMIT
int integer_limit(void) { return LIMIT; }

/* Returns the step: a row of x divided by it, rounded, LIMIT + 1 higher, padded. */
static float quantise(const float *x, uint8_t *out, int64_t inputs, int64_t padded) {
    int32_t highest = 0; /* bits of magnitudes are in the order of their values */
    for (int64_t k = 0; k < inputs; k++) {
        int32_t bits;
        memcpy(&bits, x + k, 4);
        bits &= 0x7fffffff;
        highest = bits > highest ? bits : highest;
    }
    float largest;
    memcpy(&largest, &highest, 4);
    if (highest >= 0x7f800000) { /* infinite or NaN: the row's products are NaN */
        memset(out, LIMIT + 1, padded);
        return NAN;
    }
    /* In double, so that no compiler flag changes a digit; rows below 1e-30 become zeros. */
    const float inverse = largest > 1e-30f ? (float)(LIMIT / (double)largest) : 0.0f;
    for (int64_t k = 0; k < inputs; k++)
        out[k] = (uint8_t)((int32_t)rintf(x[k] * inverse) + LIMIT + 1);
    memset(out + inputs, LIMIT + 1, padded - inputs);
    return (float)((double)largest / LIMIT);
}

INLINE void integer_tile(const int rows, const uint8_t *x, const float *steps, const int8_t *panel,
                         const int32_t *start, const float *sizes, const float *bias, float *out,
                         int64_t padded, int64_t outputs, int64_t left, int post,
                         coming next) {
    quads sums[ROWS_AT_ONCE][PANEL / QUADS];
    for (int r = 0; r < rows; r++) memcpy(sums[r], start, sizeof sums[r]);
    const int64_t step = 8 * between(padded / 8, next.lines);
    for (int64_t k = 0; k < padded; k += step) {
        const int64_t stop = k + step < padded ? k + step : padded;
        fetch(next, k, stop, padded);
        for (int64_t m = k; m < stop; m += 8)
#pragma GCC unroll 12
            for (int r = 0; r < rows; r++) {
                int32_t halves[2];
                memcpy(halves, x + r * padded + m, 8);
                const quads first = repeat(halves[0]), second = repeat(halves[1]);
#pragma GCC unroll 8
                for (int i = 0; i < PANEL / QUADS; i++)
                    sums[r][i] =
                        eight(sums[r][i], first, second, panel + m * PANEL + 4 * QUADS * i);
            }
    }
    for (int r = 0; r < rows; r++) {
        int32_t whole[PANEL];
        memcpy(whole, sums[r], sizeof whole);
        float values[PANEL];
        for (int j = 0; j < PANEL; j++)
            values[j] = bias[j] + (float)whole[j] * (steps[r] * sizes[j]);
        put((const vector *)values, out + r * outputs, left, post);
    }
}

/* As product_float. packed, start, sizes (the weights' steps) and bias are padded to whole panels.
 * Scratch: rows [B, padded], steps [B]. */
void product_integer(const float *x, const int8_t *packed, const int32_t *start,
                     const float *sizes, const float *bias, float *out, uint8_t *rounded,
                     float *steps, int64_t batch, int64_t inputs, int64_t padded, int64_t outputs,
                     int64_t post) {
    const int64_t panels = (outputs + PANEL - 1) / PANEL;
    const int64_t tiles = (batch + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t b = 0; b < batch; b++)
            steps[b] = quantise(x + b * inputs, rounded + b * padded, inputs, padded);
#pragma omp for schedule(static)
        for (int64_t p = 0; p < panels; p++) {
            const int8_t *panel = packed + p * padded * PANEL;
            const int64_t left = outputs - p * PANEL < PANEL ? outputs - p * PANEL : PANEL;
            for (int64_t t = 0; t < tiles; t++) {
                const int64_t b = batch * t / tiles, rows = batch * (t + 1) / tiles - b;
                const coming next = after(panel, padded * PANEL, batch, p, panels, t, tiles);
                switch (rows) {
#define INTEGER_ROWS(N)                                                                            \
    case N:                                                                                        \
        integer_tile(N, rounded + b * padded, steps + b, panel, start + p * PANEL,                 \
                     sizes + p * PANEL, bias + p * PANEL, out + b * outputs + p * PANEL, padded,   \
                     outputs, left, (int)post, next);                                              \
        break;
                    INTEGER_ROWS(1)
                    INTEGER_ROWS(2) INTEGER_ROWS(3)
#if ROWS_AT_ONCE > 3
                    INTEGER_ROWS(4)
#endif
#if ROWS_AT_ONCE > 4
                    INTEGER_ROWS(5) INTEGER_ROWS(6) INTEGER_ROWS(7) INTEGER_ROWS(8)
                    INTEGER_ROWS(9) INTEGER_ROWS(10) INTEGER_ROWS(11) INTEGER_ROWS(12)
#endif
                }
            }
        }
    }
}

#else
int integer_limit(void) { return 0; }
#endif

/* In bfloat16 with float sums, where the processor multiplies bfloat16 vectors:
 * [panels, inputs / 2, 32, 2]. */
#if defined(__AVX512BF16__) && defined(__AVX512F__)
#define TILE 12 /* rows of x at a time: 24 of 32 registers hold sums */

int has_product_bf16(void) { return 1; }

void pack_bf16(const bf16 *weight, bf16 *packed, int64_t outputs, int64_t inputs) {
    const int64_t panels = (outputs + PANEL - 1) / PANEL;
#pragma omp parallel for schedule(static)
    for (int64_t p = 0; p < panels; p++)
        for (int64_t k = 0; k < inputs / 2; k++)
            for (int64_t j = 0; j < PANEL; j++)
                for (int64_t i = 0; i < 2; i++) {
                    const int64_t output = p * PANEL + j;
                    packed[((p * (inputs / 2) + k) * PANEL + j) * 2 + i] =
                        output < outputs ? weight[output * inputs + 2 * k + i] : 0;
                }
}

/* exp(x) to about 2 ulp: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2]. */
static inline __m512 exp512(__m512 x) {
    x = _mm512_max_ps(_mm512_min_ps(x, _mm512_set1_ps(88.0f)), _mm512_set1_ps(-87.0f));
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(_mm512_mul_ps(p, r), r, _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(p, n);
}

/* Sixteen sums to their place: rounded, rounded after x sigmoid(x), or added to floats. */
static inline void finish(__m512 sum, int post, void *out, int64_t at, __mmask16 mask) {
    if (post == ADD) {
        float *to = (float *)out + at;
        _mm512_mask_storeu_ps(to, mask, _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, to)));
        return;
    }
    if (post == SWISH) {
        const __m512 one = _mm512_set1_ps(1.0f);
        const __m512 e = exp512(_mm512_sub_ps(_mm512_setzero_ps(), sum));
        sum = _mm512_div_ps(sum, _mm512_add_ps(one, e));
    }
    _mm256_mask_storeu_epi16((bf16 *)out + at, mask, (__m256i)_mm512_cvtneps_pbh(sum));
}

INLINE void tile(const int rows, const bf16 *x, const bf16 *panel, const float *bias, void *out,
                 int64_t inputs, int64_t outputs, int64_t first, int post, coming next) {
    __m512 sums[TILE][2];
    const int64_t left = outputs - first, pairs = inputs / 2;
    const __mmask16 masks[2] = {left >= 16 ? 0xffff : (1u << left) - 1,
                                left >= 32 ? 0xffff : left > 16 ? (1u << (left - 16)) - 1 : 0};
    const __m512 low = _mm512_maskz_loadu_ps(masks[0], bias + first);
    const __m512 high = _mm512_maskz_loadu_ps(masks[1], bias + first + 16);
    for (int r = 0; r < rows; r++) sums[r][0] = low, sums[r][1] = high;
    const int64_t step = between(pairs, next.lines);
    for (int64_t k = 0; k < pairs; k += step) {
        const int64_t stop = k + step < pairs ? k + step : pairs;
        fetch(next, k, stop, pairs);
        for (int64_t m = k; m < stop; m++) {
            const __m512bh w0 = (__m512bh)_mm512_loadu_si512(panel + m * 2 * PANEL);
            const __m512bh w1 = (__m512bh)_mm512_loadu_si512(panel + m * 2 * PANEL + PANEL);
#pragma GCC unroll 12
            for (int r = 0; r < rows; r++) {
                int32_t pair;
                memcpy(&pair, x + r * inputs + 2 * m, 4);
                const __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
                sums[r][0] = _mm512_dpbf16_ps(sums[r][0], both, w0);
                sums[r][1] = _mm512_dpbf16_ps(sums[r][1], both, w1);
            }
        }
    }
    for (int r = 0; r < rows; r++) {
        finish(sums[r][0], post, out, r * outputs + first, masks[0]);
        finish(sums[r][1], post, out, r * outputs + first + 16, masks[1]);
    }
}

/* out = x W^T + bias, all rows: x [B, inputs] (even), bias [outputs] floats. */
void product_bf16(const bf16 *x, const bf16 *packed, const float *bias, void *out, int64_t batch,
                  int64_t inputs, int64_t outputs, int64_t post) {
    const int64_t panels = (outputs + PANEL - 1) / PANEL;
    const int64_t size = post == ADD ? sizeof(float) : sizeof(bf16);
#pragma omp parallel for schedule(static)
    for (int64_t p = 0; p < panels; p++) {
        const bf16 *panel = packed + p * inputs * PANEL;
        /* Tiles of nearly equal height: 16 rows are 8 + 8 and not 12 + 4. */
        const int64_t tiles = (batch + TILE - 1) / TILE;
        for (int64_t t = 0; t < tiles; t++) {
            const int64_t b = batch * t / tiles, rows = batch * (t + 1) / tiles - b;
            const bf16 *from = x + b * inputs;
            void *to = (char *)out + b * outputs * size;
            const coming next = after(panel, inputs * PANEL * 2, batch, p, panels, t, tiles);
            switch (rows) {
#define CASE(N)                                                                                    \
    case N:                                                                                        \
        tile(N, from, panel, bias, to, inputs, outputs, p * PANEL, (int)post, next);               \
        break;
                CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
                CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
            }
        }
    }
}
#else
int has_product_bf16(void) { return 0; }
#endif

/* Sums over groups of pairs, out[b, g, i] = sum of one[b, first, i] other[b, second, i] shares over
 * the pairs offsets[g] .. offsets[g + 1] of group g. one, other: [blocks, codes, 4], so narrow that a
 * block of both stays in the fastest cache; shares: of every pair, or null. */
typedef double lanes __attribute__((vector_size(32), aligned(8)));

INLINE lanes group_mass(const lanes *one, const lanes *other, const int32_t *first,
                        const int32_t *second, const double *shares, int64_t e, int64_t stop) {
    lanes sums[4] = {{0.0}}; /* they do not wait for each other */
    for (; e + 4 <= stop; e += 4)
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            const lanes product = one[first[e + i]] * other[second[e + i]];
            sums[i] += shares ? product * shares[e + i] : product;
        }
    for (; e < stop; e++) {
        const lanes product = one[first[e]] * other[second[e]];
        sums[0] += shares ? product * shares[e] : product;
    }
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

void pair_mass(const lanes *one, const lanes *other, const int32_t *first, const int32_t *second,
               const double *shares, const int64_t *offsets, lanes *out, int64_t groups,
               int64_t blocks, int64_t codes) {
#pragma omp parallel for collapse(2) schedule(dynamic, 16)
    for (int64_t b = 0; b < blocks; b++)
        for (int64_t g = 0; g < groups; g++) {
            const lanes *x = one + b * codes, *y = other + b * codes;
            const int64_t start = offsets[g], stop = offsets[g + 1];
            out[b * groups + g] = shares ? group_mass(x, y, first, second, shares, start, stop)
                                         : group_mass(x, y, first, second, NULL, start, stop);
        }
}

/* A pair of each of the groups drawn[n]: places[n] with probability ~ one[n, first] other[n, second]
 * shares, by inversion at uniform[n] of the sum of these weights. No group is empty. */
void draw_pairs(const double *one, const double *other, const int32_t *first,
                const int32_t *second, const double *shares, const int64_t *offsets,
                const int64_t *drawn, const double *uniform, int64_t *places, int64_t count,
                int64_t codes) {
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t n = 0; n < count; n++) {
        const double *x = one + n * codes, *y = other + n * codes;
        const int64_t start = offsets[drawn[n]], stop = offsets[drawn[n] + 1];
        double total = 0.0, sum = 0.0;
        for (int64_t e = start; e < stop; e++)
            total += x[first[e]] * y[second[e]] * (shares ? shares[e] : 1.0);
        places[n] = start;
        for (int64_t e = start; e < stop; e++) {
            const double weight = x[first[e]] * y[second[e]] * (shares ? shares[e] : 1.0);
            if (weight > 0.0) places[n] = e; /* rounding may leave the sum below the total */
            sum += weight;
            if (sum > uniform[n] * total || sum >= total) break;
        }
    }
}

/* x^exponent of x in [2^-126, 1]: 2^(exponent log2 x), zero below 2^-126. The relative error is some
 * 1e-7 times 1 + exponent. */
static inline float power(float x, float exponent) {
    int32_t bits;
    memcpy(&bits, &x, 4);
    const int32_t whole = (bits - 0x3f3504f3) >> 23; /* mantissa between 1/sqrt 2 and sqrt 2 */
    bits -= whole << 23;
    float mantissa;
    memcpy(&mantissa, &bits, 4);
    const float s = (mantissa - 1.0f) / (mantissa + 1.0f), q = s * s;
    float p = 0.32059890f; /* 2 / (9 ln 2), and so on: log2 m = 2 / ln 2 atanh s */
    p = p * q + 0.41219858f;
    p = p * q + 0.57707802f;
    p = p * q + 0.96179669f;
    p = p * q + 2.88539008f;
    const float part = exponent * (p * s);
    float t = exponent * (float)whole + part;
    t = t > -127.0f ? t : -127.0f;
    t = t < 0.0f ? t : 0.0f;
    const float n = rintf(t);
    float r = fmaf(exponent, (float)whole, -n) + part; /* the difference of t, without its rounding */
    r = r > -1.0f ? r : -1.0f; /* t was out of bounds */
    r = r < 1.0f ? r : 1.0f;
    p = 1.5403530e-4f;
    p = p * r + 1.3333558e-3f;
    p = p * r + 9.6181291e-3f;
    p = p * r + 5.5504109e-2f;
    p = p * r + 2.4022651e-1f;
    p = p * r + 6.9314718e-1f;
    p = p * r + 1.0f;
    bits = ((int32_t)n + 127) << 23; /* zero for 2^-127 */
    float exponential;
    memcpy(&exponential, &bits, 4);
    return p * exponential;
}

#define LIFT 0x1p100f /* products of small factors become normal numbers: subnormal ones are slow */

#define WEIGHED 256 /* pairs at a time */

enum { NONE, LINEAR, CUBE, ANY };

/* Part of a row of weigh_pairs; returns its largest weight. */
INLINE float weigh(const int kind, const int gather, float first, const float *restrict second,
                   const float *restrict rest, const float *restrict values,
                   const int16_t *restrict lookup, float *restrict out, int64_t count,
                   float exponent, float scale) {
    float gathered[WEIGHED], largest = 0.0f;
    if (gather) /* apart: the other loop has whole vectors to itself */
        for (int64_t j = 0; j < count; j++) gathered[j] = LIFT * values[lookup[j]];
#pragma omp simd reduction(max : largest)
    for (int64_t j = 0; j < count; j++) {
        float weight = scale * (gather ? gathered[j] : LIFT);
        if (kind != NONE) {
            float x = (first + second[j]) * rest[j];
            x = x < 1.0f ? x : 1.0f;
            weight *= kind == LINEAR ? x : kind == CUBE ? x * x * x : power(x, exponent);
        }
        weight = weight < 0x1p-126f * LIFT ? 0.0f : weight; /* before it would be subnormal */
        weight *= 1.0f / LIFT;
        out[j] = weight;
        largest = weight > largest ? weight : largest;
    }
    return largest;
}

/* out[i, j] = scale ((first[i] + second[j]) rest[i, j])^exponent values[lookup[i, j]], [k, k], zero
 * where that is subnormal; largest: of every row. The power (first null), or values and lookup may be
 * missing. */
void weigh_pairs(const float *first, const float *second, const float *rest, const float *values,
                 const int16_t *lookup, float *out, float *largest, int64_t k, float exponent,
                 float scale) {
    const int kind = !first ? NONE : exponent == 1.0f ? LINEAR : exponent == 3.0f ? CUBE : ANY;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < k; i++) {
        largest[i] = 0.0f;
        for (int64_t j = 0; j < k; j += WEIGHED) {
            const int64_t count = k - j < WEIGHED ? k - j : WEIGHED, at = i * k + j;
            float part = 0.0f;
            switch (2 * kind + (values != 0)) {
#define CASE_OF(KIND, GATHER)                                                                      \
    case 2 * KIND + GATHER:                                                                        \
        part = weigh(KIND, GATHER, KIND == NONE ? 0.0f : first[i], second + (KIND ? j : 0),        \
                     rest + (KIND ? at : 0), values, lookup + (GATHER ? at : 0), out + at, count,  \
                     exponent, scale);                                                             \
        break;
                CASE_OF(NONE, 0) CASE_OF(NONE, 1) CASE_OF(LINEAR, 0) CASE_OF(LINEAR, 1)
                CASE_OF(CUBE, 0) CASE_OF(CUBE, 1) CASE_OF(ANY, 0) CASE_OF(ANY, 1)
            }
            largest[i] = part > largest[i] ? part : largest[i];
        }
    }
}
