/* Products with weights in ggml's blocks, for CPUs with AVX2: y = x Wᵀ.
 *
 * The input is rounded to int8 in groups of 32 that share a scale, as llama.cpp does; all else is exact up to
 * the order of float32 sums. Eight rows of W are computed at once, a register of sums having one for each row.
 * A token is computed in the same order whatever stands beside it, so that its bits do not depend on how many
 * there are, nor on the number of threads.
 *
 * What the formats are, formats.h says. Of one token the products are made where the weights lie (`one_token`). For
 * more the rows are unpacked first, to bytes in which one register holds four columns of each row, so that nothing
 * is added across lanes (`unpack`, `multiply`); with AVX-512 and VNNI that is done in blocks_vnni.c.
 *
 * Built at install where there is a compiler, and loaded by compiled.py; nothing depends on it.
 */

#define OWN_SOURCE
#include "formats.h"

SOURCE(blocks)

enum { NOTHING, WITH_AVX2, WITH_VNNI };

#if defined(__x86_64__) && defined(__GNUC__)

#include <stdlib.h>

/* What this CPU can compute with */
int blocks_level(void)
{
    if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")))
        return NOTHING;
    const int wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                     __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return wide && __builtin_cpu_supports("avx512vnni") ? WITH_VNNI : WITH_AVX2;
}

/* --- the input, rounded -------------------------------------------------------------------------------- */

INLINE int sum_16(__m128i bytes)
{
    __m256i s = _mm256_cvtepi8_epi16(bytes);
    s = _mm256_madd_epi16(s, _mm256_set1_epi16(1));
    __m128i v = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
    v = _mm_add_epi32(v, _mm_shuffle_epi32(v, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(v, _mm_shuffle_epi32(v, 0xb1)));
}

/* One token. A group that holds what is not finite has a scale that is not, and so has all that comes of it. */
AVX2 static void round_token(const void *x, int type, long columns, int group, const Input *in, long token)
{
    const long at = token * columns;
    const __m256 sign = _mm256_set1_ps(-0.0f);
    for (long g = 0; g < columns / 32; g++) {
        __m256 v[4], most = _mm256_setzero_ps(), odd = _mm256_setzero_ps();
        for (int i = 0; i < 4; i++) {
            v[i] = load_any(x, at + 32 * g + 8 * i, type);
            most = _mm256_max_ps(most, _mm256_andnot_ps(sign, v[i]));
            odd = _mm256_add_ps(odd, _mm256_mul_ps(v[i], _mm256_setzero_ps())); /* 0, or NaN */
        }
        float m[8], o[8], largest = 0, nothing = 0;
        _mm256_storeu_ps(m, most);
        _mm256_storeu_ps(o, odd);
        for (int i = 0; i < 8; i++) {
            largest = m[i] > largest ? m[i] : largest;
            nothing += o[i];
        }
        float scale = largest / 127.0f, inverse = largest > 0 ? 127.0f / largest : 0;
        __m256 by = _mm256_set1_ps(nothing == 0 ? inverse : 0);
        __m256i n[4];
        for (int i = 0; i < 4; i++)
            n[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], by));
        __m256i a = _mm256_packs_epi32(n[0], n[1]), b = _mm256_packs_epi32(n[2], n[3]);
        __m256i bytes = _mm256_permutevar8x32_epi32(
            _mm256_packs_epi16(a, b), _mm256_set_epi32(7, 3, 6, 2, 5, 1, 4, 0));
        if (in->together == 1)
            _mm256_storeu_si256((__m256i *)(in->numbers + at + 32 * g), bytes);
        else {
            int32_t fours[8];
            _mm256_storeu_si256((__m256i *)fours, bytes);
            for (int i = 0; i < 8; i++)
                memcpy(in->numbers + 4 * place(in, token, 8 * g + i, columns / 4), fours + i, 4);
        }
        if (in->wide) {
            const __m256i order = _mm256_broadcastsi128_si256(
                _mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15));
            const __m256i ordered = _mm256_shuffle_epi8(bytes, order);
            __m256i *wide = (__m256i *)(in->wide + at + 32 * g);
            _mm256_storeu_si256(wide, _mm256_cvtepi8_epi16(_mm256_castsi256_si128(ordered)));
            _mm256_storeu_si256(wide + 1, _mm256_cvtepi8_epi16(_mm256_extracti128_si256(ordered, 1)));
        }
        const float by_rows = scale + nothing;
        in->scale[place(in, token, g, columns / 32)] = by_rows;
        int first = sum_16(_mm256_castsi256_si128(bytes)), second = sum_16(_mm256_extracti128_si256(bytes, 1));
        if (in->begin)
            in->begin[place(in, token, g, columns / 32)] = -128 * (first + second);
        else if (group == 16) {
            in->sums[place(in, token, 2 * g, columns / 16)] = by_rows * (float)first;
            in->sums[place(in, token, 2 * g + 1, columns / 16)] = by_rows * (float)second;
        } else
            in->sums[place(in, token, g, columns / 32)] = by_rows * (float)(first + second);
    }
}

