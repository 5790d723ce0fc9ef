// Sums in float64 over pieces of at most kPiece tokens, cut from each sequence's beginning: a token's place in a piece
// decides which of sixteen chains it joins, and a fixed tree ends the piece. The pieces' results are put in ascending order
// before they are added, so the total depends on the set of sequences alone: not on their order, on how they are shared
// out over batches, or on threads.
#include "scan/whiten.h"

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "common/pool.h"

namespace seedthink::ST_ISA {
namespace {

constexpr int64_t kPiece = 32768;  // tokens: read twice, the second time from the cache
constexpr int kChains = 16;
constexpr int64_t kGrain = 65536;

struct Piece {
  int64_t sequence, begin, end;
  double count = 0., sum = 0., squares = 0.;  // squares: of the distances from the piece's own mean
};

// Sum of f(i) over [0, n).
template <typename F>
double chained_sum(int64_t n, const F& f) {
  double chain[kChains] = {};
  int64_t i = 0;
  for (; i + kChains <= n; i += kChains)
    for (int c = 0; c < kChains; ++c) chain[c] += f(i + c);
  for (int c = 0; i < n; ++i, ++c) chain[c] += f(i);
  for (int width = kChains / 2; width > 0; width /= 2)
    for (int c = 0; c < width; ++c) chain[c] += chain[c + width];
  return chain[0];
}

// counts(i): whether token i of the piece does.
template <typename Counts>
void reduce_counted(const float* x, const Counts& counts, Piece& piece) {
  const int64_t n = piece.end - piece.begin;
  piece.count = chained_sum(n, [&](int64_t i) { return counts(i) ? 1. : 0.; });
  piece.sum = chained_sum(n, [&](int64_t i) { return counts(i) ? double{x[i]} : 0.; });
  const double mean = piece.count > 0. ? piece.sum / piece.count : 0.;
  piece.squares = chained_sum(n, [&](int64_t i) {
    const double distance = double{x[i]} - mean;
    return counts(i) ? distance * distance : 0.;
  });
}

void reduce(const float* x, const uint8_t* mask, Piece& piece) {
  x += piece.begin;
  if (mask == nullptr) return reduce_counted(x, [](int64_t) { return true; }, piece);
  mask += piece.begin;
  reduce_counted(x, [mask](int64_t i) { return mask[i] != 0; }, piece);
}

std::vector<Piece> cut(const int32_t* bounds, int64_t B) {
  std::vector<Piece> pieces;
  for (int64_t b = 0; b < B; ++b)
    for (int64_t begin = bounds[b]; begin < bounds[b + 1]; begin += kPiece)
      pieces.push_back({b, begin, std::min<int64_t>(bounds[b + 1], begin + kPiece)});
  return pieces;
}

}  // namespace

void advantage_moments(const View& advantage_T, const View& cu_seqlens_B1, const View& mask_T, const View& moments_3) {
  advantage_T.check("advantage", Dtype::f32, {-1});
  const int64_t T = advantage_T.size[0];
  cu_seqlens_B1.check("cu_seqlens", Dtype::i32, {-1});
  const int64_t B = cu_seqlens_B1.size[0] - 1;
  ST_CHECK(B >= 0, "cu_seqlens: needs at least one entry");
  if (mask_T) mask_T.check("mask", Dtype::b8, {T});
  moments_3.check("moments", Dtype::f64, {3});
  const int32_t* bounds = cu_seqlens_B1.as<int32_t>();
  ST_CHECK(bounds[0] == 0 && bounds[B] == T, "cu_seqlens: must run from 0 to ", T);
  for (int64_t b = 0; b < B; ++b) ST_CHECK(bounds[b] <= bounds[b + 1], "cu_seqlens: descends at entry ", b + 1);

  std::vector<Piece> pieces = cut(bounds, B);
  const int64_t count = static_cast<int64_t>(pieces.size());
  parallel(count, 1 + kGrain * count / (T + 1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) reduce(advantage_T.as<float>(), mask_T.as<uint8_t>(), pieces[i]);
  });
  for (const Piece& piece : pieces)
    ST_CHECK(std::isfinite(piece.sum), "advantage: sequence ", piece.sequence, " holds NaN or infinity");
  std::sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) {
    return std::tie(a.sum, a.count, a.squares) < std::tie(b.sum, b.count, b.squares);
  });
  double tokens = 0., sum = 0., squares = 0.;
  for (const Piece& piece : pieces) tokens += piece.count, sum += piece.sum;
  const double mean = tokens > 0. ? sum / tokens : 0.;
  for (const Piece& piece : pieces) {
    if (piece.count == 0.) continue;
    const double distance = piece.sum / piece.count - mean;
    squares += piece.squares + piece.count * distance * distance;
  }
  double* moments = moments_3.as<double>();
  moments[0] = tokens;
  moments[1] = mean;
  moments[2] = tokens > 0. ? squares / tokens : 0.;
}

void shift_and_scale(const View& advantage_T, const View& mask_T, double mean, double scale, const View& y_T) {
  advantage_T.check("advantage", Dtype::f32, {-1});
  const int64_t T = advantage_T.size[0];
  if (mask_T) mask_T.check("mask", Dtype::b8, {T});
  y_T.check("y", Dtype::f32, {T});
  const float* x = advantage_T.as<float>();
  const uint8_t* mask = mask_T.as<uint8_t>();
  float* y = y_T.as<float>();
  parallel(T, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float whitened = static_cast<float>((double{x[t]} - mean) * scale);
      y[t] = mask == nullptr || mask[t] != 0 ? whitened : 0.f;
    }
  });
}

}  // namespace seedthink::ST_ISA
