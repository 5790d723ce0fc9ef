// How bfloat16 products are computed on this machine; each way is a device class of its own.
#pragma once

#include "common/isa.h"

namespace seedthink {

enum class Pairs {
  widen,           // two fused multiply-adds
  dot,             // vdpbf16ps
  tiles,           // AMX: tdpbf16ps
  tiles_emulated,  // the same bits computed slowly on any CPU, for tests
};

// The best this machine has, or what SEEDTHINK_ISA asks for. AMX must have passed check_tiles() in this process.
Pairs pairs();

// Names everything that bits may depend on: the instruction set and the way of bfloat16 products.
const char* device_class();

// One phrase: AMX is in use, or why not.
const char* amx_note();

// For tests: from now on bfloat16 products run on emulated tiles, or as before. Packed weights serve both.
void emulate_amx(bool on);

}  // namespace seedthink

namespace seedthink {
struct TileCheck {
  const char* failure;  // null when tiles may be used
  bool documented;      // whether sums that have to be rounded have the bits that Intel documents
};
}  // namespace seedthink

// A few small products on AMX against the emulation. Call it only where amx_refusal() is null.
ST_DECLARE(TileCheck check_tiles())
