/* Products of few tokens with weights whose rows have numbers first, and then scales (workers/weights/rows.py), for
 * CPUs with AVX2: y = x Wᵀ, in float32 and nothing rounded.
 *
 * Of 64 numbers of four bits a register of eight words has eight in a lane. The input is put in that order once, so
 * that a number is a shift away and a scale is multiplied with a lane. Numbers of eight bits are taken as they lie.
 * A token is computed in the same order whatever stands beside it. For many tokens `rows_wide` makes floats, in the
 * same order of columns, of which a library makes the product.
 */

#include "vectors.h"

SOURCE(rows)

enum { INT4_32, INT4_64, INT4_128, NF4_64, FP4_64, NVFP4, INT8_128, INT8_ROW, FP8_128, FP8_ROW };
enum { IN_LANES = NVFP4 }; /* the last of those with four bits */

#if defined(__x86_64__) && defined(__GNUC__)

#include <stdlib.h>
#include <string.h>

#define AVX512 __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")))
#define INLINE_WIDE static inline __attribute__((always_inline)) AVX512
#define ONCE _Pragma("GCC unroll 16")

INLINE __m256i loadu(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }

/* --- what a format is ---------------------------------------------------------------------------------- */

static const float TABLES[][16] = {
    [NF4_64] = {-1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f,
                -0.18477343022823334f, -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f,
                0.24611230194568634f, 0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f,
                0.7229568362236023f, 1.0f},
    [FP4_64] = {0.0f, 0.0052083333f, 0.66666667f, 1.0f, 0.33333333f, 0.5f, 0.16666667f, 0.25f, -0.0f, -0.0052083333f,
                -0.66666667f, -1.0f, -0.33333333f, -0.5f, -0.16666667f, -0.25f},
    [NVFP4] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f},
};

INLINE int has_zeros(int kind) { return kind <= INT4_128; }
INLINE int is_fp8(int kind) { return kind == FP8_128 || kind == FP8_ROW; }
INLINE int by_row(int kind) { return kind == INT8_ROW || kind == FP8_ROW; }

/* Number n of each lane. Of INT4 its zero point is still in it. */
INLINE __m256 number(int kind, __m256i words, int n)
{
    const __m256i down = _mm256_srli_epi32(words, 4 * n);
    if (has_zeros(kind))
        return _mm256_cvtepi32_ps(_mm256_and_si256(down, _mm256_set1_epi32(15)));
    __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(TABLES[kind]), down);
    __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(TABLES[kind] + 8), down);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(words, 28 - 4 * n)));
}

/* e4m3 of sixteen bytes as float16, which have 256 times less in them */
INLINE __m256i halves(__m128i bytes)
{
    const __m256i u = _mm256_cvtepu8_epi16(bytes);
    return _mm256_or_si256(_mm256_and_si256(_mm256_slli_epi16(u, 7), _mm256_set1_epi16(0x3f80)),
                           _mm256_and_si256(_mm256_slli_epi16(u, 8), _mm256_set1_epi16((short)0x8000)));
}

/* Of 64 numbers from 64 * part on what each lane is multiplied by; of INT4 its zero point too */
INLINE __m256 scale(int kind, const uint8_t *row, long columns, long part, __m256 *zero)
{
    const uint8_t *at = row + columns / 2;
    __m256i word;
    switch (kind) {
    case NVFP4: {
        int32_t bytes; /* GCC 11.2 has _mm_loadu_si32 put them in the last lane */
        memcpy(&bytes, at + 4 * part, 4);
        const __m128i four = _mm256_castsi256_si128(halves(_mm_cvtsi32_si128(bytes)));
        return _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_cvtph_ps(four)),
                                        _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
    }
    case NF4_64:
    case FP4_64:
        return _mm256_broadcast_ss((const float *)at + part);
    case INT4_32:
        word = _mm256_castsi128_si256(_mm_loadl_epi64((const __m128i *)(at + 8 * part)));
        word = _mm256_permutevar8x32_epi32(word, _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1));
        break;
    default:
        word = _mm256_castps_si256(_mm256_broadcast_ss((const float *)at + (kind == INT4_64 ? part : part / 2)));
    }
    *zero = _mm256_cvtepi32_ps(_mm256_and_si256(word, _mm256_set1_epi32(15)));
    return _mm256_castsi256_ps(_mm256_and_si256(word, _mm256_set1_epi32(-16)));
}

