// The halves of a decoder block while generating: the kernels of the other folders, one after the other, on buffers that
// stay with the thread, so that a decoding step costs two calls a layer. Arguments and formulas stand in kernels/block.py.
#pragma once

#include "common/isa.h"
#include "common/view.h"

// x_TD is the residual stream: each call adds its half to it. Weights are packed by csrc/linear. The bias of q, k and v
// and their norms may be absent, as of split_heads_forward.
ST_DECLARE(void attention_step(const View& x_TD, const View& norm_D, double eps, const View& qkv_panels,
                               const View& bias_X, const View& q_norm_H, const View& k_norm_H, const View& table,
                               const View& positions_T, const View& slots_T, const View& k_pages, const View& v_pages,
                               const View& page_table_BM, const View& cu_q_B1, const View& lengths_B, double scale,
                               const View& out_panels, int64_t heads))
ST_DECLARE(void dense_step(const View& x_TD, const View& norm_D, double eps, const View& gate_up_panels,
                           const View& down_panels, int64_t width))
// The routing rule (bias_E, sigmoid, norm_topk, scale, groups, topk_groups) is route_forward's. Shared experts, one MLP of
// width shared_width that every token goes through, are added where their panels are given.
ST_DECLARE(void sparse_step(const View& x_TD, const View& norm_D, double eps, const View& router_panels, int64_t experts,
                            int64_t k, const View& bias_E, bool sigmoid, bool norm_topk, double scale, int64_t groups,
                            int64_t topk_groups, const View& gate_up_panels, const View& down_panels, int64_t width,
                            const View& shared_gate_up_panels, const View& shared_down_panels, int64_t shared_width))
