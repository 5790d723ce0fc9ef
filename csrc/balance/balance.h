// Items shared out over parts of like cost. The contract stands in kernels/balance.py.
#pragma once

#include "common/view.h"

namespace seedthink {

// part_N int64: the part of each item.
void karmarkar_karp(const View& cost_N, int64_t parts, bool equal_size, const View& part_N);
void within_budget(const View& cost_N, const View& size_N, int64_t budget, int64_t multiple, const View& part_N);

}  // namespace seedthink
