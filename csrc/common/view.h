// What C++ sees of a tensor: pointer, dtype, sizes, strides, device. No torch headers, no Python.
#pragma once

#include <cstdint>
#include <string>

#include "common/check.h"

namespace seedthink {

enum class Dtype : int8_t { none, f32, bf16, f64, i32, i64, u8, b8, f8e4m3, f8e5m2 };

inline const char* name(Dtype dtype) {
  static constexpr const char* kNames[] = {"none",  "float32", "bfloat16",     "float64",    "int32",
                                           "int64", "uint8",   "bool", "float8_e4m3fn", "float8_e5m2"};
  return kNames[static_cast<int>(dtype)];
}

inline int64_t size_of(Dtype dtype) {
  static constexpr int64_t kBytes[] = {0, 4, 2, 8, 4, 8, 1, 1, 1, 1};
  return kBytes[static_cast<int>(dtype)];
}

struct bf16 {
  uint16_t bits;
};

// A tensor argument. An absent optional tensor has `dtype == none` and a null pointer.
struct View {
  static constexpr int kMaxDims = 6;
  void* pointer = nullptr;
  int64_t size[kMaxDims] = {};
  int64_t stride[kMaxDims] = {};
  int dims = 0;
  Dtype dtype = Dtype::none;
  bool cuda = false;
  int device = -1;  // index of the CUDA device

  explicit operator bool() const { return dtype != Dtype::none; }

  int64_t numel() const {
    int64_t n = 1;
    for (int i = 0; i < dims; ++i) n *= size[i];
    return n;
  }

  bool contiguous() const {
    if (numel() == 0) return true;
    int64_t expected = 1;
    for (int i = dims - 1; i >= 0; --i) {
      if (size[i] != 1 && stride[i] != expected) return false;
      expected *= size[i];
    }
    return true;
  }

  template <typename T>
  T* as() const {
    return static_cast<T*>(pointer);
  }

  // The checks every kernel starts with. `what` is the argument's name as Python spells it.
  // A negative entry of `sizes` means "any"; rows may be strided only where the kernel says so.
  const View& check(const char* what, Dtype expected, std::initializer_list<int64_t> sizes, bool dense = true) const {
    ST_CHECK(dtype == expected, what, ": expected dtype ", name(expected), ", got ", name(dtype));
    ST_CHECK(!cuda, what, ": expected a CPU tensor");
    ST_CHECK(dims == static_cast<int>(sizes.size()), what, ": expected ", sizes.size(), " dimensions, got ", dims);
    int i = 0;
    for (int64_t want : sizes) {
      ST_CHECK(want < 0 || size[i] == want, what, ": dimension ", i, " is ", size[i], ", expected ", want);
      ++i;
    }
    ST_CHECK(!dense || contiguous(), what, ": must be contiguous");
    return *this;
  }
};

}  // namespace seedthink
