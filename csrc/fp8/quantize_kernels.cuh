// Device code of block-scaled FP8, with the numbers of csrc/fp8/quantize.isa.cpp bit for bit: codes are those of
// quotients rounded once, to nearest even and saturated, a product is rounded before it is subtracted, NaN and infinity
// become NaN codes.
#pragma once

#include <type_traits>

#include "fp8/codes.cuh"

namespace seedthink::cuda {

constexpr int kCodeThreads = 256;
constexpr int kGroup = 128, kGroupLanes = 8, kOwn = kGroup / kGroupLanes;  // columns of a group, its lanes, a lane's share

// A store of what nobody reads soon.
template <int N>
__device__ inline void stream_pack(uint32_t* p, const Pack<uint32_t, N>& pack) {
  if constexpr (N == 4)
    __stcs(reinterpret_cast<uint4*>(p), make_uint4(pack.at[0], pack.at[1], pack.at[2], pack.at[3]));
  else if constexpr (N == 2)
    __stcs(reinterpret_cast<uint2*>(p), make_uint2(pack.at[0], pack.at[1]));
  else
    __stcs(p, pack.at[0]);
}

template <int BYTES>
struct Raw;
template <>
struct Raw<1> {
  using type = uint8_t;
};
template <>
struct Raw<2> {
  using type = uint16_t;
};
template <>
struct Raw<4> {
  using type = uint32_t;
};

// N elements as they lie in memory: they stay packed until they are used.
template <typename T, int N>
struct Words {
  using Bits = typename Raw<sizeof(T)>::type;
  static constexpr int kBits = 8 * sizeof(T), kEach = 32 / kBits, kCount = N / kEach;
  Pack<uint32_t, kCount> pack;

  __device__ void clear() {
#pragma unroll
    for (int w = 0; w < kCount; ++w) pack.at[w] = 0;
  }
  __device__ void read(const T* p) { pack = load_pack<uint32_t, kCount>(reinterpret_cast<const uint32_t*>(p)); }
  __device__ void write(T* p) const { stream_pack<kCount>(reinterpret_cast<uint32_t*>(p), pack); }
  // The first `live` elements, of which `wide` says that all of them move at once; the others read as zero.
  __device__ void read(const T* p, int live, bool wide) {
    if (wide && live >= N) return read(p);
    clear();
#pragma unroll
    for (int i = 0; i < N; ++i)
      if (i < live)
        pack.at[i / kEach] |= static_cast<uint32_t>(reinterpret_cast<const Bits*>(p)[i]) << kBits * (i % kEach);
  }
  __device__ void write(T* p, int live, bool wide) const {
    if (wide && live >= N) return write(p);
#pragma unroll
    for (int i = 0; i < N; ++i)
      if (i < live) reinterpret_cast<Bits*>(p)[i] = static_cast<Bits>(pack.at[i / kEach] >> kBits * (i % kEach));
  }
  __device__ float value(int i) const {
    const uint32_t word = pack.at[i / kEach];
    return __uint_as_float(kEach == 1 ? word : i % 2 == 0 ? word << 16 : word & 0xffff0000u);
  }
};

// Elements that move in one 16-byte load.
template <typename X>
constexpr int kStep = 16 / static_cast<int>(sizeof(X));

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

// What a thread holds of a block of x (plus what was left last time): STEPS loads.
template <bool CARRY, int STEPS, typename X>
struct Share {
  static constexpr int kN = kStep<X>;
  static constexpr bool kNarrow = sizeof(X) == 2 && !CARRY;  // whether every value is a bfloat16
  Words<X, kN> x[STEPS];
  Words<bf16, kN> kept[CARRY ? STEPS : 1];

  __device__ void clear(int s) {
    x[s].clear();
    if constexpr (CARRY) kept[s].clear();
  }
  __device__ void read(int s, const Quantize<X>& call, int64_t at) {
    x[s].read(call.x + at);
    if constexpr (CARRY) kept[s].read(call.residual + at);
  }
  __device__ void read(int s, const Quantize<X>& call, int64_t at, int live) {
    x[s].read(call.x + at, live, call.wide);
    if constexpr (CARRY) kept[s].read(call.residual + at, live, call.wide);
  }
  __device__ float value(int s, int i) const {
    if constexpr (CARRY) return __fadd_rn(x[s].value(i), kept[s].value(i));
    return x[s].value(i);
  }

