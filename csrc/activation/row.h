// silu(gate) * up for one row: the same function in the dense MLP and in the experts.
#pragma once

#include <algorithm>

#include "common/simd.h"

namespace seedthink::ST_ISA {

inline vf sigmoid(vf x) { return splat(1.f) / (splat(1.f) + exp(-x)); }

// Calls f(i, live) for each vector of a row of n floats; `live` (1..16) lanes of it exist.
template <typename F>
inline void for_vectors(int64_t n, const F& f) {
  for (int64_t i = 0; i < n; i += kLanes) f(i, static_cast<int>(std::min<int64_t>(kLanes, n - i)));
}
inline vf load_some(const float* p, int live) { return live == kLanes ? load(p) : load_n(p, live); }
inline void store_some(float* p, vf v, int live) {
  if (live == kLanes)
    store(p, v);
  else
    store_n(p, v, live);
}

// act = silu(gate) * up.
inline void swiglu_row(const float* gate_up, int64_t I, float* act) {
  for_vectors(I, [&](int64_t i, int live) {
    const vf gate = load_some(gate_up + i, live), up = load_some(gate_up + I + i, live);
    store_some(act + i, gate * sigmoid(gate) * up, live);
  });
}

// From dact and a weight w: dgate_up of w * act, and (where `act` is given) w * act. Returns dot(dact, act), the
// derivative of w.
inline float swiglu_row_backward(const float* gate_up, const float* dact, float weight, int64_t I, float* dgate_up,
                                 float* act) {
  vf dot = splat(0.f);
  const vf w = splat(weight), one = splat(1.f);
  for_vectors(I, [&](int64_t i, int live) {
    const vf gate = load_some(gate_up + i, live), up = load_some(gate_up + I + i, live), d = load_some(dact + i, live);
    const vf s = sigmoid(gate), silu = gate * s, a = silu * up;
    dot = fma(d, a, dot);
    if (act != nullptr) store_some(act + i, w * a, live);
    store_some(dgate_up + i, w * d * up * (s * fma(gate, one - s, one)), live);
    store_some(dgate_up + I + i, w * d * silu, live);
  });
  return sum(dot);
}

}  // namespace seedthink::ST_ISA
