// Routing on CUDA tensors, with the contract of route_forward and route_backward (moe.h); logits may be bfloat16 too.
#pragma once

#include "common/view.h"

namespace seedthink {

// Bytes of workspace for E experts.
int64_t route_cuda_workspace(int64_t E);

// Two launches, or one for few tokens where the device has clusters. A row with NaN or +inf, or with nothing finite, cannot be reported from here without waiting for the
// device: its weights are NaN and its experts the first k. At most 512 experts, 32 groups and k = 32.
void route_forward_cuda(const View& logits_TE, const View& bias_E, bool sigmoid, bool norm_topk, double scale,
                        int64_t groups, int64_t topk_groups, const View& ids_TK, const View& weight_TK,
                        const View& counts_E, const View& offsets_E1, const View& row_TK, const View& token_R,
                        const View& workspace, int64_t stream);
void route_backward_cuda(const View& dweight_TK, const View& logits_TE, const View& ids_TK, const View& weight_TK,
                         bool sigmoid, bool norm_topk, double scale, const View& dlogits_TE, int64_t stream);

}  // namespace seedthink
