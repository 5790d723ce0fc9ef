#include <atomic>
#include <vector>

#include "common/pool.h"
#include "moe/choose.h"
#include "moe/moe.h"

namespace seedthink::ST_ISA {
namespace {

constexpr int64_t kTokens = 128;  // tokens of one block: what a thread takes at a time, with counts of its own
constexpr float kTiny = 1e-20f;   // keeps a sum of scores that are all zero from dividing zero by zero (DeepSeek-V3)

struct Rule {
  int64_t T, E, K;
  bool sigmoid, norm_topk;
  float scale;
  const float* bias;
  int64_t groups, kept_groups;

  // Whether scores, and not logits, are compared. Scores grow with the logits, which never tie by rounding.
  bool by_score() const { return bias != nullptr || groups > 1; }
};

// exp(logits - max) of one row into p; returns the sum, NaN or inf where the row has NaN, +inf or nothing finite.
template <typename Exp>
float softmax_row(const Exp& exp_of, const float* logits, int64_t E, float* p) {
  vf high = splat(kLowest), total = splat(0.f);
  for_vectors(E, [&](int64_t e, int) { high = max(high, load_or_lowest(logits + e, E - e)); });
  const vf top = splat(reduce_max(high));
  for_vectors(E, [&](int64_t e, int live) {
    const vf y = exp_of(load_or_lowest(logits + e, E - e) - top);
    store_some(p + e, y, live);
    total = total + y;
  });
  return sum(total);
}

// 1 / (1 + exp(-x)), the same bits in every instruction set.
vf sigmoid_of(vf x) { return splat(1.f) / (splat(1.f) + exp_unfused(-x)); }

// sigmoid(logits) of one row into s; returns 1, NaN where the row has NaN, +inf or nothing finite.
float sigmoid_row(const float* logits, int64_t E, float* s) {
  const vf highest = splat(__builtin_inff());
  int64_t below = 0;
  uint64_t finite = 0;
  for_vectors(E, [&](int64_t e, int live) {
    const vf x = load_or_lowest(logits + e, E - e);
    below += __builtin_popcountll(above_bits(highest, x) & ((uint64_t{1} << live) - 1));
    finite |= above_bits(x, splat(kLowest));
    store_some(s + e, sigmoid_of(x), live);
  });
  return below == E && finite != 0 ? 1.f : __builtin_nanf("");
}

// What the scores are to be divided by; they are read as score[e] / scores(...).
float scores(const Rule& rule, const float* logits, float* score) {
  if (rule.sigmoid) return sigmoid_row(logits, rule.E, score);
  // Where a choice hangs on the scores they are the same bits in every instruction set, so that the choice is, too.
  if (rule.by_score()) return softmax_row(exp_unfused, logits, rule.E, score);
  return softmax_row([](vf x) { return exp(x); }, logits, rule.E, score);
}

// The sum of the two largest of n values; the only one where there is one.
float two_best(const float* key, int64_t n) {
  vf first = splat(kLowest), second = first;
  for_vectors(n, [&](int64_t i, int) {
    const vf x = load_or_lowest(key + i, n - i);
    second = max(second, min(first, x));
    first = max(first, x);
  });
  const auto fold = [&](vf other, vf next) {
    second = max(min(first, other), max(second, next));
    first = max(first, other);
  };
  fold(swap_lanes<8>(first), swap_lanes<8>(second));
  fold(swap_lanes<4>(first), swap_lanes<4>(second));
  fold(swap_lanes<2>(first), swap_lanes<2>(second));
  fold(swap_lanes<1>(first), swap_lanes<1>(second));
  return n > 1 ? first[0] + second[0] : first[0];
}

// Keeps the best groups of experts in the race: the keys of the others become the lowest value.
void keep_groups(const Rule& rule, float* key) {
  const int64_t size = rule.E / rule.groups;
  float* group = scratch<float>(4, 2 * rule.groups);
  int32_t* kept = reinterpret_cast<int32_t*>(group + rule.groups);
  for (int64_t g = 0; g < rule.groups; ++g) group[g] = two_best(key + g * size, size);
  choose(group, rule.groups, rule.kept_groups, kept);
  for (int64_t g = 0, next = 0; g < rule.groups; ++g) {
    if (next < rule.kept_groups && kept[next] == g)
      ++next;
    else
      std::fill(key + g * size, key + (g + 1) * size, kLowest);
  }
}

// Chooses the experts of one token and weighs them. Returns false, and some experts, where the row cannot be routed.
bool route_row(const Rule& rule, const float* logits, int32_t* ids, float* weight) {
  float* score = scratch<float>(0, rule.E);
  const float whole = scores(rule, logits, score);
  if (!std::isfinite(whole)) {
    for (int64_t k = 0; k < rule.K; ++k) ids[k] = static_cast<int32_t>(k);
    return false;
  }
  const float* key = logits;
  if (rule.by_score()) {
    float* biased = scratch<float>(1, rule.E);
    const vf divisor = splat(whole);
    for_vectors(rule.E, [&](int64_t e, int live) {
      const vf added = rule.bias != nullptr ? load_some(rule.bias + e, live) : splat(0.f);
      store_some(biased + e, load_some(score + e, live) / divisor + added, live);
    });
    if (rule.groups > 1) keep_groups(rule, biased);
    key = biased;
  }
  choose(key, rule.E, rule.K, ids);
  float total = 0.f;
  for (int64_t k = 0; k < rule.K; ++k) total += weight[k] = score[ids[k]] / whole;
  const float divisor = rule.norm_topk ? total + kTiny : 1.f;
  for (int64_t k = 0; k < rule.K; ++k) weight[k] = weight[k] / divisor * rule.scale;
  return true;
}

// The stable order of the rows: expert by expert, tokens ascending. count_NE holds what each of N blocks of tokens gives
// to each expert; it becomes where the block's rows of the expert begin.
void place_blocks(const Rule& rule, int64_t blocks, int32_t* count_NE, int32_t* counts, int32_t* offsets) {
  int32_t at = 0;
  for (int64_t e = 0; e < rule.E; ++e) {
    offsets[e] = at;
    for (int64_t n = 0; n < blocks; ++n) {
      const int32_t count = count_NE[n * rule.E + e];
      count_NE[n * rule.E + e] = at;
      at += count;
    }
    counts[e] = at - offsets[e];
  }
  offsets[rule.E] = at;
}

void check_rule(const Rule& rule, const View& bias_E) {
  ST_CHECK(rule.K >= 1 && rule.K <= rule.E, "k: ", rule.K, " is not between 1 and the number of experts, ", rule.E);
  ST_CHECK(rule.T * rule.K < INT32_MAX, "logits: ", rule.T, " tokens times k = ", rule.K,
           " are more rows than int32 counts");
  ST_CHECK(std::isfinite(rule.scale) && rule.scale > 0.f, "scale: ", rule.scale, " is not finite and above 0");
  ST_CHECK(rule.groups >= 1 && rule.E % rule.groups == 0, "groups: ", rule.groups,
           " does not divide the number of experts, ", rule.E);
  ST_CHECK(rule.kept_groups >= 1 && rule.kept_groups <= rule.groups, "topk_groups: ", rule.kept_groups,
           " is not between 1 and the number of groups, ", rule.groups);
  const int64_t left = rule.E / rule.groups * rule.kept_groups;
  ST_CHECK(rule.K <= left, "k: ", rule.K, " is more than the ", left, " experts of topk_groups = ", rule.kept_groups);
  if (!bias_E) return;
  bias_E.check("bias", Dtype::f32, {rule.E});
  for (int64_t e = 0; e < rule.E; ++e) ST_CHECK(std::isfinite(rule.bias[e]), "bias: entry ", e, " is not finite");
}

void keep_least(std::atomic<int64_t>& least, int64_t value) {
  for (int64_t seen = least.load(); value < seen && !least.compare_exchange_weak(seen, value);) {
  }
}

}  // namespace

void route_forward(const View& logits_TE, const View& bias_E, bool sigmoid, bool norm_topk, double scale, int64_t groups,
                   int64_t topk_groups, const View& ids_TK, const View& weight_TK, const View& counts_E,
                   const View& offsets_E1, const View& row_TK, const View& token_R) {
  logits_TE.check("logits", Dtype::f32, {-1, -1});
  const int64_t T = logits_TE.size[0], E = logits_TE.size[1], K = ids_TK.size[1];
  const Rule rule{T,     E,      K, sigmoid, norm_topk, static_cast<float>(scale), bias_E.as<float>(),
                  groups, topk_groups};
  check_rule(rule, bias_E);
  ids_TK.check("ids", Dtype::i32, {T, K});
  weight_TK.check("weight", Dtype::f32, {T, K});
  counts_E.check("counts", Dtype::i32, {E});
  offsets_E1.check("offsets", Dtype::i32, {E + 1});
  row_TK.check("row", Dtype::i32, {T, K});
  token_R.check("token", Dtype::i32, {T * K});
  const int64_t blocks = (T + kTokens - 1) / kTokens;
  int32_t *ids = ids_TK.as<int32_t>(), *row = row_TK.as<int32_t>(), *token = token_R.as<int32_t>();
  int32_t* count_NE = scratch<int32_t>(5, blocks * E);
  std::atomic<int64_t> bad{T};
  parallel(blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t n = first; n < last; ++n) {
      int32_t* count = count_NE + n * E;
      std::fill(count, count + E, 0);
      for (int64_t t = n * kTokens; t < std::min(T, (n + 1) * kTokens); ++t) {
        if (!route_row(rule, logits_TE.as<float>() + t * E, ids + t * K, weight_TK.as<float>() + t * K))
          keep_least(bad, t);
        for (int64_t k = 0; k < K; ++k) ++count[ids[t * K + k]];
      }
    }
  });
  ST_CHECK(bad.load() == T, "logits: row ", bad.load(), " has NaN or +inf, or nothing finite");
  place_blocks(rule, blocks, count_NE, counts_E.as<int32_t>(), offsets_E1.as<int32_t>());
  parallel(blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t n = first; n < last; ++n)
      for (int64_t i = n * kTokens * K; i < std::min(T, (n + 1) * kTokens) * K; ++i) {
        row[i] = count_NE[n * E + ids[i]]++;
        token[row[i]] = static_cast<int32_t>(i / K);
      }
  });
}

