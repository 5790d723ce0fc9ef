// Device code of routing: a warp chooses a token's experts, then blocks place the rows.
//
// 1. choose_experts: each block takes one range of tokens, a warp one token at a time. Lane l holds the keys of experts
//    l, l + 32, ... in descending order; a round of choice is a warp reduction over the lanes' heads, and the lane that
//    has the largest moves on to its next. The K-th largest is a threshold: what is not below it is chosen, of its
//    equals the first. The block leaves how many tokens it gave to each expert.
// 2. place_rows: each block adds up those counts to find where its rows of each expert begin, and ranks its own tokens
//    by bits below them in a word of tokens per expert. Atomics only ever add or set bits: no order comes from them.
// Few tokens take one launch, route_cluster: a warp has one token, and the blocks read each other's words of tokens.
#pragma once

#include "common/device.cuh"

namespace seedthink::cuda {

constexpr int kMostWarps = 32;       // of a block
constexpr int kPlaceThreads = 512;   // with so few registers that they wait beside the largest block that chooses
constexpr int kRanges = 128;         // ranges of tokens at most
constexpr int kMostExperts = 512;    // sixteen to a lane
constexpr int kMostChoices = 32;     // a lane keeps one
constexpr int kCluster = 8;          // blocks that route few tokens in one launch
constexpr int kTileTokens = 128;     // tokens that are ranked at a time
constexpr int kTileWords = kTileTokens / 32;
constexpr float kTiny = 1e-20f;      // keeps a sum of scores that are all zero from dividing zero by zero (DeepSeek-V3)

// Warps of a block where a lane has P experts: sixteen take more registers than a thread of the largest block may have.
template <int P>
constexpr int kWarpsOf = P < 16 ? kMostWarps : 16;

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

constexpr int kPack = 4, kPackWords = 2;  // counts that are read at a time: two to a word
constexpr int32_t packs_of(int32_t experts) { return (experts + kPack - 1) / kPack; }

struct RouteOutput {
  int32_t* ids;
  float* weight;
  uint32_t* count;  // [ranges, packs of experts, kPackWords]: tokens of a range that go to an expert

  __device__ void write(int64_t at, int32_t expert, float w) const {
    ids[at] = expert;
    weight[at] = w;
  }
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

template <typename X, int P>
__global__ void __launch_bounds__(32 * kWarpsOf<P>, P < 16 ? 0 : 1)
    choose_experts(Rule rule, const X* logits, RouteOutput out) {
  __shared__ uint32_t count[kMostExperts];
  __shared__ Choice slot[kWarpsOf<P>][kMostChoices + 1];
  next_launch_may_start();
  const int32_t warp = this_warp(), lane = threadIdx.x % 32, packs = packs_of(rule.E);
  for (int32_t e = threadIdx.x; e < packs * kPack; e += blockDim.x) count[e] = 0;
  __syncthreads();
  const int32_t begin = blockIdx.x * rule.range, end = min(rule.T, begin + rule.range);
  for (int32_t t = begin + warp; t < end; t += blockDim.x / 32) {
    const Choice choice = route_token<X, P>(rule, logits + static_cast<int64_t>(t) * rule.E, slot[warp]);
    if (lane >= rule.K) continue;
    out.write(static_cast<int64_t>(t) * rule.K + lane, choice.expert, choice.value);
    atomicAdd(count + choice.expert, 1u);
  }
  __syncthreads();
  for (int32_t pack = threadIdx.x; pack < packs; pack += blockDim.x) {
    const uint32_t* rows = count + pack * kPack;
    store_pack<uint32_t, kPackWords>(out.count + (static_cast<int32_t>(blockIdx.x) * packs + pack) * kPackWords,
                                     {rows[0] | rows[1] << 16, rows[2] | rows[3] << 16});
  }
}

struct Places {
  int32_t *counts, *offsets, *row, *token;
};

// For every expert: its rows in all ranges, where its rows begin, and where this block's next one goes.
struct Tally {
  int32_t all[kMostExperts], first[kMostExperts + 1], next[kMostExperts];

  __device__ void clear() {
    for (int32_t e = threadIdx.x; e < kMostExperts; e += blockDim.x) all[e] = next[e] = 0;
  }