/* Sixteen numbers of eight bits; FP8 as `halves` */
INLINE void sixteen(int kind, const uint8_t *p, __m256 out[2])
{
    const __m128i bytes = _mm_loadu_si128((const __m128i *)p);
    if (is_fp8(kind)) {
        const __m256i h = halves(bytes);
        out[0] = _mm256_cvtph_ps(_mm256_castsi256_si128(h));
        out[1] = _mm256_cvtph_ps(_mm256_extracti128_si256(h, 1));
    } else {
        out[0] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
        out[1] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)));
    }
}

/* What all sums of a row are multiplied by at last */
INLINE float of_row(int kind, const uint8_t *row, long columns)
{
    float whole = is_fp8(kind) || kind == NVFP4 ? 256.0f : 1.0f;
    if (by_row(kind))
        whole *= *(const float *)(row + columns);
    else if (kind == NVFP4)
        whole *= *(const float *)(row + columns / 2 + columns / 16);
    return whole;
}

/* --- few tokens ---------------------------------------------------------------------------------------- */

typedef struct {
    const float *values; /* [tokens][columns], in the order of numbers */
    const float *sums;   /* [tokens][columns / 8]: of INT4, of each lane */
    long columns;
} Input;

/* `count` rows times `tokens`, from `token` on; both are constants */
INLINE void times(int kind, const uint8_t *const *rows, int count, const Input *in, long token, int tokens, __m256 *y)
{
    const long columns = in->columns;
    const float *x = in->values + token * columns, *sums = in->sums + token * (columns / 8);
    ONCE for (int i = 0; i < count * tokens; i++)
        y[i] = _mm256_setzero_ps();
    if (kind <= IN_LANES) {
        for (long part = 0; part < columns / 64; part++) {
            ONCE for (int r = 0; r < count; r++) {
                const __m256i words = loadu(rows[r] + 32 * part);
                __m256 sum[4], zero;
                ONCE for (int k = 0; k < tokens; k++)
                    sum[k] = _mm256_setzero_ps();
                ONCE for (int n = 0; n < 8; n++) {
                    const __m256 w = number(kind, words, n);
                    ONCE for (int k = 0; k < tokens; k++)
                        sum[k] = _mm256_fmadd_ps(w, _mm256_loadu_ps(x + k * columns + 64 * part + 8 * n), sum[k]);
                }
                const __m256 by = scale(kind, rows[r], columns, part, &zero);
                ONCE for (int k = 0; k < tokens; k++) {
                    if (has_zeros(kind))
                        sum[k] = _mm256_fnmadd_ps(zero, _mm256_loadu_ps(sums + k * (columns / 8) + 8 * part), sum[k]);
                    y[r * tokens + k] = _mm256_fmadd_ps(by, sum[k], y[r * tokens + k]);
                }
            }
        }
        return;
    }
    const long group = by_row(kind) ? columns : 128;
    for (long g = 0; g < columns / group; g++) {
        __m256 sum[8];
        ONCE for (int i = 0; i < count * tokens; i++)
            sum[i] = _mm256_setzero_ps();
        for (long c = g * group; c < (g + 1) * group; c += 16) {
            ONCE for (int r = 0; r < count; r++) {
                __m256 w[2];
                sixteen(kind, rows[r] + c, w);
                ONCE for (int k = 0; k < tokens; k++) {
                    const float *at = x + k * columns + c;
                    sum[r * tokens + k] = _mm256_fmadd_ps(w[0], _mm256_loadu_ps(at), sum[r * tokens + k]);
                    sum[r * tokens + k] = _mm256_fmadd_ps(w[1], _mm256_loadu_ps(at + 8), sum[r * tokens + k]);
                }
            }
        }
        ONCE for (int r = 0; r < count; r++) {
            const __m256 by = by_row(kind) ? _mm256_set1_ps(1) : _mm256_broadcast_ss((const float *)(rows[r] + columns) + g);
            ONCE for (int k = 0; k < tokens; k++)
                y[r * tokens + k] = _mm256_fmadd_ps(by, sum[r * tokens + k], y[r * tokens + k]);
        }
    }
}

