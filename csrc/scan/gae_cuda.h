// GAE on CUDA tensors, with the contract of gae_scan (gae.h) plus what the host has to say.
#pragma once

#include "common/view.h"

namespace seedthink {

// Bytes of workspace for T tokens in B sequences.
int64_t gae_cuda_workspace(int64_t T, int64_t B);

// `longest`: no sequence is longer (T where the host knows no better); up to one chunk of 4352 tokens it saves a launch.
// `stream`: a cudaStream_t. Nothing synchronises or allocates. The bounds' values are not read on the host and thus not
// checked; whatever they are, the kernel stays inside the tensors and ends. std::runtime_error where there is no device.
void gae_scan_cuda(const View& reward_T, const View& value_T, const View& cu_seqlens_B1, const View& lambda_policy_B,
                   const View& lambda_critic_B, double gamma, const View& mask_T, const View& bootstrap_B,
                   const View& advantage_T, const View& return_T, const View& workspace, int64_t longest, int64_t stream);

}  // namespace seedthink
