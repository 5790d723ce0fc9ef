#include <vector>

#include "linear/pairs.h"
#include "linear/tile_walk.h"

namespace seedthink::ST_ISA {

#if defined(__AMX_BF16__)
namespace {

// A product of `rows` rows with edges on every side: windows of unequal place, a short last step, a short last panel.
struct Case {
  static constexpr int64_t kRows = 37, kSteps = 41, kColumns = 83;
  int64_t pitch = tile_pitch(kSteps);
  std::vector<uint32_t> a = std::vector<uint32_t>(kRows * pitch);
  std::vector<uint32_t> panels = std::vector<uint32_t>(panel_count(kColumns) * kSteps * kPanel);

  // Values of numbers 0, 1, 2 ..., as a fixed sequence that looks random.
  template <typename Value>
  explicit Case(const Value& value) {
    uint32_t state = 1;
    const auto half = [&] {
      state = state * 1664525u + 1013904223u;
      return static_cast<uint32_t>(round_bf16(value(state >> 8)));
    };
    const auto pair = [&] {
      const uint32_t low = half();
      return low | half() << 16;
    };
    for (int64_t r = 0; r < kRows; ++r)
      for (int64_t s = 0; s < kSteps; ++s) a[r * pitch + s] = pair();
    for (uint32_t& cell : panels) cell = pair();
  }

  template <typename Tiles>
  std::vector<float> product(int64_t rows, int64_t from = 0) const {
    std::vector<float> y(rows * kColumns);
    tiles_times_panels<Tiles>(a.data() + from * pitch, pitch, rows, panels.data(), kSteps, y.data(), kColumns, kColumns,
                              false);
    return y;
  }
};

bool same(const float* a, const float* b, int64_t n) { return std::memcmp(a, b, n * sizeof(float)) == 0; }

}  // namespace

TileCheck check_tiles() {
  // Small whole numbers: every partial sum is exact, so any order gives these bits. A difference means wrong work.
  const Case whole([](uint32_t x) { return static_cast<float>(static_cast<int>(x % 17) - 8); });
  if (whole.product<HardwareTiles>(Case::kRows) != whole.product<EmulatedTiles>(Case::kRows))
    return {"not used: its self-test failed (whole numbers)", false};
  // Ordinary numbers: what is promised is a row's bits whatever stands beside it, then the documented rounding.
  const Case rough([](uint32_t x) { return static_cast<float>(x) * 0x1p-23f - 1.f; });
  const std::vector<float> all = rough.product<HardwareTiles>(Case::kRows);
  for (int64_t r = 0; r < Case::kRows; ++r)
    if (!same(rough.product<HardwareTiles>(1, r).data(), all.data() + r * Case::kColumns, Case::kColumns))
      return {"not used: its self-test failed (a row alone)", false};
  const std::vector<float> expected = rough.product<EmulatedTiles>(Case::kRows);
  for (size_t i = 0; i < all.size(); ++i)
    if (!(std::fabs(all[i] - expected[i]) <= 1e-4f))
      return {"not used: its self-test failed (ordinary numbers)", false};
  return {nullptr, same(all.data(), expected.data(), static_cast<int64_t>(all.size()))};
}

#else

TileCheck check_tiles() { return {"not used: this build's compiler does not know it", false}; }

#endif

}  // namespace seedthink::ST_ISA
