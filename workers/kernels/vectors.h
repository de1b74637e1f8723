/* What the compiled kernels share: types of numbers, and how they are read and written. */

#include <stdint.h>

#include "source.h"

enum { FLOAT32, BFLOAT16, FLOAT16 };

#ifdef OWN_SOURCE /* in one of the files that include this */
SOURCE(vectors)
#endif

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

#define AVX2 __attribute__((target("avx2,fma,f16c")))
#define INLINE static inline __attribute__((always_inline)) AVX2

INLINE __m256 load_any(const void *x, long i, int type)
{
    if (type == FLOAT32)
        return _mm256_loadu_ps((const float *)x + i);
    __m128i h = _mm_loadu_si128((const __m128i *)((const uint16_t *)x + i));
    if (type == FLOAT16)
        return _mm256_cvtph_ps(h);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}

/* to the nearest, and even */
INLINE __m128i to_bfloat16(__m256 values)
{
    __m256i b = _mm256_castps_si256(values);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(b, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(b, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i quiet = _mm256_or_si256(b, _mm256_set1_epi32(0x400000));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(values, values, _CMP_UNORD_Q));
    rounded = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded, rounded), 0x08);
    return _mm256_castsi256_si128(packed);
}

/* of a type that has 16 bits */
INLINE __m128i to_half(__m256 values, int type)
{
    return type == FLOAT16 ? _mm256_cvtps_ph(values, 0) : to_bfloat16(values);
}

#endif
