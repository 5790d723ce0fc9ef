// The vocabulary of the CUDA kernels: wide loads, bfloat16, warp reductions by a fixed tree, blocks that wait for blocks.
// tests/kernels/cuda_on_cpu.h gives the CUDA names used here a meaning on the CPU, so everything but the few lines of
// inline assembly is tested without a device.
#pragma once

#include <cstdint>

#include "common/view.h"

namespace seedthink::cuda {

constexpr unsigned kWarp = ~0u;  // every lane takes part

// N values that move as one load or store of their size; the address must be a multiple of it.
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  T at[N];
};

template <typename T, int N>
__device__ inline Pack<T, N> load_pack(const T* p) {
  return *reinterpret_cast<const Pack<T, N>*>(p);
}
template <typename T, int N>
__device__ inline void store_pack(T* p, const Pack<T, N>& pack) {
  *reinterpret_cast<Pack<T, N>*>(p) = pack;
}

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(bf16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }

// To nearest even; NaN stays NaN.
template <typename T>
__device__ inline T narrow(float x);
template <>
__device__ inline float narrow<float>(float x) {
  return x;
}
template <>
__device__ inline bf16 narrow<bf16>(float x) {
#ifdef __CUDA_ARCH__
  bf16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
#else
  const uint32_t u = __float_as_uint(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((u >> 16) | 0x40u)};
  return {static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
#endif
}

// Reductions over groups of `lanes` neighbours (a power of two), by a butterfly: every lane gets the same bits.
template <int lanes = 32>
__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int d = lanes / 2; d > 0; d /= 2) x += __shfl_xor_sync(kWarp, x, d);
  return x;
}
template <int lanes = 32>
__device__ inline float warp_max(float x) {
#pragma unroll
  for (int d = lanes / 2; d > 0; d /= 2) x = fmaxf(x, __shfl_xor_sync(kWarp, x, d));
  return x;
}

// From global to shared memory with no register between, 4 or 16 bytes at a multiple of that. After await_copies, what
// the calling thread asked for is there.
template <int bytes>
__device__ inline void copy_async(void* shared, const void* global) {
  static_assert(bytes == 4 || bytes == 16);
#ifdef __CUDA_ARCH__
  const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  if constexpr (bytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(global) : "memory");
#else
  using Bytes = Pack<uint8_t, bytes>;  // so that the CPU, too, can tell a wrong address
  *static_cast<Bytes*>(shared) = *static_cast<const Bytes*>(global);
#endif
}
__device__ inline void await_copies() {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// A kernel that is launched as a programmatic dependent starts as soon as every block of the one before it has called
// start_next_kernel; what that one writes is there after await_kernel_before. Without such a launch, and before Hopper,
// both are nothing.
__device__ inline void start_next_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ inline void await_kernel_before() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// What one block leaves for others of the same launch: written by one thread, then announced.
__device__ inline void announce(int32_t* flag) {
  __threadfence();
  *const_cast<volatile int32_t*>(flag) = 1;
}
__device__ inline void await(const int32_t* flag) {
  while (*const_cast<const volatile int32_t*>(flag) == 0) {
  }
  __threadfence();
}

// A barrier of the blocks of a cluster, in two halves; cluster_leave() is the first half where no block waits for what
// others wrote. And a word of another block's shared memory, at the place of `mine` in this one. Before sm_90 a cluster is
// one block.
__device__ inline void cluster_arrive() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#endif
}
__device__ inline void cluster_leave() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
#endif
}
__device__ inline void cluster_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#else
  __syncthreads();
#endif
}
__device__ inline uint32_t word_of_block(const uint32_t* mine, int32_t block) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  uint32_t at, word;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(at)
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(mine))), "r"(block));
  asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(word) : "r"(at) : "memory");
  return word;
#else
  return *mine;
#endif
}

}  // namespace seedthink::cuda
