// How a warp chooses a token's experts. Lane l holds the keys of experts l, l + 32, ... in descending order; a round of
// choice is a warp reduction over the lanes' heads, and the lane that has the largest moves on to its next. The K-th
// largest is a threshold: what is not below it is chosen, of its equals the first.
#pragma once

#include "common/device.cuh"

namespace seedthink::cuda {

constexpr int kMostExperts = 512;    // sixteen to a lane
constexpr int kMostChoices = 32;     // a lane keeps one
constexpr float kTiny = 1e-20f;      // keeps a sum of scores that are all zero from dividing zero by zero (DeepSeek-V3)

struct Rule {
  int32_t T, E, K;
  bool sigmoid, norm_topk;
  float scale;
  const float* bias;  // may be null
  int32_t groups, kept_groups, group_size;
  int32_t ranges, range;  // how many ranges of tokens, and tokens of a range

  // Whether scores, and not logits, are compared. Scores grow with the logits, which never tie by rounding.
  __device__ bool by_score() const { return bias != nullptr || groups > 1; }
};

// Integers that order like floats (-0 like 0). Arithmetic makes NaN positive, so it stands above every number, too.
constexpr int32_t kAbsent = INT32_MIN, kKeyOfInfinity = 0x7f800000, kKeyOfLowest = INT32_MIN + 0x7fffff;

__device__ inline int32_t key_of_sum(float x, float y) {
  const auto bits = static_cast<int32_t>(__float_as_uint(__fadd_rn(x, y)));
  return bits ^ ((bits >> 31) & INT32_MAX);
}
__device__ inline int32_t key_of(float x) { return key_of_sum(x, 0.f); }
__device__ inline float value_of(int32_t key) {
  return __uint_as_float(static_cast<uint32_t>(key ^ ((key >> 31) & INT32_MAX)));
}

// exp as exp_unfused of common/simd.h computes it: the same bits as on the CPU, so that the same experts are chosen.
// Between these ends nothing is subnormal or infinite, and the power of two can be added to the exponent's bits.
constexpr float kLowestPower = -87.3365f, kHighestPower = 88.7228f;

__device__ inline float exp_between(float x) {
  const auto madd = [](float a, float b, float c) { return __fadd_rn(__fmul_rn(a, b), c); };
  const float magic = 12582912.f, shifted = madd(x, 1.44269504088896341f, magic), n = __fsub_rn(shifted, magic);
  const float r = madd(n, 2.12194440e-4f, madd(n, -0.693359375f, x));
  float p = madd(1.9875691500e-4f, r, 1.3981999507e-3f);
  p = madd(p, r, 8.3334519073e-3f);
  p = madd(p, r, 4.1665795894e-2f);
  p = madd(p, r, 1.6666665459e-1f);
  p = madd(p, r, 5.0000001201e-1f);
  p = __fadd_rn(madd(p, __fmul_rn(r, r), r), 1.f);
  return __uint_as_float(__float_as_uint(p) + (__float_as_uint(shifted) << 23));
}
__device__ inline float exp_unfused(float x) {
  const float y = exp_between(fmaxf(fminf(x, kHighestPower), kLowestPower));
  if (x < kLowestPower) return 0.f;
  if (x > kHighestPower) return __uint_as_float(0x7f800000u);
  return x == x ? y : x;
}
__device__ inline float sigmoid(float x) { return __fdiv_rn(1.f, __fadd_rn(1.f, exp_unfused(-x))); }

// 1 / x rounded once, for x from 1 to 2^100: the device's estimate, corrected by its exact remainder. __frcp_rn does the
// same, and asks before whether x lies between such ends.
__device__ inline float reciprocal(float x) {
#ifdef __CUDA_ARCH__
  float estimate;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(estimate) : "f"(x));
  return fmaf(estimate, fmaf(-x, estimate, 1.f), estimate);
#else
  return 1.f / x;
#endif
}

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

