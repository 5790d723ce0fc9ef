// Two passes over a row of blocks, which stays in the cache: the largest magnitude of each block, then its codes. Rows
// are walked in memory order through many blocks at a time: a narrow panel would be smaller, but its rows, a power of two
// of bytes apart, would meet in a few sets of the cache.
#include "common/pool.h"
#include "fp8/format.h"
#include "fp8/fp8.h"

namespace seedthink::ST_ISA {
namespace {

constexpr int64_t kPanelBlocks = 32;  // side by side in a panel at most
constexpr int64_t kGrain = 32768;     // elements for which a second thread pays

int64_t ceil_div(int64_t a, int64_t b) { return a > 0 ? (a - 1) / b + 1 : 0; }

// How a matrix is cut: blocks, and panels of neighbouring blocks of one row of blocks.
struct Cut {
  int64_t M, N, rows, columns, P, Q;
  Cut(int64_t M, int64_t N, int64_t rows, int64_t columns) : M(M), N(N) {
    ST_CHECK(rows > 0 && columns > 0, "block: ", rows, " x ", columns, " must be positive");
    this->rows = std::min(rows, std::max<int64_t>(M, 1));
    this->columns = std::min(columns, std::max<int64_t>(N, 1));
    P = ceil_div(M, rows);
    Q = ceil_div(N, columns);
  }

  // Calls body(row of blocks, first block, end of blocks) for each panel, on all threads.
  template <typename Body>
  void each_panel(const Body& body) const {
    const int64_t across = ceil_div(Q, kPanelBlocks), size = rows * std::min(N, columns * kPanelBlocks);
    parallel(P * across, 1 + kGrain / (size + 1), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        body(i / across, i % across * kPanelBlocks, std::min(Q, (i % across + 1) * kPanelBlocks));
    });
  }

  // Calls body(offset, width, block) for the part of each row that lies in each of blocks [first, last).
  template <typename Body>
  void each_piece(int64_t p, int64_t first, int64_t last, const Body& body) const {
    for (int64_t m = p * rows; m < std::min(M, (p + 1) * rows); ++m)
      for (int64_t q = first; q < last; ++q) body(m * N + q * columns, std::min(columns, N - q * columns), q);
  }
};

template <typename X>
struct Call {
  const X* x;
  const bf16* residual;
  const float* previous;
  bool power_of_two;
  float headroom, low, high;
  uint8_t* codes;
  float* scale;
  bf16* left;

