// The row function of log-probabilities, shared by the sampler and by training, so that both see the same bits.
//
// x = logits * (1 / temperature), m = max x, s = sum e^(x - m), u = sum e^(x - m) (x - m): sixteen running lanes in
// ascending order, blocks added in order (a chain of ten thousand small terms would lose digits) and a fixed tree at the
// end, a function of the row alone. Lanes past the end count as -inf.
#pragma once

#include <algorithm>

#include "common/simd.h"

namespace seedthink::ST_ISA {

constexpr int64_t kBlock = 1024;

struct RowStats {
  float inverse;  // 1 / temperature
  float max;      // m
  float sum;      // s; NaN where the row holds NaN or +inf
  float log_sum;  // log s
  float entropy;  // log s - u / s
};

inline vf tempered(const float* logits, int64_t i, int64_t V, vf inverse) {
  const float lowest = -__builtin_inff();
  return (i + kLanes <= V ? load(logits + i) : load_n(logits + i, static_cast<int>(V - i), lowest)) * inverse;
}

inline RowStats row_stats(const float* logits, int64_t V, float temperature) {
  const float lowest = -__builtin_inff();
  const vf inverse = splat(1.f / temperature);
  vf high = splat(lowest);
  for (int64_t i = 0; i < V; i += kLanes) high = max(tempered(logits, i, V, inverse), high);
  const float top = reduce_max(high);
  const vf m = splat(top);
  vf s = splat(0.f), u = splat(0.f);
  for (int64_t begin = 0; begin < V; begin += kBlock) {
    vf block_s = splat(0.f), block_u = splat(0.f);
    for (int64_t i = begin; i < std::min(V, begin + kBlock); i += kLanes) {
      const vf d = tempered(logits, i, V, inverse) - m, e = exp(d);
      block_s = block_s + e;
      block_u = fma(e, d > splat(lowest) ? d : splat(0.f), block_u);
    }
    s = s + block_s;
    u = u + block_u;
  }
  RowStats row{1.f / temperature, top, ST_ISA::sum(s), 0.f, 0.f};
  row.log_sum = std::log(row.sum);
  row.entropy = row.log_sum - ST_ISA::sum(u) / row.sum;
  return row;
}

inline float row_logprob(const RowStats& row, float logit) { return (logit * row.inverse - row.max) - row.log_sum; }

}  // namespace seedthink::ST_ISA