  // One warp, once all[] is known and next[] says how many rows lie in ranges before this one.
  __device__ void scan(int32_t E) {
    const int32_t lane = threadIdx.x % 32, each = (E + 31) / 32, begin = min(E, lane * each), end = min(E, begin + each);
    int32_t mine = 0, sum;
#pragma unroll 4
    for (int32_t e = begin; e < end; ++e) mine += all[e];
    sum = mine;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
      const int32_t below = __shfl_up_sync(kWarp, sum, d);
      if (lane >= d) sum += below;
    }
    int32_t at = sum - mine;
#pragma unroll 4
    for (int32_t e = begin; e < end; ++e) {
      first[e] = at;
      next[e] += at;
      at += all[e];
    }
    if (lane == 31) first[E] = sum;
  }

  __device__ void write(int32_t E, const Places& out) const {
    for (int32_t e = threadIdx.x; e <= E; e += blockDim.x) out.offsets[e] = first[e];
    for (int32_t e = threadIdx.x; e < E; e += blockDim.x) out.counts[e] = all[e];
  }
};

// Adds up the counts of all ranges, and of those before this one: a thread takes a pack of experts and some ranges.
__device__ inline void add_counts(const Rule& rule, const uint32_t* count, Tally& tally) {
  constexpr int kLoads = 8;  // in flight
  const int32_t packs = packs_of(rule.E), pack = threadIdx.x % packs, parts = blockDim.x / packs;
  const int32_t part = threadIdx.x / packs, mine = blockIdx.x;
  if (part >= min(parts, rule.ranges)) return;
  int32_t all[kPack] = {}, before[kPack] = {};
  for (int32_t first = part; first < rule.ranges; first += kLoads * parts) {
    Pack<uint32_t, kPackWords> rows[kLoads] = {};
#pragma unroll
    for (int n = 0; n < kLoads; ++n) {
      const int32_t range = first + n * parts;
      if (range < rule.ranges) rows[n] = load_pack<uint32_t, kPackWords>(count + (range * packs + pack) * kPackWords);
    }
#pragma unroll
    for (int n = 0; n < kLoads; ++n)
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        const int32_t each = (rows[n].at[i / 2] >> (16 * (i % 2))) & 0xffffu;
        all[i] += each;
        before[i] += first + n * parts < mine ? each : 0;
      }
  }
#pragma unroll
  for (int i = 0; i < kPack; ++i) {
    atomicAdd(tally.all + pack * kPack + i, all[i]);
    if (part < mine) atomicAdd(tally.next + pack * kPack + i, before[i]);
  }
}

// A tile of tokens, from t on, as bits of tokens per expert.
struct Tile {
  int32_t K, shift, t, tokens;  // a token's choices take 1 << shift threads
  const int32_t* ids;

  // The choice that the thread of this number takes; -1 where there is none.
  __device__ int32_t expert(int32_t thread) const {
    const int32_t token = thread >> shift, k = thread - (token << shift);
    return token < tokens && k < K ? ids[token * K + k] : -1;
  }
  // Calls each(choice's index, token, expert) for the choices of this thread, of which the caller has read the first.
  template <typename F>
  __device__ void for_choices(int32_t e, const F& each) const {
    for (int32_t i = threadIdx.x; i < tokens << shift; i += kPlaceThreads) {
      const int32_t token = i >> shift;
      if (e >= 0) each(token * K + i - (token << shift), token, e);
      e = expert(i + kPlaceThreads);
    }
  }
  __device__ void mark(int32_t first, uint32_t* chosen) const {
    for_choices(first, [&](int32_t, int32_t token, int32_t e) {
      atomicOr(chosen + e * kTileWords + token / 32, 1u << (token % 32));
    });
  }
  __device__ void place(int32_t first, const uint32_t* chosen, const int32_t* next, const Places& out) const {
    int32_t* rows = out.row + static_cast<int64_t>(t) * K;
    for_choices(first, [&](int32_t at, int32_t token, int32_t e) {
      const uint32_t* word = chosen + e * kTileWords;
      int32_t row = next[e] + __popc(word[token / 32] & ((1u << (token % 32)) - 1u));
      for (int32_t w = 0; w < token / 32; ++w) row += __popc(word[w]);
      rows[at] = row;
      out.token[row] = t + token;
    });
  }
};

