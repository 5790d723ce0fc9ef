// The k largest of a row, of equals the smaller index, in ascending order of index; any k, any length, no branch on the
// values. Each lane keeps the eight largest of what it has seen in order, by networks of max and min; then the lanes are
// merged two by two. The k-th largest is a threshold: what lies above it is chosen, and of its equals as many as are
// missing.
#pragma once

#include "common/simd.h"
#include "linear/gemm.h"

namespace seedthink::ST_ISA {

constexpr float kLowest = -__builtin_inff();
constexpr int kBest = 8;  // values kept in order

inline uint64_t above_bits(vf a, vf b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ);
#endif
  return signs(above(a, b));
}
inline uint64_t level_bits(vf a, vf b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_EQ_OQ);
#endif
  return signs(level(a, b));
}

// The vector at p, of which n lanes exist, if any; the others read as the lowest value.
inline vf load_or_lowest(const float* p, int64_t n) {
  if (n >= kLanes) return load(p);
  return n > 0 ? load_n(p, static_cast<int>(n), kLowest) : splat(kLowest);
}

struct Best {
  vf v[kBest];  // in each lane descending
};

inline void order(vf& high, vf& low) {
  const vf a = high, b = low;
  high = max(a, b);
  low = min(a, b);
}

// Orders eight values a lane: the network of 19 exchanges in 6 steps (Knuth, volume 3, section 5.3.4).
inline void sort(Best& x) {
  vf(&v)[kBest] = x.v;
  order(v[0], v[2]), order(v[1], v[3]), order(v[4], v[6]), order(v[5], v[7]);
  order(v[0], v[4]), order(v[1], v[5]), order(v[2], v[6]), order(v[3], v[7]);
  order(v[0], v[1]), order(v[2], v[3]), order(v[4], v[5]), order(v[6], v[7]);
  order(v[2], v[4]), order(v[3], v[5]);
  order(v[1], v[4]), order(v[3], v[6]);
  order(v[1], v[2]), order(v[3], v[4]), order(v[5], v[6]);
}

// a becomes the eight largest of a and b: one against the other backwards is bitonic, three halvings order it.
inline void merge(Best& a, const Best& b) {
  vf(&v)[kBest] = a.v;
  v[0] = max(v[0], b.v[7]), v[1] = max(v[1], b.v[6]), v[2] = max(v[2], b.v[5]), v[3] = max(v[3], b.v[4]);
  v[4] = max(v[4], b.v[3]), v[5] = max(v[5], b.v[2]), v[6] = max(v[6], b.v[1]), v[7] = max(v[7], b.v[0]);
  order(v[0], v[4]), order(v[1], v[5]), order(v[2], v[6]), order(v[3], v[7]);
  order(v[0], v[2]), order(v[1], v[3]), order(v[4], v[6]), order(v[5], v[7]);
  order(v[0], v[1]), order(v[2], v[3]), order(v[4], v[5]), order(v[6], v[7]);
}

inline Best read_best(const float* key, int64_t n) {
  Best x;
#pragma GCC unroll 8
  for (int c = 0; c < kBest; ++c) x.v[c] = load_or_lowest(key + c * kLanes, n - c * kLanes);
  sort(x);
  return x;
}

// The lists of each two lanes DISTANCE apart become the best of both.
template <int DISTANCE>
inline void merge_lanes(Best& x) {
  Best other;
#pragma GCC unroll 8
  for (int c = 0; c < kBest; ++c) other.v[c] = swap_lanes<DISTANCE>(x.v[c]);
  merge(x, other);
}

// The eight largest of n values, descending; fewer than eight are followed by the lowest value.
inline void best_of(const float* key, int64_t n, float (&found)[kBest]) {
  Best best = read_best(key, n);
  for (int64_t at = kBest * kLanes; at < n; at += kBest * kLanes) merge(best, read_best(key + at, n - at));
  merge_lanes<8>(best);
  merge_lanes<4>(best);
  merge_lanes<2>(best);
  merge_lanes<1>(best);
#pragma GCC unroll 8
  for (int c = 0; c < kBest; ++c) found[c] = best.v[c][0];
}

// The k-th largest value. Above eight, rounds: the best so far leave the race and the rest is looked through again.
inline float kth_largest(const float* key, int64_t n, int64_t k) {
  for (;;) {
    float best[kBest];
    best_of(key, n, best);
    if (k <= kBest) return best[k - 1];
    const vf last = splat(best[kBest - 1]);
    float* rest = scratch<float>(2, n);
    int64_t gone = 0;
    for_vectors(n, [&](int64_t i, int live) {
      const vf x = load_some(key + i, live);
      gone += __builtin_popcountll((above_bits(x, last) | level_bits(x, last)) & ((uint64_t{1} << live) - 1));
      store_some(rest + i, select(above(last, x), x, splat(kLowest)), live);
    });
    if (gone >= k) return best[kBest - 1];
    key = rest;
    k -= gone;
  }
}

inline int32_t* write_bits(uint64_t set, int64_t first, int32_t* to) {
  for (; set != 0; set &= set - 1) *to++ = static_cast<int32_t>(first + __builtin_ctzll(set));
  return to;
}

// The choice among at most 16: an index is chosen if fewer than k others stand before it.
inline void choose_few(const float* key, int64_t n, int64_t k, int32_t* chosen) {
  constexpr vi kLane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const vf x = load_or_lowest(key, n);
  vi before = {};  // counted downwards: true is -1
  for (int32_t i = 0; i < n; ++i) {
    const vf other = splat(key[i]);
    before += above(other, x) | (level(other, x) & ((i - kLane) >> 31));  // of equals, those of the lanes behind i
  }
  write_bits(signs(static_cast<int32_t>(-k) - before) & ((uint64_t{1} << n) - 1), 0, chosen);
}

// Writes the indices of the k largest of n values (n >= k >= 1, no NaN), ascending.
inline void choose(const float* key, int64_t n, int64_t k, int32_t* chosen) {
  if (n <= kLanes) return choose_few(key, n, k, chosen);
  const vf kth = splat(kth_largest(key, n, k));
  const int64_t words = (n + 63) / 64;
  uint64_t *over = scratch<uint64_t>(3, 2 * words), *tied = over + words;
  std::fill(over, over + 2 * words, uint64_t{0});
  int64_t missing = k;
  for_vectors(n, [&](int64_t i, int live) {
    const vf x = load_some(key + i, live);
    const uint64_t exist = (uint64_t{1} << live) - 1, more = above_bits(x, kth) & exist;
    over[i / 64] |= more << (i % 64);
    tied[i / 64] |= (level_bits(x, kth) & exist) << (i % 64);
    missing -= __builtin_popcountll(more);
  });
  for (int64_t w = 0; w < words; ++w) {
    uint64_t take = over[w];
    for (uint64_t rest = tied[w]; rest != 0 && missing > 0; rest &= rest - 1, --missing) take |= rest & -rest;
    chosen = write_bits(take, 64 * w, chosen);
  }
}

}  // namespace seedthink::ST_ISA
