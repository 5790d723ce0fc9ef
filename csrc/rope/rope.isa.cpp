#include "rope/rope.h"

#include <algorithm>

#include "common/pool.h"
#include "common/simd.h"

namespace seedthink::ST_ISA {

void rope_turn(const View& x_TNH, const View& table, const View& positions_T, bool back, const View& y_TNH) {
  x_TNH.check("x", Dtype::f32, {-1, -1, -1});
  const int64_t T = x_TNH.size[0], N = x_TNH.size[1], H = x_TNH.size[2], half = H / 2;
  ST_CHECK(H % 2 == 0, "x: the head's width ", H, " must be even");
  table.check("table", Dtype::f32, {-1, H});
  positions_T.check("positions", Dtype::i32, {T});
  y_TNH.check("y", Dtype::f32, {T, N, H});
  const int32_t* positions = positions_T.as<int32_t>();
  for (int64_t t = 0; t < T; ++t)
    ST_CHECK(positions[t] >= 0 && positions[t] < table.size[0], "positions: entry ", t, " is ", positions[t],
             ", outside the table's ", table.size[0], " rows");
  parallel(T, 1 + 8192 / (N * H + 1), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* angle = table.as<float>() + positions[t] * H;
      for (int64_t head = 0; head < N; ++head) {
        const float* x = x_TNH.as<float>() + (t * N + head) * H;
        float* y = y_TNH.as<float>() + (t * N + head) * H;
        for (int64_t i = 0; i < half; i += kLanes) {
          const int live = static_cast<int>(std::min<int64_t>(kLanes, half - i));
          const bool whole = live == kLanes;
          const vf c = whole ? load(angle + i) : load_n(angle + i, live);
          const vf turned = whole ? load(angle + half + i) : load_n(angle + half + i, live);
          const vf s = back ? -turned : turned;
          const vf low = whole ? load(x + i) : load_n(x + i, live);
          const vf high = whole ? load(x + half + i) : load_n(x + half + i, live);
          const vf new_low = low * c - high * s, new_high = high * c + low * s;
          if (whole) {
            store(y + i, new_low);
            store(y + half + i, new_high);
          } else {
            store_n(y + i, new_low, live);
            store_n(y + half + i, new_high, live);
          }
        }
      }
    }
  });
}

}  // namespace seedthink::ST_ISA
