#include <vector>

#include "activation/row.h"
#include "common/tuning.h"
#include "linear/gemm.h"
#include "moe/moe.h"
#include "moe/rows.h"

namespace seedthink::ST_ISA {
namespace {

constexpr int64_t kUnitRows = 96;  // rows of one unit at most: its cells and activations stay in the L2 cache
constexpr int64_t kUnitLeast = 12;  // and at least, where an expert has as many: below, panels are read too often
constexpr int64_t kGradTile = 256;  // rows and columns of a weight gradient's tile, at most

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Rows [begin, end) of one expert: what a thread takes at a time.
struct Unit {
  int64_t expert, begin, end;
};

// Cuts the rows of experts [first, last) into nearly equal units, small enough to balance uneven experts over the
// threads. The cut cannot move a bit: rows do not see each other.
std::vector<Unit> cut(const int32_t* offsets, int64_t first, int64_t last, const Launch& launch) {
  const int64_t all = offsets[last] - offsets[first];
  const int64_t aim = std::min(launch.block, std::max(kUnitLeast, all / (8 * launch.threads)));
  std::vector<Unit> units;
  for (int64_t e = first; e < last; ++e) {
    const int64_t rows = offsets[e + 1] - offsets[e], parts = ceil_div(rows, aim);
    for (int64_t i = 0; i < parts; ++i)
      units.push_back({e, offsets[e] + rows * i / parts, offsets[e] + rows * (i + 1) / parts});
  }
  return units;
}

// The rows of x that a unit's tokens name, as cells one after the other.
template <typename Kind>
void gather_cells(const float* x, const int32_t* token, int64_t rows, int64_t D, typename Kind::Cell* out) {
  for (int64_t r = 0; r < rows; ++r) {
    if (r + kAhead < rows) prefetch(x + token[r + kAhead] * D, D);
    row_cells<Kind>(x + token[r] * D, D, out + r * pitch_of<Kind>(D));
  }
}

struct Sizes {
  int64_t T, K, R, E, D, I;
  bool half;
};

template <typename Kind>
void forward(const Sizes& n, const View& x_TD, const View& offsets_E1, const View& token_R, const View& gate_up_panels,
             const View& down_panels, const View& hidden_R_2I, const View& out_RD) {
  using Cell = typename Kind::Cell;
  const int64_t steps_d = steps_of<Kind>(n.D), steps_i = steps_of<Kind>(n.I), wide = 2 * n.I;
  const int64_t pitch_d = pitch_of<Kind>(n.D), pitch_i = pitch_of<Kind>(n.I);
  const int64_t up_size = panel_count(wide) * steps_d * kPanel, down_size = panel_count(n.D) * steps_i * kPanel;
  const int32_t* token = token_R.as<int32_t>();
  const Launch launch = tuned(Op::experts, kCombine, kUnitRows);
  const std::vector<Unit> units = cut(offsets_E1.as<int32_t>(), 0, n.E, launch);
  parallel(launch, units.size(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) {
      const Unit& unit = units[u];
      const int64_t rows = unit.end - unit.begin;
      Cell* x = scratch<Cell>(0, rows * pitch_d);
      gather_cells<Kind>(x_TD.as<float>(), token + unit.begin, rows, n.D, x);
      float* hidden = hidden_R_2I ? hidden_R_2I.as<float>() + unit.begin * wide : scratch<float>(2, rows * wide);
      rows_times_panels<Kind>(x, pitch_d, 1, rows, gate_up_panels.as<Cell>() + unit.expert * up_size, steps_d, hidden,
                              wide, wide, false);
      Cell* act = scratch<Cell>(1, rows * pitch_i);
      float* act_row = scratch<float>(3, n.I);
      for (int64_t r = 0; r < rows; ++r) {
        swiglu_row(hidden + r * wide, n.I, act_row);
        row_cells<Kind>(act_row, n.I, act + r * pitch_i);
      }
      rows_times_panels<Kind>(act, pitch_i, 1, rows, down_panels.as<Cell>() + unit.expert * down_size, steps_i,
                              out_RD.as<float>() + unit.begin * n.D, n.D, n.D, false);
    }
  });
}

// What the backward reads and writes. dhidden_W_2I and act_WI hold the rows of a few experts at a time, so that they
// are still in the cache when the weight gradients read them.
struct Backward {
  const float *dy_TD, *x_TD, *weight_TK, *hidden_R_2I;
  const int32_t *offsets_E1, *row_TK, *token_R;
  const void *gate_up_panels, *down_panels;
  float *dhidden_W_2I, *act_WI, *drow_RD, *dweight_TK, *dgate_up_E_2I_D, *ddown_E_D_I;
};

// Gradients of the rows of experts [first, last): into dhidden, the weighted act, drow and dweight.
template <typename Kind>
void rows_backward(const Sizes& n, const Backward& p, int64_t first, int64_t last) {
  using Cell = typename Kind::Cell;
  const int64_t wide = 2 * n.I, steps_d = steps_of<Kind>(n.D), steps_w = steps_of<Kind>(wide);
  const int64_t pitch_d = pitch_of<Kind>(n.D), pitch_w = pitch_of<Kind>(wide);
  const int64_t up_size = panel_count(n.D) * steps_w * kPanel, down_size = panel_count(n.I) * steps_d * kPanel;
  const Launch launch = tuned(Op::experts_grad, kGradTile, kUnitRows);
  const std::vector<Unit> units = cut(p.offsets_E1, first, last, launch);
  parallel(launch, units.size(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) {
      const Unit& unit = units[u];
      const int64_t rows = unit.end - unit.begin;
      Cell* dy = scratch<Cell>(0, rows * std::max(pitch_d, pitch_w));
      gather_cells<Kind>(p.dy_TD, p.token_R + unit.begin, rows, n.D, dy);
      float* dact = scratch<float>(2, rows * n.I);
      rows_times_panels<Kind>(dy, pitch_d, 1, rows, static_cast<const Cell*>(p.down_panels) + unit.expert * down_size,
                              steps_d, dact, n.I, n.I, false);
      Cell* dhidden = dy;  // dy is used up
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t row = unit.begin + r, place = row - p.offsets_E1[first];
        int64_t slot = p.token_R[row] * n.K;
        while (p.row_TK[slot] != row) ++slot;
        float* to = p.dhidden_W_2I + place * wide;
        p.dweight_TK[slot] = swiglu_row_backward(p.hidden_R_2I + row * wide, dact + r * n.I, p.weight_TK[slot], n.I, to,
                                                 p.act_WI + place * n.I);
        row_cells<Kind>(to, wide, dhidden + r * pitch_w);
      }
      const Cell* up = static_cast<const Cell*>(p.gate_up_panels) + unit.expert * up_size;
      rows_times_panels<Kind>(dhidden, pitch_w, 1, rows, up, steps_w, p.drow_RD + unit.begin * n.D, n.D, n.D, false);
    }
  });
}