// The number of the warp, as a value that the compiler sees to be the same in its lanes: what follows from it does not
// part them, and their exchanges need no code for that.
__device__ inline int32_t this_warp() { return __shfl_sync(kWarp, static_cast<int32_t>(threadIdx.x / 32), 0); }

// Whether this lane is the first of `lanes`, a mask that may lack it.
__device__ inline bool is_first(unsigned lanes) {
  const unsigned self = 1u << (threadIdx.x % 32);
  return (lanes & (2u * self - 1u)) == self;
}

__device__ inline int32_t below_lane(unsigned lanes) { return __popc(lanes & ((1u << (threadIdx.x % 32)) - 1u)); }

// Which of the lanes' keys are the k largest, the first of equals: bits of lanes.
__device__ inline unsigned largest_lanes(int32_t key, int32_t k) {
  unsigned lanes = 0;
  for (int32_t i = 0; i < k; ++i) {
    const unsigned holders = __ballot_sync(kWarp, key == __reduce_max_sync(kWarp, key));
    lanes |= holders & (0u - holders);
    if (is_first(holders)) key = kAbsent;
  }
  return lanes;
}

// Two best keys of one group that a lane has seen.
struct TwoBest {
  int32_t first = kAbsent, second = kAbsent;
  __device__ void see(int32_t key) {
    second = max(second, min(first, key));
    first = max(first, key);
  }
  // Those of all lanes.
  __device__ TwoBest of_warp() const {
    TwoBest all;
    all.first = __reduce_max_sync(kWarp, first);
    const bool gives = is_first(__ballot_sync(kWarp, first == all.first));  // one lane gives its best away
    all.second = __reduce_max_sync(kWarp, gives ? second : first);
    return all;
  }
};

// The best groups as bits. Lane g has the two best keys of group g, whose sum is the group's score.
__device__ inline unsigned best_groups(const Rule& rule, const TwoBest& best) {
  const float first = value_of(best.first);
  const float score = rule.group_size > 1 ? __fadd_rn(first, value_of(best.second)) : first;
  const bool exists = static_cast<int32_t>(threadIdx.x % 32) < rule.groups;
  return largest_lanes(exists ? key_of(score) : kAbsent, rule.kept_groups);
}

// Takes the experts outside the best groups out of the race. Groups of 32 are the lanes' j-th keys.
template <int P>
__device__ inline void keep_groups(const Rule& rule, int32_t (&key)[P]) {
  const int32_t lane = threadIdx.x % 32;
  TwoBest best;
  if (rule.group_size == 32) {
#pragma unroll
    for (int j = 0; j < P; ++j) {
      const TwoBest all = TwoBest{key[j]}.of_warp();
      if (lane == j) best = all;
    }
    const unsigned kept = best_groups(rule, best);
#pragma unroll
    for (int j = 0; j < P; ++j)
      if ((kept & (1u << j)) == 0) key[j] = kAbsent;
    return;
  }
  int32_t group[P];
#pragma unroll
  for (int j = 0; j < P; ++j) group[j] = (32 * j + lane) / rule.group_size;
  for (int32_t g = 0; g < rule.groups; ++g) {
    TwoBest seen;
#pragma unroll
    for (int j = 0; j < P; ++j) seen.see(group[j] == g ? key[j] : kAbsent);
    const TwoBest all = seen.of_warp();
    if (lane == g) best = all;
  }
  const unsigned kept = best_groups(rule, best);
#pragma unroll
  for (int j = 0; j < P; ++j)
    if (group[j] < 32 && ((kept >> group[j]) & 1u) == 0) key[j] = kAbsent;
}

