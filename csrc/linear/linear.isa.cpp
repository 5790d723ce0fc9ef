#include "linear/linear.h"

#include "common/tuning.h"
#include "linear/gemm.h"

namespace seedthink::ST_ISA {
namespace {

constexpr int64_t kTileRows = 96;       // rows of a tile: their cells and one panel stay in the L2 cache
constexpr int64_t kGradTile = 256;      // rows and columns of a weight gradient's tile, at most
constexpr int64_t kInline = 16384;      // vector operations below which a second thread costs more than it gives

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Panel of W: cell (s, c) comes from row n0 + c of W. Tiles of 16 steps keep both sides in the L1 cache.
template <typename Kind>
void pack_panel(const float* w, int64_t K, int64_t columns, typename Kind::Cell* panel) {
  using Cell = typename Kind::Cell;
  const int64_t steps = steps_of<Kind>(K);
  for (int64_t s0 = 0; s0 < steps; s0 += kLanes) {
    const int64_t s1 = std::min<int64_t>(steps, s0 + kLanes);
    for (int64_t c = 0; c < kPanel; ++c) {
      Cell cells[kLanes] = {};
      const int64_t k0 = s0 * Kind::kPerStep, k1 = std::min(K, s1 * Kind::kPerStep);
      if (c < columns) row_cells<Kind>(w + c * K + k0, k1 - k0, cells);
      for (int64_t s = s0; s < s1; ++s) panel[s * kPanel + c] = cells[s - s0];
    }
  }
}

// Panel of W^T: cell (s, c) comes from column k0 + c of W.
template <typename Kind>
void pack_panel_transposed(const float* w, int64_t N, int64_t K, int64_t columns, typename Kind::Cell* panel) {
  const int64_t steps = steps_of<Kind>(N);
  for (int64_t s = 0; s < steps; ++s) {
    const int64_t n = s * Kind::kPerStep;
    const float* odd = Kind::kPerStep == 2 && n + 1 < N ? w + (n + 1) * K : nullptr;
    across_cells<Kind>(w + n * K, odd, columns, panel + s * kPanel);
    std::fill(panel + s * kPanel + columns, panel + (s + 1) * kPanel, typename Kind::Cell{});
  }
}

template <typename Kind>
void pack(const View& weight_ENK, bool transposed, const View& panels) {
  const int64_t E = weight_ENK.size[0], N = weight_ENK.size[1], K = weight_ENK.size[2];
  const int64_t reduced = transposed ? N : K, P = panel_count(transposed ? K : N), steps = steps_of<Kind>(reduced);
  parallel(E * P, std::max<int64_t>(1, kInline / (1 + reduced * kPanel / 4)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t e = i / P, first = i % P * kPanel, columns = std::min(kPanel, (transposed ? K : N) - first);
      const float* w = weight_ENK.as<float>() + e * N * K;
      auto* panel = panels.as<typename Kind::Cell>() + i * steps * kPanel;
      if (transposed)
        pack_panel_transposed<Kind>(w + first, N, K, columns, panel);
      else
        pack_panel<Kind>(w + first * K, K, columns, panel);
    }
  });
}

template <typename Kind>
void forward(const View& x_TK, const View& panels, const View& y_TN) {
  using Cell = typename Kind::Cell;
  const int64_t T = x_TK.size[0], K = x_TK.size[1], N = y_TN.size[1];
  if (T == 0 || N == 0) return;
  const int64_t steps = steps_of<Kind>(K), pitch = pitch_of<Kind>(K), P = panel_count(N);
  const Launch launch = tuned(Op::linear, kInline, kTileRows);
  const int64_t wanted = 4 * launch.threads;
  int64_t blocks = ceil_div(T, launch.block), group = P;
  while (group > 1 && blocks * ceil_div(P, group) < wanted) group = (group + 1) / 2;
  const int64_t groups = ceil_div(P, group);
  if (blocks * groups < wanted) blocks = std::max(blocks, std::min(ceil_div(wanted, groups), T / 24));
  const int64_t units = blocks * groups, work = T * ceil_div(N, kLanes) * steps;
  const Cell* right = panels.as<Cell>();
  parallel(launch, units, work < launch.grain ? units : 1, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t block = unit / groups, first = unit % groups * group;
      const int64_t t0 = T * block / blocks, t1 = T * (block + 1) / blocks;
      const int64_t n0 = first * kPanel, n1 = std::min(N, n0 + group * kPanel);
      const Cell* left;
      if constexpr (Kind::kPerStep == 1) {
        left = x_TK.as<float>() + t0 * K;
      } else {
        Cell* cells = scratch<Cell>(0, (t1 - t0) * pitch);
        for (int64_t t = t0; t < t1; ++t) row_cells<Kind>(x_TK.as<float>() + t * K, K, cells + (t - t0) * pitch);
        left = cells;
      }
      rows_times_panels<Kind>(left, pitch, 1, t1 - t0, right + first * steps * kPanel, steps,
                              y_TN.as<float>() + t0 * N + n0, N, n1 - n0, false);
    }
  });
}

