// The rows' way to the experts and back on CUDA tensors, with the contract of moe.h. Row numbers are not checked on the
// host: one outside the rows is left out by permute and gives NaN in unpermute.
#pragma once

#include "common/view.h"

namespace seedthink {

void permute_forward_cuda(const View& x_TD, const View& row_TK, const View& x_RD, int64_t stream);
void permute_backward_cuda(const View& dx_RD, const View& row_TK, const View& dx_TD, int64_t stream);
void unpermute_forward_cuda(const View& y_RD, const View& weight_TK, const View& row_TK, const View& y_TD,
                            int64_t stream);
void unpermute_backward_cuda(const View& dy_TD, const View& y_RD, const View& weight_TK, const View& row_TK,
                             const View& dy_RD, const View& dweight_TK, int64_t stream);

}  // namespace seedthink
