// Host side of GAE on CUDA: checks and launches. Built wherever nvcc is; a machine without a driver imports the library
// and gets an error here.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "scan/gae_cuda.h"
#include "scan/gae_kernels.cuh"

namespace seedthink {
namespace {

void require(cudaError_t status, const char* what) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string("gae on CUDA: ") + what + ": " + cudaGetErrorString(status));
}

void require_device() {
  int count = 0;
  require(cudaGetDeviceCount(&count), "no usable CUDA driver (check nvidia-smi)");
  if (count == 0) throw std::runtime_error("gae on CUDA: the driver reports no device (check nvidia-smi)");
}

// View::check for tensors on the device.
void check(const View& view, const char* what, Dtype dtype, int64_t size) {
  ST_CHECK(view.cuda, what, ": expected a CUDA tensor");
  View same = view;
  same.cuda = false;
  same.check(what, dtype, {size});
}

int64_t slots(int64_t T, int64_t B) { return B + T / cuda::kChunk; }
int64_t padded(int64_t bytes) { return (bytes + 255) / 256 * 256; }

}  // namespace

int64_t gae_cuda_workspace(int64_t T, int64_t B) {
  const int64_t per_slot = static_cast<int64_t>(sizeof(cuda::Map) + sizeof(cuda::State));
  return padded((B + 1) * 4) + padded(slots(T, B) * per_slot);
}

void gae_scan_cuda(const View& reward_T, const View& value_T, const View& cu_seqlens_B1, const View& lambda_policy_B,
                   const View& lambda_critic_B, double gamma, const View& mask_T, const View& bootstrap_B,
                   const View& advantage_T, const View& return_T, const View& workspace, int64_t longest, int64_t stream) {
  require_device();
  ST_CHECK(reward_T.dims == 1, "reward: expected 1 dimension, got ", reward_T.dims);
  ST_CHECK(cu_seqlens_B1.dims == 1 && cu_seqlens_B1.size[0] > 0, "cu_seqlens: needs at least one entry");
  ST_CHECK(gamma >= 0. && gamma <= 1., "gamma: ", gamma, " is outside 0 to 1");
  const int64_t T = reward_T.size[0], B = cu_seqlens_B1.size[0] - 1;
  check(reward_T, "reward", Dtype::f32, T);
  check(value_T, "value", Dtype::f32, T);
  check(cu_seqlens_B1, "cu_seqlens", Dtype::i32, B + 1);
  check(lambda_policy_B, "lambda_policy", Dtype::f32, B);
  check(lambda_critic_B, "lambda_critic", Dtype::f32, B);
  if (mask_T) check(mask_T, "mask", Dtype::b8, T);
  if (bootstrap_B) check(bootstrap_B, "bootstrap", Dtype::f32, B);
  check(advantage_T, "advantage", Dtype::f32, T);
  check(return_T, "return", Dtype::f32, T);
  check(workspace, "workspace", Dtype::u8, workspace.size[0]);
  ST_CHECK(workspace.size[0] >= gae_cuda_workspace(T, B), "workspace: has ", workspace.size[0], " bytes, needs ",
           gae_cuda_workspace(T, B));
  if (T == 0 || B == 0) return;
  const cuda::Problem problem{reward_T.as<float>(), value_T.as<float>(), lambda_policy_B.as<float>(),
                              lambda_critic_B.as<float>(), bootstrap_B.as<float>(), mask_T.as<uint8_t>(),
                              cu_seqlens_B1.as<int32_t>(), advantage_T.as<float>(), return_T.as<float>(),
                              static_cast<float>(gamma), static_cast<int32_t>(B)};
  const auto queue = reinterpret_cast<cudaStream_t>(stream);
  if (longest <= cuda::kChunk) {
    cuda::scan_chunks<false><<<static_cast<unsigned>(B), cuda::kThreads, 0, queue>>>(problem, {});
  } else {
    char* memory = workspace.as<char>();
    cuda::Workspace work{reinterpret_cast<int32_t*>(memory), reinterpret_cast<cuda::Map*>(memory + padded((B + 1) * 4)),
                         nullptr};
    work.state = reinterpret_cast<cuda::State*>(work.map + slots(T, B));
    const auto grid = static_cast<unsigned>(slots(T, B));
    cuda::plan_chunks<<<1, cuda::kThreads, 0, queue>>>(problem.bounds, problem.sequences, work.first);
    cuda::scan_chunks<false><<<grid, cuda::kThreads, 0, queue>>>(problem, work);
    cuda::carry_states<<<static_cast<unsigned>((B + 127) / 128), 128, 0, queue>>>(problem, work);
    cuda::scan_chunks<true><<<grid, cuda::kThreads, 0, queue>>>(problem, work);
  }
  require(cudaGetLastError(), "launch failed");
}

}  // namespace seedthink
