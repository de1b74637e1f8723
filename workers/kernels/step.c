/* What a step computes between its products, for CPUs with AVX2: norms, rotations, activations, and attention of
 * one token a sequence. Numbers come and go in 16 bits and are float32 between, rounded where torch rounds them.
 *
 * In each a row is computed by itself, in the same order whatever stands beside it. The plain references are in
 * workers/layers, workers/models/mlp.py and workers/attention/cpu.py; step.py says when these are taken instead.
 */

#include "lanes.h"

SOURCE(step)

#if defined(__x86_64__) && defined(__GNUC__)

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_HEAD = 1024 };
enum { MANY = 1 << 15 }; /* numbers, from which on further threads pay */

/* Numbers that come next begin to come: what a product has made of many tokens is in no near cache */
static inline void fetch(const void *x, long from, long size)
{
    for (long i = from; i < from + size; i += 32) /* a line of a cache */
        _mm_prefetch((const char *)((const uint16_t *)x + i), _MM_HINT_T0);
}

INLINE void store_half(void *y, long i, int type, __m256 v)
{
    _mm_storeu_si128((__m128i *)((uint16_t *)y + i), to_half(v, type));
}

/* as if it had been stored and loaded */
INLINE __m256 rounded(__m256 v, int type)
{
    __m128i h = to_half(v, type);
    return type == FLOAT16 ? _mm256_cvtph_ps(h) : _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}

INLINE float sum(__m256 v)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

/* e to the power of x: a polynomial between -ln 2 / 2 and ln 2 / 2, as in Cephes' expf. NaN stays NaN, and what
 * is below the smallest number is 0. */
INLINE __m256 exponential(__m256 x)
{
    const __m256 most = _mm256_set1_ps(88.37f), least = _mm256_set1_ps(-87.33f);
    __m256 zero = _mm256_cmp_ps(x, least, _CMP_LT_OQ);
    x = _mm256_max_ps(least, _mm256_min_ps(most, x)); /* the second where one is NaN */
    __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
    const float of[] = {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
    __m256 p = _mm256_set1_ps(1.9875691500e-4f);
    for (int i = 0; i < 5; i++)
        p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(of[i]));
    p = _mm256_add_ps(_mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r), _mm256_set1_ps(1));
    __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_andnot_ps(zero, _mm256_mul_ps(p, _mm256_castsi256_ps(power)));
}

/* Whether the CPU has what the variants for AVX512-BF16 compute with, of bfloat16 alone: 16 numbers at once, which it
 * rounds by itself. */
static int goes_wide(int type)
{
    static int wide = -1;
    if (wide < 0)
        wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512bf16");
    return wide && type == BFLOAT16;
}

WIDE __m512 load_wide(const uint16_t *x, __mmask16 some)
{
    return wide_lanes(_mm256_maskz_loadu_epi16(some, x));
}

WIDE void store_wide(uint16_t *y, __mmask16 some, __m512 v)
{
    _mm256_mask_storeu_epi16(y, some, (__m256i)_mm512_cvtneps_pbh(v));
}

/* --- norms ------------------------------------------------------------------------------------------------ */

