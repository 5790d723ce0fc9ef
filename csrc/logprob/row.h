// The row function of log-probabilities, shared by the sampler and by training, so that both see the same bits.
//
// x = logits * (1 / temperature), m = max x, s = sum e^(x - m), u = sum e^(x - m) (x - m). A row is taken in blocks of
// 1024 columns, each with a maximum, a sum and a u of its own: sixteen running lanes in ascending order and a fixed tree,
// lanes past the end count as -inf. The blocks are joined in order in float64. So the row can be had a block at a time,
// as the logits are made, and its bits are a function of the row alone.
#pragma once

#include <algorithm>

#include "common/simd.h"

namespace seedthink::ST_ISA {

constexpr int64_t kBlock = 1024;
constexpr float kLowest = -__builtin_inff();

// m, s and u of the columns so far. s is NaN where they hold NaN or +inf.
struct Running {
  double max = kLowest, sum = 0., weighted = 0.;
};

struct RowStats {
  float inverse;  // 1 / temperature
  float max;      // m
  float sum;      // s; NaN where the row holds NaN or +inf, or nothing finite
  float log_sum;  // log s
  float entropy;  // log s - u / s
};

inline vf tempered(const float* logits, int64_t i, int64_t n, vf inverse) {
  return (i + kLanes <= n ? load(logits + i) : load_n(logits + i, static_cast<int>(n - i), kLowest)) * inverse;
}

// One block of n (1..1024) columns by itself.
inline Running block_of(const float* logits, int64_t n, vf inverse) {
  vf high = splat(kLowest);
  for (int64_t i = 0; i < n; i += kLanes) high = max(tempered(logits, i, n, inverse), high);
  const float top = reduce_max(high);
  const vf m = splat(top > kLowest ? top : 0.f);  // nothing finite: every term is 0, or NaN
  vf s = splat(0.f), u = splat(0.f);
  for (int64_t i = 0; i < n; i += kLanes) {
    const vf d = tempered(logits, i, n, inverse) - m, e = exp(d);
    s = s + e;
    u = fma(e, d > splat(kLowest) ? d : splat(0.f), u);
  }
  return {top, ST_ISA::sum(s), ST_ISA::sum(u)};
}

// Joins a block to those before it. Whoever made the block, the row's bits are those of the blocks in order.
inline void join(const Running& block, Running& row) {
  if (!(row.max > kLowest) || !(block.max > kLowest)) {  // one side has nothing finite, and adds 0 or NaN
    row = {std::max(row.max, block.max), row.sum + block.sum, row.weighted + block.weighted};
    return;
  }
  const double rise = block.max - row.max, factor = exp(static_cast<float>(-std::fabs(rise)));
  if (rise > 0.)
    row = {block.max, factor * row.sum + block.sum, factor * (row.weighted - rise * row.sum) + block.weighted};
  else
    row = {row.max, row.sum + factor * block.sum, row.weighted + factor * (block.weighted + rise * block.sum)};
}

inline void add_columns(const float* logits, int64_t n, float temperature, Running& row) {
  const vf inverse = splat(1.f / temperature);
  for (int64_t i = 0; i < n; i += kBlock) join(block_of(logits + i, std::min(kBlock, n - i), inverse), row);
}

inline RowStats finish(const Running& row, float temperature) {
  RowStats stats{1.f / temperature, static_cast<float>(row.max), static_cast<float>(row.sum), 0.f, 0.f};
  if (!(row.max > kLowest)) stats.sum = __builtin_nanf("");
  stats.log_sum = std::log(stats.sum);
  stats.entropy = stats.log_sum - static_cast<float>(row.weighted) / stats.sum;
  return stats;
}

inline RowStats row_stats(const float* logits, int64_t V, float temperature) {
  Running row;
  add_columns(logits, V, temperature, row);
  return finish(row, temperature);
}

inline float row_logprob(const RowStats& row, float logit) { return (logit * row.inverse - row.max) - row.log_sum; }

}  // namespace seedthink::ST_ISA
