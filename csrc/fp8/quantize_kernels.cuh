// Device code of block-scaled FP8, with the numbers of csrc/fp8/quantize.isa.cpp bit for bit: quotients are rounded once,
// a product is rounded before it is subtracted, codes are to nearest even and saturate, NaN and infinity become NaN codes.
#pragma once

#include <cfloat>

#include "common/device.cuh"

namespace seedthink::cuda {

constexpr int kCodeThreads = 256;
constexpr int kGroup = 128, kGroupLanes = 8, kOwn = kGroup / kGroupLanes;  // columns of a group, its lanes, a lane's share
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

// x / scale, rounded once. Two corrections of x * (1 / scale) by its exact remainder give the bits of a division
// (Markstein 1990) for half the work; where the remainder could lose bits, the division itself.
struct Divisor {
  float scale, inverse;
  bool safe;
  __device__ float divide(float x) const {
    if (!safe) return __fdiv_rn(x, scale);
    float y = __fmul_rn(x, inverse);
    y = fmaf(fmaf(-scale, y, x), inverse, y);
    return copysignf(fmaf(fmaf(-scale, y, x), inverse, y), x);  // -0 stays -0
  }
};

__device__ inline Divisor divisor(float scale) { return {scale, __fdiv_rn(1.f, scale), scale > 0x1p-90f}; }

struct Scaling {
  const float* previous;  // may be null
  bool power_of_two;
  float headroom, low, high;
};

// As pick_scale on the CPU, which says why. A power of two is found on exponent fields.
template <typename F>
__device__ inline float pick_scale(const Scaling& how, float amax, int64_t block) {
  if (how.previous != nullptr) {
    const float kept = how.previous[block], most = __fmul_rn(F::kMax, kept);
    if (kept >= FLT_MIN && kept <= FLT_MAX && amax >= __fmul_rn(how.low, most) && amax <= __fmul_rn(how.high, most))
      return kept;
  }
  const float range = fminf(fmaxf(__fmul_rn(amax, how.headroom), F::kMax * FLT_MIN), FLT_MAX);
  if (!how.power_of_two) return __fdiv_rn(range, F::kMax);
  const int32_t exponent = static_cast<int32_t>((__float_as_uint(range) + 0x1fffffu) >> 23) - F::kTop;
  return __uint_as_float(static_cast<uint32_t>(min(max(exponent, 1), 254)) << 23);
}

__device__ inline uint32_t magnitude(float x) { return __float_as_uint(x) & 0x7fffffffu; }

// The larger of two magnitudes, as bits; `finite` passes over NaN and infinity.
__device__ inline uint32_t larger(uint32_t most, float x, bool finite) {
  const uint32_t size = magnitude(x);
  return finite && size >= kInfinityBits ? most : max(most, size);
}

// N elements of x (plus what was left last time) from `at` on, of which `live` exist; the others read as zero.
template <int N, bool CARRY, typename X>
__device__ inline void read_elements(const X* x, const bf16* residual, int64_t at, int live, bool wide, float (&to)[N]) {
  if (wide && live >= N) {
    const auto pack = load_pack<X, N>(x + at);
#pragma unroll
    for (int i = 0; i < N; ++i) to[i] = widen(pack.at[i]);
    if constexpr (CARRY) {
      const auto left = load_pack<bf16, N>(residual + at);
#pragma unroll
      for (int i = 0; i < N; ++i) to[i] = __fadd_rn(to[i], widen(left.at[i]));
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < N; ++i) {
    to[i] = i < live ? widen(x[at + i]) : 0.f;
    if constexpr (CARRY) to[i] = i < live ? __fadd_rn(to[i], widen(residual[at + i])) : to[i];
  }
}

// N codes, four to a word, the first in the lowest byte: as they lie in memory.
template <int N>
struct Codes {
  Pack<uint32_t, N / 4> words;
  __device__ uint32_t at(int i) const { return (words.at[i / 4] >> (8 * (i % 4))) & 0xffu; }
};

template <int N>
__device__ inline void write_codes(uint8_t* to, int64_t at, int live, bool wide, const Codes<N>& codes) {
  if (wide && live >= N) return store_pack<uint32_t, N / 4>(reinterpret_cast<uint32_t*>(to + at), codes.words);
#pragma unroll
  for (int i = 0; i < N; ++i)
    if (i < live) to[at + i] = static_cast<uint8_t>(codes.at(i));
}

template <int N>
__device__ inline void write_left(bf16* to, int64_t at, int live, bool wide, const Pack<bf16, N>& left) {
  if (wide && live >= N) return store_pack<bf16, N>(to + at, left);
#pragma unroll
  for (int i = 0; i < N; ++i)
    if (i < live) to[at + i] = left.at[i];
}

// Codes of N elements. `finite` promises that there is no NaN and no infinity among them.
template <typename F, int N>
__device__ inline Codes<N> encode_elements(const float (&x)[N], const Divisor& by, bool finite) {
  Codes<N> codes;
#pragma unroll
  for (int w = 0; w < N / 4; ++w)
    codes.words.at[w] = encode_pair<F>(by.divide(x[4 * w]), by.divide(x[4 * w + 1])) |
                        encode_pair<F>(by.divide(x[4 * w + 2]), by.divide(x[4 * w + 3])) << 16;
  if (finite) return codes;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if (magnitude(x[i]) < kInfinityBits) continue;
    const uint32_t nan = 0x7fu | ((__float_as_uint(x[i]) >> 24) & 0x80u);
    uint32_t& word = codes.words.at[i / 4];
    word = (word & ~(0xffu << (8 * (i % 4)))) | nan << (8 * (i % 4));
  }
  return codes;
}

// What the codes leave of x; nothing of what is not finite.
template <typename F, int N>
__device__ inline Pack<bf16, N> leave(const float (&x)[N], const Codes<N>& codes, float scale) {
  Pack<bf16, N> left;
#pragma unroll
  for (int i = 0; i < N; ++i)
    left.at[i] = narrow<bf16>(magnitude(x[i]) < kInfinityBits
                                  ? __fsub_rn(x[i], __fmul_rn(decode<F>(codes.at(i)), scale)) : 0.f);
  return left;
}

template <typename X>
struct Quantize {
  const X* x;
  const bf16* residual;
  Scaling how;
  int64_t M, N;
  const int32_t* row_MK;  // where to write row m: rows row_MK[m, 0..K); null: row m
  int32_t K;
  int64_t rows;           // of codes
  bool wide;              // whether every row begins at a multiple of the widest load and store
  uint8_t* codes;
  float* scale;
  bf16* left;
};

// Elements that move in one 16-byte load.
template <typename X>
constexpr int kStep = 16 / static_cast<int>(sizeof(X));

// Blocks of 1 x 128, eight lanes each, a lane's elements in registers: one read, one write. Steps of the lanes alternate,
// so that each access of a warp covers whole sectors.
template <typename F, bool CARRY, typename X>
__global__ void __launch_bounds__(kCodeThreads, 4) quantize_groups(Quantize<X> call) {
  constexpr int kN = kStep<X>, kSteps = kOwn / kN;
  const auto groups = static_cast<uint32_t>((call.N + kGroup - 1) / kGroup);
  const uint32_t group = blockIdx.x * (kCodeThreads / kGroupLanes) + threadIdx.x / kGroupLanes, q = group % groups;
  const int64_t m = group / groups, column = static_cast<int64_t>(q) * kGroup + threadIdx.x % kGroupLanes * kN;
  float x[kSteps][kN];
  int live[kSteps];
  uint32_t most = 0;
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const int64_t rest = call.N - column - s * kGroupLanes * kN;
    live[s] = m < call.M ? static_cast<int>(max(min(rest, static_cast<int64_t>(kN)), static_cast<int64_t>(0))) : 0;
    read_elements<kN, CARRY>(call.x, call.residual, m * call.N + column + s * kGroupLanes * kN, live[s], call.wide, x[s]);
  }
  bool finite = true;
#pragma unroll
  for (int pass = 0; pass < 2; ++pass) {
    if (pass == 1) {
      finite = most < kInfinityBits;
      if (__ballot_sync(kWarp, !finite) == 0) break;
      most = 0;
    }
#pragma unroll
    for (int s = 0; s < kSteps; ++s)
#pragma unroll
      for (int i = 0; i < kN; ++i) most = larger(most, x[s][i], pass == 1);
#pragma unroll
    for (int d = kGroupLanes / 2; d > 0; d /= 2) most = max(most, __shfl_xor_sync(kWarp, most, d));
  }
  if (m >= call.M) return;
  const float scale = pick_scale<F>(call.how, __uint_as_float(most), group);
  const Divisor by = divisor(scale);
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const auto codes = encode_elements<F>(x[s], by, finite);
    const int64_t at = column + s * kGroupLanes * kN;
    if constexpr (CARRY) write_left(call.left, m * call.N + at, live[s], call.wide, leave<F>(x[s], codes, scale));
    for (int32_t k = 0; k < call.K; ++k) {
      const int64_t row = call.row_MK != nullptr ? call.row_MK[m * call.K + k] : m;
      if (row < 0 || row >= call.rows) continue;
      write_codes(call.codes, row * call.N + at, live[s], call.wide, codes);
      if (s == 0 && threadIdx.x % kGroupLanes == 0) call.scale[row * groups + q] = scale;
    }
  }
}

