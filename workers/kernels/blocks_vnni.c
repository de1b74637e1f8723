/* The products of blocks.c for CPUs with AVX-512 and its instructions for neural networks (VNNI), which multiply four
 * bytes and add them up at once: sixteen rows are computed together.
 *
 * One factor of these has no sign. Weights that have one are made 128 larger, and what that adds is taken from a sum
 * before it begins. Sums of integers are exact, and those of float32 are made in the order of blocks.c: so are the
 * bits of a product.
 */

#include "formats.h"

SOURCE(blocks_vnni)

#if defined(__x86_64__) && defined(__GNUC__)

#define VNNI __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")))
#define WIDE static inline __attribute__((always_inline)) VNNI

enum { FEWER = 4 }; /* tokens that are multiplied at once where TOGETHER are not left */

/* `sum`, and four columns of each row (without sign) times those four of a token. The compiler would load these into
 * a register first, which takes a quarter longer; and all of them, before it multiplies any. */
WIDE __m512i add_four(__m512i sum, __m512i rows, const int8_t *token)
{
    const struct { char bytes[4]; } *four = (const void *)token;
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(rows), "m"(*four));
    return sum;
}

/* The rows that are unpacked next, which are to be near by then */
typedef struct {
    Rows rows;  /* those that were unpacked last */
    long apart; /* bytes from each of them to the next; 0: nothing comes */
    long bytes; /* of a row */
} Ahead;

/* `tokens` from the `first` on times sixteen rows. What comes next is asked for piece by piece meanwhile: a core waits
 * for few lines at once, and all of them asked for before would have it wait. */
WIDE void multiply(const Tile *t, const Input *in, long first, int tokens, long columns, int group, int has_sign,
                   const Ahead *next, __m512 *y)
{
    const int8_t *x = in->numbers + 4 * place(in, first, 0, columns / 4);
    const float *scale = in->scale + place(in, first, 0, columns / 32);
    const long groups = columns / group, from = place(in, first, 0, groups);
#pragma GCC unroll 8
    for (int k = 0; k < tokens; k++)
        y[k] = _mm512_setzero_ps();
    for (long g = 0, line = 0; g < groups; g++) {
        for (; next->apart && line * groups < (g + 1) * next->bytes; line += 64)
            for (int i = 0; i < 16; i++)
                _mm_prefetch((const char *)next->rows[i] + next->apart + line, _MM_HINT_T0);
        __m512i sum[TOGETHER];
#pragma GCC unroll 8
        for (int k = 0; k < tokens; k++)
            sum[k] = has_sign ? _mm512_set1_epi32(in->begin[from + TOGETHER * g + k]) : _mm512_setzero_si512();
#pragma GCC unroll 8
        for (int i = 0; i < group / 4; i++) {
            const long n = g * (group / 4) + i;
            const __m512i four = _mm512_load_si512(t->quads + 64 * n);
#pragma GCC unroll 8
            for (int k = 0; k < tokens; k++)
                sum[k] = add_four(sum[k], four, x + 4 * (TOGETHER * n + k));
        }
        const __m512 of_rows = _mm512_load_ps(t->scale + 16 * g);
#pragma GCC unroll 8
        for (int k = 0; k < tokens; k++) {
            const __m512 by = _mm512_mul_ps(of_rows, _mm512_set1_ps(scale[TOGETHER * (g * group / 32) + k]));
            y[k] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[k]), by, y[k]);
            if (!has_sign) {
                const __m512 least = _mm512_load_ps(t->least + 16 * g);
                y[k] = _mm512_fnmadd_ps(least, _mm512_set1_ps(in->sums[from + TOGETHER * g + k]), y[k]);
            }
        }
    }
}

/* Some tokens, by how their weights are: a function each, which all formats share that are alike once unpacked */
#define ALIKE(name, group, has_sign)                                                                        \
    VNNI __attribute__((noinline)) static void name(const Tile *t, const Input *in, long first, int tokens, \
                                                    long columns, const Ahead *next, __m512 *y)             \
    {                                                                                                       \
        if (tokens == TOGETHER)                                                                             \
            multiply(t, in, first, TOGETHER, columns, group, has_sign, next, y);                            \
        else if (tokens == FEWER)                                                                           \
            multiply(t, in, first, FEWER, columns, group, has_sign, next, y);                               \
        else                                                                                                \
            multiply(t, in, first, 1, columns, group, has_sign, next, y);                                   \
    }
ALIKE(multiply_32, 32, 0)
ALIKE(multiply_16, 16, 0)
ALIKE(multiply_signed, 32, 1)
#undef ALIKE

/* --- products ------------------------------------------------------------------------------------------ */

/* of sixteen rows */
WIDE void keep_both(const Product *p, long token, long row, long apart, __m512 sums)
{
    keep(p, token, row, apart, _mm512_castps512_ps256(sums));
    keep(p, token, row + 8 * apart, apart, _mm512_extractf32x8_ps(sums, 1));
}

WIDE void sixteen_rows(int kind, const Product *p, Rows rows, const Input *in, const Tile *t, long row, long apart)
{
    unpack(kind, rows, t, p->columns, 16, 0);
    unpack(kind, rows + 8, t, p->columns, 16, 8);
    Ahead next = {rows, p->row_bytes * (apart == 1 ? 16 : 1), p->row_bytes};
    for (long token = 0, count; token < p->tokens; token += count, next.apart = 0) {
        __m512 y[TOGETHER];
        const long left = p->tokens - token;
        count = left >= TOGETHER ? TOGETHER : left >= FEWER ? FEWER : 1;
        if (FORMATS[kind].bits == 8)
            multiply_signed(t, in, token, (int)count, p->columns, &next, y);
        else if (FORMATS[kind].group == 16)
            multiply_16(t, in, token, (int)count, p->columns, &next, y);
        else
            multiply_32(t, in, token, (int)count, p->columns, &next, y);
        for (int k = 0; k < count; k++)
            keep_both(p, token + k, row, apart, y[k]);
    }
}

#define FORMAT(kind)                                                                                           \
    VNNI static void product_##kind(const Product *p, Rows rows, const Input *in, const Tile *t, long row,     \
                                    long apart)                                                                \
    {                                                                                                          \
        sixteen_rows(kind, p, rows, in, t, row, apart);                                                        \
    }
FORMAT(Q4_0) FORMAT(Q4_1) FORMAT(Q5_0) FORMAT(Q5_1) FORMAT(Q8_0) FORMAT(Q4_K) FORMAT(Q5_K) FORMAT(Q6_K)
FORMAT(IQ4_NL) FORMAT(IQ4_XS) FORMAT(MXFP4) FORMAT(INT4_32) FORMAT(INT4_64) FORMAT(INT4_128)
#undef FORMAT

Multiplied *const PRODUCTS_VNNI[] = {
    product_Q4_0, product_Q4_1, product_Q5_0,   product_Q5_1,   product_Q8_0, product_Q4_K,
    product_Q5_K, product_Q6_K, product_IQ4_NL, product_IQ4_XS, product_MXFP4,
    product_INT4_32, product_INT4_64, product_INT4_128,
};

#endif