INLINE float total(__m256 v)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

enum { ROWS = 4 }; /* at once: each a stream of memory by itself */

typedef struct {
    const uint8_t *weight;
    long rows, row_bytes;
    void *y;  /* [tokens][rows] */
    int type; /* of y */
    long tokens;
    const float *bias; /* [rows], or NULL */
} Product;

INLINE void keep(int kind, const Product *p, const Input *in, const uint8_t *const *rows, long row, long apart, int count,
                 long token, int tokens, const __m256 *y)
{
    for (int r = 0; r < count; r++) {
        const long n = row + r * apart;
        if (n >= p->rows)
            return;
        const float whole = of_row(kind, rows[r], in->columns), bias = p->bias ? p->bias[n] : 0;
        for (int k = 0; k < tokens; k++) {
            const float value = total(y[r * tokens + k]) * whole + bias;
            const long at = (token + k) * p->rows + n;
            if (p->type == FLOAT32)
                ((float *)p->y)[at] = value;
            else
                ((uint16_t *)p->y)[at] = (uint16_t)_mm_extract_epi16(to_half(_mm256_set1_ps(value), p->type), 0);
        }
    }
}

INLINE void four_rows(int kind, const Product *p, const Input *in, const uint8_t *const *rows, long row, long apart)
{
    long token = 0;
    __m256 y[8];
    for (; token + 4 <= p->tokens; token += 4)
        for (int half = 0; half < ROWS; half += 2) {
            times(kind, rows + half, 2, in, token, 4, y);
            keep(kind, p, in, rows + half, row + half * apart, apart, 2, token, 4, y);
        }
    for (; token + 2 <= p->tokens; token += 2) {
        times(kind, rows, 4, in, token, 2, y);
        keep(kind, p, in, rows, row, apart, 4, token, 2, y);
    }
    for (; token < p->tokens; token++) {
        times(kind, rows, 4, in, token, 1, y);
        keep(kind, p, in, rows, row, apart, 4, token, 1, y);
    }
}

/* --- the same of eight bits with AVX-512 --------------------------------------------------------------- */

INLINE_WIDE __m512 sixteen_wide(int kind, const uint8_t *p)
{
    const __m128i bytes = _mm_loadu_si128((const __m128i *)p);
    return is_fp8(kind) ? _mm512_cvtph_ps(halves(bytes)) : _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
}

/* Add the sums of one group, scaled, to those of all */
INLINE_WIDE void add_scaled(int kind, const uint8_t *const *rows, long columns, long g, int tokens, const __m512 *sum,
                            __m512 *all)
{
    ONCE for (int r = 0; r < ROWS; r++) {
        const __m512 by = _mm512_set1_ps(by_row(kind) ? 1 : ((const float *)(rows[r] + columns))[g]);
        ONCE for (int i = r * tokens; i < (r + 1) * tokens; i++)
            all[i] = _mm512_fmadd_ps(by, sum[i], all[i]);
    }
}

/* Four rows times `tokens`: one, two or four. Where these are so few that memory is what takes the time, the scales of
 * some groups are read behind their numbers, so that a row is one stream: a half more of it is read then. */