/* --- more tokens --------------------------------------------------------------------------------------- */

/* four bytes, or two of twice their size, in each of eight places */
INLINE __m256i word(const void *p)
{
    int32_t w;
    memcpy(&w, p, 4);
    return _mm256_set1_epi32(w);
}

/* The compiler would make all products before it adds the first two, and has no registers for them. */
#define HOLD(v) __asm__("" : "+x"(v))

/* `tokens` times eight rows; `bits` of a weight say how many products int16 can hold */
INLINE void multiply(const Tile *t, const Input *in, long first, int tokens, long columns, int group, int bits, __m256 *y)
{
    const int together = bits == 4 ? 8 : bits == 5 ? 4 : 2;
    const __m256i ones = _mm256_set1_epi16(1);
    const long groups = columns / group;
#pragma GCC unroll 4
    for (int k = 0; k < tokens; k++)
        y[k] = _mm256_setzero_ps();
    for (long g = 0; g < groups; g++) {
        __m256i sum[4];
        const uint8_t *w = t->quads + (bits == 8 ? 16 : 8) * group * g;
#pragma GCC unroll 4
        for (int k = 0; k < tokens; k++)
            sum[k] = _mm256_setzero_si256();
        if (bits == 8) {
            const int16_t *x = in->wide + first * columns + group * g;
#pragma GCC unroll 16
            for (int i = 0; i < group / 2; i++) {
                const __m256i two = _mm256_load_si256((const __m256i *)(w + 32 * i));
#pragma GCC unroll 4
                for (int k = 0; k < tokens; k++) {
                    sum[k] = _mm256_add_epi32(sum[k], _mm256_madd_epi16(two, word(x + k * columns + 2 * i)));
                    HOLD(sum[k]);
                }
            }
        } else {
            const int8_t *x = in->numbers + first * columns + group * g;
#pragma GCC unroll 8
            for (int i = 0; i < group / 4; i += together) {
                __m256i part[4];
#pragma GCC unroll 8
                for (int j = 0; j < together; j++) {
                    const __m256i four = _mm256_load_si256((const __m256i *)(w + 32 * (i + j)));
#pragma GCC unroll 4
                    for (int k = 0; k < tokens; k++) {
                        __m256i two = _mm256_maddubs_epi16(four, word(x + k * columns + 4 * (i + j)));
                        part[k] = j == 0 ? two : _mm256_add_epi16(part[k], two);
                        HOLD(part[k]);
                    }
                }
#pragma GCC unroll 4
                for (int k = 0; k < tokens; k++)
                    sum[k] = _mm256_add_epi32(sum[k], _mm256_madd_epi16(part[k], ones));
            }
        }
        const __m256 scale = _mm256_load_ps(t->scale + 8 * g);
#pragma GCC unroll 4
        for (int k = 0; k < tokens; k++) {
            const long token = first + k;
            __m256 by = _mm256_mul_ps(scale, _mm256_set1_ps(in->scale[token * (columns / 32) + g * group / 32]));
            y[k] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[k]), by, y[k]);
            if (bits != 8)
                y[k] = _mm256_fnmadd_ps(_mm256_load_ps(t->least + 8 * g), _mm256_set1_ps(in->sums[token * groups + g]), y[k]);
        }
    }
}

/* --- one token ----------------------------------------------------------------------------------------- */

/* [a, b] out of registers that have numbers of one row in each four, then out of [a, b] and [c, d] */
#define FOLD(name, add)                                                                                      \
    INLINE __m256i name##_two(__m256i a, __m256i b) { return add(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b)); } \
    INLINE __m256i name##_four(__m256i a, __m256i b) { return add(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b)); }
FOLD(fold16, _mm256_add_epi16)
FOLD(fold32, _mm256_add_epi32)
#undef FOLD

/* Products of four rows with 32 columns: in int32 a sum of each row over the lower 16, then over the upper.
 * `bits` of a weight say how many products int16 can hold. */
