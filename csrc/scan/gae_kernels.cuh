// Device code of GAE: one pass over rewards and values.
//
// A token is an affine map of the state (policy advantage, critic advantage, next value); maps compose associatively, a
// masked token is the identity, so masks, bootstrap and both lambdas share one scan. A sequence is cut into chunks from
// its end; a block keeps its chunk in shared memory, learns what the chunk does to a state, leaves that for the blocks
// that stand nearer to the sequence's start, collects what the blocks behind left, and writes. Every tree is fixed by the
// position in the sequence, never by who came first: the same bits in every run and in every batch.
#pragma once

#include "common/device.cuh"

namespace seedthink::cuda {

constexpr int kGaeThreads = 256, kGaeWarps = kGaeThreads / 32;
constexpr int kGaeBlocks = 5;                // that a multiprocessor is to hold at a time: as many as shared memory does
constexpr int kQuad = 4;                     // tokens that move together: 16 bytes, of the mask 4
constexpr int kRun = 17;                     // tokens of a lane; odd, so that lanes read shared memory without conflicts
constexpr int kChunk = kGaeThreads * kRun;   // tokens of a block

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
  int32_t sequences, tokens;
  bool wide;  // whether every fourth token begins at a multiple of 16 bytes (of the mask: of 4)
};

// Chunks of sequence b are slots first_slot(b) and following, the one at the sequence's end first. With a null `ready`
// every sequence is one chunk and its slot is its number.
struct Workspace {
  int32_t* ready;  // zero once the kernel before has ended: whether `map` holds the slot's map
  Map* map;        // what a chunk does to a state
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

// Inside a warp the next value of all but the first counted token is known, so a map is one affine function for each
// lambda. What enters it is what that first token sees: decay * advantage + gamma * next.
struct alignas(16) Pair {
  float ap, bp, ac, bc;
};

__device__ inline Pair compose(const Pair& late, const Pair& early) {
  return {late.ap * early.ap, fmaf(late.ap, early.bp, late.bp), late.ac * early.ac, fmaf(late.ac, early.bc, late.bc)};
}

__device__ inline Pair shuffle(const Pair& m, int lane) {
  return {__shfl_sync(kWarp, m.ap, lane), __shfl_sync(kWarp, m.bp, lane), __shfl_sync(kWarp, m.ac, lane),
          __shfl_sync(kWarp, m.bc, lane)};
}

// Inclusive scan over the lanes of a warp, lane 0 being the earliest.
__device__ inline Pair warp_scan(Pair m) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const Pair below = shuffle(m, lane < distance ? lane : lane - distance);
    if (lane >= distance) m = compose(m, below);
  }
  return m;
}

// Slots before sequence b. At least as many as there are chunks before it; the few that are none stay idle, and nobody
// has to count.
__device__ inline int32_t first_slot(const int32_t* bounds, int32_t b) { return b + bounds[b] / kChunk; }

// Where a slot lies. No contents of `bounds` make a block touch a token outside [0, tokens) or leave its slot unannounced.
struct Place {
  int32_t sequence, slot, first, start, begin, stop;  // tokens [begin, stop) of a sequence that begins at start
};

// The last sequence whose first slot is not above `slot`; a warp tries 32 candidates at a time.
__device__ inline int32_t sequence_of(const int32_t* bounds, int32_t sequences, int32_t slot) {
  const int32_t lane = threadIdx.x % 32;
  int32_t low = 0;
  for (int32_t count = sequences; count > 1;) {
    const int32_t step = (count + 31) / 32, candidate = lane * step;
    const bool reached = candidate < count && first_slot(bounds, low + candidate) <= slot;
    const int32_t last = (31 - __clz(__ballot_sync(kWarp, reached || lane == 0))) * step;
    low += last;
    count = min(step, count - last);
  }
  return low;
}

__device__ inline Place place_of(const Problem& p, int32_t slot, bool planned) {
  const int32_t b = planned ? sequence_of(p.bounds, p.sequences, slot) : slot;
  const int32_t first = planned ? max(0, first_slot(p.bounds, b)) : slot;
  const int32_t start = max(0, p.bounds[b]), end = min(p.tokens, p.bounds[b + 1]);
  const int64_t stop = slot >= first ? end - static_cast<int64_t>(slot - first) * kChunk : start;
  const auto last = static_cast<int32_t>(max(stop, static_cast<int64_t>(start)));
  return {b, slot, first, start, max(start, last - kChunk), last};
}

