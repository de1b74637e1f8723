/* Products with weights of 16 bits that are kept as they were stored, for CPUs with AVX2 or more: of few tokens at
 * the rate at which memory is read. With AVX512-BF16 so are those with weights of eight bits, as rows.c has them.
 *
 * A sum of a row and a token is made in one order, whatever is computed beside it: so are its bits. Numbers are made
 * float32, which is exact, and added as such. What AVX512-BF16 multiplies, two bfloat16 at once, it adds as float32
 * too, each product by itself; only numbers too small to be normal are 0 to it. Numbers of eight bits are exact in
 * bfloat16, and their scales are multiplied with sums.
 */

#include "lanes.h"

SOURCE(dense)

enum { WITH_NOTHING, WITH_AVX2, WITH_AVX512_BF16 };

#if defined(__x86_64__) && defined(__GNUC__)

#include <stdlib.h>
#include <string.h>

#define ONCE _Pragma("GCC unroll 16")

enum {
    ROWS = 4,         /* of the weight that are multiplied at once */
    STEP = 32,        /* columns, of which there are whole ones in what is multiplied: missing ones are 0 */
    APART = 129,      /* rows, from one to the next of those: see blocks_product */
    SCATTERED = 32,   /* tokens, up to which they are */
    WAITING = 2,      /* tokens, up to which a CPU does little more than wait for memory, and reads ahead by itself */
    AHEAD = 1536,     /* numbers of 16 bits, or more, that what is read ahead is away where weights are bytes */
    NEAR = 256 << 10, /* bytes of tokens that stay in a cache while all rows are multiplied with them */
};

typedef struct {
    int kind;
    long rows, columns; /* of the weight */
    uint16_t *y;        /* [tokens][rows] */
    int type;
    const float *bias; /* [rows], or NULL */
} Product;

/* What comes next of four rows: where tokens keep a CPU busy, it would wait for that too late by itself. For few or
 * many groups of tokens alike the same is best: each of them asks again. */
INLINE void read_ahead(const uint16_t *const *w, long at)
{
    for (int r = 0; r < ROWS; r++)
        _mm_prefetch((const char *)(w[r] + at), _MM_HINT_T0);
}

/* --- AVX2: 16 columns of each row, as the first of each two numbers and the second ------------------------ */

enum { TOKENS = 3 };

INLINE __m256 widened(const uint16_t *w, int type, int half)
{
    if (type == FLOAT16)
        return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)w + half));
    const __m256i pairs = _mm256_loadu_si256((const __m256i *)w);
    return _mm256_castsi256_ps(half ? _mm256_and_si256(pairs, _mm256_set1_epi32((int)0xffff0000))
                                    : _mm256_slli_epi32(pairs, 16));
}

/* `ahead` is where the rows begin that come next, 0: nowhere */
INLINE void multiply(const uint16_t *const *w, int type, const float *x, long width, int tokens, long columns,
                     long ahead, __m256 *sums)
{
    for (long c = 0; c < columns; c += 16) {
        if (ahead)
            read_ahead(w, c + ahead);
        ONCE for (int half = 0; half < 2; half++) {
            __m256 v[TOKENS];
            ONCE for (int k = 0; k < tokens; k++)
                v[k] = _mm256_loadu_ps(x + k * width + c + 8 * half);
            ONCE for (int r = 0; r < ROWS; r++) {
                const __m256 wide = widened(w[r] + c, type, half);
                ONCE for (int k = 0; k < tokens; k++)
                    sums[r * tokens + k] = _mm256_fmadd_ps(wide, v[k], sums[r * tokens + k]);
            }
        }
    }
}

/* Sums of four registers */
INLINE __m128 totals(__m256 a, __m256 b, __m256 c, __m256 d)
{
#define HALVED(v) _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1))
    const __m128 p = HALVED(a), q = HALVED(b), r = HALVED(c), s = HALVED(d);
#undef HALVED
    const __m128 e = _mm_add_ps(_mm_unpacklo_ps(p, q), _mm_unpackhi_ps(p, q));
    const __m128 f = _mm_add_ps(_mm_unpacklo_ps(r, s), _mm_unpackhi_ps(r, s));
    return _mm_add_ps(_mm_movelh_ps(e, f), _mm_movehl_ps(f, e));
}

