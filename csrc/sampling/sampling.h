// One token per row of logits. The contract stands in kernels/sampling.py.
#pragma once

#include "common/isa.h"
#include "common/view.h"

ST_DECLARE(void sample_rows(const View& logits_BV, const View& temperature_B, const View& top_k_B, const View& top_p_B,
                            const View& seed_B, const View& position_B, const View& token_B, const View& logprob_B))
