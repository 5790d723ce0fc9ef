#include "common/amx.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace seedthink {
namespace {

// arch_prctl's codes (Linux 5.16, Documentation/arch/x86/xstate.rst); older headers lack them.
constexpr int kRequestPermission = 0x1023, kGetPermission = 0x1022;
constexpr int kTileConfigState = 17, kTileDataState = 18;  // bits of XCR0

struct Registers {
  uint32_t a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(uint32_t leaf, uint32_t part) {
  Registers r;
  if (__get_cpuid_count(leaf, part, &r.a, &r.b, &r.c, &r.d) == 0) return {};
  return r;
}

uint64_t enabled_states() {
  uint32_t low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
}

const char* look() {
  const uint32_t features = cpuid(7, 0).d;
  const bool tile = features >> 24 & 1, bf16 = features >> 22 & 1;
  if (!tile || !bf16) return "this CPU has no amx_tile and amx_bf16";
  const bool xgetbv_allowed = cpuid(1, 0).c >> 27 & 1;
  constexpr uint64_t kBoth = uint64_t{1} << kTileConfigState | uint64_t{1} << kTileDataState;
  if (!xgetbv_allowed || (enabled_states() & kBoth) != kBoth) return "the system does not save tile registers (XCR0)";
  // Palette 1 must be eight tiles of 16 rows of 64 bytes, which is what the code is written for.
  const Registers palette = cpuid(0x1d, 1);
  if (palette.b >> 16 != 8 || (palette.b & 0xffff) != 64 || (palette.c & 0xffff) != 16)
    return "this CPU's tiles are not eight of 16 rows of 64 bytes";
  // Linux gives a process room for tile data when it asks; threads and forked children have it from then on.
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileDataState) != 0)
    return "the kernel refuses tile data (arch_prctl ARCH_REQ_XCOMP_PERM)";
  uint64_t granted = 0;
  if (syscall(SYS_arch_prctl, kGetPermission, &granted) != 0 || (granted >> kTileDataState & 1) == 0)
    return "the kernel grants no tile data (arch_prctl ARCH_GET_XCOMP_PERM)";
  return nullptr;
}

}  // namespace

const char* amx_refusal() {
  static const char* const reason = look();
  return reason;
}

}  // namespace seedthink
