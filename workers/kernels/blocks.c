/* Products with weights in ggml's blocks, for CPUs with AVX2: y = x Wᵀ.
 *
 * The input is rounded to int8 in groups of 32 that share a scale, as llama.cpp does; all else is exact up to
 * the order of float32 sums. Eight rows of W are unpacked at once to bytes in which one register holds four
 * columns of each of the eight: a register of products then has one sum for each row, and nothing is ever
 * added across lanes. A token is computed in the same order whatever stands beside it, so that its bits do not
 * depend on how many there are, nor on the number of threads.
 *
 * Built at install where there is a compiler, and loaded by compiled.py; nothing depends on it.
 */

#include <stdint.h>

enum { Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, MXFP4 };
enum { FLOAT32, BFLOAT16, FLOAT16 };

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>
#include <stdlib.h>
#include <string.h>

#define AVX2 __attribute__((target("avx2,fma,f16c")))
#define INLINE static inline __attribute__((always_inline)) AVX2

int blocks_supported(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

/* --- eight rows, unpacked ------------------------------------------------------------------------------ */

typedef struct {
    const uint8_t *row[8];
    const uint8_t *next; /* the eight rows that come after these, in one piece */
    uint8_t *quads; /* [columns / 4][8][4]: four columns of each row */
    float *scale;   /* [groups][8] */
    float *least;   /* [groups][8]: taken from every element, times it */
} Tile;

INLINE __m256i load(const uint8_t *p) { return _mm256_load_si256((const __m256i *)p); }
INLINE void store(uint8_t *p, __m256i v) { _mm256_store_si256((__m256i *)p, v); }
INLINE __m256i loadu(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }

/* Asks memory for the part of the next rows that is where `block` is in these: eight streams in one page are
 * more than hardware foresees. */
INLINE void ahead(const Tile *t, long block, long size)
{
    for (long at = 8 * size * block; at < 8 * size * (block + 1); at += 64)
        _mm_prefetch((const char *)t->next + at, _MM_HINT_T0);
}

/* 16 bytes from `at` on of each row, as four registers of four bytes of each */
INLINE void quads(const Tile *t, long at, __m256i out[4])
{
    __m256i r[4];
    for (int i = 0; i < 4; i++) {
        __m128i low = _mm_loadu_si128((const __m128i *)(t->row[i] + at));
        r[i] = _mm256_inserti128_si256(
            _mm256_castsi128_si256(low), _mm_loadu_si128((const __m128i *)(t->row[i + 4] + at)), 1);
    }
    __m256i a = _mm256_unpacklo_epi32(r[0], r[1]), b = _mm256_unpackhi_epi32(r[0], r[1]);
    __m256i c = _mm256_unpacklo_epi32(r[2], r[3]), d = _mm256_unpackhi_epi32(r[2], r[3]);
    out[0] = _mm256_unpacklo_epi64(a, c);
    out[1] = _mm256_unpackhi_epi64(a, c);
    out[2] = _mm256_unpacklo_epi64(b, d);
    out[3] = _mm256_unpackhi_epi64(b, d);
}

/* a float16 from `at` on of each row */
INLINE __m256 halves(const Tile *t, long at)
{
    __m128i h = _mm_setzero_si128();
#define HALF(i) h = _mm_insert_epi16(h, *(const uint16_t *)(t->row[i] + at), i)
    HALF(0), HALF(1), HALF(2), HALF(3), HALF(4), HALF(5), HALF(6), HALF(7);
#undef HALF
    return _mm256_cvtph_ps(h);
}

INLINE __m256i words(const Tile *t, long at)
{
    uint32_t w[8];
    for (int i = 0; i < 8; i++)
        memcpy(&w[i], t->row[i] + at, 4);
    return loadu(w);
}

INLINE __m256i low4(__m256i v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
INLINE __m256i high4(__m256i v) { return low4(_mm256_srli_epi16(v, 4)); }

/* bit `4 * quad + byte` of each word, as 16 in that byte */
INLINE __m256i fifth_bits(__m256i words, int quad)
{
    const __m256i first = _mm256_set_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0, 0x0c0c0c0c, 0x08080808, 0x04040404, 0);
    __m256i at = _mm256_add_epi8(first, _mm256_set1_epi8((char)(quad / 2)));
    __m256i bytes = _mm256_shuffle_epi8(words, at);
    __m256i bit = _mm256_set1_epi32(quad % 2 ? (int)0x80402010 : 0x08040201);
    __m256i unset = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), _mm256_setzero_si256());
    return _mm256_andnot_si256(unset, _mm256_set1_epi8(16));
}