  template <bool CARRY>
  vf read(int64_t at, int live) const {
    const vf value = load_live(x + at, live);
    if constexpr (CARRY) return value + load_live(residual + at, live);
    return value;
  }
};

template <int DISTANCE>
inline vi swapped(vi v) {
  return reinterpret_cast<vi>(swap_lanes<DISTANCE>(reinterpret_cast<vf>(v)));
}
inline int reduce_max(vi v) {
  v = max(v, swapped<8>(v));
  v = max(v, swapped<4>(v));
  v = max(v, swapped<2>(v));
  v = max(v, swapped<1>(v));
  return v[0];
}

// bfloat16 magnitudes order like their bits too, 32 to a vector; then the larger of each pair, as a float's bits.
typedef int16_t vs __attribute__((vector_size(64)));
typedef int16_t vs_u __attribute__((vector_size(64), aligned(2), may_alias));
inline vi peak_halves(const bf16* x, int64_t n, vi most) {
  vs lane[2] = {};
  for (int64_t i = 0; i < n; i += 4 * kLanes)
    for (int c = 0; c < 2; ++c) {
      const vs size = *reinterpret_cast<const vs_u*>(x + i + 2 * c * kLanes) & static_cast<int16_t>(0x7fff);
      lane[c] = size > lane[c] ? size : lane[c];
    }
  for (const vs each : lane) {
    const vi pair = reinterpret_cast<vi>(each);
    most = max(most, max(pair & 0x7fff0000, pair << 16));
  }
  return most;
}

// The largest magnitude, as bits: they order like the numbers, with infinity and NaN above all. FINITE skips those.
template <bool CARRY, bool FINITE, typename X>
vi peak(const Call<X>& call, int64_t at, int64_t width, vi most) {
  int64_t i = 0;
  if constexpr (!CARRY && !FINITE && std::is_same_v<X, bf16>) {
    i = width / (4 * kLanes) * (4 * kLanes);
    most = peak_halves(call.x + at, i, most);
  }
  vi lane[4] = {most, most, most, most};
  const auto take = [&](int64_t i, int live, vi& into) {
    const vi size = magnitude(call.template read<CARRY>(at + i, live));
    into = max(into, FINITE ? (size < kInfinityBits ? size : splat(0)) : size);
  };
  for (; i + 4 * kLanes <= width; i += 4 * kLanes)
    for (int c = 0; c < 4; ++c) take(i + c * kLanes, kLanes, lane[c]);
  for (; i < width; i += kLanes) take(i, static_cast<int>(std::min<int64_t>(kLanes, width - i)), lane[0]);
  return max(max(lane[0], lane[1]), max(lane[2], lane[3]));
}

// The scale of a block. A power of two is found on exponent fields: amax = m 2^e needs 2^(e - kTop), or twice that where
// m > 1.75; the carry of adding 2^23 - 1 - 0x600000 to the mantissa (0x600000 is .75) tells which.
template <typename F, typename X>
float pick_scale(const Call<X>& call, float amax, int64_t block) {
  if (call.previous != nullptr) {
    const float kept = call.previous[block], most = F::kMax * kept;
    if (kept >= FLT_MIN && kept <= FLT_MAX && amax >= call.low * most && amax <= call.high * most) return kept;
  }
  // Clamped before anything is rounded: the scale of a block of zeros is a normal number.
  const float range = std::min(std::max(amax * call.headroom, F::kMax * FLT_MIN), FLT_MAX);
  if (!call.power_of_two) return range / F::kMax;
  int32_t bits;
  std::memcpy(&bits, &range, 4);
  bits = std::clamp(((bits + 0x1fffff) >> 23) - F::kTop, 1, 254) << 23;
  float scale;
  std::memcpy(&scale, &bits, 4);
  return scale;
}

// Codes of COUNT vectors from `at` on, of which the last has `live` lanes.
template <typename F, bool CARRY, bool FINITE, int COUNT, typename X>
inline void encode_vectors(const Call<X>& call, int64_t at, int live, vf scale) {
  vf x[COUNT], y[COUNT], size[COUNT];
  Rounded rounded[COUNT];
  for (int c = 0; c < COUNT; ++c) x[c] = call.template read<CARRY>(at + c * kLanes, live);
  for (int c = 0; c < COUNT; ++c) y[c] = x[c] / scale;
  for (int c = 0; c < COUNT; ++c) size[c] = floats(magnitude(y[c]));
  round_all<F>(size, rounded);
  for (int c = 0; c < COUNT; ++c) {
    vi code = rounded[c].code | sign_code(x[c]);
    [[maybe_unused]] const vi broken = magnitude(x[c]) >= kInfinityBits;
    if constexpr (!FINITE) code = broken != 0 ? splat(kNan) : code;
    store_live(call.codes + at + c * kLanes, narrow(code), live);
    if constexpr (CARRY) {
      const vf left = x[c] - with_sign(rounded[c].value, y[c]) * scale;
      store_live(call.left + at + c * kLanes, FINITE ? left : broken != 0 ? splat(0.f) : left, live);
    }
  }
}

// Codes of one row of a block. FINITE promises that x (and residual) hold no NaN and no infinity there.
template <typename F, bool CARRY, bool FINITE, typename X>
void encode(const Call<X>& call, int64_t at, int64_t width, float scale) {
  const Call<X> here = call;  // a copy, which no store to codes can touch
  const vf factor = splat(scale);
  int64_t i = 0;
  for (; i + 4 * kLanes <= width; i += 4 * kLanes)
    encode_vectors<F, CARRY, FINITE, 4>(here, at + i, kLanes, factor);
  for (; i < width; i += kLanes)
    encode_vectors<F, CARRY, FINITE, 1>(here, at + i, static_cast<int>(std::min<int64_t>(kLanes, width - i)), factor);
}

template <typename F, bool CARRY, typename X>
void quantize_panel(const Call<X>& call, const Cut& cut, int64_t p, int64_t first, int64_t last) {
  vi most[kPanelBlocks] = {};
  float scale[kPanelBlocks];
  bool finite[kPanelBlocks];
  cut.each_piece(p, first, last, [&](int64_t at, int64_t width, int64_t q) {
    most[q - first] = peak<CARRY, false>(call, at, width, most[q - first]);
  });
  for (int64_t q = first; q < last; ++q) {
    int bits = reduce_max(most[q - first]);
    finite[q - first] = bits < kInfinityBits;
    if (!finite[q - first]) {
      vi again = {};
      cut.each_piece(p, q, q + 1, [&](int64_t at, int64_t width, int64_t) {
        again = peak<CARRY, true>(call, at, width, again);
      });
      bits = reduce_max(again);
    }
    float amax;
    std::memcpy(&amax, &bits, 4);
    scale[q - first] = call.scale[p * cut.Q + q] = pick_scale<F>(call, amax, p * cut.Q + q);
  }
  cut.each_piece(p, first, last, [&](int64_t at, int64_t width, int64_t q) {
    if (finite[q - first])
      encode<F, CARRY, true>(call, at, width, scale[q - first]);
    else
      encode<F, CARRY, false>(call, at, width, scale[q - first]);
  });
}

template <typename X>
void quantize(const Call<X>& call, const Cut& cut, const View& codes_MN) {
  with_format("codes", codes_MN, [&](auto format) {
    cut.each_panel([&](int64_t p, int64_t first, int64_t last) {
      if (call.residual != nullptr)
        quantize_panel<decltype(format), true>(call, cut, p, first, last);
      else
        quantize_panel<decltype(format), false>(call, cut, p, first, last);
    });
  });
}

template <typename F, typename X>
void dequantize(const uint8_t* codes, const float* scale, const Cut& cut, X* x) {
  cut.each_panel([&](int64_t p, int64_t first, int64_t last) {
    cut.each_piece(p, first, last, [&](int64_t at, int64_t width, int64_t q) {
      const vf factor = splat(scale[p * cut.Q + q]);
      for_vectors(width, [&](int64_t i, int live) {
        store_live(x + at + i, decode<F>(load_codes(codes + at + i, live)) * factor, live);
      });
    });
  });
}

}  // namespace