// Tiles of the two matrices of one expert, of at most `side` rows and columns.
struct GradTiles {
  int64_t side, across_up, across_down, up, both;
  GradTiles(const Sizes& n, int64_t side)
      : side(side),
        across_up(ceil_div(n.D, side)),
        across_down(ceil_div(n.I, side)),
        up(ceil_div(2 * n.I, side) * across_up),
        both(up + ceil_div(n.D, side) * across_down) {}
};

// As large as leaves every thread several, so that none idles long while another has the last one.
GradTiles grad_tiles(const Sizes& n, int64_t experts, const Launch& launch) {
  int64_t side = launch.grain;
  while (side > kPanel && experts * GradTiles(n, side).both < 4 * launch.threads) side /= 2;
  return GradTiles(n, side);
}

// Weight gradients of experts [first, last), from what rows_backward left: tiles of both matrices in one loop.
template <typename Kind>
void weight_grads(const Sizes& n, const Backward& p, int64_t first, int64_t last) {
  const int64_t wide = 2 * n.I, base = p.offsets_E1[first];
  const Launch launch = tuned(Op::experts_grad, kGradTile, kUnitRows);
  const GradTiles tiles = grad_tiles(n, last - first, launch);
  const auto x = [&](int64_t r) { return p.x_TD + p.token_R[r] * n.D; };
  const auto dy = [&](int64_t r) { return p.dy_TD + p.token_R[r] * n.D; };
  const auto act = [&](int64_t r) { return p.act_WI + (r - base) * n.I; };
  const auto dhidden = [&](int64_t r) { return p.dhidden_W_2I + (r - base) * wide; };
  // One tile of dw = left^T right over the rows of expert e.
  const auto tile = [&](int64_t e, int64_t n0, int64_t k0, const auto& left, int64_t height, const auto& right,
                        int64_t width, float* dw) {
    const int64_t from = p.offsets_E1[e];
    weight_grad_tile<Kind>([&](int64_t r) { return left(from + r); }, [&](int64_t r) { return right(from + r); },
                           p.offsets_E1[e + 1] - from, n0, std::min(height, n0 + tiles.side), k0,
                           std::min(width, k0 + tiles.side), dw + e * height * width, width);
  };
  parallel(launch, (last - first) * tiles.both, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t e = first + i / tiles.both, up_tile = i % tiles.both, down_tile = up_tile - tiles.up;
      if (down_tile < 0)
        tile(e, up_tile / tiles.across_up * tiles.side, up_tile % tiles.across_up * tiles.side, dhidden, wide, x, n.D,
             p.dgate_up_E_2I_D);
      else
        tile(e, down_tile / tiles.across_down * tiles.side, down_tile % tiles.across_down * tiles.side, dy, n.D, act,
             n.I, p.ddown_E_D_I);
    }
  });
}

