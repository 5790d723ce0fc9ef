// The device code of csrc/moe/route_kernels.cuh against a plain sort of float64 scores. Ends with an error at the first
// difference; prints the largest errors of the weights and of the gradient.
#include "cuda_on_cpu.h"

#include "moe/route_kernels.cuh"

using namespace seedthink;
using namespace seedthink::cuda;
using on_cpu::expect;

struct Case {
  int T, E, K;
  bool sigmoid = false, norm = true, biased = false;
  int groups = 1, kept = 1;
  float scale = 1.f;
  bool tied = false;
  int range = 32;
};

template <typename X>
struct Routed {
  Case c;
  std::vector<X> logits;
  std::vector<float> bias, weight;
  std::vector<int> ids, counts, offsets, row, token;
  Rule rule;

  explicit Routed(const Case& c) : c(c), logits(c.T * c.E), bias(c.E), weight(c.T * c.K), ids(c.T * c.K), counts(c.E),
                                   offsets(c.E + 1), row(c.T * c.K), token(c.T * c.K) {
    std::mt19937 random(11);
    std::normal_distribution<float> normal;
    for (X& x : logits) x = narrow<X>(c.tied ? std::floor(normal(random)) : normal(random));
    for (float& b : bias) b = 0.1f * normal(random);
    const int ranges = (c.T + c.range - 1) / c.range;
    rule = {c.T, c.E, c.K, c.sigmoid, c.norm, c.scale, c.biased ? bias.data() : nullptr, c.groups, c.kept,
            c.E / c.groups, ranges, c.range};
  }

  template <int P>
  void run() {
    std::vector<uint32_t> count(packs_of(c.E) * kPackWords * rule.ranges, ~0u);
    const RouteOutput out{ids.data(), weight.data(), count.data()};
    const Places places{counts.data(), offsets.data(), row.data(), token.data()};
    const unsigned threads = 32 * min(max(c.range, 8), kWarpsOf<P>);
    on_cpu::launch(rule.ranges, threads, [&] { choose_experts<X, P>(rule, logits.data(), out); });
    on_cpu::launch(max(1, rule.ranges), kPlaceThreads, [&] { place_rows(rule, ids.data(), count.data(), places); });
    if (rule.ranges == 1 && c.range <= kWarpsOf<P>) check_cluster<P>(threads);
  }

  // A cluster of one block gives the bits of the two launches.
  template <int P>
  void check_cluster(unsigned threads) const {
    Routed other(c);
    other.logits = logits;
    other.rule.bias = rule.bias;
    const RouteOutput out{other.ids.data(), other.weight.data(), nullptr};
    const Places places{other.counts.data(), other.offsets.data(), other.row.data(), other.token.data()};
    on_cpu::launch(1, threads, [&] { route_cluster<X, P>(rule, logits.data(), out, places); });
    expect(other.ids == ids && std::memcmp(other.weight.data(), weight.data(), 4 * weight.size()) == 0, "same choices");
    expect(other.counts == counts && other.offsets == offsets && other.row == row && other.token == token, "same places");
  }

  double logit(int t, int e) const { return widen(logits[t * c.E + e]); }
  std::vector<double> scores(int t) const {
    std::vector<double> s(c.E);
    double sum = 0;
    for (int e = 0; e < c.E; ++e) sum += s[e] = c.sigmoid ? 1 / (1 + std::exp(-logit(t, e))) : std::exp(logit(t, e));
    for (double& x : s) x /= c.sigmoid ? 1 : sum;
    return s;
  }