/* one over the root of the mean square, and a little */
INLINE __m256 over_rms(const void *x, long at, int type, long size, float eps)
{
    __m256 s[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    long i = 0;
    for (; i + 16 <= size; i += 16)
        for (int k = 0; k < 2; k++) {
            __m256 v = load_any(x, at + i + 8 * k, type);
            s[k] = _mm256_fmadd_ps(v, v, s[k]);
        }
    if (i < size) {
        __m256 v = load_any(x, at + i, type);
        s[0] = _mm256_fmadd_ps(v, v, s[0]);
    }
    return _mm256_set1_ps(1.0f / sqrtf(sum(_mm256_add_ps(s[0], s[1])) / (float)size + eps));
}

INLINE void norm_row(const void *x, const void *weight, const void *residual, void *y, int type, long at, long size,
                     float eps, float offset)
{
    const __m256 by = over_rms(x, at, type, size, eps), more = _mm256_set1_ps(offset);
    for (long i = 0; i < size; i += 8) {
        __m256 v = _mm256_mul_ps(load_any(x, at + i, type), by);
        v = _mm256_mul_ps(v, _mm256_add_ps(load_any(weight, i, type), more));
        if (residual)
            v = _mm256_add_ps(load_any(residual, at + i, type), rounded(v, type));
        store_half(y, at + i, type, v);
    }
}

/* The same to the same bits, but for numbers too small to be normal */
AVX512 static void norm_wide(const uint16_t *x, const uint16_t *weight, const uint16_t *residual, uint16_t *y,
                             long size, float eps, float offset)
{
    __m512 squares = _mm512_setzero_ps();
    for (long i = 0; i < size; i += LANES) {
        const __m512 v = load_wide(x + i, below(i, size));
        squares = _mm512_fmadd_ps(v, v, squares);
    }
    const __m256 both = _mm256_add_ps(_mm512_castps512_ps256(squares), _mm512_extractf32x8_ps(squares, 1));
    const __m512 by = _mm512_set1_ps(1.0f / sqrtf(sum(both) / (float)size + eps)), more = _mm512_set1_ps(offset);
    for (long i = 0; i < size; i += LANES) {
        const __mmask16 some = below(i, size);
        __m512 v = _mm512_mul_ps(load_wide(x + i, some), by);
        v = _mm512_mul_ps(v, _mm512_add_ps(load_wide(weight + i, some), more));
        if (residual)
            v = _mm512_add_ps(load_wide(residual + i, some), rounded_lanes(v));
        store_wide(y + i, some, v);
    }
}

AVX2 static void norm_any(const void *x, const void *weight, const void *residual, void *y, int type, long at,
                          long size, float eps, float offset)
{
    const uint16_t *r = residual;
    if (goes_wide(type))
        norm_wide((const uint16_t *)x + at, weight, r ? r + at : NULL, (uint16_t *)y + at, size, eps, offset);
    else if (type == FLOAT16)
        norm_row(x, weight, residual, y, FLOAT16, at, size, eps, offset);
    else
        norm_row(x, weight, residual, y, BFLOAT16, at, size, eps, offset);
}

/* y [rows, size] = residual (or nothing) + x / rms(x) * (weight [size] + offset); size is divided by 8 */
void step_norm(const void *x, const void *weight, const void *residual, void *y, int type, long rows, long size,
               float eps, float offset, int threads)
{
#pragma omp parallel for num_threads(threads) if (rows > 1 && rows * size >= MANY)
    for (long row = 0; row < rows; row++)
        norm_any(x, weight, residual, y, type, row * size, size, eps, offset);
}

INLINE void sum_row(const void *x, const void *y, void *total, int type, long at, long size)
{
    for (long i = at; i < at + size; i += 8)
        store_half(total, i, type, _mm256_add_ps(load_any(x, i, type), load_any(y, i, type)));
}

AVX512 static void sum_wide(const uint16_t *x, const uint16_t *y, uint16_t *total, long size)
{
    for (long i = 0; i < size; i += LANES) {
        const __mmask16 some = below(i, size);
        store_wide(total + i, some, _mm512_add_ps(load_wide(x + i, some), load_wide(y + i, some)));
    }
}

AVX2 static void sum_any(const void *x, const void *y, void *total, int type, long at, long size)
{
    if (goes_wide(type))
        sum_wide((const uint16_t *)x + at, (const uint16_t *)y + at, (uint16_t *)total + at, size);
    else if (type == FLOAT16)
        sum_row(x, y, total, FLOAT16, at, size);
    else
        sum_row(x, y, total, BFLOAT16, at, size);
}

/* total [rows, size] = x + y, and, unless `weight` is NULL, z = total / rms(total) * (weight [size] + offset); size is
 * divided by 8 */
void step_sum(const void *x, const void *y, const void *weight, void *total, void *z, int type, long rows, long size,
              float eps, float offset, int threads)
{
#pragma omp parallel for num_threads(threads) if (rows > 1 && rows * size >= MANY)
    for (long row = 0; row < rows; row++) {
        const long next = (row + 1) * size, more = row + 1 < rows ? size : 0;
        fetch(x, next, more);
        fetch(y, next, more);
        fetch(total, next, more);
        sum_any(x, y, total, type, row * size, size);
        if (weight)
            norm_any(total, weight, NULL, z, type, row * size, size, eps, offset);
    }
}

/* --- activations ------------------------------------------------------------------------------------------ */

INLINE void gated_row(const void *gate, const void *up, void *y, int type, int kind, long size)
{
    const __m256 one = _mm256_set1_ps(1);
    for (long i = 0; i < size; i += 8) {
        __m256 g = load_any(gate, i, type), u = g;
        if (kind == GELU_TANH) { /* (1 + tanh u) / 2 is 1 / (1 + exp -2u) */
            u = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_mul_ps(g, g), g), _mm256_set1_ps(0.044715f), g);
            u = _mm256_mul_ps(u, _mm256_set1_ps(1.5957691216f));
        }
        __m256 e = exponential(_mm256_sub_ps(_mm256_setzero_ps(), u));
        __m256 a = rounded(_mm256_div_ps(g, _mm256_add_ps(one, e)), type);
        store_half(y, i, type, _mm256_mul_ps(a, load_any(up, i, type)));
    }
}

