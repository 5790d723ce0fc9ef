// The block-scaled product. FP8 numbers are bfloat16 numbers, so codes become operands of the row-exact product without
// rounding; each 128 of K are one such product of their own, which is scaled and added to what stands before it.
#include "common/pool.h"
#include "fp8/format.h"
#include "fp8/fp8.h"
#include "linear/gemm.h"

namespace seedthink::ST_ISA {
namespace {

constexpr int64_t kBlock = 128;                       // of K, and of a weight's rows
constexpr int64_t kBlockSteps = kBlock / 2;           // pairs
constexpr int64_t kUnitRows = 512;                    // of x, for which a panel of weights is decoded once
constexpr int64_t kTileRows = 96;                     // of x, whose partial sums stay in the L1 cache
constexpr int64_t kPitch = kBlockSteps + kLanes;      // of decoded weights: rows do not meet in one set of the cache

static_assert(kBlock % kPanel == 0, "one scale for a panel");

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// n codes as bfloat16 in pairs, then zeros up to `cells` cells.
template <typename F>
void decode_cells(const uint8_t* codes, int64_t n, uint32_t* out, int64_t cells) {
  bf16* to = reinterpret_cast<bf16*>(out);
  for_vectors(n, [&](int64_t i, int live) { store_live(to + i, decode<F>(load_codes(codes + i, live)), live); });
  std::memset(to + n, 0, static_cast<size_t>(2 * cells - n) * sizeof(bf16));
}

// Panel of up to 64 rows of w over up to 128 of k, which is [steps, 64] cells.
template <typename F>
void decode_panel(const uint8_t* w, int64_t K, int64_t rows, int64_t k, uint32_t* panel) {
  uint32_t* cells = scratch<uint32_t>(0, kPanel * kPitch);
  for (int64_t r = 0; r < kPanel; ++r)
    decode_cells<F>(r < rows ? w + r * K : w, r < rows ? k : 0, cells + r * kPitch, kBlockSteps);
  turn_cells(cells, kPitch, kPanel, kBlockSteps, panel, kPanel);
}

struct Problem {
  const uint8_t *x, *w;
  const float *x_scale, *w_scale;
  uint32_t* cells;
  float* y;
  int64_t T, K, N, Q, pitch;
};

// Rows [t, t + rows) of y in the columns of panel p.
template <typename Kind, typename W>
void multiply(const Problem& p, int64_t t, int64_t rows, int64_t panel_index) {
  const int64_t n = panel_index * kPanel, columns = std::min(kPanel, p.N - n);
  uint32_t* panel = scratch<uint32_t>(1, kBlockSteps * kPanel);
  float* sum = scratch<float>(2, rows * kPanel);
  float* part = scratch<float>(3, kTileRows * kPanel);
  std::fill(sum, sum + rows * kPanel, 0.f);
  for (int64_t q = 0; q < p.Q; ++q) {
    const int64_t k = std::min(kBlock, p.K - q * kBlock), steps = (k + 1) / 2;
    decode_panel<W>(p.w + n * p.K + q * kBlock, p.K, columns, k, panel);
    const float w_scale = p.w_scale[n / kBlock * p.Q + q];
    for (int64_t r = 0; r < rows; r += kTileRows) {
      const int64_t live = std::min(kTileRows, rows - r);
      rows_times_panels<Kind>(p.cells + (t + r) * p.pitch + q * kBlockSteps, p.pitch, 1, live, panel, steps, part,
                              kPanel, kPanel, false);
      for (int64_t i = 0; i < live; ++i) {
        const vf scale = splat(p.x_scale[(t + r + i) * p.Q + q] * w_scale);
        float* to = sum + (r + i) * kPanel;
        for (int64_t c = 0; c < kPanel; c += kLanes)
          store(to + c, load(to + c) + load(part + i * kPanel + c) * scale);
      }
    }
  }
  for (int64_t r = 0; r < rows; ++r) std::memcpy(p.y + (t + r) * p.N + n, sum + r * kPanel, columns * sizeof(float));
}

template <typename Kind, typename X, typename W>
void product(const Problem& p) {
  parallel(p.T, 1 + 32768 / (p.K + 1), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      decode_cells<X>(p.x + t * p.K, p.K, p.cells + t * p.pitch, p.pitch);
  });
  const int64_t P = panel_count(p.N), units = ceil_div(p.T, kUnitRows);
  parallel(P * units, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t unit = i / P, t0 = p.T * unit / units, t1 = p.T * (unit + 1) / units;
      multiply<Kind, W>(p, t0, t1 - t0, i % P);
    }
  });
}

}  // namespace

int64_t fp8_linear_pitch(int64_t K) { return tile_pitch((K + 1) / 2); }

void fp8_linear(const View& x_TK, const View& x_scale_TQ, const View& w_NK, const View& w_scale_PQ, const View& cells,
                const View& y_TN) {
  x_TK.check("x", x_TK.dtype, {-1, -1});
  const int64_t T = x_TK.size[0], K = x_TK.size[1], Q = ceil_div(K, kBlock), pitch = fp8_linear_pitch(K);
  w_NK.check("w", w_NK.dtype, {-1, K});
  const int64_t N = w_NK.size[0];
  x_scale_TQ.check("x scale", Dtype::f32, {T, Q});
  w_scale_PQ.check("w scale", Dtype::f32, {ceil_div(N, kBlock), Q});
  cells.check("cells", Dtype::i32, {T, pitch});
  y_TN.check("y", Dtype::f32, {T, N});
  if (T == 0 || N == 0) return;
  const Problem problem{x_TK.as<uint8_t>(), w_NK.as<uint8_t>(), x_scale_TQ.as<float>(), w_scale_PQ.as<float>(),
                        cells.as<uint32_t>(), y_TN.as<float>(), T, K, N, Q, pitch};
  with_format("x", x_TK, [&](auto x_format) {
    using X = decltype(x_format);
    with_format("w", w_NK, [&](auto w_format) {
      using W = decltype(w_format);
      with_kind(true, [&](auto kind) {
        using Kind = decltype(kind);
        if constexpr (Kind::kPerStep == 2) product<Kind, X, W>(problem);
      });
    });
  });
}

}  // namespace seedthink::ST_ISA