/* eight floats of each of eight rows, turned so that each register has one of each row */
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

/* blocks of 32 with 16 bytes of low bits: scale, minimum where it has one, fifth bits where it has those */
INLINE void unpack_32(Tile *t, long groups, int kind)
{
    const int has_least = kind == Q4_1 || kind == Q5_1, has_fifth = kind == Q5_0 || kind == Q5_1;
    const long size = 18 + 2 * has_least + 4 * has_fifth;
    for (long g = 0; g < groups; g++) {
        ahead(t, g, size);
        __m256i q[4], bits = _mm256_setzero_si256();
        __m256 d = halves(t, g * size), m;
        if (has_least)
            m = _mm256_sub_ps(_mm256_setzero_ps(), halves(t, g * size + 2));
        else
            m = _mm256_mul_ps(d, _mm256_set1_ps(has_fifth ? 16 : 8));
        if (has_fifth)
            bits = words(t, g * size + 2 + 2 * has_least);
        quads(t, (g + 1) * size - 16, q);
        for (int i = 0; i < 4; i++) {
            __m256i low = low4(q[i]), high = high4(q[i]);
            if (has_fifth) {
                low = _mm256_or_si256(low, fifth_bits(bits, i));
                high = _mm256_or_si256(high, fifth_bits(bits, i + 4));
            }
            store(t->quads + 256 * g + 32 * i, low);
            store(t->quads + 256 * g + 32 * i + 128, high);
        }
        _mm256_store_ps(t->scale + 8 * g, d);
        _mm256_store_ps(t->least + 8 * g, m);
    }
}

INLINE void unpack_q8_0(Tile *t, long groups)
{
    for (long g = 0; g < groups; g++) {
        ahead(t, g, 34);
        __m256i q[8];
        quads(t, 34 * g + 2, q);
        quads(t, 34 * g + 18, q + 4);
        for (int i = 0; i < 8; i++)
            store(t->quads + 256 * g + 32 * i, q[i]);
        _mm256_store_ps(t->scale + 8 * g, halves(t, 34 * g));
    }
}

/* Q4_K and Q5_K: six bits of scale and six of minimum for each of the eight groups of a block */
INLINE void unpack_six_bits(Tile *t, long at, long group)
{
    const uint32_t low6 = 0x3f3f3f3f, low4 = 0x0f0f0f0f, two = 0x03030303;
    __m256 s[8], m[8];
    for (int i = 0; i < 8; i++) {
        uint32_t w[3];
        memcpy(w, t->row[i] + at + 4, 12);
        uint64_t scales = (w[0] & low6)
            | (uint64_t)((w[2] & low4) | ((w[0] >> 6 & two) << 4)) << 32;
        uint64_t minima = (w[1] & low6)
            | (uint64_t)((w[2] >> 4 & low4) | ((w[1] >> 6 & two) << 4)) << 32;
        uint32_t both;
        memcpy(&both, t->row[i] + at, 4);
        __m128 d = _mm_cvtph_ps(_mm_cvtsi32_si128((int)both));
        s[i] = _mm256_mul_ps(_mm256_broadcastss_ps(d),
                             _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)scales))));
        m[i] = _mm256_mul_ps(_mm256_broadcastss_ps(_mm_movehdup_ps(d)),
                             _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)minima))));
    }
    turn(s);
    turn(m);
    for (int i = 0; i < 8; i++) {
        _mm256_store_ps(t->scale + 8 * (group + i), s[i]);
        _mm256_store_ps(t->least + 8 * (group + i), m[i]);
    }
}

INLINE void unpack_q45_k(Tile *t, long blocks, int kind)
{
    const long size = kind == Q5_K ? 176 : 144;
    for (long b = 0; b < blocks; b++) {
        ahead(t, b, size);
        __m256i high[8];
        unpack_six_bits(t, b * size, 8 * b);
        if (kind == Q5_K) {
            quads(t, b * size + 16, high);
            quads(t, b * size + 32, high + 4);
        }
        for (int c = 0; c < 4; c++) {
            __m256i q[8];
            quads(t, (b + 1) * size - 128 + 32 * c, q);
            quads(t, (b + 1) * size - 112 + 32 * c, q + 4);
            uint8_t *to = t->quads + 2048 * b + 512 * c;
            for (int i = 0; i < 8; i++) {
                __m256i first = low4(q[i]), second = high4(q[i]);
                if (kind == Q5_K) {
                    const __m256i bit = _mm256_set1_epi8(16);
                    __m256i h = high[i];
                    __m256i f = 2 * c < 4 ? _mm256_slli_epi16(h, 4 - 2 * c) : _mm256_srli_epi16(h, 2 * c - 4);
                    __m256i s = 2 * c + 1 < 4 ? _mm256_slli_epi16(h, 3 - 2 * c) : _mm256_srli_epi16(h, 2 * c - 3);
                    first = _mm256_or_si256(first, _mm256_and_si256(f, bit));
                    second = _mm256_or_si256(second, _mm256_and_si256(s, bit));
                }
                store(to + 32 * i, first);
                store(to + 32 * i + 256, second);
            }
        }
    }
}

