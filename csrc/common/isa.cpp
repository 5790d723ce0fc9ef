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
  if (asked_isa("portable")) return Isa::portable;
  if (asked_isa("avx2") && best != Isa::portable) return Isa::avx2;
  return best;
}

}  // namespace

bool asked_isa(const char* name) {
  const char* asked = std::getenv("SEEDTHINK_ISA");
  return asked != nullptr && std::strcmp(asked, name) == 0;
}

Isa isa() {
  static const Isa chosen = detect();
  return chosen;
}

bool has_bf16_dot() {
  static const bool yes = isa() == Isa::avx512 && __builtin_cpu_supports("avx512bf16");
  return yes;
}

}  // namespace seedthink
