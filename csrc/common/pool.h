// A small thread pool for data-parallel loops: static ownership, no allocation per call, safe after fork.
#pragma once

#include <cstdint>

namespace seedthink {

// The number of threads a loop may use, the caller included. Default: OMP_NUM_THREADS, else the usable cores.
int threads();
void set_threads(int count);

namespace detail {
using Body = void (*)(void* context, int64_t begin, int64_t end);
// On at most `limit` threads, the caller included; 0 sets no limit.
void run(int64_t count, int64_t grain, void* context, Body body, int limit = 0);
}  // namespace detail

// Calls body(begin, end) over [0, count) in chunks of `grain`, on all threads; chunks are handed out dynamically, so a
// body may not let its result depend on which thread ran it. Nested calls run inline.
template <typename F>
void parallel(int64_t count, int64_t grain, const F& body) {
  detail::run(count, grain, const_cast<F*>(&body),
              [](void* context, int64_t begin, int64_t end) { (*static_cast<F*>(context))(begin, end); });
}

}  // namespace seedthink