__device__ inline Tile tile_of(const Rule& rule, int32_t t, int32_t end, const int32_t* ids) {
  return {rule.K, 32 - __clz(rule.K - 1), t, min(kTileTokens, end - t), ids + static_cast<int64_t>(t) * rule.K};
}

// Moves next[] past the tile, and clears the tile.
__device__ inline void leave_tile(int32_t E, uint32_t* chosen, int32_t* next) {
  for (int32_t e = threadIdx.x; e < E; e += kPlaceThreads)
    for (int w = 0; w < kTileWords; ++w) {
      next[e] += __popc(chosen[e * kTileWords + w]);
      chosen[e * kTileWords + w] = 0;
    }
}

__global__ void __launch_bounds__(kPlaceThreads, 3) place_rows(Rule rule, const int32_t* ids, const uint32_t* count,
                                                            Places out) {
  __shared__ Tally tally;
  __shared__ uint32_t chosen[kMostExperts * kTileWords];
  for (int32_t i = threadIdx.x; i < rule.E * kTileWords; i += kPlaceThreads) chosen[i] = 0;
  tally.clear();
  __syncthreads();
  await_launch_before();
  const int32_t begin = blockIdx.x * rule.range, end = min(rule.T, begin + rule.range);
  Tile tile = tile_of(rule, begin, end, ids);
  int32_t first = tile.expert(threadIdx.x);  // is on its way while counts are added up
  add_counts(rule, count, tally);
  tile.mark(first, chosen);
  __syncthreads();
  if (this_warp() == 0) tally.scan(rule.E);
  __syncthreads();
  if (blockIdx.x == 0) tally.write(rule.E, out);
  for (int32_t t = begin; t < end; t += kTileTokens) {
    if (t > begin) {
      leave_tile(rule.E, chosen, tally.next);
      __syncthreads();
      tile = tile_of(rule, t, end, ids);
      first = tile.expert(threadIdx.x);
      tile.mark(first, chosen);
      __syncthreads();
    }
    tile.place(first, chosen, tally.next, out);
    __syncthreads();
  }
}

// Both at once for few tokens: one cluster of kCluster blocks, each with at most as many tokens as warps.
template <typename X, int P>
__global__ void __launch_bounds__(32 * kWarpsOf<P>, 1) route_cluster(Rule rule, const X* logits, RouteOutput out,
                                                                   Places places) {
  __shared__ uint32_t chosen[kMostExperts];  // bits of tokens
  __shared__ Tally tally;
  __shared__ Choice slot[kWarpsOf<P>][kMostChoices + 1];
  for (int32_t e = threadIdx.x; e < rule.E; e += blockDim.x) chosen[e] = 0;
  __syncthreads();
  const int32_t mine = blockIdx.x, warp = this_warp(), lane = threadIdx.x % 32, t = mine * rule.range + warp;
  const bool live = warp < rule.range && t < rule.T;
  Choice choice{};
  if (live) choice = route_token<X, P>(rule, logits + static_cast<int64_t>(t) * rule.E, slot[warp]);
  if (live && lane < rule.K) atomicOr(chosen + choice.expert, 1u << warp);
  cluster_arrive();
  cluster_wait();
  for (int32_t e = threadIdx.x; e < rule.E; e += blockDim.x) {
    int32_t all = 0, before = 0;
#pragma unroll
    for (int32_t range = 0; range < kCluster; ++range) {
      const int32_t rows = range < rule.ranges ? __popc(word_of_block(chosen + e, range)) : 0;
      all += rows;
      before += range < mine ? rows : 0;
    }
    tally.all[e] = all;
    tally.next[e] = before;
  }
  __syncthreads();
  cluster_leave();  // this block has read from the others, and ends when they have read from it
  if (warp == 0) tally.scan(rule.E);
  __syncthreads();
  if (mine == 0) tally.write(rule.E, places);
  if (live && lane < rule.K) {
    const int64_t at = static_cast<int64_t>(t) * rule.K + lane;
    const int32_t row = tally.next[choice.expert] + __popc(chosen[choice.expert] & ((1u << warp) - 1u));
    out.write(at, choice.expert, choice.value);  // not sooner: the barrier of the cluster waits for what was written
    places.row[at] = row;
    places.token[row] = t;
  }
  cluster_wait();
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