INLINE void keep(const Product *p, long row, long apart, long token, __m128 sums)
{
    const long rows = row + 3 * apart < p->rows ? ROWS : (p->rows - row + apart - 1) / apart;
    if (p->bias) {
        float bias[ROWS] = {0};
        for (long r = 0; r < rows; r++)
            bias[r] = p->bias[row + r * apart];
        sums = _mm_add_ps(sums, _mm_loadu_ps(bias));
    }
    uint64_t four = (uint64_t)_mm_cvtsi128_si64(to_half(_mm256_castps128_ps256(sums), p->type));
    uint16_t *at = p->y + token * p->rows + row;
    for (long r = 0; r < rows; r++, four >>= 16)
        at[r * apart] = (uint16_t)four;
}

/* What is left of four rows behind their whole steps */
INLINE const uint16_t *rest(const uint16_t *w, uint16_t *into, long columns)
{
    memset(into, 0, sizeof(uint16_t) * STEP);
    memcpy(into, w, sizeof(uint16_t) * (size_t)columns);
    return into;
}

INLINE void four_rows(const Product *p, const uint16_t *const *w, int type, long row, long apart, const float *x,
                      long width, long token, int tokens, long ahead)
{
    const long whole = p->columns / STEP * STEP;
    __m256 sums[ROWS * TOKENS];
    ONCE for (int i = 0; i < ROWS * tokens; i++)
        sums[i] = _mm256_setzero_ps();
    multiply(w, type, x, width, tokens, whole, ahead, sums);
    if (whole < p->columns) {
        uint16_t space[ROWS][STEP];
        const uint16_t *at[ROWS];
        for (int r = 0; r < ROWS; r++)
            at[r] = rest(w[r] + whole, space[r], p->columns - whole);
        multiply(at, type, x + whole, width, tokens, STEP, 0, sums);
    }
    ONCE for (int k = 0; k < tokens; k++)
        keep(p, row, apart, token + k, totals(sums[k], sums[tokens + k], sums[2 * tokens + k], sums[3 * tokens + k]));
}

typedef void Multiplied(const Product *p, const uint16_t *const *w, long row, long apart, const void *x, long width,
                        long token, long tokens, long ahead);

#define OF_TYPE(name, type)                                                                                   \
    AVX2 static void name(const Product *p, const uint16_t *const *w, long row, long apart, const void *x,    \
                          long width, long token, long tokens, long ahead)                                    \
    {                                                                                                         \
        const float *at = x;                                                                                  \
        for (long count; tokens; token += count, tokens -= count, at += count * width)                        \
            if (tokens >= 3 && tokens != 4)                                                                   \
                four_rows(p, w, type, row, apart, at, width, token, 3, ahead), count = 3;                     \
            else if (tokens >= 2)                                                                             \
                four_rows(p, w, type, row, apart, at, width, token, 2, ahead), count = 2;                     \
            else                                                                                              \
                four_rows(p, w, type, row, apart, at, width, token, 1, ahead), count = 1;                     \
    }
OF_TYPE(bfloat16_rows, BFLOAT16)
OF_TYPE(float16_rows, FLOAT16)
#undef OF_TYPE

/* --- AVX-512: 32 columns of each row ---------------------------------------------------------------------- */

enum { MORE_TOKENS = 6 };