void fp8_quantize(const View& x_MN, const View& residual_MN, const View& previous_PQ, int64_t block_rows,
                  int64_t block_columns, bool power_of_two, double headroom, double low, double high,
                  const View& codes_MN, const View& scale_PQ, const View& left_MN) {
  ST_CHECK(x_MN.dtype == Dtype::f32 || x_MN.dtype == Dtype::bf16, "x: expected dtype float32 or bfloat16, got ",
           name(x_MN.dtype));
  x_MN.check("x", x_MN.dtype, {-1, -1});
  const int64_t M = x_MN.size[0], N = x_MN.size[1];
  const Cut cut(M, N, block_rows, block_columns);
  ST_CHECK(headroom >= 1. && headroom <= 256., "headroom: ", headroom, " is outside 1 to 256");
  ST_CHECK(low >= 0. && low <= high, "band: ", low, " to ", high, " is not a band");
  codes_MN.check("codes", codes_MN.dtype, {M, N});
  scale_PQ.check("scale", Dtype::f32, {cut.P, cut.Q});
  if (previous_PQ) previous_PQ.check("previous", Dtype::f32, {cut.P, cut.Q});
  if (residual_MN) {
    residual_MN.check("residual", Dtype::bf16, {M, N});
    left_MN.check("left", Dtype::bf16, {M, N});
  }
  const auto run = [&](auto* x) {
    quantize(Call<std::remove_pointer_t<decltype(x)>>{x, residual_MN.as<bf16>(), previous_PQ.as<float>(), power_of_two,
                                                      static_cast<float>(headroom), static_cast<float>(low),
                                                      static_cast<float>(high), codes_MN.as<uint8_t>(),
                                                      scale_PQ.as<float>(), left_MN.as<bf16>()},
             cut, codes_MN);
  };
  if (x_MN.dtype == Dtype::f32)
    run(x_MN.as<float>());
  else
    run(x_MN.as<bf16>());
}

void fp8_dequantize(const View& codes_MN, const View& scale_PQ, int64_t block_rows, int64_t block_columns,
                    const View& x_MN) {
  codes_MN.check("codes", codes_MN.dtype, {-1, -1});
  const int64_t M = codes_MN.size[0], N = codes_MN.size[1];
  const Cut cut(M, N, block_rows, block_columns);
  scale_PQ.check("scale", Dtype::f32, {cut.P, cut.Q});
  ST_CHECK(x_MN.dtype == Dtype::f32 || x_MN.dtype == Dtype::bf16, "dtype: expected float32 or bfloat16, got ",
           name(x_MN.dtype));
  x_MN.check("x", x_MN.dtype, {M, N});
  with_format("codes", codes_MN, [&](auto format) {
    using F = decltype(format);
    if (x_MN.dtype == Dtype::f32)
      dequantize<F>(codes_MN.as<uint8_t>(), scale_PQ.as<float>(), cut, x_MN.as<float>());
    else
      dequantize<F>(codes_MN.as<uint8_t>(), scale_PQ.as<float>(), cut, x_MN.as<bf16>());
  });
}

}  // namespace seedthink::ST_ISA
