// Device code of routing: a warp chooses a token's experts (choose_experts.cuh), then blocks place the rows.
//
// 1. choose_experts: each block takes one range of tokens, a warp one token at a time, and leaves how many tokens it gave
//    to each expert.
// 2. place_rows: each block adds up those counts to find where its rows of each expert begin, and ranks its own tokens
//    by bits below them in a word of tokens per expert. Atomics only ever add or set bits: no order comes from them.
// Few tokens take one launch, route_cluster: a warp has one token, and the blocks read each other's words of tokens.
#pragma once

#include "moe/choose_experts.cuh"

namespace seedthink::cuda {

constexpr int kMostWarps = 32;       // of a block
constexpr int kPlaceThreads = 512;   // with so few registers that they wait beside the largest block that chooses
constexpr int kRanges = 128;         // ranges of tokens at most
constexpr int kCluster = 8;          // blocks that route few tokens in one launch
constexpr int kTileTokens = 128;     // tokens that are ranked at a time
constexpr int kTileWords = kTileTokens / 32;

// Warps of a block where a lane has P experts: sixteen take more registers than a thread of the largest block may have.
template <int P>
constexpr int kWarpsOf = P < 16 ? kMostWarps : 16;

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

template <typename X, int P>
__global__ void __launch_bounds__(32 * kWarpsOf<P>, P < 16 ? 0 : 1)
    choose_experts(Rule rule, const X* logits, RouteOutput out) {
  __shared__ uint32_t count[kMostExperts];
  __shared__ Choice slot[kWarpsOf<P>][kMostChoices + 1];
  start_next_kernel();
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
  await_kernel_before();
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
