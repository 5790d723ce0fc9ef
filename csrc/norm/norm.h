// RMSNorm and its backward. Shapes and formulas stand in kernels/norm.py.
#pragma once

#include "common/isa.h"
#include "common/view.h"

ST_DECLARE(void rms_norm_forward(const View& x_TD, const View& weight_D, double eps, const View& y_TD, const View& rstd_T))
ST_DECLARE(void rms_norm_backward(const View& dy_TD, const View& x_TD, const View& weight_D, const View& rstd_T,
                                  const View& dx_TD, const View& dweight_D))
