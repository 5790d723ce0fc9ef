// Device code of routing: a warp chooses a token's experts, then blocks place the rows.
//
// 1. choose_experts: each block takes one range of tokens, a warp one token at a time. Lane l holds the keys of experts
//    l, l + 32, ...; a round of choice is two warp reductions, the largest key and the smallest expert that has it. The
//    block leaves how many tokens it gave to each expert.
// 2. place_rows: each block adds up those counts to find where its rows of each expert begin, and ranks its own tokens
//    by bits below them in a word of tokens per expert. Atomics only ever add or set bits: no order comes from them.
#pragma once

#include "common/device.cuh"

namespace seedthink::cuda {

constexpr int kRouteWarps = 32, kRouteThreads = 32 * kRouteWarps;
constexpr int kRanges = 128;         // ranges of tokens at most: a warp reads an expert's counts in one load
constexpr int kMostExperts = 512;    // sixteen to a lane
constexpr int kTileTokens = 128;     // tokens that are ranked at a time
constexpr int kTileWords = kTileTokens / 32;
constexpr float kTiny = 1e-20f;      // keeps a sum of scores that are all zero from dividing zero by zero (DeepSeek-V3)

struct Rule {
  int32_t T, E, K;
  bool sigmoid, norm_topk;
  float scale;
  const float* bias;  // may be null
  int32_t groups, kept_groups;
  int32_t ranges, range;  // how many ranges of tokens, and tokens of a range

