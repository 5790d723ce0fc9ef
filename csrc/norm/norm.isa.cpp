#include "norm/norm.h"

#include <vector>

#include "common/tuning.h"
#include "norm/row.h"

namespace seedthink::ST_ISA {
namespace {

// Rows of a block of the backward. The blocks' sums are added in order, so the weight's gradient does not depend on the
// number of threads.
constexpr int64_t kRows = 128;

void forward(const View& x_TD, const View& delta_TD, const View& weight_D, double eps, const View& sum_TD,
             const View& y_TD, const View& rstd_T) {
  const int64_t T = x_TD.size[0], D = x_TD.size[1];
  x_TD.check("x", Dtype::f32, {T, D});
  weight_D.check("weight", Dtype::f32, {D});
  y_TD.check("y", Dtype::f32, {T, D});
  rstd_T.check("rstd", Dtype::f32, {T});
  if (delta_TD) {
    delta_TD.check("delta", Dtype::f32, {T, D});
    sum_TD.check("sum", Dtype::f32, {T, D});
  }
  const Launch launch = tuned(Op::norm, 32768);
  parallel(launch, T, launch.rows(D), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* x = x_TD.as<float>() + t * D;
      if (delta_TD) {
        const float* delta = delta_TD.as<float>() + t * D;
        float* sum = sum_TD.as<float>() + t * D;
        for_vectors(D, [&](int64_t i, int live) {
          store_some(sum + i, load_some(x + i, live) + load_some(delta + i, live), live);
        });
        x = sum;
      }
      rstd_T.as<float>()[t] =
          norm_row(x, weight_D.as<float>(), D, static_cast<float>(eps), y_TD.as<float>() + t * D);
    }
  });
}

void backward(const View& dsum_TD, const View& dy_TD, const View& x_TD, const View& weight_D, const View& rstd_T,
              const View& dx_TD, const View& dweight_D) {
  const int64_t T = x_TD.size[0], D = x_TD.size[1];
  x_TD.check("x", Dtype::f32, {T, D});
  dy_TD.check("dy", Dtype::f32, {T, D});
  if (dsum_TD) dsum_TD.check("dsum", Dtype::f32, {T, D});
  weight_D.check("weight", Dtype::f32, {D});
  rstd_T.check("rstd", Dtype::f32, {T});
  dx_TD.check("dx", Dtype::f32, {T, D});
  dweight_D.check("dweight", Dtype::f32, {D});
  const int64_t blocks = (T + kRows - 1) / kRows;
  std::vector<float> partial(blocks * D, 0.f);
  parallel(blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin * kRows; t < std::min(T, end * kRows); ++t)
      norm_row_backward(dy_TD.as<float>() + t * D, x_TD.as<float>() + t * D, weight_D.as<float>(),
                        rstd_T.as<float>()[t], D, dsum_TD ? dsum_TD.as<float>() + t * D : nullptr,
                        dx_TD.as<float>() + t * D, partial.data() + t / kRows * D);
  });
  float* dw = dweight_D.as<float>();
  std::fill(dw, dw + D, 0.f);
  for (int64_t block = 0; block < blocks; ++block)
    for (int64_t i = 0; i < D; ++i) dw[i] += partial[block * D + i];
}

}  // namespace

void rms_norm_forward(const View& x_TD, const View& weight_D, double eps, const View& y_TD, const View& rstd_T) {
  forward(x_TD, View{}, weight_D, eps, View{}, y_TD, rstd_T);
}

void rms_norm_backward(const View& dy_TD, const View& x_TD, const View& weight_D, const View& rstd_T, const View& dx_TD,
                       const View& dweight_D) {
  backward(View{}, dy_TD, x_TD, weight_D, rstd_T, dx_TD, dweight_D);
}

void add_rms_norm_forward(const View& x_TD, const View& delta_TD, const View& weight_D, double eps, const View& sum_TD,
                          const View& y_TD, const View& rstd_T) {
  delta_TD.check("delta", Dtype::f32, {-1, -1});
  forward(x_TD, delta_TD, weight_D, eps, sum_TD, y_TD, rstd_T);
}

void add_rms_norm_backward(const View& dsum_TD, const View& dy_TD, const View& sum_TD, const View& weight_D,
                           const View& rstd_T, const View& dx_TD, const View& dweight_D) {
  dsum_TD.check("dsum", Dtype::f32, {-1, -1});
  backward(dsum_TD, dy_TD, sum_TD, weight_D, rstd_T, dx_TD, dweight_D);
}

}  // namespace seedthink::ST_ISA
