// SwiGLU and its backward. Shapes and formulas stand in kernels/activation.py.
#pragma once

#include "common/isa.h"
#include "common/view.h"

ST_DECLARE(void swiglu_forward(const View& gate_up_T_2I, const View& y_TI))
ST_DECLARE(void swiglu_backward(const View& dy_TI, const View& gate_up_T_2I, const View& dgate_up_T_2I))
