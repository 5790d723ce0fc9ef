// Device code of GAE. A token is an affine map of the state (policy advantage, critic advantage, next value); maps compose
// associatively, a masked token is the identity, so masks, bootstrap and both lambdas share one scan. Chunks are cut from
// a sequence's end and every tree is fixed by the position in the sequence: no atomics, the same bits whatever the batch.
#pragma once

#include <cstdint>

namespace seedthink::cuda {

constexpr int kThreads = 256, kTokens = 4;             // tokens of a thread in one tile
constexpr int kTile = kThreads * kTokens;              // tokens of a block's step
constexpr int kChunk = 4 * kTile;                      // tokens of a block
constexpr int kWarps = kThreads / 32;

struct State {
  float policy, critic, next;
};

// policy' = ap policy + cp next + bp, critic' = ac critic + cc next + bc, next' = f next + w
struct Map {
  float ap, cp, bp, ac, cc, bc, f, w;
};

struct Problem {
  const float *reward, *value, *lambda_policy, *lambda_critic, *bootstrap;  // bootstrap may be null: zeros
  const uint8_t* mask;                                                      // may be null: every token counts
  const int32_t* bounds;
  float *advantage, *returns;
  float gamma;
  int32_t sequences;
};

// Chunks of sequence b are slots [first[b], first[b + 1]), the one at the sequence's end first. With a null `first` every
// sequence is one chunk and its slot is its number.
struct Workspace {
  int32_t* first;
  Map* map;      // what a chunk does to a state
  State* state;  // behind a chunk
};

__device__ inline Map identity() { return {1.f, 0.f, 0.f, 1.f, 0.f, 0.f, 1.f, 0.f}; }

// `late` stands nearer to the sequence's start and is applied after `early`.
__device__ inline Map compose(const Map& late, const Map& early) {
  return {late.ap * early.ap,
          fmaf(late.ap, early.cp, late.cp * early.f),
          fmaf(late.ap, early.bp, fmaf(late.cp, early.w, late.bp)),
          late.ac * early.ac,
          fmaf(late.ac, early.cc, late.cc * early.f),
          fmaf(late.ac, early.bc, fmaf(late.cc, early.w, late.bc)),
          late.f * early.f,
          fmaf(late.f, early.w, late.w)};
}

__device__ inline State apply(const Map& m, const State& s) {
  return {fmaf(m.ap, s.policy, fmaf(m.cp, s.next, m.bp)), fmaf(m.ac, s.critic, fmaf(m.cc, s.next, m.bc)),
          fmaf(m.f, s.next, m.w)};
}

__device__ inline Map from_lane_below(const Map& m, int distance) {
  return {__shfl_up_sync(~0u, m.ap, distance), __shfl_up_sync(~0u, m.cp, distance),
          __shfl_up_sync(~0u, m.bp, distance), __shfl_up_sync(~0u, m.ac, distance),
          __shfl_up_sync(~0u, m.cc, distance), __shfl_up_sync(~0u, m.bc, distance),
          __shfl_up_sync(~0u, m.f, distance),  __shfl_up_sync(~0u, m.w, distance)};
}

// Inclusive scan over the lanes of a warp, lane 0 being the earliest.
__device__ inline Map warp_scan(Map m) {
  const int lane = threadIdx.x % 32;
  for (int distance = 1; distance < 32; distance *= 2) {
    const Map below = from_lane_below(m, distance);
    if (lane >= distance) m = compose(m, below);
  }
  return m;
}

// Returns what stands before this thread in the block, and the whole block's map in `total`.
__device__ inline Map block_scan(const Map& mine, Map& total) {
  __shared__ Map warp_map[kWarps];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const Map inclusive = warp_scan(mine);
  const Map below = from_lane_below(inclusive, 1);
  __syncthreads();  // the previous tile's maps have been read
  if (lane == 31) warp_map[warp] = inclusive;
  __syncthreads();
  Map before = identity();
  total = identity();
  for (int i = 0; i < kWarps; ++i) {
    if (i == warp) before = total;
    total = compose(warp_map[i], total);
  }
  return lane == 0 ? before : compose(below, before);
}

// One block: the number of chunks before each sequence.
__global__ void plan_chunks(const int32_t* bounds, int32_t sequences, int32_t* first) {
  __shared__ int32_t sums[kThreads];
  const int32_t share = (sequences + kThreads - 1) / kThreads;
  const int32_t begin = min(sequences, static_cast<int32_t>(threadIdx.x) * share), end = min(sequences, begin + share);
  int32_t count = 0;
  for (int32_t b = begin; b < end; ++b) count += (bounds[b + 1] - bounds[b] + kChunk - 1) / kChunk;
  sums[threadIdx.x] = count;
  __syncthreads();
  int32_t before = 0;
  for (int i = 0; i < static_cast<int>(threadIdx.x); ++i) before += sums[i];
  for (int32_t b = begin; b < end; ++b) {
    first[b] = before;
    before += (bounds[b + 1] - bounds[b] + kChunk - 1) / kChunk;
  }
  if (threadIdx.x == kThreads - 1) first[sequences] = before;
}

__device__ inline int32_t sequence_of(const int32_t* first, int32_t sequences, int32_t slot) {
  int32_t low = 0, high = sequences;  // first[low] <= slot < first[high]
  while (high - low > 1) {
    const int32_t middle = low + (high - low) / 2;
    if (first[middle] <= slot)
      low = middle;
    else
      high = middle;
  }
  return low;
}

// One block per chunk. Without `finish`: a sequence's only chunk is written out, of the others only the map is stored.
// With `finish`: the others are written out from the state behind them.
template <bool finish>
__global__ void __launch_bounds__(kThreads) scan_chunks(Problem p, Workspace work) {
  const int32_t slot = blockIdx.x;
  int32_t b = slot, chunk = 0, chunks = 1;
  if (work.first != nullptr) {
    if (slot >= work.first[p.sequences]) return;
    b = sequence_of(work.first, p.sequences, slot);
    chunk = slot - work.first[b];
    chunks = work.first[b + 1] - work.first[b];
  }
  if (finish && chunks == 1) return;
  const int32_t end = p.bounds[b + 1] - chunk * kChunk, begin = max(p.bounds[b], end - kChunk);
  const bool write = chunks == 1 || finish;
  State state{0.f, 0.f, p.bootstrap != nullptr ? p.bootstrap[b] : 0.f};
  if (finish) state = work.state[slot];
  Map sum = identity();
  const float decay_policy = p.gamma * p.lambda_policy[b], decay_critic = p.gamma * p.lambda_critic[b];
  for (int32_t stop = end; stop > begin; stop -= kTile) {
    Map token[kTokens], mine = identity(), tile;
    float value[kTokens];
    for (int j = 0; j < kTokens; ++j) {
      const int32_t t = stop - 1 - (static_cast<int32_t>(threadIdx.x) * kTokens + j);
      const bool inside = t >= begin, counts = inside && (p.mask == nullptr || p.mask[t] != 0);
      value[j] = inside ? p.value[t] : 0.f;
      const float gain = counts ? p.reward[t] - value[j] : 0.f;
      token[j] = counts ? Map{decay_policy, p.gamma, gain, decay_critic, p.gamma, gain, 0.f, value[j]} : identity();
      mine = compose(token[j], mine);
    }
    const Map before = block_scan(mine, tile);
    if (write) {
      State at = apply(before, state);
      for (int j = 0; j < kTokens; ++j) {
        const int32_t t = stop - 1 - (static_cast<int32_t>(threadIdx.x) * kTokens + j);
        at = apply(token[j], at);
        if (t < begin) continue;
        p.advantage[t] = at.policy;
        p.returns[t] = value[j] + at.critic;
      }
      state = apply(tile, state);
    } else {
      sum = compose(tile, sum);
    }
  }
  if (!write && threadIdx.x == 0) work.map[slot] = sum;
}

// One thread per sequence hands the state from chunk to chunk.
__global__ void carry_states(Problem p, Workspace work) {
  const int32_t b = blockIdx.x * blockDim.x + threadIdx.x;
  if (b >= p.sequences || work.first[b + 1] - work.first[b] <= 1) return;
  State state{0.f, 0.f, p.bootstrap != nullptr ? p.bootstrap[b] : 0.f};
  for (int32_t slot = work.first[b]; slot < work.first[b + 1]; ++slot) {
    work.state[slot] = state;
    state = apply(work.map[slot], state);
  }
}

}  // namespace seedthink::cuda
