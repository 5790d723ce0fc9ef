// The pieces attention is made of: one register-blocked product, the page layout, the rounding of keys and values.
#pragma once

#include <vector>

#include "common/simd.h"

namespace seedthink::ST_ISA::attention {

constexpr int64_t kPage = 16;  // positions of a page: one vector of keys

// Registers decide how many vectors a block of the product holds; the bits do not depend on it.
#if defined(__AVX512F__)
constexpr int kBlockVectors = 4;
#else
constexpr int kBlockVectors = 1;
#endif
constexpr int kBlockRows = 4;

// C[i][j] (+)= sum over b ascending of A(i, b) * B(b, j), one fused chain per element. A(i, b) = a[i * a_row + b * a_step];
// B(b, j) points at the j-th vector of 16 for step b; C's vectors stand c_vec floats apart.
template <int ROWS, int VECS, typename B>
inline void block_product(const float* a, int64_t a_row, int64_t a_step, int64_t begin, int64_t end, const B& b, int64_t j0,
                          float* c, int64_t c_row, int64_t c_vec, bool add) {
  vf acc[ROWS][VECS];
#pragma GCC unroll 4
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < VECS; ++j) acc[i][j] = add ? load(c + i * c_row + (j0 + j) * c_vec) : splat(0.f);
  for (int64_t step = begin; step < end; ++step) {
    vf right[VECS];
#pragma GCC unroll 4
    for (int j = 0; j < VECS; ++j) right[j] = load(b(step, j0 + j));
#pragma GCC unroll 4
    for (int i = 0; i < ROWS; ++i) {
      const vf left = splat(a[i * a_row + step * a_step]);
#pragma GCC unroll 4
      for (int j = 0; j < VECS; ++j) acc[i][j] = fma(left, right[j], acc[i][j]);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < VECS; ++j) store(c + i * c_row + (j0 + j) * c_vec, acc[i][j]);
}

template <int ROWS, typename B>
inline void row_product(const float* a, int64_t a_row, int64_t a_step, int64_t begin, int64_t end, const B& b, int64_t vectors,
                        float* c, int64_t c_row, int64_t c_vec, bool add) {
  int64_t j = 0;
  for (; j + kBlockVectors <= vectors; j += kBlockVectors)
    block_product<ROWS, kBlockVectors>(a, a_row, a_step, begin, end, b, j, c, c_row, c_vec, add);
  if constexpr (kBlockVectors > 2)
    for (; j + 2 <= vectors; j += 2) block_product<ROWS, 2>(a, a_row, a_step, begin, end, b, j, c, c_row, c_vec, add);
  for (; j < vectors; ++j) block_product<ROWS, 1>(a, a_row, a_step, begin, end, b, j, c, c_row, c_vec, add);
}

// The same for any number of rows.
template <typename B>
inline void product(int64_t rows, const float* a, int64_t a_row, int64_t a_step, int64_t begin, int64_t end, const B& b,
                    int64_t vectors, float* c, int64_t c_row, int64_t c_vec, bool add) {
  int64_t i = 0;
  for (; i + kBlockRows <= rows; i += kBlockRows)
    row_product<kBlockRows>(a + i * a_row, a_row, a_step, begin, end, b, vectors, c + i * c_row, c_row, c_vec, add);
  if (i + 2 <= rows) {
    row_product<2>(a + i * a_row, a_row, a_step, begin, end, b, vectors, c + i * c_row, c_row, c_vec, add);
    i += 2;
  }
  if (i < rows)
    row_product<1>(a + i * a_row, a_row, a_step, begin, end, b, vectors, c + i * c_row, c_row, c_vec, add);
}

// Sixteen vectors become their transpose: four rounds of pairwise interleaving.
inline void transpose(vf (&v)[kLanes]) {
  constexpr vi low = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
  constexpr vi high = {8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  vf w[kLanes];
#pragma GCC unroll 2
  for (int twice = 0; twice < 2; ++twice) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      w[2 * i] = __builtin_shuffle(v[i], v[i + 8], low);
      w[2 * i + 1] = __builtin_shuffle(v[i], v[i + 8], high);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      v[2 * i] = __builtin_shuffle(w[i], w[i + 8], low);
      v[2 * i + 1] = __builtin_shuffle(w[i], w[i + 8], high);
    }
  }
}

// To bfloat16 and back, nearest even; NaN stays NaN. The same numbers as round_bf16 and widen.
inline vf through_bf16(vf x) {
  const vu u = reinterpret_cast<vu>(x);
  const vu rounded = (u + 0x7fffu + ((u >> 16) & 1u)) & 0xffff0000u;
  return x == x ? reinterpret_cast<vf>(rounded) : x;
}

// row(t) [H] of each position -> panels [page][H][16]. Lanes past the last position hold zeros.
template <typename Row>
inline void key_panels(const Row& row, int64_t positions, int64_t H, bool round, float* panels) {
  for (int64_t t = 0; t < positions; t += kPage, panels += H * kPage) {
    const int lanes = static_cast<int>(positions - t < kPage ? positions - t : kPage);
    for (int64_t h = 0; h < H; h += kLanes) {
      vf v[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        v[i] = i < lanes ? load(row(t + i) + h) : splat(0.f);
        if (round) v[i] = through_bf16(v[i]);
      }
      transpose(v);
      for (int i = 0; i < kLanes; ++i) store(panels + (h + i) * kPage, v[i]);
    }
  }
}

// row(t) [H] of each position -> the same, dense.
template <typename Row>
inline void dense_rows(const Row& row, int64_t positions, int64_t H, bool round, float* out) {
  for (int64_t t = 0; t < positions; ++t)
    for (int64_t h = 0; h < H; h += kLanes) {
      const vf x = load(row(t) + h);
      store(out + t * H + h, round ? through_bf16(x) : x);
    }
}

// Memory of a thread that grows and stays; a kernel carves its buffers out of it.
inline float* scratch(int64_t floats) {
  thread_local std::vector<float> memory;
  if (static_cast<int64_t>(memory.size()) < floats + kLanes) memory.resize(floats + kLanes);
  const auto address = reinterpret_cast<uintptr_t>(memory.data());
  return reinterpret_cast<float*>((address + 63) & ~uintptr_t{63});
}

}  // namespace seedthink::ST_ISA::attention
