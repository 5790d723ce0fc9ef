// Block-scaled FP8: quantisation, error feedback, the product. Contracts stand in kernels/fp8*.py.
#pragma once

#include "common/isa.h"
#include "common/view.h"

// codes, scale (and left_MN, what the codes leave of x + residual) of x_MN float32 or bfloat16 in blocks of block_rows x
// block_columns. A block keeps its scale in `previous` while low * max * scale <= amax <= high * max * scale.
ST_DECLARE(void fp8_quantize(const View& x_MN, const View& residual_MN, const View& previous_PQ, int64_t block_rows,
                             int64_t block_columns, bool power_of_two, double headroom, double low, double high,
                             const View& codes_MN, const View& scale_PQ, const View& left_MN))
ST_DECLARE(void fp8_dequantize(const View& codes_MN, const View& scale_PQ, int64_t block_rows, int64_t block_columns,
                               const View& x_MN))

// Codes of weight_NK under the scales given, each column's target being the weight plus the errors of the columns before
// it times factor_KK's row. `panels` packs factor_KK (linear.h). A code of old_NK is kept within `hysteresis` steps
// where old_scale_PQ is scale_PQ.
ST_DECLARE(void fp8_feedback(const View& weight_NK, const View& factor_KK, const View& panels, const View& scale_PQ,
                             int64_t block_rows, int64_t block_columns, const View& old_NK, const View& old_scale_PQ,
                             double hysteresis, const View& codes_NK))

// y_TN = x_TK w_NK^T of codes: x in blocks of 1 x 128, w in blocks of 128 x 128. cells [T, fp8_linear_pitch(K)]: workspace.
ST_DECLARE(void fp8_linear(const View& x_TK, const View& x_scale_TQ, const View& w_NK, const View& w_scale_PQ,
                           const View& cells, const View& y_TN))
ST_DECLARE(int64_t fp8_linear_pitch(int64_t K))

namespace seedthink {

// A delta is a list of events for each row: (gap, code), a code to be written gap + 1 columns behind the event before.
// A gap over 255 is bridged by events that repeat an unchanged code.
void fp8_delta_count(const View& old_MN, const View& new_MN, const View& events_M);
void fp8_delta_write(const View& old_MN, const View& new_MN, const View& first_M1, const View& gaps, const View& codes);
void fp8_delta_apply(const View& first_M1, const View& gaps, const View& codes, const View& codes_MN);

}  // namespace seedthink
