// One sequence at a time, from its end, sixteen tokens to a vector. Inside a vector the recurrence A_i = d_i + g A_{i+1}
// is four shifted multiply-adds with g, g^2, g^4, g^8; the state enters with the ramp g^16 .. g^1. A sequence's bits
// depend on that sequence alone: on its length, never on the batch or on threads.
#include "scan/gae.h"

#include <algorithm>
#include <vector>

#include "common/tuning.h"
#include "common/simd.h"

namespace seedthink::ST_ISA {
namespace {

constexpr int64_t kTile = 256;     // tokens of which the counted ones are gathered together under a mask
constexpr int64_t kLong = 65536;   // a longer sequence is cut into chunks that threads share
constexpr int64_t kChunk = 32768;

struct Arrays {
  const float *reward, *value, *lambda_policy, *lambda_critic, *bootstrap;
  const uint8_t* mask;
  const int32_t* bounds;
  float *advantage, *returns;
  float gamma;
};

// What a token sees of the tokens behind it: both advantages and the value of the next token.
struct State {
  float policy, critic, next;
};

struct Decay {
  float gamma, factor;  // factor = gamma * lambda
  vf power[4], ramp;    // factor^1, ^2, ^4, ^8 in all lanes; factor^(16 - lane)
  Decay(float gamma, float lambda) : gamma(gamma), factor(gamma * lambda), ramp(splat(1.f)) {
    constexpr vi exponent = {16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1};
    float p = factor;
    for (int bit = 0; bit < 5; ++bit, p *= p) {
      if (bit < 4) power[bit] = splat(p);
      ramp = (exponent & (1 << bit)) != 0 ? ramp * splat(p) : ramp;
    }
  }
};

constexpr vi kShift[4] = {{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16},
                          {2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17},
                          {4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19},
                          {8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23}};

inline vf scan(vf delta, const Decay& decay, float carry) {
#pragma GCC unroll 4
  for (int s = 0; s < 4; ++s) delta = fma(decay.power[s], __builtin_shuffle(delta, splat(0.f), kShift[s]), delta);
  return fma(decay.ramp, splat(carry), delta);
}

enum class Out { none, critic, returns };  // what goes to `second`: nothing is written, A, or V + A

// n tokens that all count, in memory order.
template <Out OUT>
void scan_dense(const float* reward, const float* value, int64_t n, const Decay& policy, const Decay& critic, State& state,
                float* first, float* second) {
  int64_t at = n - kLanes;
  vf next = splat(state.next);
  for (; at >= 0; at -= kLanes) {
    const vf v = load(value + at);
    const vf delta = fma(splat(policy.gamma), __builtin_shuffle(v, next, kShift[0]), load(reward + at)) - v;
    const vf p = scan(delta, policy, state.policy), c = scan(delta, critic, state.critic);
    if constexpr (OUT != Out::none) {
      store(first + at, p);
      store(second + at, OUT == Out::returns ? v + c : c);
    }
    state.policy = p[0];
    state.critic = c[0];
    next = v;
  }
  state.next = next[0];
  for (at += kLanes - 1; at >= 0; --at) {
    const float delta = fma(policy.gamma, state.next, reward[at]) - value[at];
    state.policy = fma(policy.factor, state.policy, delta);
    state.critic = fma(critic.factor, state.critic, delta);
    state.next = value[at];
    if constexpr (OUT != Out::none) {
      first[at] = state.policy;
      second[at] = OUT == Out::returns ? value[at] + state.critic : state.critic;
    }
  }
}

// A tile with a mask: the counted tokens move together, are scanned, and move back; the others take the state of the next
// counted one.
template <Out OUT>
void scan_gathered(const Arrays& a, int64_t begin, int64_t end, const Decay& policy, const Decay& critic, State& state) {
  float reward[kTile], value[kTile], first[kTile + 1], second[kTile + 1];
  int64_t at = kTile;
  for (int64_t t = end - 1; t >= begin; --t) {
    const int64_t to = at > 0 ? at - 1 : 0;
    reward[to] = a.reward[t];
    value[to] = a.value[t];
    at -= a.mask[t] != 0;
  }
  first[kTile] = state.policy;
  second[kTile] = state.critic;
  scan_dense<OUT == Out::none ? Out::none : Out::critic>(reward + at, value + at, kTile - at, policy, critic, state,
                                                         first + at, second + at);
  if constexpr (OUT != Out::none)
    for (int64_t t = begin; t < end; ++t) {
      a.advantage[t] = first[at];
      a.returns[t] = a.value[t] + second[at];
      at += a.mask[t] != 0;
    }
}

template <Out OUT>
void scan_masked(const Arrays& a, int64_t begin, int64_t end, const Decay& policy, const Decay& critic, State& state) {
  for (int64_t stop = end; stop > begin; stop -= kTile) {
    const int64_t start = std::max(begin, stop - kTile);
    const bool all = std::memchr(a.mask + start, 0, stop - start) == nullptr;
    if (all)
      scan_dense<OUT>(a.reward + start, a.value + start, stop - start, policy, critic, state, a.advantage + start,
                      a.returns + start);
    else
      scan_gathered<OUT>(a, start, stop, policy, critic, state);
  }
}

template <Out OUT>
void scan_range(const Arrays& a, int64_t begin, int64_t end, const Decay& policy, const Decay& critic, State& state) {
  if (a.mask != nullptr)
    scan_masked<OUT>(a, begin, end, policy, critic, state);
  else
    scan_dense<OUT>(a.reward + begin, a.value + begin, end - begin, policy, critic, state, a.advantage + begin,
                    a.returns + begin);
}

State end_state(const Arrays& a, int64_t b) { return {0.f, 0.f, a.bootstrap != nullptr ? a.bootstrap[b] : 0.f}; }

// A piece of a long sequence. The cut depends on the sequence's length alone.
struct Chunk {
  int64_t sequence, begin, end, counted;
  State state;           // behind the chunk
  float policy, critic;  // what its first token has when nothing is behind the chunk
};

// Chunks from the sequence's end, with the next value behind each.
void cut(const Arrays& a, int64_t b, std::vector<Chunk>& chunks) {
  float next = end_state(a, b).next;
  for (int64_t end = a.bounds[b + 1]; end > a.bounds[b]; end -= kChunk) {
    const int64_t begin = std::max<int64_t>(a.bounds[b], end - kChunk);
    chunks.push_back({b, begin, end, end - begin, {0.f, 0.f, next}, 0.f, 0.f});
    if (a.mask == nullptr) {
      next = a.value[begin];
      continue;
    }
    const uint8_t *from = a.mask + begin, *to = a.mask + end;
    const auto counts = [](uint8_t x) { return x != 0; };
    chunks.back().counted = std::count_if(from, to, counts);
    if (chunks.back().counted) next = a.value[std::find_if(from, to, counts) - a.mask];
  }
}

// Every chunk is scanned twice: with nothing behind it, to learn what it adds, then with the state that the chunks behind
// it leave.
void scan_chunks(const Arrays& a, std::vector<Chunk>& chunks) {
  const auto all = [&](const auto& body) {
    parallel(static_cast<int64_t>(chunks.size()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        body(chunks[i], Decay(a.gamma, a.lambda_policy[chunks[i].sequence]),
             Decay(a.gamma, a.lambda_critic[chunks[i].sequence]));
    });
  };
  all([&](Chunk& chunk, const Decay& policy, const Decay& critic) {
    State alone = chunk.state;
    scan_range<Out::none>(a, chunk.begin, chunk.end, policy, critic, alone);
    chunk.policy = alone.policy;
    chunk.critic = alone.critic;
  });
  for (size_t i = 1; i < chunks.size(); ++i) {
    const Chunk& behind = chunks[i - 1];
    if (behind.sequence != chunks[i].sequence) continue;
    const auto decayed = [&](float lambda) {
      return static_cast<float>(std::pow(double{a.gamma * lambda}, static_cast<double>(behind.counted)));
    };
    chunks[i].state.policy = fma(decayed(a.lambda_policy[behind.sequence]), behind.state.policy, behind.policy);
    chunks[i].state.critic = fma(decayed(a.lambda_critic[behind.sequence]), behind.state.critic, behind.critic);
  }
  all([&](Chunk& chunk, const Decay& policy, const Decay& critic) {
    scan_range<Out::returns>(a, chunk.begin, chunk.end, policy, critic, chunk.state);
  });
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
  const auto is_long = [&](int64_t b) { return bounds[b + 1] - bounds[b] > kLong; };
  const Launch launch = tuned(Op::gae, 8192);
  parallel(launch, B, 1 + launch.grain * B / (T + 1), [&](int64_t begin, int64_t end) {
    for (int64_t b = end - 1; b >= begin; --b) {  // from the end, as inside a sequence: one stream for the prefetcher
      if (is_long(b)) continue;
      const Decay policy(a.gamma, a.lambda_policy[b]), critic(a.gamma, a.lambda_critic[b]);
      State state = end_state(a, b);
      scan_range<Out::returns>(a, bounds[b], bounds[b + 1], policy, critic, state);
    }
  });
  std::vector<Chunk> chunks;
  for (int64_t b = 0; b < B; ++b)
    if (is_long(b)) cut(a, b, chunks);
  scan_chunks(a, chunks);
}

}  // namespace seedthink::ST_ISA
