// Codes column by column, each rounding error handed on to the columns behind it. Rows never meet, so a thread takes
// some rows through all columns: per 64 columns, the errors of the columns before them are one row-exact product with
// the factor's panels; inside them the recursion walks a column at a time, 16 rows to a vector.
#include <atomic>

#include "common/pool.h"
#include "fp8/format.h"
#include "fp8/fp8.h"
#include "linear/gemm.h"

namespace seedthink::ST_ISA {
namespace {

constexpr int kVectorsDown = 4;                          // enough chains of multiply-adds to hide their latency
constexpr int64_t kTileRows = kVectorsDown * kLanes;
constexpr float kNever = __builtin_nanf("");             // as an old value: no new one is near it

// kPanel columns of kTileRows rows, column by column.
struct alignas(64) Tile {
  float at[kPanel][kTileRows];
};

struct Problem {
  const float *weight, *factor, *panels, *scale, *old_scale;
  const uint8_t* old;
  uint8_t* codes;
  int64_t N, K, block_rows, block_columns, Q;
  float hysteresis;

  int64_t block(int64_t n, int64_t k) const { return n / block_rows * Q + k / block_columns; }
};

// Rows [n, n + rows) and columns [k, k + width) of a problem.
struct Part {
  int64_t n, rows, k, width;
};

// weight to `own`, weight plus `fed` (what earlier columns hand on, row by row) to `target`; whether all is finite.
// Rows that do not exist are zeros.
bool load_part(const Problem& p, const Part& part, const float* fed, Tile& own, Tile& target) {
  bool finite = true;
  for (int64_t r = 0; r < kTileRows; ++r) {
    const float* row = p.weight + (part.n + r) * p.K + part.k;
    for (int64_t i = 0; i < part.width; ++i) {
      const float w = r < part.rows ? row[i] : 0.f;
      finite = finite && std::fabs(w) <= FLT_MAX;
      own.at[i][r] = w;
      target.at[i][r] = r < part.rows ? w + fed[r * kPanel + i] : 0.f;
    }
  }
  return finite;
}

// Old codes' values, in steps of today's scale; kNever where the block's scale has moved.
template <typename F>
void load_old(const Problem& p, const Part& part, Tile& old) {
  alignas(64) float row[kPanel];
  for (int64_t r = 0; r < kTileRows; ++r) {
    if (r < part.rows)
      for_vectors(part.width, [&](int64_t i, int live) {
        store(row + i, decode<F>(load_codes(p.old + (part.n + r) * p.K + part.k + i, live)));
      });
    for (int64_t i = 0; i < part.width; ++i) {
      const bool stays = r < part.rows && p.scale[p.block(part.n + r, part.k + i)] ==
                                              p.old_scale[p.block(part.n + r, part.k + i)];
      old.at[i][r] = stays ? row[i] : kNever;
    }
  }
}

void load_scales(const Problem& p, const Part& part, int64_t i, vf (&scale)[kVectorsDown]) {
  alignas(64) float lane[kTileRows];
  for (int64_t r = 0; r < kTileRows; ++r) lane[r] = r < part.rows ? p.scale[p.block(part.n + r, part.k + i)] : 1.f;
  for (int v = 0; v < kVectorsDown; ++v) scale[v] = load(lane + v * kLanes);
}

// One column of 16 rows: writes the codes, returns the errors.
template <typename F>
vf settle(vf own, vf target, vf scale, const float* old, float hysteresis, uint8_t* codes) {
  const vf y = target / scale, size = floats(magnitude(y));
  Rounded rounded = round_to<F>(size);
  vf value = with_sign(rounded.value, y);
  vi code = rounded.code | sign_code(y);
  if (old != nullptr) {
    const vf before = load(old), away = floats(magnitude(y - before));
    const vi stays = away <= step_at<F>(size) * splat(hysteresis);
    value = stays ? before : value;
    // The code of a number of the format is found by rounding it.
    code = stays ? round_to<F>(floats(magnitude(before))).code | sign_code(before) : code;
  }
  *reinterpret_cast<vb_u*>(codes) = narrow(code);
  return own - value * scale;
}

template <typename F>
void recurse(const Problem& p, const Part& part, const Tile& own, const Tile& target, const Tile* old, Tile& error,
             uint8_t (*codes)[kTileRows]) {
  vf scale[kVectorsDown];
  for (int64_t i = 0; i < part.width; ++i) {
    if (i == 0 || (part.k + i) % p.block_columns == 0) load_scales(p, part, i, scale);
    const float* factor = p.factor + (part.k + i) * p.K + part.k;
    vf sum[kVectorsDown];
    for (int v = 0; v < kVectorsDown; ++v) sum[v] = load(target.at[i] + v * kLanes);
    for (int64_t j = 0; j < i; ++j)
      for (int v = 0; v < kVectorsDown; ++v) sum[v] = fma(load(error.at[j] + v * kLanes), splat(factor[j]), sum[v]);
    for (int v = 0; v < kVectorsDown; ++v) {
      const float* before = old != nullptr ? old->at[i] + v * kLanes : nullptr;
      store(error.at[i] + v * kLanes, settle<F>(load(own.at[i] + v * kLanes), sum[v], scale[v], before, p.hysteresis,
                                                codes[i] + v * kLanes));
    }
  }
}

// Rows [n, n + rows) through all columns; whether the weights were finite.
template <typename F>
bool feed_rows(const Problem& p, int64_t n, int64_t rows) {
  float* errors = scratch<float>(0, kTileRows * p.K);  // row by row, the product's left operand
  float* fed = scratch<float>(1, kTileRows * kPanel);
  std::fill(fed, fed + kTileRows * kPanel, 0.f);
  Tile own, target, old, error;
  uint8_t codes[kPanel][kTileRows];
  bool finite = true;
  for (int64_t k = 0; k < p.K; k += kPanel) {
    const Part part{n, rows, k, std::min(kPanel, p.K - k)};
    if (k > 0)
      rows_times_panel<Single>(errors, p.K, 1, rows, p.panels + k / kPanel * p.K * kPanel, k, fed, kPanel, part.width,
                               false);
    finite = load_part(p, part, fed, own, target) && finite;
    if (p.old != nullptr) load_old<F>(p, part, old);
    recurse<F>(p, part, own, target, p.old != nullptr ? &old : nullptr, error, codes);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t i = 0; i < part.width; ++i) {
        errors[r * p.K + k + i] = error.at[i][r];
        p.codes[(n + r) * p.K + k + i] = codes[i][r];
      }
  }
  return finite;
}

}  // namespace

