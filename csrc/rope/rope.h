// Rotary position embedding, half-split layout. Shapes and formulas stand in kernels/rope.py.
#pragma once

#include "common/isa.h"
#include "common/view.h"

// `back` turns by the opposite angle, which is the derivative.
ST_DECLARE(void rope_turn(const View& x_TNH, const View& table, const View& positions_T, bool back, const View& y_TNH))
