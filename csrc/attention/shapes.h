// What attention's entry points check, and how a packed batch is cut into tasks.
#pragma once

#include <algorithm>
#include <vector>

#include "attention/tile.h"
#include "common/view.h"

namespace seedthink::ST_ISA::attention {

constexpr int64_t kMaxHeadDim = 256;

inline void check_heads(int64_t N, int64_t n, int64_t H) {
  ST_CHECK(n > 0 && N % n == 0, "q: has ", N, " heads, expected a multiple of the ", n, " key-value heads");
  ST_CHECK(H > 0 && H % kLanes == 0 && H <= kMaxHeadDim, "q: head width is ", H, ", expected a multiple of 16 up to ",
           kMaxHeadDim);
}

// bounds [B + 1]: from 0 to `total`, never falling.
inline void check_bounds(const char* what, const View& bounds_B1, int64_t B, int64_t total) {
  bounds_B1.check(what, Dtype::i32, {B + 1});
  const int32_t* bounds = bounds_B1.as<int32_t>();
  ST_CHECK(bounds[0] == 0, what, ": starts at ", bounds[0], ", expected 0");
  for (int64_t b = 0; b < B; ++b)
    ST_CHECK(bounds[b] <= bounds[b + 1], what, ": falls from ", bounds[b], " to ", bounds[b + 1], " at entry ", b + 1);
  ST_CHECK(bounds[B] == total, what, ": ends at ", bounds[B], ", expected the ", total, " rows of the data");
}

// prefix [B]: the sequence whose rows stand before a sequence's own, which itself has none before it; or -1.
inline void check_prefix(const View& prefix_B, int64_t B) {
  prefix_B.check("prefix", Dtype::i32, {B});
  const int32_t* prefix = prefix_B.as<int32_t>();
  for (int64_t b = 0; b < B; ++b)
    ST_CHECK(prefix[b] == -1 || (prefix[b] >= 0 && prefix[b] < B && prefix[prefix[b]] == -1), "prefix: entry ", b, " is ",
             prefix[b], ", expected -1 or a sequence without a prefix");
}

inline void check_packed(const View& q_TNH, const View& k_TnH, const View& v_TnH, const View& cu_seqlens_B1,
                         const View& prefix_B) {
  q_TNH.check("q", Dtype::f32, {-1, -1, -1});
  k_TnH.check("k", Dtype::f32, {q_TNH.size[0], -1, q_TNH.size[2]});
  v_TnH.check("v", Dtype::f32, {q_TNH.size[0], k_TnH.size[1], q_TNH.size[2]});
  check_heads(q_TNH.size[1], k_TnH.size[1], q_TNH.size[2]);
  cu_seqlens_B1.check("cu_seqlens", Dtype::i32, {-1});
  ST_CHECK(cu_seqlens_B1.size[0] >= 1, "cu_seqlens: needs at least one entry");
  check_bounds("cu_seqlens", cu_seqlens_B1, cu_seqlens_B1.size[0] - 1, q_TNH.size[0]);
  check_prefix(prefix_B, cu_seqlens_B1.size[0] - 1);
}

inline void check_pages(const View& k_pages, const View& v_pages, int64_t n, int64_t H) {
  ST_CHECK(k_pages.dtype == Dtype::f32 || k_pages.dtype == Dtype::bf16, "k_pages: expected dtype float32 or bfloat16, got ",
           name(k_pages.dtype));
  k_pages.check("k_pages", k_pages.dtype, {-1, n, H, kPage});
  v_pages.check("v_pages", k_pages.dtype, {k_pages.size[0], n, kPage, H});
}

// Where a sequence's keys are: `shared` rows from `prefix` on, then its own rows [begin, end).
struct Sequence {
  int64_t prefix, shared, begin, end;

  int64_t keys() const { return shared + end - begin; }
  int64_t row(int64_t position) const { return position < shared ? prefix + position : begin + position - shared; }
};

inline Sequence sequence_of(const View& cu_seqlens_B1, const View& prefix_B, int64_t b) {
  const int32_t* bounds = cu_seqlens_B1.as<int32_t>();
  const int64_t before = prefix_B.as<int32_t>()[b];
  if (before < 0) return {0, 0, bounds[b], bounds[b + 1]};
  return {bounds[before], bounds[before + 1] - bounds[before], bounds[b], bounds[b + 1]};
}

// Query positions [begin, end) of a sequence, its own ones.
struct Span {
  int64_t b, begin, end;
  Sequence of;
};

// Spans of at most `range` positions, the longest walks first so that threads finish together.
inline std::vector<Span> cut(const View& cu_seqlens_B1, const View& prefix_B, int64_t range) {
  std::vector<Span> spans;
  for (int64_t b = 0; b + 1 < cu_seqlens_B1.size[0]; ++b) {
    const Sequence of = sequence_of(cu_seqlens_B1, prefix_B, b);
    for (int64_t at = of.shared; at < of.keys(); at += range)
      spans.push_back({b, at, std::min<int64_t>(at + range, of.keys()), of});
  }
  std::stable_sort(spans.begin(), spans.end(),
                   [](const Span& a, const Span& b) { return a.end * (a.end - a.begin) > b.end * (b.end - b.begin); });
  return spans;
}

}  // namespace seedthink::ST_ISA::attention
