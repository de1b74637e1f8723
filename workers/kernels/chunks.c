/* Attention of consecutive tokens of one sequence over its pages, in bfloat16, for CPUs with AVX512-BF16.
 *
 * A query is a lane of a register, and so are its scores, its softmax and its sums: keys and values are read number by
 * number, each multiplied with many queries. Scores and softmax are float32; a weight is rounded to bfloat16 before
 * it is multiplied with values. A query is computed in the same order whatever stands beside it, block of keys by
 * block of keys (as in FlashAttention): these begin at fixed places of the sequence, and those that nobody sees are
 * left out.
 */

#include "lanes.h"

SOURCE(chunks)

#if defined(__x86_64__) && defined(__GNUC__)

#include <math.h>
#include <stdlib.h>

enum {
    PAGE = 32,       /* tokens of a page */
    BLOCK = 4,       /* pages, whose scores are computed before their values are read */
    KEYS = BLOCK * PAGE,
    VECTORS = 3,     /* registers of queries, or fewer where these are few */
    ROWS = 8,        /* keys, or numbers of a value, that are multiplied with these at once */
    QUERIES = VECTORS * LANES,
    MOST_HEAD = 1024,
};

static const uint16_t NONE[MOST_HEAD]; /* what there is where no token is: a page's rest may be anything */

typedef struct {
    const uint16_t *q; /* [tokens][heads][head_dim], a token `q_stride` after the one before */
    long q_stride;
    const uint16_t *keys, *values; /* [pages][kv_heads][PAGE][head_dim], a page `page_stride` after the one before */
    long page_stride;
    uint16_t *y; /* [tokens][heads][value_dim] */
    const int64_t *pages;
    long first_page, tokens, context, kv_heads, group, head_dim, value_dim, window;
    int mutual;
    float scale, cap;   /* cap: 0, where there is none */
    const float *sinks; /* [heads], or NULL */
} Chunk;

/* What the queries of a block have so far */
typedef struct {
    uint32_t q[MOST_HEAD / 2 * QUERIES]; /* [head_dim / 2][vectors][LANES] */
    float out[MOST_HEAD * QUERIES];      /* [value_dim][vectors][LANES] */
    float scores[KEYS * QUERIES];
    uint32_t weights[KEYS / 2 * QUERIES];
    uint32_t values[KEYS / 2 * MOST_HEAD]; /* [keys / 2][value_dim], two keys' numbers side by side */
    int own[QUERIES];                 /* key of each query */
} Space;

/* ROWS rows of pairs, a row `row` words after the one before and a pair `pair`, times the queries' pairs */
WIDE void multiply(const uint32_t *w, long row, long pair, const uint32_t *x, int vectors, long pairs, __m512 *s)
{
    for (long c = 0; c < pairs; c++) {
        __m512bh v[VECTORS];
#pragma GCC unroll 3
        for (int i = 0; i < vectors; i++)
            v[i] = (__m512bh)_mm512_load_si512(x + (c * vectors + i) * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            int both;
            memcpy(&both, w + r * row + c * pair, sizeof both);
            const __m512bh two = (__m512bh)_mm512_set1_epi32(both);
#pragma GCC unroll 3
            for (int i = 0; i < vectors; i++)
                s[r * vectors + i] = _mm512_dpbf16_ps(s[r * vectors + i], v[i], two);
        }
    }
}

/* The scores of ROWS keys, the first of which is `number` */
WIDE void score(const Chunk *a, Space *s, const uint16_t *keys, int vectors, long number, float *scores)
{
    __m512 sums[ROWS * VECTORS];
#pragma GCC unroll 24
    for (int i = 0; i < ROWS * vectors; i++)
        sums[i] = _mm512_setzero_ps();
    multiply((const uint32_t *)keys, a->head_dim / 2, 1, s->q, vectors, a->head_dim / 2, sums);
    const __m512 scale = _mm512_set1_ps(a->cap == 0 ? a->scale : -2 * fabsf(a->scale) / a->cap);
#pragma GCC unroll 24
    for (int i = 0; i < ROWS * vectors; i++) {
        const __m512i own = _mm512_loadu_si512(s->own + i % vectors * LANES);
        const __m512i key = _mm512_set1_epi32((int)number + i / vectors);
        const __m512i last = a->mutual ? _mm512_set1_epi32((int)a->context - 1) : own;
        __mmask16 seen = _mm512_cmple_epi32_mask(key, last);
        if (a->window)
            seen &= _mm512_cmpgt_epi32_mask(key, _mm512_sub_epi32(own, _mm512_set1_epi32((int)a->window)));
        __m512 each = _mm512_mul_ps(sums[i], scale);
        if (a->cap != 0) { /* tanh u is (1 - e) / (1 + e), e being exp -2 |u|, and has the sign of u */
            const __m512 sign = _mm512_and_ps(sums[i], _mm512_set1_ps(-0.0f)), one = _mm512_set1_ps(1);
            const __m512 e = exponential_wide(_mm512_or_ps(each, _mm512_set1_ps(-0.0f)));
            each = _mm512_div_ps(_mm512_sub_ps(one, e), _mm512_add_ps(one, e));
            each = _mm512_mul_ps(_mm512_or_ps(each, sign), _mm512_set1_ps(a->cap));
        }
        _mm512_store_ps(scores + i * LANES, _mm512_mask_blend_ps(seen, _mm512_set1_ps(-INFINITY), each));
    }
}

