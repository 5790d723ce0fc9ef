// Launch settings that a tuner may move between steps: how a loop is cut and by how many threads, never what it computes.
//
// NOTE: a kernel takes from here only what cannot change a bit of its result. Where the cut of a loop fixes the order of
// a sum (blocks of a norm's backward, chunks of a long GAE sequence), it stays a constant of the kernel.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <utility>

#include "common/pool.h"

namespace seedthink {

enum class Op { attend, attend_paged, experts, experts_grad, gae, heads, linear, linear_grad, logprob, norm, pages, rope,
                sampling, swiglu, count };

// What holds for one call. `grain` and `block` are the kernel's own unless a tuner has set others.
struct Launch {
  Op op;
  int threads;    // most threads, the caller included
  int64_t grain;  // work that a thread takes at a time, in the unit of the kernel that asks
  int64_t block;  // rows of one block or tile, where the loop has them

  // Rows of `width` elements that make up one grain.
  int64_t rows(int64_t width) const { return 1 + grain / (width + 1); }
};

Launch tuned(Op op, int64_t grain, int64_t block = 0);

// Python's side, by name. 0 means the built-in value. A call that is under way may see old and new values mixed, which
// changes its speed alone. std::invalid_argument on an unknown name or a value out of range.
void tune(const std::string& op, int threads, int64_t grain, int64_t block);
std::map<std::string, std::tuple<int, int64_t, int64_t>> tuning();

// Times the loops of an operation while it is watched. `watched` returns (loops, seconds) since it was last asked.
void watch(const std::string& op, bool on);
std::pair<int64_t, double> watched(const std::string& op);

// The rows of the largest of E experts over the mean, as the last call of the experts had them: a load that Python does
// not see in generation.
void note_imbalance(const int32_t* offsets_E1, int64_t E);
double imbalance();

// "family=hash,..." of the sources this library was built from: measured settings belong to them.
const char* sources();

namespace detail {

extern std::atomic<uint32_t> watched_ops;  // one bit per Op
void add_seconds(Op op, std::chrono::steady_clock::duration elapsed);

class Stopwatch {
 public:
  explicit Stopwatch(Op op) : op_(op), on_(watched_ops.load(std::memory_order_relaxed) >> static_cast<int>(op) & 1) {
    if (on_) began_ = std::chrono::steady_clock::now();
  }
  ~Stopwatch() {
    if (on_) add_seconds(op_, std::chrono::steady_clock::now() - began_);
  }

 private:
  Op op_;
  bool on_;
  std::chrono::steady_clock::time_point began_;
};

}  // namespace detail

// `parallel` of pool.h on at most launch.threads threads.
template <typename F>
void parallel(const Launch& launch, int64_t count, int64_t grain, const F& body) {
  const detail::Stopwatch stopwatch(launch.op);
  detail::run(count, grain, const_cast<F*>(&body),
              [](void* context, int64_t begin, int64_t end) { (*static_cast<F*>(context))(begin, end); }, launch.threads);
}

}  // namespace seedthink
