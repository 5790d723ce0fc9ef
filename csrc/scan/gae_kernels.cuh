// Device code of GAE: one pass over rewards and values.
//
// A token is an affine map of the state (policy advantage, critic advantage, next value); maps compose associatively, a
// masked token is the identity, so masks, bootstrap and both lambdas share one scan. A sequence is cut into chunks from
// its end; a block keeps its chunk in registers, learns what the chunk does to a state, leaves that for the blocks that
// stand nearer to the sequence's start, collects what the blocks behind left, and writes. Every tree is fixed by the
// position in the sequence, never by who came first: the same bits in every run and in every batch.
#pragma once

#include "common/device.cuh"

namespace seedthink::cuda {

constexpr int kGaeThreads = 256, kGaeWarps = kGaeThreads / 32;
constexpr int kQuad = 4;                               // tokens of a lane that lie together: one 16-byte load
constexpr int kStrip = 32 * kQuad;                     // tokens of a warp that lie together
constexpr int kStrips = 4;                             // strips of a warp
constexpr int kChunk = kGaeWarps * kStrips * kStrip;   // tokens of a block

// Blocks that a multiprocessor is to hold at a time. Compiled for Ampere, three would spill registers.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int kGaeBlocks = 2;
#else
constexpr int kGaeBlocks = 3;
#endif

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

// Chunks of sequence b are slots first_slot(b) and following, the one at the sequence's end first. With a null `ticket`
// every sequence is one chunk and its slot is its number.
struct Workspace {
  int32_t* ticket;  // zero before the launch: blocks that have started
  int32_t* ready;   // zero before the launch: whether `map` holds the slot's map
  Map* map;         // what a chunk does to a state
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

using Floats = Pack<float, kQuad>;

// Four tokens of a lane, as they lie in memory; they are walked backwards. Which of them count is a bit for each, kept
// apart: the bits of all strips share a register.
struct Quad {
  Floats reward, value;
};

__device__ inline uint32_t counted_in(uint32_t counted, int strip) {
  return (counted >> (strip * kQuad)) & ((1u << kQuad) - 1u);
}

// Where a warp's tokens lie: strips that end before stop, stop - kStrip, ..., of which those below `begin` do not exist.
struct Range {
  int32_t begin, stop;
  int32_t shift;  // tokens by which a lane's four lie behind a multiple of four
  bool wide;      // whether whole strips move 16 bytes at a time: aligned quads that cover them exist