void fp8_feedback(const View& weight_NK, const View& factor_KK, const View& panels, const View& scale_PQ,
                  int64_t block_rows, int64_t block_columns, const View& old_NK, const View& old_scale_PQ,
                  double hysteresis, const View& codes_NK) {
  weight_NK.check("weight", Dtype::f32, {-1, -1});
  const int64_t N = weight_NK.size[0], K = weight_NK.size[1];
  ST_CHECK(block_rows > 0 && block_columns > 0, "block: ", block_rows, " x ", block_columns, " must be positive");
  factor_KK.check("factor", Dtype::f32, {K, K});
  panels.check("panels", Dtype::f32, {1, panel_count(K), K, kPanel});
  const auto blocks = [](int64_t size, int64_t block) { return size > 0 ? (size - 1) / block + 1 : 0; };
  const int64_t P = blocks(N, block_rows), Q = blocks(K, block_columns);
  scale_PQ.check("scale", Dtype::f32, {P, Q});
  codes_NK.check("codes", codes_NK.dtype, {N, K});
  if (old_NK) {
    old_NK.check("old", codes_NK.dtype, {N, K});
    old_scale_PQ.check("old scale", Dtype::f32, {P, Q});
  }
  ST_CHECK(hysteresis >= 0.5 && hysteresis <= 2., "hysteresis: ", hysteresis, " steps is outside 0.5 to 2");
  const Problem problem{weight_NK.as<float>(),  factor_KK.as<float>(),  panels.as<float>(), scale_PQ.as<float>(),
                        old_scale_PQ.as<float>(), old_NK.as<uint8_t>(), codes_NK.as<uint8_t>(), N, K,
                        block_rows, block_columns, Q, static_cast<float>(hysteresis)};
  std::atomic<bool> finite{true};
  with_format("codes", codes_NK, [&](auto format) {
    parallel(blocks(N, kTileRows), 1, [&](int64_t begin, int64_t end) {
      for (int64_t tile = begin; tile < end; ++tile) {
        const int64_t n = tile * kTileRows;
        if (!feed_rows<decltype(format)>(problem, n, std::min(kTileRows, N - n))) finite.store(false);
      }
    });
  });
  ST_CHECK(finite.load(), "weight: holds NaN or infinity");
}

}  // namespace seedthink::ST_ISA
