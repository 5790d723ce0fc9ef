// The row-exact product: panels of 64 columns, and blocks of rows times a panel. Header-only, compiled once per
// instruction set; csrc/linear and csrc/moe build on it.
//
// Contract: an output element is one chain, started at zero, of Kind::step over the steps in ascending order. Nothing
// else (rows per block, panels per tile, threads) can change its bits. Padding adds steps of zero times zero only.
//
// bfloat16 operands travel in pairs of neighbouring k (even k in the low half; an odd K gets a zero). Where the CPU has
// vdpbf16ps one step is that instruction, elsewhere it is two fused multiply-adds, even k first: the instruction rounds
// differently and flushes subnormals, so the two are different device classes and differ in the last bits. Where it has
// AMX the chain is one of tile products over 16 pairs each (linear/tile_walk.h), a third device class.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <new>
#include <type_traits>

#include "common/simd.h"
#include "linear/pairs.h"
#include "linear/panel.h"
#include "linear/tile_walk.h"

namespace seedthink::ST_ISA {

struct Single {  // float32 operands, one k per step
  using Cell = float;
  using Reg = vf;
  static constexpr int64_t kPerStep = 1;
  static constexpr bool kOnTiles = false;
  static Reg read(const Cell* p) { return load(p); }
  static Reg repeat(const Cell* p) { return splat(*p); }
  static vf step(vf acc, Reg a, Reg b) { return fma(a, b, acc); }
};

struct PairWiden {  // bfloat16 pairs, widened
  using Cell = uint32_t;
  using Reg = vu;
  typedef uint32_t vu_u __attribute__((vector_size(64), aligned(4), may_alias));
  static constexpr int64_t kPerStep = 2;
  static constexpr bool kOnTiles = false;
  static Reg read(const Cell* p) { return *reinterpret_cast<const vu_u*>(p); }
  static Reg repeat(const Cell* p) { return Reg{} + *p; }
  static vf step(vf acc, Reg a, Reg b) {
    acc = fma(reinterpret_cast<vf>(a << 16), reinterpret_cast<vf>(b << 16), acc);
    return fma(reinterpret_cast<vf>(a & 0xffff0000u), reinterpret_cast<vf>(b & 0xffff0000u), acc);
  }
};

#if defined(__AVX512BF16__)
struct PairDot : PairWiden {  // bfloat16 pairs, vdpbf16ps
  static vf step(vf acc, Reg a, Reg b) { return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b); }
};
#else
using PairDot = PairWiden;
#endif

struct PairTilesEmulated : PairWiden {  // bfloat16 pairs on tiles: what tdpbf16ps is documented to give
  static constexpr bool kOnTiles = true;
  using Tiles = EmulatedTiles;
};

#if defined(__AMX_BF16__)
struct PairTiles : PairDot {  // bfloat16 pairs, tdpbf16ps
  static constexpr bool kOnTiles = true;
  using Tiles = HardwareTiles;
};
#else
using PairTiles = PairTilesEmulated;
#endif

// Calls call(Kind{}) for float32 products, or for the way in which this machine computes bfloat16 products.
template <typename Call>
void with_kind(bool half, const Call& call) {
  if (!half) return call(Single{});
  switch (pairs()) {
    case Pairs::widen:
      return call(PairWiden{});
    case Pairs::dot:
      return call(PairDot{});
    case Pairs::tiles:
      return call(PairTiles{});
    case Pairs::tiles_emulated:
      return call(PairTilesEmulated{});
  }
}

// Block shape: accumulators, one row of the panel and one repeated operand fill the vector registers.
#if defined(__AVX512F__)
constexpr int kRows = 6, kVectors = 4;
#elif defined(__AVX2__)
constexpr int kRows = 6, kVectors = 1;
#else
constexpr int kRows = 2, kVectors = 1;
#endif

