// Rotary position embedding, half-split layout. Shapes and formulas stand in kernels/rope.py.
#pragma once

#include "common/isa.h"
#include "common/view.h"

namespace seedthink {

// The positions of T tokens index a table for heads of width H.
inline void check_positions(const View& table, const View& positions_T, int64_t T, int64_t H) {
  ST_CHECK(H % 2 == 0, "x: the head's width ", H, " must be even");
  table.check("table", Dtype::f32, {-1, H});
  positions_T.check("positions", Dtype::i32, {T});
  const int32_t* positions = positions_T.as<int32_t>();
  for (int64_t t = 0; t < T; ++t)
    ST_CHECK(positions[t] >= 0 && positions[t] < table.size[0], "positions: entry ", t, " is ", positions[t],
             ", outside the table's ", table.size[0], " rows");
}

}  // namespace seedthink

// `back` turns by the opposite angle, which is the derivative.
ST_DECLARE(void rope_turn(const View& x_TNH, const View& table, const View& positions_T, bool back, const View& y_TNH))
