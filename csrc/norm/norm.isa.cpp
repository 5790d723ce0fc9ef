#include "norm/norm.h"

#include <vector>

#include "common/pool.h"
#include "common/simd.h"

namespace seedthink::ST_ISA {
namespace {

// sum of a[i] * b[i] in four chains of 16 lanes (a single one would wait for its own latency), added by a fixed tree: a
// function of the row alone.
float dot(const float* a, const float* b, int64_t n) {
  vf acc[4] = {splat(0.f), splat(0.f), splat(0.f), splat(0.f)};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes)
    for (int c = 0; c < 4; ++c) acc[c] = fma(load(a + i + c * kLanes), load(b + i + c * kLanes), acc[c]);
  for (; i + kLanes <= n; i += kLanes) acc[0] = fma(load(a + i), load(b + i), acc[0]);
  if (i < n) acc[1] = fma(load_n(a + i, n - i), load_n(b + i, n - i), acc[1]);
  return sum((acc[0] + acc[1]) + (acc[2] + acc[3]));
}

}  // namespace

void rms_norm_forward(const View& x_TD, const View& weight_D, double eps, const View& y_TD, const View& rstd_T) {
  const int64_t T = x_TD.size[0], D = x_TD.size[1];
  x_TD.check("x", Dtype::f32, {T, D});
  weight_D.check("weight", Dtype::f32, {D});
  y_TD.check("y", Dtype::f32, {T, D});
  rstd_T.check("rstd", Dtype::f32, {T});
  const float* w = weight_D.as<float>();
  parallel(T, 1 + 32768 / (D + 1), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* x = x_TD.as<float>() + t * D;
      float* y = y_TD.as<float>() + t * D;
      const float rstd = 1.f / std::sqrt(dot(x, x, D) / static_cast<float>(D) + static_cast<float>(eps));
      rstd_T.as<float>()[t] = rstd;
      const vf r = splat(rstd);
      int64_t i = 0;
      for (; i + kLanes <= D; i += kLanes) store(y + i, load(x + i) * r * load(w + i));
      if (i < D) store_n(y + i, load_n(x + i, D - i) * r * load_n(w + i, D - i), D - i);
    }
  });
}

void rms_norm_backward(const View& dy_TD, const View& x_TD, const View& weight_D, const View& rstd_T, const View& dx_TD,
                       const View& dweight_D) {
  const int64_t T = x_TD.size[0], D = x_TD.size[1];
  x_TD.check("x", Dtype::f32, {T, D});
  dy_TD.check("dy", Dtype::f32, {T, D});
  weight_D.check("weight", Dtype::f32, {D});
  rstd_T.check("rstd", Dtype::f32, {T});
  dx_TD.check("dx", Dtype::f32, {T, D});
  dweight_D.check("dweight", Dtype::f32, {D});
  // Rows are cut into blocks of a size that depends on T alone, and the blocks' sums are added in order: the weight's
  // gradient does not depend on the number of threads.
  constexpr int64_t kRows = 128;
  const int64_t blocks = (T + kRows - 1) / kRows;
  std::vector<float> partial(blocks * D, 0.f);
  const float* w = weight_D.as<float>();
  parallel(blocks, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> wdy(D);
    for (int64_t block = begin; block < end; ++block) {
      float* dw = partial.data() + block * D;
      for (int64_t t = block * kRows; t < T && t < (block + 1) * kRows; ++t) {
        const float* x = x_TD.as<float>() + t * D;
        const float* dy = dy_TD.as<float>() + t * D;
        float* dx = dx_TD.as<float>() + t * D;
        const float rstd = rstd_T.as<float>()[t];
        for (int64_t i = 0; i < D; ++i) wdy[i] = dy[i] * w[i];
        const float mean = dot(wdy.data(), x, D) * rstd * rstd * rstd / static_cast<float>(D);
        for (int64_t i = 0; i < D; ++i) dx[i] = wdy[i] * rstd - x[i] * mean;
        for (int64_t i = 0; i < D; ++i) dw[i] += dy[i] * x[i] * rstd;
      }
    }
  });
  float* dw = dweight_D.as<float>();
  for (int64_t i = 0; i < D; ++i) dw[i] = 0.f;
  for (int64_t block = 0; block < blocks; ++block)
    for (int64_t i = 0; i < D; ++i) dw[i] += partial[block * D + i];
}

}  // namespace seedthink::ST_ISA