// The largest value of the block's threads, in all of them.
__device__ inline uint32_t block_max(uint32_t most) {
  __shared__ uint32_t warp_most[32];
  most = __reduce_max_sync(kWarp, most);
  __syncthreads();  // the last maximum has been read
  if (threadIdx.x % 32 == 0) warp_most[threadIdx.x / 32] = most;
  __syncthreads();
  for (unsigned w = 0; w < blockDim.x / 32; ++w) most = max(most, warp_most[w]);
  return most;
}

struct Cut {
  int64_t rows, columns, Q;  // of a block; blocks side by side
};

// Blocks of any shape, one thread block each: two passes, the second of which finds the block in a cache.
template <typename F, bool CARRY, typename X>
__global__ void __launch_bounds__(kCodeThreads) quantize_blocks(Quantize<X> call, Cut cut) {
  constexpr int kN = kStep<X>;
  const int64_t p = blockIdx.x / cut.Q, q = blockIdx.x % cut.Q;
  const int64_t top = p * cut.rows, edge = q * cut.columns;
  const auto height = static_cast<int32_t>(min(cut.rows, call.M - top));
  const auto width = static_cast<int32_t>(min(cut.columns, call.N - edge));
  const int32_t across = (width + kN - 1) / kN;
  const auto each = [&](const auto& body) {
    for (int64_t i = threadIdx.x; i < static_cast<int64_t>(height) * across; i += kCodeThreads) {
      const auto row = static_cast<int32_t>(i / across), step = static_cast<int32_t>(i % across);
      const int64_t at = (top + row) * call.N + edge + step * kN;
      const int live = width - step * kN;
      float x[kN];
      read_elements<kN, CARRY>(call.x, call.residual, at, live, call.wide, x);
      body(x, at, live);
    }
  };
  const auto find_most = [&](bool finite) {
    uint32_t most = 0;
    each([&](const float(&x)[kN], int64_t, int) {
#pragma unroll
      for (int i = 0; i < kN; ++i) most = larger(most, x[i], finite);
    });
    return block_max(most);
  };
  uint32_t most = find_most(false);
  const bool finite = most < kInfinityBits;
  if (!finite) most = find_most(true);
  const float scale = pick_scale<F>(call.how, __uint_as_float(most), blockIdx.x);
  if (threadIdx.x == 0) call.scale[blockIdx.x] = scale;
  const Divisor by = divisor(scale);
  each([&](const float(&x)[kN], int64_t at, int live) {
    const auto codes = encode_elements<F>(x, by, finite);
    write_codes(call.codes, at, live, call.wide, codes);
    if constexpr (CARRY) write_left(call.left, at, live, call.wide, leave<F>(x, codes, scale));
  });
}

