// Rows times panels on matrix tiles (linear/tile.h): the bfloat16 products of csrc/linear and csrc/moe on AMX.
//
// A panel of pairs is already what a tile's right operand must look like: row s of a tile is the pairs (2s, 2s + 1) of
// 16 columns, 64 bytes of the panel's 256-byte row s. So packing knows nothing of tiles.
//
// An output element is one chain, started at zero, of tile products over 16 pairs each, in ascending order; a last,
// short product is filled up with zeros. That order depends on the number of pairs alone. Tiles of fewer than 16 rows
// take the same steps, since a row of a tile product sees no other row.
#pragma once

#include <algorithm>

#include "linear/panel.h"
#include "linear/tile.h"

namespace seedthink::ST_ISA {

// Cells from one row of a left operand to the next: whole tiles, and an odd number of cache lines, so that the rows of
// a tile do not meet in the same set of the L1 cache. Cells between the last pair and the end of its tile must be zero.
inline int64_t tile_pitch(int64_t steps) { return ((steps + kTileSide - 1) / kTileSide | 1) * kTileSide; }

// The calling thread's tile registers, from construction to destruction: sums 0 to 3, left operands 4 and 5, right
// operands 6 and 7. Every thread has its own, and while they are in use a context switch has 8 KiB more to save.
template <typename Tiles>
class TileSession {
 public:
  explicit TileSession(int64_t height) {
    TileShapes shapes;
    for (int t = 0; t < kTiles; ++t) {
      shapes.row_bytes[t] = kTileBytes;
      shapes.rows[t] = static_cast<uint8_t>(t < 6 ? height : kTileSide);
    }
    Tiles::configure(shapes);
  }
  ~TileSession() { Tiles::release(); }
  TileSession(const TileSession&) = delete;
  TileSession& operator=(const TileSession&) = delete;
};

// Sixteen pairs of two windows of rows and 32 columns: four products from four loads.
template <typename Tiles>
void square_step(const uint32_t* above, const uint32_t* below, int64_t pitch, const uint32_t* b) {
  Tiles::template load<4>(above, pitch * 4);
  Tiles::template load<6>(b, kPanel * 4);
  Tiles::template multiply<0, 4, 6>();
  Tiles::template load<7>(b + kTileSide, kPanel * 4);
  Tiles::template multiply<1, 4, 7>();
  Tiles::template load<5>(below, pitch * 4);
  Tiles::template multiply<2, 5, 6>();
  Tiles::template multiply<3, 5, 7>();
}

// Sixteen pairs of one window of rows and 64 columns: the panel is read in the order in which it lies in memory, which
// is what counts for the few rows of a decoding step.
template <typename Tiles>
void wide_step(const uint32_t* a, int64_t pitch, const uint32_t* b) {
  Tiles::template load<4>(a, pitch * 4);
  Tiles::template load<6>(b, kPanel * 4);
  Tiles::template multiply<0, 4, 6>();
  Tiles::template load<7>(b + kTileSide, kPanel * 4);
  Tiles::template multiply<1, 4, 7>();
  Tiles::template load<6>(b + 2 * kTileSide, kPanel * 4);
  Tiles::template multiply<2, 4, 6>();
  Tiles::template load<7>(b + 3 * kTileSide, kPanel * 4);
  Tiles::template multiply<3, 4, 7>();
}

template <typename Tiles>
void zero_sums() {
  Tiles::template zero<0>();
  Tiles::template zero<1>();
  Tiles::template zero<2>();
  Tiles::template zero<3>();
}

// Where sums go: `height` rows of y from one window's first row; rows before `fresh` were another window's already.
struct Window {
  float* y;
  int64_t ldy, height, fresh;
  bool add;