INLINE void unpack_q6_k(Tile *t, long blocks)
{
    for (long b = 0; b < blocks; b++) {
        const long at = 210 * b;
        ahead(t, b, 210);
        __m256 s[8];
        for (int half = 0; half < 2; half++) {
            __m256i low[16], high[8];
            for (int i = 0; i < 4; i++)
                quads(t, at + 64 * half + 16 * i, low + 4 * i);
            for (int i = 0; i < 2; i++)
                quads(t, at + 128 + 32 * half + 16 * i, high + 4 * i);
            uint8_t *to = t->quads + 2048 * b + 1024 * half;
            const __m256i two = _mm256_set1_epi8(0x30);
            for (int i = 0; i < 8; i++) {
                __m256i h = high[i];
                __m256i h0 = _mm256_and_si256(_mm256_slli_epi16(h, 4), two);
                __m256i h1 = _mm256_and_si256(_mm256_slli_epi16(h, 2), two);
                __m256i h2 = _mm256_and_si256(h, two);
                __m256i h3 = _mm256_and_si256(_mm256_srli_epi16(h, 2), two);
                store(to + 32 * i, _mm256_or_si256(low4(low[i]), h0));
                store(to + 32 * i + 256, _mm256_or_si256(low4(low[i + 8]), h1));
                store(to + 32 * i + 512, _mm256_or_si256(high4(low[i]), h2));
                store(to + 32 * i + 768, _mm256_or_si256(high4(low[i + 8]), h3));
            }
        }
        __m256 d = halves(t, at + 208);
        for (int half = 0; half < 2; half++) {
            for (int i = 0; i < 8; i++)
                s[i] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(
                    _mm_loadl_epi64((const __m128i *)(t->row[i] + at + 192 + 8 * half))));
            turn(s);
            for (int i = 0; i < 8; i++) {
                __m256 scale = _mm256_mul_ps(d, s[i]);
                _mm256_store_ps(t->scale + 8 * (16 * b + 8 * half + i), scale);
                _mm256_store_ps(t->least + 8 * (16 * b + 8 * half + i), _mm256_mul_ps(scale, _mm256_set1_ps(32)));
            }
        }
    }
}

/* nibbles that are places in a table of int8 */
INLINE void unpack_table(Tile *t, long groups, int kind)
{
    static const int8_t nl[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    static const int8_t fp4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    const __m256i table
        = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(kind == MXFP4 ? fp4 : nl)));
    for (long g = 0; g < groups; g++) {
        __m256i q[4];
        __m256 d;
        long at;
        if (kind == MXFP4) {
            float f[8];
            at = 17 * g;
            ahead(t, g, 17);
            for (int i = 0; i < 8; i++) {
                uint8_t e = t->row[i][at];
                uint32_t bits = e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23;
                memcpy(&f[i], &bits, 4);
            }
            d = _mm256_loadu_ps(f);
            at += 1;
        } else if (kind == IQ4_NL) {
            at = 18 * g;
            ahead(t, g, 18);
            d = halves(t, at);
            at += 2;
        } else {
            const long block = 136 * (g / 8), n = g % 8;
            float f[8];
            ahead(t, g, 17);
            for (int i = 0; i < 8; i++) {
                const uint8_t *p = t->row[i] + block;
                int low = p[4 + n / 2] >> 4 * (n % 2) & 15, high = p[2 + n / 4] >> 2 * (n % 4) & 3;
                f[i] = (float)((low | high << 4) - 32);
            }
            d = _mm256_mul_ps(halves(t, block), _mm256_loadu_ps(f));
            at = block + 8 + 16 * n;
        }
        quads(t, at, q);
        for (int i = 0; i < 4; i++) {
            store(t->quads + 256 * g + 32 * i, _mm256_shuffle_epi8(table, low4(q[i])));
            store(t->quads + 256 * g + 32 * i + 128, _mm256_shuffle_epi8(table, high4(q[i])));
        }
        _mm256_store_ps(t->scale + 8 * g, d);
    }
}

