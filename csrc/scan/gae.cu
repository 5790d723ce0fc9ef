// Host side of GAE on CUDA: checks and launches. Built wherever nvcc is; a machine without a driver imports the library
// and gets an error here.
#include "common/device_call.h"
#include "scan/gae_cuda.h"
#include "scan/gae_kernels.cuh"

namespace seedthink {
namespace {

int64_t slots(int64_t T, int64_t B) { return B + T / cuda::kChunk; }
int64_t flag_bytes(int64_t T, int64_t B) { return cuda::padded(slots(T, B) * sizeof(int32_t)); }

}  // namespace

int64_t gae_cuda_workspace(int64_t T, int64_t B) {
  return flag_bytes(T, B) + slots(T, B) * static_cast<int64_t>(sizeof(cuda::Map));
}

void gae_scan_cuda(const View& reward_T, const View& value_T, const View& cu_seqlens_B1, const View& lambda_policy_B,
                   const View& lambda_critic_B, double gamma, const View& mask_T, const View& bootstrap_B,
                   const View& advantage_T, const View& return_T, const View& workspace, int64_t longest, int64_t stream) {
  const cuda::DeviceCall call("gae", reward_T, stream);
  ST_CHECK(reward_T.dims == 1, "reward: expected 1 dimension, got ", reward_T.dims);
  ST_CHECK(cu_seqlens_B1.dims == 1 && cu_seqlens_B1.size[0] > 0, "cu_seqlens: needs at least one entry");
  ST_CHECK(gamma >= 0. && gamma <= 1., "gamma: ", gamma, " is outside 0 to 1");
  const int64_t T = reward_T.size[0], B = cu_seqlens_B1.size[0] - 1;
  ST_CHECK(T <= INT32_MAX - cuda::kChunk, "reward: ", T, " tokens are more than int32 counts");
  call.check(reward_T, "reward", Dtype::f32, {T});
  call.check(value_T, "value", Dtype::f32, {T});
  call.check(cu_seqlens_B1, "cu_seqlens", Dtype::i32, {B + 1});
  call.check(lambda_policy_B, "lambda_policy", Dtype::f32, {B});
  call.check(lambda_critic_B, "lambda_critic", Dtype::f32, {B});
  if (mask_T) call.check(mask_T, "mask", Dtype::b8, {T});
  if (bootstrap_B) call.check(bootstrap_B, "bootstrap", Dtype::f32, {B});
  call.check(advantage_T, "advantage", Dtype::f32, {T});
  call.check(return_T, "return", Dtype::f32, {T});
  call.check(workspace, "workspace", Dtype::u8, {-1});
  ST_CHECK(workspace.size[0] >= gae_cuda_workspace(T, B), "workspace: has ", workspace.size[0], " bytes, needs ",
           gae_cuda_workspace(T, B));
  if (T == 0 || B == 0) return;
  const auto fits = [](const View& view, int64_t step) { return reinterpret_cast<uintptr_t>(view.pointer) % step == 0; };
  const bool aligned = fits(reward_T, 16) && fits(value_T, 16) && fits(advantage_T, 16) && fits(return_T, 16) &&
                       fits(mask_T, 4);
  const cuda::Problem problem{reward_T.as<float>(), value_T.as<float>(), lambda_policy_B.as<float>(),
                              lambda_critic_B.as<float>(), bootstrap_B.as<float>(), mask_T.as<uint8_t>(),
                              cu_seqlens_B1.as<int32_t>(), advantage_T.as<float>(), return_T.as<float>(),
                              static_cast<float>(gamma), static_cast<int32_t>(B), static_cast<int32_t>(T),
                              aligned};
  if (longest <= cuda::kChunk) {
    cuda::scan_chunks<<<static_cast<unsigned>(B), cuda::kGaeThreads, 0, call.stream>>>(problem, {});
  } else {
    char* memory = workspace.as<char>();
    const auto count = static_cast<int32_t>(slots(T, B));
    const cuda::Workspace work{reinterpret_cast<int32_t*>(memory), reinterpret_cast<cuda::Map*>(memory + flag_bytes(T, B))};
    cuda::clear_ready<<<cuda::blocks_for(count, cuda::kGaeThreads), cuda::kGaeThreads, 0, call.stream>>>(work.ready, count);
    call.launched();
    if (call.hopper())  // the scan waits in its own code for the flags to be clear
      call.launch_with(cuda::early_start(), static_cast<unsigned>(count), cuda::kGaeThreads, cuda::scan_chunks, problem, work);
    else
      cuda::scan_chunks<<<static_cast<unsigned>(count), cuda::kGaeThreads, 0, call.stream>>>(problem, work);
  }
  call.launched();
}

}  // namespace seedthink