// R rows times C vectors of columns. Left operand: cell (r, s) at a[r * row + s * step]; right: panel cells
// b[s * 64 + c]. The last vector has `last` (1..16) live columns. `add` adds the finished chains to y.
template <typename Kind, int R, int C>
void block(const typename Kind::Cell* a, int64_t row, int64_t step, const typename Kind::Cell* b, int64_t steps,
           float* y, int64_t ldy, int last, bool add) {
  vf acc[R][C];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) acc[r][c] = splat(0.f);
  const typename Kind::Cell* left[R];
  for (int r = 0; r < R; ++r) left[r] = a + r * row;
  for (int64_t s = 0, at = 0; s < steps; ++s, at += step) {
    typename Kind::Reg right[C];
    for (int c = 0; c < C; ++c) right[c] = Kind::read(b + s * kPanel + c * kLanes);
    for (int r = 0; r < R; ++r) {
      const typename Kind::Reg one = Kind::repeat(left[r] + at);
      for (int c = 0; c < C; ++c) acc[r][c] = Kind::step(acc[r][c], one, right[c]);
    }
  }
  for (int r = 0; r < R; ++r) {
    float* out = y + r * ldy;
    for (int c = 0; c + 1 < C; ++c) store(out + c * kLanes, add ? load(out + c * kLanes) + acc[r][c] : acc[r][c]);
    out += (C - 1) * kLanes;
    if (last == kLanes)
      store(out, add ? load(out) + acc[r][C - 1] : acc[r][C - 1]);
    else
      store_n(out, add ? load_n(out, last) + acc[r][C - 1] : acc[r][C - 1], last);
  }
}

template <typename Kind>
struct Blocks {
  using Function = void (*)(const typename Kind::Cell*, int64_t, int64_t, const typename Kind::Cell*, int64_t, float*,
                            int64_t, int, bool);
  template <int C>
  static Function of(int64_t rows) {
    if constexpr (kRows > 2) {
      if (rows == 6) return block<Kind, 6, C>;
      if (rows == 5) return block<Kind, 5, C>;
      if (rows == 4) return block<Kind, 4, C>;
      if (rows == 3) return block<Kind, 3, C>;
    }
    return rows == 2 ? block<Kind, 2, C> : block<Kind, 1, C>;
  }
  static Function pick(int64_t rows, int64_t vectors) {
    if constexpr (kVectors == 4) {
      if (vectors == 4) return of<4>(rows);
      if (vectors == 3) return of<3>(rows);
      if (vectors == 2) return of<2>(rows);
    }
    return of<1>(rows);
  }
};

// Any number of rows times one panel with `columns` (1..64) live columns. Blocks of nearly equal height keep every
// block tall enough to hide the latency of a chain.
template <typename Kind>
void rows_times_panel(const typename Kind::Cell* a, int64_t row, int64_t step, int64_t rows,
                      const typename Kind::Cell* panel, int64_t steps, float* y, int64_t ldy, int64_t columns,
                      bool add) {
  constexpr int64_t kWide = kVectors * kLanes;
  const int64_t blocks = (rows + kRows - 1) / kRows;
  for (int64_t from = 0; from < columns; from += kWide) {
    const int64_t live = std::min(kWide, columns - from), vectors = (live + kLanes - 1) / kLanes;
    const int last = static_cast<int>(live - (vectors - 1) * kLanes);
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t begin = rows * i / blocks, end = rows * (i + 1) / blocks;
      Blocks<Kind>::pick(end - begin, vectors)(a + begin * row, row, step, panel + from, steps,
                                               y + begin * ldy + from, ldy, last, add);
    }
  }
}

template <typename Kind>
int64_t steps_of(int64_t k) {
  return (k + Kind::kPerStep - 1) / Kind::kPerStep;
}

// Cells from one row of a left operand to the next, where this library lays it out itself.
template <typename Kind>
int64_t pitch_of(int64_t k) {
  return Kind::kOnTiles ? tile_pitch(steps_of<Kind>(k)) : steps_of<Kind>(k);
}

