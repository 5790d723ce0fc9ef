// Packed weights, the row-exact product and the weight gradient. Shapes and formulas stand in kernels/linear.py.
#pragma once

#include "common/isa.h"
#include "common/view.h"

// Panels of E matrices: float32 [E, P, K, 64], or bfloat16 pairs [E, P, ceil(K / 2), 64, 2]; P = ceil(N / 64), missing
// columns are zeros. `transposed` packs W^T, whose product with dy is the input gradient.
ST_DECLARE(void pack_panels(const View& weight_ENK, bool transposed, const View& panels))
ST_DECLARE(void linear_forward(const View& x_TK, const View& panels, const View& y_TN))
ST_DECLARE(void linear_weight_grad(const View& dy_TN, const View& x_TK, bool half, const View& dweight_NK))