// Scores of logits in their place. A row with NaN or +inf, or with nothing finite, gets a NaN.
template <int P>
__device__ inline void sigmoid_row(const Rule& rule, float (&x)[P]) {
  constexpr float kPlain = 60.f;  // below it there are no ends, and no subnormal numbers
  const int32_t lane = threadIdx.x % 32;
  bool plain = true, finite = false;
#pragma unroll
  for (int j = 0; j < P; ++j) plain = plain & (fabsf(x[j]) < kPlain);
  if (__ballot_sync(kWarp, plain) == kWarp) {
#pragma unroll
    for (int j = 0; j < P; ++j) x[j] = reciprocal(__fadd_rn(1.f, exp_between(-x[j])));
    return;
  }
#pragma unroll
  for (int j = 0; j < P; ++j) finite = finite | ((x[j] > value_of(kKeyOfLowest)) & (32 * j + lane < rule.E));
  const bool sound = __ballot_sync(kWarp, finite) != 0;
#pragma unroll
  for (int j = 0; j < P; ++j)
    x[j] = sound && x[j] < value_of(kKeyOfInfinity) ? sigmoid(x[j]) : __uint_as_float(0x7fc00000u);
}

// The sum of exp(logit - top).
template <int P>
__device__ inline float exponentials(const float (&x)[P], float top, float (&y)[P]) {
#pragma unroll
  for (int j = 0; j < P; ++j) y[j] = exp_unfused(__fsub_rn(x[j], top));
  return row_sum(y);
}

// Scores of logits in their place; NaN as in sigmoid_row, for an infinite top leaves no other difference.
template <int P>
__device__ inline void softmax_row(float (&x)[P]) {
  float top = x[0];
#pragma unroll
  for (int j = 1; j < P; ++j) top = fmaxf(top, x[j]);
  const float whole = exponentials(x, warp_max(top), x);
#pragma unroll
  for (int j = 0; j < P; ++j) x[j] = __fdiv_rn(x[j], whole);
}

// Loads a row: what weights are made of (scores where they are compared, else logits), and the keys to compare. Behind
// the last expert the key is that of -inf, which of its equals comes last.
template <typename X, int P>
__device__ inline void read_row(const Rule& rule, const X* logits, float (&value)[P], int32_t (&key)[P]) {
  const int32_t lane = threadIdx.x % 32;
  const float lowest = value_of(kKeyOfLowest);
  const float behind = rule.by_score() && rule.sigmoid ? 0.f : lowest;  // a plain logit, or one without part in a sum
  float added[P];
#pragma unroll
  for (int j = 0; j < P; ++j) {
    value[j] = 32 * j + lane < rule.E ? widen(logits[32 * j + lane]) : behind;
    added[j] = 32 * j + lane < rule.E ? 0.f : lowest;
  }
  if (rule.bias != nullptr) {
    const float* bias = rule.bias + lane;
#pragma unroll
    for (int j = 0; j < P; ++j)
      if (32 * j + lane < rule.E) added[j] = bias[32 * j];
  }
  if (rule.by_score() && rule.sigmoid) sigmoid_row(rule, value);
  if (rule.by_score() && !rule.sigmoid) softmax_row(value);
#pragma unroll
  for (int j = 0; j < P; ++j) key[j] = key_of_sum(value[j], added[j]);
}

__device__ inline void order(int32_t& high, int32_t& low) {
  const int32_t a = high, b = low;
  high = max(a, b);
  low = min(a, b);
}

// Descending, by Batcher's network: sorted runs of N become runs of 2 N, by exchanges over distances N, N / 2, ..., 1.
template <int N = 1, int DISTANCE = N, int P>
__device__ inline void sort(int32_t (&x)[P]) {
  constexpr int kFirst = DISTANCE % N;
#pragma unroll
  for (int i = kFirst; i + DISTANCE < P; ++i)
    if ((i - kFirst) / DISTANCE % 2 == 0 && i / (2 * N) == (i + DISTANCE) / (2 * N)) order(x[i], x[i + DISTANCE]);
  if constexpr (DISTANCE > 1)
    sort<N, DISTANCE / 2>(x);
  else if constexpr (2 * N < P)
    sort<2 * N>(x);
}