  // The largest magnitude, as bits: they order like the numbers, with infinity and NaN above all.
  __device__ uint32_t most() const {
    if constexpr (kNarrow) {
      uint32_t pair = 0;
#pragma unroll
      for (int s = 0; s < STEPS; ++s)
#pragma unroll
        for (int w = 0; w < kN / 2; ++w) pair = larger_halves(pair, x[s].pack.at[w]);
      return max(pair & 0x7fff0000u, pair << 16);
    } else {
      float size = 0.f;
#pragma unroll
      for (int s = 0; s < STEPS; ++s)
#pragma unroll
        for (int i = 0; i < kN; ++i) size = larger(size, value(s, i));
      return magnitude(size);
    }
  }
  // The same without infinity and NaN.
  __device__ uint32_t most_finite() const {
    uint32_t most = 0;
#pragma unroll
    for (int s = 0; s < STEPS; ++s)
#pragma unroll
      for (int i = 0; i < kN; ++i) {
        const uint32_t size = magnitude(value(s, i));
        most = size < kInfinityBits ? max(most, size) : most;
      }
    return most;
  }
};

template <int N>
using Codes = Words<uint8_t, N>;

// Codes of step s. QUICK promises that the divisor is, and that there is no NaN and no infinity.
template <typename F, bool QUICK, bool CARRY, int STEPS, typename X>
__device__ inline Codes<kStep<X>> encode_step(const Share<CARRY, STEPS, X>& share, int s, const Divisor& by) {
  constexpr int kN = kStep<X>;
  float y[kN];
#pragma unroll
  for (int i = 0; i < kN; ++i)
    y[i] = QUICK ? by.divide(share.value(s, i)) : __fdiv_rn(share.value(s, i), by.scale);
  Codes<kN> codes;
#pragma unroll
  for (int w = 0; w < kN / 4; ++w)
    codes.pack.at[w] = encode_pair<F>(y[4 * w], y[4 * w + 1]) | encode_pair<F>(y[4 * w + 2], y[4 * w + 3]) << 16;
  if constexpr (!QUICK) {
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      const float x = share.value(s, i);
      if (magnitude(x) < kInfinityBits) continue;
      const uint32_t nan = 0x7fu | ((__float_as_uint(x) >> 24) & 0x80u);
      uint32_t& word = codes.pack.at[i / 4];
      word = (word & ~(0xffu << (8 * (i % 4)))) | nan << (8 * (i % 4));
    }
  }
  return codes;
}

// What the codes leave of x; nothing of what is not finite.
template <typename F, bool QUICK, int STEPS, typename X>
__device__ inline Words<bf16, kStep<X>> leave(const Share<true, STEPS, X>& share, int s, const Codes<kStep<X>>& codes,
                                              float scale) {
  const auto rest = [&](float x, float value) {
    return QUICK || magnitude(x) < kInfinityBits ? __fsub_rn(x, __fmul_rn(value, scale)) : 0.f;
  };
  Words<bf16, kStep<X>> left;
#pragma unroll
  for (int i = 0; i < kStep<X>; i += 2) {
    float first, second;
    decode_pair<F>(codes.pack.at[i / 4] >> (8 * (i % 4)), first, second);
    left.pack.at[i / 2] = narrow_pair(rest(share.value(s, i), first), rest(share.value(s, i + 1), second));
  }
  return left;
}

// Calls body(step, its codes, what they leave) for each step of a share.
template <typename F, bool CARRY, int STEPS, typename X, typename Body>
__device__ inline void encode_share(const Share<CARRY, STEPS, X>& share, const Divisor& by, bool finite,
                                    const Body& body) {
  const auto each = [&](auto quick) {
    constexpr bool kQuick = decltype(quick)::value;
#pragma unroll
    for (int s = 0; s < STEPS; ++s) {
      const auto codes = encode_step<F, kQuick>(share, s, by);
      if constexpr (CARRY)
        body(s, codes, leave<F, kQuick>(share, s, codes, by.scale));
      else
        body(s, codes, codes);
    }
  };
  if (by.quick && finite)
    each(std::true_type{});
  else
    each(std::false_type{});
}

