/* Products of many tokens with weights of bfloat16, or of eight bits as rows.c has them, that are kept as they were
 * stored, for CPUs with AVX512-BF16: at the rate at which it multiplies.
 *
 * A register of sums has 16 tokens, which are multiplied with the numbers of one row, two columns at once. So tokens
 * are laid side by side first, and rows are read where they lie. What is used again and again stays in a cache: some
 * columns of 64 tokens in the first, some rows in the second. A sum is made column by column, whatever is computed
 * beside it.
 *
 * Numbers of eight bits are exact in bfloat16, which is made of some rows at once; their scales are multiplied with
 * float32 sums. So nothing is rounded but the result.
 */

#define OWN_LANES
#include "lanes.h"

SOURCE(many)

#if defined(__x86_64__) && defined(__GNUC__)

#include <stdlib.h>

enum {
    PANEL = 4,        /* registers of tokens that a row is multiplied with, or fewer where the tokens end */
    SUMS = 24,        /* registers of sums: of 6 rows, or of more where the panel has fewer */
    DEEP = 1024,      /* columns until the sums are laid aside and others taken up */
    HELD = 320 << 10, /* bytes of rows that all tokens are multiplied with before the next ones are */
    MOST = 240,       /* rows of these */
    LINE = 32,        /* numbers of a result that are written at once */
};

typedef struct {
    int kind;
    const uint8_t *w; /* of each row what it is made of: its numbers, and after bytes its scales in float32 */
    long rows, columns, stride; /* bytes from one row to the next */
    uint16_t *y; /* [tokens][rows], or half of these */
    long tokens;
    const float *bias; /* [rows], or NULL */
    int gate;          /* what opens the second half of the rows, with the first; UNGATED: all are results */
} Many;

/* `count` rows that are multiplied before the next ones are: from `first` on, or where gates are, as many of both
 * halves */
typedef struct {
    long first, count;
} Some;

static long row_of(const Many *p, Some some, long n)
{
    if (p->gate == UNGATED)
        return some.first + n;
    return some.first / 2 + n + (n < some.count / 2 ? 0 : (p->rows - some.count) / 2);
}

/* `vectors` registers of tokens, side by side in x [pairs][vectors], times as many rows as there are sums for; added
 * to what was `begun`, times the scales `by` of these rows unless it is NULL. What lies `ahead` numbers behind the rows
 * is fetched meanwhile. */
WIDE void multiply(const uint16_t *const *w, const uint32_t *x, int vectors, long pairs, float *sums, int begun,
                   const float *by, long ahead)
{
    __m512 s[SUMS];
#pragma GCC unroll 24
    for (int i = 0; i < SUMS; i++)
        s[i] = begun && !by ? _mm512_load_ps(sums + LANES * i) : _mm512_setzero_ps();
    for (long c = 0; c < pairs; c++) {
        if (c % 16 == 0) /* a line of a cache */
            for (int r = 0; r < SUMS / vectors; r++)
                _mm_prefetch((const char *)(w[r] + 2 * c + ahead), _MM_HINT_T1);
        __m512bh v[PANEL];
#pragma GCC unroll 4
        for (int i = 0; i < vectors; i++)
            v[i] = (__m512bh)_mm512_load_si512(x + (c * vectors + i) * LANES);
#pragma GCC unroll 24
        for (int r = 0; r < SUMS / vectors; r++) {
            int both;
            memcpy(&both, w[r] + 2 * c, sizeof both);
            const __m512bh two = (__m512bh)_mm512_set1_epi32(both);
#pragma GCC unroll 4
            for (int i = 0; i < vectors; i++)
                s[r * vectors + i] = _mm512_dpbf16_ps(s[r * vectors + i], v[i], two);
        }
    }
#pragma GCC unroll 24
    for (int i = 0; i < SUMS; i++) {
        if (by && begun)
            s[i] = _mm512_fmadd_ps(s[i], _mm512_set1_ps(by[i / vectors]), _mm512_load_ps(sums + LANES * i));
        else if (by)
            s[i] = _mm512_mul_ps(s[i], _mm512_set1_ps(by[i / vectors]));
        _mm512_store_ps(sums + LANES * i, s[i]);
    }
}

