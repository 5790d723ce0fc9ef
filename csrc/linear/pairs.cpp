#include "linear/pairs.h"

#include <atomic>
#include <initializer_list>

#include "common/amx.h"

namespace seedthink {
namespace {

struct Choice {
  Pairs pairs;
  const char* note;
  bool documented = true;
};

Choice choose() {
  if (asked_isa("amx_emulated")) return {Pairs::tiles_emulated, "emulated: SEEDTHINK_ISA=amx_emulated"};
  const Pairs without = has_bf16_dot() ? Pairs::dot : Pairs::widen;
  for (const char* other : {"portable", "avx2", "avx512"})
    if (asked_isa(other)) return {without, "not used: SEEDTHINK_ISA asks for another instruction set"};
  if (const char* reason = amx_refusal()) return {without, reason};
  if (without != Pairs::dot) return {without, "not used: it wants avx512bf16 beside it"};
  const TileCheck check = ST_PICK(check_tiles)();
  if (check.failure != nullptr) return {without, check.failure};
  return {Pairs::tiles, "in use", check.documented};
}

const Choice& choice() {
  static const Choice made = choose();
  return made;
}

std::atomic<bool> emulated{false};

}  // namespace

Pairs pairs() { return emulated.load(std::memory_order_relaxed) ? Pairs::tiles_emulated : choice().pairs; }

void emulate_amx(bool on) { emulated.store(on); }

const char* amx_note() { return emulated.load() ? "emulated: asked for by emulate_amx" : choice().note; }

const char* device_class() {
  const bool wide = isa() == Isa::avx512;
  switch (pairs()) {
    case Pairs::widen:
      return wide ? "avx512" : isa() == Isa::avx2 ? "avx2" : "portable";
    case Pairs::dot:
      return "avx512-bf16";
    case Pairs::tiles:
      return choice().documented ? "avx512-amx" : "avx512-amx-undocumented";
    default:
      return wide ? "avx512-amx_emulated" : isa() == Isa::avx2 ? "avx2-amx_emulated" : "portable-amx_emulated";
  }
}

}  // namespace seedthink
