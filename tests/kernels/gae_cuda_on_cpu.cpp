// The device code of csrc/scan/gae_kernels.cuh against the serial recurrence. Prints the largest difference of each case;
// ends with an error where bits depend on something they must not depend on.
#include "cuda_on_cpu.h"

#include "scan/gae_kernels.cuh"

using namespace seedthink::cuda;
using on_cpu::expect;

struct Batch {
  std::vector<int> bounds{0};
  std::vector<float> reward, value, policy, critic, bootstrap, advantage, returns;
  std::vector<unsigned char> mask;

  Batch(const std::vector<int>& lengths, bool masked) {
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    std::uniform_real_distribution<float> uniform;
    for (const int length : lengths) bounds.push_back(bounds.back() + length);
    const int T = bounds.back();
    for (int t = 0; t < T; ++t) {
      reward.push_back(normal(random));
      value.push_back(normal(random));
      mask.push_back(masked && (uniform(random) <= 0.3f || (t > 50 && t < 2000)) ? 0 : 1 + t % 255);
    }
    for (size_t b = 0; b < lengths.size(); ++b) {
      policy.push_back(b % 3 == 2 ? 0.f : 0.9f + 0.1f * uniform(random));
      critic.push_back(1.f - 0.1f * policy[b]);
      bootstrap.push_back(normal(random));
    }
  }

  // `planned`: chunks that wait for each other, as for long sequences; otherwise one block a sequence.
  void run(bool masked, bool planned, bool wide) {
    const int T = bounds.back(), B = static_cast<int>(policy.size()), slots = B + T / kChunk;
    advantage.assign(T, NAN);
    returns.assign(T, NAN);
    const Problem problem{reward.data(), value.data(), policy.data(), critic.data(), bootstrap.data(),
                          masked ? mask.data() : nullptr, bounds.data(), advantage.data(), returns.data(), 0.99f, B, T,
                          wide};
    std::vector<int> ready(slots, 7);
    std::vector<Map> map(slots);
    Workspace work{};
    if (planned) {
      work = {ready.data(), map.data()};
      on_cpu::launch(slots / kGaeThreads + 1, kGaeThreads, [&] { clear_ready(ready.data(), slots); });
      expect(ready == std::vector<int>(slots), "every flag is cleared");
    }
    on_cpu::launch(planned ? slots : B, kGaeThreads, [&] { scan_chunks(problem, work); });
    expect(!planned || ready == std::vector<int>(slots, 1), "every slot is announced");
  }

  double difference() const {
    double worst = 0;
    for (size_t b = 0; b < policy.size(); ++b) {
      double a = 0, c = 0, next = bootstrap[b];
      const double gamma = 0.99f;
      for (int t = bounds[b + 1] - 1; t >= bounds[b]; --t) {
        if (mask[t]) {
          const double delta = reward[t] + gamma * next - value[t];
          a = delta + gamma * policy[b] * a;
          c = delta + gamma * critic[b] * c;
          next = value[t];
        }
        worst = on_cpu::worst(worst, max(std::fabs(a - advantage[t]), std::fabs(value[t] + c - returns[t])));
      }
    }
    return worst;
  }
};

int main() {
  for (const bool masked : {false, true}) {
    Batch many({1, 0, 5, 0, 1024, 1025, 3, 2, kChunk, kRun, 32 * kRun + 1}, masked);
    Batch longs({0, kChunk + 1, 10, 9000, 0, 2 * kChunk, 40 * kRun}, masked);
    many.run(masked, false, false);
    std::printf("%g\n", many.difference());
    const auto alone = many.advantage;
    many.run(masked, true, true);
    std::printf("%g\n", many.difference());
    expect(many.advantage == alone, "a sequence has the same bits planned or not, with wide and narrow loads");
    longs.run(masked, true, false);
    const auto narrow = longs.returns;
    longs.run(masked, true, true);
    expect(longs.returns == narrow, "aligned quads hold the tokens of sequences that end anywhere");
    std::printf("%g\n", longs.difference());
    const int from = longs.bounds[3], to = longs.bounds[4];
    const std::vector<float> part(longs.advantage.begin() + from, longs.advantage.begin() + to);
    Batch one({9000}, false);
    std::copy_n(longs.reward.begin() + from, to - from, one.reward.begin());
    std::copy_n(longs.value.begin() + from, to - from, one.value.begin());
    std::copy_n(longs.mask.begin() + from, to - from, one.mask.begin());
    one.policy = {longs.policy[3]}, one.critic = {longs.critic[3]}, one.bootstrap = {longs.bootstrap[3]};
    one.run(masked, true, true);
    expect(one.advantage == part, "a sequence has the same bits alone and in a batch");
  }
  Batch broken({5000, 3000}, false);
  for (const std::vector<int>& bounds : {std::vector<int>{0, 9000, 8000}, {-5, 5000, 90000}, {100, 7000, 6000}}) {
    const int T = 8000, B = 2, slots = B + T / kChunk;
    std::vector<float> advantage(T), returns(T);
    std::vector<int> ready(slots);
    std::vector<Map> map(slots);
    const Problem problem{broken.reward.data(), broken.value.data(), broken.policy.data(), broken.critic.data(), nullptr,
                          nullptr, bounds.data(), advantage.data(), returns.data(), 1.f, B, T, false};
    on_cpu::launch(slots, kGaeThreads, [&] { scan_chunks(problem, {ready.data(), map.data()}); });
    expect(ready == std::vector<int>(slots, 1), "every slot is announced, whatever the bounds are");
  }
}