// The largest of eight lanes each, in all of them; COUNT at a time, so that they do not wait for each other.
template <int COUNT>
__device__ inline void group_max(uint32_t (&most)[COUNT]) {
#pragma unroll
  for (int d = kGroupLanes / 2; d > 0; d /= 2) {
    uint32_t other[COUNT];
#pragma unroll
    for (int j = 0; j < COUNT; ++j) other[j] = __shfl_xor_sync(kWarp, most[j], d);
#pragma unroll
    for (int j = 0; j < COUNT; ++j) most[j] = max(most[j], other[j]);
  }
}

// The largest finite magnitudes of groups, and whether there is nothing else in them. Every lane of a warp takes part.
template <int COUNT, bool CARRY, int STEPS, typename X>
__device__ inline void group_peaks(const Share<CARRY, STEPS, X> (&share)[COUNT], uint32_t (&most)[COUNT],
                                   bool (&finite)[COUNT]) {
  bool all = true;
#pragma unroll
  for (int j = 0; j < COUNT; ++j) most[j] = share[j].most();
  group_max(most);
#pragma unroll
  for (int j = 0; j < COUNT; ++j) all = (finite[j] = most[j] < kInfinityBits) && all;
  if (__ballot_sync(kWarp, !all) == 0) return;
#pragma unroll
  for (int j = 0; j < COUNT; ++j) most[j] = share[j].most_finite();
  group_max(most);
}

// Blocks of 1 x 128 in rows of any width, eight lanes each, a lane's elements in registers: one read, one write. Steps
// of the lanes alternate, so that each access of a warp covers whole sectors.
template <typename F, bool CARRY, typename X>
__global__ void __launch_bounds__(kCodeThreads, 4) quantize_groups(Quantize<X> call) {
  constexpr int kN = kStep<X>, kSteps = kOwn / kN;
  const auto groups = static_cast<uint32_t>((call.N + kGroup - 1) / kGroup);
  const uint32_t group = blockIdx.x * (kCodeThreads / kGroupLanes) + threadIdx.x / kGroupLanes, q = group % groups;
  const int64_t m = group / groups, column = static_cast<int64_t>(q) * kGroup + threadIdx.x % kGroupLanes * kN;
  const auto live = [&](int s) {
    const int64_t rest = m < call.M ? call.N - column - s * kGroupLanes * kN : 0;
    return static_cast<int>(max(min(rest, static_cast<int64_t>(kN)), static_cast<int64_t>(0)));
  };
  Share<CARRY, kSteps, X> share[1];
  uint32_t most[1];
  bool finite[1];
#pragma unroll
  for (int s = 0; s < kSteps; ++s) share[0].read(s, call, m * call.N + column + s * kGroupLanes * kN, live(s));
  group_peaks(share, most, finite);
  if (m >= call.M) return;
  const float scale = pick_scale<F>(call.how, __uint_as_float(most[0]), group);
  const auto write = [&](int s, const Codes<kN>& codes, const auto& left) {
    const int64_t at = column + s * kGroupLanes * kN;
    if constexpr (CARRY) left.write(call.left + m * call.N + at, live(s), call.wide);
    for (int32_t k = 0; k < call.K; ++k) {
      const int64_t row = call.row_MK != nullptr ? call.row_MK[m * call.K + k] : m;
      if (row < 0 || row >= call.rows) continue;
      codes.write(call.codes + row * call.N + at, live(s), call.wide);
      if (s == 0 && threadIdx.x % kGroupLanes == 0) call.scale[row * groups + q] = scale;
    }
  };
  encode_share<F>(share[0], divisor<Share<CARRY, kSteps, X>::kNarrow>(scale), finite[0], write);
}

// Groups of a warp: side by side, kRound at a time. Each thread has 64 bytes on their way before it uses the first.
constexpr int kRound = 32 / kGroupLanes;
template <bool CARRY, typename X>
constexpr int kRounds = sizeof(X) == 2 && !CARRY ? 2 : 1;
template <bool CARRY, typename X>
constexpr int kBlockGroups = kCodeThreads / kGroupLanes * kRounds<CARRY, X>;

