// Runs the device code of csrc/scan/gae_kernels.cuh without a device: the threads of a block are coroutines that take
// turns at every barrier and shuffle. Prints the largest difference to the serial recurrence for each case.
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <random>
#include <vector>

#define __device__
#define __global__
#define __shared__ static
#define __launch_bounds__(threads)

using std::max;
using std::min;

struct Index {
  unsigned x = 0;
};
static Index threadIdx, blockIdx, blockDim;

namespace block {
constexpr int kStack = 1 << 16;
ucontext_t scheduler, thread[256];
std::vector<char> stack[256];
bool done[256];
int current = 0;
float shuffled[256];
std::function<void()> kernel;

void wait() {
  const int me = current;
  swapcontext(&thread[me], &scheduler);
}
void enter() {
  kernel();
  done[current] = true;
  wait();
}
void launch(unsigned grid, unsigned threads, std::function<void()> body) {
  kernel = std::move(body);
  blockDim.x = threads;
  for (blockIdx.x = 0; blockIdx.x < grid; ++blockIdx.x) {
    for (unsigned t = 0; t < threads; ++t) {
      stack[t].resize(kStack);
      done[t] = false;
      getcontext(&thread[t]);
      thread[t].uc_stack.ss_sp = stack[t].data();
      thread[t].uc_stack.ss_size = kStack;
      makecontext(&thread[t], enter, 0);
    }
    for (bool busy = true; busy;) {
      busy = false;
      for (unsigned t = 0; t < threads; ++t)
        if (!done[t]) {
          current = threadIdx.x = t;
          swapcontext(&scheduler, &thread[t]);
          busy |= !done[t];
        }
    }
  }
}
}  // namespace block

static void __syncthreads() { block::wait(); }
static float __shfl_up_sync(unsigned, float x, int distance) {
  const int me = block::current;
  block::shuffled[me] = x;
  block::wait();
  const float y = me % 32 >= distance ? block::shuffled[me - distance] : x;
  block::wait();
  return y;
}

#include "scan/gae_kernels.cuh"

using namespace seedthink::cuda;

static double difference(const std::vector<int>& lengths, bool masked, bool planned) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<float> uniform;
  std::vector<int> bounds{0};
  for (const int length : lengths) bounds.push_back(bounds.back() + length);
  const int T = bounds.back(), B = static_cast<int>(lengths.size());
  std::vector<float> reward(T), value(T), policy(B), critic(B), bootstrap(B), advantage(T, NAN), returns(T, NAN);
  std::vector<unsigned char> mask(T, 1);
  for (float& x : reward) x = normal(random);
  for (float& x : value) x = normal(random);
  for (float& x : bootstrap) x = normal(random);
  for (int b = 0; b < B; ++b) policy[b] = 0.9f + 0.1f * uniform(random), critic[b] = 1.f - 0.1f * policy[b];
  if (masked)
    for (int t = 0; t < T; ++t) mask[t] = uniform(random) > 0.3f && !(t > 50 && t < 2000);
  const Problem problem{reward.data(),    value.data(), policy.data(),    critic.data(),  bootstrap.data(),
                        masked ? mask.data() : nullptr, bounds.data(), advantage.data(), returns.data(), 0.99f, B};
  const int slots = B + T / kChunk;
  std::vector<int> first(B + 1);
  std::vector<Map> map(slots);
  std::vector<State> state(slots);
  Workspace work{nullptr, nullptr, nullptr};
  if (planned) {
    work = {first.data(), map.data(), state.data()};
    block::launch(1, kThreads, [&] { plan_chunks(bounds.data(), B, first.data()); });
    block::launch(slots, kThreads, [&] { scan_chunks<false>(problem, work); });
    block::launch((B + 127) / 128, 128, [&] { carry_states(problem, work); });
    block::launch(slots, kThreads, [&] { scan_chunks<true>(problem, work); });
  } else {
    block::launch(B, kThreads, [&] { scan_chunks<false>(problem, work); });
  }
  double worst = 0;
  for (int b = 0; b < B; ++b) {
    double a = 0, c = 0, next = bootstrap[b];
    for (int t = bounds[b + 1] - 1; t >= bounds[b]; --t) {
      if (mask[t]) {
        const double delta = reward[t] + double{problem.gamma} * next - value[t];
        a = delta + double{problem.gamma} * policy[b] * a;
        c = delta + double{problem.gamma} * critic[b] * c;
        next = value[t];
      }
      const double here = max(std::fabs(a - advantage[t]), std::fabs(value[t] + c - returns[t]));
      if (!(here <= worst)) worst = here;  // also takes NaN: a token that nobody wrote
    }
  }
  return worst;
}

int main() {
  for (const bool masked : {false, true}) {
    for (const bool planned : {false, true})
      std::printf("%g\n", difference({1, 0, 5, 0, 1024, 1025, 3}, masked, planned));
    std::printf("%g\n", difference({0, 4097, 10, 9000, 0}, masked, true));
  }
}
