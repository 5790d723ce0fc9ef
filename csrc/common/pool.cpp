#include "common/pool.h"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <vector>

namespace seedthink {
namespace {

// Spinning this long for the next loop costs less than a futex wake-up between the operations of one decode step, and
// is short enough to leave the core to other processes (Ray, verifiers) as soon as the step is over.
constexpr int kSpins = 2000;

struct Job {
  detail::Body body = nullptr;
  void* context = nullptr;
  int64_t count = 0;
  int64_t grain = 1;
  int helpers = 0;  // most workers that may join the caller
};

class Pool {
 public:
  explicit Pool(int count) {
    for (int i = 1; i < count; ++i) workers_.emplace_back([this] { serve(); });
  }

  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
      epoch_.fetch_add(1);
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
  }

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  void run(const Job& job) {
    std::lock_guard<std::mutex> one_at_a_time(run_);
    job_ = job;
    next_.store(0, std::memory_order_relaxed);
    joined_.store(0, std::memory_order_relaxed);
    open_.store(true);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      epoch_.fetch_add(1, std::memory_order_release);
    }
    if (sleeping_.load() > 0) {
      keep_off(sched_getcpu());
      wake_.notify_all();
    }
    work();
    // Every chunk is handed out. A worker that is still asleep is not waited for: it finds the job closed. The order
    // (close, then count) against a worker's (count itself, then look) leaves no gap between the two.
    open_.store(false);
    for (int spin = 0; entered_.load() != 0; ++spin) {
      if (spin > kSpins) sched_yield();
      __builtin_ia32_pause();
    }
  }

 private:
  void work() {
    for (;;) {
      const int64_t begin = next_.fetch_add(job_.grain, std::memory_order_relaxed);
      if (begin >= job_.count) return;
      const int64_t end = begin + job_.grain < job_.count ? begin + job_.grain : job_.count;
      job_.body(job_.context, begin, end);
    }
  }

  void serve();

  // Linux likes to wake a worker on the core of whoever wakes it. There the two take turns, for milliseconds, until
  // the next balancing tick: slower than no worker at all. So workers may run anywhere but on the caller's core.
  void keep_off(int core) {
    cpu_set_t allowed;
    if (core == avoided_ || core < 0 || sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
    avoided_ = core;
    CPU_CLR(core, &allowed);
    if (CPU_COUNT(&allowed) == 0) return;
    for (auto& worker : workers_) pthread_setaffinity_np(worker.native_handle(), sizeof allowed, &allowed);
  }

  int avoided_ = -1;
  std::vector<std::thread> workers_;
  std::mutex run_, mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> epoch_{0};
  std::atomic<int64_t> next_{0};
  std::atomic<int> entered_{0}, sleeping_{0}, joined_{0};
  std::atomic<bool> open_{false};
  bool stop_ = false;
  Job job_;
};

thread_local bool inside = false;

void Pool::serve() {
  inside = true;
  uint64_t seen = 0;
  for (;;) {
    for (int spin = 0; spin < kSpins && epoch_.load(std::memory_order_acquire) == seen; ++spin) __builtin_ia32_pause();
    if (epoch_.load(std::memory_order_acquire) == seen) {
      std::unique_lock<std::mutex> lock(mutex_);
      sleeping_.fetch_add(1);
      wake_.wait(lock, [&] { return epoch_.load() != seen; });
      sleeping_.fetch_sub(1);
    }
    seen = epoch_.load(std::memory_order_acquire);
    if (stop_) return;
    entered_.fetch_add(1);
    if (open_.load() && joined_.fetch_add(1) < job_.helpers) work();
    entered_.fetch_sub(1);
  }
}

int usable_cores() {
  if (const char* text = std::getenv("OMP_NUM_THREADS")) {
    const int count = std::atoi(text);
    if (count > 0) return count;
  }
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
  return 1;
}

int wanted = 0;
Pool* pool = nullptr;
std::mutex guard;

// A forked child has none of the parent's threads: it starts a pool of its own at first use (the old one is leaked).
void forget() {
  pool = nullptr;
  new (&guard) std::mutex;
  inside = false;
}

Pool& instance() {
  std::lock_guard<std::mutex> lock(guard);
  static const int once = pthread_atfork(nullptr, nullptr, forget);
  (void)once;
  if (wanted == 0) wanted = usable_cores();
  if (pool == nullptr) pool = new Pool(wanted);
  return *pool;
}

}  // namespace

int threads() {
  std::lock_guard<std::mutex> lock(guard);
  if (wanted == 0) wanted = usable_cores();
  return wanted;
}

void set_threads(int count) {
  std::lock_guard<std::mutex> lock(guard);
  if (count == wanted && pool != nullptr) return;
  delete pool;
  pool = nullptr;
  wanted = count < 1 ? 1 : count;
}

namespace detail {

void run(int64_t count, int64_t grain, void* context, Body body, int limit) {
  if (count <= 0) return;
  if (grain < 1) grain = 1;
  const int all = threads(), most = limit > 0 && limit < all ? limit : all;
  if (inside || count <= grain || most == 1) {
    body(context, 0, count);
    return;
  }
  inside = true;
  struct Leave {
    ~Leave() { inside = false; }
  } leave;
  instance().run({body, context, count, grain, most - 1});
}

}  // namespace detail
}  // namespace seedthink
