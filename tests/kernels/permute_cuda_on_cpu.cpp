// The device code of csrc/moe/permute_kernels.cuh against loops. Ends with an error at the first difference.
#include "cuda_on_cpu.h"

#include "moe/permute_kernels.cuh"

using namespace seedthink;
using namespace seedthink::cuda;
using on_cpu::expect;

struct Rows {
  int T, K, D, R;
  std::vector<int> row;
  std::vector<float> weight;
  Rows(int T, int K, int D) : T(T), K(K), D(D), R(T * K), row(R), weight(R) {
    std::vector<int> free(R);
    for (int i = 0; i < R; ++i) free[i] = i;
    std::shuffle(free.begin(), free.end(), std::mt19937(3));
    for (int i = 0; i < R; ++i) row[i] = free[i], weight[i] = 0.125f * (i % 7) - 0.25f;
  }
};

template <typename X>
std::vector<X> random_values(int n, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<X> values(n);
  for (X& x : values) x = narrow<X>(normal(random));
  return values;
}

template <typename X>
bool same(const std::vector<X>& a, const std::vector<X>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(X)) == 0;
}

template <typename Word, typename X>
void check_spread(const Rows& n) {
  const auto x = random_values<X>(n.T * n.D, 1);
  std::vector<X> rows(n.R * n.D), want(n.R * n.D);
  for (int i = 0; i < n.R; ++i) std::copy_n(x.begin() + i / n.K * n.D, n.D, want.begin() + n.row[i] * n.D);
  const int words = n.D * static_cast<int>(sizeof(X)) / static_cast<int>(sizeof(Word));
  on_cpu::launch(n.T, 64, [&] {
    spread_rows<Word>(reinterpret_cast<const Word*>(x.data()), n.row.data(), n.K, n.R, words,
                      reinterpret_cast<Word*>(rows.data()));
  });
  expect(same(rows, want), "every row is its token's");
}

template <typename X, int N>
void check_combine(const Rows& n, bool weighted) {
  const auto rows = random_values<X>(n.R * n.D, 2);
  std::vector<X> y(n.T * n.D), want(n.T * n.D);
  for (int t = 0; t < n.T; ++t)
    for (int d = 0; d < n.D; ++d) {
      float sum = 0.f;
      for (int k = 0; k < n.K; ++k)
        sum = fmaf(weighted ? n.weight[t * n.K + k] : 1.f, widen(rows[n.row[t * n.K + k] * n.D + d]), sum);
      want[t * n.D + d] = narrow<X>(sum);
    }
  on_cpu::launch(n.T, 64, [&] {
    combine_rows<X, N>(rows.data(), n.row.data(), weighted ? n.weight.data() : nullptr, n.K, n.R, n.D, y.data());
  });
  expect(same(y, want), "a token is the sum of its rows in expert order, bit for bit");
}

template <typename X, int N>
void check_gradient(const Rows& n) {
  const auto dy = random_values<X>(n.T * n.D, 4), rows = random_values<X>(n.R * n.D, 5);
  std::vector<X> drows(n.R * n.D), want(n.R * n.D);
  std::vector<float> dweight(n.R);
  on_cpu::launch((n.R + 7) / 8, kRowThreads, [&] {
    spread_gradient<X, N>(dy.data(), rows.data(), n.row.data(), n.weight.data(), n.K, n.R, n.D, drows.data(),
                          dweight.data());
  });
  for (int i = 0; i < n.R; ++i) {
    double dot = 0;
    for (int d = 0; d < n.D; ++d) {
      const float grad = widen(dy[i / n.K * n.D + d]);
      dot += double{grad} * widen(rows[n.row[i] * n.D + d]);
      want[n.row[i] * n.D + d] = narrow<X>(n.weight[i] * grad);
    }
    expect(std::fabs(dot - dweight[i]) < 1e-4, "a weight's gradient is a dot product");
  }
  expect(same(drows, want), "a row's gradient is its token's times the weight");
}

void check_wild_rows() {
  Rows n(2, 2, 4);
  n.row = {0, 99, -1, 3};
  std::vector<float> x(8, 1.f), rows(16, 7.f), y(8);
  on_cpu::launch(2, 32, [&] { spread_rows<float>(x.data(), n.row.data(), 2, 4, 4, rows.data()); });
  expect(rows[0] == 1.f && rows[4] == 7.f && rows[8] == 7.f && rows[12] == 1.f, "a row outside the rows is left out");
  on_cpu::launch(2, 32, [&] { combine_rows<float, 4>(rows.data(), n.row.data(), nullptr, 2, 4, 4, y.data()); });
  expect(std::isnan(y[0]) && std::isnan(y[4]), "a token with a row outside the rows is NaN");
}

int main() {
  for (const int K : {1, 3, 8, 9, 40}) {
    const Rows n(5, K, 40);
    check_spread<Pack<uint32_t, 4>, float>(n);
    check_spread<uint32_t, seedthink::bf16>(n);
    check_combine<float, 4>(n, true);
    check_combine<float, 1>(n, true);
    check_combine<seedthink::bf16, 8>(n, true);
    check_combine<seedthink::bf16, 8>(n, false);
    check_gradient<seedthink::bf16, 8>(n);
  }
  const Rows odd(3, 2, 7);
  check_spread<uint8_t, seedthink::bf16>(odd);
  check_combine<float, 1>(odd, true);
  check_gradient<float, 1>(odd);
  check_wild_rows();
}