/* Scores of `keys` keys to weights, two keys' side by side; returns what the sums until now are multiplied with */
WIDE void weigh(Space *s, long keys, int vectors, int vector, __m512 *most, __m512 *total, __m512 *kept)
{
    float *at = s->scores + vector * LANES;
    uint32_t *to = s->weights + vector * LANES;
    const long apart = vectors * LANES;
    __m512 largest = *most, sum = _mm512_setzero_ps();
    for (long k = 0; k < keys; k++)
        largest = _mm512_max_ps(largest, _mm512_load_ps(at + k * apart));
    const __mmask16 none = _mm512_cmp_ps_mask(largest, _mm512_set1_ps(-INFINITY), _CMP_EQ_OQ);
    const __m512 less = _mm512_mask_blend_ps(none, largest, _mm512_setzero_ps());
    for (long k = 0; k < keys; k += 2) {
        const __m512 a = exponential_wide(_mm512_sub_ps(_mm512_load_ps(at + k * apart), less));
        const __m512 b = exponential_wide(_mm512_sub_ps(_mm512_load_ps(at + (k + 1) * apart), less));
        sum = _mm512_add_ps(sum, _mm512_add_ps(a, b));
        const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(a));
        const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(b));
        _mm512_store_si512(to + k / 2 * apart, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
    *kept = exponential_wide(_mm512_sub_ps(*most, less));
    *total = _mm512_fmadd_ps(*total, *kept, sum);
    *most = largest;
}

/* ROWS numbers of the sums: with `kept` of what they were, and `pairs` pairs of keys more */
WIDE void add(const Chunk *a, Space *s, long number, int vectors, long pairs, const __m512 *kept)
{
    __m512 sums[ROWS * VECTORS];
    float *out = s->out + number * vectors * LANES;
#pragma GCC unroll 24
    for (int i = 0; i < ROWS * vectors; i++)
        sums[i] = _mm512_mul_ps(_mm512_load_ps(out + i * LANES), kept[i % vectors]);
    multiply(s->values + number, 1, a->value_dim, s->weights, vectors, pairs, sums);
#pragma GCC unroll 24
    for (int i = 0; i < ROWS * vectors; i++)
        _mm512_store_ps(out + i * LANES, sums[i]);
}

/* Two keys' values, number by number */
WIDE void pair_values(const uint16_t *first, const uint16_t *second, long size, uint32_t *to)
{
    for (long i = 0; i < size; i += LANES) {
        const __mmask16 some = below(i, size);
        const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, first + i));
        const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, second + i));
        _mm512_mask_storeu_epi32(to + i, some, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
}

