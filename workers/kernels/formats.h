/* Weights in ggml's blocks, and in groups of four bits: where the bits of each format are, and what products with
 * them share.
 *
 * What a format is, two functions say: `scales` and `weights`. The formats are those of ggml-common.h and
 * ggml-quants.c of llama.cpp (MIT); workers/weights/dequantise.py has the same in torch.
 */

#include <string.h>

#include "vectors.h"

#ifdef OWN_SOURCE
SOURCE(formats)
#endif

enum { Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, MXFP4, INT4_32, INT4_64, INT4_128 };

#if defined(__x86_64__) && defined(__GNUC__)

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
    /* whose scales, and zero points in them, stand behind all numbers of a row: each for so many columns */
    [INT4_32] = {32, 16, 32, 4},  [INT4_64] = {32, 16, 32, 4}, [INT4_128] = {32, 16, 32, 4},
};

typedef const uint8_t *const *Rows; /* where each of eight rows begins, or of sixteen */

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

/* four bytes from `at` on of each row */
INLINE __m256i words(Rows row, long at)
{
    int32_t w[8];
    for (int i = 0; i < 8; i++)
        memcpy(w + i, row[i] + at, 4);
    return loadu(w);
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
INLINE void six_bits(Rows row, long at, int lanes, float *scale, float *least)
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
        _mm256_store_ps(scale + lanes * i, scaled(d, s));
        _mm256_store_ps(least + lanes * i, scaled(least_d, l));
    }
}

INLINE void scales_q6_k(Rows row, long at, int lanes, float *scale, float *least)
{
    const __m256 d = halves(row, at + 208);
    __m256i w[4];
    quads(row, at + 192, w);
    for (int i = 0; i < 16; i++) {
        __m256 s = scaled(d, _mm256_srai_epi32(_mm256_slli_epi32(w[i / 4], 24 - 8 * (i % 4)), 24));
        _mm256_store_ps(scale + lanes * i, s);
        _mm256_store_ps(least + lanes * i, _mm256_mul_ps(s, _mm256_set1_ps(32)));
    }
}