INLINE_WIDE void times_wide(int kind, const uint8_t *const *rows, const Input *in, long token, int tokens, __m256 *y)
{
    const long columns = in->columns, group = by_row(kind) ? columns : 128;
    const float *x = in->values + token * columns;
    const int together = tokens == 1 ? 16 : tokens == 2 ? 8 : 1; /* groups */
    __m512 all[4 * ROWS];
    ONCE for (int i = 0; i < ROWS * tokens; i++)
        all[i] = _mm512_setzero_ps();
    for (long first = 0, last; first < columns / group; first = last) {
        __m512 sums[16 * ROWS];
        last = columns / group - first > together ? first + together : columns / group;
        for (long g = first; g < last; g++) {
            __m512 sum[4 * ROWS];
            ONCE for (int i = 0; i < ROWS * tokens; i++)
                sum[i] = _mm512_setzero_ps();
            for (long c = g * group; c < (g + 1) * group; c += 16)
                ONCE for (int r = 0; r < ROWS; r++) {
                    const __m512 w = sixteen_wide(kind, rows[r] + c);
                    ONCE for (int k = 0; k < tokens; k++)
                        sum[r * tokens + k] =
                            _mm512_fmadd_ps(w, _mm512_loadu_ps(x + k * columns + c), sum[r * tokens + k]);
                }
            if (together == 1)
                add_scaled(kind, rows, columns, g, tokens, sum, all);
            else
                ONCE for (int i = 0; i < ROWS * tokens; i++)
                    sums[(g - first) * ROWS * tokens + i] = sum[i];
        }
        for (long g = first; g < last && together > 1; g++)
            add_scaled(kind, rows, columns, g, tokens, sums + (g - first) * ROWS * tokens, all);
    }
    ONCE for (int i = 0; i < ROWS * tokens; i++)
        y[i] = _mm256_add_ps(_mm512_castps512_ps256(all[i]), _mm512_extractf32x8_ps(all[i], 1));
}

INLINE_WIDE void four_rows_wide(int kind, const Product *p, const Input *in, const uint8_t *const *rows, long row, long apart)
{
    __m256 y[4 * ROWS];
    for (long token = 0, count; token < p->tokens; token += count) {
        const long left = p->tokens - token;
        count = left >= 4 ? 4 : left >= 2 ? 2 : 1;
        if (count == 4)
            times_wide(kind, rows, in, token, 4, y);
        else if (count == 2)
            times_wide(kind, rows, in, token, 2, y);
        else
            times_wide(kind, rows, in, token, 1, y);
        keep(kind, p, in, rows, row, apart, ROWS, token, (int)count, y);
    }
}

/* --- many tokens --------------------------------------------------------------------------------------- */

INLINE void wide(int kind, const uint8_t *row, long columns, float *out)
{
    const __m256 whole = _mm256_set1_ps(of_row(kind, row, columns));
    if (kind <= IN_LANES) {
        for (long part = 0; part < columns / 64; part++) {
            const __m256i words = loadu(row + 32 * part);
            __m256 zero = _mm256_setzero_ps(), by = scale(kind, row, columns, part, &zero);
            if (kind == NVFP4)
                by = _mm256_mul_ps(by, whole);
            ONCE for (int n = 0; n < 8; n++) {
                __m256 w = number(kind, words, n);
                if (has_zeros(kind))
                    w = _mm256_sub_ps(w, zero);
                _mm256_storeu_ps(out + 64 * part + 8 * n, _mm256_mul_ps(w, by));
            }
        }
        return;
    }
    for (long c = 0; c < columns; c += 16) {
        __m256 w[2], by = whole;
        sixteen(kind, row + c, w);
        if (!by_row(kind))
            by = _mm256_mul_ps(by, _mm256_broadcast_ss((const float *)(row + columns) + c / 128));
        _mm256_storeu_ps(out + c, _mm256_mul_ps(w[0], by));
        _mm256_storeu_ps(out + c + 8, _mm256_mul_ps(w[1], by));
    }
}

/* --- of each format ------------------------------------------------------------------------------------ */

#define FORMATS(name) name(INT4_32) name(INT4_64) name(INT4_128) name(NF4_64) name(FP4_64) name(NVFP4) \
    name(INT8_128) name(INT8_ROW) name(FP8_128) name(FP8_ROW)
#define FUNCTIONS(kind)                                                                                        \
    AVX2 static void few_##kind(const Product *p, const Input *in, const uint8_t *const *rows, long row, long apart) \
    {                                                                                                          \
        four_rows(kind, p, in, rows, row, apart);                                                              \
    }                                                                                                          \
    AVX2 static void wide_##kind(const uint8_t *row, long columns, float *out) { wide(kind, row, columns, out); }
FORMATS(FUNCTIONS)
#undef FUNCTIONS
#define IN_BYTES(name) name(INT8_128) name(INT8_ROW) name(FP8_128) name(FP8_ROW)
#define FUNCTION(kind)                                                                                           \
    AVX512 static void few_wide_##kind(const Product *p, const Input *in, const uint8_t *const *rows, long row,  \
                                       long apart)                                                               \
    {                                                                                                            \
        four_rows_wide(kind, p, in, rows, row, apart);                                                           \
    }
