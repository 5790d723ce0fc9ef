// What changed between two versions of codes, row by row. Memory-bound and free of arithmetic, so it is compiled once.
#include <atomic>
#include <cstring>

#include "common/pool.h"
#include "fp8/fp8.h"

namespace seedthink {
namespace {

constexpr int64_t kGrain = 65536;  // codes for which a second thread pays
constexpr int64_t kFurthest = 255;

bool is_fp8(Dtype dtype) { return dtype == Dtype::f8e4m3 || dtype == Dtype::f8e5m2; }

// Calls changed(column) for the columns in which two rows differ, ascending, eight at a time where they agree.
template <typename Changed>
void compare(const uint8_t* before, const uint8_t* after, int64_t n, const Changed& changed) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    uint64_t a, b;
    std::memcpy(&a, before + i, 8);
    std::memcpy(&b, after + i, 8);
    for (uint64_t differs = a ^ b; differs != 0;) {
      const int byte = __builtin_ctzll(differs) / 8;
      changed(i + byte);
      differs &= ~(uint64_t{0xff} << 8 * byte);
    }
  }
  for (; i < n; ++i)
    if (before[i] != after[i]) changed(i);
}

// Calls emit(gap, code) for the events of one row.
template <typename Emit>
void events_of(const uint8_t* before, const uint8_t* after, int64_t n, const Emit& emit) {
  int64_t next = 0;  // the column behind the last event
  compare(before, after, n, [&](int64_t at) {
    for (; at - next > kFurthest; next += kFurthest + 1) emit(kFurthest, after[next + kFurthest]);
    emit(at - next, after[at]);
    next = at + 1;
  });
}

void check_pair(const View& old_MN, const View& new_MN) {
  ST_CHECK(is_fp8(old_MN.dtype), "old: expected an FP8 dtype, got ", name(old_MN.dtype));
  old_MN.check("old", old_MN.dtype, {-1, -1});
  new_MN.check("new", old_MN.dtype, {old_MN.size[0], old_MN.size[1]});
}

// Calls body(row, its codes in each matrix) for all rows, on all threads.
template <typename Body>
void each_row(const View& old_MN, const View& new_MN, const Body& body) {
  const int64_t M = old_MN.size[0], N = old_MN.size[1];
  parallel(M, 1 + kGrain / (N + 1), [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) body(m, old_MN.as<uint8_t>() + m * N, new_MN.as<uint8_t>() + m * N, N);
  });
}

void check_events(const View& first_M1, const View& gaps, const View& codes, int64_t M) {
  gaps.check("gaps", Dtype::u8, {-1});
  const int64_t count = gaps.size[0];
  codes.check("codes", Dtype::u8, {count});
  first_M1.check("first", Dtype::i64, {M + 1});
  const int64_t* first = first_M1.as<int64_t>();
  ST_CHECK(first[0] == 0 && first[M] == count, "first: must run from 0 to ", count);
  for (int64_t m = 0; m < M; ++m) ST_CHECK(first[m] <= first[m + 1], "first: descends at entry ", m + 1);
}

}  // namespace

void fp8_delta_count(const View& old_MN, const View& new_MN, const View& events_M) {
  check_pair(old_MN, new_MN);
  events_M.check("events", Dtype::i64, {old_MN.size[0]});
  each_row(old_MN, new_MN, [&](int64_t m, const uint8_t* before, const uint8_t* after, int64_t n) {
    int64_t events = 0;
    events_of(before, after, n, [&](int64_t, uint8_t) { ++events; });
    events_M.as<int64_t>()[m] = events;
  });
}

void fp8_delta_write(const View& old_MN, const View& new_MN, const View& first_M1, const View& gaps, const View& codes) {
  check_pair(old_MN, new_MN);
  check_events(first_M1, gaps, codes, old_MN.size[0]);
  const int64_t* first = first_M1.as<int64_t>();
  each_row(old_MN, new_MN, [&](int64_t m, const uint8_t* before, const uint8_t* after, int64_t n) {
    int64_t to = first[m];
    events_of(before, after, n, [&](int64_t gap, uint8_t code) {
      if (to == first[m + 1]) return;  // counted on other matrices
      gaps.as<uint8_t>()[to] = static_cast<uint8_t>(gap);
      codes.as<uint8_t>()[to++] = code;
    });
  });
}

void fp8_delta_apply(const View& first_M1, const View& gaps, const View& codes, const View& codes_MN) {
  ST_CHECK(is_fp8(codes_MN.dtype), "codes: expected an FP8 dtype, got ", name(codes_MN.dtype));
  codes_MN.check("codes", codes_MN.dtype, {-1, -1});
  const int64_t M = codes_MN.size[0], N = codes_MN.size[1];
  check_events(first_M1, gaps, codes, M);
  const int64_t* first = first_M1.as<int64_t>();
  std::atomic<bool> outside{false};
  parallel(M, 1 + kGrain / (N + 1), [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      int64_t next = 0;
      for (int64_t i = first[m]; i < first[m + 1]; ++i) {
        next += gaps.as<uint8_t>()[i];
        if (next >= N) {
          outside.store(true);
          break;
        }
        codes_MN.as<uint8_t>()[m * N + next++] = codes.as<uint8_t>()[i];
      }
    }
  });
  ST_CHECK(!outside.load(), "gaps: an event lies behind the last of ", N, " columns");
}

}  // namespace seedthink
