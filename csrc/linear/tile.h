// Matrix tiles: eight registers of at most 16 rows of 64 bytes, and the one product that bfloat16 needs. Two machines
// with the same members: HardwareTiles issues Intel's AMX instructions, EmulatedTiles does on any CPU what Intel
// documents of them, down to the last bit, so that what is built on tiles can be tested where there is no AMX.
//
// Arithmetic, after "TDPBF16PS", Operation, in Intel's Software Developer's Manual, volume 2. For each element of C:
//   even = odd = 0
//   for each pair k of a row of A, ascending:  even = fma(a[2k], b[2k], even);  odd = fma(a[2k + 1], b[2k + 1], odd)
//   c = c + (even + odd)
// All of it in fp32, rounded to nearest even, with subnormal inputs and results taken as zero and MXCSR ignored. (The
// intrinsics guide writes the same instruction as a single chain per element. linear/tile_check.isa.cpp asks the CPU.)
#pragma once

#include <cmath>
#include <cstring>

#include "common/check.h"
#include "common/simd.h"

namespace seedthink::ST_ISA {

constexpr int kTiles = 8;
constexpr int64_t kTileSide = 16;  // rows of a tile, and 4-byte cells of a row
constexpr int64_t kTileBytes = 64;

// The 64 bytes that LDTILECFG reads.
struct alignas(64) TileShapes {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileShapes) == 64, "the instruction's own layout");

#if defined(__AMX_BF16__)
struct HardwareTiles {
  // NOTE: GCC's tile intrinsics do not say that they read memory (a configuration is declared as its first 8 bytes), so
  // stores that come before could be moved behind them. The fence costs no instruction.
  static void fence() { asm volatile("" ::: "memory"); }

  static void configure(const TileShapes& shapes) {
    fence();
    _tile_loadconfig(&shapes);
  }
  static void release() { _tile_release(); }

// The intrinsics take the number of a register as a literal.
#define ST_EACH_TILE(apply) apply(0) apply(1) apply(2) apply(3) apply(4) apply(5) apply(6) apply(7)
  template <int T>
  static void zero() {
#define ST_APPLY(t) \
  if constexpr (T == t) _tile_zero(t);
    ST_EACH_TILE(ST_APPLY)
#undef ST_APPLY
  }

  template <int T>
  static void load(const void* from, int64_t stride) {
    fence();
#define ST_APPLY(t) \
  if constexpr (T == t) _tile_loadd(t, from, stride);
    ST_EACH_TILE(ST_APPLY)
#undef ST_APPLY
  }

  template <int T>
  static void store(void* to, int64_t stride) {
#define ST_APPLY(t) \
  if constexpr (T == t) _tile_stored(t, to, stride);
    ST_EACH_TILE(ST_APPLY)
#undef ST_APPLY
  }
#undef ST_EACH_TILE

  template <int C, int A, int B>
  static void multiply() {
    constexpr int kWhich = 100 * C + 10 * A + B;
    static_assert(kWhich == 46 || kWhich == 147 || kWhich == 246 || kWhich == 347 || kWhich == 256 || kWhich == 357,
                  "write the new combination down below");
    if constexpr (kWhich == 46) _tile_dpbf16ps(0, 4, 6);
    if constexpr (kWhich == 147) _tile_dpbf16ps(1, 4, 7);
    if constexpr (kWhich == 246) _tile_dpbf16ps(2, 4, 6);
    if constexpr (kWhich == 347) _tile_dpbf16ps(3, 4, 7);
    if constexpr (kWhich == 256) _tile_dpbf16ps(2, 5, 6);
    if constexpr (kWhich == 357) _tile_dpbf16ps(3, 5, 7);
  }
};
#endif