constexpr int kMostNormThreads = 1024;

// The sum over the block's threads by a fixed tree, in all of them.
__device__ inline float block_sum(float x) {
  __shared__ float warp_part[32];
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) warp_part[threadIdx.x / 32] = x;
  __syncthreads();
  return warp_sum(threadIdx.x % 32 < blockDim.x / 32 ? warp_part[threadIdx.x % 32] : 0.f);
}

// RMSNorm and its 1 x 128 codes in one read and one write: a block per row, sixteen elements to a thread, which stay in
// registers. The normed row is rounded to X before it is coded, so that the codes are those of the two operations.
template <typename F, typename X>
__global__ void __launch_bounds__(kMostNormThreads) norm_quantize(const X* x, const float* weight, float eps, int32_t D,
                                                                  Scaling how, uint8_t* codes, float* scale,
                                                                  float* rstd) {
  constexpr int kN = kStep<X>, kSteps = kOwn / kN;
  const int64_t row = blockIdx.x;
  const int32_t column = static_cast<int32_t>(threadIdx.x) / kGroupLanes * kGroup + threadIdx.x % kGroupLanes * kN;
  float y[kSteps][kN], squares = 0.f;
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const int32_t at = column + s * kGroupLanes * kN;
    read_elements<kN, false>(x, nullptr, row * D + at, at < D ? kN : 0, true, y[s]);
#pragma unroll
    for (int i = 0; i < kN; ++i) squares = fmaf(y[s][i], y[s][i], squares);
  }
  const float scale_of_row = __fdiv_rn(1.f, sqrtf(block_sum(squares) / static_cast<float>(D) + eps));
  if (rstd != nullptr && threadIdx.x == 0) rstd[row] = scale_of_row;
  uint32_t most = 0, most_finite = 0;
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const int32_t at = column + s * kGroupLanes * kN;
    float gain[kN];
    read_elements<kN, false>(weight, nullptr, at, at < D ? kN : 0, false, gain);
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      y[s][i] = widen(narrow<X>(__fmul_rn(__fmul_rn(y[s][i], scale_of_row), gain[i])));
      most = larger(most, y[s][i], false);
      most_finite = larger(most_finite, y[s][i], true);
    }
  }
#pragma unroll
  for (int d = kGroupLanes / 2; d > 0; d /= 2) {
    most = max(most, __shfl_xor_sync(kWarp, most, d));
    most_finite = max(most_finite, __shfl_xor_sync(kWarp, most_finite, d));
  }
  if (column >= D) return;
  const int64_t group = row * (D / kGroup) + column / kGroup;
  const float chosen = pick_scale<F>(how, __uint_as_float(most_finite), group);
  if (threadIdx.x % kGroupLanes == 0) scale[group] = chosen;
  const Divisor by = divisor(chosen);
#pragma unroll
  for (int s = 0; s < kSteps; ++s)
    write_codes(codes, row * D + column + s * kGroupLanes * kN, kN, true,
                   encode_elements<F>(y[s], by, most < kInfinityBits));
}

}  // namespace seedthink::cuda
