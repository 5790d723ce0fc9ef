#include "activation/activation.h"

#include "activation/row.h"
#include "common/tuning.h"

namespace seedthink::ST_ISA {

void swiglu_forward(const View& gate_up_T_2I, const View& y_TI) {
  gate_up_T_2I.check("gate_up", Dtype::f32, {-1, -1});
  const int64_t T = gate_up_T_2I.size[0], I = gate_up_T_2I.size[1] / 2;
  ST_CHECK(gate_up_T_2I.size[1] % 2 == 0, "gate_up: the width ", gate_up_T_2I.size[1], " must be even");
  y_TI.check("y", Dtype::f32, {T, I});
  const Launch launch = tuned(Op::swiglu, 8192);
  parallel(launch, T, launch.rows(I), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      swiglu_row(gate_up_T_2I.as<float>() + t * 2 * I, I, y_TI.as<float>() + t * I);
  });
}

void swiglu_backward(const View& dy_TI, const View& gate_up_T_2I, const View& dgate_up_T_2I) {
  dy_TI.check("dy", Dtype::f32, {-1, -1});
  const int64_t T = dy_TI.size[0], I = dy_TI.size[1];
  gate_up_T_2I.check("gate_up", Dtype::f32, {T, 2 * I});
  dgate_up_T_2I.check("dgate_up", Dtype::f32, {T, 2 * I});
  const Launch launch = tuned(Op::swiglu, 8192);
  parallel(launch, T, launch.rows(I), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      swiglu_row_backward(gate_up_T_2I.as<float>() + t * 2 * I, dy_TI.as<float>() + t * I, 1.f, I,
                          dgate_up_T_2I.as<float>() + t * 2 * I, nullptr);
  });
}

}  // namespace seedthink::ST_ISA