// A block's chunk in shared memory. Aligned quads lie as in the tensors, so they move whole wherever a sequence ends; a
// lane's tokens may begin up to kRun - 1 before the chunk's.
constexpr int kFront = (kRun + kQuad - 2) / kQuad * kQuad;
constexpr int kRoom = kFront + kChunk + 2 * kQuad;

struct alignas(16) Tile {
  float first[kRoom], second[kRoom];  // rewards and values, then advantages and returns
  uint8_t mask[kRoom];
};

__device__ inline int32_t first_quad(const Place& at) { return at.begin - at.begin % kQuad; }

// Warps that have tokens; the others leave, and a barrier waits for no thread that has left.
__device__ inline int warps_of(const Place& at) { return (at.stop - at.begin + 32 * kRun - 1) / (32 * kRun); }

// Where token t lies in the tile.
__device__ inline int32_t index_of(const Place& at, int32_t t) { return t - first_quad(at) + kFront; }

// Starts to copy the chunk into the tile: quads where the tensor has them, single tokens elsewhere.
__device__ inline void load_tile(const Problem& p, const Place& at, int warps, Tile& tile) {
  for (int32_t t = first_quad(at) + threadIdx.x * kQuad; t < at.stop; t += warps * 32 * kQuad) {
    const int32_t i = index_of(at, t);
    if (p.wide && t + kQuad <= p.tokens) {
      copy_async<16>(tile.first + i, p.reward + t);
      copy_async<16>(tile.second + i, p.value + t);
      if (p.mask != nullptr) copy_async<4>(tile.mask + i, p.mask + t);
      continue;
    }
#pragma unroll 1
    for (int j = max(0, at.begin - t); j < min(kQuad, at.stop - t); ++j) {
      tile.first[i + j] = p.reward[t + j];
      tile.second[i + j] = p.value[t + j];
      if (p.mask != nullptr) tile.mask[i + j] = p.mask[t + j];
    }
  }
}

// Writes what the tile holds now: whole quads of the chunk at once, its two ends one by one.
__device__ inline void store_tile(const Problem& p, const Place& at, int warps, const Tile& tile) {
  for (int32_t t = first_quad(at) + threadIdx.x * kQuad; t < at.stop; t += warps * 32 * kQuad) {
    const int32_t i = index_of(at, t);
    if (p.wide && t >= at.begin && t + kQuad <= at.stop) {
      store_pack<float, kQuad>(p.advantage + t, load_pack<float, kQuad>(tile.first + i));
      store_pack<float, kQuad>(p.returns + t, load_pack<float, kQuad>(tile.second + i));
      continue;
    }
#pragma unroll 1
    for (int j = max(0, at.begin - t); j < min(kQuad, at.stop - t); ++j) {
      p.advantage[t + j] = tile.first[i + j];
      p.returns[t + j] = tile.second[i + j];
    }
  }
}

// Bit j: whether byte j of four is not zero.
__device__ inline uint32_t nonzero_bytes(uint32_t x) {
  const uint32_t high = (((x & 0x7f7f7f7fu) + 0x7f7f7f7fu) | x) & 0x80808080u;
  return (high * 0x00204081u) >> 28;  // bits 7, 15, 23, 31 to 28, 29, 30, 31
}

// A lane's tokens: kRun in memory order, walked backwards; those of lane 0 of warp 0 end where the chunk does.
struct Run {
  int32_t index;     // of the first in the tile
  bool inside;       // whether any of them belongs to the chunk
  uint32_t counted;  // bit j: whether token j does and counts

  __device__ bool counts(int j) const { return ((counted >> j) & 1u) != 0; }
};

__device__ inline Run run_of(const Place& at, const Tile& tile, bool masked) {
  const int32_t first = at.stop - (static_cast<int32_t>(threadIdx.x) + 1) * kRun, outside = max(0, at.begin - first);
  if (outside >= kRun) return {0, false, 0};
  const int32_t index = index_of(at, first), shift = index % kQuad;
  uint32_t bits = ~0u;
  if (masked) {
    const auto* quads = reinterpret_cast<const uint32_t*>(tile.mask + index - shift);
    bits = 0;
#pragma unroll
    for (int q = 0; q * kQuad < kRun + kQuad - 1; ++q) bits |= nonzero_bytes(quads[q]) << (q * kQuad);
    bits >>= shift;
  }
  return {index, true, bits & ((1u << kRun) - (1u << outside))};
}

