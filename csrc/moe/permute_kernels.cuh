// Device code of the rows' way to the experts and back. All of it is bound by memory: 16-byte accesses, every row read or
// written once, sums in fp32 in expert order, no atomics.
#pragma once

#include "common/device.cuh"

namespace seedthink::cuda {

constexpr int kRowThreads = 256;
constexpr int kCombineThreads = 128;  // more blocks at a time than of 256, for the same loads in flight

template <int N>
struct Count {
  static constexpr int value = N;
};

// N elements of a row as floats.
template <int N>
struct Floats {
  float at[N];
};
template <typename X, int N>
__device__ inline Floats<N> read_floats(const X* p) {
  const auto pack = load_pack<X, N>(p);
  Floats<N> x;
#pragma unroll
  for (int i = 0; i < N; ++i) x.at[i] = widen(pack.at[i]);
  return x;
}
template <typename X, int N>
__device__ inline void write_floats(X* p, const Floats<N>& x) {
  Pack<X, N> pack;
#pragma unroll
  for (int i = 0; i < N; ++i) pack.at[i] = narrow<X>(x.at[i]);
  store_pack<X, N>(p, pack);
}

// rows[row_TK[t, k]] = x[t] for all k. One block per token: the row is read once. A row number outside the rows is left
// out: numbers on the device cannot be checked from the host.
template <typename Word>
__global__ void __launch_bounds__(kRowThreads) spread_rows(const Word* x, const int32_t* row_TK, int32_t K, uint32_t R,
                                                           int32_t words, Word* rows) {
  const int64_t t = blockIdx.x;
  for (int32_t i = threadIdx.x; i < words; i += blockDim.x) {
    const Word word = x[t * words + i];
    for (int32_t k = 0; k < K; ++k) {
      const auto row = static_cast<uint32_t>(row_TK[t * K + k]);
      if (row < R) rows[static_cast<int64_t>(row) * words + i] = word;
    }
  }
}

// A token's choices, one to a lane: every row's address is known before the first row arrives.
struct Choice {
  uint32_t row;
  float weight;
};

// Adds the rows of COUNT lanes from `lane` on to `sum`, one after the other.
template <int COUNT, typename X, int N>
__device__ inline void add_rows(const X* rows, const Choice& choice, int lane, uint32_t R, int32_t D, int32_t column,
                                Floats<N>& sum) {
  Pack<X, N> pack[COUNT];
  float weight[COUNT];
#pragma unroll
  for (int k = 0; k < COUNT; ++k) {
    const uint32_t row = __shfl_sync(kWarp, choice.row, lane + k);
    pack[k] = load_pack<X, N>(rows + static_cast<int64_t>(row < R ? row : 0) * D + column);
    weight[k] = __shfl_sync(kWarp, choice.weight, lane + k);
  }
#pragma unroll
  for (int k = 0; k < COUNT; ++k)
#pragma unroll
    for (int j = 0; j < N; ++j) sum.at[j] = fmaf(weight[k], widen(pack[k].at[j]), sum.at[j]);
}

// y[t] = sum over a token's K rows, in expert order, of weight * row (a chain of fused multiply-adds from zero); a null
// weight counts as one. NaN where a row number lies outside the rows. One block per token and stretch of columns.
template <typename X, int N>
__global__ void __launch_bounds__(kCombineThreads) combine_rows(const X* rows, const int32_t* row_TK,
                                                                const float* weight_TK, int32_t K, uint32_t R, int32_t D,
                                                                X* y) {
  const int64_t t = blockIdx.x;
  const int32_t i = static_cast<int32_t>(blockIdx.y * blockDim.x + threadIdx.x) * N, lane = threadIdx.x % 32;
  const int32_t column = i < D ? i : 0;  // lanes beyond the row go along, for they hold choices
  Floats<N> sum{};
  for (int32_t first = 0; first < K; first += 32) {
    const int64_t at = t * K + min(first + lane, K - 1);
    Choice choice{static_cast<uint32_t>(row_TK[at]), weight_TK != nullptr ? weight_TK[at] : 1.f};
    if (choice.row >= R) choice.weight = __uint_as_float(0x7fc00000u);
    int32_t k = 0;
    const auto add = [&](auto count) {
      add_rows<decltype(count)::value>(rows, choice, k, R, D, column, sum);
      k += decltype(count)::value;
    };
    const int32_t live = min(32, K - first);
    while (k + 8 <= live) add(Count<8>{});
    if ((live & 4) != 0) add(Count<4>{});
    if ((live & 2) != 0) add(Count<2>{});
    if ((live & 1) != 0) add(Count<1>{});
  }
  if (i < D) write_floats<X, N>(y + t * D + i, sum);
}

// drows[r] = weight * dy[t], dweight = dot(dy[t], rows[r]) for every row r of a token. One warp per row; neighbouring
// warps share a token, whose row waits in the L1 cache.
template <typename X, int N>
__global__ void __launch_bounds__(kRowThreads) spread_gradient(const X* dy, const X* rows, const int32_t* row_TK,
                                                               const float* weight_TK, int32_t K, uint32_t R, int32_t D,
                                                               X* drows, float* dweight_TK) {
  const int32_t lane = threadIdx.x % 32;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * (kRowThreads / 32) + threadIdx.x / 32;
  if (at >= R) return;
  const auto row = static_cast<uint32_t>(row_TK[at]);
  const bool sound = row < R;
  const float weight = weight_TK[at];
  const int64_t from = at / K * D, to = static_cast<int64_t>(sound ? row : 0) * D;
  float dot[N] = {}, all = 0.f;
#pragma unroll 4
  for (int32_t i = lane * N; i < D; i += 32 * N) {
    Floats<N> grad = read_floats<X, N>(dy + from + i);
    const Floats<N> value = read_floats<X, N>(rows + to + i);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      dot[j] = fmaf(grad.at[j], value.at[j], dot[j]);
      grad.at[j] *= weight;
    }
    if (sound) write_floats<X, N>(drows + to + i, grad);
  }
#pragma unroll
  for (int j = 0; j < N; ++j) all += dot[j];
  all = warp_sum(all);
  if (lane == 0) dweight_TK[at] = sound ? all : __uint_as_float(0x7fc00000u);
}

}  // namespace seedthink::cuda
