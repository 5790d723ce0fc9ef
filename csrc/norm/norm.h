// RMSNorm, alone or of a sum, and its backward. Shapes and formulas stand in kernels/norm.py.
#pragma once

#include "common/isa.h"
#include "common/view.h"

ST_DECLARE(void rms_norm_forward(const View& x_TD, const View& weight_D, double eps, const View& y_TD, const View& rstd_T))
ST_DECLARE(void rms_norm_backward(const View& dy_TD, const View& x_TD, const View& weight_D, const View& rstd_T,
                                  const View& dx_TD, const View& dweight_D))

// sum = x + delta, y = norm(sum).
ST_DECLARE(void add_rms_norm_forward(const View& x_TD, const View& delta_TD, const View& weight_D, double eps,
                                     const View& sum_TD, const View& y_TD, const View& rstd_T))
// dx, the gradient of x and of delta, is dsum plus what comes through the norm.
ST_DECLARE(void add_rms_norm_backward(const View& dsum_TD, const View& dy_TD, const View& sum_TD, const View& weight_D,
                                      const View& rstd_T, const View& dx_TD, const View& dweight_D))