WIDE void gated_row_wide(const uint16_t *gate, const uint16_t *up, uint16_t *y, int kind, long size)
{
    for (long i = 0; i < size; i += LANES) {
        const __mmask16 some = below(i, size);
        store_wide(y + i, some, opened(load_wide(gate + i, some), load_wide(up + i, some), kind));
    }
}

AVX512 static void gated_wide(const uint16_t *x, uint16_t *y, int kind, long size)
{
    if (kind == SILU)
        gated_row_wide(x, x + size, y, SILU, size);
    else
        gated_row_wide(x, x + size, y, GELU_TANH, size);
}

AVX2 static void gated_any(const uint16_t *x, uint16_t *y, int type, int kind, long size)
{
    if (goes_wide(type))
        gated_wide(x, y, kind, size);
    else if (type == BFLOAT16 && kind == SILU)
        gated_row(x, x + size, y, BFLOAT16, SILU, size);
    else if (type == BFLOAT16)
        gated_row(x, x + size, y, BFLOAT16, GELU_TANH, size);
    else if (kind == SILU)
        gated_row(x, x + size, y, FLOAT16, SILU, size);
    else
        gated_row(x, x + size, y, FLOAT16, GELU_TANH, size);
}

/* y [rows, size] = activation(x[:, :size]) * x[:, size:]; size is divided by 8 */
void step_gated(const void *x, void *y, int type, int kind, long rows, long size, int threads)
{
#pragma omp parallel for num_threads(threads) if (rows > 1 && rows * size >= MANY)
    for (long row = 0; row < rows; row++)
        gated_any((const uint16_t *)x + 2 * row * size, (uint16_t *)y + row * size, type, kind, size);
}

/* --- heads ------------------------------------------------------------------------------------------------ */

typedef struct {
    const void *weight; /* [head_dim] of a norm, or NULL */
    const float *cos, *sin; /* [turned] of the token, or NULL; sines of the first half have their sign turned */
    long head_dim, turned;
    float eps, offset;
} Head;

