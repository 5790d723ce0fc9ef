// Numbers of block-scaled FP8 on a device: formats, codes and back, quotients, scales, magnitudes. No memory.
#pragma once

#include <cfloat>

#include "common/device.cuh"

namespace seedthink::cuda {

constexpr uint32_t kInfinityBits = 0x7f800000u;

// E4M3 ("fn": no infinity, NaN is 0x7f) and E5M2 as in Micikevicius et al. 2022, arXiv:2209.05433.
template <int MANTISSA, int BIAS, int LARGEST>
struct Format {
  static constexpr int kDrop = 23 - MANTISSA;     // bits of a float's mantissa that do not fit
  static constexpr int kTop = (LARGEST >> MANTISSA) - BIAS;
  static constexpr float kMax = 1.75f * static_cast<float>(1 << kTop);
  static constexpr uint32_t kRebias = 127 - BIAS;                 // from an exponent field to a float's
  static constexpr uint32_t kLeastNormal = (kRebias + 1) << 23;   // bits of the number below which steps stay equal
};
using E4M3 = Format<3, 7, 0x7e>;
using E5M2 = Format<2, 15, 0x7b>;

// The code of a number that is no NaN. Adding a power of two whose last place is the format's step there rounds to it.
template <typename F>
__device__ inline uint32_t encode(float y) {
  const uint32_t sign = (__float_as_uint(y) >> 24) & 0x80u;
  const float held = fminf(fabsf(y), F::kMax);
  const uint32_t exponent = max(__float_as_uint(held) & kInfinityBits, F::kLeastNormal + 0u);
  const float sum = __fadd_rn(held, __uint_as_float(exponent + (F::kDrop << 23)));
  return sign | (__float_as_uint(sum) - exponent + (exponent >> F::kDrop) - (F::kDrop << 23) -
                 (F::kLeastNormal >> F::kDrop));
}

// Two codes at once, the first in the lower byte. sm_89 and later have an instruction.
template <typename F>
__device__ inline uint32_t encode_pair(float first, float second) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  uint16_t pair;
  if constexpr (F::kDrop == E4M3::kDrop)
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(second), "f"(first));
  else
    asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(second), "f"(first));
  return pair;
#else
  return encode<F>(first) | encode<F>(second) << 8;
#endif
}

// The value of a finite code: its bits in a float's places, whose exponent is too small by the difference of the biases.
template <typename F>
__device__ inline float decode(uint32_t code) {
  const float small = __uint_as_float((code & 0x7fu) << F::kDrop | (code & 0x80u) << 24);
  return __fmul_rn(small, __uint_as_float((F::kRebias + 127u) << 23));
}

// Values of two finite codes, the first in the lower byte. Half precision holds every one of them.
template <typename F>
__device__ inline void decode_pair(uint32_t pair, float& first, float& second) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  uint32_t halves;
  if constexpr (F::kDrop == E4M3::kDrop)
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(static_cast<uint16_t>(pair)));
  else
    asm("cvt.rn.f16x2.e5m2x2 %0, %1;" : "=r"(halves) : "h"(static_cast<uint16_t>(pair)));
  asm("cvt.f32.f16 %0, %1;" : "=f"(first) : "h"(static_cast<uint16_t>(halves)));
  asm("cvt.f32.f16 %0, %1;" : "=f"(second) : "h"(static_cast<uint16_t>(halves >> 16)));
#else
  first = decode<F>(pair);
  second = decode<F>(pair >> 8);
#endif
}

// 1 / x within an ulp or two; nothing depends on its last bits.
__device__ inline float reciprocal(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1.f / x;
#endif
}

