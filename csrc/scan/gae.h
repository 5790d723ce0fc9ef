// Generalised advantage estimation over packed sequences. The contract stands in kernels/gae.py.
#pragma once

#include "common/isa.h"
#include "common/view.h"

ST_DECLARE(void gae_scan(const View& reward_T, const View& value_T, const View& cu_seqlens_B1, const View& lambda_policy_B,
                         const View& lambda_critic_B, double gamma, const View& mask_T, const View& bootstrap_B,
                         const View& advantage_T, const View& return_T))
