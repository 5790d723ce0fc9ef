// Log-probability and entropy of rows of logits that come some columns at a time, and the derivative. Shapes and formulas
// stand in kernels/logprob.py.
#pragma once

#include "common/isa.h"
#include "common/view.h"

// logits_TN are columns [first, first + N) of V, `first` a multiple of 1024; the columns before them have been added to
// state_T4 (float64: maximum, sum, weighted sum, the target's logit), which the first ones start.
ST_DECLARE(void logprob_columns(const View& logits_TN, int64_t first, int64_t V, const View& targets_T,
                                const View& temperature_T, const View& state_T4))
// The same columns as blocks by themselves, for a vocabulary that several hold: block b of them fills states_BT4[b].
ST_DECLARE(void logprob_blocks(const View& logits_TN, int64_t first, int64_t V, const View& targets_T,
                               const View& temperature_T, const View& states_BT4))
// The state of all columns from their blocks in order: the bits of logprob_columns over the whole row.
ST_DECLARE(void logprob_join(const View& states_BT4, const View& targets_T, const View& state_T4))
ST_DECLARE(void logprob_finish(const View& state_T4, const View& temperature_T, const View& logprob_T,
                               const View& entropy_T))
// Overwrites the columns with their gradient, from the state of all columns.
ST_DECLARE(void logprob_columns_backward(const View& logits_TN, int64_t first, int64_t V, const View& targets_T,
                                         const View& temperature_T, const View& state_T4, const View& dlogprob_T,
                                         const View& dentropy_T))
