// Refinement of a partition: single items and pairs change places while that lightens the heaviest part.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace seedthink::balance {

using Members = std::vector<std::vector<int64_t>>;

// A part's total size must stay within [least, most].
struct Limits {
  const int64_t* size;
  int64_t least, most;
};

// The heaviest part gives an item away, or swaps it for a cheaper one, where that leaves the fuller of the two parts as
// light as any exchange can; until no exchange helps or the heaviest part is within kClose of the mean. Equal exchanges go
// by the order of the parts and of the costs in them, so the result is a function of the arguments alone.
template <typename Cost>
class Exchange {
 public:
  Exchange(const Cost* cost, int64_t items, const Limits& limits, Members& members)
      : cost_(cost), items_(items), limits_(limits), members_(members), load_(members.size()), size_(members.size()) {
    for (size_t p = 0; p < members.size(); ++p) {
      std::sort(members[p].begin(), members[p].end(), cheaper());
      for (int64_t i : members[p]) {
        load_[p] += cost[i];
        size_[p] += limits.size[i];
      }
      total_ += static_cast<double>(load_[p]);
    }
  }

  void run() {
    const double close = (1. + kClose) * total_ / static_cast<double>(members_.size());
    for (int64_t left = kMostPerItem * items_; left > 0; --left) {
      const size_t heaviest = std::max_element(load_.begin(), load_.end()) - load_.begin();
      if (static_cast<double>(load_[heaviest]) <= close) return;
      const Step step = best(heaviest);
      if (step.give == kNone) return;
      take(step);
    }
  }

 private:
  static constexpr double kClose = 1e-4;
  static constexpr int64_t kMostPerItem = 4;  // exchanges; rounding of real costs could go round in circles
  static constexpr int64_t kNone = -1;

  struct Step {
    size_t from, to;
    int64_t give, get;  // items; kNone gets nothing in return
    Cost fuller;        // the larger load of the two parts afterwards
  };

  auto cheaper() const {
    return [this](int64_t a, int64_t b) { return cost_[a] != cost_[b] ? cost_[a] < cost_[b] : a < b; };
  }

  bool fits(size_t from, size_t to, int64_t give, int64_t get) const {
    const int64_t moved = limits_.size[give] - (get == kNone ? 0 : limits_.size[get]);
    const int64_t here = size_[from] - moved, there = size_[to] + moved;
    return std::min(here, there) >= limits_.least && std::max(here, there) <= limits_.most;
  }

  Step best(size_t from) const {
    Step found{from, from, kNone, kNone, load_[from]};
    for (size_t to = 0; to < members_.size(); ++to) {
      if (!(load_[to] < load_[from])) continue;
      for (int64_t give : members_[from]) {
        offer(found, to, give, kNone);
        swaps(found, to, give);
      }
    }
    return found;
  }

  // Takes the step if it is better than what was found. Returns whether looking on in this direction is of no use: the
  // step was taken, or one that goes further would be no better.
  bool offer(Step& found, size_t to, int64_t give, int64_t get) const {
    const Cost moved = cost_[give] - (get == kNone ? Cost{} : cost_[get]);
    const Cost fuller = std::max(load_[found.from] - moved, load_[to] + moved);
    if (!(fuller < found.fuller)) return true;
    if (!fits(found.from, to, give, get)) return false;
    found = {found.from, to, give, get, fuller};
    return true;
  }

  // The best swap halves the gap: from there, candidates upwards and downwards, until one fits.
  void swaps(Step& found, size_t to, int64_t give) const {
    const std::vector<int64_t>& other = members_[to];
    const Cost ideal = cost_[give] - (load_[found.from] - load_[to]) / 2;
    const auto middle = std::lower_bound(other.begin(), other.end(), ideal,
                                         [this](int64_t item, Cost cost) { return cost_[item] < cost; });
    for (auto up = middle; up != other.end() && !offer(found, to, give, *up);) ++up;
    for (auto down = middle; down != other.begin() && !offer(found, to, give, *--down);) {
    }
  }

  void take(const Step& step) {
    shift(step.give, step.from, step.to);
    if (step.get != kNone) shift(step.get, step.to, step.from);
  }

  void shift(int64_t item, size_t from, size_t to) {
    std::vector<int64_t>&source = members_[from], &target = members_[to];
    source.erase(std::lower_bound(source.begin(), source.end(), item, cheaper()));
    target.insert(std::lower_bound(target.begin(), target.end(), item, cheaper()), item);
    load_[from] -= cost_[item];
    load_[to] += cost_[item];
    size_[from] -= limits_.size[item];
    size_[to] += limits_.size[item];
  }

  const Cost* cost_;
  int64_t items_;
  Limits limits_;
  Members& members_;
  std::vector<Cost> load_;
  std::vector<int64_t> size_;
  double total_ = 0.;
};

}  // namespace seedthink::balance
