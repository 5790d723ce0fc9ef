// The device code of csrc/fp8/quantize_kernels.cuh against the definition: divide, then the nearest number of the format.
// Ends with an error at the first difference.
#include "cuda_on_cpu.h"

#include "fp8/quantize_kernels.cuh"

using namespace seedthink;
using namespace seedthink::cuda;
using on_cpu::expect;

// Every finite value of a format, by the definition of its bits.
template <typename F>
std::vector<double> values() {
  const int mantissa = 23 - F::kDrop, bias = 127 - static_cast<int>(F::kRebias);
  const int largest = F::kDrop == E4M3::kDrop ? 0x7e : 0x7b;
  std::vector<double> all;
  for (int code = 0; code <= largest; ++code) {
    const int exponent = code >> mantissa, fraction = code & ((1 << mantissa) - 1);
    all.push_back(exponent == 0 ? std::ldexp(fraction, 1 - bias - mantissa)
                                : std::ldexp((1 << mantissa) + fraction, exponent - bias - mantissa));
  }
  return all;
}

// The nearest code of a magnitude, of two as near the even one.
template <typename F>
int nearest(double size) {
  static const std::vector<double> all = values<F>();
  const auto above = std::lower_bound(all.begin(), all.end(), size);
  if (above == all.end()) return static_cast<int>(all.size()) - 1;
  const int high = static_cast<int>(above - all.begin());
  if (high == 0 || *above == size) return high;
  const double up = *above - size, down = size - above[-1];
  return up < down || (up == down && high % 2 == 0) ? high : high - 1;
}

template <typename F>
uint8_t code_of(float x, float scale) {
  if (!std::isfinite(x)) return static_cast<uint8_t>(0x7f | (std::signbit(x) ? 0x80 : 0));
  return static_cast<uint8_t>(nearest<F>(std::fabs(double{x / scale})) | (std::signbit(x) ? 0x80 : 0));
}

template <typename F, typename X>
void check_quotient(X element, float scale) {
  const float x = widen(element), y = x / scale;
  const Divisor by = divisor<sizeof(X) == 2>(scale);
  expect(encode<F>(by.quick ? by.divide(x) : y) == encode<F>(y), "a quotient finds the code of the division");
}

template <typename F>
void check_format() {
  const auto all = values<F>();
  for (size_t code = 0; code < all.size(); ++code) {
    expect(decode<F>(code) == all[code] && decode<F>(code | 0x80) == -all[code], "a code has its value");
    expect(encode<F>(static_cast<float>(all[code])) == code, "a value of the format is kept");
    if (code == 0) continue;
    const float middle = static_cast<float>((all[code] + all[code - 1]) / 2);
    for (const float y : {middle, std::nextafter(middle, 0.f), std::nextafter(middle, 1e9f)})
      expect(encode<F>(-y) == (0x80u | nearest<F>(y)), "halves go to the even code");
  }
  expect(encode<F>(1e30f) == all.size() - 1, "what is too large saturates");
  std::mt19937 random(5);
  for (int i = 0; i < 100000; ++i) {
    const float x = __uint_as_float(random()), scale = __uint_as_float(random() & 0x7fffffffu);
    if (!std::isfinite(x) || !std::isfinite(scale) || scale < FLT_MIN || std::fabs(x / scale) > 1e6f) continue;
    check_quotient<F>(x, scale);
    check_quotient<F>(narrow<bf16>(x), scale);
    const Scaling plain = plain_scaling(false);
    expect(pick_scale<F>(plain, scale, 0) == max(scale, F::kMax * FLT_MIN) / F::kMax, "a scale is rounded once");
  }
  // Scales near those that end in zeros, and what lies by their ties.
  for (int i = 0; i < 20000; ++i) {
    const uint32_t end = i % 3 == 0 ? random() & 0xfffffu : (random() % 1024 - 512) & 0xfffffu;
    const float scale = __uint_as_float((random() % 200 + 27) << 23 | random() % 8 << 20 | end);
    const int code = static_cast<int>(random() % (all.size() - 1));
    const float tie = static_cast<float>((all[code] + all[code + 1]) / 2 * scale);
    for (const float x : {tie, std::nextafter(tie, 0.f), std::nextafter(tie, INFINITY), -tie}) {
      check_quotient<F>(x, scale);
      check_quotient<F>(narrow<bf16>(x), scale);
    }
  }
  check_quotient<F>(-0.f, 0.3f);
  check_quotient<F>(bf16{0x3f80}, 0x1.fffffep3f);
  check_quotient<F>(narrow<bf16>(-0.f), FLT_MIN);
  expect(!divisor<false>(__uint_as_float(0x3f900001u)).quick && divisor<true>(__uint_as_float(0x3f900001u)).quick &&
             divisor<false>(1.125f).quick,
         "what a tie can deceive is divided");
}

struct Shape {
  int M, N, rows, columns;
  bool power_of_two = false, sticky = false, wild = false, wide = true;
};