void route_backward(const View& dweight_TK, const View& logits_TE, const View& ids_TK, const View& weight_TK,
                    bool sigmoid, bool norm_topk, double scale, const View& dlogits_TE) {
  logits_TE.check("logits", Dtype::f32, {-1, -1});
  const int64_t T = logits_TE.size[0], E = logits_TE.size[1], K = ids_TK.size[1];
  dweight_TK.check("dweight", Dtype::f32, {T, K});
  ids_TK.check("ids", Dtype::i32, {T, K});
  weight_TK.check("weight", Dtype::f32, {T, K});
  dlogits_TE.check("dlogits", Dtype::f32, {T, E});
  for (int64_t i = 0; i < T * K; ++i)
    ST_CHECK(ids_TK.as<int32_t>()[i] >= 0 && ids_TK.as<int32_t>()[i] < E, "ids: entry ", i, " is not an expert");
  parallel(T, kTokens, [&](int64_t begin, int64_t end) {
    float *p = scratch<float>(0, E), *slope = scratch<float>(1, K);
    for (int64_t t = begin; t < end; ++t) {
      const int32_t* ids = ids_TK.as<int32_t>() + t * K;
      const float *logits = logits_TE.as<float>() + t * E, *weight = weight_TK.as<float>() + t * K;
      const float* dweight = dweight_TK.as<float>() + t * K;
      float* dlogits = dlogits_TE.as<float>() + t * E;
      float dot = 0.f;  // under the weights
      for (int64_t k = 0; k < K; ++k) dot = fma(weight[k], dweight[k], dot);
      std::fill(dlogits, dlogits + E, 0.f);
      if (!sigmoid && !norm_topk) {
        const float whole = softmax_row([](vf x) { return exp(x); }, logits, E, p);
        for (int64_t e = 0; e < E; ++e) dlogits[e] = -(p[e] / whole) * dot;
      }
      // A sigmoid's derivative is s (1 - s); the normalised softmax scores are a softmax over the chosen logits alone.
      for (int64_t k = 0; k < K; ++k) slope[k] = -logits[ids[k]];
      for_vectors(sigmoid ? K : 0, [&](int64_t k, int live) {
        store_some(slope + k, sigmoid_of(load_some(slope + k, live)), live);
      });
      const float mean = sigmoid && !norm_topk ? 0.f : dot / static_cast<float>(scale);
      for (int64_t k = 0; k < K; ++k) dlogits[ids[k]] = weight[k] * (dweight[k] - mean) * (sigmoid ? slope[k] : 1.f);
    }
  });
}

}  // namespace seedthink::ST_ISA