/* --- the input, rounded -------------------------------------------------------------------------------- */

typedef struct {
    int8_t *numbers; /* [tokens][columns] */
    float *scale;    /* [tokens][columns / 32] */
    float *sums;     /* [tokens][groups]: of the elements of a group, rounded */
} Input;

INLINE __m256 load_any(const void *x, long i, int type)
{
    if (type == FLOAT32)
        return _mm256_loadu_ps((const float *)x + i);
    __m128i h = _mm_loadu_si128((const __m128i *)((const uint16_t *)x + i));
    if (type == FLOAT16)
        return _mm256_cvtph_ps(h);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}

INLINE int sum_16(__m128i bytes)
{
    __m256i s = _mm256_cvtepi8_epi16(bytes);
    s = _mm256_madd_epi16(s, _mm256_set1_epi16(1));
    __m128i v = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
    v = _mm_add_epi32(v, _mm_shuffle_epi32(v, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(v, _mm_shuffle_epi32(v, 0xb1)));
}

/* One token. A group that holds what is not finite has a scale that is not, and so has all that comes of it. */
AVX2 static void round_token(const void *x, long at, int type, long columns, int group, int8_t *q, float *d, float *sums)
{
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
        d[g] = scale + nothing;
        int first = sum_16(_mm256_castsi256_si128(bytes)), second = sum_16(_mm256_extracti128_si256(bytes, 1));
        if (group == 16) {
            sums[2 * g] = d[g] * (float)first;
            sums[2 * g + 1] = d[g] * (float)second;
        } else
            sums[g] = d[g] * (float)(first + second);
    }
}

/* --- products ------------------------------------------------------------------------------------------ */

/* Sums of four registers of bytes in int32: `bits` of a weight say how many products int16 can hold */
INLINE __m256i dot(const uint8_t *w, const int8_t *a, int count, int bits)
{
    const __m256i ones = _mm256_set1_epi16(1);
    const int together = bits == 4 ? 8 : bits == 5 ? 4 : bits == 6 ? 2 : 1;
    __m256i total = _mm256_setzero_si256();
    for (int i = 0; i < count; i += together) {
        __m256i part = _mm256_setzero_si256();
        for (int j = i; j < i + together; j++) {
            int32_t four;
            memcpy(&four, a + 4 * j, 4);
            __m256i x = _mm256_set1_epi32(four), q = load(w + 32 * j);
            __m256i two = bits == 8 ? _mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(x, q))
                                    : _mm256_maddubs_epi16(q, x);
            part = j == i ? two : _mm256_add_epi16(part, two);
        }
        part = _mm256_madd_epi16(part, ones);
        total = i == 0 ? part : _mm256_add_epi32(total, part);
    }
    return total;
}

/* `tokens` times eight rows */
INLINE void multiply(const Tile *t, const Input *in, long first, int tokens, long columns, int group, int bits, __m256 *y)
{
    const long groups = columns / group;
    for (int k = 0; k < tokens; k++)
        y[k] = _mm256_setzero_ps();
    for (long g = 0; g < groups; g++) {
        __m256 scale = _mm256_load_ps(t->scale + 8 * g);
        for (int k = 0; k < tokens; k++) {
            const long token = first + k;
            __m256i sum = dot(t->quads + 8 * group * g, in->numbers + token * columns + group * g, group / 4, bits);
            __m256 by = _mm256_mul_ps(scale, _mm256_set1_ps(in->scale[token * (columns / 32) + g * group / 32]));
            y[k] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), by, y[k]);
            if (bits != 8) {
                __m256 least = _mm256_load_ps(t->least + 8 * g);
                y[k] = _mm256_fnmadd_ps(least, _mm256_set1_ps(in->sums[token * groups + g]), y[k]);
            }
        }
    }
}

INLINE void store_any(void *y, long at, int count, int type, __m256 values)
{
    float f[8];
    if (type == FLOAT32) {
        _mm256_storeu_ps(f, values);
        memcpy((float *)y + at, f, 4 * count);
        return;
    }
    uint16_t h[8];
    if (type == FLOAT16)
        _mm_storeu_si128((__m128i *)h, _mm256_cvtps_ph(values, 0));
    else {
        __m256i b = _mm256_castps_si256(values);
        __m256i odd = _mm256_and_si256(_mm256_srli_epi32(b, 16), _mm256_set1_epi32(1));
        __m256i rounded = _mm256_add_epi32(b, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        __m256i quiet = _mm256_or_si256(b, _mm256_set1_epi32(0x400000));
        __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(values, values, _CMP_UNORD_Q));
        rounded = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
        __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded, rounded), 0x08);
        _mm_storeu_si128((__m128i *)h, _mm256_castsi256_si128(packed));
    }
    memcpy((uint16_t *)y + at, h, 2 * count);
}

