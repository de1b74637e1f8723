/* Products with weights in ggml's blocks, for CPUs with AVX2: y = x Wᵀ.
 *
 * The input is rounded to int8 in groups of 32 that share a scale, as llama.cpp does; all else is exact up to
 * the order of float32 sums. Eight rows of W are computed at once, a register of sums having one for each row.
 * A token is computed in the same order whatever stands beside it, so that its bits do not depend on how many
 * there are, nor on the number of threads.
 *
 * What a format is, two functions say: `scales` and `weights`. Of one token the products are made where the
 * weights lie (`one_token`). For more the rows are unpacked first, to bytes in which one register holds four
 * columns of each row, so that nothing is added across lanes (`unpack`, `multiply`).
 *
 * Built at install where there is a compiler, and loaded by compiled.py; nothing depends on it.
 */

#define OWN_SOURCE
#include "vectors.h"

SOURCE(blocks)

enum { Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, MXFP4 };
#if defined(__x86_64__) && defined(__GNUC__)

#include <stdlib.h>
#include <string.h>

int blocks_supported(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

/* --- formats ------------------------------------------------------------------------------------------- */

static const struct {
    int columns, bytes; /* of a block */
    int group;          /* columns that share a scale */
    int bits;           /* that a weight takes as an unsigned number; 8: it has a sign */
} FORMATS[] = {
    [Q4_0] = {32, 18, 32, 4},    [Q4_1] = {32, 20, 32, 4},    [Q5_0] = {32, 22, 32, 5},
    [Q5_1] = {32, 24, 32, 5},    [Q8_0] = {32, 34, 32, 8},    [Q4_K] = {256, 144, 32, 4},
    [Q5_K] = {256, 176, 32, 5},  [Q6_K] = {256, 210, 16, 6},  [IQ4_NL] = {32, 18, 32, 8},
    [IQ4_XS] = {256, 136, 32, 8}, [MXFP4] = {32, 17, 32, 8},
};

typedef const uint8_t *const Rows[8]; /* where each of eight rows begins */

INLINE __m256i loadu(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
INLINE __m256i low4(__m256i v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
INLINE __m256i high4(__m256i v) { return low4(_mm256_srli_epi16(v, 4)); }
INLINE __m256 scaled(__m256 d, __m256i n) { return _mm256_mul_ps(d, _mm256_cvtepi32_ps(n)); }

/* 16 bytes from `at` on of each row, as four registers of four bytes of each */
INLINE void quads(Rows row, long at, __m256i out[4])
{
    __m256i r[4];
    for (int i = 0; i < 4; i++) {
        __m128i low = _mm_loadu_si128((const __m128i *)(row[i] + at));
        r[i] = _mm256_inserti128_si256(
            _mm256_castsi128_si256(low), _mm_loadu_si128((const __m128i *)(row[i + 4] + at)), 1);
    }
    __m256i a = _mm256_unpacklo_epi32(r[0], r[1]), b = _mm256_unpackhi_epi32(r[0], r[1]);
    __m256i c = _mm256_unpacklo_epi32(r[2], r[3]), d = _mm256_unpackhi_epi32(r[2], r[3]);
    out[0] = _mm256_unpacklo_epi64(a, c);
    out[1] = _mm256_unpackhi_epi64(a, c);
    out[2] = _mm256_unpacklo_epi64(b, d);
    out[3] = _mm256_unpackhi_epi64(b, d);
}

/* a float16 from `at` on of each row */
INLINE __m256 halves(Rows row, long at)
{
    __m128i h = _mm_setzero_si128();
#define HALF(i) h = _mm_insert_epi16(h, *(const uint16_t *)(row[i] + at), i)
    HALF(0), HALF(1), HALF(2), HALF(3), HALF(4), HALF(5), HALF(6), HALF(7);
#undef HALF
    return _mm256_cvtph_ps(h);
}

/* the float16 in the lower half of each word */
INLINE __m256 lower_halves(__m256i words)
{
    __m256i h = _mm256_and_si256(words, _mm256_set1_epi32(0xffff));
    h = _mm256_permute4x64_epi64(_mm256_packus_epi32(h, h), 0x08);
    return _mm256_cvtph_ps(_mm256_castsi256_si128(h));
}

/* Q4_K and Q5_K: six bits of scale and six of minimum for each of the eight groups of a block */
INLINE void six_bits(Rows row, long at, float *scale, float *least)
{
    const __m256i six = _mm256_set1_epi8(63), four = _mm256_set1_epi8(15), two = _mm256_set1_epi8(0x30);
    __m256i w[4], n[2], m[2];
    quads(row, at, w);
    n[0] = _mm256_and_si256(w[1], six);
    m[0] = _mm256_and_si256(w[2], six);
    n[1] = _mm256_or_si256(_mm256_and_si256(w[3], four), _mm256_and_si256(_mm256_srli_epi32(w[1], 2), two));
    m[1] = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi32(w[3], 4), four),
                           _mm256_and_si256(_mm256_srli_epi32(w[2], 2), two));
    const __m256 d = lower_halves(w[0]), least_d = lower_halves(_mm256_srli_epi32(w[0], 16));
    for (int i = 0; i < 8; i++) {
        const __m256i byte = _mm256_set1_epi32(255);
        __m256i s = _mm256_and_si256(_mm256_srli_epi32(n[i / 4], 8 * (i % 4)), byte);
        __m256i l = _mm256_and_si256(_mm256_srli_epi32(m[i / 4], 8 * (i % 4)), byte);
        _mm256_store_ps(scale + 8 * i, scaled(d, s));
        _mm256_store_ps(least + 8 * i, scaled(least_d, l));
    }
}

INLINE void scales_q6_k(Rows row, long at, float *scale, float *least)
{
    const __m256 d = halves(row, at + 208);
    __m256i w[4];
    quads(row, at + 192, w);
    for (int i = 0; i < 16; i++) {
        __m256 s = scaled(d, _mm256_srai_epi32(_mm256_slli_epi32(w[i / 4], 24 - 8 * (i % 4)), 24));
        _mm256_store_ps(scale + 8 * i, s);
        _mm256_store_ps(least + 8 * i, _mm256_mul_ps(s, _mm256_set1_ps(32)));
    }
}

INLINE void scales_iq4_xs(Rows row, long at, float *scale)
{
    __m256i w[4];
    quads(row, at, w);
    const __m256 d = lower_halves(w[0]);
    for (int i = 0; i < 8; i++) {
        __m256i low = _mm256_and_si256(_mm256_srli_epi32(w[1], 4 * i), _mm256_set1_epi32(15));
        __m256i high = _mm256_and_si256(_mm256_srli_epi32(w[0], 16 + 2 * i), _mm256_set1_epi32(3));
        __m256i n = _mm256_or_si256(low, _mm256_slli_epi32(high, 4));
        _mm256_store_ps(scale + 8 * i, scaled(d, _mm256_sub_epi32(n, _mm256_set1_epi32(32))));
    }
}

/* half of two to the power of a byte less 127: the numbers of fp4 are twice what they stand for */
INLINE __m256 powers(Rows row, long at)
{
    __m128i e = _mm_setzero_si128();
#define BYTE(i) e = _mm_insert_epi8(e, row[i][at], i)
    BYTE(0), BYTE(1), BYTE(2), BYTE(3), BYTE(4), BYTE(5), BYTE(6), BYTE(7);
#undef BYTE
    const __m256i n = _mm256_cvtepu8_epi32(e), one = _mm256_set1_epi32(1);
    __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(n, one), 23);
    __m256i small = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), n);
    return _mm256_castsi256_ps(_mm256_blendv_epi8(small, normal, _mm256_cmpgt_epi32(n, one)));
}

