// Causal grouped-query attention: packed (training, with its backward) and paged (generation). Shapes and formulas stand
// in kernels/attention.py.
#pragma once

#include "common/isa.h"
#include "common/view.h"

// prefix_B: the sequence whose rows stand before a sequence's own, or -1.
ST_DECLARE(void attend_packed_forward(const View& q_TNH, const View& k_TnH, const View& v_TnH, const View& cu_seqlens_B1,
                                      const View& prefix_B, double scale, bool round_to_bf16, const View& o_TNH,
                                      const View& lse_TN))
ST_DECLARE(void attend_packed_backward(const View& do_TNH, const View& q_TNH, const View& k_TnH, const View& v_TnH,
                                       const View& o_TNH, const View& lse_TN, const View& cu_seqlens_B1,
                                       const View& prefix_B, double scale, bool round_to_bf16, const View& dq_TNH,
                                       const View& dk_TnH, const View& dv_TnH))
ST_DECLARE(void write_pages(const View& k_TnH, const View& v_TnH, const View& slots_T, const View& k_pages,
                            const View& v_pages))
ST_DECLARE(void attend_paged(const View& q_TNH, const View& k_pages, const View& v_pages, const View& page_table_BM,
                             const View& cu_q_B1, const View& lengths_B, double scale, const View& o_TNH))
