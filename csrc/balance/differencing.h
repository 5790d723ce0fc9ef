// The largest differencing method for k parts (Karmarkar and Karp 1982; the form for k > 2 after Korf 2009).
//
// A partial solution is k sets of items, the fullest first; its spread is the fullest set's sum minus the k-th's. The two
// solutions of the largest spread are combined, the fullest set of one with the emptiest of the other, until one is left.
// Equal spreads, and equal sums inside a solution, go by the smallest item: the result is a function of the costs alone.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <queue>
#include <utility>
#include <vector>

namespace seedthink::balance {

template <typename Cost>
class Differencing {
 public:
  Differencing(const Cost* cost, int64_t items, int64_t parts)
      : cost_(cost), parts_(parts), next_(items, kNone), last_(items) {
    for (int64_t i = 0; i < items; ++i) last_[i] = i;
  }

  // Each item alone: the sizes of the parts come out as they may.
  std::vector<std::vector<int64_t>> free_sizes() {
    for (int64_t i = 0; i < items(); ++i) push({{cost_[i], i}});
    return combine_all();
  }

  // Runs of `parts` items of like cost, the largest first; each run gives every part one item, a short last run (the
  // smallest items) gives some parts none.
  std::vector<std::vector<int64_t>> equal_sizes() {
    std::vector<int64_t> order(last_);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return cost_[a] > cost_[b]; });
    for (int64_t begin = 0; begin < items(); begin += parts_) {
      std::vector<Set> run;
      for (int64_t i = begin; i < std::min(items(), begin + parts_); ++i) run.push_back({cost_[order[i]], order[i]});
      push(std::move(run));
    }
    return combine_all();
  }

 private:
  static constexpr int64_t kNone = -1;

  // Items linked through next_ from `first`, which is the smallest of them.
  struct Set {
    Cost sum;
    int64_t first;
  };
  struct Solution {
    Cost spread;
    int64_t first;  // smallest item of all its sets
    size_t at;      // place in solutions_
  };
  struct Earlier {
    bool operator()(const Solution& a, const Solution& b) const {
      return a.spread != b.spread ? a.spread < b.spread : a.first > b.first;
    }
  };

  int64_t items() const { return static_cast<int64_t>(next_.size()); }
  static bool fuller(const Set& a, const Set& b) { return a.sum != b.sum ? a.sum > b.sum : a.first < b.first; }

  // Sets that are not there are empty: only the others are kept.
  void push(std::vector<Set> sets) {
    const Cost least = static_cast<int64_t>(sets.size()) == parts_ ? sets.back().sum : Cost{};
    int64_t first = sets.front().first;
    for (const Set& set : sets) first = std::min(first, set.first);
    queue_.push({sets.front().sum - least, first, solutions_.size()});
    solutions_.push_back(std::move(sets));
  }

  std::vector<Set> pop() {
    const size_t at = queue_.top().at;
    queue_.pop();
    return std::move(solutions_[at]);
  }

  Set join(Set a, Set b) {
    if (b.first < a.first) std::swap(a, b);
    next_[last_[a.first]] = b.first;
    last_[a.first] = last_[b.first];
    return {a.sum + b.sum, a.first};
  }

  // Set i of `a` meets set parts - 1 - i of `b`. Where the sets do not fill `parts` places, some meet an empty one.
  std::vector<Set> combine(const std::vector<Set>& a, const std::vector<Set>& b) {
    const int64_t in_a = static_cast<int64_t>(a.size()), in_b = static_cast<int64_t>(b.size());
    const int64_t alone_a = std::min(in_a, parts_ - in_b), alone_b = std::min(in_b, parts_ - in_a);
    std::vector<Set> met, alone, all;
    for (int64_t i = alone_a; i < in_a; ++i) met.push_back(join(a[i], b[parts_ - 1 - i]));
    std::sort(met.begin(), met.end(), fuller);
    std::merge(a.begin(), a.begin() + alone_a, b.begin(), b.begin() + alone_b, std::back_inserter(alone), fuller);
    std::merge(met.begin(), met.end(), alone.begin(), alone.end(), std::back_inserter(all), fuller);
    return all;
  }

  std::vector<std::vector<int64_t>> combine_all() {
    while (queue_.size() > 1) {
      const std::vector<Set> wider = pop(), other = pop();
      push(combine(wider, other));
    }
    std::vector<std::vector<int64_t>> members(parts_);
    if (queue_.empty()) return members;
    const std::vector<Set> sets = pop();
    for (size_t p = 0; p < sets.size(); ++p)
      for (int64_t i = sets[p].first; i != kNone; i = next_[i]) members[p].push_back(i);
    return members;
  }

  const Cost* cost_;
  int64_t parts_;
  std::vector<int64_t> next_, last_;  // next item of the same set; last item of the set that begins with an item
  std::vector<std::vector<Set>> solutions_;
  std::priority_queue<Solution, std::vector<Solution>, Earlier> queue_;
};

}  // namespace seedthink::balance
