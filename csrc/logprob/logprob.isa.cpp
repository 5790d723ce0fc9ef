#include "logprob/logprob.h"

#include "common/tuning.h"
#include "logprob/row.h"

namespace seedthink::ST_ISA {
namespace {

constexpr int64_t kCells = 16384;  // logits of one chunk of the parallel loops

// A row of state_T4.
struct State {
  Running row;
  double target = 0.;
};

void check(const View& logits_TN, int64_t first, int64_t V, const View& targets_T, const View& temperature_T) {
  logits_TN.check("logits", Dtype::f32, {-1, -1});
  const int64_t T = logits_TN.size[0], N = logits_TN.size[1];
  ST_CHECK(first >= 0 && first % kBlock == 0 && V >= N && first <= V - N, "first: columns ", first, " to ", first + N,
           " do not begin at a multiple of ", kBlock, " or leave the ", V, " there are");
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

void logprob_columns(const View& logits_TN, int64_t first, int64_t V, const View& targets_T, const View& temperature_T,
                     const View& state_T4) {
  check(logits_TN, first, V, targets_T, temperature_T);
  const int64_t T = logits_TN.size[0], N = logits_TN.size[1];
  state_T4.check("state", Dtype::f64, {T, 4});
  const Launch launch = tuned(Op::logprob, kCells);
  parallel(launch, T, launch.rows(N), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* logits = logits_TN.as<float>() + t * N;
      State& state = state_T4.as<State>()[t];
      if (first == 0) state = {};
      add_columns(logits, N, temperature_T.as<float>()[t], state.row);
      const int64_t target = targets_T.as<int64_t>()[t] - first;
      if (target >= 0 && target < N) state.target = logits[target];
    }
  });
}

void logprob_blocks(const View& logits_TN, int64_t first, int64_t V, const View& targets_T, const View& temperature_T,
                    const View& states_BT4) {
  check(logits_TN, first, V, targets_T, temperature_T);
  const int64_t T = logits_TN.size[0], N = logits_TN.size[1], B = (N + kBlock - 1) / kBlock;
  states_BT4.check("states", Dtype::f64, {B, T, 4});
  const Launch launch = tuned(Op::logprob, kCells);
  parallel(launch, T, launch.rows(N), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* logits = logits_TN.as<float>() + t * N;
      const vf inverse = splat(1.f / temperature_T.as<float>()[t]);
      const int64_t target = targets_T.as<int64_t>()[t] - first;
      for (int64_t b = 0; b < B; ++b) {
        const Running block = block_of(logits + b * kBlock, std::min(kBlock, N - b * kBlock), inverse);
        const bool here = target >= 0 && target < N && target / kBlock == b;
        states_BT4.as<State>()[b * T + t] = {block, here ? logits[target] : 0.};
      }
    }
  });
}

void logprob_join(const View& states_BT4, const View& targets_T, const View& state_T4) {
  targets_T.check("targets", Dtype::i64, {-1});
  const int64_t T = targets_T.size[0];
  states_BT4.check("states", Dtype::f64, {-1, T, 4});
  state_T4.check("state", Dtype::f64, {T, 4});
  const int64_t B = states_BT4.size[0];
  for (int64_t t = 0; t < T; ++t) {
    const int64_t owner = targets_T.as<int64_t>()[t] / kBlock;
    ST_CHECK(targets_T.as<int64_t>()[t] >= 0 && owner < B, "targets: entry ", t, " is ", targets_T.as<int64_t>()[t],
             ", outside the ", B, " blocks there are");
    State state;
    for (int64_t b = 0; b < B; ++b) join(states_BT4.as<State>()[b * T + t].row, state.row);
    state.target = states_BT4.as<State>()[owner * T + t].target;
    state_T4.as<State>()[t] = state;
  }
}

void logprob_finish(const View& state_T4, const View& temperature_T, const View& logprob_T, const View& entropy_T) {
  temperature_T.check("temperature", Dtype::f32, {-1});
  const int64_t T = temperature_T.size[0];
  state_T4.check("state", Dtype::f64, {T, 4});
  logprob_T.check("logprob", Dtype::f32, {T});
  entropy_T.check("entropy", Dtype::f32, {T});
  for (int64_t t = 0; t < T; ++t) {
    const State& state = state_T4.as<State>()[t];
    const RowStats row = finish(state.row, temperature_T.as<float>()[t]);
    logprob_T.as<float>()[t] = row_logprob(row, static_cast<float>(state.target));
    entropy_T.as<float>()[t] = row.entropy;
  }
}

// dx_i = dlogp * ((i == target) - p_i) - dentropy * p_i * (log p_i + entropy), then the temperature's factor.
void logprob_columns_backward(const View& logits_TN, int64_t first, int64_t V, const View& targets_T,
                              const View& temperature_T, const View& state_T4, const View& dlogprob_T,
                              const View& dentropy_T) {
  check(logits_TN, first, V, targets_T, temperature_T);
  const int64_t T = logits_TN.size[0], N = logits_TN.size[1];
  state_T4.check("state", Dtype::f64, {T, 4});
  dlogprob_T.check("dlogprob", Dtype::f32, {T});
  dentropy_T.check("dentropy", Dtype::f32, {T});
  const Launch launch = tuned(Op::logprob, kCells);
  parallel(launch, T, launch.rows(N), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      float* logits = logits_TN.as<float>() + t * N;
      const RowStats row = finish(state_T4.as<State>()[t].row, temperature_T.as<float>()[t]);
      const float dlogp = dlogprob_T.as<float>()[t], dentropy = dentropy_T.as<float>()[t];
      const vf inverse = splat(row.inverse), shift = splat(row.max), log_sum = splat(row.log_sum);
      for_vectors(N, [&](int64_t i, int live) {
        const vf log_p = tempered(logits, i, N, inverse) - shift - log_sum;
        const vf p = exp(log_p), known = log_p > splat(kLowest) ? log_p : splat(0.f);
        store_some(logits + i, -p * (splat(dlogp) + splat(dentropy) * (known + splat(row.entropy))) * inverse, live);
      });
      const int64_t target = targets_T.as<int64_t>()[t] - first;
      if (target >= 0 && target < N) logits[target] += dlogp * row.inverse;
    }
  });
}

}  // namespace seedthink::ST_ISA
