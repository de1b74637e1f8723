/* float32, bfloat16 or float16 to ggml's Q8_0, Q6_K and Q4_K, for CPUs with AVX2: what quantise.py does with torch,
 * of which it differs in the order of sums alone.
 *
 * A search for the best scale is made for eight groups at once, one in each lane of a register, so that nothing is
 * ever added across lanes. Blocks of 256 elements are done one after the other, and need no memory but the stack.
 *
 * Built at install where there is a compiler, and loaded by quantise.py; nothing depends on it.
 */

#include <stdint.h>

#include "../kernels/source.h"

SOURCE(quantise)

enum { Q8_0, Q6_K, Q4_K };
enum { FLOAT32, BFLOAT16, FLOAT16 };

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>
#include <string.h>

#define AVX2 __attribute__((target("avx2,fma,f16c")))
#define INLINE static inline __attribute__((always_inline)) AVX2

enum { SUPER = 256, LANES = 8 };

int quantise_supported(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

INLINE __m256 all(float x) { return _mm256_set1_ps(x); }
INLINE __m256 absolute(__m256 x) { return _mm256_andnot_ps(all(-0.0f), x); }
INLINE __m256 where(__m256 mask, __m256 yes, __m256 no) { return _mm256_blendv_ps(no, yes, mask); }
INLINE __m256 nearest(__m256 x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE __m256 clamp(__m256 x, float least, float most) { return _mm256_min_ps(_mm256_max_ps(x, all(least)), all(most)); }
INLINE __m256 above(__m256 a, __m256 b) { return _mm256_cmp_ps(a, b, _CMP_GT_OQ); }

/* 0 of what is nothing, or next to it */
INLINE __m256 inverse(__m256 x)
{
    return _mm256_andnot_ps(above(all(1e-36f), absolute(x)), all(1) / x);
}

INLINE float inverse1(float x) { return (x < 0 ? -x : x) < 1e-36f ? 0 : 1 / x; }
INLINE float nearest1(float x) { return __builtin_rintf(x); }

/* x as float16 at `to`; what that is comes back */
INLINE float half(float x, uint8_t *to)
{
    uint16_t bits = _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT);
    memcpy(to, &bits, 2);
    return _cvtsh_ss(bits);
}

INLINE void widen(const void *from, int type, long at, float *to)
{
    for (int i = 0; i < SUPER; i += LANES) {
        const uint16_t *halves = (const uint16_t *)from + at + i;
        __m256 x;
        if (type == FLOAT32)
            x = _mm256_loadu_ps((const float *)from + at + i);
        else if (type == FLOAT16)
            x = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)halves));
        else
            x = _mm256_castsi256_ps(
                _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)halves)), 16));
        _mm256_store_ps(to + i, x);
    }
}

/* element i of each of eight groups of `size`, which begin at x */
INLINE __m256 across(const float *x, int size, int i)
{
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_i32gather_ps(x + i, _mm256_mullo_epi32(lanes, _mm256_set1_epi32(size)), 4);
}

/* --- Q8_0 ---------------------------------------------------------------------------------------------- */

/* Of the scales that make the largest of a group -127, -128 and so on to -113, the one with the least error. */
INLINE void q8_0(const float *groups, uint8_t *to)
{
    __m256 x[32], largest = all(0);
    for (int i = 0; i < 32; i++) {
        x[i] = across(groups, 32, i);
        largest = where(above(absolute(x[i]), absolute(largest)), x[i], largest);
    }
    __m256 scale = all(0), best = all(0);
    for (int number = 0; number < 16; number++) {
        const float most = number == 0 ? 127 : number == 1 ? 128 : 128 - number;
        const __m128i halves = _mm256_cvtps_ph(largest / all(-most), _MM_FROUND_TO_NEAREST_INT);
        const __m256 d = _mm256_cvtph_ps(halves), by = inverse(d);
        __m256 error = all(0);
        for (int i = 0; i < 32; i++) {
            const __m256 off = _mm256_fnmadd_ps(clamp(nearest(x[i] * by), -128, 127), d, x[i]);
            error = _mm256_fmadd_ps(off, off, error);
        }
        const __m256 better = above(best, error);
        scale = number ? where(better, d, scale) : d;
        best = number ? where(better, error, best) : error;
    }
    float scales[LANES], by[LANES];
    _mm256_storeu_ps(scales, scale);
    _mm256_storeu_ps(by, inverse(scale));
    for (int group = 0; group < LANES; group++, groups += 32, to += 34) {
        half(scales[group], to);
        for (int i = 0; i < 32; i += LANES) {
            int32_t numbers[LANES];
            const __m256 q = clamp(nearest(_mm256_load_ps(groups + i) * all(by[group])), -128, 127);
            _mm256_storeu_si256((__m256i *)numbers, _mm256_cvtps_epi32(q));
            for (int lane = 0; lane < LANES; lane++)
                to[2 + i + lane] = (int8_t)numbers[lane];
        }
    }
}