// Rows times every panel of a packed matrix with `n` columns: y[r, 0..n). On tiles `step` is 1 and `row` a pitch_of().
template <typename Kind>
void rows_times_panels(const typename Kind::Cell* a, int64_t row, int64_t step, int64_t rows,
                       const typename Kind::Cell* panels, int64_t steps, float* y, int64_t ldy, int64_t n, bool add) {
  if constexpr (Kind::kOnTiles)
    return tiles_times_panels<typename Kind::Tiles>(a, row, rows, panels, steps, y, ldy, n, add);
  else
    for (int64_t p = 0; p < panel_count(n); ++p)
      rows_times_panel<Kind>(a, row, step, rows, panels + p * steps * kPanel, steps, y + p * kPanel, ldy,
                             std::min(kPanel, n - p * kPanel), add);
}

// bfloat16 bits (low half of each lane) by round to nearest even; NaN stays NaN.
inline vu round_bits(vf x) {
  const vu u = reinterpret_cast<vu>(x);
  const vu rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  return (u & 0x7fffffffu) > 0x7f800000u ? (u >> 16) | 0x40u : rounded;
}

// One row of activations as cells: out[s] holds x[s] (Single) or the pair x[2s], x[2s + 1]; on tiles, then zeros to the
// end of the last tile.
template <typename Kind>
void row_cells(const float* x, int64_t k, typename Kind::Cell* out) {
  if constexpr (Kind::kPerStep == 1) {
    std::copy(x, x + k, out);
  } else {
    int64_t i = 0;
#if defined(__AVX512BF16__)
    if constexpr (std::is_base_of_v<PairDot, Kind>)
      for (; i + 2 * kLanes <= k; i += 2 * kLanes) {
        const __m512bh both = _mm512_cvtne2ps_pbh((__m512)load(x + i + kLanes), (__m512)load(x + i));
        _mm512_storeu_si512(out + i / 2, (__m512i)both);
      }
#endif
    for (; i < k; i += 2)
      out[i / 2] = round_bf16(x[i]) | (i + 1 < k ? static_cast<uint32_t>(round_bf16(x[i + 1])) << 16 : 0u);
    if constexpr (Kind::kOnTiles)
      for (i = steps_of<Kind>(k); i % kTileSide != 0; ++i) out[i] = 0;
  }
}

// Sixteen pairs: even[c] in the low half of lane c, odd[c] in the high half.
template <typename Kind>
typename Kind::Reg pair_up(vf even, vf odd) {
#if defined(__AVX512BF16__)
  if constexpr (std::is_base_of_v<PairDot, Kind>) {
    alignas(64) static constexpr uint16_t kInterleave[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,
                                                             21, 6, 22, 7, 23, 8,  24, 9,  25, 10, 26,
                                                             11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even);
    return (vu)_mm512_permutexvar_epi16(_mm512_load_si512(kInterleave), halves);
  }
#endif
  return round_bits(even) | round_bits(odd) << 16;
}

// Neighbouring rows of a matrix as cells along the row: out[c] = even[c] (Single, which ignores `odd`) or the pair
// (even[c], odd[c]); a null `odd` reads as zeros.
template <typename Kind>
void across_cells(const float* even, const float* odd, int64_t n, typename Kind::Cell* out) {
  float* to = reinterpret_cast<float*>(out);  // moved as bits, never computed with
  const auto cells = [&](vf low, vf high) {
    if constexpr (Kind::kPerStep == 1)
      return low;
    else
      return reinterpret_cast<vf>(pair_up<Kind>(low, high));
  };
  int64_t c = 0;
  for (; c + kLanes <= n; c += kLanes)
    store(to + c, cells(load(even + c), odd != nullptr ? load(odd + c) : splat(0.f)));
  if (const int rest = static_cast<int>(n - c))
    store_n(to + c, cells(load_n(even + c, rest), odd != nullptr ? load_n(odd + c, rest) : splat(0.f)), rest);
}

