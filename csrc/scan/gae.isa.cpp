// Sixteen sequences side by side, one per lane, walked from their ends: 16 tokens of each are read, transposed, scanned
// and transposed back. Lanes never mix, so a sequence's bits depend on that sequence alone.
#include "scan/gae.h"

#include <algorithm>

#include "attention/tile.h"
#include "common/pool.h"
#include "common/simd.h"

namespace seedthink::ST_ISA {
namespace {

struct Arrays {
  const float *reward, *value, *lambda_policy, *lambda_critic, *bootstrap;
  const uint8_t* mask;
  const int32_t* bounds;
  float *advantage, *returns;
  float gamma;
};

// Tokens [end - 16, end) of a sequence that begins at `begin`, in reverse: lane i holds token end - 1 - i, or `fill`.
vf read_back(const float* x, int64_t begin, int64_t end, float fill) {
  constexpr vi reverse = {15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0};
  if (end - begin >= kLanes) return __builtin_shuffle(load(x + end - kLanes), reverse);
  alignas(64) float lane[kLanes];
  for (int i = 0; i < kLanes; ++i) lane[i] = i < end - begin ? x[end - 1 - i] : fill;
  return load(lane);
}

void write_back(float* x, int64_t begin, int64_t end, vf v) {
  constexpr vi reverse = {15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0};
  if (end - begin >= kLanes) {
    store(x + end - kLanes, __builtin_shuffle(v, reverse));
    return;
  }
  alignas(64) float lane[kLanes];
  store(lane, v);
  for (int i = 0; i < end - begin; ++i) x[end - 1 - i] = lane[i];
}

vf read_mask(const uint8_t* mask, int64_t begin, int64_t end) {
  alignas(64) float lane[kLanes];
  for (int i = 0; i < kLanes; ++i) lane[i] = i < end - begin && mask[end - 1 - i] ? 1.f : 0.f;
  return load(lane);
}

// Sequences [first, first + lanes) of the batch.
void scan_group(const Arrays& a, int64_t first, int64_t lanes) {
  alignas(64) float start[3][kLanes] = {};
  int64_t longest = 0;
  for (int64_t b = 0; b < lanes; ++b) {
    start[0][b] = a.bootstrap != nullptr ? a.bootstrap[first + b] : 0.f;
    start[1][b] = a.gamma * a.lambda_policy[first + b];
    start[2][b] = a.gamma * a.lambda_critic[first + b];
    longest = std::max<int64_t>(longest, a.bounds[first + b + 1] - a.bounds[first + b]);
  }
  const vf gamma = splat(a.gamma), decay_policy = load(start[1]), decay_critic = load(start[2]);
  vf next = load(start[0]), policy = splat(0.f), critic = splat(0.f);
  for (int64_t done = 0; done < longest; done += kLanes) {
    vf reward[kLanes], value[kLanes], live[kLanes];
    for (int64_t b = 0; b < kLanes; ++b) {
      const int64_t begin = b < lanes ? a.bounds[first + b] : 0;
      const int64_t end = b < lanes ? std::max<int64_t>(begin, a.bounds[first + b + 1] - done) : 0;
      reward[b] = read_back(a.reward, begin, end, 0.f);
      value[b] = read_back(a.value, begin, end, 0.f);
      if (a.mask != nullptr) live[b] = read_mask(a.mask, begin, end);
    }
    attention::transpose(reward);
    attention::transpose(value);
    if (a.mask != nullptr) attention::transpose(live);
    for (int i = 0; i < kLanes; ++i) {
      const vf v = value[i], delta = fma(gamma, next, reward[i]) - v;
      const vf new_policy = fma(decay_policy, policy, delta), new_critic = fma(decay_critic, critic, delta);
      if (a.mask == nullptr) {
        policy = new_policy, critic = new_critic, next = v;
      } else {
        const vi counts = live[i] != splat(0.f);
        policy = counts ? new_policy : policy;
        critic = counts ? new_critic : critic;
        next = counts ? v : next;
      }
      reward[i] = policy;
      value[i] = v + critic;
    }
    attention::transpose(reward);
    attention::transpose(value);
    for (int64_t b = 0; b < lanes; ++b) {
      const int64_t begin = a.bounds[first + b], end = std::max<int64_t>(begin, a.bounds[first + b + 1] - done);
      write_back(a.advantage, begin, end, reward[b]);
      write_back(a.returns, begin, end, value[b]);
    }
  }
}

}  // namespace

void gae_scan(const View& reward_T, const View& value_T, const View& cu_seqlens_B1, const View& lambda_policy_B,
              const View& lambda_critic_B, double gamma, const View& mask_T, const View& bootstrap_B,
              const View& advantage_T, const View& return_T) {
  reward_T.check("reward", Dtype::f32, {-1});
  const int64_t T = reward_T.size[0];
  value_T.check("value", Dtype::f32, {T});
  cu_seqlens_B1.check("cu_seqlens", Dtype::i32, {-1});
  const int64_t B = cu_seqlens_B1.size[0] - 1;
  ST_CHECK(B >= 0, "cu_seqlens: needs at least one entry");
  lambda_policy_B.check("lambda_policy", Dtype::f32, {B});
  lambda_critic_B.check("lambda_critic", Dtype::f32, {B});
  ST_CHECK(gamma >= 0. && gamma <= 1., "gamma: ", gamma, " is outside 0 to 1");
  if (mask_T) mask_T.check("mask", Dtype::b8, {T});
  if (bootstrap_B) bootstrap_B.check("bootstrap", Dtype::f32, {B});
  advantage_T.check("advantage", Dtype::f32, {T});
  return_T.check("return", Dtype::f32, {T});
  const int32_t* bounds = cu_seqlens_B1.as<int32_t>();
  ST_CHECK(bounds[0] == 0 && bounds[B] == T, "cu_seqlens: must run from 0 to ", T);
  for (int64_t b = 0; b < B; ++b) ST_CHECK(bounds[b] <= bounds[b + 1], "cu_seqlens: descends at entry ", b + 1);
  const Arrays a{reward_T.as<float>(), value_T.as<float>(), lambda_policy_B.as<float>(), lambda_critic_B.as<float>(),
                 bootstrap_B.as<float>(), mask_T.as<uint8_t>(), bounds, advantage_T.as<float>(), return_T.as<float>(),
                 static_cast<float>(gamma)};
  // Groups no larger than what keeps all threads busy.
  const int64_t lanes = std::max<int64_t>(1, std::min<int64_t>(kLanes, (B + threads() - 1) / threads()));
  parallel((B + lanes - 1) / lanes, 1, [&](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) scan_group(a, group * lanes, std::min(lanes, B - group * lanes));
  });
}

}  // namespace seedthink::ST_ISA
