// Log-probability and entropy of rows of logits, and the derivative. Shapes and formulas stand in kernels/logprob.py.
#pragma once

#include "common/isa.h"
#include "common/view.h"

ST_DECLARE(void row_logprob_forward(const View& logits_TV, const View& targets_T, const View& temperature_T,
                                    const View& logprob_T, const View& entropy_T))
// Overwrites the logits with their gradient.
ST_DECLARE(void row_logprob_backward(const View& logits_TV, const View& targets_T, const View& temperature_T,
                                     const View& dlogprob_T, const View& dentropy_T))