/* --- Q6_K ---------------------------------------------------------------------------------------------- */

/* The scales with which eight groups of 16 are rounded best to integers from -32 to 31; weights are x². */
INLINE __m256 symmetric(const float *groups)
{
    __m256 x[16], largest = all(0);
    for (int i = 0; i < 16; i++) {
        x[i] = across(groups, 16, i);
        largest = where(above(absolute(x[i]), absolute(largest)), x[i], largest);
    }
    const __m256 per_step = inverse(largest);
    __m256 best = all(0), scale = all(0);
    for (int number = 0; number < 19; number++) { /* steps 0, -9, ..., -1, 1, ..., 9 */
        const int step = number == 0 ? 0 : number < 10 ? number - 10 : number - 9;
        const __m256 by = all(-(32 + 0.1f * step)) * per_step;
        __m256 xq = all(0), qq = all(0);
        for (int i = 0; i < 16; i++) {
            const __m256 q = clamp(nearest(x[i] * by), -32, 31), weighted = x[i] * x[i] * q;
            xq = _mm256_fmadd_ps(weighted, x[i], xq);
            qq = _mm256_fmadd_ps(weighted, q, qq);
        }
        const __m256 found = xq * inverse(qq), gain = xq * found;
        const __m256 better = number ? above(gain, best) : above(qq, all(0));
        best = where(better, gain, best);
        scale = where(better, found, scale);
    }
    return _mm256_andnot_ps(above(all(1e-15f), absolute(largest)), scale);
}

INLINE void q6_k(const float *x, uint8_t *to)
{
    float scales[16], largest = 0;
    _mm256_storeu_ps(scales, symmetric(x));
    _mm256_storeu_ps(scales + 8, symmetric(x + 128));
    for (int i = 0; i < 16; i++)
        if (__builtin_fabsf(scales[i]) > __builtin_fabsf(largest))
            largest = scales[i];
    memset(to, 0, 210);
    if (__builtin_fabsf(largest) < 1e-15f)
        return;
    const float by = -128 * inverse1(largest), d = half(inverse1(by), to + 208);
    for (int group = 0; group < 16; group++) {
        float small = nearest1(by * scales[group]);
        small = small > 127 ? 127 : small;
        to[192 + group] = (int8_t)small;
        const __m256 per = all(inverse1(d * small));
        for (int i = 0; i < 16; i += LANES) {
            const __m256 q = clamp(nearest(_mm256_load_ps(x + 16 * group + i) * per), -32, 31) + all(32);
            int32_t numbers[LANES];
            _mm256_storeu_si256((__m256i *)numbers, _mm256_cvtps_epi32(q));
            for (int lane = 0; lane < LANES; lane++) {
                const int at = 16 * group + i + lane, half_block = at / 128, quarter = at / 32 % 4, within = at % 32;
                to[64 * half_block + 32 * (quarter % 2) + within] |= (numbers[lane] & 15) << 4 * (quarter / 2);
                to[128 + 32 * half_block + within] |= numbers[lane] >> 4 << 2 * quarter;
            }
        }
    }
}

/* --- Q4_K ---------------------------------------------------------------------------------------------- */

/* Scales and minima, at most 0, with which eight groups of 32 are rounded best to integers from 0 to 15. */
INLINE void with_minimum(const __m256 x[32], float scales[LANES], float minima[LANES])
{
    __m256 sum_x = all(0), least = all(0), largest = x[0];
    for (int i = 0; i < 32; i++) {
        sum_x += x[i];
        least = _mm256_min_ps(least, x[i]);
        largest = _mm256_max_ps(largest, x[i]);
    }
    const __m256 span = largest - least, per_step = inverse(span), count = all(32);
    __m256 scale = span * all(1.0f / 15), minimum = least, best = all(0);
    for (int step = -1; step < 21; step++) {
        const __m256 by = all(step < 0 ? 15 : 14 + 0.1f * step) * per_step, lift = least * by;
        __m256 q_ = all(0), qq = all(0), xq = all(0);
        for (int i = 0; i < 32; i++) {
            const __m256 q = clamp(nearest(_mm256_fmsub_ps(x[i], by, lift)), 0, 15);
            q_ += q;
            qq = _mm256_fmadd_ps(q, q, qq);
            xq = _mm256_fmadd_ps(q, x[i], xq);
        }
        __m256 this_scale = scale, this_least = least;
        const __m256 per = inverse(_mm256_max_ps(count * qq - q_ * q_, all(0)));
        if (step >= 0) {
            this_scale = (count * xq - sum_x * q_) * per;
            this_least = (qq * sum_x - q_ * xq) * per;
            this_scale = where(above(this_least, all(0)), xq * inverse(qq), this_scale);
            this_least = _mm256_min_ps(this_least, all(0));
        }
        /* of (scale q + least - x)² what is not the same in all steps */
        const __m256 error = this_scale * (this_scale * qq + all(2) * (this_least * q_ - xq)) +
                             this_least * (this_least * count - all(2) * sum_x);
        __m256 better = above(best, error);
        if (step < 0)
            best = error;
        else {
            better = _mm256_and_ps(better, above(per, all(0)));
            best = where(better, error, best);
            scale = where(better, this_scale, scale);
            minimum = where(better, this_least, minimum);
        }
    }
    _mm256_storeu_ps(scales, scale);
    _mm256_storeu_ps(minima, all(0) - minimum);
}

