#include <atomic>

#include "common/pool.h"
#include "common/simd.h"
#include "linear/gemm.h"
#include "moe/moe.h"

namespace seedthink::ST_ISA {
namespace {

constexpr int64_t kTokens = 128;  // tokens of one chunk of the parallel loops

// p = softmax(logits) of one row; returns false where the row has NaN, +inf or nothing finite.
bool softmax_row(const float* logits, int64_t E, float* p) {
  const float lowest = -__builtin_inff();
  vf high = splat(lowest);
  for (int64_t e = 0; e < E; e += kLanes)
    high = max(high, load_n(logits + e, static_cast<int>(std::min<int64_t>(kLanes, E - e)), lowest));
  const vf top = splat(reduce_max(high));
  vf total = splat(0.f);
  for (int64_t e = 0; e < E; e += kLanes) {
    const int live = static_cast<int>(std::min<int64_t>(kLanes, E - e));
    const vf y = exp(load_n(logits + e, live, lowest) - top);
    store_n(p + e, y, live);
    total = total + y;
  }
  const float scale = sum(total);
  for (int64_t e = 0; e < E; ++e) p[e] = p[e] / scale;
  return std::isfinite(scale);  // NaN and +inf logits make the sum NaN
}

// The k largest logits, ties to the smaller id, written in ascending order of id.
void choose(const float* logits, int64_t E, int64_t k, int32_t* ids) {
  for (int64_t j = 0; j < k; ++j) {
    int64_t best = -1;
    for (int64_t e = 0; e < E; ++e) {
      if (best >= 0 && !(logits[e] > logits[best])) continue;
      bool taken = false;
      for (int64_t i = 0; i < j; ++i) taken = taken || ids[i] == e;
      if (!taken) best = e;
    }
    ids[j] = static_cast<int32_t>(best);
  }
  std::sort(ids, ids + k);
}

// Counts, offsets and the stable order of the rows: expert by expert, tokens ascending.
void order_rows(const int32_t* ids, int64_t T, int64_t K, int64_t E, int32_t* counts, int32_t* offsets, int32_t* row,
                int32_t* token) {
  std::fill(counts, counts + E, 0);
  for (int64_t i = 0; i < T * K; ++i) ++counts[ids[i]];
  offsets[0] = 0;
  for (int64_t e = 0; e < E; ++e) offsets[e + 1] = offsets[e] + counts[e];
  int32_t* next = scratch<int32_t>(0, E);
  std::copy(offsets, offsets + E, next);
  for (int64_t i = 0; i < T * K; ++i) {
    row[i] = next[ids[i]]++;
    token[row[i]] = static_cast<int32_t>(i / K);
  }
}

}  // namespace

void route_forward(const View& logits_TE, bool norm_topk, const View& ids_TK, const View& weight_TK,
                   const View& counts_E, const View& offsets_E1, const View& row_TK, const View& token_R) {
  logits_TE.check("logits", Dtype::f32, {-1, -1});
  const int64_t T = logits_TE.size[0], E = logits_TE.size[1], K = ids_TK.size[1];
  ST_CHECK(K >= 1 && K <= E, "k: ", K, " is not between 1 and the number of experts, ", E);
  ST_CHECK(T * K < INT32_MAX, "logits: ", T, " tokens times k = ", K, " are more rows than int32 counts");
  ids_TK.check("ids", Dtype::i32, {T, K});
  weight_TK.check("weight", Dtype::f32, {T, K});
  counts_E.check("counts", Dtype::i32, {E});
  offsets_E1.check("offsets", Dtype::i32, {E + 1});
  row_TK.check("row", Dtype::i32, {T, K});
  token_R.check("token", Dtype::i32, {T * K});
  std::atomic<int64_t> bad{-1};
  parallel(T, kTokens, [&](int64_t begin, int64_t end) {
    float* p = scratch<float>(0, E + kLanes);
    for (int64_t t = begin; t < end; ++t) {
      const float* logits = logits_TE.as<float>() + t * E;
      int32_t* ids = ids_TK.as<int32_t>() + t * K;
      float* weight = weight_TK.as<float>() + t * K;
      if (!softmax_row(logits, E, p)) bad.store(t);
      choose(logits, E, K, ids);
      float total = 0.f;
      for (int64_t j = 0; j < K; ++j) total += weight[j] = p[ids[j]];
      for (int64_t j = 0; norm_topk && j < K; ++j) weight[j] = weight[j] / total;
    }
  });
  ST_CHECK(bad.load() < 0, "logits: row ", bad.load(), " has NaN or +inf, or nothing finite");
  order_rows(ids_TK.as<int32_t>(), T, K, E, counts_E.as<int32_t>(), offsets_E1.as<int32_t>(), row_TK.as<int32_t>(),
             token_R.as<int32_t>());
}

void route_backward(const View& dweight_TK, const View& logits_TE, const View& ids_TK, const View& weight_TK,
                    bool norm_topk, const View& dlogits_TE) {
  logits_TE.check("logits", Dtype::f32, {-1, -1});
  const int64_t T = logits_TE.size[0], E = logits_TE.size[1], K = ids_TK.size[1];
  dweight_TK.check("dweight", Dtype::f32, {T, K});
  ids_TK.check("ids", Dtype::i32, {T, K});
  weight_TK.check("weight", Dtype::f32, {T, K});
  dlogits_TE.check("dlogits", Dtype::f32, {T, E});
  parallel(T, kTokens, [&](int64_t begin, int64_t end) {
    float* p = scratch<float>(0, E + kLanes);
    for (int64_t t = begin; t < end; ++t) {
      const int32_t* ids = ids_TK.as<int32_t>() + t * K;
      const float *weight = weight_TK.as<float>() + t * K, *dweight = dweight_TK.as<float>() + t * K;
      float* dlogits = dlogits_TE.as<float>() + t * E;
      float mean = 0.f;  // the derivative's mean under the weights
      for (int64_t j = 0; j < K; ++j) mean = fma(weight[j], dweight[j], mean);
      if (norm_topk) {  // the normalised weights are a softmax over the chosen logits alone
        std::fill(dlogits, dlogits + E, 0.f);
        for (int64_t j = 0; j < K; ++j) dlogits[ids[j]] = weight[j] * (dweight[j] - mean);
      } else {
        softmax_row(logits_TE.as<float>() + t * E, E, p);
        for (int64_t e = 0; e < E; ++e) dlogits[e] = -p[e] * mean;
        for (int64_t j = 0; j < K; ++j) dlogits[ids[j]] = weight[j] * (dweight[j] - mean);
      }
    }
  });
}

}  // namespace seedthink::ST_ISA
