#include <vector>

#include "activation/row.h"
#include "common/pool.h"
#include "linear/gemm.h"
#include "moe/moe.h"

namespace seedthink::ST_ISA {
namespace {

constexpr int64_t kUnitRows = 96;  // rows of one unit at most: its cells and activations stay in the L2 cache
constexpr int64_t kUnitLeast = 12; // and at least, where an expert has as many: below, panels are read too often
constexpr int64_t kGradTile = 256; // rows and columns of a weight gradient's tile, at most

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Rows [begin, end) of one expert: what a thread takes at a time.
struct Unit {
  int64_t expert, begin, end;
};

// Cuts every expert's rows into nearly equal units, small enough to balance uneven experts over the threads. The cut
// cannot move a bit: rows do not see each other.
std::vector<Unit> cut(const int32_t* offsets, int64_t E, int64_t R) {
  const int64_t aim = std::min(kUnitRows, std::max(kUnitLeast, R / (8 * threads())));
  std::vector<Unit> units;
  for (int64_t e = 0; e < E; ++e) {
    const int64_t rows = offsets[e + 1] - offsets[e], parts = ceil_div(rows, aim);
    for (int64_t i = 0; i < parts; ++i)
      units.push_back({e, offsets[e] + rows * i / parts, offsets[e] + rows * (i + 1) / parts});
  }
  return units;
}

// y[t] = sum over the k rows of a token, in expert order, of weight * row; a null weight counts as one.
void combine(const float* rows, const int32_t* row_TK, const float* weight_TK, int64_t T, int64_t K, int64_t D, float* y) {
  parallel(T, 1 + 32768 / (K * D + 1), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int32_t* row = row_TK + t * K;
      if (t + kAhead < end)
        for (int64_t k = 0; k < K; ++k) prefetch(rows + row[kAhead * K + k] * D, D);
      for_vectors(D, [&](int64_t i, int live) {
        vf acc = splat(0.f);
        for (int64_t k = 0; k < K; ++k)
          acc = fma(splat(weight_TK != nullptr ? weight_TK[t * K + k] : 1.f), load_some(rows + row[k] * D + i, live), acc);
        store_some(y + t * D + i, acc, live);
      });
    }
  });
}

// The rows of x that a unit's tokens name, as cells one after the other.
template <typename Kind>
void gather_cells(const float* x, const int32_t* token, int64_t rows, int64_t D, typename Kind::Cell* out) {
  for (int64_t r = 0; r < rows; ++r) {
    if (r + kAhead < rows) prefetch(x + token[r + kAhead] * D, D);
    row_cells<Kind>(x + token[r] * D, D, out + r * steps_of<Kind>(D));
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
  const int64_t up_size = panel_count(wide) * steps_d * kPanel, down_size = panel_count(n.D) * steps_i * kPanel;
  const int32_t* token = token_R.as<int32_t>();
  const std::vector<Unit> units = cut(offsets_E1.as<int32_t>(), n.E, n.R);
  parallel(units.size(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) {
      const Unit& unit = units[u];
      const int64_t rows = unit.end - unit.begin;
      Cell* x = scratch<Cell>(0, rows * steps_d);
      gather_cells<Kind>(x_TD.as<float>(), token + unit.begin, rows, n.D, x);
      float* hidden = hidden_R_2I ? hidden_R_2I.as<float>() + unit.begin * wide : scratch<float>(2, rows * wide);
      rows_times_panels<Kind>(x, steps_d, 1, rows, gate_up_panels.as<Cell>() + unit.expert * up_size, steps_d, hidden, wide,
                              wide, false);
      Cell* act = scratch<Cell>(1, rows * steps_i);
      float* act_row = scratch<float>(3, n.I);
      for (int64_t r = 0; r < rows; ++r) {
        swiglu_row(hidden + r * wide, n.I, act_row);
        row_cells<Kind>(act_row, n.I, act + r * steps_i);
      }
      rows_times_panels<Kind>(act, steps_i, 1, rows, down_panels.as<Cell>() + unit.expert * down_size, steps_i,
                              out_RD.as<float>() + unit.begin * n.D, n.D, n.D, false);
    }
  });
}