INLINE __m256i fold(const __m256i p[4], int bits)
{
    const __m256i ones = _mm256_set1_epi16(1);
    if (bits == 8)
        return fold32_four(fold32_two(p[0], p[1]), fold32_two(p[2], p[3]));
    __m256i a = fold16_two(p[0], p[1]), b = fold16_two(p[2], p[3]);
    if (bits == 6)
        return fold32_four(_mm256_madd_epi16(a, ones), _mm256_madd_epi16(b, ones));
    return _mm256_madd_epi16(fold16_four(a, b), ones);
}

/* Products of 32 columns, four in each word, by AVX-512 with VNNI: of a row whose numbers are 128 larger */
INLINE __m256i fours(__m256i row, __m256i token)
{
    __m256i sum = _mm256_setzero_si256();
    __asm__("vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(row), "x"(token));
    return sum;
}

/* One token times eight rows. Sums of integers are the same in any order, and those of float32 are made in the
 * order of `multiply`. */
INLINE __m256 one_token(int kind, int vnni, Rows row, const Input *in, long token, long columns)
{
    const int group = FORMATS[kind].group, bits = FORMATS[kind].bits, size = FORMATS[kind].bytes;
    const int parts = FORMATS[kind].columns / 32, each = 32 / group;
    __m256 y = _mm256_setzero_ps();
    const int8_t *numbers = in->numbers + token * columns;
    const float *by = in->scale + token * (columns / 32), *sums = in->sums + token * (columns / group);
    long at = 0;
    for (long g = 0; g < columns / 32; g += parts, at += size) {
        float scale[128] __attribute__((aligned(32))), least[128] __attribute__((aligned(32)));
        scales(kind, row, at, columns, 8, scale, least);
#pragma GCC unroll 8
        for (int part = 0; part < parts; part++) {
            const __m256i x = loadu(numbers + 32 * (g + part)), ones = _mm256_set1_epi16(1);
            __m256i p[8];
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) {
                __m256i w = weights(kind, row[i] + at, part);
                if (bits == 8 && vnni)
                    p[i] = fours(_mm256_xor_si256(w, _mm256_set1_epi8(-128)), x);
                else if (bits == 8)
                    p[i] = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)), ones);
                else
                    p[i] = _mm256_maddubs_epi16(w, x);
            }
            __m256i a = fold(p, bits), b = fold(p + 4, bits);
            __m256i sum[2] = {_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31)};
            if (each == 1)
                sum[0] = _mm256_add_epi32(sum[0], sum[1]);
            if (bits == 8 && vnni)
                sum[0] = _mm256_add_epi32(sum[0], _mm256_set1_epi32(in->begin[token * (columns / 32) + g + part]));
            for (int i = 0; i < each; i++) {
                const int n = part * each + i;
                __m256 both = _mm256_mul_ps(_mm256_load_ps(scale + 8 * n), _mm256_set1_ps(by[g + part]));
                y = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[i]), both, y);
                if (bits != 8)
                    y = _mm256_fnmadd_ps(_mm256_load_ps(least + 8 * n), _mm256_set1_ps(sums[g * each + n]), y);
            }
        }
    }
    return y;
}

/* --- products ------------------------------------------------------------------------------------------ */

enum {
    APART = 129,   /* rows, from one row to the next of those that are multiplied together */
    SCATTERED = 32 /* tokens, up to which they are */
};

INLINE void eight_rows(int kind, const Product *p, Rows rows, const Input *in, const Tile *t, long row, long apart)
{
    if (p->tokens < UNPACKED) {
        for (long token = 0; token < p->tokens; token++)
            keep(p, token, row, apart,
                 FORMATS[kind].bits == 8 && in->begin ? one_token(kind, 1, rows, in, token, p->columns)
                                                      : one_token(kind, 0, rows, in, token, p->columns));
        return;
    }
    unpack(kind, rows, t, p->columns, 8, 0);
    read_ahead(p, rows, 8, apart);
    long token = 0;
    for (; token + 4 <= p->tokens; token += 4) {
        __m256 y[4];
        multiply(t, in, token, 4, p->columns, FORMATS[kind].group, FORMATS[kind].bits, y);
        for (int k = 0; k < 4; k++)
            keep(p, token + k, row, apart, y[k]);
    }
    for (; token < p->tokens; token++) {
        __m256 y[1];
        multiply(t, in, token, 1, p->columns, FORMATS[kind].group, FORMATS[kind].bits, y);
        keep(p, token, row, apart, y[0]);
    }
}

