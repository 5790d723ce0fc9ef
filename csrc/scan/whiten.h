// Statistics of advantages over the tokens that count, and whitening. The contract stands in kernels/gae.py.
#pragma once

#include "common/isa.h"
#include "common/view.h"

// moments_3 float64: count, mean, variance.
ST_DECLARE(void advantage_moments(const View& advantage_T, const View& cu_seqlens_B1, const View& mask_T,
                                  const View& moments_3))
// y = (advantage - mean) * scale where the mask counts, else 0.
ST_DECLARE(void shift_and_scale(const View& advantage_T, const View& mask_T, double mean, double scale, const View& y_T))
