// Queries, keys and values out of one projection, normalised (or not) and turned. Formulas stand in kernels/heads.py.
#pragma once

#include "common/isa.h"
#include "common/view.h"

// qkv holds N query heads, n key heads and n value heads of width H per token. bias_X (added to every row of qkv) and the
// norms' weights may be absent, the norms together. rstd_TM: one per query and key head, [T, 0] without norms.
ST_DECLARE(void split_heads_forward(const View& qkv_TX, const View& bias_X, const View& q_norm_H, const View& k_norm_H,
                                    double eps, const View& table, const View& positions_T, const View& q_TNH,
                                    const View& k_TnH, const View& v_TnH, const View& rstd_TM))
// The gradients of what is absent are absent too.
ST_DECLARE(void split_heads_backward(const View& dq_TNH, const View& dk_TnH, const View& dv_TnH, const View& qkv_TX,
                                     const View& bias_X, const View& q_norm_H, const View& k_norm_H,
                                     const View& rstd_TM, const View& table, const View& positions_T,
                                     const View& dqkv_TX, const View& dbias_X, const View& dq_norm_H,
                                     const View& dk_norm_H))