struct Decay {
  float gamma, policy, critic;
};

__device__ inline float power(float x, int n) {
  float y = 1.f;
#pragma unroll
  for (int bit = 1; bit <= kRun; bit *= 2, x *= x) y = (n & bit) != 0 ? y * x : y;
  return y;
}

// What a lane knows before it knows its warp's state.
struct Ahead {
  bool first;  // whether no token before the lane counts in the warp
  Pair map;    // what stands before the lane in the warp
  float next;  // the value that the lane's first counted token sees
};

// The lane's tokens as one map, given the next value; the warp's first counted token passes on what enters.
__device__ inline Pair run_map(const Tile& tile, const Run& run, const Decay& decay, const Ahead& ahead) {
  const int count = __popc(run.counted) - (ahead.first && run.counted != 0);
  Pair m{power(decay.policy, count), 0.f, power(decay.critic, count), 0.f};
  if (run.counted == 0) return m;
  float next = ahead.next;
#pragma unroll
  for (int j = kRun - 1; j >= 0; --j) {
    const float value = tile.second[run.index + j], gain = tile.first[run.index + j] - value;
    if (!run.counts(j)) continue;
    const float delta = fmaf(decay.gamma, next, gain);
    m.bp = fmaf(decay.policy, m.bp, delta);
    m.bc = fmaf(decay.critic, m.bc, delta);
    next = value;
  }
  return m;
}

// Scans the lanes of a warp. Returns the map of the whole warp, right in its last lane.
__device__ inline Map warp_map(const Tile& tile, const Run& run, const Decay& decay, Ahead& ahead) {
  const int lane = threadIdx.x % 32;
  const float last = run.counted != 0 ? tile.second[run.index + __ffs(run.counted) - 1] : 0.f;
  const unsigned lanes = __ballot_sync(kWarp, run.counted != 0), below = lanes & ((1u << lane) - 1u);
  ahead.first = below == 0;
  if (lanes == 0) return identity();
  const float from_below = __shfl_sync(kWarp, last, below != 0 ? 31 - __clz(below) : 0);
  ahead.next = below != 0 ? from_below : 0.f;
  const Pair all = warp_scan(run_map(tile, run, decay, ahead));
  ahead.map = shuffle(all, lane > 0 ? lane - 1 : 0);  // lane 0 is a first one and has no use for it
  return {all.ap * decay.policy, all.ap * decay.gamma, all.bp, all.ac * decay.critic, all.ac * decay.gamma, all.bc,
          0.f,                   run.counted != 0 ? last : from_below};
}

// The state behind a lane's tokens, given the one behind the warp.
__device__ inline State state_of_lane(const Decay& decay, const Ahead& ahead, const State& behind) {
  if (ahead.first) return behind;
  const float enters = decay.gamma * behind.next;
  return {fmaf(ahead.map.ap, fmaf(decay.policy, behind.policy, enters), ahead.map.bp),
          fmaf(ahead.map.ac, fmaf(decay.critic, behind.critic, enters), ahead.map.bc), ahead.next};
}

// Walks a lane's tokens from the state behind them and leaves the results in their place.
__device__ inline void finish_run(Tile& tile, const Run& run, const Decay& decay, State at) {
#pragma unroll
  for (int j = kRun - 1; j >= 0; --j) {
    const float value = tile.second[run.index + j], gain = tile.first[run.index + j] - value;
    if (run.counts(j)) {
      const float delta = fmaf(decay.gamma, at.next, gain);
      at = {fmaf(decay.policy, at.policy, delta), fmaf(decay.critic, at.critic, delta), value};
    }
    tile.first[run.index + j] = at.policy;
    tile.second[run.index + j] = value + at.critic;
  }
}

__device__ inline void leave_map(const Workspace& work, int32_t slot, const Map& map) {
  work.map[slot] = map;
  announce(work.ready + slot);
}

__device__ inline Map load_map(const Map* map) {
  const auto* words = reinterpret_cast<const float*>(map);
  return {__ldcg(words), __ldcg(words + 1), __ldcg(words + 2), __ldcg(words + 3),
          __ldcg(words + 4), __ldcg(words + 5), __ldcg(words + 6), __ldcg(words + 7)};
}