// The same where rows are whole blocks and wide, and stay where they are: the matrix is one row of groups.
template <typename F, bool CARRY, typename X>
__global__ void __launch_bounds__(kCodeThreads, 5) quantize_whole_groups(Quantize<X> call) {
  constexpr int kN = kStep<X>, kSteps = kOwn / kN, kCount = kRounds<CARRY, X>;
  const uint32_t own = threadIdx.x % kGroupLanes, total = static_cast<uint32_t>(call.M * (call.N / kGroup));
  const uint32_t first =
      blockIdx.x * kBlockGroups<CARRY, X> + threadIdx.x / 32 * (kRound * kCount) + threadIdx.x % 32 / kGroupLanes;
  const auto place = [&](int j, int s) {
    return static_cast<int64_t>(first + j * kRound) * kGroup + (own + s * kGroupLanes) * kN;
  };
  Share<CARRY, kSteps, X> share[kCount];
  uint32_t most[kCount];
  bool finite[kCount];
#pragma unroll
  for (int j = 0; j < kCount; ++j)
#pragma unroll
    for (int s = 0; s < kSteps; ++s)
      if (first + j * kRound < total)
        share[j].read(s, call, place(j, s));
      else
        share[j].clear(s);
  group_peaks(share, most, finite);
  float scale = 0.f;  // of the group that this lane writes: neighbours in one store
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    const uint32_t group = first + j * kRound;
    if (group >= total) break;
    const float mine = pick_scale<F>(call.how, __uint_as_float(most[j]), group);
    if (own == j) scale = mine;
    encode_share<F>(share[j], divisor<Share<CARRY, kSteps, X>::kNarrow>(mine), finite[j],
                    [&](int s, const Codes<kN>& codes, const auto& left) {
                      codes.write(call.codes + place(j, s));
                      if constexpr (CARRY) left.write(call.left + place(j, s));
                    });
  }
  if (own < kCount && first + own * kRound < total) call.scale[first + own * kRound] = scale;
}

// The same with K places for each row: a lane's columns are neighbours, so that its codes are one 16-byte store, of
// which there are K times as many as loads.
template <typename F, typename X>
__global__ void __launch_bounds__(kCodeThreads, 5) spread_whole_groups(Quantize<X> call) {
  constexpr int kN = kStep<X>, kSteps = kOwn / kN;
  const auto groups = static_cast<uint32_t>(call.N / kGroup);
  const uint32_t group = blockIdx.x * (kCodeThreads / kGroupLanes) + threadIdx.x / kGroupLanes, q = group % groups;
  const int64_t m = group / groups;
  const int32_t own = threadIdx.x % kGroupLanes, column = static_cast<int32_t>(q) * kGroup + own * kOwn;
  const auto place_of = [&](int32_t k) {  // -1: none
    if (m >= call.M || k >= call.K) return -1;
    const int32_t row = call.row_MK[m * call.K + k];
    return row < call.rows ? row : -1;
  };
  int32_t mine = place_of(own);  // of eight places, each lane knows one
  Share<false, kSteps, X> share[1];
  uint32_t most[1];
  bool finite[1];
#pragma unroll
  for (int s = 0; s < kSteps; ++s)
    if (m < call.M)
      share[0].read(s, call, m * call.N + column + s * kN);
    else
      share[0].clear(s);
  group_peaks(share, most, finite);
  const float scale = pick_scale<F>(plain_scaling(call.how.power_of_two), __uint_as_float(most[0]), group);
  Codes<kOwn> all;
  encode_share<F>(share[0], divisor<sizeof(X) == 2>(scale), finite[0],
                  [&](int s, const Codes<kN>& codes, const auto&) {
#pragma unroll
                    for (int w = 0; w < kN / 4; ++w) all.pack.at[s * (kN / 4) + w] = codes.pack.at[w];
                  });
  for (int32_t k = 0; k < call.K; k += kGroupLanes, mine = place_of(k + own)) {
    if (mine >= 0) call.scale[static_cast<int64_t>(mine) * groups + q] = scale;
#pragma unroll
    for (int j = 0; j < kGroupLanes; ++j) {
      const int32_t row = __shfl_sync(kWarp, mine, static_cast<int>(threadIdx.x % 32 / kGroupLanes * kGroupLanes) + j);
      if (row >= 0) all.write(call.codes + row * call.N + column);
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
  return __reduce_max_sync(kWarp, threadIdx.x % 32 < blockDim.x / 32 ? warp_most[threadIdx.x % 32] : 0u);
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
      Share<CARRY, 1, X> share;
      share.read(0, call, at, live);
      body(share, at, live);
    }
  };
  uint32_t most = 0;
  each([&](const auto& share, int64_t, int) { most = max(most, share.most()); });
  most = block_max(most);
  const bool finite = most < kInfinityBits;
  if (!finite) {
    most = 0;
    each([&](const auto& share, int64_t, int) { most = max(most, share.most_finite()); });
    most = block_max(most);
  }
  const float scale = pick_scale<F>(call.how, __uint_as_float(most), blockIdx.x);
  if (threadIdx.x == 0) call.scale[blockIdx.x] = scale;
  const Divisor by = divisor<Share<CARRY, 1, X>::kNarrow>(scale);
  each([&](const auto& share, int64_t at, int live) {
    encode_share<F>(share, by, finite, [&](int, const Codes<kN>& codes, const auto& left) {
      codes.write(call.codes + at, live, call.wide);
      if constexpr (CARRY) left.write(call.left + at, live, call.wide);
    });
  });
}