/* Of each group of a block and each row: its scale, and where weights have no sign what is taken from every
 * element, [groups][8] */
INLINE void scales(int kind, Rows row, long at, float *scale, float *least)
{
    __m256 d, m = _mm256_setzero_ps();
    switch (kind) {
    case Q4_K:
    case Q5_K:
        six_bits(row, at, scale, least);
        return;
    case Q6_K:
        scales_q6_k(row, at, scale, least);
        return;
    case IQ4_XS:
        scales_iq4_xs(row, at, scale);
        return;
    case MXFP4:
        d = powers(row, at);
        break;
    default:
        d = halves(row, at);
        if (kind == Q4_1 || kind == Q5_1)
            m = _mm256_sub_ps(m, halves(row, at + 2));
        else if (kind == Q4_0 || kind == Q5_0)
            m = _mm256_mul_ps(d, _mm256_set1_ps(kind == Q4_0 ? 8 : 16));
    }
    _mm256_store_ps(scale, d);
    if (FORMATS[kind].bits != 8)
        _mm256_store_ps(least, m);
}

/* 16 bytes: the lower halves of all, then the upper ones */
INLINE __m256i nibbles(const uint8_t *p)
{
    __m256i v = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)p));
    return low4(_mm256_srlv_epi32(v, _mm256_set_epi32(4, 4, 4, 4, 0, 0, 0, 0)));
}