  __device__ int32_t first(int s) const {  // of a lane's four tokens in strip s
    return stop - s * kStrip - (static_cast<int32_t>(threadIdx.x % 32) + 1) * kQuad;
  }
  __device__ bool whole(int s) const { return wide && stop - (s + 1) * kStrip >= begin; }
};

__device__ inline Range range_before(const Problem& p, int32_t stop, int32_t begin) {
  const int32_t shift = stop & (kQuad - 1), covered = shift != 0 ? stop - shift + kQuad : stop;
  return {begin, stop, shift, p.wide && covered <= p.tokens};
}

// Values k, k + 1, k + 2, k + 3 (0 < k < 4) of a lane's four and those behind them in memory, which the lane below holds;
// of lane 0 they are `edge`.
__device__ inline Floats shifted(const Floats& mine, const Floats& edge, int32_t k) {
  float row[2 * kQuad - 1];
#pragma unroll
  for (int i = 0; i < kQuad; ++i) row[i] = mine.at[i];
#pragma unroll
  for (int i = 0; i < kQuad - 1; ++i) {
    const float below = __shfl_up_sync(kWarp, mine.at[i], 1);
    row[kQuad + i] = threadIdx.x % 32 != 0 ? below : edge.at[i];
  }
#pragma unroll
  for (int i = 0; i < 2 * kQuad - 2; ++i) row[i] = (k & 1) != 0 ? row[i + 1] : row[i];
#pragma unroll
  for (int i = 0; i < kQuad; ++i) row[i] = (k & 2) != 0 ? row[i + 2] : row[i];
  return {{row[0], row[1], row[2], row[3]}};
}

__device__ inline Floats of_last_lane(const Floats& x) {
  return {{__shfl_sync(kWarp, x.at[0], 31), __shfl_sync(kWarp, x.at[1], 31), __shfl_sync(kWarp, x.at[2], 31), 0.f}};
}

__device__ inline uint32_t mask_bits(const uint8_t* p) {
  const auto bytes = load_pack<uint8_t, kQuad>(p);
  uint32_t bits = 0;
#pragma unroll
  for (int i = 0; i < kQuad; ++i) bits |= static_cast<uint32_t>(bytes.at[i] != 0) << i;
  return bits;
}

// The aligned quad that begins `shift` tokens before the lane's four, or those four one by one. Returns what counts.
__device__ inline uint32_t load_quad(const Problem& p, const Range& range, int s, Quad& q) {
  const int32_t first = range.first(s);
  if (range.whole(s)) {
    q = {load_pack<float, kQuad>(p.reward + first - range.shift), load_pack<float, kQuad>(p.value + first - range.shift)};
    return p.mask != nullptr ? mask_bits(p.mask + first - range.shift) : (1u << kQuad) - 1u;
  }
  uint32_t counted = 0;
#pragma unroll
  for (int j = 0; j < kQuad; ++j) {
    const int32_t t = first + j;
    const bool inside = t >= range.begin;
    q.reward.at[j] = inside ? p.reward[t] : 0.f;
    q.value.at[j] = inside ? p.value[t] : 0.f;
    counted |= static_cast<uint32_t>(inside && (p.mask == nullptr || p.mask[t] != 0)) << j;
  }
  return counted;
}

// All strips of a warp. Aligned quads become the lanes' own: the quads of a strip's first lane continue in the last lane
// of the strip before it, those of the first strip in one more quad.
__device__ inline uint32_t load_strips(const Problem& p, const Range& range, Quad (&quad)[kStrips]) {
  uint32_t counted = 0;
#pragma unroll
  for (int s = 0; s < kStrips; ++s) counted |= load_quad(p, range, s, quad[s]) << (s * kQuad);
  if (range.shift == 0 || !range.whole(0)) return counted;
  const int32_t behind = range.stop - range.shift;
  uint32_t own = 0, edges = p.mask != nullptr ? mask_bits(p.mask + behind) : (1u << kQuad) - 1u;
  edges |= __shfl_sync(kWarp, counted, 31) << kQuad;
  const uint32_t below = __shfl_up_sync(kWarp, counted, 1);
#pragma unroll
  for (int s = kStrips - 1; s >= 0; --s) {
    uint32_t bits = counted_in(counted, s);
    if (range.whole(s)) {
      const Quad edge = s > 0 ? Quad{of_last_lane(quad[s - 1].reward), of_last_lane(quad[s - 1].value)}
                              : Quad{load_pack<float, kQuad>(p.reward + behind), load_pack<float, kQuad>(p.value + behind)};
      quad[s] = {shifted(quad[s].reward, edge.reward, range.shift), shifted(quad[s].value, edge.value, range.shift)};
      bits |= counted_in(threadIdx.x % 32 != 0 ? below : edges, s) << kQuad;
      bits = (bits >> range.shift) & ((1u << kQuad) - 1u);
    }
    own |= bits << (s * kQuad);
  }
  return own;
}

// Aligned stores take their first values from this lane and the others from the lane below; the strip's two ends are
// written one by one.
__device__ inline void store_quad(float* to, const Floats& from, const Range& range, int s) {
  const int32_t lane = threadIdx.x % 32, first = range.first(s), ahead = kQuad - range.shift;
  const bool whole = range.whole(s);
  if (whole) {
    if (range.shift == 0) return store_pack<float, kQuad>(to + first, from);
    const Floats both = shifted(from, from, ahead);
    if (lane != 0) store_pack<float, kQuad>(to + first + ahead, both);
  }
#pragma unroll
  for (int j = 0; j < kQuad; ++j) {
    const bool end = lane == 0 ? j >= ahead : lane == 31 && j < ahead;
    if (whole ? end : first + j >= range.begin) to[first + j] = from.at[j];
  }
}

struct Decay {
  float gamma, policy, critic;
};

// What a lane knows before it knows its warp's state, for each strip. It waits in shared memory: registers are scarce.
struct Ahead {
  Pair before[kStrips][kGaeThreads];  // what stands before the lane in the warp
  float next[kStrips][kGaeThreads];   // the value that the lane's first counted token sees
};

// The lane's four tokens as one map, given the next value; the warp's first counted token passes on what enters.
__device__ inline Pair quad_map(const Quad& q, uint32_t counted, const Decay& decay, float next, bool fresh) {
  Pair m{1.f, 0.f, 1.f, 0.f};
#pragma unroll
  for (int j = kQuad - 1; j >= 0; --j) {
    if (((counted >> j) & 1u) == 0) continue;
    const float gain = q.reward.at[j] - q.value.at[j];
    if (fresh) {
      m.bp = m.bc = gain;
    } else {
      const float delta = fmaf(decay.gamma, next, gain);
      m = {decay.policy * m.ap, fmaf(decay.policy, m.bp, delta), decay.critic * m.ac, fmaf(decay.critic, m.bc, delta)};
    }
    fresh = false;
    next = q.value.at[j];
  }
  return m;
}

// Scans the strips of a warp, the one nearest to the sequence's end first. Returns the map of the whole warp; `firsts` has
// a bit for each strip in which no token before the lane counts in the warp.
__device__ inline Map warp_map(const Quad (&quad)[kStrips], uint32_t counted, const Decay& decay, Ahead& ahead,
                                uint32_t& firsts) {
  const int lane = threadIdx.x % 32;
  Pair sum{1.f, 0.f, 1.f, 0.f};
  float next = 0.f;
  bool fresh = true;  // no strip so far had a token that counts
#pragma unroll
  for (int s = 0; s < kStrips; ++s) {
    const uint32_t mine_counted = counted_in(counted, s);
    float last = 0.f;
#pragma unroll
    for (int j = kQuad - 1; j >= 0; --j) last = ((mine_counted >> j) & 1u) != 0 ? quad[s].value.at[j] : last;
    const unsigned lanes = __ballot_sync(kWarp, mine_counted != 0), below = lanes & ((1u << lane) - 1u);
    const float from_below = __shfl_sync(kWarp, last, below != 0 ? 31 - __clz(below) : 0);
    const bool first = fresh && below == 0;
    firsts |= static_cast<uint32_t>(first) << s;
    const float seen = below != 0 ? from_below : next;
    ahead.next[s][threadIdx.x] = seen;
    const Pair mine = warp_scan(quad_map(quad[s], mine_counted, decay, seen, first));
    const Pair before = shuffle(mine, lane > 0 ? lane - 1 : 0);
    ahead.before[s][threadIdx.x] = lane > 0 ? compose(before, sum) : sum;
    sum = compose(shuffle(mine, 31), sum);
    const float from_top = __shfl_sync(kWarp, last, lanes != 0 ? 31 - __clz(lanes) : 0);
    next = lanes != 0 ? from_top : next;
    fresh = fresh && lanes == 0;
  }
  if (fresh) return identity();
  return {sum.ap * decay.policy, sum.ap * decay.gamma, sum.bp, sum.ac * decay.critic, sum.ac * decay.gamma, sum.bc,
          0.f,                   next};
}

// The state behind a lane's tokens of strip s, given the one behind the warp.
__device__ inline State state_of_lane(const Decay& decay, const Ahead& ahead, int s, bool first, const State& behind) {
  if (first) return behind;
  const Pair m = ahead.before[s][threadIdx.x];
  const float enters = decay.gamma * behind.next;
  return {fmaf(m.ap, fmaf(decay.policy, behind.policy, enters), m.bp),
          fmaf(m.ac, fmaf(decay.critic, behind.critic, enters), m.bc), ahead.next[s][threadIdx.x]};
}

// Walks a lane's tokens from the state behind them and writes.
__device__ inline void finish_quad(const Problem& p, const Quad& q, uint32_t counted, const Decay& decay, State at,
                                   const Range& range, int s) {
  Floats advantage, returns;
#pragma unroll
  for (int j = kQuad - 1; j >= 0; --j) {
    if (((counted >> j) & 1u) != 0) {
      const float delta = fmaf(decay.gamma, at.next, q.reward.at[j] - q.value.at[j]);
      at = {fmaf(decay.policy, at.policy, delta), fmaf(decay.critic, at.critic, delta), q.value.at[j]};
    }
    advantage.at[j] = at.policy;
    returns.at[j] = q.value.at[j] + at.critic;
  }
  store_quad(p.advantage, advantage, range, s);
  store_quad(p.returns, returns, range, s);
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
// joins them in a tree over their numbers. Blocks take their slots in the order in which they start, so whoever is waited
// for is running. Reading all of them costs less than one step of a chain from block to block.
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

// One block per chunk.
__global__ void __launch_bounds__(kGaeThreads, kGaeBlocks) scan_chunks(Problem p, Workspace work) {
  __shared__ int32_t ticket;
  __shared__ Map maps[kGaeWarps];
  __shared__ State entering;
  __shared__ Ahead ahead;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const bool planned = work.ticket != nullptr;
  if (planned && threadIdx.x == 0) ticket = atomicAdd(work.ticket, 1);
  __syncthreads();
  const Place at = place_of(p, planned ? ticket : static_cast<int32_t>(blockIdx.x), planned);
  if (at.begin == at.stop) {  // an idle slot, or an empty sequence
    if (planned && threadIdx.x == 0) leave_map(work, at.slot, identity());
    return;
  }
  const Decay decay{p.gamma, p.gamma * p.lambda_policy[at.sequence], p.gamma * p.lambda_critic[at.sequence]};
  const Range range = range_before(p, at.stop - warp * (kStrips * kStrip), at.begin);
  Quad quad[kStrips];
  uint32_t firsts = 0;
  const uint32_t counted = load_strips(p, range, quad);
  const Map mine = warp_map(quad, counted, decay, ahead, firsts);
  if (lane == 0) maps[warp] = mine;
  __syncthreads();
  if (warp == 0) {
    if (planned && lane == 0) {
      Map all = maps[0];
      for (int i = 1; i < kGaeWarps; ++i) all = compose(maps[i], all);
      leave_map(work, at.slot, all);
    }
    const State end{0.f, 0.f, p.bootstrap != nullptr ? p.bootstrap[at.sequence] : 0.f};
    const State state = state_behind(work, at.first, at.slot - at.first, end);
    if (lane == 0) entering = state;
  }
  __syncthreads();
  State behind = entering;
  for (int i = 0; i < warp; ++i) behind = apply(maps[i], behind);
#pragma unroll
  for (int s = 0; s < kStrips; ++s)
    finish_quad(p, quad[s], counted_in(counted, s), decay,
                state_of_lane(decay, ahead, s, ((firsts >> s) & 1u) != 0, behind), range, s);
}

}  // namespace seedthink::cuda
