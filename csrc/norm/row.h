// RMSNorm of one row and its derivative: the same functions for hidden states and for the heads of attention.
#pragma once

#include "common/simd.h"

namespace seedthink::ST_ISA {

// sum of a(i, live) * b[i] in four chains of 16 lanes (a single one would wait for its own latency), added by a fixed
// tree: a function of the row alone. `a` returns a vector of the left row.
template <typename A>
inline float dot_row(const A& a, const float* b, int64_t n) {
  vf acc[4] = {splat(0.f), splat(0.f), splat(0.f), splat(0.f)};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes)
    for (int c = 0; c < 4; ++c) acc[c] = fma(a(i + c * kLanes, kLanes), load(b + i + c * kLanes), acc[c]);
  for (; i + kLanes <= n; i += kLanes) acc[0] = fma(a(i, kLanes), load(b + i), acc[0]);
  if (const int rest = static_cast<int>(n - i)) acc[1] = fma(a(i, rest), load_n(b + i, rest), acc[1]);
  return sum((acc[0] + acc[1]) + (acc[2] + acc[3]));
}

// y = x * rstd * weight; returns rstd. y may be x.
inline float norm_row(const float* x, const float* weight, int64_t D, float eps, float* y) {
  const float squares = dot_row([&](int64_t i, int live) { return load_some(x + i, live); }, x, D);
  const float rstd = 1.f / std::sqrt(squares / static_cast<float>(D) + eps);
  const vf r = splat(rstd);
  for_vectors(D, [&](int64_t i, int live) {
    store_some(y + i, load_some(x + i, live) * r * load_some(weight + i, live), live);
  });
  return rstd;
}

// dx from dy, on top of `on` where it is given; the row's share of the weight's gradient is added to dweight.
inline void norm_row_backward(const float* dy, const float* x, const float* weight, float rstd, int64_t D,
                              const float* on, float* dx, float* dweight) {
  const auto weighted = [&](int64_t i, int live) { return load_some(dy + i, live) * load_some(weight + i, live); };
  const vf mean = splat(dot_row(weighted, x, D) * rstd * rstd * rstd / static_cast<float>(D)), r = splat(rstd);
  for_vectors(D, [&](int64_t i, int live) {
    const vf row = load_some(x + i, live), grad = weighted(i, live) * r - row * mean;
    store_some(dweight + i, load_some(dweight + i, live) + load_some(dy + i, live) * row * r, live);
    store_some(dx + i, on != nullptr ? load_some(on + i, live) + grad : grad, live);
  });
}

}  // namespace seedthink::ST_ISA
