// Whether this process may use matrix tiles (Intel AMX) with bfloat16 products.
#pragma once

namespace seedthink {

// Null when it may: the CPU has them and the system has granted this process their state. Else the reason why not.
const char* amx_refusal();

}  // namespace seedthink