  // The k largest of `key`, of equals the first; empty where the choice hangs on the last bits of float32.
  static std::vector<int> largest(const std::vector<double>& key, int k, bool exact) {
    std::vector<int> order(key.size());
    for (size_t i = 0; i < key.size(); ++i) order[i] = static_cast<int>(i);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return key[a] > key[b]; });
    if (!exact && k < static_cast<int>(key.size()) && key[order[k - 1]] - key[order[k]] < 1e-6) return {};
    order.resize(k);
    std::sort(order.begin(), order.end());
    return order;
  }

  std::vector<int> wanted(int t) const {
    std::vector<double> key(c.E), s = scores(t);
    const bool by_score = c.biased || c.groups > 1;
    for (int e = 0; e < c.E; ++e) key[e] = by_score ? s[e] + (c.biased ? bias[e] : 0) : logit(t, e);
    if (c.groups == 1) return largest(key, c.K, !by_score);
    const int size = c.E / c.groups;
    std::vector<double> group(c.groups);
    for (int g = 0; g < c.groups; ++g) {
      std::vector<double> in(key.begin() + g * size, key.begin() + (g + 1) * size);
      std::sort(in.rbegin(), in.rend());
      group[g] = in[0] + (size > 1 ? in[1] : 0);
    }
    const std::vector<int> kept = largest(group, c.kept, false);
    if (kept.empty()) return {};
    for (int e = 0; e < c.E; ++e)
      if (!std::binary_search(kept.begin(), kept.end(), e / size)) key[e] = -1e9;
    return largest(key, c.K, false);
  }

  double check_weights() const {
    double worst = 0;
    int skipped = 0;
    for (int t = 0; t < c.T; ++t) {
      const std::vector<int> want = wanted(t);
      if (want.empty()) {
        ++skipped;
        continue;
      }
      expect(std::equal(want.begin(), want.end(), ids.begin() + t * c.K), "the largest are chosen, ascending");
      const std::vector<double> s = scores(t);
      double sum = 0;
      for (const int e : want) sum += s[e];
      for (int k = 0; k < c.K; ++k)
        worst = on_cpu::worst(worst, std::fabs(s[want[k]] / (c.norm ? sum : 1) * c.scale - weight[t * c.K + k]));
    }
    expect(skipped * 20 <= c.T, "few choices hang on the last bits");
    return worst;
  }

  void check_places() const {
    std::vector<int> count(c.E);
    for (const int e : ids) ++count[e];
    int first = 0;
    for (int e = 0; e < c.E; ++e) {
      expect(counts[e] == count[e] && offsets[e] == first, "counts and offsets are those of the choice");
      first += count[e];
    }
    expect(offsets[c.E] == c.T * c.K, "the last offset is the number of rows");
    std::vector<int> next(offsets.begin(), offsets.end() - 1);
    for (int i = 0; i < c.T * c.K; ++i) {
      expect(row[i] == next[ids[i]]++, "rows stand expert by expert, in token order");
      expect(token[row[i]] == i / c.K, "a row knows its token");
    }
  }

  // Against central differences of the weights' float64 formula, for the experts that were chosen.
  template <int P>
  double check_gradient() const {
    std::vector<float> dweight(c.T * c.K);
    std::vector<X> dlogits(c.T * c.E, narrow<X>(NAN));
    for (size_t i = 0; i < dweight.size(); ++i) dweight[i] = static_cast<float>(static_cast<int>(i * 7 % 5) - 2);
    on_cpu::launch((c.T + 7) / 8, kBackwardThreads, [&] {
      route_gradient<X, P>(rule, dweight.data(), logits.data(), ids.data(), weight.data(), dlogits.data());
    });
    double worst = 0;
    for (int t = 0; t < min(c.T, 3); ++t)
      for (int e = 0; e < c.E; ++e) {
        Routed moved = *this;
        double side[2];
        for (const int sign : {1, -1}) {
          std::vector<double> s(c.E);
          double all = 0, sum = 0, loss = 0;
          for (int i = 0; i < c.E; ++i) {
            const double x = logit(t, i) + (i == e ? sign * 1e-4 : 0);
            all += s[i] = c.sigmoid ? 1 / (1 + std::exp(-x)) : std::exp(x);
          }
          for (double& x : s) x /= c.sigmoid ? 1 : all;
          for (int k = 0; k < c.K; ++k) sum += s[ids[t * c.K + k]];
          for (int k = 0; k < c.K; ++k)
            loss += dweight[t * c.K + k] * s[ids[t * c.K + k]] / (c.norm ? sum : 1) * c.scale;
          side[sign < 0] = loss;
        }
        worst = on_cpu::worst(worst, std::fabs((side[0] - side[1]) / 2e-4 - widen(dlogits[t * c.E + e])));
      }
    return worst;
  }
};

template <typename X, int P>
void run(const Case& c) {
  Routed<X> routed(c);
  routed.template run<P>();
  routed.check_places();
  std::printf("%g\n", routed.check_weights());
  std::printf("%g\n", routed.template check_gradient<P>());
}

void bad_rows() {
  Routed<float> routed({4, 40, 3});
  routed.logits[40 + 7] = NAN;
  routed.logits[80 + 39] = INFINITY;
  std::fill_n(routed.logits.begin() + 120, 40, -INFINITY);
  routed.run<4>();
  for (int t = 1; t < 4; ++t)
    for (int k = 0; k < 3; ++k)
      expect(routed.ids[3 * t + k] == k && std::isnan(routed.weight[3 * t + k]), "a row without scores has NaN weights");
  expect(std::isfinite(routed.weight[0]), "the other rows do not see it");
  routed.check_places();
}