IN_BYTES(FUNCTION)
#undef FUNCTION

#define FEW(kind) few_##kind,
typedef void Multiplied(const Product *, const Input *, const uint8_t *const *, long, long);
static Multiplied *const PRODUCTS[] = {FORMATS(FEW)};
#undef FEW
#define FEW(kind) few_wide_##kind,
static Multiplied *const PRODUCTS_WIDE[] = {IN_BYTES(FEW)};
#undef FEW
#define WIDE(kind) wide_##kind,
static void (*const WIDENED[])(const uint8_t *, long, float *) = {FORMATS(WIDE)};
#undef WIDE

/* One token as float32, in the order of numbers, and of INT4 the sum of each lane */
AVX2 static void ordered(int kind, const void *x, int type, long columns, long token, float *values, float *sums)
{
    float *to = values + token * columns;
    if (kind > IN_LANES) {
        for (long c = 0; c < columns; c += 8)
            _mm256_storeu_ps(to + c, load_any(x, token * columns + c, type));
        return;
    }
    for (long lane = 0; lane < columns / 8; lane++) {
        float eight[8];
        _mm256_storeu_ps(eight, load_any(x, token * columns + 8 * lane, type));
        for (int n = 0; n < 8; n++)
            to[64 * (lane / 8) + 8 * n + lane % 8] = eight[n];
    }
    if (has_zeros(kind))
        for (long part = 0; part < columns / 64; part++) {
            __m256 sum = _mm256_loadu_ps(to + 64 * part);
            for (int n = 1; n < 8; n++)
                sum = _mm256_add_ps(sum, _mm256_loadu_ps(to + 64 * part + 8 * n));
            _mm256_storeu_ps(sums + token * (columns / 8) + 8 * part, sum);
        }
}

/* y [tokens, rows] = x [tokens, columns] times W [rows, columns] transposed, plus bias [rows] float32 or NULL.
 * x and y are of `type`; columns are a multiple of 64. `level` is that of blocks.c, whose last has AVX-512.
 * Returns 0, or 1 where memory is short. */
int rows_product(int kind, const uint8_t *w, long rows, long columns, long row_bytes, const void *x, void *y, int type,
                 long tokens, const float *bias, int threads, int level)
{
    const Product p = {w, rows, row_bytes, y, type, tokens, bias};
    float *values = malloc(sizeof(float) * (size_t)tokens * (columns + columns / 8));
    if (!values)
        return 1;
    float *sums = values + tokens * columns;
    const Input in = {values, sums, columns};
    const long tiles = (rows + ROWS - 1) / ROWS;
    Multiplied *const multiplied = kind > IN_LANES && level > 1 ? PRODUCTS_WIDE[kind - IN_LANES - 1] : PRODUCTS[kind];
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (long token = 0; token < tokens; token++)
            ordered(kind, x, type, columns, token, values, sums);
#pragma omp for schedule(static)
        for (long n = 0; n < tiles; n++) {
            const uint8_t *at[ROWS];
            for (int i = 0; i < ROWS; i++)
                at[i] = w + (n + i * tiles < rows ? n + i * tiles : rows - 1) * row_bytes;
            multiplied(&p, &in, at, n, tiles);
        }
    }
    free(values);
    return 0;
}

/* out [rows, columns]: what rows mean; of four bits columns in the order of numbers, 0 8 16 ... 56 1 9 ... of 64 */
void rows_wide(int kind, const uint8_t *w, long rows, long columns, long row_bytes, float *out, int threads)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long row = 0; row < rows; row++)
        WIDENED[kind](w + row * row_bytes, columns, out + row * columns);
}

#else

int rows_product(int kind, const uint8_t *w, long rows, long columns, long row_bytes, const void *x, void *y, int type,
                 long tokens, const float *bias, int threads, int level)
{
    return 1;
}

void rows_wide(int kind, const uint8_t *w, long rows, long columns, long row_bytes, float *out, int threads) {}

#endif