constexpr int kSquare = 128;

// Blocks of 128 x 128 that end with their columns, in rows that are wide: a thread block holds one in its registers.
template <typename F, bool CARRY, typename X>
__global__ void __launch_bounds__(kCodeThreads, sizeof(X) == 2 && !CARRY ? 4 : 2) quantize_squares(Quantize<X> call) {
  constexpr int kN = kStep<X>, kAcross = kSquare / kN, kDown = kCodeThreads / kAcross, kSteps = kSquare / kDown;
  const auto Q = static_cast<uint32_t>(call.N / kSquare);
  const int64_t top = static_cast<int64_t>(blockIdx.x / Q) * kSquare + threadIdx.x / kAcross;
  const int64_t begin = top * call.N + blockIdx.x % Q * kSquare + threadIdx.x % kAcross * kN;
  const auto height = static_cast<int32_t>(min(call.M - top, static_cast<int64_t>(kSquare)));  // of rows yet to come
  Share<CARRY, kSteps, X> share;
#pragma unroll
  for (int s = 0; s < kSteps; ++s)
    if (s * kDown < height)
      share.read(s, call, begin + s * kDown * call.N);
    else
      share.clear(s);
  uint32_t most = block_max(share.most());
  const bool finite = most < kInfinityBits;
  if (!finite) most = block_max(share.most_finite());
  const float scale = pick_scale<F>(call.how, __uint_as_float(most), blockIdx.x);
  if (threadIdx.x == 0) call.scale[blockIdx.x] = scale;
  encode_share<F>(share, divisor<Share<CARRY, kSteps, X>::kNarrow>(scale), finite,
                  [&](int s, const Codes<kN>& codes, const auto& left) {
                    if (s * kDown >= height) return;
                    codes.write(call.codes + begin + s * kDown * call.N);
                    if constexpr (CARRY) left.write(call.left + begin + s * kDown * call.N);
                  });
}

constexpr int kMostNormThreads = 1024;

// 1 / sqrt(sum / D + eps) of the sum over the block's threads by a fixed tree, in all of them. One warp does what
// follows the sums of the warps: other blocks have better use for the instructions.
__device__ inline float block_rstd(float x, int32_t D, float eps) {
  __shared__ float warp_part[32], rstd;
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) warp_part[threadIdx.x / 32] = x;
  __syncthreads();
  if (threadIdx.x < 32) {
    const float sum = warp_sum(threadIdx.x < blockDim.x / 32 ? warp_part[threadIdx.x] : 0.f);
    if (threadIdx.x == 0) rstd = __fdiv_rn(1.f, sqrtf(sum / static_cast<float>(D) + eps));
  }
  __syncthreads();
  return rstd;
}