INLINE void head_row(uint16_t *x, int type, const Head *h)
{
    __m256 by = _mm256_set1_ps(1);
    float wide[MAX_HEAD] __attribute__((aligned(32)));
    if (h->weight)
        by = over_rms(x, 0, type, h->head_dim, h->eps);
    for (long i = 0; i < h->head_dim; i += 8) {
        __m256 v = load_any(x, i, type);
        if (h->weight)
            v = _mm256_mul_ps(_mm256_mul_ps(v, by), _mm256_add_ps(load_any(h->weight, i, type), _mm256_set1_ps(h->offset)));
        _mm256_store_ps(wide + i, v);
    }
    const long half = h->turned / 2;
    for (long i = 0; i < h->head_dim; i += 8) {
        __m256 v = _mm256_load_ps(wide + i);
        if (h->cos && i < h->turned) {
            __m256 partner = _mm256_loadu_ps(wide + (i < half ? i + half : i - half));
            v = _mm256_fmadd_ps(partner, _mm256_loadu_ps(h->sin + i), _mm256_mul_ps(v, _mm256_loadu_ps(h->cos + i)));
        }
        store_half(x, i, type, v);
    }
}

/* `whole`: of 16 numbers there are never fewer */
WIDE void head_lanes(uint16_t *x, const Head *h, int whole)
{
    float wide[MAX_HEAD] __attribute__((aligned(64)));
    const long size = h->head_dim, half = h->turned / 2;
    __m512 by = _mm512_set1_ps(1);
    if (h->weight) {
        __m512 s = _mm512_setzero_ps();
        for (long i = 0; i < size; i += LANES) {
            const __m512 v = load_wide(x + i, whole ? ALL_LANES : below(i, size));
            s = _mm512_fmadd_ps(v, v, s);
        }
        by = _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(s) / (float)size + h->eps));
    }
    for (long i = 0; i < size; i += LANES) {
        const __mmask16 some = whole ? ALL_LANES : below(i, size);
        __m512 v = load_wide(x + i, some);
        if (h->weight) {
            const __m512 weight = load_wide((const uint16_t *)h->weight + i, some);
            v = _mm512_mul_ps(_mm512_mul_ps(v, by), _mm512_add_ps(weight, _mm512_set1_ps(h->offset)));
        }
        _mm512_store_ps(wide + i, v);
    }
    for (long i = 0, next; i < size; i = next) { /* of what is turned the first half, the second, and the rest */
        const long end = !h->cos || i >= h->turned ? size : i < half ? half : h->turned;
        next = i + LANES < end ? i + LANES : end;
        const __mmask16 some = whole ? ALL_LANES : below(i, end);
        __m512 v = _mm512_maskz_loadu_ps(some, wide + i);
        if (h->cos && i < h->turned) {
            const __m512 partner = _mm512_maskz_loadu_ps(some, wide + (i < half ? i + half : i - half));
            v = _mm512_mul_ps(v, _mm512_maskz_loadu_ps(some, h->cos + i));
            v = _mm512_fmadd_ps(partner, _mm512_maskz_loadu_ps(some, h->sin + i), v);
        }
        store_wide(x + i, some, v);
    }
}

AVX512 static void head_wide(uint16_t *x, const Head *h)
{
    if (h->head_dim % LANES == 0 && h->turned / 2 % LANES == 0)
        head_lanes(x, h, 1);
    else
        head_lanes(x, h, 0);
}

AVX2 static void head_any(uint16_t *x, int type, const Head *h)
{
    if (goes_wide(type))
        head_wide(x, h);
    else if (type == FLOAT16)
        head_row(x, FLOAT16, h);
    else
        head_row(x, BFLOAT16, h);
}

/* The first heads and then key heads of x [tokens, ..., head_dim], in place: normalised where there are weights,
 * and turned where there are angles [tokens, turned], pairs being half of `turned` apart. All sizes of a head are
 * divided by 8, and half of `turned` is. */
