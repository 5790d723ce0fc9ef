// silu(gate) * up for one row: the same function in the dense MLP and in the experts.
#pragma once

#include "common/simd.h"

namespace seedthink::ST_ISA {

inline vf sigmoid(vf x) { return splat(1.f) / (splat(1.f) + exp(-x)); }

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