// As many experts at a time as the workspace of W rows holds.
template <typename Kind>
void backward(const Sizes& n, const Backward& p, int64_t W) {
  for (int64_t first = 0, last; first < n.E; first = last) {
    last = first + 1;
    while (last < n.E && p.offsets_E1[last + 1] - p.offsets_E1[first] <= W) ++last;
    rows_backward<Kind>(n, p, first, last);
    weight_grads<Kind>(n, p, first, last);
  }
}

// Sizes of a call, and the checks of the routing: its indices are used as they are, so they must lie in range.
Sizes check_routing(const View& x_TD, const View& weight_TK, const View& offsets_E1, const View& row_TK,
                    const View& token_R) {
  x_TD.check("x", Dtype::f32, {-1, -1});
  Sizes n{};
  n.T = x_TD.size[0], n.D = x_TD.size[1];
  weight_TK.check("routing.weight_TK", Dtype::f32, {n.T, -1});
  n.K = weight_TK.size[1], n.R = n.T * n.K;
  offsets_E1.check("routing.offsets_E1", Dtype::i32, {-1});
  n.E = offsets_E1.size[0] - 1;
  const int32_t* offsets = offsets_E1.as<int32_t>();
  ST_CHECK(n.E >= 1 && offsets[0] == 0 && offsets[n.E] == n.R, "routing.offsets_E1: must run from 0 to T * K = ", n.R);
  for (int64_t e = 0; e < n.E; ++e) ST_CHECK(offsets[e] <= offsets[e + 1], "routing.offsets_E1: must not descend");
  check_rows(row_TK, token_R, n.T, n.K);
  note_imbalance(offsets, n.E);
  return n;
}

void check_stack(const char* what, const View& panels, Sizes& n, int64_t columns, int64_t reduced) {
  n.half = panels.dtype == Dtype::bf16;
  if (n.half)
    panels.check(what, Dtype::bf16, {n.E, panel_count(columns), (reduced + 1) / 2, kPanel, 2});
  else
    panels.check(what, Dtype::f32, {n.E, panel_count(columns), reduced, kPanel});
}

}  // namespace