void step_heads(void *x, int type, long tokens, long all, long heads, long key_heads, long head_dim,
                const void *weight, const void *key_weight, float eps, float offset, const float *cos,
                const float *sin, long turned, int threads)
{
#pragma omp parallel for num_threads(threads) if (tokens > 1 && tokens * all * head_dim >= MANY)
    for (long token = 0; token < tokens; token++)
        for (long i = 0; i < heads + key_heads; i++) {
            const Head h = {i < heads ? weight : key_weight, cos ? cos + token * turned : NULL,
                            sin ? sin + token * turned : NULL, head_dim, turned, eps, offset};
            fetch(x, ((token + 1) * all + i) * head_dim, token + 1 < tokens ? head_dim : 0);
            head_any((uint16_t *)x + (token * all + i) * head_dim, type, &h);
        }
}

/* --- attention -------------------------------------------------------------------------------------------- */

enum { PAGE = 32, TOGETHER = 4, RUN = 16 /* pages that are one piece of work */ };

typedef struct {
    const uint16_t *keys, *values; /* [kv_heads][PAGE][head_dim] of each page; of values the first value_dim count */
    long page_stride;              /* numbers from one page to the next */
    const float *sinks;            /* [heads], or NULL */
    long kv_heads, group, head_dim, value_dim, window;
    float scale, cap; /* cap: 0, where there is none */
} Attention;

/* A softmax over some keys: the largest score, the sum of exp(score - most), and that of such times values */
typedef struct {
    float most[TOGETHER], total[TOGETHER], *out; /* out [TOGETHER][value_dim] */
} Softmax;

/* `count` queries over the keys from `first` to `last` of a page, whose `values` are read next, and across */
INLINE void page_scores(const Attention *a, const float *q, int count, const uint16_t *keys, const uint16_t *values,
                        int type, long first, long last, float (*scores)[PAGE])
{
    for (long t = first; t < last; t++) {
        for (long i = 0; i < a->value_dim; i += 32)
            _mm_prefetch((const char *)(values + t * a->head_dim + i), _MM_HINT_T0);
        __m256 s[TOGETHER];
#pragma GCC unroll 4
        for (int k = 0; k < count; k++)
            s[k] = _mm256_setzero_ps();
        for (long i = 0; i < a->head_dim; i += 8) {
            const __m256 key = load_any(keys, t * a->head_dim + i, type);
#pragma GCC unroll 4
            for (int k = 0; k < count; k++)
                s[k] = _mm256_fmadd_ps(key, _mm256_loadu_ps(q + k * a->head_dim + i), s[k]);
        }
#pragma GCC unroll 4
        for (int k = 0; k < count; k++)
            scores[k][t] = a->cap == 0 ? sum(s[k]) * a->scale : tanhf(sum(s[k]) * (a->scale / a->cap)) * a->cap;
    }
}

INLINE void page_values(const Attention *a, int count, const uint16_t *values, int type, long first, long last,
                        float (*weights)[PAGE], const float *kept, float *out)
{
    for (long i = 0; i < a->value_dim; i += 8) {
        __m256 o[TOGETHER];
#pragma GCC unroll 4
        for (int k = 0; k < count; k++)
            o[k] = _mm256_mul_ps(_mm256_loadu_ps(out + k * a->value_dim + i), _mm256_set1_ps(kept[k]));
        for (long t = first; t < last; t++) {
            const __m256 value = load_any(values, t * a->head_dim + i, type);
#pragma GCC unroll 4
            for (int k = 0; k < count; k++)
                o[k] = _mm256_fmadd_ps(_mm256_set1_ps(weights[k][t]), value, o[k]);
        }
#pragma GCC unroll 4
        for (int k = 0; k < count; k++)
            _mm256_storeu_ps(out + k * a->value_dim + i, o[k]);
    }
}

