/* What kernels for AVX512-BF16 share: they compute with 16 numbers at once, in some of them one of each of 16 tokens
 * that lie side by side. */

#include "vectors.h"

#ifdef OWN_LANES /* in one of the files that include this */
SOURCE(lanes)
#endif

#if defined(__x86_64__) && defined(__GNUC__)

#include <string.h>

#define AVX512 __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))
#define WIDE static inline __attribute__((always_inline)) AVX512

enum { LANES = 16 };

/* e to the power of x, which is not above 88: see step.c */
WIDE __m512 exponential_wide(__m512 x)
{
    const __m512 least = _mm512_set1_ps(-87.33f);
    const __mmask16 some = _mm512_cmp_ps_mask(x, least, _CMP_NLT_UQ);
    x = _mm512_max_ps(least, x); /* the second where one is NaN */
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)),
                                          _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    const float of[] = {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
#pragma GCC unroll 5
    for (int i = 0; i < 5; i++)
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(of[i]));
    p = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), _mm512_set1_ps(1));
    return _mm512_maskz_scalef_ps(some, p, n);
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
