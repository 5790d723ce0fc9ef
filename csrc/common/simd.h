// Sixteen floats at a time, the same source for every instruction set (GCC vector extensions).
//
// NOTE: contraction is off for the whole library (-ffp-contract=off): a multiply-add is fused exactly where fma() is
// written, so that two functions that share a formula share its bits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <immintrin.h>

#include "common/view.h"

#ifndef ST_ISA
#error "compile kernel files through the build, which sets ST_ISA"
#endif

namespace seedthink::ST_ISA {

constexpr int kLanes = 16;
typedef float vf __attribute__((vector_size(64)));
typedef int32_t vi __attribute__((vector_size(64)));
typedef float vf_u __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t vh_u __attribute__((vector_size(32), aligned(2), may_alias));
typedef uint32_t vu __attribute__((vector_size(64)));

inline vf load(const float* p) { return *reinterpret_cast<const vf_u*>(p); }
inline void store(float* p, vf v) { *reinterpret_cast<vf_u*>(p) = v; }
inline vf splat(float x) { return vf{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }

inline vf load(const bf16* p) {
  const vh_u half = *reinterpret_cast<const vh_u*>(p);
  return reinterpret_cast<vf>(__builtin_convertvector(half, vu) << 16);
}

// The first n (0..16) lanes; the others read as `fill` and are not touched in memory.
inline vf load_n(const float* p, int n, float fill = 0.f) {
#if defined(__AVX512F__)
  return (vf)_mm512_mask_loadu_ps((__m512)splat(fill), static_cast<__mmask16>((1u << n) - 1u), p);
#endif
  alignas(64) float lane[kLanes];
  for (int i = 0; i < kLanes; ++i) lane[i] = i < n ? p[i] : fill;
  return load(lane);
}
inline void store_n(float* p, vf v, int n) {
#if defined(__AVX512F__)
  return _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1u), (__m512)v);
#endif
  alignas(64) float lane[kLanes];
  store(lane, v);
  for (int i = 0; i < n; ++i) p[i] = lane[i];
}

// Calls f(i, live) for each vector of a row of n floats; `live` (1..16) lanes of it exist.
template <typename F>
inline void for_vectors(int64_t n, const F& f) {
  for (int64_t i = 0; i < n; i += kLanes) f(i, static_cast<int>(std::min<int64_t>(kLanes, n - i)));
}
inline vf load_some(const float* p, int live) { return live == kLanes ? load(p) : load_n(p, live); }
inline void store_some(float* p, vf v, int live) {
  if (live == kLanes)
    store(p, v);
  else
    store_n(p, v, live);
}

inline vf fma(vf a, vf b, vf c) {
#if defined(__AVX512F__)
  return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  union { vf v; __m256 h[2]; } x{a}, y{b}, z{c};
  z.h[0] = _mm256_fmadd_ps(x.h[0], y.h[0], z.h[0]);
  z.h[1] = _mm256_fmadd_ps(x.h[1], y.h[1], z.h[1]);
  return z.v;
#else
  return a * b + c;
#endif
}
inline float fma(float a, float b, float c) {
#if defined(__FMA__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

// Below AVX-512 a vector is worked on in parts that the machine has: GCC takes a choice, a comparison or a shuffle of a
// vector that it has not apart into single lanes.
#if defined(__AVX__)
using Part = __m256;
inline Part max(Part a, Part b) { return _mm256_max_ps(a, b); }
inline Part min(Part a, Part b) { return _mm256_min_ps(a, b); }
inline Part above(Part a, Part b) { return _mm256_cmp_ps(a, b, _CMP_GT_OQ); }
inline Part level(Part a, Part b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
inline uint32_t signs(Part x) { return static_cast<uint32_t>(_mm256_movemask_ps(x)); }
inline Part swap_4(Part x) { return _mm256_permute2f128_ps(x, x, 1); }
inline Part swap_2(Part x) { return _mm256_permute_ps(x, 0x4e); }
inline Part swap_1(Part x) { return _mm256_permute_ps(x, 0xb1); }
#else
using Part = __m128;
inline Part max(Part a, Part b) { return _mm_max_ps(a, b); }
inline Part min(Part a, Part b) { return _mm_min_ps(a, b); }
inline Part above(Part a, Part b) { return _mm_cmpgt_ps(a, b); }
inline Part level(Part a, Part b) { return _mm_cmpeq_ps(a, b); }
inline uint32_t signs(Part x) { return static_cast<uint32_t>(_mm_movemask_ps(x)); }
inline Part swap_2(Part x) { return _mm_shuffle_ps(x, x, 0x4e); }
inline Part swap_1(Part x) { return _mm_shuffle_ps(x, x, 0xb1); }
#endif
union Parts {
  static constexpr int kCount = sizeof(vf) / sizeof(Part), kWidth = kLanes / kCount;
  vf all;
  vi bits;
  Part part[kCount];
};
template <typename F>
inline Parts by_parts(const F& f, vf a, vf b) {
  Parts x{a}, y{b};
  for (int i = 0; i < Parts::kCount; ++i) x.part[i] = f(x.part[i], y.part[i]);
  return x;
}

// a > b ? a : b and a < b ? a : b, for NaN and zeros of both signs, too. (A mask of ones: GCC 12 warns otherwise.)
inline vf max(vf a, vf b) {
#if defined(__AVX512F__)
  return (vf)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b);
#endif
  return by_parts([](Part x, Part y) { return max(x, y); }, a, b).all;
}
inline vf min(vf a, vf b) {
#if defined(__AVX512F__)
  return (vf)_mm512_maskz_min_ps(0xffff, (__m512)a, (__m512)b);
#endif
  return by_parts([](Part x, Part y) { return min(x, y); }, a, b).all;
}

// All bits of the lanes of a that are above, or level with, those of b.
inline vi above(vf a, vf b) {
#if defined(__AVX512F__)
  return a > b;
#endif
  return by_parts([](Part x, Part y) { return above(x, y); }, a, b).bits;
}
inline vi level(vf a, vf b) {
#if defined(__AVX512F__)
  return a == b;
#endif
  return by_parts([](Part x, Part y) { return level(x, y); }, a, b).bits;
}

// a where `truth` has all bits of a lane set, b where it has none.
inline vf select(vi truth, vf a, vf b) {
#if defined(__AVX512F__)
  return truth ? a : b;
#endif
  return reinterpret_cast<vf>((reinterpret_cast<vi>(a) & truth) | (reinterpret_cast<vi>(b) & ~truth));
}

// The sign bit of each lane, lane 0 lowest.
inline uint32_t signs(vi x) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)x);
#endif
  Parts parts;
  parts.bits = x;
  uint32_t found = 0;
  for (int i = 0; i < Parts::kCount; ++i) found |= signs(parts.part[i]) << (Parts::kWidth * i);
  return found;
}