WIDE void multiply_wide(const uint16_t *const *w, int type, const void *x, long width, int tokens, long columns,
                        long ahead, __m512 *sums)
{
    for (long c = 0; c < columns; c += 32) {
        if (ahead)
            read_ahead(w, c + ahead);
        if (type == BFLOAT16) {
            __m512bh two[ROWS];
            ONCE for (int r = 0; r < ROWS; r++)
                two[r] = (__m512bh)_mm512_loadu_si512(w[r] + c);
            ONCE for (int k = 0; k < tokens; k++) {
                const __m512bh v = (__m512bh)_mm512_loadu_si512((const uint16_t *)x + k * width + c);
                ONCE for (int r = 0; r < ROWS; r++)
                    sums[r * tokens + k] = _mm512_dpbf16_ps(sums[r * tokens + k], two[r], v);
            }
            continue;
        }
        ONCE for (int half = 0; half < 2; half++) {
            __m512 wide[ROWS];
            ONCE for (int r = 0; r < ROWS; r++)
                wide[r] = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(w[r] + c) + half));
            ONCE for (int k = 0; k < tokens; k++) {
                const __m512 v = _mm512_loadu_ps((const float *)x + k * width + c + 16 * half);
                ONCE for (int r = 0; r < ROWS; r++)
                    sums[r * tokens + k] = _mm512_fmadd_ps(wide[r], v, sums[r * tokens + k]);
            }
        }
    }
}

WIDE void four_rows_wide(const Product *p, const uint16_t *const *w, int type, long row, long apart, const char *x,
                         long width, long token, int tokens, long ahead)
{
    const long whole = p->columns / STEP * STEP;
    __m512 sums[ROWS * MORE_TOKENS];
#pragma GCC unroll 24
    for (int i = 0; i < ROWS * tokens; i++)
        sums[i] = _mm512_setzero_ps();
    multiply_wide(w, type, x, width, tokens, whole, ahead, sums);
    if (whole < p->columns) {
        uint16_t space[ROWS][STEP];
        const uint16_t *at[ROWS];
        for (int r = 0; r < ROWS; r++)
            at[r] = rest(w[r] + whole, space[r], p->columns - whole);
        multiply_wide(at, type, x + whole * (type == BFLOAT16 ? 2 : 4), width, tokens, STEP, 0, sums);
    }
#define HALVED(v) _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1))
    ONCE for (int k = 0; k < tokens; k++)
        keep(p, row, apart, token + k, totals(HALVED(sums[k]), HALVED(sums[tokens + k]), HALVED(sums[2 * tokens + k]),
                                              HALVED(sums[3 * tokens + k])));
#undef HALVED
}

#define OF_TYPE(name, type, size)                                                                             \
    AVX512 static void name(const Product *p, const uint16_t *const *w, long row, long apart, const void *x,  \
                            long width, long token, long tokens, long ahead)                                  \
    {                                                                                                         \
        const char *at = x;                                                                                   \
        for (; tokens >= 6; token += 6, tokens -= 6, at += 6 * width * size)                                  \
            four_rows_wide(p, w, type, row, apart, at, width, token, 6, ahead);                               \
        switch (tokens) {                                                                                     \
        case 5: four_rows_wide(p, w, type, row, apart, at, width, token, 5, ahead); break;                    \
        case 4: four_rows_wide(p, w, type, row, apart, at, width, token, 4, ahead); break;                    \
        case 3: four_rows_wide(p, w, type, row, apart, at, width, token, 3, ahead); break;                    \
        case 2: four_rows_wide(p, w, type, row, apart, at, width, token, 2, ahead); break;                    \
        case 1: four_rows_wide(p, w, type, row, apart, at, width, token, 1, ahead);                           \
        }                                                                                                     \
    }
OF_TYPE(bfloat16_rows_wide, BFLOAT16, 2)
OF_TYPE(float16_rows_wide, FLOAT16, 4)
#undef OF_TYPE

/* --- AVX-512: 16 columns of each row, of eight bits ------------------------------------------------------- */

enum { MOST_TOKENS = 8 };

/* of two rows */
WIDE __m512 scales_of(const uint8_t *const *w, long at)
{
    const __m512 first = _mm512_set1_ps(*(const float *)(w[0] + at));
    return _mm512_mask_broadcastss_ps(first, 0xff00, _mm_load_ss((const float *)(w[1] + at)));
}

