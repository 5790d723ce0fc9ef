// Host side of routing on CUDA: checks and launches.
#include <algorithm>
#include <cmath>

#include "common/device_call.h"
#include "moe/route_cuda.h"
#include "moe/route_kernels.cuh"

namespace seedthink {
namespace {

constexpr int64_t kMostGroups = 32;

void check_rule(int64_t T, int64_t E, int64_t K, double scale) {
  ST_CHECK(K >= 1 && K <= E, "k: ", K, " is not between 1 and the number of experts, ", E);
  ST_CHECK(K <= cuda::kMostChoices, "k: ", K, " is more than the ", cuda::kMostChoices, " that CUDA routing takes");
  ST_CHECK(E <= cuda::kMostExperts, "logits: ", E, " experts are more than the ", cuda::kMostExperts,
           " that CUDA routing takes");
  ST_CHECK(T <= INT64_C(65535) * cuda::kRanges && T * K < INT32_MAX, "logits: ", T, " tokens times k = ", K,
           " are more rows than CUDA routing counts");
  ST_CHECK(std::isfinite(scale) && scale > 0., "scale: ", scale, " is not finite and above 0");
}

void check_groups(int64_t E, int64_t K, int64_t groups, int64_t kept) {
  ST_CHECK(groups >= 1 && E % groups == 0, "groups: ", groups, " does not divide the number of experts, ", E);
  ST_CHECK(groups <= kMostGroups, "groups: ", groups, " is more than the ", kMostGroups, " that CUDA routing takes");
  ST_CHECK(kept >= 1 && kept <= groups, "topk_groups: ", kept, " is not between 1 and the number of groups, ", groups);
  ST_CHECK(K <= E / groups * kept, "k: ", K, " is more than the ", E / groups * kept, " experts of topk_groups = ", kept);
}

// Calls launch(pointer to the logits' type, std::integral_constant of a lane's experts).
template <typename Launch>
void with_row(const View& logits, const Launch& launch) {
  const auto sized = [&](auto* p) {
    if (logits.size[1] <= 128) return launch(p, std::integral_constant<int, 4>{});
    if (logits.size[1] <= 256) return launch(p, std::integral_constant<int, 8>{});
    launch(p, std::integral_constant<int, 16>{});
  };
  if (logits.dtype == Dtype::bf16) return sized(logits.as<bf16>());
  ST_CHECK(logits.dtype == Dtype::f32, "logits: expected dtype float32 or bfloat16, got ", name(logits.dtype));
  sized(logits.as<float>());
}

// Cuts rule.T tokens into ranges of `range`.
cuda::Rule in_ranges(cuda::Rule rule, int64_t range) {
  rule.range = static_cast<int32_t>(range);
  rule.ranges = static_cast<int32_t>(cuda::blocks_for(rule.T, range));
  return rule;
}

// Threads for a warp to each token of a range, as far as a block has them, and some for what goes by experts.
template <int P>
unsigned threads_for(const cuda::Rule& rule) {
  return 32 * static_cast<unsigned>(std::clamp(rule.range, 8, cuda::kWarpsOf<P>));
}

// One launch, if there are few tokens and the device has clusters.
template <typename X, int P>
bool route_at_once(const cuda::DeviceCall& call, const cuda::Rule& rule, const X* logits, const cuda::RouteOutput& out,
                   const cuda::Places& places) {
  if (!call.hopper() || rule.T == 0 || rule.T > cuda::kCluster * cuda::kWarpsOf<P>) return false;
  const cuda::Rule cut = in_ranges(rule, cuda::blocks_for(rule.T, cuda::kCluster));
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = cuda::kCluster;
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  call.launch_with(cluster, cuda::kCluster, threads_for<P>(cut), cuda::route_cluster<X, P>, cut, logits, out, places);
  return true;
}

template <typename X, int P>
void route_in_two(const cuda::DeviceCall& call, const cuda::Rule& rule, const X* logits, const cuda::RouteOutput& out,
                  const cuda::Places& places) {
  constexpr int64_t kLeast = 8;  // tokens of a range: more ranges have more counts to add up
  const cuda::Rule cut = in_ranges(rule, std::max<int64_t>(kLeast, cuda::blocks_for(rule.T, cuda::kRanges)));
  const auto ranges = static_cast<unsigned>(cut.ranges);
  if (ranges > 0) cuda::choose_experts<X, P><<<ranges, threads_for<P>(cut), 0, call.stream>>>(cut, logits, out);
  const int32_t* ids = out.ids;
  const uint32_t* count = out.count;
  if (!call.hopper() || ranges == 0) {
    cuda::place_rows<<<std::max(1u, ranges), cuda::kPlaceThreads, 0, call.stream>>>(cut, ids, count, places);
    return;
  }
  call.launch_with(cuda::early_start(), ranges, cuda::kPlaceThreads, cuda::place_rows, cut, ids, count, places);
}

}  // namespace

int64_t route_cuda_workspace(int64_t E) {
  constexpr int64_t kPackBytes = cuda::kPackWords * sizeof(uint32_t);
  return cuda::packs_of(static_cast<int32_t>(E)) * cuda::kRanges * kPackBytes;
}

void route_forward_cuda(const View& logits_TE, const View& bias_E, bool sigmoid, bool norm_topk, double scale,
                        int64_t groups, int64_t topk_groups, const View& ids_TK, const View& weight_TK,
                        const View& counts_E, const View& offsets_E1, const View& row_TK, const View& token_R,
                        const View& workspace, int64_t stream) {
  const cuda::DeviceCall call("route", logits_TE, stream);
  call.check(logits_TE, "logits", logits_TE.dtype, {-1, -1});
  call.check(ids_TK, "ids", Dtype::i32, {logits_TE.size[0], -1});
  const int64_t T = logits_TE.size[0], E = logits_TE.size[1], K = ids_TK.size[1];
  check_rule(T, E, K, scale);
  check_groups(E, K, groups, topk_groups);
  if (bias_E) call.check(bias_E, "bias", Dtype::f32, {E});
  call.check(weight_TK, "weight", Dtype::f32, {T, K});
  call.check(counts_E, "counts", Dtype::i32, {E});
  call.check(offsets_E1, "offsets", Dtype::i32, {E + 1});
  call.check(row_TK, "row", Dtype::i32, {T, K});
  call.check(token_R, "token", Dtype::i32, {T * K});
  call.check(workspace, "workspace", Dtype::u8, {-1});
  ST_CHECK(workspace.size[0] >= route_cuda_workspace(E) && reinterpret_cast<uintptr_t>(workspace.pointer) % 8 == 0,
           "workspace: needs ", route_cuda_workspace(E), " bytes at a multiple of 8");
  const cuda::Rule rule{static_cast<int32_t>(T), static_cast<int32_t>(E), static_cast<int32_t>(K), sigmoid, norm_topk,
                        static_cast<float>(scale), bias_E.as<float>(), static_cast<int32_t>(groups),
                        static_cast<int32_t>(topk_groups), static_cast<int32_t>(E / groups), 1, 1};
  const cuda::RouteOutput out{ids_TK.as<int32_t>(), weight_TK.as<float>(), workspace.as<uint32_t>()};
  const cuda::Places places{counts_E.as<int32_t>(), offsets_E1.as<int32_t>(), row_TK.as<int32_t>(),
                            token_R.as<int32_t>()};
  with_row(logits_TE, [&](auto* logits, auto each) {
    using X = std::remove_const_t<std::remove_pointer_t<decltype(logits)>>;
    constexpr int kEach = decltype(each)::value;
    if (!route_at_once<X, kEach>(call, rule, logits, out, places))
      route_in_two<X, kEach>(call, rule, logits, out, places);
  });
  call.launched();
}

void route_backward_cuda(const View& dweight_TK, const View& logits_TE, const View& ids_TK, const View& weight_TK,
                         bool sigmoid, bool norm_topk, double scale, const View& dlogits_TE, int64_t stream) {
  const cuda::DeviceCall call("route", logits_TE, stream);
  call.check(logits_TE, "logits", logits_TE.dtype, {-1, -1});
  call.check(ids_TK, "ids", Dtype::i32, {logits_TE.size[0], -1});
  const int64_t T = logits_TE.size[0], E = logits_TE.size[1], K = ids_TK.size[1];
  check_rule(T, E, K, scale);
  call.check(dweight_TK, "dweight", Dtype::f32, {T, K});
  call.check(weight_TK, "weight", Dtype::f32, {T, K});
  call.check(dlogits_TE, "dlogits", logits_TE.dtype, {T, E});
  if (T == 0) return;
  const cuda::Rule rule{static_cast<int32_t>(T), static_cast<int32_t>(E), static_cast<int32_t>(K), sigmoid, norm_topk,
                        static_cast<float>(scale), nullptr, 1, 1, static_cast<int32_t>(E), 1, 1};
  with_row(logits_TE, [&](auto* logits, auto each) {
    using X = std::remove_pointer_t<decltype(logits)>;
    cuda::route_gradient<X, decltype(each)::value>
        <<<cuda::blocks_for(T, cuda::kBackwardThreads / 32), cuda::kBackwardThreads, 0, call.stream>>>(
            rule, dweight_TK.as<float>(), logits, ids_TK.as<int32_t>(), weight_TK.as<float>(), dlogits_TE.as<X>());
  });
  call.launched();
}

}  // namespace seedthink
