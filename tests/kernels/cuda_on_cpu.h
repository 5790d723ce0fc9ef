// Runs CUDA kernels without a device. Include this before a *.cuh file: the threads of a block are coroutines that take
// turns at barriers and at the exchanges of a warp; blocks run one after the other. Exact for what a kernel computes,
// silent about races: threads never run at the same time.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#define __device__
#define __global__
#define __host__
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(...)

using std::max;
using std::min;

struct Index {
  unsigned x = 0, y = 0, z = 0;
};
static Index threadIdx, blockIdx, blockDim, gridDim;

namespace on_cpu {

constexpr int kStack = 1 << 16, kMost = 1024;

// A barrier of threads that are still alive.
struct Meeting {
  int alive = 0, arrived = 0;
  unsigned turn = 0;
};

struct Thread {
  ucontext_t context;
  std::vector<char> stack;
  bool done = true;
  uint32_t word = 0;  // what it shows the others of its warp
};

inline Thread thread[kMost];
inline Meeting block, warp[kMost / 32];
inline ucontext_t scheduler;
inline unsigned current = 0;
inline std::function<void()> kernel;

inline void open(Meeting& meeting) {
  if (meeting.arrived == 0 || meeting.arrived < meeting.alive) return;
  meeting.arrived = 0;
  ++meeting.turn;
}
inline void meet(Meeting& meeting) {
  const unsigned turn = meeting.turn, me = current;
  ++meeting.arrived;
  open(meeting);
  while (meeting.turn == turn) swapcontext(&thread[me].context, &scheduler);
}
inline Meeting& my_warp() { return warp[current / 32]; }

inline void enter() {
  kernel();
  thread[current].done = true;
  for (Meeting* meeting : {&block, &my_warp()}) {
    --meeting->alive;
    open(*meeting);
  }
  swapcontext(&thread[current].context, &scheduler);
}

inline void run_block(unsigned threads) {
  block = {static_cast<int>(threads), 0, 0};
  for (unsigned w = 0; w < (threads + 31) / 32; ++w) warp[w] = {static_cast<int>(min(32u, threads - 32 * w)), 0, 0};
  for (unsigned t = 0; t < threads; ++t) {
    Thread& each = thread[t];
    each.stack.resize(kStack);
    each.done = false;
    getcontext(&each.context);
    each.context.uc_stack.ss_sp = each.stack.data();
    each.context.uc_stack.ss_size = kStack;
    makecontext(&each.context, enter, 0);
  }
  for (bool busy = true; busy;) {
    busy = false;
    for (unsigned t = 0; t < threads; ++t)
      if (!thread[t].done) {
        current = threadIdx.x = t;
        swapcontext(&scheduler, &thread[t].context);
        busy = busy || !thread[t].done;
      }
  }
}

inline void launch(unsigned grid, unsigned threads, std::function<void()> body) {
  kernel = std::move(body);
  gridDim.x = grid;
  blockDim.x = threads;
  for (blockIdx.x = 0; blockIdx.x < grid; ++blockIdx.x) run_block(threads);
}

// Every lane shows a word; `choose` says whose word a lane takes away.
template <typename T, typename F>
T exchange(T mine, const F& choose) {
  static_assert(sizeof(T) == 4);
  const unsigned me = current, lane = me % 32, base = me - lane;
  std::memcpy(&thread[me].word, &mine, 4);
  meet(my_warp());
  const unsigned from = choose(lane);
  T theirs = mine;
  if (from < 32 && base + from < blockDim.x) std::memcpy(&theirs, &thread[base + from].word, 4);
  meet(my_warp());
  return theirs;
}

template <typename F>
uint32_t fold(uint32_t mine, uint32_t start, const F& join) {
  const unsigned me = current, base = me - me % 32;
  thread[me].word = mine;
  meet(my_warp());
  uint32_t all = start;
  for (unsigned i = 0; i < 32 && base + i < blockDim.x; ++i) all = join(all, thread[base + i].word, i);
  meet(my_warp());
  return all;
}

inline double worst(double so_far, double difference) { return difference <= so_far ? so_far : difference; }  // keeps NaN

// Ends the program with a sentence where a check fails.
inline void expect(bool holds, const char* what) {
  if (holds) return;
  std::printf("not so: %s\n", what);
  std::exit(1);
}

}  // namespace on_cpu

inline void __syncthreads() { on_cpu::meet(on_cpu::block); }
inline void __syncwarp(unsigned = ~0u) { on_cpu::meet(on_cpu::my_warp()); }
inline void __threadfence() {}

template <typename T>
T __shfl_sync(unsigned, T x, int lane) {
  return on_cpu::exchange(x, [&](unsigned) { return static_cast<unsigned>(lane) % 32; });
}
template <typename T>
T __shfl_up_sync(unsigned, T x, unsigned distance) {
  return on_cpu::exchange(x, [&](unsigned lane) { return lane - distance; });
}
template <typename T>
T __shfl_down_sync(unsigned, T x, unsigned distance) {
  return on_cpu::exchange(x, [&](unsigned lane) { return lane + distance; });
}
template <typename T>
T __shfl_xor_sync(unsigned, T x, int mask) {
  return on_cpu::exchange(x, [&](unsigned lane) { return lane ^ static_cast<unsigned>(mask); });
}
inline unsigned __ballot_sync(unsigned, bool vote) {
  return on_cpu::fold(vote, 0, [](uint32_t all, uint32_t one, unsigned lane) { return all | (one << lane); });
}
inline unsigned __reduce_max_sync(unsigned, unsigned x) {
  return on_cpu::fold(x, 0, [](uint32_t all, uint32_t one, unsigned) { return std::max(all, one); });
}
inline int __reduce_max_sync(unsigned, int x) {
  const auto join = [](uint32_t all, uint32_t one, unsigned) {
    return static_cast<uint32_t>(std::max(static_cast<int>(all), static_cast<int>(one)));
  };
  return static_cast<int>(on_cpu::fold(static_cast<uint32_t>(x), 0x80000000u, join));
}
inline unsigned __reduce_min_sync(unsigned, unsigned x) {
  return on_cpu::fold(x, ~0u, [](uint32_t all, uint32_t one, unsigned) { return std::min(all, one); });
}
inline unsigned __reduce_add_sync(unsigned, unsigned x) {
  return on_cpu::fold(x, 0, [](uint32_t all, uint32_t one, unsigned) { return all + one; });
}

template <typename T>
T atomicAdd(T* to, T by) {
  const T old = *to;
  *to = old + by;
  return old;
}
template <typename T>
T atomicOr(T* to, T bits) {
  const T old = *to;
  *to = old | bits;
  return old;
}
template <typename T>
T atomicMin(T* to, T x) {
  const T old = *to;
  *to = std::min(old, x);
  return old;
}

template <typename T>
T __ldg(const T* p) {
  return *p;
}
template <typename T>
T __ldcg(const T* p) {
  return *p;
}
template <typename T>
void __stcs(T* p, T x) {
  *p = x;
}
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline unsigned __brev(unsigned x) {
  unsigned y = 0;
  for (int i = 0; i < 32; ++i) y |= ((x >> i) & 1u) << (31 - i);
  return y;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline float __uint_as_float(unsigned u) {
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
inline unsigned __float_as_uint(float f) {
  unsigned u;
  std::memcpy(&u, &f, 4);
  return u;
}
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) {
  const float sum = a + b;
  return sum == sum ? sum : __uint_as_float(0x7fffffffu);  // a device has one NaN
}
inline float __fsub_rn(float a, float b) { return a - b; }
inline float rsqrtf(float x) { return 1.f / std::sqrt(x); }
