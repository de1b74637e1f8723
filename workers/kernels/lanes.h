/* What kernels for AVX512-BF16 share: they compute with 16 numbers at once, in some of them one of each of 16 tokens
 * that lie side by side. */

#include "vectors.h"

#ifdef OWN_LANES /* in one of the files that include this */
SOURCE(lanes)
#endif

enum { UNGATED = -1, SILU, GELU_TANH };

/* What weights are: numbers of 16 bits, or of eight with scales behind them, as rows.c has them */
enum { AS_IT_IS, INT8_128, INT8_ROW, FP8_128, FP8_ROW };

static inline int is_fp8(int kind) { return kind == FP8_128 || kind == FP8_ROW; }
static inline int by_row(int kind) { return kind == INT8_ROW || kind == FP8_ROW; }

#if defined(__x86_64__) && defined(__GNUC__)

#include <string.h>

#define AVX512 __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))
#define WIDE static inline __attribute__((always_inline)) AVX512

enum {
    LANES = 16,
    ALL_LANES = 0xffff,
    GROUP = 128, /* columns that share a scale */
    LESS = 256,  /* times, that FP8 is when it is made float32 */
};

/* those of 16 numbers from `i` on that are below `size` */
WIDE __mmask16 below(long i, long size)
{
    return (__mmask16)(i + LANES <= size ? ALL_LANES : (1u << (size - i)) - 1);
}

/* e to the power of x, which is not above 88, to 1.4e-6 of it: 2 to the power of a whole number, times a polynomial
 * between the root of a half and that of two. Of 0 it is 1. NaN stays NaN, and what is below the smallest number is 0. */
WIDE __m512 exponential_wide(__m512 x)
{
    const __m512 to_two = _mm512_set1_ps(1.44269504f);
    x = _mm512_max_ps(_mm512_set1_ps(-200), x); /* the second where one is NaN */
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, to_two), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 r = _mm512_fmsub_ps(x, to_two, n);
    const float of[] = {9.67151265e-3f, 5.55073374e-2f, 2.40222421e-1f, 6.93146978e-1f, 1.0f};
    __m512 p = _mm512_set1_ps(1.32647271e-3f);
#pragma GCC unroll 5
    for (int i = 0; i < 5; i++)
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(of[i]));
    return _mm512_scalef_ps(p, n);
}

WIDE __m512 wide_lanes(__m256i halves)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

/* as if they had been stored as bfloat16, and loaded */
WIDE __m512 rounded_lanes(__m512 v)
{
    return wide_lanes((__m256i)_mm512_cvtneps_pbh(v));
}

/* Sixteen numbers of eight bits, and as many from elsewhere, which are exact in bfloat16. FP8 is made as float16 has
 * its bits, and so is `LESS` times less. */
WIDE __m512bh widened_bytes(int fp8, const uint8_t *first, const uint8_t *second)
{
    const __m128i low = _mm_loadu_si128((const __m128i *)first), high = _mm_loadu_si128((const __m128i *)second);
    if (!fp8)
        return _mm512_cvtne2ps_pbh(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(high)),
                                   _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(low)));
    const __m512i u = _mm512_cvtepu8_epi16(_mm256_set_m128i(high, low)), sign = _mm512_set1_epi16((short)0x8000);
    const __m512i size = _mm512_and_si512(_mm512_slli_epi16(u, 7), _mm512_set1_epi16(0x3f80));
    const __m512i halves = _mm512_or_si512(size, _mm512_and_si512(_mm512_slli_epi16(u, 8), sign));
    return _mm512_cvtne2ps_pbh(_mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1)),
                               _mm512_cvtph_ps(_mm512_castsi512_si256(halves)));
}

/* What is behind a gate, times the activated and rounded gate */
WIDE __m512 opened(__m512 gate, __m512 up, int kind)
{
    __m512 u = gate;
    if (kind == GELU_TANH) { /* (1 + tanh u) / 2 is 1 / (1 + exp -2u) */
        u = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_mul_ps(gate, gate), gate), _mm512_set1_ps(0.044715f), gate);
        u = _mm512_mul_ps(u, _mm512_set1_ps(1.5957691216f));
    }
    const __m512 e = exponential_wide(_mm512_min_ps(_mm512_set1_ps(88), _mm512_sub_ps(_mm512_setzero_ps(), u)));
    return _mm512_mul_ps(rounded_lanes(_mm512_div_ps(gate, _mm512_add_ps(_mm512_set1_ps(1), e))), up);
}

/* Numbers [16][16], of four bytes each, so that those in a row are in a column */
WIDE void turn(__m512i *r)
{
    __m512i t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

/* The first `pairs` of two numbers of each row side by side: [pairs][16], each `apart` from the one before. A row that
 * is NULL is 0. */
WIDE void side_by_side(const uint16_t *const *rows, long pairs, uint32_t *to, long apart)
{
    for (long c = 0; c < pairs; c += LANES) {
        const long left = pairs - c < LANES ? pairs - c : LANES;
        const __mmask16 some = (__mmask16)((1u << left) - 1);
        __m512i r[LANES];
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++)
            r[i] = rows[i] ? _mm512_maskz_loadu_epi32(some, rows[i] + 2 * c) : _mm512_setzero_si512();
        turn(r);
        for (int i = 0; i < left; i++)
            _mm512_store_si512(to + (c + i) * apart, r[i]);
    }
}

#endif