#define FORMAT(kind)                                                                                         \
    AVX2 static void product_##kind(const Product *p, Rows rows, const Input *in, const Tile *t, long row,   \
                                    long apart)                                                              \
    {                                                                                                        \
        eight_rows(kind, p, rows, in, t, row, apart);                                                        \
    }
FORMAT(Q4_0) FORMAT(Q4_1) FORMAT(Q5_0) FORMAT(Q5_1) FORMAT(Q8_0) FORMAT(Q4_K) FORMAT(Q5_K) FORMAT(Q6_K)
FORMAT(IQ4_NL) FORMAT(IQ4_XS) FORMAT(MXFP4) FORMAT(INT4_32) FORMAT(INT4_64) FORMAT(INT4_128)
#undef FORMAT

static Multiplied *const PRODUCTS[] = {
    product_Q4_0, product_Q4_1, product_Q5_0,   product_Q5_1,   product_Q8_0, product_Q4_K,
    product_Q5_K, product_Q6_K, product_IQ4_NL, product_IQ4_XS, product_MXFP4,
    product_INT4_32, product_INT4_64, product_INT4_128,
};

/* y [tokens, rows] = x [tokens, columns] times W [rows, columns] transposed, plus bias [rows] float32 or NULL.
 * x and y are of `type`; `level` is what is computed with, and changes no bit. Returns 0, or 1 where memory is short. */
int blocks_product(int kind, const uint8_t *w, long rows, long columns, long row_bytes, const void *x, void *y,
                   int type, long tokens, const float *bias, int threads, int level)
{
    const Product p = {kind, w, rows, columns, row_bytes, y, type, tokens, bias};
    const int group = FORMATS[kind].group, unpacked = tokens >= UNPACKED, has_sign = FORMATS[kind].bits == 8;
    const int lanes = unpacked && level == WITH_VNNI ? 16 : 8, wide = unpacked && has_sign && lanes == 8;
    Input in = {lanes == 8 ? 1 : TOGETHER};
    const size_t numbers = (tokens + in.together - 1) / in.together * in.together * (size_t)columns;
    const size_t scales = numbers / 32, sums = numbers / group;
    char *memory = malloc(4 * (scales + sums) + numbers + (wide ? 2 * numbers : 0));
    if (!memory)
        return 1;
    in.scale = (float *)memory;
    in.sums = in.scale + scales;
    in.begin = has_sign && level == WITH_VNNI ? (int32_t *)in.sums : NULL;
    in.wide = wide ? (int16_t *)(in.sums + sums) : NULL;
    in.numbers = (int8_t *)(in.sums + sums) + (wide ? 2 * numbers : 0);
    /* Rows that are far from each other are as many streams, in each of which hardware reads ahead: of a large
     * weight that is twice as fast as one. But their places in y have to stay in a cache, and an odd number keeps
     * them and the rows from lying in the same sets of it. Where tokens are many, they had better be near. */
    const long tiles = (rows + lanes - 1) / lanes, most = tokens <= SCATTERED ? APART : 1;
    int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
#pragma omp for schedule(static)
        for (long token = 0; token < tokens; token++)
            round_token(x, type, columns, group, &in, token);
        Tile t = {NULL, NULL, NULL};
        if (unpacked) {
            const size_t quads = (wide ? 16 : lanes) * (size_t)columns, groups = lanes * (size_t)(columns / group);
            t.quads = aligned_alloc(64, (quads + 8 * groups + 63) / 64 * 64);
            failed |= !t.quads;
            t.scale = (float *)(t.quads + quads);
            t.least = t.scale + groups;
        }
#pragma omp for schedule(static)
        for (long n = 0; n < tiles; n++) {
            const long first = n - n % most, left = tiles - first, apart = left < most ? left : most;
            const long row = lanes * first + n % most; /* the others are `apart` from it, and each other */
            const uint8_t *at[16];
            for (int i = 0; i < lanes; i++)
                at[i] = w + (row + i * apart < rows ? row + i * apart : rows - 1) * row_bytes;
            if (t.quads || !unpacked)
                (lanes == 16 ? PRODUCTS_VNNI : PRODUCTS)[kind](&p, at, &in, &t, row, apart);
        }
        free(t.quads);
    }
    free(memory);
    return failed;
}

#else

int blocks_level(void) { return NOTHING; }

int blocks_product(int kind, const uint8_t *w, long rows, long columns, long row_bytes, const void *x, void *y,
                   int type, long tokens, const float *bias, int threads, int level)
{
    return 1;
}

#endif
