#include "heads/heads.h"

#include <algorithm>
#include <vector>

#include "common/tuning.h"
#include "norm/row.h"
#include "rope/rope.h"
#include "rope/row.h"

namespace seedthink::ST_ISA {
namespace {

// Tokens of a block of the backward. The blocks' sums are added in order, so the weights' gradients do not depend on
// the number of threads.
constexpr int64_t kTokens = 32;

struct Sizes {
  int64_t T, N, n, H, M, wide;  // M query and key heads, `wide` floats per token in qkv
};

Sizes check(const View& q_TNH, const View& k_TnH, const View& v_TnH, const View& qkv_TX, const View& bias_X,
            const View& q_norm_H, const View& k_norm_H, const View& rstd_TM, const View& table,
            const View& positions_T) {
  q_TNH.check("q", Dtype::f32, {-1, -1, -1});
  k_TnH.check("k", Dtype::f32, {-1, -1, -1});
  const int64_t T = q_TNH.size[0], N = q_TNH.size[1], H = q_TNH.size[2], n = k_TnH.size[1], M = N + n;
  k_TnH.check("k", Dtype::f32, {T, n, H});
  v_TnH.check("v", Dtype::f32, {T, n, H});
  qkv_TX.check("qkv", Dtype::f32, {T, (M + n) * H});
  if (bias_X) bias_X.check("bias", Dtype::f32, {(M + n) * H});
  ST_CHECK(static_cast<bool>(q_norm_H) == static_cast<bool>(k_norm_H), "k_norm: must be given with q_norm, or neither");
  if (q_norm_H) q_norm_H.check("q_norm", Dtype::f32, {H});
  if (k_norm_H) k_norm_H.check("k_norm", Dtype::f32, {H});
  rstd_TM.check("rstd", Dtype::f32, {T, q_norm_H ? M : 0});
  check_positions(table, positions_T, T, H);
  return {T, N, n, H, M, (M + n) * H};
}

// Head m of token t among the queries, or the keys that follow them.
float* head(const Sizes& z, const View& q, const View& k, int64_t t, int64_t m) {
  return m < z.N ? q.as<float>() + (t * z.N + m) * z.H : k.as<float>() + (t * z.n + m - z.N) * z.H;
}

// sum = x + y; sum may be x.
void add_row(const float* x, const float* y, int64_t n, float* sum) {
  for_vectors(n, [&](int64_t i, int live) { store_some(sum + i, load_some(x + i, live) + load_some(y + i, live), live); });
}

// Adds the shares of the blocks, `pitch` floats apart, in order.
void add_blocks(const float* share, int64_t blocks, int64_t pitch, const View& total) {
  float* to = total.as<float>();
  std::fill(to, to + total.size[0], 0.f);
  for (int64_t block = 0; block < blocks; ++block)
    for (int64_t i = 0; i < total.size[0]; ++i) to[i] += share[block * pitch + i];
}

}  // namespace

void split_heads_forward(const View& qkv_TX, const View& bias_X, const View& q_norm_H, const View& k_norm_H, double eps,
                         const View& table, const View& positions_T, const View& q_TNH, const View& k_TnH,
                         const View& v_TnH, const View& rstd_TM) {
  const Sizes z = check(q_TNH, k_TnH, v_TnH, qkv_TX, bias_X, q_norm_H, k_norm_H, rstd_TM, table, positions_T);
  const float* bias = bias_X ? bias_X.as<float>() : nullptr;
  const Launch launch = tuned(Op::heads, 8192);
  parallel(launch, z.T, launch.rows(z.wide), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* row = qkv_TX.as<float>() + t * z.wide;
      const float* angle = table.as<float>() + positions_T.as<int32_t>()[t] * z.H;
      for (int64_t m = 0; m < z.M; ++m) {
        const float* from = row + m * z.H;
        float* to = head(z, q_TNH, k_TnH, t, m);
        if (bias != nullptr) {
          add_row(from, bias + m * z.H, z.H, to);
          from = to;
        }
        if (q_norm_H) {
          const float* weight = m < z.N ? q_norm_H.as<float>() : k_norm_H.as<float>();
          rstd_TM.as<float>()[t * z.M + m] = norm_row(from, weight, z.H, static_cast<float>(eps), to);
          from = to;
        }
        turn_row(from, angle, z.H / 2, false, to);
      }
      float* values = v_TnH.as<float>() + t * z.n * z.H;
      if (bias != nullptr)
        add_row(row + z.M * z.H, bias + z.M * z.H, z.n * z.H, values);
      else
        std::copy(row + z.M * z.H, row + z.wide, values);
    }
  });
}

void split_heads_backward(const View& dq_TNH, const View& dk_TnH, const View& dv_TnH, const View& qkv_TX,
                          const View& bias_X, const View& q_norm_H, const View& k_norm_H, const View& rstd_TM,
                          const View& table, const View& positions_T, const View& dqkv_TX, const View& dbias_X,
                          const View& dq_norm_H, const View& dk_norm_H) {
  const Sizes z = check(dq_TNH, dk_TnH, dv_TnH, qkv_TX, bias_X, q_norm_H, k_norm_H, rstd_TM, table, positions_T);
  dqkv_TX.check("dqkv", Dtype::f32, {z.T, z.wide});
  if (bias_X) dbias_X.check("dbias", Dtype::f32, {z.wide});
  if (q_norm_H) {
    dq_norm_H.check("dq_norm", Dtype::f32, {z.H});
    dk_norm_H.check("dk_norm", Dtype::f32, {z.H});
  }
  const int64_t blocks = (z.T + kTokens - 1) / kTokens, norms = q_norm_H ? 2 * z.H : 0;
  const int64_t pitch = norms + (bias_X ? z.wide : 0);  // a block's share of the weights' gradients
  std::vector<float> share(blocks * pitch, 0.f);
  parallel(blocks, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> turned(z.H), biased(z.H);
    for (int64_t t = begin * kTokens; t < std::min(z.T, end * kTokens); ++t) {
      const float* row = qkv_TX.as<float>() + t * z.wide;
      float* dx = dqkv_TX.as<float>() + t * z.wide;
      float* mine = share.data() + t / kTokens * pitch;
      const float* angle = table.as<float>() + positions_T.as<int32_t>()[t] * z.H;
      for (int64_t m = 0; m < z.M; ++m) {
        const bool query = m < z.N;
        turn_row(head(z, dq_TNH, dk_TnH, t, m), angle, z.H / 2, true, q_norm_H ? turned.data() : dx + m * z.H);
        if (!q_norm_H) continue;
        const float* x = row + m * z.H;
        if (bias_X) {
          add_row(x, bias_X.as<float>() + m * z.H, z.H, biased.data());
          x = biased.data();
        }
        norm_row_backward(turned.data(), x, query ? q_norm_H.as<float>() : k_norm_H.as<float>(),
                          rstd_TM.as<float>()[t * z.M + m], z.H, nullptr, dx + m * z.H, mine + !query * z.H);
      }
      const float* dv = dv_TnH.as<float>() + t * z.n * z.H;
      std::copy(dv, dv + z.n * z.H, dx + z.M * z.H);
      if (bias_X) add_row(mine + norms, dx, z.wide, mine + norms);
    }
  });
  if (q_norm_H) {
    add_blocks(share.data(), blocks, pitch, dq_norm_H);
    add_blocks(share.data() + z.H, blocks, pitch, dk_norm_H);
  }
  if (bias_X) add_blocks(share.data() + norms, blocks, pitch, dbias_X);
}

}  // namespace seedthink::ST_ISA