template <typename Kind>
void weight_grad(const View& dy_TN, const View& x_TK, const View& dweight_NK) {
  const int64_t T = dy_TN.size[0], N = dy_TN.size[1], K = x_TK.size[1];
  if (N == 0 || K == 0) return;
  // Tiles as large and square as the threads allow: each tile reads its columns of dy and x once.
  const Launch launch = tuned(Op::linear_grad, kInline, kGradTile);
  int64_t height = std::min(N, launch.block), width = std::min(K, launch.block);
  while (ceil_div(N, height) * ceil_div(K, width) < 2 * launch.threads && std::max(height, width) > kPanel) {
    int64_t& side = height >= width ? height : width;
    side = ceil_div(side / 2, kLanes) * kLanes;
  }
  const int64_t across = ceil_div(K, width);
  const int64_t units = ceil_div(N, height) * across, work = N * ceil_div(K, kLanes) * steps_of<Kind>(T);
  parallel(launch, units, work < launch.grain ? units : 1, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t n0 = unit / across * height, k0 = unit % across * width;
      weight_grad_tile<Kind>([&](int64_t t) { return dy_TN.as<float>() + t * N; },
                             [&](int64_t t) { return x_TK.as<float>() + t * K; }, T, n0, std::min(N, n0 + height), k0,
                             std::min(K, k0 + width), dweight_NK.as<float>(), K);
    }
  });
}

void check_panels(const View& panels, int64_t E, int64_t N, int64_t K) {
  if (panels.dtype == Dtype::bf16)
    panels.check("panels", Dtype::bf16, {E, panel_count(N), (K + 1) / 2, kPanel, 2});
  else
    panels.check("panels", Dtype::f32, {E, panel_count(N), K, kPanel});
}

}  // namespace

void pack_panels(const View& weight_ENK, bool transposed, const View& panels) {
  const int64_t E = weight_ENK.size[0], N = weight_ENK.size[1], K = weight_ENK.size[2];
  weight_ENK.check("weight", Dtype::f32, {E, N, K});
  check_panels(panels, E, transposed ? K : N, transposed ? N : K);
  if (panels.dtype == Dtype::bf16)
    pack<PairWiden>(weight_ENK, transposed, panels);
  else
    pack<Single>(weight_ENK, transposed, panels);
}

void linear_forward(const View& x_TK, const View& panels, const View& y_TN) {
  x_TK.check("x", Dtype::f32, {-1, -1});
  y_TN.check("y", Dtype::f32, {x_TK.size[0], -1});
  check_panels(panels, 1, y_TN.size[1], x_TK.size[1]);
  with_kind(panels.dtype == Dtype::bf16, [&](auto kind) { forward<decltype(kind)>(x_TK, panels, y_TN); });
}

void linear_weight_grad(const View& dy_TN, const View& x_TK, bool half, const View& dweight_NK) {
  dy_TN.check("dy", Dtype::f32, {-1, -1});
  x_TK.check("x", Dtype::f32, {dy_TN.size[0], -1});
  dweight_NK.check("dweight", Dtype::f32, {dy_TN.size[1], x_TK.size[1]});
  with_kind(half, [&](auto kind) { weight_grad<decltype(kind)>(dy_TN, x_TK, dweight_NK); });
}

}  // namespace seedthink::ST_ISA