// x * scale * gain, rounded to X.
template <typename X, int N>
__device__ inline Words<X, N> norm_words(const Words<X, N>& x, const Words<float, N>& gain, float scale) {
  const auto normed = [&](int i) { return __fmul_rn(__fmul_rn(x.value(i), scale), gain.value(i)); };
  Words<X, N> y;
#pragma unroll
  for (int w = 0; w < Words<X, N>::kCount; ++w)
    if constexpr (sizeof(X) == 2)
      y.pack.at[w] = narrow_pair(normed(2 * w), normed(2 * w + 1));
    else
      y.pack.at[w] = __float_as_uint(normed(w));
  return y;
}

template <typename X>
struct Norm {
  const X* x;
  const float* weight;
  float eps;
  int32_t T, D;
  bool power_of_two;
  bool wide;  // whether weight begins at a multiple of 16 bytes
  uint8_t* codes;
  float* scale;
  float* rstd;  // may be null
};

// RMSNorm and its 1 x 128 codes in one read and one write: a block does a row at a time, sixteen elements to a thread,
// which stay in registers. The weight is read once; of bfloat16 rows, the next is on its way meanwhile. The normed row
// is rounded to X before it is coded, so that the codes are those of the two operations.
template <typename F, typename X>
__global__ void __launch_bounds__(kMostNormThreads) norm_quantize(Norm<X> call) {
  constexpr int kN = kStep<X>, kSteps = kOwn / kN;
  constexpr bool kAhead = sizeof(X) == 2;  // whether there are registers for the next row
  const uint32_t own = threadIdx.x % kGroupLanes, q = threadIdx.x / kGroupLanes;
  const auto column = static_cast<int32_t>(q * kGroup + own * kN);
  const bool inside = column < call.D;
  const auto place = [&](uint32_t row, int s) {
    return static_cast<int64_t>(row) * call.D + column + s * kGroupLanes * kN;
  };
  using Row = Share<false, kSteps, X>;
  const auto fetch = [&](uint32_t row, Row& to) {
#pragma unroll
    for (int s = 0; s < kSteps; ++s)
      if (inside && row < static_cast<uint32_t>(call.T)) to.x[s].read(call.x + place(row, s));
  };
  Row next, normed[1];
  const auto clear = [&] {  // outside the row it stays so
#pragma unroll
    for (int s = 0; s < kSteps; ++s) next.clear(s);
  };
  clear();
  if (kAhead) fetch(blockIdx.x, next);
  Words<float, kN> gain[kSteps];
#pragma unroll
  for (int s = 0; s < kSteps; ++s)
    gain[s].read(call.weight + column + s * kGroupLanes * kN, inside ? kN : 0, call.wide);
  for (uint32_t row = blockIdx.x; row < static_cast<uint32_t>(call.T); row += gridDim.x) {
    if (!kAhead) clear(), fetch(row, next);
    const Row x = next;
    if (kAhead) fetch(row + gridDim.x, next);
    float squares = 0.f;
#pragma unroll
    for (int s = 0; s < kSteps; ++s)
#pragma unroll
      for (int i = 0; i < kN; ++i) squares = fmaf(x.value(s, i), x.value(s, i), squares);
    const float rstd = block_rstd(squares, call.D, call.eps);
    if (call.rstd != nullptr && threadIdx.x == 0) call.rstd[row] = rstd;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) normed[0].x[s] = norm_words(x.x[s], gain[s], rstd);
    uint32_t most[1];
    bool finite[1];
    group_peaks(normed, most, finite);
    if (!inside) continue;
    const int64_t group = static_cast<int64_t>(row) * (call.D / kGroup) + q;
    const float scale = pick_scale<F>(plain_scaling(call.power_of_two), __uint_as_float(most[0]), group);
    if (own == 0) call.scale[group] = scale;
    encode_share<F>(normed[0], divisor<sizeof(X) == 2>(scale), finite[0],
                    [&](int s, const Codes<kN>& codes, const auto&) { codes.write(call.codes + place(row, s)); });
  }
}

}  // namespace seedthink::cuda