// Where the hardware would raise a fault (a register without a shape, shapes that do not fit), this throws.
class EmulatedTiles {
 public:
  static void configure(const TileShapes& shapes) {
    ST_CHECK(shapes.palette == 1 && shapes.start_row == 0, "tiles: palette ", int{shapes.palette}, " is not 1");
    for (int t = 0; t < kTiles; ++t)
      ST_CHECK(shapes.rows[t] <= kTileSide && shapes.row_bytes[t] <= kTileBytes, "tiles: register ", t,
               " is too large");
    Machine& m = machine();
    m.shapes = shapes;
    std::memset(m.cell, 0, sizeof m.cell);
  }
  static void release() { machine().shapes = TileShapes{}; }

  template <int T>
  static void zero() {
    ready(T);
    std::memset(machine().cell[T], 0, sizeof machine().cell[T]);
  }

  template <int T>
  static void load(const void* from, int64_t stride) {
    zero<T>();
    const TileShapes& shapes = machine().shapes;
    for (int64_t r = 0; r < shapes.rows[T]; ++r)
      std::memcpy(machine().cell[T][r], static_cast<const char*>(from) + r * stride, shapes.row_bytes[T]);
  }

  template <int T>
  static void store(void* to, int64_t stride) {
    ready(T);
    const TileShapes& shapes = machine().shapes;
    for (int64_t r = 0; r < shapes.rows[T]; ++r)
      std::memcpy(static_cast<char*>(to) + r * stride, machine().cell[T][r], shapes.row_bytes[T]);
  }

  template <int C, int A, int B>
  static void multiply() {
    static_assert(C != A && C != B && A != B, "three different registers");
    ready(A), ready(B), ready(C);
    const TileShapes& shapes = machine().shapes;
    const int rows = shapes.rows[C], pairs = shapes.row_bytes[A] / 4, columns = shapes.row_bytes[C] / 4;
    ST_CHECK(shapes.rows[A] == rows && shapes.rows[B] == pairs && shapes.row_bytes[B] == shapes.row_bytes[C],
             "tiles: the shapes of registers ", C, ", ", A, " and ", B, " do not fit");
    auto &a = machine().cell[A], &b = machine().cell[B], &c = machine().cell[C];
    for (int r = 0; r < rows; ++r) {
      float even[kTileSide] = {}, odd[kTileSide] = {};
      for (int k = 0; k < pairs; ++k) {
        const double low = low_half(a[r][k]), high = high_half(a[r][k]);
        for (int n = 0; n < columns; ++n) even[n] = rounded(low * low_half(b[k][n]) + even[n]);
        for (int n = 0; n < columns; ++n) odd[n] = rounded(high * high_half(b[k][n]) + odd[n]);
      }
      for (int n = 0; n < columns; ++n) {
        float sum;
        std::memcpy(&sum, &c[r][n], 4);
        const double both = rounded(static_cast<double>(even[n]) + odd[n]);
        sum = rounded(static_cast<double>(flushed(sum)) + both);
        std::memcpy(&c[r][n], &sum, 4);
      }
    }
  }

 private:
  struct Machine {
    TileShapes shapes;
    uint32_t cell[kTiles][kTileSide][kTileSide];
  };
  static Machine& machine() {
    static thread_local Machine one;
    return one;
  }
  static void ready(int t) { ST_CHECK(machine().shapes.rows[t] > 0, "tiles: register ", t, " has no shape"); }

  static float flushed(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.f, x) : x; }
  static float low_half(uint32_t pair) { return flushed(widen(bf16{static_cast<uint16_t>(pair)})); }
  static float high_half(uint32_t pair) { return flushed(widen(bf16{static_cast<uint16_t>(pair >> 16)})); }

  // The fp32 result of an operation whose result in double is given. A product of two bfloat16 is exact in double, and
  // where its sum with a float is not, the sum is next to one of the two: so this is one rounding of the exact value.
  // A result counts as subnormal when it is so after rounding to 24 bits, as everywhere on x86.
  static float rounded(double x) {
    constexpr double kLeast = 0x1p-126 - 0x1p-151;
    return std::fabs(x) < kLeast ? std::copysign(0.f, static_cast<float>(x)) : static_cast<float>(x);
  }
};

}  // namespace seedthink::ST_ISA
