#include "moe/moe.h"
#include "moe/rows.h"

namespace seedthink::ST_ISA {
namespace {

// Calls call(Floats{}) or call(Halves{}); the dtype of `view` decides.
template <typename Call>
void with_rows(const char* what, const View& view, const Call& call) {
  if (view.dtype == Dtype::bf16) return call(Halves{});
  ST_CHECK(view.dtype == Dtype::f32, what, ": expected dtype float32 or bfloat16, got ", name(view.dtype));
  call(Floats{});
}

struct Sizes {
  int64_t T, K, R, D;
};

// Token by token, so that x is read once and its row waits in the first cache for its K copies.
void spread(const Sizes& n, const char* x, const int32_t* row_TK, int64_t row_bytes, char* to) {
  if (row_bytes == 0) return;
  const bool stream = streams(to, n.R, row_bytes);
  parallel(n.T, token_grain(n.K, row_bytes), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const char* from = x + t * row_bytes;
      for (int64_t k = 0; k < n.K; ++k) {
        char* row = to + row_TK[t * n.K + k] * row_bytes;
        if (!stream)
          std::memcpy(row, from, row_bytes);
        else
          for (int64_t i = 0; i < row_bytes; i += kLineBytes)
            stream_line(row + i, *reinterpret_cast<const vu_u*>(from + i));
      }
    }
    if (stream) _mm_sfence();
  });
}

// drows[r] = weight * dy[t], and dweight = dot(dy[t], rows[r]) in chains over the lines, for the K rows r of a token.
template <typename Kind>
void spread_backward(const Sizes& n, const typename Kind::Element* dy, const typename Kind::Element* rows,
                     const int32_t* row_TK, const float* weight_TK, typename Kind::Element* drows, float* dweight_TK) {
  const int64_t D = n.D, row_bytes = D * sizeof *dy;
  const bool stream = streams(drows, n.R, row_bytes);
  parallel(n.T, token_grain(n.K, row_bytes), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * n.K; i < end * n.K; ++i) {
      const auto *grad = dy + i / n.K * D, *row = rows + row_TK[i] * D;
      const auto* next = rows + row_TK[std::min(i + 1, n.R - 1)] * D;
      const vf weight = splat(weight_TK[i]);
      vf dot[Kind::kParts] = {};
      for_lines<Kind>(D, [&](int64_t at, int64_t live) {
        vf g[Kind::kParts], v[Kind::kParts];
        read_some<Kind>(grad + at, live, g);
        read_some<Kind>(row + at, live, v);
        __builtin_prefetch(next + at);
        for (int part = 0; part < Kind::kParts; ++part) {
          dot[part] = fma(g[part], v[part], dot[part]);
          g[part] = weight * g[part];
        }
        write_some<Kind>(drows + row_TK[i] * D + at, g, live, stream);
      });
      dweight_TK[i] = sum(Kind::kParts == 2 ? dot[0] + dot[Kind::kParts - 1] : dot[0]);
    }
    if (stream) _mm_sfence();
  });
}

// Checks the routing against `tokens` [T, D] and `rows` [R, D].
Sizes check_permute(const char* tokens_name, const View& tokens_TD, const char* rows_name, const View& rows_RD,
                    const View& row_TK, const View& token_R) {
  tokens_TD.check(tokens_name, tokens_TD.dtype, {-1, -1});
  row_TK.check("routing.row_TK", Dtype::i32, {tokens_TD.size[0], -1});
  Sizes n{tokens_TD.size[0], row_TK.size[1], 0, tokens_TD.size[1]};
  n.R = n.T * n.K;
  rows_RD.check(rows_name, tokens_TD.dtype, {n.R, n.D});
  check_rows(row_TK, token_R, n.T, n.K);
  return n;
}

}  // namespace

void permute_forward(const View& x_TD, const View& row_TK, const View& token_R, const View& x_RD) {
  with_rows("x", x_TD, [&](auto kind) {
    const Sizes n = check_permute("x", x_TD, "rows", x_RD, row_TK, token_R);
    spread(n, x_TD.as<char>(), row_TK.as<int32_t>(), n.D * sizeof(typename decltype(kind)::Element), x_RD.as<char>());
  });
}

void permute_backward(const View& dx_RD, const View& row_TK, const View& token_R, const View& dx_TD) {
  with_rows("grad", dx_RD, [&](auto kind) {
    using Kind = decltype(kind);
    using Element = typename Kind::Element;
    const Sizes n = check_permute("dx", dx_TD, "grad", dx_RD, row_TK, token_R);
    combine<Kind>(dx_RD.as<Element>(), row_TK.as<int32_t>(), nullptr, n.T, n.K, n.D, dx_TD.as<Element>());
  });
}

void unpermute_forward(const View& y_RD, const View& weight_TK, const View& row_TK, const View& token_R,
                       const View& y_TD) {
  with_rows("y", y_RD, [&](auto kind) {
    using Kind = decltype(kind);
    using Element = typename Kind::Element;
    const Sizes n = check_permute("sum", y_TD, "y", y_RD, row_TK, token_R);
    weight_TK.check("routing.weight_TK", Dtype::f32, {n.T, n.K});
    combine<Kind>(y_RD.as<Element>(), row_TK.as<int32_t>(), weight_TK.as<float>(), n.T, n.K, n.D, y_TD.as<Element>());
  });
}

void unpermute_backward(const View& dy_TD, const View& y_RD, const View& weight_TK, const View& row_TK,
                        const View& token_R, const View& dy_RD, const View& dweight_TK) {
  with_rows("grad", dy_TD, [&](auto kind) {
    using Kind = decltype(kind);
    using Element = typename Kind::Element;
    const Sizes n = check_permute("grad", dy_TD, "y", y_RD, row_TK, token_R);
    weight_TK.check("routing.weight_TK", Dtype::f32, {n.T, n.K});
    dy_RD.check("dy", Kind::kDtype, {n.R, n.D});
    dweight_TK.check("dweight", Dtype::f32, {n.T, n.K});
    spread_backward<Kind>(n, dy_TD.as<Element>(), y_RD.as<Element>(), row_TK.as<int32_t>(), weight_TK.as<float>(),
                          dy_RD.as<Element>(), dweight_TK.as<float>());
  });
}

}  // namespace seedthink::ST_ISA
