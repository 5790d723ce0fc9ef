// Block-scaled FP8 on CUDA tensors: the numbers of fp8_quantize (fp8.h) bit for bit.
#pragma once

#include "common/view.h"

namespace seedthink {

// As fp8_quantize. Blocks of 1 x 128, and of 128 x 128 that fill their rows, are read once; others again from caches.
void fp8_quantize_cuda(const View& x_MN, const View& residual_MN, const View& previous_PQ, int64_t block_rows,
                       int64_t block_columns, bool power_of_two, double headroom, double low, double high,
                       const View& codes_MN, const View& scale_PQ, const View& left_MN, int64_t stream);

// permute and quantize in one: codes and scale (blocks of 1 x 128) of x's rows, in the rows of the experts.
void fp8_permute_cuda(const View& x_TD, const View& row_TK, bool power_of_two, const View& codes_RD,
                      const View& scale_RQ, int64_t stream);

// Codes and scale (blocks of 1 x 128) of x * rstd * weight, rounded to x's dtype in between; D a multiple of 128, at most
// 16384. rstd may be None.
void fp8_rms_norm_cuda(const View& x_TD, const View& weight_D, double eps, bool power_of_two, const View& codes_TD,
                       const View& scale_TQ, const View& rstd_T, int64_t stream);

}  // namespace seedthink
