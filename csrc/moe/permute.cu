// Host side of permute and unpermute on CUDA: checks and launches.
#include "common/device_call.h"
#include "moe/permute_cuda.h"
#include "moe/permute_kernels.cuh"

namespace seedthink {
namespace {

struct Sizes {
  int64_t T, K, R, D;
};

// Checks the rows against the tokens and both against the routing.
Sizes check_rows(const cuda::DeviceCall& call, const char* tokens_name, const View& tokens_TD, const char* rows_name,
                 const View& rows_RD, const View& row_TK) {
  call.check(tokens_TD, tokens_name, tokens_TD.dtype, {-1, -1});
  const int64_t T = tokens_TD.size[0], D = tokens_TD.size[1];
  call.check(row_TK, "routing.row_TK", Dtype::i32, {T, -1});
  const int64_t K = row_TK.size[1];
  ST_CHECK(T * K < INT32_MAX && D < INT32_MAX, tokens_name, ": more rows than int32 counts");
  call.check(rows_RD, rows_name, tokens_TD.dtype, {T * K, D});
  return {T, K, T * K, D};
}

// Threads of a block that walks one row of `steps` steps.
unsigned threads_for(int64_t steps) {
  return static_cast<unsigned>(std::min<int64_t>(cuda::kRowThreads, (steps + 31) / 32 * 32));
}

// Calls launch(pointer to the element type, std::integral_constant of elements that move together): 16 bytes where all
// rows of all views begin at a multiple of them.
template <typename Launch>
void with_elements(const char* what, std::initializer_list<const View*> views, int64_t D, const Launch& launch) {
  const auto sized = [&](auto* p) {
    constexpr int kTogether = 16 / sizeof(*p);
    bool wide = true;
    for (const View* view : views) wide = wide && cuda::aligned(*view, D * sizeof(*p), 16);
    if (wide)
      launch(p, std::integral_constant<int, kTogether>{});
    else
      launch(p, std::integral_constant<int, 1>{});
  };
  const View& first = **views.begin();
  if (first.dtype == Dtype::bf16) return sized(first.as<bf16>());
  ST_CHECK(first.dtype == Dtype::f32, what, ": expected dtype float32 or bfloat16, got ", name(first.dtype));
  sized(first.as<float>());
}

void combine(const cuda::DeviceCall& call, const char* what, const View& rows, const View& row_TK, const float* weight,
             const Sizes& n, const View& y) {
  if (n.T == 0 || n.D == 0) return;
  with_elements(what, {&rows, &y}, n.D, [&](auto* p, auto together) {
    using X = std::remove_pointer_t<decltype(p)>;
    constexpr int kTogether = decltype(together)::value;
    const int64_t steps = (n.D + kTogether - 1) / kTogether;
    const dim3 grid(static_cast<unsigned>(n.T), cuda::blocks_for(steps, cuda::kCombineThreads));
    const unsigned threads = std::min<unsigned>(cuda::kCombineThreads, cuda::blocks_for(steps, 32) * 32);
    cuda::combine_rows<X, kTogether><<<grid, threads, 0, call.stream>>>(
        p, row_TK.as<int32_t>(), weight, static_cast<int32_t>(n.K), static_cast<uint32_t>(n.R),
        static_cast<int32_t>(n.D), y.as<X>());
  });
  call.launched();
}

}  // namespace

void permute_forward_cuda(const View& x_TD, const View& row_TK, const View& x_RD, int64_t stream) {
  const cuda::DeviceCall call("permute", x_TD, stream);
  const Sizes n = check_rows(call, "x", x_TD, "rows", x_RD, row_TK);
  if (n.R == 0 || n.D == 0) return;
  // A copy: elements of any dtype move as words of the largest size that rows are made of.
  const int64_t bytes = n.D * size_of(x_TD.dtype);
  const auto launch = [&](auto word) {
    using Word = decltype(word);
    const int64_t words = bytes / static_cast<int64_t>(sizeof(Word));
    cuda::spread_rows<Word><<<static_cast<unsigned>(n.T), threads_for(words), 0, call.stream>>>(
        x_TD.as<Word>(), row_TK.as<int32_t>(), static_cast<int32_t>(n.K), static_cast<uint32_t>(n.R),
        static_cast<int32_t>(words), x_RD.as<Word>());
  };
  const auto fits = [&](int64_t step) { return cuda::aligned(x_TD, bytes, step) && cuda::aligned(x_RD, bytes, step); };
  if (fits(16))
    launch(cuda::Pack<uint32_t, 4>{});
  else if (fits(4))
    launch(uint32_t{});
  else
    launch(uint8_t{});
  call.launched();
}

void permute_backward_cuda(const View& dx_RD, const View& row_TK, const View& dx_TD, int64_t stream) {
  const cuda::DeviceCall call("permute", dx_TD, stream);
  const Sizes n = check_rows(call, "dx", dx_TD, "grad", dx_RD, row_TK);
  combine(call, "grad", dx_RD, row_TK, nullptr, n, dx_TD);
}

void unpermute_forward_cuda(const View& y_RD, const View& weight_TK, const View& row_TK, const View& y_TD,
                            int64_t stream) {
  const cuda::DeviceCall call("unpermute", y_TD, stream);
  const Sizes n = check_rows(call, "sum", y_TD, "y", y_RD, row_TK);
  call.check(weight_TK, "routing.weight_TK", Dtype::f32, {n.T, n.K});
  combine(call, "y", y_RD, row_TK, weight_TK.as<float>(), n, y_TD);
}

void unpermute_backward_cuda(const View& dy_TD, const View& y_RD, const View& weight_TK, const View& row_TK,
                             const View& dy_RD, const View& dweight_TK, int64_t stream) {
  const cuda::DeviceCall call("unpermute", dy_TD, stream);
  const Sizes n = check_rows(call, "grad", dy_TD, "y", y_RD, row_TK);
  call.check(weight_TK, "routing.weight_TK", Dtype::f32, {n.T, n.K});
  call.check(dy_RD, "dy", dy_TD.dtype, {n.R, n.D});
  call.check(dweight_TK, "dweight", Dtype::f32, {n.T, n.K});
  if (n.R == 0) return;
  with_elements("grad", {&dy_TD, &y_RD, &dy_RD}, n.D, [&](auto* p, auto together) {
    using X = std::remove_pointer_t<decltype(p)>;
    cuda::spread_gradient<X, decltype(together)::value>
        <<<cuda::blocks_for(n.R, cuda::kRowThreads / 32), cuda::kRowThreads, 0, call.stream>>>(
            p, y_RD.as<X>(), row_TK.as<int32_t>(), weight_TK.as<float>(), static_cast<int32_t>(n.K),
            static_cast<uint32_t>(n.R), static_cast<int32_t>(n.D), dy_RD.as<X>(), dweight_TK.as<float>());
  });
  call.launched();
}

}  // namespace seedthink