/* The sums of a group of columns are scaled, and added to those of all. */
WIDE void four_rows_in_bytes(const Product *p, const uint16_t *const *rows, int fp8, long row, long apart,
                             const uint16_t *x, long width, long token, int tokens, long ahead)
{
    const uint8_t *const *w = (const uint8_t *const *)rows;
    __m512 all[2 * MOST_TOKENS];
    ONCE for (int i = 0; i < 2 * tokens; i++)
        all[i] = _mm512_setzero_ps();
    for (long from = 0, scale = p->columns; from < p->columns; from += GROUP, scale += by_row(p->kind) ? 0 : 4) {
        const long to = from + GROUP < p->columns ? from + GROUP : p->columns;
        __m512 sums[2 * MOST_TOKENS];
        ONCE for (int i = 0; i < 2 * tokens; i++)
            sums[i] = _mm512_setzero_ps();
        read_ahead(rows, from / 2 + ahead);
        read_ahead(rows, from / 2 + 32 + ahead);
        if (from % (16 * GROUP) == 0) /* a line of a cache has the scales of so many columns */
            read_ahead(rows, scale / 2 + ahead);
        for (long c = from; c < to; c += 16) {
            const __m512bh two[] = {widened_bytes(fp8, w[0] + c, w[1] + c), widened_bytes(fp8, w[2] + c, w[3] + c)};
            ONCE for (int k = 0; k < tokens; k++) {
                const __m256i v = _mm256_loadu_si256((const __m256i *)(x + k * width + c));
                ONCE for (int i = 0; i < 2; i++)
                    sums[2 * k + i] = _mm512_dpbf16_ps(sums[2 * k + i], two[i], (__m512bh)_mm512_broadcast_i64x4(v));
            }
        }
        const __m512 by[] = {scales_of(w, scale), scales_of(w + 2, scale)};
        ONCE for (int i = 0; i < 2 * tokens; i++)
            all[i] = _mm512_fmadd_ps(sums[i], by[i % 2], all[i]);
    }
    ONCE for (int k = 0; k < tokens; k++) {
        __m256 each[ROWS];
        ONCE for (int i = 0; i < 2; i++) {
            each[2 * i] = _mm512_castps512_ps256(all[2 * k + i]);
            each[2 * i + 1] = _mm512_extractf32x8_ps(all[2 * k + i], 1);
        }
        const __m128 four = totals(each[0], each[1], each[2], each[3]);
        keep(p, row, apart, token + k, fp8 ? _mm_mul_ps(four, _mm_set1_ps(LESS)) : four);
    }
}

#define OF_BYTES(name, fp8)                                                                                   \
    AVX512 static void name(const Product *p, const uint16_t *const *w, long row, long apart, const void *x,  \
                            long width, long token, long tokens, long ahead)                                  \
    {                                                                                                         \
        const uint16_t *at = x;                                                                               \
        for (; tokens >= 8; token += 8, tokens -= 8, at += 8 * width)                                         \
            four_rows_in_bytes(p, w, fp8, row, apart, at, width, token, 8, ahead);                            \
        switch (tokens) {                                                                                     \
        case 7: four_rows_in_bytes(p, w, fp8, row, apart, at, width, token, 7, ahead); break;                 \
        case 6: four_rows_in_bytes(p, w, fp8, row, apart, at, width, token, 6, ahead); break;                 \
        case 5: four_rows_in_bytes(p, w, fp8, row, apart, at, width, token, 5, ahead); break;                 \
        case 4: four_rows_in_bytes(p, w, fp8, row, apart, at, width, token, 4, ahead); break;                 \
        case 3: four_rows_in_bytes(p, w, fp8, row, apart, at, width, token, 3, ahead); break;                 \
        case 2: four_rows_in_bytes(p, w, fp8, row, apart, at, width, token, 2, ahead); break;                 \
        case 1: four_rows_in_bytes(p, w, fp8, row, apart, at, width, token, 1, ahead);                        \
        }                                                                                                     \
    }
OF_BYTES(int8_rows, 0)
OF_BYTES(fp8_rows, 1)
#undef OF_BYTES

/* --- products --------------------------------------------------------------------------------------------- */

/* What the CPU multiplies with */
int dense_level(void)
{
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c"))
        return WITH_NOTHING;
    const int wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                     __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return wide && __builtin_cpu_supports("avx512bf16") ? WITH_AVX512_BF16 : WITH_AVX2;
}