// Quotients that find the codes of x / scale in two instructions. 1 / scale is held in two parts, so that a quotient is
// off by less than 2^-41 of itself before it is rounded to float32; the lower part is positive, so that -0 stays -0.
// That rounding differs from the division's only where a tie of float32 lies between; and a code can tell the two only
// if that tie is half an ulp from a tie b of the format, which has five significant bits. Let scale be an integer s of
// 24 bits and b one of five: then x 2^24 = b s 2^20 + s + E with |E| < 2^8 (so above b; below b = 16, - s, 2^25 and
// 2^21), hence s = k 2^20 + e with 0 < |e| < 2^8 and b e + k a multiple of 16. If x is a bfloat16, b e + k is a
// multiple of 2^20, hence zero: as b >= 16 >= k, this is b = k = 16 and e = -1, a scale of nothing but ones.
// `quick` says that scale is none of these and that no part of its inverse leaves float32's normal numbers.
struct Divisor {
  float scale, high, low;
  bool quick;
  __device__ float divide(float x) const { return fmaf(x, high, __fmul_rn(x, low)); }
};

// NARROW: of what is a bfloat16.
template <bool NARROW>
__device__ inline Divisor divisor(float scale) {
  const float near = reciprocal(scale), high = __uint_as_float(__float_as_uint(near) - 4);
  const float low = __fmul_rn(fmaf(-scale, high, 1.f), near);
  const uint32_t end = __float_as_uint(scale) & 0xfffffu;
  return {scale, high, low, scale < 0x1p100f && (NARROW ? end != 0xfffffu : end == 0 || end - 0x100u < 0xffe00u)};
}

struct Scaling {
  const float* previous;  // may be null
  bool power_of_two;
  float headroom, low, high;
};

__host__ __device__ inline Scaling plain_scaling(bool power_of_two) { return {nullptr, power_of_two, 1.f, 0.f, 0.f}; }

// As pick_scale on the CPU, which says why. A power of two is found on exponent fields.
template <typename F>
__device__ inline float pick_scale(const Scaling& how, float amax, int64_t block) {
  if (how.previous != nullptr) {
    const float kept = how.previous[block], most = __fmul_rn(F::kMax, kept);
    if (kept >= FLT_MIN && kept <= FLT_MAX && amax >= __fmul_rn(how.low, most) && amax <= __fmul_rn(how.high, most))
      return kept;
  }
  const float range = fminf(fmaxf(__fmul_rn(amax, how.headroom), F::kMax * FLT_MIN), FLT_MAX);
  if (!how.power_of_two) {
    // range / kMax, rounded once: kMax is 7 times a power of two, so that no quotient comes near a tie.
    const float near = __fmul_rn(range, 1.f / F::kMax);
    return fmaf(fmaf(-F::kMax, near, range), 1.f / F::kMax, near);
  }
  const int32_t exponent = static_cast<int32_t>((__float_as_uint(range) + 0x1fffffu) >> 23) - F::kTop;
  return __uint_as_float(static_cast<uint32_t>(min(max(exponent, 1), 254)) << 23);
}

__device__ inline uint32_t magnitude(float x) { return __float_as_uint(x) & 0x7fffffffu; }

// The larger of two magnitudes, of which `most` has no sign; NaN is the largest.
__device__ inline float larger(float most, float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(most), "f"(fabsf(x)));
  return y;
#else
  return __uint_as_float(max(magnitude(most), magnitude(x)));
#endif
}

// The same for two bfloat16 in a word, each in its half.
__device__ inline uint32_t larger_halves(uint32_t most, uint32_t pair) {
#ifdef __CUDA_ARCH__
  uint32_t y;
  asm("{\n.reg .b32 size;\nabs.bf16x2 size, %2;\nmax.NaN.bf16x2 %0, %1, size;\n}" : "=r"(y) : "r"(most), "r"(pair));
  return y;
#else
  return max(most & 0x7fff0000u, pair & 0x7fff0000u) | max(most & 0x7fffu, pair & 0x7fffu);
#endif
}

// Two floats as bfloat16 in a word, the first in the lower half.
__device__ inline uint32_t narrow_pair(float first, float second) {
#ifdef __CUDA_ARCH__
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
#else
  return narrow<bf16>(first).bits | static_cast<uint32_t>(narrow<bf16>(second).bits) << 16;
#endif
}

}  // namespace seedthink::cuda