template <typename F, bool CARRY, typename X>
void check_quantize(const Shape& shape) {
  const int M = shape.M, N = shape.N, P = (M + shape.rows - 1) / shape.rows, Q = (N + shape.columns - 1) / shape.columns;
  std::mt19937 random(8);
  std::normal_distribution<float> normal;
  std::vector<X> x(M * N);
  std::vector<bf16> residual(M * N), left(M * N);
  for (int i = 0; i < M * N; ++i) {
    x[i] = narrow<X>(normal(random) * (i % 977 == 0 ? 30.f : 1.f));
    residual[i] = narrow<bf16>(0.01f * normal(random));
  }
  for (int i = 0; i < min(M * N, 20); ++i) x[i] = narrow<X>(i % 2 ? 0.f : -0.f);
  if (shape.wild) x[M * N / 2] = narrow<X>(NAN), x[M * N / 3] = narrow<X>(-INFINITY);
  std::vector<float> previous(P * Q, 0.01f), scale(P * Q, NAN);
  std::vector<uint8_t> codes(M * N, 0x55);
  const Scaling how{shape.sticky ? previous.data() : nullptr, shape.power_of_two, 1.5f, 0.5f, 1.f};
  const Quantize<X> call{x.data(), residual.data(), how, M, N, nullptr, 1, M, shape.wide, codes.data(), scale.data(),
                         left.data()};
  const bool groups = shape.rows == 1 && shape.columns == kGroup, whole = shape.wide && N % kGroup == 0;
  if (groups && whole)
    on_cpu::launch((M * Q + kBlockGroups<CARRY, X> - 1) / kBlockGroups<CARRY, X>, kCodeThreads,
                   [&] { quantize_whole_groups<F, CARRY>(call); });
  else if (groups)
    on_cpu::launch((M * Q * kGroupLanes + kCodeThreads - 1) / kCodeThreads, kCodeThreads,
                   [&] { quantize_groups<F, CARRY>(call); });
  else if (shape.rows == kSquare && shape.columns == kSquare && whole)
    on_cpu::launch(P * Q, kCodeThreads, [&] { quantize_squares<F, CARRY>(call); });
  else
    on_cpu::launch(P * Q, kCodeThreads, [&] { quantize_blocks<F, CARRY>(call, {shape.rows, shape.columns, Q}); });
  for (int b = 0; b < P * Q; ++b) {
    float amax = 0.f;
    const auto each = [&](const auto& body) {
      for (int m = b / Q * shape.rows; m < min(M, (b / Q + 1) * shape.rows); ++m)
        for (int n = b % Q * shape.columns; n < min(N, (b % Q + 1) * shape.columns); ++n) {
          const float value = CARRY ? widen(x[m * N + n]) + widen(residual[m * N + n]) : widen(x[m * N + n]);
          body(m * N + n, value);
        }
    };
    each([&](int, float value) { amax = std::isfinite(value) ? max(amax, std::fabs(value)) : amax; });
    float want = max(amax * 1.5f, F::kMax * FLT_MIN) / F::kMax;
    if (shape.power_of_two) want = static_cast<float>(std::ldexp(1., std::ilogb(std::nextafter(want, 0.f)) + 1));
    if (shape.sticky && amax >= 0.5f * F::kMax * 0.01f && amax <= F::kMax * 0.01f) want = 0.01f;
    expect(scale[b] == want, "a block has its scale");
    each([&](int i, float value) {
      expect(codes[i] == code_of<F>(value, want), "an element has its code");
      if constexpr (CARRY) {
        const float rest = std::isfinite(value) ? value - decode<F>(codes[i]) * want : 0.f;
        expect(left[i].bits == narrow<bf16>(rest).bits, "what the codes leave is kept");
      }
    });
  }
}