#define OF(vectors)                                                                                              \
    AVX512 static void multiply_##vectors(const uint16_t *const *w, const uint32_t *x, long pairs, float *sums,  \
                                          int begun, const float *by, long ahead)                                \
    {                                                                                                            \
        multiply(w, x, vectors, pairs, sums, begun, by, ahead);                                                  \
    }
OF(1) OF(2) OF(3) OF(4)
#undef OF

AVX512 static void tokens_side_by_side(const Many *p, const uint16_t *x, long token, uint32_t *to, long apart)
{
    const uint16_t *rows[LANES];
    for (int i = 0; i < LANES; i++)
        rows[i] = token + i < p->tokens ? x + (token + i) * p->columns : NULL;
    side_by_side(rows, p->columns / 2, to, apart);
}

/* The sum of row n of these, and 16 tokens */
WIDE __m512 sum_of(const Many *p, Some some, const float *sums, long apart, long n)
{
    const __m512 sum = _mm512_load_ps(sums + n * apart);
    return p->bias ? _mm512_add_ps(sum, _mm512_set1_ps(p->bias[row_of(p, some, n)])) : sum;
}

/* Results of 16 tokens and these rows, whose sums are `apart` numbers from each other, to where they belong. Two stand
 * side by side, so that of each token a line of a cache is written at once. */
AVX512 static void keep(const Many *p, Some some, const float *sums, long apart, long token)
{
    const __m512i zipped = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                            21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const int divided = p->gate == UNGATED ? 1 : 2;
    const long width = p->rows / divided, first = some.first / divided, count = some.count / divided;
    const long tokens = p->tokens - token < LANES ? p->tokens - token : LANES;
    for (long from = 0, to; from < count; from = to) {
        to = from + LINE - (first + from) % LINE;
        to = to < count ? to : count;
        __m512i r[LANES];
        for (int i = 0; i < LANES; i++) {
            __m512 each[2];
            for (int k = 0; k < 2; k++) {
                const long n = from + 2 * i + k < to ? from + 2 * i + k : from;
                each[k] = sum_of(p, some, sums, apart, n);
                if (p->gate != UNGATED)
                    each[k] = opened(rounded_lanes(each[k]), rounded_lanes(sum_of(p, some, sums, apart, count + n)),
                                     p->gate);
            }
            r[i] = _mm512_permutexvar_epi16(zipped, (__m512i)_mm512_cvtne2ps_pbh(each[1], each[0]));
        }
        turn(r);
        const __mmask32 line = (__mmask32)((1ull << (to - from)) - 1);
        for (long i = 0; i < tokens; i++)
            _mm512_mask_storeu_epi16(p->y + (token + i) * width + first + from, line, r[i]);
    }
}

/* Numbers of eight bits as bfloat16 */
AVX512 static void widen(const uint8_t *row, int kind, long columns, uint16_t *to)
{
    for (long c = 0; c < columns; c += 2 * LANES) {
        const uint8_t *at = row + c;
        _mm512_storeu_si512(to + c, (__m512i)(is_fp8(kind) ? widened_bytes(1, at, at + LANES)
                                                           : widened_bytes(0, at, at + LANES)));
    }
}

/* Some rows, whose numbers are in `own` unless it is NULL, times the tokens of one panel; what lies behind them is
 * fetched where it comes next */