/* One page more in the softmax of `count` queries of one key head. Tokens from `seen` on are not there yet. */
INLINE void add_page(const Attention *a, Softmax *s, const float *q, int count, int type, long page, long head, long seen)
{
    const long last = seen < PAGE ? seen : PAGE;
    const long first = a->window && seen > a->window ? seen - a->window : 0;
    if (first >= last)
        return;
    const long at = page * a->page_stride + head * PAGE * a->head_dim;
    float scores[TOGETHER][PAGE], kept[TOGETHER];
    for (int k = 0; k < count; k++)
        for (int i = 0; i < PAGE; i++)
            scores[k][i] = -INFINITY;
    page_scores(a, q, count, a->keys + at, a->values + at, type, first, last, scores);
    for (int k = 0; k < count; k++) {
        __m256 most = _mm256_set1_ps(s->most[k]), total = _mm256_setzero_ps();
        float each[8];
        for (int i = 0; i < PAGE; i += 8)
            most = _mm256_max_ps(_mm256_loadu_ps(scores[k] + i), most);
        _mm256_storeu_ps(each, most);
        for (int i = 1; i < 8; i++)
            each[0] = each[i] > each[0] ? each[i] : each[0];
        most = _mm256_set1_ps(each[0]);
        for (int i = 0; i < PAGE; i += 8) {
            __m256 weights = exponential(_mm256_sub_ps(_mm256_loadu_ps(scores[k] + i), most));
            _mm256_storeu_ps(scores[k] + i, weights);
            total = _mm256_add_ps(total, weights);
        }
        kept[k] = s->most[k] == -INFINITY ? 0 : expf(s->most[k] - each[0]);
        s->most[k] = each[0];
        s->total[k] = s->total[k] * kept[k] + sum(total);
    }
    page_values(a, count, a->values + at, type, first, last, scores, kept, s->out);
}

AVX2 static void add_pages(const Attention *a, Softmax *s, const float *q, int count, int type, const int64_t *pages,
                           const int64_t *seen, long num, long head)
{
#define EACH(count, type)                                                \
    for (long i = 0; i < num; i++)                                       \
        add_page(a, s, q, count, type, pages[i], head, seen[i])
    if (type == FLOAT16 && count == TOGETHER)
        EACH(TOGETHER, FLOAT16);
    else if (type == FLOAT16)
        EACH(1, FLOAT16);
    else if (count == TOGETHER)
        EACH(TOGETHER, BFLOAT16);
    else
        EACH(1, BFLOAT16);
#undef EACH
}

AVX2 static void widen(const uint16_t *x, int type, long size, float *wide)
{
    for (long i = 0; i < size; i += 8)
        _mm256_storeu_ps(wide + i, load_any(x, i, type));
}

/* The softmax over all keys, of those over `num` runs of them, each `stride` floats after the one before */
AVX2 static void join(const Attention *a, const float *parts, long stride, long num, long head, uint16_t *y, int type)
{
    float most = a->sinks ? a->sinks[head] : -INFINITY;
    for (long n = 0; n < num; n++)
        most = parts[n * stride] > most ? parts[n * stride] : most;
    float total = a->sinks ? expf(a->sinks[head] - most) : 0;
    for (long n = 0; n < num; n++)
        total += parts[n * stride + 1] * expf(parts[n * stride] - most);
    for (long i = 0; i < a->value_dim; i += 8) {
        __m256 o = _mm256_setzero_ps();
        for (long n = 0; n < num; n++) {
            const __m256 by = _mm256_set1_ps(expf(parts[n * stride] - most) / total);
            o = _mm256_fmadd_ps(_mm256_loadu_ps(parts + n * stride + 2 + i), by, o);
        }
        store_half(y, i, type, o);
    }
}

/* One token of each sequence over its pages.
 *
 * q [sequences, heads, head_dim], `q_stride` numbers from one sequence to the next; y [sequences, heads, value_dim];
 * keys and values [pages, kv_heads, PAGE, head_dim], `page_stride` numbers from one page to the next.
 * Of `num` pages, in the order of the sequences: `pages` their numbers, `rows` the sequence, `seen` the tokens that
 * are seen from the page's start on, the window aside. Returns 0, or 1 where memory is short. */