INLINE void tile(Tile *t, const Input *in, long tokens, long columns, int group, int bits, void *y, int type,
                 long rows, long row, const float *bias)
{
    const int count = rows - row < 8 ? (int)(rows - row) : 8;
    float b[8] = {0};
    if (bias)
        memcpy(b, bias + row, 4 * count);
    const __m256 add = _mm256_loadu_ps(b);
    long token = 0;
    for (; token + 4 <= tokens; token += 4) {
        __m256 out[4];
        multiply(t, in, token, 4, columns, group, bits, out);
        for (int k = 0; k < 4; k++)
            store_any(y, (token + k) * rows + row, count, type, _mm256_add_ps(out[k], add));
    }
    for (; token < tokens; token++) {
        __m256 out[1];
        multiply(t, in, token, 1, columns, group, bits, out);
        store_any(y, token * rows + row, count, type, _mm256_add_ps(out[0], add));
    }
}

#define CASE(kind, group, bits, unpack)                                                                  \
    case kind:                                                                                           \
        unpack;                                                                                          \
        tile(t, in, tokens, columns, group, bits, y, type, rows, row, bias);                             \
        break

AVX2 static void eight_rows(int kind, Tile *t, const Input *in, long tokens, long columns, void *y, int type,
                            long rows, long row, const float *bias)
{
    switch (kind) {
        CASE(Q4_0, 32, 4, unpack_32(t, columns / 32, Q4_0));
        CASE(Q4_1, 32, 4, unpack_32(t, columns / 32, Q4_1));
        CASE(Q5_0, 32, 5, unpack_32(t, columns / 32, Q5_0));
        CASE(Q5_1, 32, 5, unpack_32(t, columns / 32, Q5_1));
        CASE(Q8_0, 32, 8, unpack_q8_0(t, columns / 32));
        CASE(Q4_K, 32, 4, unpack_q45_k(t, columns / 256, Q4_K));
        CASE(Q5_K, 32, 5, unpack_q45_k(t, columns / 256, Q5_K));
        CASE(Q6_K, 16, 6, unpack_q6_k(t, columns / 256));
        CASE(IQ4_NL, 32, 8, unpack_table(t, columns / 32, IQ4_NL));
        CASE(IQ4_XS, 32, 8, unpack_table(t, columns / 32, IQ4_XS));
        CASE(MXFP4, 32, 8, unpack_table(t, columns / 32, MXFP4));
    }
}

/* y [tokens, rows] = x [tokens, columns] times W [rows, columns] transposed, plus bias [rows] float32 or NULL.
 * x and y are of `type`. Returns 0, or 1 where memory is short. */
int blocks_product(int kind, const uint8_t *w, long rows, long columns, long row_bytes, const void *x, void *y,
                   int type, long tokens, const float *bias, int threads)
{
    const int group = kind == Q6_K ? 16 : 32;
    const size_t numbers = (size_t)tokens * columns, scales = (size_t)tokens * (columns / 32);
    char *memory = malloc(numbers + 4 * (scales + (size_t)tokens * (columns / group)) + 64);
    if (!memory)
        return 1;
    Input in;
    in.scale = (float *)memory;
    in.sums = in.scale + scales;
    in.numbers = (int8_t *)(in.sums + (size_t)tokens * (columns / group));
    int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
#pragma omp for schedule(static)
        for (long token = 0; token < tokens; token++)
            round_token(x, token * columns, type, columns, group, in.numbers + token * columns,
                        in.scale + token * (columns / 32), in.sums + token * (columns / group));
        Tile t;
        const size_t wide = 8 * (size_t)columns, groups = 32 * (size_t)(columns / group);
        t.quads = aligned_alloc(64, (wide + 2 * groups + 63) / 64 * 64);
        failed |= !t.quads;
        t.scale = (float *)(t.quads + wide);
        t.least = t.scale + groups / 4;
#pragma omp for schedule(static)
        for (long row = 0; row < rows; row += 8) {
            if (!t.quads)
                continue;
            for (int i = 0; i < 8; i++)
                t.row[i] = w + (row + i < rows ? row + i : rows - 1) * row_bytes;
            t.next = t.row[7] + row_bytes;
            eight_rows(kind, &t, &in, tokens, columns, y, type, rows, row, bias);
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
