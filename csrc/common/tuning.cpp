#include "common/tuning.h"

#include <algorithm>

#include "common/check.h"

#ifndef ST_SOURCES
#define ST_SOURCES ""  // built without CMake: tables of other builds are not taken for its own
#endif

namespace seedthink {
namespace {

constexpr int kOps = static_cast<int>(Op::count);
constexpr const char* kNames[kOps] = {"attend", "attend_paged", "experts", "experts_grad", "gae",
                                      "heads",  "linear",       "linear_grad", "logprob",  "norm",
                                      "pages",  "rope",         "sampling",    "swiglu"};
constexpr int64_t kLargestBlock = 4096;  // scratch memory grows with a block's rows

struct Setting {
  std::atomic<int> threads{0};
  std::atomic<int64_t> grain{0}, block{0};
  std::atomic<int64_t> loops{0}, nanoseconds{0};
};
Setting settings[kOps];
std::atomic<double> largest_over_mean{1.0};

int index_of(const std::string& op) {
  const auto found = std::find(kNames, kNames + kOps, op);
  ST_CHECK(found != kNames + kOps, "op: '", op, "' has no launch settings");
  return static_cast<int>(found - kNames);
}

}  // namespace

namespace detail {

std::atomic<uint32_t> watched_ops{0};

void add_seconds(Op op, std::chrono::steady_clock::duration elapsed) {
  Setting& setting = settings[static_cast<int>(op)];
  setting.loops.fetch_add(1, std::memory_order_relaxed);
  setting.nanoseconds.fetch_add(std::chrono::duration_cast<std::chrono::nanoseconds>(elapsed).count(),
                                std::memory_order_relaxed);
}

}  // namespace detail

Launch tuned(Op op, int64_t grain, int64_t block) {
  const Setting& setting = settings[static_cast<int>(op)];
  const int all = threads(), some = setting.threads.load(std::memory_order_relaxed);
  const int64_t its_grain = setting.grain.load(std::memory_order_relaxed);
  const int64_t its_block = setting.block.load(std::memory_order_relaxed);
  return {op, some > 0 ? std::min(some, all) : all, its_grain > 0 ? its_grain : grain, its_block > 0 ? its_block : block};
}

void tune(const std::string& op, int threads, int64_t grain, int64_t block) {
  const int i = index_of(op);
  ST_CHECK(threads >= 0, "threads: ", threads, " is below 0");
  ST_CHECK(grain >= 0, "grain: ", grain, " is below 0");
  ST_CHECK(block >= 0 && block <= kLargestBlock, "block: ", block, " is outside 0 to ", kLargestBlock);
  settings[i].threads.store(threads, std::memory_order_relaxed);
  settings[i].grain.store(grain, std::memory_order_relaxed);
  settings[i].block.store(block, std::memory_order_relaxed);
}

std::map<std::string, std::tuple<int, int64_t, int64_t>> tuning() {
  std::map<std::string, std::tuple<int, int64_t, int64_t>> all;
  for (int i = 0; i < kOps; ++i)
    all[kNames[i]] = {settings[i].threads.load(), settings[i].grain.load(), settings[i].block.load()};
  return all;
}

void watch(const std::string& op, bool on) {
  const uint32_t bit = 1u << index_of(op);
  if (on)
    detail::watched_ops.fetch_or(bit);
  else
    detail::watched_ops.fetch_and(~bit);
}

std::pair<int64_t, double> watched(const std::string& op) {
  Setting& setting = settings[index_of(op)];
  return {setting.loops.exchange(0), static_cast<double>(setting.nanoseconds.exchange(0)) * 1e-9};
}

void note_imbalance(const int32_t* offsets_E1, int64_t E) {
  int32_t largest = 0;
  for (int64_t e = 0; e < E; ++e) largest = std::max(largest, offsets_E1[e + 1] - offsets_E1[e]);
  if (largest > 0)
    largest_over_mean.store(static_cast<double>(largest) * static_cast<double>(E) / offsets_E1[E],
                            std::memory_order_relaxed);
}
double imbalance() { return largest_over_mean.load(std::memory_order_relaxed); }

const char* sources() { return ST_SOURCES; }

}  // namespace seedthink