/* 16 in each byte whose bit is set, of 32 */
INLINE __m256i fifth_bits(const uint8_t *p)
{
    const __m256i byte = _mm256_set_epi64x(0x0303030303030303, 0x0202020202020202, 0x0101010101010101, 0);
    const __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201);
    int32_t word;
    memcpy(&word, p, 4);
    __m256i set = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(word), byte), bit);
    return _mm256_and_si256(_mm256_cmpeq_epi8(set, bit), _mm256_set1_epi8(16));
}

/* The 32 weights of a block from column 32 * part on. Constants are those that the compiler makes of `kind`
 * and, where it unrolls, of `part`. */
INLINE __m256i weights(int kind, const uint8_t *p, int part)
{
    static const int8_t nl[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    static const int8_t fp4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
#define TABLE(t) _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(t)))
    switch (kind) {
    case Q4_0:
        return nibbles(p + 2);
    case Q4_1:
        return nibbles(p + 4);
    case Q5_0:
        return _mm256_or_si256(nibbles(p + 6), fifth_bits(p + 2));
    case Q5_1:
        return _mm256_or_si256(nibbles(p + 8), fifth_bits(p + 4));
    case Q8_0:
        return loadu(p + 2);
    case Q4_K:
    case Q5_K: {
        __m256i v = loadu(p + (kind == Q5_K ? 48 : 16) + 32 * (part / 2));
        v = part % 2 ? high4(v) : low4(v);
        if (kind == Q4_K)
            return v;
        const __m256i bit = _mm256_set1_epi8((char)(1 << part));
        __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(loadu(p + 16), bit), bit);
        return _mm256_or_si256(v, _mm256_and_si256(set, _mm256_set1_epi8(16)));
    }
    case Q6_K: {
        __m256i v = loadu(p + 64 * (part / 4) + 32 * (part % 2)), h = loadu(p + 128 + 32 * (part / 4));
        v = part % 4 / 2 ? high4(v) : low4(v);
        h = part % 4 == 0 ? _mm256_slli_epi16(h, 4)
            : part % 4 == 1 ? _mm256_slli_epi16(h, 2)
            : part % 4 == 2 ? h
                            : _mm256_srli_epi16(h, 2);
        return _mm256_or_si256(v, _mm256_and_si256(h, _mm256_set1_epi8(0x30)));
    }
    case IQ4_NL:
        return _mm256_shuffle_epi8(TABLE(nl), nibbles(p + 2));
    case IQ4_XS:
        return _mm256_shuffle_epi8(TABLE(nl), nibbles(p + 8 + 16 * part));
    default:
        return _mm256_shuffle_epi8(TABLE(fp4), nibbles(p + 1));
    }
#undef TABLE
}

/* --- the input, rounded -------------------------------------------------------------------------------- */

typedef struct {
    int8_t *numbers; /* [tokens][columns] */
    int16_t *wide;   /* the same, where a product takes them: of each four the first, third, second and fourth */
    float *scale;    /* [tokens][columns / 32] */
    float *sums;     /* [tokens][groups]: of the elements of a group, rounded */
} Input;

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
    int8_t *q = in->numbers + at;
    float *d = in->scale + token * (columns / 32), *sums = in->sums + token * (columns / group);
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
        _mm256_storeu_si256((__m256i *)(q + 32 * g), bytes);
        if (in->wide) {
            const __m256i order = _mm256_broadcastsi128_si256(
                _mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15));
            const __m256i ordered = _mm256_shuffle_epi8(bytes, order);
            __m256i *wide = (__m256i *)(in->wide + at + 32 * g);
            _mm256_storeu_si256(wide, _mm256_cvtepi8_epi16(_mm256_castsi256_si128(ordered)));
            _mm256_storeu_si256(wide + 1, _mm256_cvtepi8_epi16(_mm256_extracti128_si256(ordered, 1)));
        }
        d[g] = scale + nothing;
        int first = sum_16(_mm256_castsi256_si128(bytes)), second = sum_16(_mm256_extracti128_si256(bytes, 1));
        if (group == 16) {
            sums[2 * g] = d[g] * (float)first;
            sums[2 * g + 1] = d[g] * (float)second;
        } else
            sums[g] = d[g] * (float)(first + second);
    }
}

/* --- more tokens --------------------------------------------------------------------------------------- */