template <typename Kind>
void backward(const Sizes& n, const View& dy_TD, const View& weight_TK, const View& offsets_E1, const View& row_TK,
              const View& token_R, const View& gate_up_panels, const View& down_panels, const View& hidden_R_2I,
              const View& dhidden_R_2I, const View& act_RI, const View& drow_RD, const View& dweight_TK) {
  using Cell = typename Kind::Cell;
  const int64_t wide = 2 * n.I, steps_d = steps_of<Kind>(n.D), steps_w = steps_of<Kind>(wide);
  const int64_t up_size = panel_count(n.D) * steps_w * kPanel, down_size = panel_count(n.I) * steps_d * kPanel;
  const int32_t *token = token_R.as<int32_t>(), *row_of = row_TK.as<int32_t>();
  const std::vector<Unit> units = cut(offsets_E1.as<int32_t>(), n.E, n.R);
  parallel(units.size(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) {
      const Unit& unit = units[u];
      const int64_t rows = unit.end - unit.begin;
      Cell* dy = scratch<Cell>(0, rows * std::max(steps_d, steps_w));
      gather_cells<Kind>(dy_TD.as<float>(), token + unit.begin, rows, n.D, dy);
      float* dact = scratch<float>(2, rows * n.I);
      rows_times_panels<Kind>(dy, steps_d, 1, rows, down_panels.as<Cell>() + unit.expert * down_size, steps_d, dact, n.I,
                              n.I, false);
      Cell* dhidden = dy;  // dy is used up
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t row = unit.begin + r;
        int64_t slot = token[row] * n.K;
        while (row_of[slot] != row) ++slot;
        float* to = dhidden_R_2I.as<float>() + row * wide;
        dweight_TK.as<float>()[slot] =
            swiglu_row_backward(hidden_R_2I.as<float>() + row * wide, dact + r * n.I, weight_TK.as<float>()[slot], n.I, to,
                                act_RI.as<float>() + row * n.I);
        if (drow_RD) row_cells<Kind>(to, wide, dhidden + r * steps_w);
      }
      if (drow_RD)
        rows_times_panels<Kind>(dhidden, steps_w, 1, rows, gate_up_panels.as<Cell>() + unit.expert * up_size, steps_w,
                                drow_RD.as<float>() + unit.begin * n.D, n.D, n.D, false);
    }
  });
}

// One matrix of one expert: tiles of dw = left^T right over the expert's rows.
template <typename Kind, typename LeftRow, typename RightRow>
void expert_grads(const Sizes& n, const int32_t* offsets, int64_t height, int64_t width, float* dw, const LeftRow& left,
                  const RightRow& right) {
  const int64_t down = ceil_div(height, kGradTile), across = ceil_div(width, kGradTile), tiles = down * across;
  parallel(n.E * tiles, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t e = i / tiles, first = offsets[e];
      const int64_t n0 = i % tiles / across * kGradTile, k0 = i % across * kGradTile;
      weight_grad_tile<Kind>([&](int64_t r) { return left(first + r); }, [&](int64_t r) { return right(first + r); },
                             offsets[e + 1] - first, n0, std::min(height, n0 + kGradTile), k0,
                             std::min(width, k0 + kGradTile), dw + e * height * width, width);
    }
  });
}

template <typename Kind>
void weight_grads(const Sizes& n, const View& dy_TD, const View& x_TD, const View& offsets_E1, const View& token_R,
                  const View& dhidden_R_2I, const View& act_RI, const View& dgate_up, const View& ddown) {
  const int32_t *offsets = offsets_E1.as<int32_t>(), *token = token_R.as<int32_t>();
  const float *x = x_TD.as<float>(), *dy = dy_TD.as<float>();
  const float *dhidden = dhidden_R_2I.as<float>(), *act = act_RI.as<float>();
  expert_grads<Kind>(n, offsets, 2 * n.I, n.D, dgate_up.as<float>(), [&](int64_t r) { return dhidden + r * 2 * n.I; },
                     [&](int64_t r) { return x + token[r] * n.D; });
  expert_grads<Kind>(n, offsets, n.D, n.I, ddown.as<float>(), [&](int64_t r) { return dy + token[r] * n.D; },
                     [&](int64_t r) { return act + r * n.I; });
}

// Sizes of a call, and the checks of the routing: its indices are used as they are, so they must lie in range.
Sizes check_routing(const View& x_TD, const View& weight_TK, const View& offsets_E1, const View& row_TK,
                    const View& token_R) {
  x_TD.check("x", Dtype::f32, {-1, -1});
  Sizes n{};
  n.T = x_TD.size[0], n.D = x_TD.size[1];
  weight_TK.check("routing.weight_TK", Dtype::f32, {n.T, -1});
  n.K = weight_TK.size[1], n.R = n.T * n.K;
  row_TK.check("routing.row_TK", Dtype::i32, {n.T, n.K});
  token_R.check("routing.token_R", Dtype::i32, {n.R});
  offsets_E1.check("routing.offsets_E1", Dtype::i32, {-1});
  n.E = offsets_E1.size[0] - 1;
  const int32_t *offsets = offsets_E1.as<int32_t>(), *row = row_TK.as<int32_t>(), *token = token_R.as<int32_t>();
  ST_CHECK(n.E >= 1 && offsets[0] == 0 && offsets[n.E] == n.R, "routing.offsets_E1: must run from 0 to T * K = ", n.R);
  for (int64_t e = 0; e < n.E; ++e) ST_CHECK(offsets[e] <= offsets[e + 1], "routing.offsets_E1: must not descend");
  for (int64_t i = 0; i < n.R; ++i)
    ST_CHECK(row[i] >= 0 && row[i] < n.R && token[row[i]] == i / n.K, "routing.row_TK: entry ", i,
             " is not a row of its token");
  return n;
}