// Workspace of the calling thread, kept between calls; slots are independent buffers.
template <typename T>
T* scratch(int slot, int64_t count) {
  struct Buffer {
    void* memory = nullptr;
    size_t bytes = 0;
    ~Buffer() { std::free(memory); }
  };
  static thread_local Buffer buffers[6];
  Buffer& buffer = buffers[slot];
  const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
  if (buffer.bytes < bytes) {
    std::free(buffer.memory);
    buffer.bytes = 0;
    buffer.memory = std::aligned_alloc(64, bytes);
    if (buffer.memory == nullptr) throw std::bad_alloc();
    buffer.bytes = bytes;
  }
  return static_cast<T*>(buffer.memory);
}

// Asks for the cache lines of n floats: rows that are gathered or short come too late by themselves.
inline void prefetch(const float* row, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) __builtin_prefetch(row + i);
}
constexpr int64_t kAhead = 8;  // rows between the one in use and the one asked for

// Steps in one chain of a weight gradient; the chains of successive chunks are added in order.
constexpr int64_t kChainSteps = 256;

// dw[n, k] = sum over t of dy[t, n] * x[t, k] for n in [n0, n1), k in [k0, k1). dy_row(t) and x_row(t) point at rows,
// so that gathered rows need no copy of their own. An element's bits depend on its rows alone, never on the tile.
template <typename Kind, typename DyRow, typename XRow>
void weight_grad_tile(const DyRow& dy_row, const XRow& x_row, int64_t T, int64_t n0, int64_t n1, int64_t k0, int64_t k1,
                      float* dw, int64_t ldw) {
  using Cell = typename Kind::Cell;
  const int64_t height = n1 - n0, width = k1 - k0, pitch = (height + kLanes - 1) / kLanes * kLanes + kLanes;
  Cell* left = scratch<Cell>(0, kChainSteps * pitch);
  int64_t row = 1, step = pitch;
  Cell* right = scratch<Cell>(1, kChainSteps * panel_count(width) * kPanel);
  if (T == 0)
    for (int64_t n = n0; n < n1; ++n) std::fill(dw + n * ldw + k0, dw + n * ldw + k1, 0.f);
  for (int64_t t0 = 0; t0 < T; t0 += kChainSteps * Kind::kPerStep) {
    const int64_t steps = std::min(kChainSteps, steps_of<Kind>(T - t0));
    for (int64_t s = 0; s < steps; ++s) {
      const int64_t t = t0 + s * Kind::kPerStep;
      for (int64_t next = t + kAhead; next < std::min(T, t + kAhead + Kind::kPerStep); ++next) {
        prefetch(dy_row(next) + n0, height);
        prefetch(x_row(next) + k0, width);
      }
      const bool paired = Kind::kPerStep == 2 && t + 1 < T;
      const float *dy = dy_row(t), *x = x_row(t), *next_dy = paired ? dy_row(t + 1) : nullptr,
                  *next_x = paired ? x_row(t + 1) : nullptr;
      across_cells<Kind>(dy + n0, paired ? next_dy + n0 : nullptr, height, left + s * pitch);
      for (int64_t k = k0; k < k1; k += kPanel)
        across_cells<Kind>(x + k, paired ? next_x + k : nullptr, std::min(kPanel, k1 - k),
                           right + ((k - k0) / kPanel * steps + s) * kPanel);
    }
    const Cell* rows = left;
    if constexpr (Kind::kOnTiles) {  // whose left operand must have the steps of a row side by side
      row = tile_pitch(kChainSteps), step = 1;
      std::fill(left + steps * pitch, left + (steps + kTileSide - 1) / kTileSide * kTileSide * pitch, Cell{});
      Cell* turned = scratch<Cell>(2, (pitch - kLanes) * row);
      turn_cells(left, pitch, steps, height, turned, row);
      rows = turned;
    }
    rows_times_panels<Kind>(rows, row, step, height, right, steps, dw + n0 * ldw + k0, ldw, width, t0 > 0);
  }
}

}  // namespace seedthink::ST_ISA
