// FP8 numbers, sixteen at a time: rounding to them, their codes, and back. The same bits on every instruction set: each
// step is an integer operation or one exactly rounded floating-point operation.
//
// E4M3 ("fn": no infinity, NaN is 0x7f) and E5M2 as in Micikevicius et al. 2022, arXiv:2209.05433.
#pragma once

#include <cfloat>

#include "common/simd.h"

namespace seedthink::ST_ISA {

typedef uint8_t vb __attribute__((vector_size(16)));
typedef uint8_t vb_u __attribute__((vector_size(16), aligned(1), may_alias));
typedef uint16_t vh __attribute__((vector_size(32)));

template <int MANTISSA, int BIAS, int LARGEST>
struct Format {
  static constexpr int kMantissa = MANTISSA;      // bits
  static constexpr int kDrop = 23 - MANTISSA;     // bits of a float's mantissa that do not fit
  static constexpr int kLargest = LARGEST;        // code of the largest finite number, 1.75 * 2^kTop in both formats
  static constexpr int kTop = (LARGEST >> MANTISSA) - BIAS;
  static constexpr float kMax = 1.75f * static_cast<float>(1 << kTop);
  static constexpr int kRebias = 127 - BIAS;                // from an exponent field to a float's
  static constexpr int kLeastNormal = (kRebias + 1) << 23;  // bits of 2^(1 - BIAS), below which steps stay equal
};
using E4M3 = Format<3, 7, 0x7e>;
using E5M2 = Format<2, 15, 0x7b>;
static_assert(E4M3::kMax == 448.f && E5M2::kMax == 57344.f, "1.75 times a power of two");

constexpr int kNan = 0x7f;
constexpr int kInfinityBits = 0x7f800000;

inline vi ints(vf x) { return reinterpret_cast<vi>(x); }
inline vf floats(vi x) { return reinterpret_cast<vf>(x); }
inline vi splat(int x) { return vi{} + x; }
inline vi max(vi a, vi b) { return a > b ? a : b; }
inline vi magnitude(vf x) { return ints(x) & 0x7fffffff; }

// A number rounded to nearest even and saturated: its code and its value, both without the sign.
struct Rounded {
  vi code;
  vf value;
};

// `magnitudes` are not negative. Adding a power of two whose last place is the format's step at a number rounds to it.
// Vectors are taken step by step together: one after the other they would wait for their own latency.
template <typename F, int COUNT>
inline void round_all(const vf (&magnitudes)[COUNT], Rounded (&rounded)[COUNT]) {
  constexpr int kOffset = (F::kDrop << 23) + (F::kLeastNormal >> F::kDrop);
  vf held[COUNT], sum[COUNT], magic[COUNT];
  vi exponent[COUNT];
  for (int c = 0; c < COUNT; ++c) held[c] = min(magnitudes[c], splat(F::kMax));
  for (int c = 0; c < COUNT; ++c) exponent[c] = max(ints(held[c]) & kInfinityBits, splat(F::kLeastNormal));
  for (int c = 0; c < COUNT; ++c) magic[c] = floats(exponent[c] + (F::kDrop << 23));
  for (int c = 0; c < COUNT; ++c) sum[c] = held[c] + magic[c];
  for (int c = 0; c < COUNT; ++c) rounded[c].code = ints(sum[c]) - exponent[c] + (exponent[c] >> F::kDrop) - kOffset;
  for (int c = 0; c < COUNT; ++c) rounded[c].value = sum[c] - magic[c];
}
template <typename F>
inline Rounded round_to(vf magnitude) {
  const vf one[1] = {magnitude};
  Rounded rounded[1];
  round_all<F>(one, rounded);
  return rounded[0];
}

// The sign of y as a code's sign bit, and y's sign on another magnitude.
inline vi sign_code(vf y) { return (reinterpret_cast<vi>(reinterpret_cast<vu>(y) >> 24)) & 0x80; }
inline vf with_sign(vf magnitude, vf y) { return floats(ints(magnitude) | (ints(y) & static_cast<int>(0x80000000u))); }

// Conversions between widths, which GCC 12 takes apart lane by lane where they are left to __builtin_convertvector.
#if defined(__AVX512F__)
constexpr __mmask16 kAll = 0xffff;  // the unmasked intrinsics make GCC 12 warn of their own undefined operand
#endif
union Quarters {
  vi whole;
#if defined(__AVX2__)
  __m256i half[2];
#endif
  __m128i quarter[4];
};

// Lanes hold 0 to 255.
inline vb narrow(vi code) {
#if defined(__AVX512F__)
  return (vb)_mm512_maskz_cvtepi32_epi8(kAll, (__m512i)code);
#else
  const Quarters q{code};
  const __m128i low = _mm_packs_epi32(q.quarter[0], q.quarter[1]), high = _mm_packs_epi32(q.quarter[2], q.quarter[3]);
  return (vb)_mm_packus_epi16(low, high);
#endif
}

inline vi widen_codes(const uint8_t* p) {
#if defined(__AVX512F__)
  return (vi)_mm512_maskz_cvtepu8_epi32(kAll, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__AVX2__)
  Quarters q;
  q.half[0] = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  q.half[1] = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8)));
  return q.whole;