INLINE void scales_iq4_xs(Rows row, long at, int lanes, float *scale)
{
    __m256i w[4];
    quads(row, at, w);
    const __m256 d = lower_halves(w[0]);
    for (int i = 0; i < 8; i++) {
        __m256i low = _mm256_and_si256(_mm256_srli_epi32(w[1], 4 * i), _mm256_set1_epi32(15));
        __m256i high = _mm256_and_si256(_mm256_srli_epi32(w[0], 16 + 2 * i), _mm256_set1_epi32(3));
        __m256i n = _mm256_or_si256(low, _mm256_slli_epi32(high, 4));
        _mm256_store_ps(scale + lanes * i, scaled(d, _mm256_sub_epi32(n, _mm256_set1_epi32(32))));
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
INLINE void scales(int kind, Rows row, long at, long columns, int lanes, float *scale, float *least)
{
    __m256 d, m = _mm256_setzero_ps();
    switch (kind) {
    case Q4_K:
    case Q5_K:
        six_bits(row, at, lanes, scale, least);
        return;
    case Q6_K:
        scales_q6_k(row, at, lanes, scale, least);
        return;
    case IQ4_XS:
        scales_iq4_xs(row, at, lanes, scale);
        return;
    case MXFP4:
        d = powers(row, at);
        break;
    case INT4_32:
    case INT4_64:
    case INT4_128: {
        const int together = kind == INT4_32 ? 1 : kind == INT4_64 ? 2 : 4;
        const __m256i w = words(row, columns / 2 + 4 * (at / FORMATS[kind].bytes / together));
        d = _mm256_castsi256_ps(_mm256_and_si256(w, _mm256_set1_epi32(-16)));
        m = scaled(d, _mm256_and_si256(w, _mm256_set1_epi32(15)));
        break;
    }
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

/* 16 bytes: of each its lower half, and then its upper one */
INLINE __m256i pairs(const uint8_t *p)
{
    const __m128i v = _mm_loadu_si128((const __m128i *)p), four = _mm_set1_epi8(15);
    const __m128i low = _mm_and_si128(v, four), high = _mm_and_si128(_mm_srli_epi16(v, 4), four);
    return _mm256_set_m128i(_mm_unpackhi_epi8(low, high), _mm_unpacklo_epi8(low, high));
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
    case INT4_32:
    case INT4_64:
    case INT4_128:
        return pairs(p);
    case IQ4_NL:
        return _mm256_shuffle_epi8(TABLE(nl), nibbles(p + 2));
    case IQ4_XS:
        return _mm256_shuffle_epi8(TABLE(nl), nibbles(p + 8 + 16 * part));
    default:
        return _mm256_shuffle_epi8(TABLE(fp4), nibbles(p + 1));
    }
#undef TABLE
}

/* --- what products share ------------------------------------------------------------------------------- */

typedef struct {
    int kind;
    const uint8_t *weight;
    long rows, columns, row_bytes;
    void *y;  /* [tokens][rows] */
    int type; /* of y */
    long tokens;
    const float *bias; /* [rows], or NULL */
} Product;

/* What is multiplied, rounded. Where tokens are multiplied `together`, those numbers of each four columns follow each
 * other, and so do their scales, and sums. */
typedef struct {
    int together;    /* tokens: one, or TOGETHER */
    int8_t *numbers; /* [tokens][columns], or [tokens / TOGETHER][columns / 4][TOGETHER][4] */
    int16_t *wide;   /* the same, where a product takes them: of each four the first, third, second and fourth */
    float *scale;    /* [tokens][columns / 32], or [tokens / TOGETHER][columns / 32][TOGETHER] */
    float *sums;     /* of the elements of a group, rounded, if weights have no sign: the same with groups */
    int32_t *begin;  /* -128 times the sums of the numbers, where weights have one and VNNI is there: the same */
} Input;

/* Where the `n`th of `each` of a token is, if there is one of those for each group, or four columns */
INLINE long place(const Input *in, long token, long n, long each)
{
    const long among = token & (in->together - 1);
    return (token - among) * each + n * in->together + among;
}

/* Some rows, unpacked: `lanes` of them, that is eight, or sixteen where bytes are multiplied four at a time */
typedef struct {
    uint8_t *quads; /* [columns / 4][lanes][4]: four columns of each row. Of 8 bits, which have a sign, 128 more; but
                       of eight rows in int16, [2][8][2]: the first and third of them, then the others */
    float *scale;   /* [groups][lanes] */
    float *least;   /* [groups][lanes]: taken from every element, times it */
} Tile;

enum {
    UNPACKED = 4, /* tokens, from which on unpacking pays */
    TOGETHER = 8  /* that are multiplied at once where VNNI is, a power of two */
};

typedef void Multiplied(const Product *, Rows, const Input *, const Tile *, long row, long apart);

extern Multiplied *const PRODUCTS_VNNI[] __attribute__((visibility("hidden"))); /* of sixteen rows, by kind */

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

/* Eight rows, from the `first` of the tile's on */
INLINE void unpack(int kind, Rows row, const Tile *t, long columns, int lanes, int first)
{
    const int parts = FORMATS[kind].columns / 32, groups = FORMATS[kind].columns / FORMATS[kind].group;
    const int has_sign = FORMATS[kind].bits == 8, wide = has_sign && lanes == 8;
    for (long b = 0; b < columns / FORMATS[kind].columns; b++) {
        const long at = b * FORMATS[kind].bytes, group = lanes * groups * b + first;
        scales(kind, row, at, columns, lanes, t->scale + group, t->least + group);
#pragma GCC unroll 8
        for (int part = 0; part < parts; part++) {
            __m256 r[8];
            for (int i = 0; i < 8; i++)
                r[i] = _mm256_castsi256_ps(weights(kind, row[i] + at, part));
            turn(r);
            uint8_t *to = t->quads + (wide ? 64 : 4 * lanes) * 8 * (b * parts + part) + 4 * first;
            for (int i = 0; i < 8; i++) {
                __m256i four = _mm256_castps_si256(r[i]);
                if (wide) {
                    _mm256_store_si256((__m256i *)to + 2 * i, _mm256_srai_epi16(_mm256_slli_epi16(four, 8), 8));
                    _mm256_store_si256((__m256i *)to + 2 * i + 1, _mm256_srai_epi16(four, 8));
                    continue;
                }
                if (has_sign)
                    four = _mm256_xor_si256(four, _mm256_set1_epi8(-128));
                _mm256_store_si256((__m256i *)(to + 4 * lanes * i), four);
            }
        }
    }
}

/* Have the rows that are unpacked next near, while these are multiplied */
INLINE void read_ahead(const Product *p, Rows row, int lanes, long apart)
{
    const long next = p->row_bytes * (apart == 1 ? lanes : 1);
    for (int i = 0; i < lanes; i++)
        for (long j = 0; j < p->row_bytes; j += 64)
            _mm_prefetch((const char *)row[i] + next + j, _MM_HINT_T1);
}

/* The sums of one token and eight rows: `row`, and those that follow it `apart` from each other */
AVX2 static void keep(const Product *p, long token, long row, long apart, __m256 sums)
{
    const int count = p->rows - row > 7 * apart ? 8 : (int)((p->rows - row + apart - 1) / apart);
    if (p->bias) {
        float bias[8] = {0};
        for (int i = 0; i < count; i++)
            bias[i] = p->bias[row + i * apart];
        sums = _mm256_add_ps(sums, _mm256_loadu_ps(bias));
    }
    const long at = token * p->rows + row;
    if (p->type == FLOAT32) {
        float words[8];
        _mm256_storeu_ps(words, sums);
        for (int i = 0; i < count; i++)
            ((float *)p->y)[at + i * apart] = words[i];
    } else {
        uint16_t halves[8];
        _mm_storeu_si128((__m128i *)halves, to_half(sums, p->type));
        for (int i = 0; i < count; i++)
            ((uint16_t *)p->y)[at + i * apart] = halves[i];
    }
}

#endif