// Rows with K places, one of which is none, by the general kernel and by the one for whole rows.
template <typename X>
void check_spread(int T, int K) {
  const int D = 256;
  std::vector<X> x(T * D);
  for (int i = 0; i < T * D; ++i) x[i] = narrow<X>(std::sin(i * 0.1f));
  x[D + 3] = narrow<X>(NAN);
  std::vector<int> row(T * K);
  for (int i = 0; i < T * K; ++i) row[i] = (i + 1) % 7 == 0 ? -1 : (13 * i + 2) % (T * K);
  std::vector<uint8_t> codes(T * D);
  std::vector<float> scale(T * 2);
  const Scaling how = plain_scaling(false);
  Quantize<X> call{x.data(), nullptr, how, T, D, nullptr, 1, T, true, codes.data(), scale.data(), nullptr};
  const int grid = (T * 2 * kGroupLanes + kCodeThreads - 1) / kCodeThreads;
  on_cpu::launch(grid, kCodeThreads, [&] { quantize_groups<E4M3, false>(call); });
  for (const bool whole : {false, true}) {
    alignas(16) static uint8_t rows[1 << 16];
    std::fill(std::begin(rows), std::end(rows), 0x55);
    std::vector<float> row_scale(T * K * 2, -1.f);
    call.row_MK = row.data(), call.K = K, call.rows = T * K, call.codes = rows, call.scale = row_scale.data();
    if (whole)
      on_cpu::launch(grid, kCodeThreads, [&] { spread_whole_groups<E4M3>(call); });
    else
      on_cpu::launch(grid, kCodeThreads, [&] { quantize_groups<E4M3, false>(call); });
    for (int i = 0; i < T * K; ++i)
      expect(row[i] < 0 || (std::equal(codes.begin() + i / K * D, codes.begin() + (i / K + 1) * D, rows + row[i] * D) &&
                            scale[i / K * 2] == row_scale[row[i] * 2] &&
                            scale[i / K * 2 + 1] == row_scale[row[i] * 2 + 1]),
             "an expert's row has the codes of its token");
    for (int r = 0; r < T * K; ++r)
      expect(std::count(row.begin(), row.end(), r) > 0 || (rows[r * D] == 0x55 && row_scale[r * 2] == -1.f),
             "a row that no token has is left alone");
  }
}

template <typename X>
void check_norm(bool wide, bool wild) {
  const int T = 7, D = 640, blocks = 2;
  std::vector<X> x(T * D);
  std::vector<float> weight(D), rstd(T), scale(T * 5);
  std::vector<uint8_t> codes(T * D);
  for (int i = 0; i < T * D; ++i) x[i] = narrow<X>(std::sin(i * 0.7f) * (1 + i / D));
  for (int d = 0; d < D; ++d) weight[d] = 1.f + 0.01f * static_cast<float>(d % 10);
  if (wild) weight[131] = INFINITY, weight[500] = NAN;
  const Norm<X> call{x.data(), weight.data(), 1e-6f, T, D, true, wide, codes.data(), scale.data(),
                     rstd.data()};
  on_cpu::launch(blocks, 64, [&] { norm_quantize<E4M3>(call); });
  for (int t = 0; t < T; ++t) {
    double squares = 0;
    for (int d = 0; d < D; ++d) squares += double{widen(x[t * D + d])} * widen(x[t * D + d]);
    expect(std::fabs(rstd[t] * std::sqrt(squares / D + 1e-6) - 1) < 1e-6, "a row is normed by its root mean square");
    for (int g = 0; g < D / kGroup; ++g) {
      float amax = 0.f, y[kGroup];
      for (int i = 0; i < kGroup; ++i) {
        const int d = g * kGroup + i;
        y[i] = widen(narrow<X>(widen(x[t * D + d]) * rstd[t] * weight[d]));
        amax = std::isfinite(y[i]) ? max(amax, std::fabs(y[i])) : amax;
      }
      const float found = scale[t * 5 + g];
      expect(found * 448.f >= amax && found * 224.f < amax, "the scale is the least power of two that holds the group");
      for (int i = 0; i < kGroup; ++i)
        expect(codes[t * D + g * kGroup + i] == code_of<E4M3>(y[i], found), "the codes are those of norm, then quantize");
    }
  }
}

int main() {
  check_format<E4M3>();
  check_format<E5M2>();
  check_quantize<E4M3, false, bf16>({5, 384, 1, 128});
  check_quantize<E4M3, false, bf16>({67, 128, 1, 128, false, true, true});
  check_quantize<E4M3, false, bf16>({3, 384, 1, 128, false, false, true, false});
  check_quantize<E5M2, false, float>({5, 384, 1, 128, true});
  check_quantize<E4M3, true, bf16>({3, 256, 1, 128, false, true, true});
  check_quantize<E4M3, true, bf16>({3, 256, 1, 128, false, false, true, false});
  check_quantize<E4M3, true, float>({3, 256, 1, 128, true});
  check_quantize<E4M3, false, float>({3, 201, 1, 128, false, false, true, false});
  check_quantize<E4M3, false, bf16>({200, 260, 128, 128, false, false, true, false});
  check_quantize<E4M3, false, bf16>({200, 256, 128, 128, false, false, true});
  check_quantize<E4M3, false, bf16>({129, 256, 128, 128, true});
  check_quantize<E4M3, true, bf16>({130, 256, 128, 128});
  check_quantize<E5M2, true, float>({130, 128, 128, 128});
  check_quantize<E4M3, false, float>({130, 128, 128, 128, false, true, true});
  check_quantize<E5M2, false, float>({2, 7168, 1, 7168});
  check_quantize<E4M3, false, bf16>({40, 256, 32, 64, false, false, true});
  check_quantize<E4M3, false, float>({2, 24, 1, 128});
  check_spread<bf16>(3, 2);
  check_spread<bf16>(21, 8);
  check_spread<float>(5, 11);
  check_norm<bf16>(true, false);
  check_norm<bf16>(false, true);
  check_norm<float>(true, true);
}