  // Whether scores, and not logits, are compared. Scores grow with the logits, which never tie by rounding.
  __device__ bool by_score() const { return bias != nullptr || groups > 1; }
};

struct RouteOutput {
  int32_t* ids;
  float* weight;
  uint16_t* count;  // [E, kRanges]: tokens of a range that go to an expert
};

// Unsigned integers that order like floats (-0 like 0); every number, even -inf, is above 0.
__device__ inline uint32_t key_of(float x) {
  const uint32_t u = __float_as_uint(x + 0.f);
  return (u & 0x80000000u) != 0 ? ~u : u | 0x80000000u;
}
__device__ inline float value_of(uint32_t key) {
  return __uint_as_float((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

// exp as exp_unfused of common/simd.h computes it: the same bits as on the CPU, so that the same experts are chosen.
__device__ inline float exp_unfused(float x) {
  const auto madd = [](float a, float b, float c) { return __fadd_rn(__fmul_rn(a, b), c); };
  const float clamped = fmaxf(fminf(x, 88.7228f), -87.3365f), magic = 12582912.f;
  const float n = __fsub_rn(madd(clamped, 1.44269504088896341f, magic), magic);
  const float r = madd(n, 2.12194440e-4f, madd(n, -0.693359375f, clamped));
  float p = madd(1.9875691500e-4f, r, 1.3981999507e-3f);
  p = madd(p, r, 8.3334519073e-3f);
  p = madd(p, r, 4.1665795894e-2f);
  p = madd(p, r, 1.6666665459e-1f);
  p = madd(p, r, 5.0000001201e-1f);
  p = __fadd_rn(madd(p, __fmul_rn(r, r), r), 1.f);
  const int exponent = static_cast<int>(n), half = exponent >> 1;
  const float y = __fmul_rn(__fmul_rn(p, __uint_as_float(static_cast<uint32_t>(half + 127) << 23)),
                            __uint_as_float(static_cast<uint32_t>(exponent - half + 127) << 23));
  if (x < -87.3365f) return 0.f;
  if (x > 88.7228f) return __uint_as_float(0x7f800000u);
  return x == x ? y : x;
}
__device__ inline float sigmoid(float x) { return __fdiv_rn(1.f, __fadd_rn(1.f, exp_unfused(-x))); }

// The sum of a row's values in the order of the CPU: sixteen chains over e, e + 16, ..., then a tree.
template <int P>
__device__ inline float row_sum(const float (&x)[P]) {
  const bool upper = (threadIdx.x & 16) != 0;
  float chain = 0.f;
#pragma unroll
  for (int j = 0; j < P; ++j) {
    const float partner = __shfl_xor_sync(kWarp, x[j], 16);
    chain = __fadd_rn(__fadd_rn(chain, upper ? partner : x[j]), upper ? x[j] : partner);
  }
  return warp_sum<16>(chain);
}

// Removes the largest of the lanes' keys, the smallest expert of equals. Returns it; `key` 0 means removed.
template <int P>
__device__ inline int32_t take_largest(uint32_t (&key)[P], uint32_t& top) {
  const int32_t lane = threadIdx.x % 32;
  uint32_t best = 0, expert = ~0u;
#pragma unroll
  for (int j = P - 1; j >= 0; --j)
    if (key[j] >= best && key[j] != 0) {
      best = key[j];
      expert = 32 * j + lane;
    }
  top = __reduce_max_sync(kWarp, best);
  const auto taken = static_cast<int32_t>(__reduce_min_sync(kWarp, best == top ? expert : ~0u));
#pragma unroll
  for (int j = 0; j < P; ++j)
    if (32 * j + lane == taken) key[j] = 0;
  return taken;
}

// Takes the experts outside the best groups out of the race. A group's score is the sum of its two best keys.
template <int P>
__device__ inline void keep_groups(const Rule& rule, uint32_t (&key)[P]) {
  const int32_t lane = threadIdx.x % 32, size = rule.E / rule.groups;
  int32_t group[P];
#pragma unroll
  for (int j = 0; j < P; ++j) group[j] = (32 * j + lane) / size;
  uint32_t mine[1] = {0};  // the score of group number `lane`
  for (int32_t g = 0; g < rule.groups; ++g) {
    uint32_t first = 0, second = 0;
#pragma unroll
    for (int j = 0; j < P; ++j) {
      const uint32_t x = group[j] == g ? key[j] : 0;
      second = max(second, min(first, x));
      first = max(first, x);
    }
    const uint32_t best = __reduce_max_sync(kWarp, first);
    const unsigned holders = __ballot_sync(kWarp, first == best);
    const bool holds = (holders & ((1u << lane) - 1u)) == 0 && first == best;  // one lane gives its best away
    const uint32_t next = __reduce_max_sync(kWarp, holds ? second : first);
    if (lane == g) mine[0] = key_of(size > 1 ? __fadd_rn(value_of(best), value_of(next)) : value_of(best));
  }
  uint32_t kept = 0, top;
  for (int32_t i = 0; i < rule.kept_groups; ++i) kept |= 1u << take_largest<1>(mine, top);
#pragma unroll
  for (int j = 0; j < P; ++j)
    if (group[j] < 32 && ((kept >> group[j]) & 1u) == 0) key[j] = 0;
}

// What a row's scores are made of.
struct Row {
  float top, whole;  // the largest logit; the sum of exp(logit - top) where it is wanted, else 1
  bool sigmoid;
  __device__ float score(float logit) const {
    return sigmoid ? cuda::sigmoid(logit) : __fdiv_rn(exp_unfused(__fsub_rn(logit, top)), whole);
  }
};

// Loads a row and finds the keys to compare. False where the row has NaN or +inf, or nothing finite.
template <typename X, int P>
__device__ inline bool read_row(const Rule& rule, const X* logits, Row& row, uint32_t (&key)[P]) {
  const int32_t lane = threadIdx.x % 32;
  const float lowest = -__uint_as_float(0x7f800000u);
  float x[P], top = lowest;
  bool sound = true;
#pragma unroll
  for (int j = 0; j < P; ++j) {
    const int32_t e = 32 * j + lane;
    x[j] = e < rule.E ? widen(logits[e]) : lowest;
    sound = sound && x[j] < __uint_as_float(0x7f800000u);  // false for NaN
    top = fmaxf(top, x[j]);
  }
  row = {warp_max(top), 1.f, rule.sigmoid};
  if (__ballot_sync(kWarp, sound) != kWarp || row.top == lowest) return false;
  if (!rule.sigmoid && (rule.by_score() || !rule.norm_topk)) {
    float y[P];
#pragma unroll
    for (int j = 0; j < P; ++j) y[j] = exp_unfused(__fsub_rn(x[j], row.top));
    row.whole = row_sum(y);
  }
#pragma unroll
  for (int j = 0; j < P; ++j) {
    const int32_t e = 32 * j + lane;
    float compared = x[j];
    if (rule.by_score()) compared = __fadd_rn(row.score(x[j]), rule.bias != nullptr && e < rule.E ? rule.bias[e] : 0.f);
    key[j] = e < rule.E ? key_of(compared) : 0;
  }
  return true;
}

// One token: experts in ascending order and their weights. NaN weights, and some experts, for a row without scores.
template <typename X, int P>
__device__ inline void route_token(const Rule& rule, const X* logits, int32_t* ids, float* weight, int32_t* count) {
  const int32_t lane = threadIdx.x % 32;
  Row row;
  uint32_t key[P], top;
  int32_t expert = lane, place = lane;  // lane k keeps the k-th choice
  const bool sound = read_row(rule, logits, row, key);
  if (sound && rule.groups > 1) keep_groups(rule, key);
  for (int32_t k = 0; sound && k < rule.K; ++k) {
    const int32_t taken = take_largest(key, top);
    const unsigned below = __ballot_sync(kWarp, lane < k && expert < taken);
    if (lane < k && taken < expert) ++place;
    if (lane == k) {
      expert = taken;
      place = __popc(below);
    }
  }
  const bool chosen = lane < rule.K;
  float score = chosen && sound ? row.score(widen(logits[expert])) : 0.f;
  if (rule.norm_topk) score = __fdiv_rn(score, warp_sum(score) + kTiny);
  if (!chosen) return;
  ids[place] = expert;
  weight[place] = sound ? score * rule.scale : __uint_as_float(0x7fc00000u);
  atomicAdd(count + expert, 1);
}

template <typename X, int P>
__global__ void __launch_bounds__(kRouteThreads) choose_experts(Rule rule, const X* logits, RouteOutput out) {
  __shared__ int32_t count[kMostExperts];
  for (int32_t e = threadIdx.x; e < rule.E; e += kRouteThreads) count[e] = 0;
  __syncthreads();
  const int32_t begin = blockIdx.x * rule.range, end = min(rule.T, begin + rule.range);
  for (int32_t t = begin + static_cast<int32_t>(threadIdx.x / 32); t < end; t += kRouteWarps) {
    const int64_t at = static_cast<int64_t>(t) * rule.K;
    route_token<X, P>(rule, logits + static_cast<int64_t>(t) * rule.E, out.ids + at, out.weight + at, count);
    __syncwarp();
  }
  __syncthreads();
  for (int32_t e = threadIdx.x; e < rule.E; e += kRouteThreads)
    out.count[e * kRanges + blockIdx.x] = static_cast<uint16_t>(count[e]);
}

struct Places {
  int32_t *counts, *offsets, *row, *token;
};

// For every expert: its rows in all ranges, and those in ranges before this one.
__device__ inline void add_counts(const Rule& rule, const uint16_t* count, int32_t* all, int32_t* before) {
  constexpr int kEach = kRanges / 32;
  const int32_t lane = threadIdx.x % 32, mine = blockIdx.x;
  for (int32_t e = threadIdx.x / 32; e < rule.E; e += kRouteWarps) {
    const auto part = load_pack<uint16_t, kEach>(count + e * kRanges + lane * kEach);
    uint32_t sum = 0, earlier = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int32_t range = lane * kEach + i;
      const uint32_t rows = range < rule.ranges ? part.at[i] : 0;  // behind them the workspace is not written
      sum += rows;
      earlier += range < mine ? rows : 0;
    }
    sum = __reduce_add_sync(kWarp, sum);
    earlier = __reduce_add_sync(kWarp, earlier);
    if (lane == 0) {
      all[e] = static_cast<int32_t>(sum);
      before[e] = static_cast<int32_t>(earlier);
    }
  }
}

// One warp: exclusive sums of all[0..E) into first[0..E].
__device__ inline void scan_counts(int32_t E, const int32_t* all, int32_t* first) {
  const int32_t lane = threadIdx.x % 32;
  int32_t base = 0;
  for (int32_t begin = 0; begin < E; begin += 32) {
    const int32_t e = begin + lane, mine = e < E ? all[e] : 0;
    int32_t sum = mine;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
      const int32_t below = __shfl_up_sync(kWarp, sum, d);
      if (lane >= d) sum += below;
    }
    if (e < E) first[e] = base + sum - mine;
    base += __shfl_sync(kWarp, sum, 31);
  }
  if (lane == 0) first[E] = base;
}

// Ranks `tokens` tokens from t on: the rows of an expert continue at next[e]. `chosen` is all zeros, before and after.
__device__ inline void place_tile(const Rule& rule, int32_t t, int32_t tokens, const int32_t* ids, uint32_t* chosen,
                                  int32_t* next, const Places& out) {
  const int64_t base = static_cast<int64_t>(t) * rule.K;
  for (int32_t i = threadIdx.x; i < tokens * rule.K; i += kRouteThreads) {
    const int32_t token = i / rule.K;
    atomicOr(chosen + ids[base + i] * kTileWords + token / 32, 1u << (token % 32));
  }
  __syncthreads();
  for (int32_t i = threadIdx.x; i < tokens * rule.K; i += kRouteThreads) {
    const int32_t token = i / rule.K, e = ids[base + i];
    const uint32_t* word = chosen + e * kTileWords;
    int32_t row = next[e] + __popc(word[token / 32] & ((1u << (token % 32)) - 1u));
    for (int32_t w = 0; w < token / 32; ++w) row += __popc(word[w]);
    out.row[base + i] = row;
    out.token[row] = t + token;
  }
  __syncthreads();
  for (int32_t e = threadIdx.x; e < rule.E; e += kRouteThreads)
    for (int w = 0; w < kTileWords; ++w) {
      next[e] += __popc(chosen[e * kTileWords + w]);
      chosen[e * kTileWords + w] = 0;
    }
  __syncthreads();
}

__global__ void __launch_bounds__(kRouteThreads) place_rows(Rule rule, const int32_t* ids, const uint16_t* count,
                                                            Places out) {
  __shared__ int32_t all[kMostExperts], next[kMostExperts], first[kMostExperts + 1];
  __shared__ uint32_t chosen[kMostExperts * kTileWords];
  for (int32_t i = threadIdx.x; i < rule.E * kTileWords; i += kRouteThreads) chosen[i] = 0;
  add_counts(rule, count, all, next);
  __syncthreads();
  if (threadIdx.x < 32) scan_counts(rule.E, all, first);
  __syncthreads();
  for (int32_t e = threadIdx.x; e < rule.E; e += kRouteThreads) next[e] += first[e];
  if (blockIdx.x == 0) {
    for (int32_t e = threadIdx.x; e <= rule.E; e += kRouteThreads) out.offsets[e] = first[e];
    for (int32_t e = threadIdx.x; e < rule.E; e += kRouteThreads) out.counts[e] = all[e];
  }
  __syncthreads();
  const int32_t begin = blockIdx.x * rule.range, end = min(rule.T, begin + rule.range);
  for (int32_t t = begin; t < end; t += kTileTokens) place_tile(rule, t, min(kTileTokens, end - t), ids, chosen, next, out);
}

// dlogits of one token per warp. A sigmoid's derivative is s (1 - s); the normalised softmax scores are a softmax over the
// chosen logits alone.
constexpr int kBackwardThreads = 256;

template <typename X, int P>
__global__ void __launch_bounds__(kBackwardThreads) route_gradient(Rule rule, const float* dweight, const X* logits,
                                                                    const int32_t* ids, const float* weight, X* dlogits) {
  const int32_t lane = threadIdx.x % 32, t = blockIdx.x * (kBackwardThreads / 32) + threadIdx.x / 32;
  if (t >= rule.T) return;
  const int64_t at = static_cast<int64_t>(t) * rule.K + lane, row = static_cast<int64_t>(t) * rule.E;
  const bool chosen = lane < rule.K;
  const float w = chosen ? weight[at] : 0.f, dw = chosen ? dweight[at] : 0.f;
  const float dot = warp_sum(w * dw);
  float x[P], top = -__uint_as_float(0x7f800000u), y[P], whole = 1.f;
  const bool everywhere = !rule.sigmoid && !rule.norm_topk;
  if (everywhere) {
#pragma unroll
    for (int j = 0; j < P; ++j) {
      const int32_t e = 32 * j + lane;
      x[j] = e < rule.E ? widen(logits[row + e]) : -__uint_as_float(0x7f800000u);
      top = fmaxf(top, x[j]);
    }
    top = warp_max(top);
#pragma unroll
    for (int j = 0; j < P; ++j) y[j] = exp_unfused(__fsub_rn(x[j], top));
    whole = row_sum(y);
  }
#pragma unroll
  for (int j = 0; j < P; ++j)
    if (32 * j + lane < rule.E) dlogits[row + 32 * j + lane] = narrow<X>(everywhere ? -(y[j] / whole) * dot : 0.f);
  __syncwarp();  // the chosen ones are written over what stands there now
  if (!chosen || ids[at] < 0 || ids[at] >= rule.E) return;
  const float mean = rule.sigmoid && !rule.norm_topk ? 0.f : dot / rule.scale;
  const float slope = rule.sigmoid ? sigmoid(-widen(logits[row + ids[at]])) : 1.f;
  dlogits[row + ids[at]] = narrow<X>(w * (dw - mean) * slope);
}

}  // namespace seedthink::cuda
