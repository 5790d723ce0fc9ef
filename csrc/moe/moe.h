// Routing, the way of rows to the experts and back, and the experts' SwiGLU MLPs, forward and backward. Shapes and
// formulas stand in kernels/route.py, kernels/permute.py and kernels/experts.py.
//
// Rows of the experts (R = T * K) stand expert by expert, in token order within an expert. Panels are packed by
// csrc/linear. Workspaces come from the caller; absent optional tensors (None) switch the part they belong to off.
#pragma once

#include "common/isa.h"
#include "common/view.h"

// bias may be None. sigmoid: the scores are sigmoids, not a softmax.
ST_DECLARE(void route_forward(const View& logits_TE, const View& bias_E, bool sigmoid, bool norm_topk, double scale,
                              int64_t groups, int64_t topk_groups, const View& ids_TK, const View& weight_TK,
                              const View& counts_E, const View& offsets_E1, const View& row_TK, const View& token_R))
ST_DECLARE(void route_backward(const View& dweight_TK, const View& logits_TE, const View& ids_TK, const View& weight_TK,
                               bool sigmoid, bool norm_topk, double scale, const View& dlogits_TE))

// Rows are float32 or bfloat16, of one dtype in a call.
ST_DECLARE(void permute_forward(const View& x_TD, const View& row_TK, const View& token_R, const View& x_RD))
ST_DECLARE(void permute_backward(const View& dx_RD, const View& row_TK, const View& token_R, const View& dx_TD))
ST_DECLARE(void unpermute_forward(const View& y_RD, const View& weight_TK, const View& row_TK, const View& token_R,
                                  const View& y_TD))
ST_DECLARE(void unpermute_backward(const View& dy_TD, const View& y_RD, const View& weight_TK, const View& row_TK,
                                   const View& token_R, const View& dy_RD, const View& dweight_TK))

// width is I. hidden keeps the gate and up products for the backward, None where no gradient is wanted; out is
// workspace.
ST_DECLARE(void experts_forward(const View& x_TD, const View& weight_TK, const View& offsets_E1, const View& row_TK,
                                const View& token_R, const View& gate_up_panels, const View& down_panels, int64_t width,
                                const View& hidden_R_2I, const View& out_RD, const View& y_TD))
// gate_up_panels and down_panels are those of the transposed weights. dhidden, act and drow are workspace; W rows, at
// least as many as the fullest expert has, say how many experts are worked on at a time.
ST_DECLARE(void experts_backward(const View& dy_TD, const View& x_TD, const View& weight_TK, const View& offsets_E1,
                                 const View& row_TK, const View& token_R, const View& gate_up_panels,
                                 const View& down_panels, const View& hidden_R_2I, const View& dhidden_W_2I,
                                 const View& act_WI, const View& drow_RD, const View& dx_TD, const View& dweight_TK,
                                 const View& dgate_up_E_2I_D, const View& ddown_E_D_I))