/* Of scales and minima in 6 bits, and those beside them, the ones with which eight groups are rounded best. */
INLINE void neighbours(const __m256 x[32], float d, float d_least, __m256 first, __m256 first_least,
                       float scales[LANES], float minima[LANES])
{
    static const float more[3] = {0, -1, 1};
    __m256 scale = first, minimum = first_least, best = all(__builtin_inff());
    for (int way = 0; way < 9; way++) {
        const __m256 s = clamp(first + all(more[way / 3]), 0, 63), m = clamp(first_least + all(more[way % 3]), 0, 63);
        const __m256 by = s * all(d), lift = m * all(d_least), per = inverse(by);
        __m256 error = all(0);
        for (int i = 0; i < 32; i++) {
            const __m256 q = clamp(nearest((x[i] + lift) * per), 0, 15);
            const __m256 off = _mm256_fmsub_ps(q, by, lift + x[i]);
            error = _mm256_fmadd_ps(off, off, error);
        }
        const __m256 better = above(best, error);
        best = where(better, error, best);
        scale = where(better, s, scale);
        minimum = where(better, m, minimum);
    }
    _mm256_storeu_ps(scales, scale);
    _mm256_storeu_ps(minima, minimum);
}

INLINE void q4_k(const float *x, uint8_t *to)
{
    float scales[LANES], minima[LANES], most = 0, most_least = 0;
    __m256 groups[32];
    for (int i = 0; i < 32; i++)
        groups[i] = across(x, 32, i);
    with_minimum(groups, scales, minima);
    for (int i = 0; i < LANES; i++) {
        most = __builtin_fmaxf(most, scales[i]);
        most_least = __builtin_fmaxf(most_least, minima[i]);
    }
    const float d = half(most / 63, to), least = half(most_least / 63, to + 2);
    const float by = 63 * inverse1(most), by_least = 63 * inverse1(most_least);
    const __m256 first = clamp(nearest(_mm256_loadu_ps(scales) * all(by)), 0, 63);
    const __m256 first_least = clamp(nearest(_mm256_loadu_ps(minima) * all(by_least)), 0, 63);
    neighbours(groups, d, least, first, first_least, scales, minima);
    memset(to + 4, 0, 140);
    for (int group = 0; group < LANES; group++) {
        const int s = scales[group], m = minima[group];
        if (group < 4) {
            to[4 + group] |= s;
            to[8 + group] |= m;
        } else {
            to[group] |= s >> 4 << 6;
            to[4 + group] |= m >> 4 << 6;
            to[8 + group] = (s & 15) | m << 4;
        }
        const __m256 per = all(inverse1(d * s)), lift = all(least * m);
        for (int i = 0; i < 32; i += LANES) {
            const __m256 q = clamp(nearest((_mm256_load_ps(x + 32 * group + i) + lift) * per), 0, 15);
            int32_t numbers[LANES];
            _mm256_storeu_si256((__m256i *)numbers, _mm256_cvtps_epi32(q));
            for (int lane = 0; lane < LANES; lane++)
                to[16 + 32 * (group / 2) + i + lane] |= numbers[lane] << 4 * (group % 2);
        }
    }
}

/* `supers` times 256 elements of x, from the first on, to blocks of a format at `to`. */
AVX2 void quantise_blocks(int kind, const void *x, int type, long supers, uint8_t *to)
{
    for (long number = 0; number < supers; number++) {
        float wide[SUPER] __attribute__((aligned(32)));
        widen(x, type, number * SUPER, wide);
        if (kind == Q8_0)
            q8_0(wide, to + 272 * number);
        else if (kind == Q6_K)
            q6_k(wide, to + 210 * number);
        else
            q4_k(wide, to + 144 * number);
    }
}

#else

int quantise_supported(void) { return 0; }

void quantise_blocks(int kind, const void *x, int type, long supers, uint8_t *to) {}

#endif
