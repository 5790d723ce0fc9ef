#include "rope/rope.h"

#include "common/tuning.h"
#include "rope/row.h"

namespace seedthink::ST_ISA {

void rope_turn(const View& x_TNH, const View& table, const View& positions_T, bool back, const View& y_TNH) {
  x_TNH.check("x", Dtype::f32, {-1, -1, -1});
  const int64_t T = x_TNH.size[0], N = x_TNH.size[1], H = x_TNH.size[2];
  y_TNH.check("y", Dtype::f32, {T, N, H});
  check_positions(table, positions_T, T, H);
  const Launch launch = tuned(Op::rope, 8192);
  parallel(launch, T, launch.rows(N * H), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* angle = table.as<float>() + positions_T.as<int32_t>()[t] * H;
      for (int64_t at = t * N * H; at < (t + 1) * N * H; at += H)
        turn_row(x_TNH.as<float>() + at, angle, H / 2, back, y_TNH.as<float>() + at);
    }
  });
}

}  // namespace seedthink::ST_ISA