void experts_forward(const View& x_TD, const View& weight_TK, const View& offsets_E1, const View& row_TK,
                     const View& token_R, const View& gate_up_panels, const View& down_panels, int64_t width,
                     const View& hidden_R_2I, const View& out_RD, const View& y_TD) {
  Sizes n = check_routing(x_TD, weight_TK, offsets_E1, row_TK, token_R);
  ST_CHECK(down_panels.dtype == gate_up_panels.dtype, "down: packed for another compute dtype than gate_up");
  n.I = width;
  check_stack("gate_up", gate_up_panels, n, 2 * n.I, n.D);
  check_stack("down", down_panels, n, n.D, n.I);
  if (hidden_R_2I) hidden_R_2I.check("hidden", Dtype::f32, {n.R, 2 * n.I});
  out_RD.check("out", Dtype::f32, {n.R, n.D});
  y_TD.check("y", Dtype::f32, {n.T, n.D});
  with_kind(n.half, [&](auto kind) {
    forward<decltype(kind)>(n, x_TD, offsets_E1, token_R, gate_up_panels, down_panels, hidden_R_2I, out_RD);
  });
  combine<Floats>(out_RD.as<float>(), row_TK.as<int32_t>(), weight_TK.as<float>(), n.T, n.K, n.D, y_TD.as<float>());
}

void experts_backward(const View& dy_TD, const View& x_TD, const View& weight_TK, const View& offsets_E1,
                      const View& row_TK, const View& token_R, const View& gate_up_panels, const View& down_panels,
                      const View& hidden_R_2I, const View& dhidden_W_2I, const View& act_WI, const View& drow_RD,
                      const View& dx_TD, const View& dweight_TK, const View& dgate_up_E_2I_D, const View& ddown_E_D_I) {
  Sizes n = check_routing(x_TD, weight_TK, offsets_E1, row_TK, token_R);
  act_WI.check("act", Dtype::f32, {-1, -1});
  const int64_t W = act_WI.size[0];
  n.I = act_WI.size[1];
  check_stack("gate_up", gate_up_panels, n, n.D, 2 * n.I);
  check_stack("down", down_panels, n, n.I, n.D);
  dy_TD.check("dy", Dtype::f32, {n.T, n.D});
  hidden_R_2I.check("hidden", Dtype::f32, {n.R, 2 * n.I});
  dhidden_W_2I.check("dhidden", Dtype::f32, {W, 2 * n.I});
  drow_RD.check("drow", Dtype::f32, {n.R, n.D});
  dx_TD.check("dx", Dtype::f32, {n.T, n.D});
  dweight_TK.check("dweight", Dtype::f32, {n.T, n.K});
  dgate_up_E_2I_D.check("dgate_up", Dtype::f32, {n.E, 2 * n.I, n.D});
  ddown_E_D_I.check("ddown", Dtype::f32, {n.E, n.D, n.I});
  const int32_t* offsets = offsets_E1.as<int32_t>();
  for (int64_t e = 0; e < n.E; ++e)
    ST_CHECK(offsets[e + 1] - offsets[e] <= W, "act: workspace of ", W, " rows is too small for expert ", e);
  const Backward p{dy_TD.as<float>(),
                   x_TD.as<float>(),
                   weight_TK.as<float>(),
                   hidden_R_2I.as<float>(),
                   offsets,
                   row_TK.as<int32_t>(),
                   token_R.as<int32_t>(),
                   gate_up_panels.pointer,
                   down_panels.pointer,
                   dhidden_W_2I.as<float>(),
                   act_WI.as<float>(),
                   drow_RD.as<float>(),
                   dweight_TK.as<float>(),
                   dgate_up_E_2I_D.as<float>(),
                   ddown_E_D_I.as<float>()};
  with_kind(n.half, [&](auto kind) { backward<decltype(kind)>(n, p, W); });
  combine<Floats>(p.drow_RD, p.row_TK, nullptr, n.T, n.K, n.D, dx_TD.as<float>());
}

}  // namespace seedthink::ST_ISA
