/* What kernels for AVX512-BF16 share that compute with 16 tokens side by side, one in each lane of a register. */

#include "vectors.h"

#ifdef OWN_LANES /* in one of the files that include this */
SOURCE(lanes)
#endif

#if defined(__x86_64__) && defined(__GNUC__)

#include <string.h>

#define AVX512 __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))
#define WIDE static inline __attribute__((always_inline)) AVX512

enum { LANES = 16 };

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
