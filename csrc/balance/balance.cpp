#include "balance/balance.h"

#include <cmath>
#include <limits>
#include <numeric>
#include <set>

#include "balance/differencing.h"
#include "balance/exchange.h"

namespace seedthink {
namespace {

using balance::Differencing;
using balance::Exchange;
using balance::Limits;
using balance::Members;

constexpr double kMostTotal = 0x1p62;  // sums of int64 below it are exact
constexpr int64_t kAttempts = 8;  // numbers of parts tried below the one that is known to be enough

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Costs are int64, whose sums are exact, or float64.
void check_cost(const View& cost_N) {
  ST_CHECK(cost_N.dtype == Dtype::i64 || cost_N.dtype == Dtype::f64, "cost: expected dtype int64 or float64, got ",
           name(cost_N.dtype));
  cost_N.check("cost", cost_N.dtype, {-1});
  double total = 0.;
  for (int64_t i = 0; i < cost_N.size[0]; ++i) {
    const double cost = cost_N.dtype == Dtype::i64 ? static_cast<double>(cost_N.as<int64_t>()[i]) : cost_N.as<double>()[i];
    ST_CHECK(cost >= 0. && std::isfinite(cost), "cost: item ", i, " is ", cost, ", expected a finite number of 0 or more");
    total += cost;
  }
  ST_CHECK(cost_N.dtype == Dtype::f64 ? std::isfinite(total) : total < kMostTotal, "cost: the sum ", total, " overflows");
}

// Parts are numbered from the heaviest, equal ones by their smallest item; empty ones come last.
template <typename Cost>
void number(const Cost* cost, Members& members, int64_t* part) {
  struct Part {
    Cost load;
    int64_t first;
    size_t at;
  };
  std::vector<Part> order;
  for (size_t p = 0; p < members.size(); ++p) {
    if (members[p].empty()) continue;
    Part found{Cost{}, *std::min_element(members[p].begin(), members[p].end()), p};
    for (int64_t i : members[p]) found.load += cost[i];
    order.push_back(found);
  }
  std::sort(order.begin(), order.end(),
            [](const Part& a, const Part& b) { return a.load != b.load ? a.load > b.load : a.first < b.first; });
  for (size_t p = 0; p < order.size(); ++p)
    for (int64_t i : members[order[p].at]) part[i] = static_cast<int64_t>(p);
}

template <typename Cost>
void balance_count(const Cost* cost, int64_t N, int64_t parts, bool equal_size, int64_t* part) {
  parts = std::min(parts, N);  // more could only be empty
  Differencing<Cost> method(cost, N, parts);
  Members members = equal_size ? method.equal_sizes() : method.free_sizes();
  const std::vector<int64_t> one(N, 1);
  const Limits limits{one.data(), equal_size ? N / parts : 0, equal_size ? ceil_div(N, parts) : N};
  Exchange<Cost>(cost, N, limits, members).run();
  number(cost, members, part);
}

// Largest first into the fullest part that has room (best fit decreasing); as many parts as that takes.
Members best_fit(const int64_t* size, int64_t N, int64_t budget) {
  std::vector<int64_t> order(N);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return size[a] > size[b]; });
  Members members;
  std::set<std::pair<int64_t, size_t>> room;  // what is left in each part
  for (int64_t i : order) {
    auto found = room.lower_bound({size[i], 0});
    if (found == room.end()) {
      found = room.insert({budget, members.size()}).first;
      members.emplace_back();
    }
    const auto [left, at] = *found;
    members[at].push_back(i);
    room.erase(found);
    room.insert({left - size[i], at});
  }
  return members;
}

bool all_fit(const Members& members, const Limits& limits) {
  return std::all_of(members.begin(), members.end(), [&](const std::vector<int64_t>& part) {
    int64_t total = 0;
    for (int64_t i : part) total += limits.size[i];
    return total <= limits.most;
  });
}

// The smallest multiple for which balancing the costs, or else the sizes, or else best fit keeps the budget.
template <typename Cost>
Members fewest(const Cost* cost, int64_t N, const Limits& limits, int64_t multiple) {
  Members packed = best_fit(limits.size, N, limits.most);
  const int64_t total = std::accumulate(limits.size, limits.size + N, int64_t{0});
  const auto rounded = [&](int64_t parts) { return ceil_div(parts, multiple) * multiple; };
  const int64_t enough = rounded(static_cast<int64_t>(packed.size()));
  const int64_t least = rounded(ceil_div(total, std::max<int64_t>(1, limits.most)));
  int64_t parts = std::max({multiple, least, enough - kAttempts * multiple});
  for (; parts <= enough; parts += multiple) {
    const int64_t used = std::min(parts, N);  // more could only be empty
    Members members = Differencing<Cost>(cost, N, used).free_sizes();
    if (all_fit(members, limits)) return members;
    members = Differencing<int64_t>(limits.size, N, used).free_sizes();
    if (all_fit(members, limits)) return members;
  }
  packed.resize(std::min(enough, N));
  return packed;
}

template <typename Cost>
void balance_budget(const Cost* cost, int64_t N, const Limits& limits, int64_t multiple, int64_t* part) {
  Members members = fewest(cost, N, limits, multiple);
  Exchange<Cost>(cost, N, limits, members).run();
  number(cost, members, part);
}

}  // namespace

void karmarkar_karp(const View& cost_N, int64_t parts, bool equal_size, const View& part_N) {
  check_cost(cost_N);
  const int64_t N = cost_N.size[0];
  ST_CHECK(parts >= 1, "parts: ", parts, " is not 1 or more");
  part_N.check("part", Dtype::i64, {N});
  if (N == 0) return;
  if (cost_N.dtype == Dtype::i64)
    balance_count(cost_N.as<int64_t>(), N, parts, equal_size, part_N.as<int64_t>());
  else
    balance_count(cost_N.as<double>(), N, parts, equal_size, part_N.as<int64_t>());
}

void within_budget(const View& cost_N, const View& size_N, int64_t budget, int64_t multiple, const View& part_N) {
  check_cost(cost_N);
  const int64_t N = cost_N.size[0];
  size_N.check("size", Dtype::i64, {N});
  ST_CHECK(budget >= 0, "budget: ", budget, " is below 0");
  ST_CHECK(multiple >= 1 && multiple <= INT32_MAX, "multiple: ", multiple, " is not between 1 and ", INT32_MAX);
  part_N.check("part", Dtype::i64, {N});
  const int64_t* size = size_N.as<int64_t>();
  double total = 0.;
  for (int64_t i = 0; i < N; ++i) {
    ST_CHECK(size[i] >= 0, "size: item ", i, " is ", size[i], ", expected 0 or more");
    total += static_cast<double>(size[i]);
    ST_CHECK(size[i] <= budget, "size: item ", i, " is ", size[i], ", more than the budget of ", budget, " alone");
  }
  ST_CHECK(total < kMostTotal, "size: the sum ", total, " overflows");
  if (N == 0) return;
  const Limits limits{size, 0, std::min(budget, static_cast<int64_t>(kMostTotal))};
  if (cost_N.dtype == Dtype::i64)
    balance_budget(cost_N.as<int64_t>(), N, limits, multiple, part_N.as<int64_t>());
  else
    balance_budget(cost_N.as<double>(), N, limits, multiple, part_N.as<int64_t>());
}

}  // namespace seedthink