  // Sums of register T to columns [from, from + 16), of which those before `live` exist.
  template <typename Tiles, int T>
  void put(int64_t from, int64_t live) const {
    if (live <= from) return;
    // A row that two windows share is written twice, with the same bits.
    if (!add && live - from >= kTileSide) return Tiles::template store<T>(y + from, ldy * 4);
    alignas(64) float sums[kTileSide * kTileSide];
    Tiles::template store<T>(sums, kTileBytes);
    const int last = static_cast<int>(std::min(kTileSide, live - from));
    for (int64_t r = fresh; r < height; ++r) {
      float* to = y + r * ldy + from;
      const vf sum = load(sums + r * kTileSide);
      store_n(to, add ? load_n(to, last) + sum : sum, last);
    }
  }
};

// y[r, 0..n) = row r of `a` times every panel of a packed matrix with n columns; `add` adds the finished sums to y.
template <typename Tiles>
void tiles_times_panels(const uint32_t* a, int64_t pitch, int64_t rows, const uint32_t* panels, int64_t steps, float* y,
                        int64_t ldy, int64_t n, bool add) {
  if (rows == 0) return;
  // Windows of one height, so that one configuration serves them all: the last may begin inside the one before it.
  const int64_t windows = (rows + kTileSide - 1) / kTileSide, height = (rows + windows - 1) / windows;
  const auto first = [&](int64_t w) { return std::min(w * height, rows - height); };
  const auto window = [&](int64_t w, int64_t column) {
    return Window{y + first(w) * ldy + column, ldy, height, w * height - first(w), add};
  };
  const int64_t rest = steps % kTileSide, whole = steps - rest;
  alignas(64) uint32_t tail[kTileSide * kPanel] = {};
  const TileSession<Tiles> session(height);
  for (int64_t column = 0; column < n; column += kPanel) {
    const uint32_t* panel = panels + column * steps;  // 64 columns of `steps` cells each
    const int64_t live = std::min(kPanel, n - column);
    std::copy(panel + whole * kPanel, panel + steps * kPanel, tail);
    int64_t w = 0;
    for (; w + 1 < windows; w += 2) {
      const uint32_t *above = a + first(w) * pitch, *below = a + first(w + 1) * pitch;
      for (int64_t half = 0; half < live; half += 2 * kTileSide) {
        zero_sums<Tiles>();
        for (int64_t s = 0; s < whole; s += kTileSide)
          square_step<Tiles>(above + s, below + s, pitch, panel + s * kPanel + half);
        if (rest > 0) square_step<Tiles>(above + whole, below + whole, pitch, tail + half);
        const Window upper = window(w, column), lower = window(w + 1, column);
        upper.template put<Tiles, 0>(half, live);
        upper.template put<Tiles, 1>(half + kTileSide, live);
        lower.template put<Tiles, 2>(half, live);
        lower.template put<Tiles, 3>(half + kTileSide, live);
      }
    }
    if (w == windows) continue;
    const uint32_t* one = a + first(w) * pitch;
    zero_sums<Tiles>();
    for (int64_t s = 0; s < whole; s += kTileSide) wide_step<Tiles>(one + s, pitch, panel + s * kPanel);
    if (rest > 0) wide_step<Tiles>(one + whole, pitch, tail);
    const Window only = window(w, column);
    only.template put<Tiles, 0>(0, live);
    only.template put<Tiles, 1>(kTileSide, live);
    only.template put<Tiles, 2>(2 * kTileSide, live);
    only.template put<Tiles, 3>(3 * kTileSide, live);
  }
}

// One stage of a transposition: the blocks of W lanes off the diagonal change places.
template <int W>
void swap_blocks(vu (&row)[kTileSide]) {
  vi upper, lower;
  for (int j = 0; j < kTileSide; ++j) {
    upper[j] = j & W ? kTileSide + j - W : j;
    lower[j] = j & W ? kTileSide + j : j + W;
  }
  for (int i = 0; i < kTileSide; ++i) {
    if (i & W) continue;
    const vu a = row[i], b = row[i + W];
    row[i] = __builtin_shuffle(a, b, reinterpret_cast<vu>(upper));
    row[i + W] = __builtin_shuffle(a, b, reinterpret_cast<vu>(lower));
  }
}

// Cells that stand step by step, in[s * from + r], become a left operand, out[r * pitch + s]. Reads and writes whole
// blocks of 16 x 16: `steps` and `rows` are rounded up. Steps past the last must be zeros; rows past the last may not.
inline void turn_cells(const uint32_t* in, int64_t from, int64_t steps, int64_t rows, uint32_t* out, int64_t pitch) {
  for (int64_t s = 0; s < steps; s += kTileSide)
    for (int64_t r = 0; r < rows; r += kTileSide) {
      vu row[kTileSide];
      for (int64_t i = 0; i < kTileSide; ++i) std::memcpy(&row[i], in + (s + i) * from + r, kTileBytes);
      swap_blocks<8>(row);
      swap_blocks<4>(row);
      swap_blocks<2>(row);
      swap_blocks<1>(row);
      for (int64_t i = 0; i < kTileSide; ++i) std::memcpy(out + (r + i) * pitch + s, &row[i], kTileBytes);
    }
}

}  // namespace seedthink::ST_ISA