// The k-th largest key of the warp, and the largest. Each lane's keys are in descending order; they are used up.
template <int P>
__device__ inline int32_t kth_largest(int32_t (&key)[P], int32_t k, int32_t& top) {
  int32_t largest = top = __reduce_max_sync(kWarp, key[0]);
#pragma unroll 4
  for (int32_t i = 1; i < k; ++i) {
    if (is_first(__ballot_sync(kWarp, key[0] == largest))) {
#pragma unroll
      for (int j = 0; j + 1 < P; ++j) key[j] = key[j + 1];
      key[P - 1] = kAbsent;
    }
    largest = __reduce_max_sync(kWarp, key[0]);
  }
  return largest;
}

struct alignas(8) Choice {
  int32_t expert;
  float value;
};

// Writes the K experts whose keys reach the K-th largest, of its equals the first, in ascending order.
template <int P>
__device__ inline void write_choices(int32_t K, int32_t kth, const int32_t (&key)[P], const float (&value)[P],
                                     Choice* to) {
  const int32_t lane = threadIdx.x % 32;
  int32_t at = 0;
  const auto write = [&](int j, bool chosen) {
    const unsigned lanes = __ballot_sync(kWarp, chosen);
    const int32_t place = at + below_lane(lanes);
    to[chosen & (place < K) ? place : kMostChoices] = {32 * j + lane, value[j]};  // the last is not read
    at += __popc(lanes);
  };
#pragma unroll
  for (int j = 0; j < P; ++j) write(j, key[j] >= kth);
  if (at == K) return;
  __syncwarp();
  int32_t left = K;  // places for equals: there are more of them, and all is written again
#pragma unroll
  for (int j = 0; j < P; ++j) left -= __popc(__ballot_sync(kWarp, key[j] > kth));
  at = 0;
#pragma unroll
  for (int j = 0; j < P; ++j) {
    const unsigned equals = __ballot_sync(kWarp, key[j] == kth);
    write(j, (key[j] > kth) | ((key[j] == kth) & (below_lane(equals) < left)));
    left -= __popc(equals);
  }
}

// The score of a chosen logit. `x` is the row of logits, `top` its largest.
template <int P>
__device__ inline float score_of(const Rule& rule, float logit, const float (&x)[P], float top) {
  if (rule.sigmoid) return sigmoid(logit);
  const float y = exp_unfused(__fsub_rn(logit, top));
  float all[P];
  return rule.norm_topk ? y : __fdiv_rn(y, exponentials(x, top, all));
}

// One token: lane k gets the k-th expert, in ascending order, and its weight. NaN weights, and some experts, for a row
// without scores. `slot` is the warp's own.
template <typename X, int P>
__device__ inline Choice route_token(const Rule& rule, const X* logits, Choice* slot) {
  const int32_t lane = threadIdx.x % 32;
  float value[P];
  int32_t key[P], sorted[P], top;
  read_row(rule, logits, value, key);
  if (rule.groups > 1) keep_groups(rule, key);
#pragma unroll
  for (int j = 0; j < P; ++j) sorted[j] = key[j];
  sort(sorted);
  const int32_t kth = kth_largest(sorted, rule.K, top);
  const bool sound = top > kKeyOfLowest && top < kKeyOfInfinity, chosen = lane < rule.K;
  if (sound) write_choices(rule.K, kth, key, value, slot);
  __syncwarp();
  const Choice mine = chosen && sound ? slot[lane] : Choice{lane, value_of(kKeyOfLowest)};
  __syncwarp();  // the slots are free again
  float score = rule.by_score() ? mine.value : score_of(rule, mine.value, value, value_of(top));
  if (!chosen) score = 0.f;
  if (rule.norm_topk) score = __fdiv_rn(score, warp_sum(score) + kTiny);
  return {mine.expert, sound ? score * rule.scale : __uint_as_float(0x7fc00000u)};
}

}  // namespace seedthink::cuda