int step_attention(const void *q, long q_stride, const void *keys, const void *values, long page_stride, void *y,
                   int type, const int64_t *pages, const int64_t *rows, const int64_t *seen, long num, long kv_heads,
                   long group, long head_dim, long value_dim, long window, float scale, float cap, const float *sinks,
                   int threads)
{
    const Attention a = {keys, values, page_stride, sinks, kv_heads, group, head_dim, value_dim, window, scale, cap};
    const long heads = kv_heads * group, stride = value_dim + 2;
    /* pieces of work: of each sequence RUN pages or fewer */
    long *first = malloc(sizeof(long) * (num + 1)), count = 0;
    if (!first)
        return 1;
    for (long i = 0; i < num; i++)
        if (!i || rows[i] != rows[i - 1] || i - first[count - 1] == RUN)
            first[count++] = i;
    first[count] = num;
    float *parts = malloc(sizeof(float) * count * heads * stride); /* [heads][pieces]: most, total, out */
    int failed = !parts;
#pragma omp parallel num_threads(threads) if (!failed && count * kv_heads > 1 && num * kv_heads * head_dim * PAGE >= 4 * MANY) reduction(| : failed)
    {
        float *space = failed ? NULL : malloc(sizeof(float) * TOGETHER * (head_dim + value_dim));
        failed |= !space;
#pragma omp for collapse(2) schedule(dynamic)
        for (long piece = 0; piece < count; piece++)
            for (long head = 0; head < kv_heads; head++) {
                if (failed)
                    continue;
                const long from = first[piece], to = first[piece + 1];
                for (long n = 0, together; n < group; n += together) {
                    together = group - n >= TOGETHER ? TOGETHER : 1;
                    const uint16_t *own = (const uint16_t *)q + rows[from] * q_stride + (head * group + n) * head_dim;
                    widen(own, type, together * head_dim, space);
                    Softmax s = {{0}, {0}, space + TOGETHER * head_dim};
                    for (int k = 0; k < TOGETHER; k++)
                        s.most[k] = -INFINITY;
                    memset(s.out, 0, sizeof(float) * together * value_dim);
                    add_pages(&a, &s, space, (int)together, type, pages + from, seen + from, to - from, head);
                    for (long k = 0; k < together; k++) {
                        float *part = parts + ((head * group + n + k) * count + piece) * stride;
                        part[0] = s.most[k];
                        part[1] = s.total[k];
                        memcpy(part + 2, s.out + k * value_dim, sizeof(float) * value_dim);
                    }
                }
            }
        free(space);
    }
    for (long piece = 0, end; !failed && piece < count; piece = end) {
        const long row = rows[first[piece]];
        for (end = piece + 1; end < count && rows[first[end]] == row;)
            end++;
        for (long head = 0; head < heads; head++)
            join(&a, parts + (head * count + piece) * stride, stride, end - piece, head,
                 (uint16_t *)y + (row * heads + head) * value_dim, type);
    }
    free(parts);
    free(first);
    return failed;
}

/* Keys (or values) [tokens, kv_heads, head_dim], a token `stride` numbers after the one before, into their pages,
 * which are as those of step_attention */
void step_write(const void *x, long stride, void *cache, long page_stride, const int64_t *pages, const int64_t *places, long tokens,
                long kv_heads, long head_dim, int threads)
{
#pragma omp parallel for num_threads(threads) if (tokens > 1 && tokens * kv_heads * head_dim >= MANY)
    for (long token = 0; token < tokens; token++)
        for (long head = 0; head < kv_heads; head++)
            memcpy((uint16_t *)cache + pages[token] * page_stride + (head * PAGE + places[token]) * head_dim,
                   (const uint16_t *)x + token * stride + head * head_dim, 2 * head_dim);
}

#endif
