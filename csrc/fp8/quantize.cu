// Host side of FP8 on CUDA: checks and launches.
#include <algorithm>

#include "common/device_call.h"
#include "fp8/quantize_cuda.h"
#include "fp8/quantize_kernels.cuh"

namespace seedthink {
namespace {

using cuda::aligned;

int64_t ceil_div(int64_t a, int64_t b) { return a > 0 ? (a - 1) / b + 1 : 0; }

// Calls launch(pointer to x's type, format of the codes).
template <typename Launch>
void with_types(const View& x, const View& codes, const Launch& launch) {
  const auto typed = [&](auto* p) {
    if (codes.dtype == Dtype::f8e4m3) return launch(p, cuda::E4M3{});
    ST_CHECK(codes.dtype == Dtype::f8e5m2, "codes: expected dtype float8_e4m3fn or float8_e5m2, got ", name(codes.dtype));
    launch(p, cuda::E5M2{});
  };
  if (x.dtype == Dtype::bf16) return typed(x.as<bf16>());
  ST_CHECK(x.dtype == Dtype::f32, "x: expected dtype float32 or bfloat16, got ", name(x.dtype));
  typed(x.as<float>());
}

// Whether codes from `codes` on can be written 16 at a time, and rows are whole groups.
template <typename X>
bool whole(const cuda::Quantize<X>& call) {
  return call.wide && call.N % cuda::kGroup == 0 && reinterpret_cast<uintptr_t>(call.codes) % 16 == 0;
}

template <bool CARRY, typename F, typename X>
void launch_quantize(const cuda::Quantize<X>& call, int64_t block_rows, int64_t block_columns, int64_t P, int64_t Q,
                     cudaStream_t stream) {
  constexpr int kThreads = cuda::kCodeThreads;
  if (block_rows == 1 && block_columns == cuda::kGroup) {
    const unsigned grid = cuda::blocks_for(call.M * Q * cuda::kGroupLanes, kThreads);
    if (!whole(call))
      cuda::quantize_groups<F, CARRY><<<grid, kThreads, 0, stream>>>(call);
    else if (call.row_MK == nullptr)
      cuda::quantize_whole_groups<F, CARRY>
          <<<cuda::blocks_for(call.M * Q, cuda::kBlockGroups<CARRY, X>), kThreads, 0, stream>>>(call);
    else
      cuda::spread_whole_groups<F><<<grid, kThreads, 0, stream>>>(call);
  } else if (block_rows == cuda::kSquare && block_columns == cuda::kSquare && whole(call)) {
    cuda::quantize_squares<F, CARRY><<<static_cast<unsigned>(P * Q), kThreads, 0, stream>>>(call);
  } else {
    const cuda::Cut cut{block_rows, block_columns, Q};
    cuda::quantize_blocks<F, CARRY><<<static_cast<unsigned>(P * Q), kThreads, 0, stream>>>(call, cut);
  }
}

// Blocks of norm_quantize that run at a time: its launch bound leaves registers for as many threads to a processor.
int64_t resident_norms(int device, unsigned threads) {
  int processors = 0;
  cuda::require(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "rms_norm_fp8",
                "multiprocessors");
  return int64_t{processors} * (cuda::kMostNormThreads / threads);
}

}  // namespace

void fp8_quantize_cuda(const View& x_MN, const View& residual_MN, const View& previous_PQ, int64_t block_rows,
                       int64_t block_columns, bool power_of_two, double headroom, double low, double high,
                       const View& codes_MN, const View& scale_PQ, const View& left_MN, int64_t stream) {
  const cuda::DeviceCall call("quantize_fp8", x_MN, stream);
  call.check(x_MN, "x", x_MN.dtype, {-1, -1});
  const int64_t M = x_MN.size[0], N = x_MN.size[1];
  ST_CHECK(block_rows > 0 && block_columns > 0, "block: ", block_rows, " x ", block_columns, " must be positive");
  const int64_t P = ceil_div(M, block_rows), Q = ceil_div(N, block_columns);
  ST_CHECK(P * Q < INT32_MAX && M < INT32_MAX && N < INT32_MAX, "x: more blocks than int32 counts");
  ST_CHECK(headroom >= 1. && headroom <= 256., "headroom: ", headroom, " is outside 1 to 256");
  ST_CHECK(low >= 0. && low <= high, "band: ", low, " to ", high, " is not a band");
  call.check(codes_MN, "codes", codes_MN.dtype, {M, N});
  call.check(scale_PQ, "scale", Dtype::f32, {P, Q});
  if (previous_PQ) call.check(previous_PQ, "previous", Dtype::f32, {P, Q});
  if (residual_MN) {
    call.check(residual_MN, "residual", Dtype::bf16, {M, N});
    call.check(left_MN, "left", Dtype::bf16, {M, N});
  }
  if (M == 0 || N == 0) return;
  with_types(x_MN, codes_MN, [&](auto* x, auto format) {
    using X = std::remove_pointer_t<decltype(x)>;
    constexpr int64_t kN = cuda::kStep<X>;
    const bool wide = block_columns % kN == 0 && aligned(x_MN, N * sizeof(X), 16) && aligned(codes_MN, N, kN) &&
                      (!residual_MN || (aligned(residual_MN, 2 * N, 2 * kN) && aligned(left_MN, 2 * N, 2 * kN)));
    const cuda::Scaling how{previous_PQ.as<float>(), power_of_two, static_cast<float>(headroom), static_cast<float>(low),
                            static_cast<float>(high)};
    const cuda::Quantize<X> what{x, residual_MN.as<bf16>(), how, M, N, nullptr, 1, M, wide, codes_MN.as<uint8_t>(),
                                 scale_PQ.as<float>(), left_MN.as<bf16>()};
    if (residual_MN)
      launch_quantize<true, decltype(format)>(what, block_rows, block_columns, P, Q, call.stream);
    else
      launch_quantize<false, decltype(format)>(what, block_rows, block_columns, P, Q, call.stream);
  });
  call.launched();
}

void fp8_permute_cuda(const View& x_TD, const View& row_TK, bool power_of_two, const View& codes_RD,
                      const View& scale_RQ, int64_t stream) {
  const cuda::DeviceCall call("permute_fp8", x_TD, stream);
  call.check(x_TD, "x", x_TD.dtype, {-1, -1});
  const int64_t T = x_TD.size[0], D = x_TD.size[1], Q = ceil_div(D, cuda::kGroup);
  call.check(row_TK, "routing.row_TK", Dtype::i32, {T, -1});
  const int64_t K = row_TK.size[1], R = T * K;
  ST_CHECK(R < INT32_MAX && T * Q < INT32_MAX, "x: more rows than int32 counts");
  call.check(codes_RD, "codes", codes_RD.dtype, {R, D});
  call.check(scale_RQ, "scale", Dtype::f32, {R, Q});
  if (R == 0 || D == 0) return;
  with_types(x_TD, codes_RD, [&](auto* x, auto format) {
    using X = std::remove_pointer_t<decltype(x)>;
    const bool wide = aligned(x_TD, D * sizeof(X), 16) && aligned(codes_RD, D, cuda::kStep<X>);
    const cuda::Quantize<X> what{x, nullptr, cuda::plain_scaling(power_of_two), T, D, row_TK.as<int32_t>(),
                                 static_cast<int32_t>(K), R, wide, codes_RD.as<uint8_t>(), scale_RQ.as<float>(),
                                 nullptr};
    launch_quantize<false, decltype(format)>(what, 1, cuda::kGroup, T, Q, call.stream);
  });
  call.launched();
}

void fp8_rms_norm_cuda(const View& x_TD, const View& weight_D, double eps, bool power_of_two, const View& codes_TD,
                       const View& scale_TQ, const View& rstd_T, int64_t stream) {
  const cuda::DeviceCall call("rms_norm_fp8", x_TD, stream);
  call.check(x_TD, "x", x_TD.dtype, {-1, -1});
  const int64_t T = x_TD.size[0], D = x_TD.size[1];
  ST_CHECK(D > 0 && D % cuda::kGroup == 0 && D <= cuda::kMostNormThreads * cuda::kOwn, "x: width ", D,
           " is not a multiple of 128 up to ", cuda::kMostNormThreads * cuda::kOwn);
  ST_CHECK(T < INT32_MAX, "x: more rows than int32 counts");
  call.check(weight_D, "weight", Dtype::f32, {D});
  call.check(codes_TD, "codes", codes_TD.dtype, {T, D});
  call.check(scale_TQ, "scale", Dtype::f32, {T, D / cuda::kGroup});
  if (rstd_T) call.check(rstd_T, "rstd", Dtype::f32, {T});
  if (T == 0) return;
  with_types(x_TD, codes_TD, [&](auto* x, auto format) {
    using X = std::remove_pointer_t<decltype(x)>;
    ST_CHECK(aligned(x_TD, D * sizeof(X), 16) && aligned(codes_TD, D, cuda::kStep<X>),
             "x: must begin at a multiple of 16 bytes");
    const unsigned threads = cuda::blocks_for(D / cuda::kOwn, 32) * 32;
    const cuda::Norm<X> what{x, weight_D.as<float>(), static_cast<float>(eps), static_cast<int32_t>(T),
                             static_cast<int32_t>(D), power_of_two, aligned(weight_D, 0, 16),
                             codes_TD.as<uint8_t>(), scale_TQ.as<float>(), rstd_T.as<float>()};
    const auto blocks = static_cast<unsigned>(std::min(T, resident_norms(x_TD.device, threads)));
    cuda::norm_quantize<decltype(format)><<<blocks, threads, 0, call.stream>>>(what);
  });
  call.launched();
}

}  // namespace seedthink
