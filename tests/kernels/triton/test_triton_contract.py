"""What holds for the Triton side without running a kernel: wiring, results' shapes, refused arguments, lazy loading."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from offline import launching_nothing, meta
from torch import Tensor

import seedthink.kernels.experts  # noqa: F401 (register)
from seedthink.kernels import activation, attention, fp8_linear, linear, logprob, norm, rope  # noqa: F401 (register)
from seedthink.kernels.triton import (
    attention as attention_kernels,
)
from seedthink.kernels.triton import (
    experts,
    fp8,
    fp8_matmul,
    permute,
    rms_norm,
    swiglu,
)
from seedthink.kernels.triton import linear as linear_kernels
from seedthink.kernels.triton import logprob as logprob_kernels
from seedthink.kernels.triton import rope as rope_kernels

KERNELS = Path(__file__).parents[3] / "kernels"
F32, I32, I64 = torch.float32, torch.int32, torch.int64


def f32(*shape: int) -> Tensor:
    return meta(*shape, dtype=F32)


def i32(*shape: int) -> Tensor:
    return meta(*shape, dtype=I32)


def wired() -> list[tuple[str, str, str]]:
    """(schema, module, function) of every operator defined with `cuda=from_triton(...)`."""
    found = []
    for path in sorted(KERNELS.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "define":
                for keyword in node.keywords:
                    if keyword.arg == "cuda" and ast.unparse(keyword.value).startswith("from_triton("):
                        assert isinstance(keyword.value, ast.Call)
                        names = [each.value for each in keyword.value.args if isinstance(each, ast.Constant)]
                        schema = node.args[0]
                        assert isinstance(schema, ast.Constant)
                        found.append((str(schema.value), *map(str, names)))
    return found  # type: ignore[return-value]


@pytest.mark.parametrize(("schema", "module", "function"), wired())
def test_an_operator_names_a_function_that_takes_its_arguments(schema: str, module: str, function: str) -> None:
    arguments = torch._C.parse_schema(f"seedthink::{schema}").arguments
    called = getattr(import_module(f"seedthink.kernels.triton.{module}"), function)
    inspect.signature(called).bind(*arguments)
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"seedthink::{schema.split('(')[0]}", "CUDA")


def test_operators_are_wired_at_all() -> None:
    assert len(wired()) >= 16


PLACES = (f32(6, 2), i32(5), i32(6, 2), i32(12))  # weight_TK, offsets_E1, row_TK, token_R of 4 experts
CALLS: dict[str, tuple[Any, ...]] = {
    "rms_norm": (f32(6, 8), f32(8), 1e-6),
    "rms_norm_backward": (f32(6, 8), f32(6, 8), f32(8), f32(6)),
    "add_rms_norm": (f32(6, 8), f32(6, 8), f32(8), 1e-6),
    "add_rms_norm_backward": (f32(6, 8), f32(6, 8), f32(6, 8), f32(8), f32(6)),
    "swiglu": (f32(6, 8),),
    "swiglu_backward": (f32(6, 4), f32(6, 8)),
    "rope": (f32(6, 2, 8), f32(40, 8), i32(6), False),
    "linear": (f32(6, 8), f32(5, 8), torch.bfloat16),
    "linear_input_grad": (f32(6, 5), f32(5, 8), F32),
    "linear_weight_grad": (f32(6, 5), f32(6, 8), torch.bfloat16),
    "linear_logprob": (f32(6, 8), f32(5, 8), meta(6, dtype=I64), 1.0, F32),
    "linear_logprob_backward": (
        *(f32(6), f32(6), f32(6, 8), f32(5, 8), meta(6, dtype=I64)),
        *(meta(6, 4, dtype=torch.float64), 1.0, torch.bfloat16),
    ),
    "experts": (f32(6, 8), *PLACES, f32(4, 6, 8), f32(4, 8, 3), torch.bfloat16),
    "experts_backward": (f32(6, 8), f32(6, 8), *PLACES, f32(4, 6, 8), f32(4, 8, 3), f32(12, 6), torch.bfloat16),
    "fp8_linear": (
        *(meta(6, 256, dtype=torch.uint8), f32(6, 2), meta(140, 256, dtype=torch.uint8), f32(2, 2)),
        *("e4m3", "e4m3", False),
    ),
    "attend_packed": (f32(6, 4, 16), f32(6, 2, 16), f32(6, 2, 16), i32(3), i32(2), 0.3, True),
    "attend_packed_backward": (
        *(f32(6, 4, 16), f32(6, 4, 16), f32(6, 2, 16), f32(6, 2, 16), f32(6, 4, 16), f32(6, 4)),
        *(i32(3), i32(2), 0.3, True),
    ),
}


def kinds(results: Tensor | tuple[Tensor, ...]) -> list[tuple[torch.Size, torch.dtype]]:
    return [(each.shape, each.dtype) for each in (results if isinstance(results, tuple) else (results,))]


@pytest.mark.parametrize(("schema", "module", "function"), wired())
def test_a_kernel_returns_what_the_shape_function_says(schema: str, module: str, function: str) -> None:
    name = schema.split("(")[0]
    with launching_nothing():
        results = getattr(import_module(f"seedthink.kernels.triton.{module}"), function)(*CALLS[name])
    assert kinds(results) == kinds(getattr(torch.ops.seedthink, name).default(*CALLS[name]))


REFUSED: list[tuple[str, Callable[[], Any]]] = [
    (
        "x: expected dtype float32 or bfloat16, got float64",
        lambda: rms_norm.forward(meta(2, 4, dtype=torch.float64), f32(4), 0.1),
    ),
    ("weight: dimension 0 is 3, expected 4", lambda: rms_norm.forward(f32(2, 4), f32(3), 0.1)),
    ("x: must be contiguous", lambda: rms_norm.forward(f32(4, 2).T, f32(4), 0.1)),
    ("x: rows of 16400 columns, expected at most 16384", lambda: rms_norm.forward(f32(2, 16400), f32(16400), 0.1)),
    ("weight: is on cpu, expected meta", lambda: rms_norm.forward(f32(2, 4), torch.ones(4), 0.1)),
    ("delta: dimension 0 is 3, expected 2", lambda: rms_norm.add_forward(f32(2, 4), f32(3, 4), f32(4), 0.1)),
    ("gate_up: the width 3 must be even", lambda: swiglu.forward(f32(2, 3))),
    ("x: the head's width 3 must be even", lambda: rope_kernels.turn(f32(2, 1, 3), f32(4, 3), i32(2))),
    ("positions: expected dtype int32", lambda: rope_kernels.turn(f32(2, 1, 4), f32(4, 4), f32(2))),
    ("x: expected shape .T, 3. to match weight", lambda: linear_kernels.forward(f32(2, 4), f32(5, 3), F32)),
    ("compute: torch.float16 is not one of", lambda: linear_kernels.forward(f32(2, 4), f32(5, 4), torch.float16)),
    ("targets: expected dtype int64", lambda: logprob_kernels.row_logprob(f32(2, 4), i32(2), f32(2))),
    ("logits: expected at least one column", lambda: logprob_kernels.row_stats(f32(2, 0), f32(2))),
    ("row: dimension 0 is 3, expected 2", lambda: permute.permute(f32(2, 4), i32(3, 1))),
    ("y: dimension 0 is 3, expected 4", lambda: permute.combine(f32(3, 4), None, i32(2, 2))),
    ("format: expected torch.float8_e4m3fn or", lambda: fp8.quantize_rows(f32(2, 4), 128, torch.float8_e8m0fnu)),
    ("width: expected 128 or the row's 4, got 64", lambda: fp8.quantize_rows(f32(2, 4), 64)),
    (
        "x_scale: dimension 1 is 1, expected 2",
        lambda: fp8_matmul.fp8_matmul(
            meta(2, 200, dtype=torch.float8_e4m3fn), f32(2, 1), meta(3, 200, dtype=torch.float8_e4m3fn), f32(1, 2)
        ),
    ),
    (
        "gate_up: dimension 1 is 5, expected 6",
        lambda: experts.forward(f32(6, 8), *PLACES, f32(4, 5, 8), f32(4, 8, 3), F32),
    ),
    (
        "q: has 3 heads, expected a multiple of the 2",
        lambda: attention_kernels.attend_packed(f32(6, 3, 16), f32(6, 2, 16), f32(6, 2, 16), i32(3), i32(2), 0.3, True),
    ),
]


@pytest.mark.parametrize(("message", "call"), REFUSED, ids=[message for message, _ in REFUSED])
def test_a_wrong_argument_is_named(message: str, call: Callable[[], Any]) -> None:
    with launching_nothing(), pytest.raises(ValueError, match=message):
        call()


def test_the_operator_of_fp8_hands_codes_around_as_bytes() -> None:
    with launching_nothing():
        codes, scale = fp8.quantize_rows(f32(2, 256), 128, torch.float8_e5m2, True)
        codes, w_codes, w_scale = codes.view(torch.uint8), meta(3, 256, dtype=torch.uint8), f32(1, 2)
        y = fp8_matmul.operator_fp8_linear(codes, scale, w_codes, w_scale, "e5m2", "e4m3", False)
    assert kinds((codes, scale, y)) == [
        (torch.Size(shape), dtype) for shape, dtype in [((2, 256), torch.uint8), ((2, 2), F32), ((2, 3), F32)]
    ]


def test_an_operator_loads_no_kernel_before_a_cuda_tensor_asks_for_it() -> None:
    names = ", ".join(
        f"seedthink.kernels.{name}" for name in ("norm", "activation", "rope", "linear", "logprob", "experts")
    )
    code = f"import sys, {names}\nprint(*[name for name in sys.modules if name.startswith('seedthink.kernels.triton')])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


def test_the_wheel_takes_the_kernels_along(root: Path) -> None:
    from setuptools import find_namespace_packages

    assert "triton" in find_namespace_packages(str(root / "kernels"))
