// The largest differencing method for k parts (Karmarkar and Karp 1982; the form for k > 2 after Korf 2009).
//
// A partial solution is k sets of items, the fullest first; its spread is the fullest set's sum minus the k-th's. The two
// solutions of the largest spread are combined, the fullest set of one with the emptiest of the other, until one is left.
// Equal spreads, and equal sums inside a solution, go by the smallest item: the result is a function of the costs alone.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
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
    for (int64_t i = 0; i < items(); ++i) start({{cost_[i], i}}, i);
    return combine_all();
  }

  // Runs of `parts` items of like cost, the largest first; each run gives every part one item, a short last run (the
  // smallest items) gives some parts none.
  std::vector<std::vector<int64_t>> equal_sizes() {
    std::vector<int64_t> order(items());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return cost_[a] > cost_[b]; });
    for (int64_t begin = 0; begin < items(); begin += parts_) {
      std::vector<Set> run;
      int64_t first = order[begin];
      for (int64_t i = begin; i < std::min(items(), begin + parts_); ++i) {
        run.push_back({cost_[order[i]], order[i]});
        first = std::min(first, order[i]);
      }
      start(std::move(run), first);
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

  void start(std::vector<Set> sets, int64_t first) {
    solutions_.push_back(std::move(sets));
    push(solutions_.size() - 1, first);
  }

  void push(size_t at, int64_t first) {
    const std::vector<Set>& sets = solutions_[at];
    const Cost least = static_cast<int64_t>(sets.size()) == parts_ ? sets.back().sum : Cost{};
    queue_.push({sets.front().sum - least, first, at});
  }

  Solution pop() {
    const Solution top = queue_.top();
    queue_.pop();
    return top;
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
    met_.clear();
    for (int64_t i = alone_a; i < in_a; ++i) met_.push_back(join(a[i], b[parts_ - 1 - i]));
    std::sort(met_.begin(), met_.end(), fuller);
    alone_.resize(alone_a + alone_b);
    std::merge(a.begin(), a.begin() + alone_a, b.begin(), b.begin() + alone_b, alone_.begin(), fuller);
    std::vector<Set> all(met_.size() + alone_.size());
    std::merge(met_.begin(), met_.end(), alone_.begin(), alone_.end(), all.begin(), fuller);
    return all;
  }

  std::vector<std::vector<int64_t>> combine_all() {
    while (queue_.size() > 1) {
      const Solution wider = pop(), other = pop();
      std::vector<Set> &one = solutions_[wider.at], &two = solutions_[other.at];
      one = combine(one, two);
      two = {};
      push(wider.at, std::min(wider.first, other.first));
    }
    std::vector<std::vector<int64_t>> members(parts_);
    if (queue_.empty()) return members;
    const std::vector<Set>& sets = solutions_[pop().at];
    for (size_t p = 0; p < sets.size(); ++p)
      for (int64_t i = sets[p].first; i != kNone; i = next_[i]) members[p].push_back(i);
    return members;
  }

  const Cost* cost_;
  int64_t parts_;
  std::vector<int64_t> next_, last_;  // next item of the same set; last item of the set that begins with an item
  std::vector<std::vector<Set>> solutions_;  // the sets that are not empty, the fullest first
  std::vector<Set> met_, alone_;              // of combine()
  std::priority_queue<Solution, std::vector<Solution>, Earlier> queue_;
};

}  // namespace seedthink::balance
