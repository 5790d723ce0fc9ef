#include "block/block.h"

#include <vector>

#include "activation/activation.h"
#include "attention/attention.h"
#include "common/pool.h"
#include "common/simd.h"
#include "heads/heads.h"
#include "linear/linear.h"
#include "moe/moe.h"
#include "norm/norm.h"

namespace seedthink::ST_ISA {
namespace {

View dense(void* pointer, Dtype dtype, std::initializer_list<int64_t> sizes) {
  View view;
  view.pointer = pointer;
  view.dtype = dtype;
  for (int64_t size : sizes) view.size[view.dims++] = size;
  int64_t stride = 1;
  for (int i = view.dims - 1; i >= 0; --i) {
    view.stride[i] = stride;
    stride *= view.size[i];
  }
  return view;
}

// Buffers of one call, carved from memory of the calling thread that grows and stays. All have 4-byte elements.
class Buffers {
 public:
  explicit Buffers(int64_t total) {
    thread_local std::vector<float> memory;
    if (static_cast<int64_t>(memory.size()) < total + kSpare) memory.resize(total + kSpare);
    next_ = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) & ~uintptr_t{63});
    end_ = memory.data() + memory.size();
  }

  View floats(std::initializer_list<int64_t> sizes) { return take(Dtype::f32, sizes); }
  View ints(std::initializer_list<int64_t> sizes) { return take(Dtype::i32, sizes); }

 private:
  static constexpr int64_t kSpare = 512;  // alignment of at most 16 buffers

  View take(Dtype dtype, std::initializer_list<int64_t> sizes) {
    const View view = dense(next_, dtype, sizes);
    next_ += (view.numel() + 15) / 16 * 16;
    ST_CHECK(next_ <= end_, "buffers: more was taken than asked for");
    return view;
  }

  float* next_;
  float* end_;
};

void add_to(const View& x, const View& y) {
  float* to = x.as<float>();
  const float* from = y.as<float>();
  parallel(x.numel(), 32768, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) to[i] += from[i];
  });
}

// The most terms that a product with these panels can be over.
int64_t terms(const View& panels) { return panels.size[2] * (panels.dtype == Dtype::bf16 ? 2 : 1); }

}  // namespace

void attention_step(const View& x_TD, const View& norm_D, double eps, const View& qkv_panels, const View& bias_X,
                    const View& q_norm_H, const View& k_norm_H, const View& table, const View& positions_T,
                    const View& slots_T, const View& k_pages, const View& v_pages, const View& page_table_BM,
                    const View& cu_q_B1, const View& lengths_B, double scale, const View& out_panels, int64_t heads) {
  x_TD.check("x", Dtype::f32, {-1, -1});
  const int64_t T = x_TD.size[0], D = x_TD.size[1], N = heads, n = k_pages.size[1], H = table.size[1];
  ST_CHECK(heads >= 1 && H >= 1 && heads <= terms(out_panels) / H, "heads: ", heads, " of width ", H,
           " do not fit out_panels");
  const int64_t wide = (N + 2 * n) * H;
  Buffers buffers(T * (D + 1 + N + n + wide + 2 * N * H + 2 * n * H));
  const View h_TD = buffers.floats({T, D}), rstd_T = buffers.floats({T}), qkv = buffers.floats({T, wide});
  const View q = buffers.floats({T, N, H}), k = buffers.floats({T, n, H}), v = buffers.floats({T, n, H});
  const View o = buffers.floats({T, N, H}), rstd_TM = buffers.floats({T, q_norm_H ? N + n : 0});
  rms_norm_forward(x_TD, norm_D, eps, h_TD, rstd_T);
  linear_forward(h_TD, qkv_panels, qkv);
  split_heads_forward(qkv, bias_X, q_norm_H, k_norm_H, eps, table, positions_T, q, k, v, rstd_TM);
  write_pages(k, v, slots_T, k_pages, v_pages);
  attend_paged(q, k_pages, v_pages, page_table_BM, cu_q_B1, lengths_B, scale, o);
  linear_forward(dense(o.pointer, Dtype::f32, {T, N * H}), out_panels, h_TD);
  add_to(x_TD, h_TD);
}

void dense_step(const View& x_TD, const View& norm_D, double eps, const View& gate_up_panels, const View& down_panels,
                int64_t width) {
  x_TD.check("x", Dtype::f32, {-1, -1});
  const int64_t T = x_TD.size[0], D = x_TD.size[1];
  ST_CHECK(width >= 0 && width <= terms(down_panels), "width: ", width, " does not fit down_panels");
  Buffers buffers(T * (D + 1 + 3 * width));
  const View h_TD = buffers.floats({T, D}), rstd_T = buffers.floats({T});
  const View gate_up = buffers.floats({T, 2 * width}), act = buffers.floats({T, width});
  rms_norm_forward(x_TD, norm_D, eps, h_TD, rstd_T);
  linear_forward(h_TD, gate_up_panels, gate_up);
  swiglu_forward(gate_up, act);
  linear_forward(act, down_panels, h_TD);
  add_to(x_TD, h_TD);
}

void sparse_step(const View& x_TD, const View& norm_D, double eps, const View& router_panels, int64_t experts, int64_t k,
                 const View& bias_E, bool sigmoid, bool norm_topk, double scale, int64_t groups, int64_t topk_groups,
                 const View& gate_up_panels, const View& down_panels, int64_t width, const View& shared_gate_up_panels,
                 const View& shared_down_panels, int64_t shared_width) {
  x_TD.check("x", Dtype::f32, {-1, -1});
  const int64_t T = x_TD.size[0], D = x_TD.size[1], E = experts, K = k, S = shared_gate_up_panels ? shared_width : 0;
  ST_CHECK(E >= 1 && E <= gate_up_panels.size[0], "experts: ", E, " do not fit gate_up_panels");
  ST_CHECK(K >= 1 && K <= E, "k: ", K, " is not between 1 and the number of experts, ", E);
  ST_CHECK(width >= 0 && width <= terms(down_panels), "width: ", width, " does not fit down_panels");
  ST_CHECK(S >= 0 && (S == 0 || S <= terms(shared_down_panels)), "shared_width: ", S, " does not fit shared_down_panels");
  Buffers buffers(T * (2 * D + 1 + E + 4 * K + K * D + 3 * S) + 2 * E + 1);
  const View h_TD = buffers.floats({T, D}), y_TD = buffers.floats({T, D}), rstd_T = buffers.floats({T});
  const View logits = buffers.floats({T, E}), weight = buffers.floats({T, K}), ids = buffers.ints({T, K});
  const View counts = buffers.ints({E}), offsets = buffers.ints({E + 1}), row = buffers.ints({T, K});
  const View token = buffers.ints({T * K}), out = buffers.floats({T * K, D});
  rms_norm_forward(x_TD, norm_D, eps, h_TD, rstd_T);
  linear_forward(h_TD, router_panels, logits);
  route_forward(logits, bias_E, sigmoid, norm_topk, scale, groups, topk_groups, ids, weight, counts, offsets, row, token);
  experts_forward(h_TD, weight, offsets, row, token, gate_up_panels, down_panels, width, View{}, out, y_TD);
  if (shared_gate_up_panels) {
    const View gate_up = buffers.floats({T, 2 * S}), act = buffers.floats({T, S});
    linear_forward(h_TD, shared_gate_up_panels, gate_up);
    swiglu_forward(gate_up, act);
    linear_forward(act, shared_down_panels, h_TD);
    add_to(y_TD, h_TD);
  }
  add_to(x_TD, y_TD);
}

}  // namespace seedthink::ST_ISA
