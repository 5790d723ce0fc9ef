#include "common/isa.h"

#include <cstdlib>
#include <cstring>

namespace seedthink {
namespace {

Isa detect() {
  __builtin_cpu_init();
  Isa best = Isa::portable;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) best = Isa::avx2;
  if (best == Isa::avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    best = Isa::avx512;
  if (const char* asked = std::getenv("SEEDTHINK_ISA")) {
    if (std::strcmp(asked, "portable") == 0) return Isa::portable;
    if (std::strcmp(asked, "avx2") == 0 && best != Isa::portable) return Isa::avx2;
  }
  return best;
}

}  // namespace

Isa isa() {
  static const Isa chosen = detect();
  return chosen;
}

bool has_bf16_dot() {
  static const bool yes = isa() == Isa::avx512 && __builtin_cpu_supports("avx512bf16");
  return yes;
}

const char* isa_name() {
  if (isa() == Isa::avx512) return has_bf16_dot() ? "avx512-bf16" : "avx512";
  return isa() == Isa::avx2 ? "avx2" : "portable";
}

}  // namespace seedthink