AVX512 static void rows_times(const Many *p, Some some, const uint16_t *own, long token, int vectors, const uint32_t *x,
                              float *sums, int comes_next)
{
    static void (*const MULTIPLY[])(const uint16_t *const *, const uint32_t *, long, float *, int, const float *,
                                    long) = {multiply_1, multiply_2, multiply_3, multiply_4};
    const int rows = SUMS / vectors, groups = p->kind != AS_IT_IS && !by_row(p->kind);
    const float more = is_fp8(p->kind) ? LESS : 1;
    const long most = groups ? GROUP : DEEP;
    const long ahead = some.count / (p->gate == UNGATED ? 1 : 2) * (p->stride / 2);
    for (long c = 0; c < p->columns; c += most) {
        const long deep = p->columns - c < most ? p->columns - c : most;
        for (long n = 0; n < some.count; n += rows) {
            const uint16_t *at[SUMS];
            float by[SUMS];
            for (int r = 0; r < rows; r++) {
                const long own_row = n + r < some.count ? n + r : some.count - 1;
                const uint8_t *row = p->w + row_of(p, some, own_row) * p->stride;
                at[r] = (own ? own + own_row * p->columns : (const uint16_t *)row) + c;
                if (p->kind != AS_IT_IS) {
                    memcpy(by + r, row + p->columns + (groups ? c / GROUP * 4 : 0), 4);
                    by[r] *= more;
                }
            }
            MULTIPLY[vectors - 1](at, x + c / 2 * vectors * LANES, deep / 2, sums + n * vectors * LANES, c > 0,
                                  p->kind == AS_IT_IS ? NULL : by, comes_next ? ahead : 0);
        }
    }
    for (int v = 0; v < vectors; v++)
        keep(p, some, sums + v * LANES, vectors * LANES, token + v * LANES);
}

/* y [tokens, rows] = x [tokens, columns] times W [rows, columns] transposed, plus bias [rows] float32 or NULL, x and y
 * of bfloat16. W is of `kind`, and from one row of it to the next are `stride` bytes; columns are even, where a kind
 * has bytes a multiple of 64, and of those that share a scale. Unless `gate` is UNGATED, y [tokens, rows / 2] is the
 * second half of that times what is made of the first. Returns 0, or 1 where memory is short. */
int many_product(int kind, const uint8_t *w, long rows, long columns, long stride, const uint16_t *x, uint16_t *y,
                 long tokens, const float *bias, int gate, int threads)
{
    const Many p = {kind, w, rows, columns, stride, y, tokens, bias, gate};
    const long groups = (tokens + LANES - 1) / LANES, panels = (groups + PANEL - 1) / PANEL, pairs = columns / 2;
    long held = HELD / (2 * columns), share = (rows + threads - 1) / threads;
    held = held > MOST ? MOST : held;
    held = (held < share ? held : share) / SUMS * SUMS;
    held = held ? held : SUMS;
    const long blocks = (rows + held - 1) / held;
    uint32_t *given = aligned_alloc(64, sizeof(uint32_t) * LANES * groups * pairs);
    if (!given)
        return 1;
    int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
#pragma omp for schedule(static)
        for (long group = 0; group < groups; group++) {
            const long panel = group / PANEL, left = groups - panel * PANEL, vectors = left < PANEL ? left : PANEL;
            uint32_t *to = given + (panel * PANEL * pairs + group % PANEL) * LANES;
            tokens_side_by_side(&p, x, group * LANES, to, vectors * LANES);
        }
        float *sums = aligned_alloc(64, sizeof(float) * LANES * PANEL * (held + SUMS));
        uint16_t *own = kind == AS_IT_IS ? NULL : aligned_alloc(64, sizeof(uint16_t) * held * columns);
        const int able = sums && (kind == AS_IT_IS || own);
        failed |= !able;
#pragma omp for schedule(dynamic)
        for (long block = 0; block < blocks; block++) {
            const long first = block * held, left = rows - first;
            const Some some = {first, left < held ? left : held};
            if (!able)
                continue;
            for (long n = 0; own && n < some.count; n++)
                widen(w + row_of(&p, some, n) * stride, kind, columns, own + n * columns);
            for (long panel = 0; panel < panels; panel++) {
                const long group = panel * PANEL, more = groups - group;
                rows_times(&p, some, own, group * LANES, (int)(more < PANEL ? more : PANEL),
                           given + group * pairs * LANES, sums, !own && panel + 1 == panels && left > some.count);
            }
        }
        free(own);
        free(sums);
    }
    free(given);
    return failed;
}

#else

int many_product(int kind, const uint8_t *w, long rows, long columns, long stride, const uint16_t *x, uint16_t *y,
                 long tokens, const float *bias, int gate, int threads)
{
    return 1;
}

#endif
