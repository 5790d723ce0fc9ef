// The unit of a packed matrix: 64 columns over the whole reduction.
#pragma once

#include <cstdint>

namespace seedthink {

constexpr int64_t kPanel = 64;

inline int64_t panel_count(int64_t n) { return (n + kPanel - 1) / kPanel; }

}  // namespace seedthink