typedef struct {
    uint8_t *quads; /* [columns / 4][8][4]: four columns of each of eight rows; of 8 bits, in int16, [2][8][2]: the
                       first and third of them, then the others */
    float *scale;   /* [groups][8] */
    float *least;   /* [groups][8]: taken from every element, times it */
} Tile;

/* eight words of each of eight rows, turned so that each register has one of each row */
INLINE void turn(__m256 r[8])
{
    __m256 a[8], b[8];
    for (int i = 0; i < 4; i++) {
        a[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        a[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        b[4 * i] = _mm256_shuffle_ps(a[4 * i], a[4 * i + 2], 0x44);
        b[4 * i + 1] = _mm256_shuffle_ps(a[4 * i], a[4 * i + 2], 0xee);
        b[4 * i + 2] = _mm256_shuffle_ps(a[4 * i + 1], a[4 * i + 3], 0x44);
        b[4 * i + 3] = _mm256_shuffle_ps(a[4 * i + 1], a[4 * i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
        r[i + 4] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
    }
}

/* four bytes, or two of twice their size, in each of eight places */
INLINE __m256i word(const void *p)
{
    int32_t w;
    memcpy(&w, p, 4);
    return _mm256_set1_epi32(w);
}

INLINE void unpack(int kind, Rows row, const Tile *t, long columns)
{
    const int parts = FORMATS[kind].columns / 32, groups = FORMATS[kind].columns / FORMATS[kind].group;
    const int wide = FORMATS[kind].bits == 8;
    for (long b = 0; b < columns / FORMATS[kind].columns; b++) {
        const long at = b * FORMATS[kind].bytes;
        scales(kind, row, at, t->scale + 8 * groups * b, t->least + 8 * groups * b);
#pragma GCC unroll 8
        for (int part = 0; part < parts; part++) {
            __m256 r[8];
            for (int i = 0; i < 8; i++)
                r[i] = _mm256_castsi256_ps(weights(kind, row[i] + at, part));
            turn(r);
            uint8_t *to = t->quads + (wide ? 512 : 256) * (b * parts + part);
            for (int i = 0; i < 8; i++) {
                const __m256i four = _mm256_castps_si256(r[i]);
                if (!wide) {
                    _mm256_store_si256((__m256i *)to + i, four);
                    continue;
                }
                _mm256_store_si256((__m256i *)to + 2 * i, _mm256_srai_epi16(_mm256_slli_epi16(four, 8), 8));
                _mm256_store_si256((__m256i *)to + 2 * i + 1, _mm256_srai_epi16(four, 8));
            }
        }
    }
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

/* One token times eight rows. Sums of integers are the same in any order, and those of float32 are made in the
 * order of `multiply`. */
INLINE __m256 one_token(int kind, Rows row, const Input *in, long token, long columns)
{
    const int group = FORMATS[kind].group, bits = FORMATS[kind].bits, size = FORMATS[kind].bytes;
    const int parts = FORMATS[kind].columns / 32, each = 32 / group;
    __m256 y = _mm256_setzero_ps();
    const int8_t *numbers = in->numbers + token * columns;
    const float *by = in->scale + token * (columns / 32), *sums = in->sums + token * (columns / group);
    long at = 0;
    for (long g = 0; g < columns / 32; g += parts, at += size) {
        float scale[128] __attribute__((aligned(32))), least[128] __attribute__((aligned(32)));
        scales(kind, row, at, scale, least);
#pragma GCC unroll 8
        for (int part = 0; part < parts; part++) {
            const __m256i x = loadu(numbers + 32 * (g + part)), ones = _mm256_set1_epi16(1);
            __m256i p[8];
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) {
                __m256i w = weights(kind, row[i] + at, part);
                if (bits == 8)
                    p[i] = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)), ones);
                else
                    p[i] = _mm256_maddubs_epi16(w, x);
            }
            __m256i a = fold(p, bits), b = fold(p + 4, bits);
            __m256i sum[2] = {_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31)};
            if (each == 1)
                sum[0] = _mm256_add_epi32(sum[0], sum[1]);
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
    UNPACKED = 4,  /* tokens, from which on unpacking pays */
    SCATTERED = 32 /* up to which rows are far from each other */
};

typedef struct {
    int kind;
    const uint8_t *weight;
    long rows, columns, row_bytes;
    void *y;  /* [tokens][rows] */
    int type; /* of y */
    long tokens;
    const float *bias; /* [rows], or NULL */
} Product;

/* The sums of one token and eight rows: `row`, and those that follow it `apart` from each other */
INLINE void keep(const Product *p, long token, long row, long apart, __m256 sums)
{
    const int count = p->rows - row > 7 * apart ? 8 : (int)((p->rows - row + apart - 1) / apart);
    if (p->bias) {
        float bias[8] = {0};
        for (int i = 0; i < count; i++)
            bias[i] = p->bias[row + i * apart];
        sums = _mm256_add_ps(sums, _mm256_loadu_ps(bias));
    }
    uint32_t words[8];
    uint16_t halves[8];
    if (p->type == FLOAT32)
        _mm256_storeu_ps((float *)words, sums);
    else
        _mm_storeu_si128((__m128i *)halves, to_half(sums, p->type));
    for (int i = 0; i < count; i++) {
        const long at = token * p->rows + row + i * apart;
        if (p->type == FLOAT32)
            ((uint32_t *)p->y)[at] = words[i];
        else
            ((uint16_t *)p->y)[at] = halves[i];
    }
}

INLINE void eight_rows(int kind, const Product *p, Rows rows, const Input *in, const Tile *t, long row, long apart)
{
    if (p->tokens < UNPACKED) {
        for (long token = 0; token < p->tokens; token++)
            keep(p, token, row, apart, one_token(kind, rows, in, token, p->columns));
        return;
    }
    unpack(kind, rows, t, p->columns);
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
FORMAT(IQ4_NL) FORMAT(IQ4_XS) FORMAT(MXFP4)
#undef FORMAT

static void (*const PRODUCTS[])(const Product *, Rows, const Input *, const Tile *, long, long) = {
    product_Q4_0, product_Q4_1, product_Q5_0,   product_Q5_1,   product_Q8_0, product_Q4_K,
    product_Q5_K, product_Q6_K, product_IQ4_NL, product_IQ4_XS, product_MXFP4,
};

/* y [tokens, rows] = x [tokens, columns] times W [rows, columns] transposed, plus bias [rows] float32 or NULL.
 * x and y are of `type`. Returns 0, or 1 where memory is short. */
int blocks_product(int kind, const uint8_t *w, long rows, long columns, long row_bytes, const void *x, void *y,
                   int type, long tokens, const float *bias, int threads)
{
    const Product p = {kind, w, rows, columns, row_bytes, y, type, tokens, bias};
    const int group = FORMATS[kind].group, unpacked = tokens >= UNPACKED, wide = unpacked && FORMATS[kind].bits == 8;
    const size_t numbers = (size_t)tokens * columns, scales = numbers / 32, sums = numbers / group;
    char *memory = malloc(4 * (scales + sums) + numbers + (wide ? 2 * numbers : 0));
    if (!memory)
        return 1;
    Input in;
    in.scale = (float *)memory;
    in.sums = in.scale + scales;
    in.wide = wide ? (int16_t *)(in.sums + sums) : NULL;
    in.numbers = (int8_t *)(in.sums + sums) + (wide ? 2 * numbers : 0);
    /* Rows that are an eighth of the weight apart are eight streams, in each of which hardware reads ahead: of
     * a large weight that is twice as fast as one. Where tokens are many, places in y had better be near. */
    const long tiles = (rows + 7) / 8, apart = tokens <= SCATTERED ? tiles : 1;
    int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
#pragma omp for schedule(static)
        for (long token = 0; token < tokens; token++)
            round_token(x, type, columns, group, &in, token);
        Tile t = {NULL, NULL, NULL};
        if (unpacked) {
            const size_t quads = (wide ? 16 : 8) * (size_t)columns, groups = 8 * (size_t)(columns / group);
            t.quads = aligned_alloc(64, (quads + 8 * groups + 63) / 64 * 64);
            failed |= !t.quads;
            t.scale = (float *)(t.quads + quads);
            t.least = t.scale + groups;
        }
#pragma omp for schedule(static)
        for (long n = 0; n < tiles; n++) {
            const long row = apart == 1 ? 8 * n : n;
            const uint8_t *at[8];
            for (int i = 0; i < 8; i++)
                at[i] = w + (row + i * apart < rows ? row + i * apart : rows - 1) * row_bytes;
            if (t.quads || !unpacked)
                PRODUCTS[kind](&p, at, &in, &t, row, apart);
        }
        free(t.quads);
    }
    free(memory);
    return failed;
}

#else

int blocks_supported(void) { return 0; }

int blocks_product(int kind, const uint8_t *w, long rows, long columns, long row_bytes, const void *x, void *y,
                   int type, long tokens, const float *bias, int threads)
{
    return 1;
}

#endif