void check_stack(const char* what, const View& panels, Sizes& n, int64_t columns, int64_t reduced) {
  n.half = panels.dtype == Dtype::bf16;
  if (n.half)
    panels.check(what, Dtype::bf16, {n.E, panel_count(columns), (reduced + 1) / 2, kPanel, 2});
  else
    panels.check(what, Dtype::f32, {n.E, panel_count(columns), reduced, kPanel});
}

template <typename Call>
void with_kind(bool half, const Call& call) {
  if (!half)
    call(Single{});
  else if (has_bf16_dot())
    call(PairDot{});
  else
    call(PairWiden{});
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
  combine(out_RD.as<float>(), row_TK.as<int32_t>(), weight_TK.as<float>(), n.T, n.K, n.D, y_TD.as<float>());
}

void experts_backward(const View& dy_TD, const View& x_TD, const View& weight_TK, const View& offsets_E1,
                      const View& row_TK, const View& token_R, const View& gate_up_panels, const View& down_panels,
                      const View& hidden_R_2I, const View& dhidden_R_2I, const View& act_RI, const View& drow_RD,
                      const View& dx_TD, const View& dweight_TK) {
  Sizes n = check_routing(x_TD, weight_TK, offsets_E1, row_TK, token_R);
  act_RI.check("act", Dtype::f32, {n.R, -1});
  n.I = act_RI.size[1];
  check_stack("gate_up", gate_up_panels, n, n.D, 2 * n.I);
  check_stack("down", down_panels, n, n.I, n.D);
  dy_TD.check("dy", Dtype::f32, {n.T, n.D});
  hidden_R_2I.check("hidden", Dtype::f32, {n.R, 2 * n.I});
  dhidden_R_2I.check("dhidden", Dtype::f32, {n.R, 2 * n.I});
  dweight_TK.check("dweight", Dtype::f32, {n.T, n.K});
  if (drow_RD) drow_RD.check("drow", Dtype::f32, {n.R, n.D});
  with_kind(n.half, [&](auto kind) {
    backward<decltype(kind)>(n, dy_TD, weight_TK, offsets_E1, row_TK, token_R, gate_up_panels, down_panels, hidden_R_2I,
                             dhidden_R_2I, act_RI, drow_RD, dweight_TK);
  });
  if (drow_RD) {
    dx_TD.check("dx", Dtype::f32, {n.T, n.D});
    combine(drow_RD.as<float>(), row_TK.as<int32_t>(), nullptr, n.T, n.K, n.D, dx_TD.as<float>());
  }
}

void experts_weight_grad(const View& dy_TD, const View& x_TD, const View& offsets_E1, const View& token_R,
                         const View& dhidden_R_2I, const View& act_RI, bool half, const View& dgate_up_E_2I_D,
                         const View& ddown_E_D_I) {
  Sizes n{};
  n.T = x_TD.size[0], n.D = x_TD.size[1], n.R = act_RI.size[0], n.I = act_RI.size[1], n.E = offsets_E1.size[0] - 1;
  x_TD.check("x", Dtype::f32, {n.T, n.D});
  dy_TD.check("dy", Dtype::f32, {n.T, n.D});
  act_RI.check("act", Dtype::f32, {n.R, n.I});
  token_R.check("routing.token_R", Dtype::i32, {n.R});
  dhidden_R_2I.check("dhidden", Dtype::f32, {n.R, 2 * n.I});
  dgate_up_E_2I_D.check("dgate_up", Dtype::f32, {n.E, 2 * n.I, n.D});
  ddown_E_D_I.check("ddown", Dtype::f32, {n.E, n.D, n.I});
  with_kind(half, [&](auto kind) {
    weight_grads<decltype(kind)>(n, dy_TD, x_TD, offsets_E1, token_R, dhidden_R_2I, act_RI, dgate_up_E_2I_D, ddown_E_D_I);
  });
}

}  // namespace seedthink::ST_ISA
