#include "logprob/logprob.h"

#include "common/tuning.h"
#include "logprob/row.h"

namespace seedthink::ST_ISA {
namespace {

constexpr int64_t kCells = 16384;  // logits of one chunk of the parallel loops

void check(const View& logits_TV, const View& targets_T, const View& temperature_T) {
  logits_TV.check("logits", Dtype::f32, {-1, -1});
  const int64_t T = logits_TV.size[0], V = logits_TV.size[1];
  targets_T.check("targets", Dtype::i64, {T});
  temperature_T.check("temperature", Dtype::f32, {T});
  const int64_t* targets = targets_T.as<int64_t>();
  const float* temperature = temperature_T.as<float>();
  for (int64_t t = 0; t < T; ++t) {
    ST_CHECK(targets[t] >= 0 && targets[t] < V, "targets: entry ", t, " is ", targets[t], ", outside 0 to ", V - 1);
    ST_CHECK(temperature[t] > 0.f, "temperature: entry ", t, " is ", temperature[t], ", expected above 0");
  }
}

}  // namespace

void row_logprob_forward(const View& logits_TV, const View& targets_T, const View& temperature_T, const View& logprob_T,
                         const View& entropy_T) {
  check(logits_TV, targets_T, temperature_T);
  const int64_t T = logits_TV.size[0], V = logits_TV.size[1];
  logprob_T.check("logprob", Dtype::f32, {T});
  entropy_T.check("entropy", Dtype::f32, {T});
  const Launch launch = tuned(Op::logprob, kCells);
  parallel(launch, T, launch.rows(V), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* logits = logits_TV.as<float>() + t * V;
      const RowStats row = row_stats(logits, V, temperature_T.as<float>()[t]);
      logprob_T.as<float>()[t] = row_logprob(row, logits[targets_T.as<int64_t>()[t]]);
      entropy_T.as<float>()[t] = row.entropy;
    }
  });
}

// dx_i = dlogp * ((i == target) - p_i) - dentropy * p_i * (log p_i + entropy), then the temperature's factor.
void row_logprob_backward(const View& logits_TV, const View& targets_T, const View& temperature_T, const View& dlogprob_T,
                          const View& dentropy_T) {
  check(logits_TV, targets_T, temperature_T);
  const int64_t T = logits_TV.size[0], V = logits_TV.size[1];
  dlogprob_T.check("dlogprob", Dtype::f32, {T});
  dentropy_T.check("dentropy", Dtype::f32, {T});
  const float lowest = -__builtin_inff();
  const Launch launch = tuned(Op::logprob, kCells);
  parallel(launch, T, launch.rows(V), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      float* logits = logits_TV.as<float>() + t * V;
      const RowStats row = row_stats(logits, V, temperature_T.as<float>()[t]);
      const float dlogp = dlogprob_T.as<float>()[t], dentropy = dentropy_T.as<float>()[t];
      const vf inverse = splat(row.inverse), shift = splat(row.max), log_sum = splat(row.log_sum);
      for (int64_t i = 0; i < V; i += kLanes) {
        const vf log_p = tempered(logits, i, V, inverse) - shift - log_sum;
        const vf p = exp(log_p), known = log_p > splat(lowest) ? log_p : splat(0.f);
        const vf dx = -p * (splat(dlogp) + splat(dentropy) * (known + splat(row.entropy))) * inverse;
        if (i + kLanes <= V)
          store(logits + i, dx);
        else
          store_n(logits + i, dx, static_cast<int>(V - i));
      }
      logits[targets_T.as<int64_t>()[t]] += dlogp * row.inverse;
    }
  });
}

}  // namespace seedthink::ST_ISA