// Each lane gets the value of the lane DISTANCE (8, 4, 2 or 1) to its side.
template <int DISTANCE>
inline vf swap_lanes(vf v) {
#if defined(__AVX512F__)
  constexpr vi kLane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return __builtin_shuffle(v, kLane ^ DISTANCE);
#endif
  Parts from{v}, to;
  for (int i = 0; i < Parts::kCount; ++i) {
    const Part part = from.part[DISTANCE >= Parts::kWidth ? i ^ (DISTANCE / Parts::kWidth) : i];
    if constexpr (DISTANCE == 1)
      to.part[i] = swap_1(part);
    else if constexpr (DISTANCE == 2)
      to.part[i] = swap_2(part);
#if defined(__AVX__)
    else if constexpr (DISTANCE == 4)
      to.part[i] = swap_4(part);
#endif
    else
      to.part[i] = part;
  }
  return to.all;
}

// Reductions over the lanes by a fixed tree: 8 + 8, 4 + 4, 2 + 2, 1 + 1.
inline float sum(vf v) {
  v = v + swap_lanes<8>(v);
  v = v + swap_lanes<4>(v);
  v = v + swap_lanes<2>(v);
  v = v + swap_lanes<1>(v);
  return v[0];
}
inline float reduce_max(vf v) {
  v = max(v, swap_lanes<8>(v));
  v = max(v, swap_lanes<4>(v));
  v = max(v, swap_lanes<2>(v));
  v = max(v, swap_lanes<1>(v));
  return v[0];
}

// exp with about 1 ulp of error on [-87, 88]; below it underflows to 0, above it is +inf; NaN stays NaN. madd(a, b, c)
// is a * b + c in the caller's way of rounding.
template <typename Madd>
inline vf exp_by(const Madd& madd, vf x) {
  const vf log2e = splat(1.44269504088896341f), ln2_hi = splat(0.693359375f), ln2_lo = splat(-2.12194440e-4f);
  const vf clamped = max(min(x, splat(88.7228f)), splat(-87.3365f));
  const vf magic = splat(12582912.f);  // 1.5 * 2^23: adding it rounds to the nearest integer
  const vf n = madd(clamped, log2e, magic) - magic;
  vf r = madd(n, -ln2_hi, clamped);
  r = madd(n, -ln2_lo, r);
  vf p = splat(1.9875691500e-4f);
  p = madd(p, r, splat(1.3981999507e-3f));
  p = madd(p, r, splat(8.3334519073e-3f));
  p = madd(p, r, splat(4.1665795894e-2f));
  p = madd(p, r, splat(1.6666665459e-1f));
  p = madd(p, r, splat(5.0000001201e-1f));
  p = madd(p, r * r, r) + splat(1.f);
  const vi exponent = __builtin_convertvector(n, vi);
  // 2^n in two halves, so that n = 128 and the subnormals do not overflow the exponent field.
  const vi half = exponent >> 1;
  const vf scale_a = reinterpret_cast<vf>((half + 127) << 23);
  const vf scale_b = reinterpret_cast<vf>((exponent - half + 127) << 23);
  vf y = p * scale_a * scale_b;
  y = select(above(splat(-87.3365f), x), splat(0.f), y);
  y = select(above(x, splat(88.7228f)), splat(__builtin_inff()), y);
  return select(level(x, x), y, x);
}

inline vf exp(vf x) {
  return exp_by([](vf a, vf b, vf c) { return fma(a, b, c); }, x);
}
inline float exp(float x) { return exp(splat(x))[0]; }

// The same bits in every instruction set, where a choice hangs on them: products are rounded before they are added.
inline vf exp_unfused(vf x) {
  return exp_by([](vf a, vf b, vf c) { return a * b + c; }, x);
}

inline uint16_t round_bf16(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((u >> 16) | 0x40u);  // NaN stays NaN
  return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
inline float widen(bf16 x) {
  const uint32_t u = static_cast<uint32_t>(x.bits) << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

}  // namespace seedthink::ST_ISA