__device__ inline Map from_lane_above(const Map& m, int distance) {
  return {__shfl_down_sync(kWarp, m.ap, distance), __shfl_down_sync(kWarp, m.cp, distance),
          __shfl_down_sync(kWarp, m.bp, distance), __shfl_down_sync(kWarp, m.ac, distance),
          __shfl_down_sync(kWarp, m.cc, distance), __shfl_down_sync(kWarp, m.bc, distance),
          __shfl_down_sync(kWarp, m.f, distance),  __shfl_down_sync(kWarp, m.w, distance)};
}

// The state behind a chunk: a warp waits for the maps of all chunks between it and the sequence's end, 32 at a time, and
// joins them in a tree over their numbers. Blocks start in the order of their numbers, which are their slots, so whoever
// is waited for is running. Reading all of them costs less than one step of a chain from block to block.
__device__ inline State state_behind(const Workspace& work, int32_t first, int32_t chunks, State state) {
  const int lane = threadIdx.x % 32;
  for (int32_t begin = 0; begin < chunks; begin += 32) {
    Map m = identity();
    if (begin + lane < chunks) {
      await(work.ready + first + begin + lane);
      m = load_map(work.map + first + begin + lane);
    }
    __syncwarp();
    for (int distance = 1; distance < 32; distance *= 2) m = compose(from_lane_above(m, distance), m);
    state = apply(m, state);  // right in lane 0, which the others' maps do not touch
  }
  return state;
}

// Of a slot that no chunk of its sequence follows nobody needs the map, but bounds that make no sense can make a block wait
// for any slot before its own.
__device__ inline void leave_nothing(const Workspace& work, int32_t slot) {
  *const_cast<volatile int32_t*>(work.ready + slot) = 1;
}

// A chunk that another follows is whole: every warp has a map.
__device__ inline void leave_chunk(const Workspace& work, const Place& at, const Map* maps) {
  if (at.begin == at.start) return leave_nothing(work, at.slot);
  Map all = maps[0];
  for (int i = 1; i < kGaeWarps; ++i) all = compose(maps[i], all);
  leave_map(work, at.slot, all);
}

__global__ void clear_ready(int32_t* ready, int32_t slots) {
  start_next_kernel();
  const auto slot = static_cast<int32_t>(blockIdx.x * blockDim.x + threadIdx.x);
  if (slot < slots) ready[slot] = 0;
}

// One block per chunk. It may start before clear_ready has ended, and loads its tokens meanwhile.
__global__ void __launch_bounds__(kGaeThreads, kGaeBlocks) scan_chunks(Problem p, Workspace work) {
  __shared__ Tile tile;
  __shared__ Map maps[kGaeWarps];
  __shared__ State entering;
  __shared__ Decay factors;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const bool planned = work.ready != nullptr;
  const Place at = place_of(p, static_cast<int32_t>(blockIdx.x), planned);
  if (at.begin == at.stop) {  // an idle slot, or an empty sequence
    await_kernel_before();
    if (planned && threadIdx.x == 0) leave_nothing(work, at.slot);
    return;
  }
  const int warps = warps_of(at);
  if (warp >= warps) return;
  load_tile(p, at, warps, tile);
  if (threadIdx.x == 0) {
    factors = {p.gamma, p.gamma * p.lambda_policy[at.sequence], p.gamma * p.lambda_critic[at.sequence]};
    entering = {0.f, 0.f, p.bootstrap != nullptr ? p.bootstrap[at.sequence] : 0.f};  // the sequence
  }
  await_copies();
  __syncthreads();
  const Decay decay = factors;
  const Run run = run_of(at, tile, p.mask != nullptr);
  Ahead ahead;
  const Map mine = warp_map(tile, run, decay, ahead);
  if (lane == 31) maps[warp] = mine;
  await_kernel_before();
  __syncthreads();
  if (planned && warp == warps - 1 && lane == 0) leave_chunk(work, at, maps);
  if (warp == 0) {
    const State state = state_behind(work, at.first, at.slot - at.first, entering);
    __syncwarp();
    if (lane == 0) entering = state;  // the chunk
  }
  __syncthreads();
  if (run.inside) {
    State behind = entering;
#pragma unroll
    for (int i = 0; i < kGaeWarps - 1; ++i)
      if (i < warp) behind = apply(maps[i], behind);
    finish_run(tile, run, decay, state_of_lane(decay, ahead, behind));
  }
  __syncthreads();
  store_tile(p, at, warps, tile);
}

}  // namespace seedthink::cuda