#else
  return reinterpret_cast<vi>(__builtin_convertvector(*reinterpret_cast<const vb_u*>(p), vu));
#endif
}

// The low halves of the lanes, in order.
inline vh low_halves(vu u) {
#if defined(__AVX512F__)
  return (vh)_mm512_maskz_cvtepi32_epi16(kAll, (__m512i)u);
#elif defined(__AVX2__)
  const Quarters q{reinterpret_cast<vi>(u & 0xffffu)};
  return (vh)_mm256_permute4x64_epi64(_mm256_packus_epi32(q.half[0], q.half[1]), 0xd8);
#else
  return __builtin_convertvector(u, vh);
#endif
}

inline vf widen_halves(const bf16* p) {
#if defined(__AVX512F__)
  const __m512i wide = _mm512_maskz_cvtepu16_epi32(kAll, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return (vf)_mm512_maskz_slli_epi32(kAll, wide, 16);
#else
  return load(p);
#endif
}

// The value of codes 0 to 255, exact.
template <typename F>
inline vf decode(vi code) {
  const vi size = code & 0x7f, shifted = size << F::kDrop;
  const vf least = floats(splat(F::kLeastNormal));
  const vf small = floats(shifted + F::kLeastNormal) - least, normal = floats(shifted + (F::kRebias << 23));
  vf value = size < (1 << F::kMantissa) ? small : normal;
  if constexpr (F::kLargest == 0x7b) value = size == 0x7c ? floats(splat(kInfinityBits)) : value;
  value = size > (F::kLargest == 0x7b ? 0x7c : 0x7e) ? floats(splat(0x7fc00000)) : value;
  return floats(ints(value) | (code & 0x80) << 24);
}

// Distance between neighbouring numbers of the format at `magnitude`, which saturates.
template <typename F>
inline vf step_at(vf magnitude) {
  const vi exponent = ints(min(magnitude, splat(F::kMax))) & kInfinityBits;
  return floats(max(exponent, splat(F::kLeastNormal)) - (F::kMantissa << 23));
}

// Rows with a short last vector: lanes past `live` (1..16) read as zero and are not written.
inline vf load_live(const float* p, int live) { return load_some(p, live); }
inline vf load_live(const bf16* p, int live) {
  if (live == kLanes) return widen_halves(p);
  bf16 lane[kLanes] = {};
  std::memcpy(lane, p, live * sizeof(bf16));
  return widen_halves(lane);
}
inline vi load_codes(const uint8_t* p, int live) {
  if (live == kLanes) return widen_codes(p);
  uint8_t lane[kLanes] = {};
  std::memcpy(lane, p, live);
  return widen_codes(lane);
}
inline void store_live(uint8_t* p, vb codes, int live) {
  if (live == kLanes)
    *reinterpret_cast<vb_u*>(p) = codes;
  else
    std::memcpy(p, &codes, live);
}
inline void store_live(float* p, vf v, int live) { store_some(p, v, live); }
// bfloat16 by round to nearest even; NaN stays NaN.
inline void store_live(bf16* p, vf v, int live) {
  const vu u = reinterpret_cast<vu>(v);
  const vu rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const vh half = low_halves(v == v ? rounded : (u >> 16) | 0x40u);
  if (live == kLanes)
    std::memcpy(p, &half, sizeof half);
  else
    std::memcpy(p, &half, live * sizeof(bf16));
}

// Calls call(E4M3{}) or call(E5M2{}), whichever a tensor's dtype says.
template <typename Call>
void with_format(const char* what, const View& codes, const Call& call) {
  if (codes.dtype == Dtype::f8e4m3) return call(E4M3{});
  ST_CHECK(codes.dtype == Dtype::f8e5m2, what, ": expected dtype float8_e4m3fn or float8_e5m2, got ", name(codes.dtype));
  call(E5M2{});
}

}  // namespace seedthink::ST_ISA
