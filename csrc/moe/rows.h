// Rows of the experts: how a cache line of float32 or bfloat16 reads as floats, how it is written past the caches, and
// the weighted sum of a token's rows.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "common/tuning.h"
#include "linear/gemm.h"

namespace seedthink::ST_ISA {

typedef uint32_t vu_u __attribute__((vector_size(64), aligned(1), may_alias));
constexpr int64_t kLineBytes = 64;

// Above this many bytes (more than a last cache is likely to spare) a result is written past the caches: it would be
// gone from them before it is read, and each of its lines would be fetched before it is overwritten.
constexpr int64_t kStreamBytes = int64_t{16} << 20;

// One line as kParts vectors of floats, in an order of its own; write() undoes read().
struct Floats {
  using Element = float;
  static constexpr Dtype kDtype = Dtype::f32;
  static constexpr int kParts = 1;
  static void read(const float* p, vf* v) { v[0] = load(p); }
  static vu pack(const vf* v) { return reinterpret_cast<vu>(v[0]); }
};

struct Halves {  // even elements, then odd ones
  using Element = bf16;
  static constexpr Dtype kDtype = Dtype::bf16;
  static constexpr int kParts = 2;
  static void read(const bf16* p, vf* v) {
    const vu pairs = *reinterpret_cast<const vu_u*>(p);
    v[0] = reinterpret_cast<vf>(pairs << 16);
    v[1] = reinterpret_cast<vf>(pairs & 0xffff0000u);
  }
  static vu pack(const vf* v) { return (rounded(v[0]) >> 16) | (rounded(v[1]) & 0xffff0000u); }

 private:
  // To nearest even, as round_bf16 does; the result is the upper half of each lane.
  static vu rounded(vf x) {
    const vu u = reinterpret_cast<vu>(x);
    const vu near = u + 0x7fffu + ((u >> 16) & 1u);
    return reinterpret_cast<vu>(select(level(x, x), reinterpret_cast<vf>(near), reinterpret_cast<vf>(u | 0x400000u)));
  }
};

template <typename Kind>
constexpr int64_t kLine = kLineBytes / sizeof(typename Kind::Element);

// The first n elements of a line; the others read as zero and are not touched in memory.
template <typename Kind>
inline void read_some(const typename Kind::Element* p, int64_t n, vf* v) {
  if (n == kLine<Kind>) return Kind::read(p, v);
  alignas(64) typename Kind::Element line[kLine<Kind>] = {};
  std::memcpy(line, p, n * sizeof *p);
  Kind::read(line, v);
}

inline void stream_line(void* p, vu v) {
#if defined(__AVX512F__)
  _mm512_stream_si512(static_cast<__m512i*>(p), (__m512i)v);
#else
  union { vu all; __m128i quarter[4]; } x{v};
  for (int i = 0; i < 4; ++i) _mm_stream_si128(static_cast<__m128i*>(p) + i, x.quarter[i]);
#endif
}

template <typename Kind>
inline void write_some(typename Kind::Element* p, const vf* v, int64_t n, bool stream) {
  const vu line = Kind::pack(v);
  if (stream) return stream_line(p, line);
  std::memcpy(p, &line, n * sizeof *p);
}

// Whether the rows of a result are to be streamed: large, and made of whole lines. Memory that was never written gets its
// pages at the first write, one fault each; where the system grants huge pages on request there are 512 times fewer.
inline bool streams(void* p, int64_t rows, int64_t row_bytes) {
  const auto at = reinterpret_cast<uintptr_t>(p);
  if (rows * row_bytes < kStreamBytes || row_bytes % kLineBytes != 0 || at % kLineBytes != 0) return false;
#if defined(__linux__)
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE)), begin = (at + page - 1) / page * page;
  madvise(reinterpret_cast<void*>(begin), at + rows * row_bytes - begin, MADV_HUGEPAGE);  // may be refused
#endif
  return true;
}

// Calls f(i, live) for each line of a row of D elements; `live` of it exist.
template <typename Kind, typename F>
inline void for_lines(int64_t D, const F& f) {
  int64_t i = 0;
  for (; i + kLine<Kind> <= D; i += kLine<Kind>) f(i, kLine<Kind>);
  if (i < D) f(i, D - i);
}

constexpr int64_t kCombine = 32768;  // elements that a thread combines at a time

// Tokens that a thread takes at a time: about 128 KiB of their rows.
inline int64_t token_grain(int64_t K, int64_t row_bytes) { return 1 + (int64_t{128} << 10) / (K * row_bytes + 1); }

// y[t] = sum over a token's K rows, in expert order and in fp32 (a chain of fused multiply-adds from zero), of
// weight * row; a null weight counts as one. The rows of the next token are asked for while this one's are summed: a
// gathered row comes too late by itself.
template <typename Kind>
void combine(const typename Kind::Element* rows, const int32_t* row_TK, const float* weight_TK, int64_t T, int64_t K,
             int64_t D, typename Kind::Element* y) {
  const int64_t row_bytes = D * sizeof *rows;
  const bool stream = streams(y, T, row_bytes);
  const Launch launch = tuned(Op::experts, kCombine);
  parallel(launch, T, launch.rows(K * D), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int32_t *row = row_TK + t * K, *next = t + 1 < T ? row + K : row;
      for_lines<Kind>(D, [&](int64_t i, int64_t live) {
        vf acc[Kind::kParts] = {};
        for (int64_t k = 0; k < K; ++k) {
          vf v[Kind::kParts];
          read_some<Kind>(rows + row[k] * D + i, live, v);
          __builtin_prefetch(rows + next[k] * D + i);
          const vf weight = splat(weight_TK != nullptr ? weight_TK[t * K + k] : 1.f);
          for (int part = 0; part < Kind::kParts; ++part) acc[part] = fma(weight, v[part], acc[part]);
        }
        write_some<Kind>(y + t * D + i, acc, live, stream);
      });
    }
    if (stream) _mm_sfence();
  });
}

// Rows are used as places in memory, by several threads: each must be one row of its own token. A token's rows ascend.
inline void check_rows(const View& row_TK, const View& token_R, int64_t T, int64_t K) {
  row_TK.check("routing.row_TK", Dtype::i32, {T, K});
  token_R.check("routing.token_R", Dtype::i32, {T * K});
  const int32_t *row = row_TK.as<int32_t>(), *token = token_R.as<int32_t>();
  for (int64_t t = 0, i = 0; t < T; ++t)
    for (int64_t k = 0; k < K; ++k, ++i)
      ST_CHECK(row[i] >= 0 && row[i] < T * K && token[row[i]] == t && (k == 0 || row[i - 1] < row[i]),
               "routing.row_TK: entry ", i, " is not a row of its token, or rows do not ascend");
}

}  // namespace seedthink::ST_ISA
