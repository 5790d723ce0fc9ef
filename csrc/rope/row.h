// Turning one head by the angles of its position: the same function wherever heads are turned.
#pragma once

#include "common/simd.h"

namespace seedthink::ST_ISA {

// `angle` is the position's row of the table, `half` cosines and then as many sines. `back` turns by the opposite
// angle. y may be x.
inline void turn_row(const float* x, const float* angle, int64_t half, bool back, float* y) {
  for_vectors(half, [&](int64_t i, int live) {
    const vf c = load_some(angle + i, live), turned = load_some(angle + half + i, live), s = back ? -turned : turned;
    const vf low = load_some(x + i, live), high = load_some(x + half + i, live);
    store_some(y + i, low * c - high * s, live);
    store_some(y + half + i, high * c + low * s, live);
  });
}

}  // namespace seedthink::ST_ISA