/* One token as it is multiplied, `width` numbers: of bfloat16 and AVX2 the first of each two come first, of 16 */
AVX2 static void token_as(const uint16_t *x, long columns, long width, int type, int as_it_is, long token, void *into)
{
    const uint16_t *from = x + token * columns;
    if (as_it_is) {
        uint16_t *to = (uint16_t *)into + token * width;
        memcpy(to, from, sizeof(uint16_t) * (size_t)columns);
        memset(to + columns, 0, sizeof(uint16_t) * (size_t)(width - columns));
        return;
    }
    float *to = (float *)into + token * width;
    for (long c = 0; c < width; c += 16) {
        uint16_t space[STEP];
        const uint16_t *at = from + c;
        if (c + 16 > columns)
            at = rest(at, space, c < columns ? columns - c : 0);
        for (int half = 0; half < 2; half++)
            _mm256_storeu_ps(to + c + 8 * half, widened(at, type, half));
    }
}

/* y [tokens, rows] = x [tokens, columns] times W [rows, columns] transposed, plus bias [rows] float32 or NULL.
 * x and y are of `type`, and so is W if its `kind` is AS_IT_IS; from one row of it to the next are `stride` numbers of
 * 16 bits. A W in bytes wants AVX512-BF16 and bfloat16, and columns that are a multiple of 64. `level` is what is
 * computed with. Returns 0, or 1 where memory is short. */
int dense_product(int kind, const uint16_t *w, long rows, long columns, long stride, const uint16_t *x, uint16_t *y,
                  int type, long tokens, const float *bias, int threads, int level)
{
    static Multiplied *const WITH[][2] = {{bfloat16_rows, float16_rows}, {bfloat16_rows_wide, float16_rows_wide}};
    const int as_it_is = type == BFLOAT16 && level == WITH_AVX512_BF16;
    Multiplied *const multiplied = is_fp8(kind)       ? fp8_rows
                                   : kind != AS_IT_IS ? int8_rows
                                                      : WITH[level == WITH_AVX512_BF16][type == FLOAT16];
    const Product p = {kind, rows, columns, y, type, bias};
    const long width = (columns + STEP - 1) / STEP * STEP, size = as_it_is ? 2 : 4;
    const int at_once = kind == AS_IT_IS ? MORE_TOKENS : MOST_TOKENS;
    const long groups = NEAR / (at_once * width * size), near = at_once * (groups ? groups : 1);
    const long ahead = kind != AS_IT_IS ? (AHEAD + stride - 1) / stride * stride : tokens > WAITING ? stride : 0;
    const int copied = !as_it_is || width != columns;
    char *own = copied ? malloc((size_t)(tokens * width * size)) : NULL;
    if (copied && !own)
        return 1;
    const char *given = copied ? own : (const char *)x;
    const long tiles = (rows + ROWS - 1) / ROWS, most = tokens <= SCATTERED ? APART : 1;
#pragma omp parallel num_threads(threads)
    {
        if (copied) {
#pragma omp for schedule(static)
            for (long token = 0; token < tokens; token++)
                token_as(x, columns, width, type, as_it_is, token, own);
        }
        for (long token = 0; token < tokens; token += near) {
            const long count = tokens - token < near ? tokens - token : near;
#pragma omp for schedule(static) nowait
            for (long n = 0; n < tiles; n++) {
                const long first = n - n % most, left = tiles - first, apart = left < most ? left : most;
                const long row = ROWS * first + n % most; /* the others are `apart` from it, and each other */
                const uint16_t *at[ROWS];
                for (int r = 0; r < ROWS; r++)
                    at[r] = w + (row + r * apart < rows ? row + r * apart : rows - 1) * stride;
                multiplied(&p, at, row, apart, given + token * width * size, width, token, count,
                           ahead * (apart == 1 ? ROWS : 1));
            }
        }
    }
    free(own);
    return 0;
}

#else

int dense_level(void) { return WITH_NOTHING; }

int dense_product(int kind, const uint16_t *w, long rows, long columns, long stride, const uint16_t *x, uint16_t *y,
                  int type, long tokens, const float *bias, int threads, int level)
{
    return 1;
}

#endif