/* Queries from `query` on, which are numbered token by token, of one key head */
WIDE void attend(const Chunk *a, Space *s, long head, long query, int vectors)
{
    const long count = a->tokens * a->group, before = a->context - a->tokens;
    for (int v = 0; v < vectors; v++) {
        const uint16_t *rows[LANES];
        for (int i = 0; i < LANES; i++) {
            const long n = query + v * LANES + i, own = n < count ? n : count - 1;
            const uint16_t *q = a->q + own / a->group * a->q_stride + (head * a->group + own % a->group) * a->head_dim;
            rows[i] = n < count ? q : NULL;
            s->own[v * LANES + i] = (int)(before + own / a->group);
        }
        side_by_side(rows, a->head_dim / 2, s->q + v * LANES, vectors * LANES);
    }
    memset(s->out, 0, sizeof(float) * a->value_dim * vectors * LANES);
    __m512 most[VECTORS], total[VECTORS], kept[VECTORS];
    for (int v = 0; v < vectors; v++) {
        most[v] = _mm512_set1_ps(-INFINITY);
        total[v] = _mm512_setzero_ps();
    }
    const long end = a->mutual ? a->context : s->own[vectors * LANES - 1] + 1; /* of the keys that one of these sees */
    const long begin = a->window && s->own[0] + 1 > a->window ? s->own[0] + 1 - a->window : 0;
    const long gone = a->first_page % BLOCK * PAGE; /* keys of the first block that are not there any more */
    for (long block = (begin + gone) / KEYS * KEYS - gone; block < end; block += KEYS) {
        const long from = block < begin ? begin / ROWS * ROWS : block, to = block + KEYS < end ? block + KEYS : end;
        const long keys = (to - from + ROWS - 1) / ROWS * ROWS;
        for (long k = 0; k < keys; k += ROWS) {
            const long key = from + k;
            const long at = a->pages[key / PAGE] * a->page_stride + (head * PAGE + key % PAGE) * a->head_dim;
            score(a, s, a->keys + at, vectors, key, s->scores + k * vectors * LANES);
            for (int i = 0; i < ROWS; i += 2) {
                const uint16_t *values = a->values + at + i * a->head_dim;
                const uint16_t *first = key + i < end ? values : NONE;
                const uint16_t *second = key + i + 1 < end ? values + a->head_dim : NONE;
                pair_values(first, second, a->value_dim, s->values + (k + i) / 2 * a->value_dim);
            }
        }
        for (int v = 0; v < vectors; v++)
            weigh(s, keys, vectors, v, most + v, total + v, kept + v);
        for (long i = 0; i < a->value_dim; i += ROWS)
            add(a, s, i, vectors, keys / 2, kept);
    }
    for (int v = 0; v < vectors; v++) {
        const long first = query + v * LANES;
        if (a->sinks) {
            float sinks[LANES];
            for (int i = 0; i < LANES; i++)
                sinks[i] = a->sinks[head * a->group + (first + i) % a->group];
            const __m512 sink = _mm512_loadu_ps(sinks), larger = _mm512_max_ps(most[v], sink);
            const __m512 share = exponential_wide(_mm512_sub_ps(most[v], larger));
            total[v] = _mm512_fmadd_ps(total[v], share, exponential_wide(_mm512_sub_ps(sink, larger)));
            kept[v] = _mm512_div_ps(share, total[v]);
        } else
            kept[v] = _mm512_div_ps(_mm512_set1_ps(1), total[v]);
        for (long d = 0; d < a->value_dim; d += LANES) {
            const long left = a->value_dim - d < LANES ? a->value_dim - d : LANES;
            __m512i r[LANES];
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) {
                const float *out = s->out + ((d + i) * vectors + v) * LANES;
                r[i] = i < left ? _mm512_castps_si512(_mm512_mul_ps(_mm512_load_ps(out), kept[v]))
                                : _mm512_setzero_si512();
            }
            turn(r);
            for (long i = 0; i < LANES && first + i < count; i++) {
                const long n = first + i, row = (n / a->group * a->kv_heads + head) * a->group + n % a->group;
                _mm256_mask_storeu_epi16(a->y + row * a->value_dim + d, (__mmask16)((1u << left) - 1),
                                         (__m256i)_mm512_cvtneps_pbh(_mm512_castsi512_ps(r[i])));
            }
        }
    }
}

#define OF(vectors)                                                                          \
    AVX512 static void attend_##vectors(const Chunk *a, Space *s, long head, long query)     \
    {                                                                                        \
        attend(a, s, head, query, vectors);                                                  \
    }
OF(1) OF(2) OF(3)
#undef OF

/* Attention of `tokens` tokens, the last of `context`: y [tokens, heads, value_dim].
 *
 * q [tokens, heads, head_dim], `q_stride` numbers from one token to the next; keys and values [pages, kv_heads, PAGE,
 * head_dim], `page_stride` numbers from one page to the next; `pages` those of the context, of which the first has
 * number `first_page` in the sequence. Where `mutual`, each token sees all others. head_dim is divided by 2, value_dim
 * by 8; both are at most 1024.
 * Returns 0, or 1 where memory is short. */
int chunks_attention(const void *q, long q_stride, const void *keys, const void *values, long page_stride, void *y,
                     const int64_t *pages, long first_page, long tokens, long context, long kv_heads, long group,
                     long head_dim, long value_dim, long window, int mutual, float scale, float cap,
                     const float *sinks, int threads)
{
    const Chunk a = {q, q_stride, keys, values, page_stride, y, pages, first_page, tokens, context, kv_heads, group,
                     head_dim, value_dim, window, mutual, scale, cap, sinks};
    const long count = tokens * group, blocks = (count + QUERIES - 1) / QUERIES;
    int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        Space *space = aligned_alloc(64, sizeof(Space));
        failed |= !space;
#pragma omp for collapse(2) schedule(dynamic)
        for (long head = 0; head < kv_heads; head++)
            for (long n = 0; n < blocks; n++) {
                const long query = (blocks - 1 - n) * QUERIES, left = count - query; /* those that see most first */
                if (!space)
                    continue;
                if (left > 2 * LANES)
                    attend_3(&a, space, head, query);
                else if (left > LANES)
                    attend_2(&a, space, head, query);
                else
                    attend_1(&a, space, head, query);
            }
        free(space);
    }
    return failed;
}

#else

int chunks_attention(const void *q, long q_stride, const void *keys, const void *values, long page_stride, void *y,
                     const int64_t *pages, long first_page, long tokens, long context, long kv_heads, long group,
                     long head_dim, long value_dim, long window, int mutual, float scale, float cap,
                     const float *sinks, int threads)
{
    return 1;
}

#endif
