#include "sampling/sampling.h"

#include <algorithm>
#include <atomic>
#include <functional>
#include <vector>

#include "common/tuning.h"
#include "logprob/row.h"

namespace seedthink::ST_ISA {
namespace {

// Philox4x32-10: the uniform number in [0, 1), 53 bits, of (seed, position).
double philox_uniform(uint64_t seed, uint64_t position) {
  uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  uint32_t c[4] = {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), 0, 0};
  for (int round = 0; round < 10; ++round) {
    const uint64_t left = uint64_t{0xD2511F53} * c[0], right = uint64_t{0xCD9E8D57} * c[2];
    const uint32_t next[4] = {static_cast<uint32_t>(right >> 32) ^ c[1] ^ key[0], static_cast<uint32_t>(right),
                              static_cast<uint32_t>(left >> 32) ^ c[3] ^ key[1], static_cast<uint32_t>(left)};
    std::copy(next, next + 4, c);
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return static_cast<double>(((static_cast<uint64_t>(c[0]) << 32) | c[1]) >> 11) * 0x1p-53;
}

// The sum of the weights of one vector from i on.
double tile_mass(const std::vector<float>& weight, int64_t i) {
  const int64_t V = static_cast<int64_t>(weight.size());
  return static_cast<double>(
      sum(i + kLanes <= V ? load(weight.data() + i) : load_n(weight.data() + i, static_cast<int>(V - i))));
}

double mass_of(const std::vector<float>& weight) {
  double total = 0.;
  for (int64_t i = 0; i < static_cast<int64_t>(weight.size()); i += kLanes) total += tile_mass(weight, i);
  return total;
}

// Memory of a thread, kept from row to row.
struct Scratch {
  std::vector<float> weight, some;
  std::vector<int32_t> order;
};

// Fills `order` with the ids of all weights that are not below some number; about `aim` of them, by a sample of the row.
void find_largest(Scratch& s, int64_t aim) {
  constexpr int64_t kSample = 4096;
  const int64_t V = static_cast<int64_t>(s.weight.size()), stride = std::max<int64_t>(1, V / kSample);
  float least = 0.f;
  if (aim < V) {
    s.some.clear();
    for (int64_t i = 0; i < V; i += stride) s.some.push_back(s.weight[i]);
    const auto place = s.some.begin() + std::min<int64_t>(aim / stride, static_cast<int64_t>(s.some.size()) - 1);
    std::nth_element(s.some.begin(), place, s.some.end(), std::greater<>());
    least = *place;
  }
  s.order.resize(V);
  int64_t found = 0;
  for (int64_t i = 0; i < V; ++i) {
    s.order[found] = static_cast<int32_t>(i);
    found += s.weight[i] >= least;
  }
  s.order.resize(found);
}

// How many of the first `kept` of `order` reach `goal` together, the largest first; sorts as long a prefix as that takes.
int64_t nucleus(Scratch& s, int64_t kept, double goal, double& mass) {
  const auto first = s.order.begin();
  const auto before = [&](int32_t a, int32_t b) {
    return s.weight[a] > s.weight[b] || (s.weight[a] == s.weight[b] && a < b);
  };
  int64_t inside = 0, sorted = 0;
  for (int64_t head = std::min<int64_t>(kept, 256); mass < goal && sorted < kept;
       sorted = head, head = std::min(kept, head * 8)) {
    if (head < kept) std::nth_element(first + sorted, first + head, first + kept, before);
    std::sort(first + sorted, first + head, before);
    while (inside < head && mass < goal) mass += s.weight[s.order[inside++]];
  }
  return std::max<int64_t>(1, inside);
}

// Zeroes the weights that top-k and top-p leave out. Order: descending weight, ties to the smaller id. Only ids of large
// weights are looked at, and more of them where they turn out to be too few.
void cut(Scratch& s, int64_t top_k, float top_p) {
  const int64_t V = static_cast<int64_t>(s.weight.size()), most = top_k > 0 && top_k < V ? top_k : V;
  const double all = most == V ? mass_of(s.weight) : 0.;
  int64_t kept = 0;
  for (int64_t aim = most < V ? 4 * most + 64 : 1024; kept == 0; aim *= 8) {
    find_largest(s, aim);
    const auto found = static_cast<int64_t>(s.order.size());
    if (most < V && found < most) continue;
    kept = std::min(most, found);
    const auto before = [&](int32_t a, int32_t b) {
      return s.weight[a] > s.weight[b] || (s.weight[a] == s.weight[b] && a < b);
    };
    if (kept < found) std::nth_element(s.order.begin(), s.order.begin() + kept, s.order.end(), before);
    if (top_p == 1.f) break;
    double total = all, mass = 0.;
    if (most < V)
      for (int64_t i = 0; i < kept; ++i) total += s.weight[s.order[i]];
    const double goal = static_cast<double>(top_p) * total;
    const int64_t inside = nucleus(s, kept, goal, mass);
    kept = mass >= goal || kept == most || found == V ? inside : 0;  // 0: the nucleus goes on behind what was found
  }
  s.some.resize(kept);
  for (int64_t i = 0; i < kept; ++i) s.some[i] = s.weight[s.order[i]];
  std::fill(s.weight.begin(), s.weight.end(), 0.f);
  for (int64_t i = 0; i < kept; ++i) s.weight[s.order[i]] = s.some[i];
}

int64_t greedy(const float* logits, int64_t V) { return std::max_element(logits, logits + V) - logits; }

int64_t draw(const float* logits, int64_t V, const RowStats& row, int64_t top_k, float top_p, double uniform,
             Scratch& scratch) {
  std::vector<float>& weight = scratch.weight;
  weight.resize(V);
  const vf inverse = splat(row.inverse), shift = splat(row.max);
  for (int64_t i = 0; i < V; i += kLanes) {
    const vf e = exp(tempered(logits, i, V, inverse) - shift);
    if (i + kLanes <= V)
      store(weight.data() + i, e);
    else
      store_n(weight.data() + i, e, static_cast<int>(V - i));
  }
  if ((top_k > 0 && top_k < V) || top_p < 1.f) cut(scratch, top_k, top_p);
  double cumulative = 0.;
  const double goal = uniform * mass_of(weight);
  int64_t begin = 0, last = 0;  // the tile that holds the goal; the last one with any weight, should rounding pass the end
  for (; begin < V; begin += kLanes) {
    const double mass = tile_mass(weight, begin);
    if (cumulative + mass > goal) break;
    if (mass > 0.) last = begin;
    cumulative += mass;
  }
  if (begin >= V) begin = last;
  int64_t token = begin;
  for (int64_t i = begin; i < std::min(V, begin + kLanes); ++i) {
    if (weight[i] == 0.f) continue;
    token = i;
    cumulative += weight[i];
    if (cumulative > goal) break;
  }
  return token;
}

}  // namespace

void sample_rows(const View& logits_BV, const View& temperature_B, const View& top_k_B, const View& top_p_B,
                 const View& seed_B, const View& position_B, const View& token_B, const View& logprob_B) {
  logits_BV.check("logits", Dtype::f32, {-1, -1});
  const int64_t B = logits_BV.size[0], V = logits_BV.size[1];
  ST_CHECK(V > 0 || B == 0, "logits: no vocabulary to draw from");
  temperature_B.check("temperature", Dtype::f32, {B});
  top_k_B.check("top_k", Dtype::i32, {B});
  top_p_B.check("top_p", Dtype::f32, {B});
  seed_B.check("seed", Dtype::i64, {B});
  position_B.check("position", Dtype::i64, {B});
  token_B.check("token", Dtype::i64, {B});
  logprob_B.check("logprob", Dtype::f32, {B});
  const float *temperature = temperature_B.as<float>(), *top_p = top_p_B.as<float>();
  for (int64_t b = 0; b < B; ++b) {
    ST_CHECK(temperature[b] >= 0.f, "temperature: row ", b, " is ", temperature[b], ", expected 0 or more");
    ST_CHECK(top_p[b] > 0.f && top_p[b] <= 1.f, "top_p: row ", b, " is ", top_p[b], ", expected above 0, up to 1");
  }
  std::atomic<int64_t> bad{-1};
  const Launch launch = tuned(Op::sampling, 2048);
  parallel(launch, B, launch.rows(V), [&](int64_t begin, int64_t end) {
    thread_local Scratch scratch;
    for (int64_t b = begin; b < end; ++b) {
      const float* logits = logits_BV.as<float>() + b * V;
      const bool pick = temperature[b] == 0.f;
      const RowStats row = row_stats(logits, V, pick ? 1.f : temperature[b]);
      if (!(row.sum > 0.f)) {
        bad.store(b);
        continue;
      }
      const double uniform = philox_uniform(static_cast<uint64_t>(seed_B.as<int64_t>()[b]),
                                            static_cast<uint64_t>(position_B.as<int64_t>()[b]));
      const int64_t token =
          pick ? greedy(logits, V) : draw(logits, V, row, top_k_B.as<int32_t>()[b], top_p[b], uniform, scratch);
      token_B.as<int64_t>()[b] = token;
      logprob_B.as<float>()[b] = row_logprob(row, logits[token]);
    }
  });
  ST_CHECK(bad.load() < 0, "logits: row ", bad.load(), " holds NaN or +inf, or nothing finite");
}

}  // namespace seedthink::ST_ISA