// Scores at the ends of exp, beside logits that are masked, come out as from the formula for every logit.
void far_logits() {
  Routed<float> routed({6, 70, 4, true, true, true});
  for (const int e : {3, 11, 69}) routed.logits[e] = -INFINITY;
  routed.logits[70 + 5] = -200.f;
  routed.logits[2 * 70 + 9] = 150.f;
  routed.logits[3 * 70 + 40] = -70.f;
  for (int e = 0; e < 70; ++e) routed.logits[4 * 70 + e] = -INFINITY;
  routed.logits[5 * 70 + 69] = INFINITY;
  routed.run<4>();
  for (int t = 0; t < 4; ++t) {
    const std::vector<int> want = routed.wanted(t);
    expect(want.empty() || std::equal(want.begin(), want.end(), routed.ids.begin() + 4 * t), "far logits are ordered");
    for (int k = 0; k < 4; ++k) expect(std::isfinite(routed.weight[4 * t + k]), "far logits have weights");
  }
  for (int i = 16; i < 24; ++i) expect(std::isnan(routed.weight[i]), "sigmoids of a row without scores have NaN weights");
  routed.check_places();
}

// More equals than there is place for: the first are chosen, and each only once.
void all_equal() {
  Routed<float> routed({3, 100, 7, false, true, false, 1, 1, 1.f, false, 8});
  std::fill(routed.logits.begin(), routed.logits.end(), 0.25f);
  for (const int e : {40, 99}) routed.logits[100 + e] = 0.5f;
  routed.run<4>();
  const int want[] = {0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 40, 99};
  expect(std::equal(want, want + 14, routed.ids.begin()), "of equals the first are chosen");
  routed.check_places();
}

void sorted_keys() {
  std::mt19937 random(5);
  for (int round = 0; round < 200; ++round) {
    int32_t key[16];
    for (int32_t& x : key) x = static_cast<int32_t>(random() % 20) - 10;
    sort(key);
    expect(std::is_sorted(std::rbegin(key), std::rend(key)), "the network sorts");
  }
}

void same_bits_in_any_batch() {
  const Case c{70, 64, 4, true, true, true, 8, 3, 2.5f};
  Routed<float> many(c);
  many.run<4>();
  for (const int t : {0, 33, 69}) {
    Case alone = c;
    alone.T = 1;
    Routed<float> one(alone);
    one.bias = many.bias;
    std::copy_n(many.logits.begin() + t * 64, 64, one.logits.begin());
    one.run<4>();
    expect(std::equal(one.weight.begin(), one.weight.end(), many.weight.begin() + 4 * t), "a token has its bits alone");
  }
}

int main() {
  for (const float x : {0.f, -1.f, 1.f, 88.f, -87.f, 0.3f, -50.f}) {
    const double want = std::exp(static_cast<double>(x));
    expect(std::fabs(exp_unfused(x) - want) < 4e-7 * want, "exp is exp");
  }
  expect(exp_unfused(-100.f) == 0.f && std::isinf(exp_unfused(100.f)) && std::isnan(exp_unfused(NAN)), "exp has its ends");
  expect(key_of(-0.f) == key_of(0.f) && key_of(-1.f) < key_of(-0.5f), "keys order like floats");
  expect(key_of(-INFINITY) == kKeyOfLowest && key_of(INFINITY) == kKeyOfInfinity, "keys know the ends");
  expect(key_of(-1.f) > kKeyOfLowest && key_of(-0.f) < key_of(1.f) && key_of(NAN) > kKeyOfInfinity, "NaN is above all");
  expect(value_of(key_of(-2.f)) == -2.f && value_of(key_of(3.f)) == 3.f, "a key knows its float");
  run<float, 4>({70, 128, 8});
  run<float, 4>({40, 33, 3, false, false, false, 1, 1, 2.f});
  run<float, 4>({40, 8, 2, false, true, false, 1, 1, 1.f, true});
  run<float, 4>({40, 100, 8, false, true, false, 1, 1, 1.f, true});
  run<float, 8>({40, 256, 8, true, true, true, 8, 4, 2.5f});
  run<float, 4>({32, 128, 6, true, true, true, 4, 2, 2.5f});  // groups of 32
  run<float, 8>({20, 160, 6, false, false, false, 5, 3});
  run<float, 8>({20, 160, 6, true, true, true, 2, 1});  // a key of a lane is absent
  run<float, 8>({20, 192, 6, true, true, false, 3, 2});
  run<float, 4>({8, 64, 32, true, true, true, 8, 4, 1.f, false, 8});
  run<float, 4>({40, 60, 6, false, true, true, 5, 2});
  run<float, 4>({9, 6, 2, true, false, false, 6, 3});
  run<float, 16>({5, 512, 32});
  run<seedthink::bf16, 4>({40, 128, 8});
  run<float, 4>({300, 4, 2, false, true, false, 1, 1, 1.f, true, 290});
  run<float, 4>({3, 1, 1});
  Routed<float> none({0, 5, 2});
  none.run<4>();
  none.check_places();
  bad_rows();
  far_logits();
  all_equal();
  sorted_keys();
  same_bits_in_any_batch();
}
