// Instruction sets. A kernel file is compiled once per set with ST_ISA naming the namespace; the choice is made at run
// time. Bits are promised within one device class: the set, and the way of bfloat16 products (linear/pairs.h).
#pragma once

namespace seedthink {

enum class Isa { portable, avx2, avx512 };

Isa isa();                          // the best this CPU has, or what SEEDTHINK_ISA asks for
bool asked_isa(const char* name);   // whether SEEDTHINK_ISA is `name`
bool has_bf16_dot();                // vdpbf16ps

}  // namespace seedthink

// Declares one function in every instruction set's namespace; ST_PICK calls the one of this CPU.
#define ST_DECLARE(declaration)                       \
  namespace seedthink::avx512 { declaration; }        \
  namespace seedthink::avx2 { declaration; }          \
  namespace seedthink::portable { declaration; }

#define ST_PICK(function)                                                   \
  (::seedthink::isa() == ::seedthink::Isa::avx512 ? ::seedthink::avx512::function \
   : ::seedthink::isa() == ::seedthink::Isa::avx2 ? ::seedthink::avx2::function   \
                                                  : ::seedthink::portable::function)
