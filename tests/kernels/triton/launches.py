"""Every Triton kernel at the shapes of real models, for every configuration that is shipped.

T tokens of a batch; Qwen3-30B-A3B: width 2048, 128 experts of width 768, 8 per token, vocabulary 151,936; DeepSeek-V3:
width 7168, 256 experts of width 2048.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from offline import meta

from seedthink.kernels.triton import (
    attention,
    attention_backward,
    experts,
    fp8,
    fp8_matmul,
    grouped,
    linear_logprob,
    logprob,
    matmul,
    permute,
    rms_norm,
    rope,
    swiglu,
)
from seedthink.kernels.triton.launch import Config

T, D, E, K, I, V = 8192, 2048, 128, 8, 768, 151_936  # noqa: E741
R = T * K
F32, I32, I64, E4M3 = torch.float32, torch.int32, torch.int64, torch.float8_e4m3fn


SLOW = ("matmul in", "matmul, d", "experts, d", "attention, packed", "logprob backward")


class Launch(NamedTuple):
    """A call of a host function; `quick` marks what the fast tests compile: the default configurations of most."""

    name: str
    quick: bool
    call: Callable[[], Any]


def over(name: str, configs: tuple[Config, ...], call: Callable[[Config], Any]) -> Iterator[Launch]:
    """One launch for each configuration of a table."""
    for at, each in enumerate(configs):
        shape = "-".join(f"{key}{value}" for key, value in each.blocks)
        label = f"{name} {shape} warps{each.warps} stages{each.stages}".replace("  ", " ")
        quick = at == 0 and not name.startswith(SLOW)
        yield Launch(label, quick, lambda each=each: call(each))  # type: ignore[misc]


def norms() -> Iterator[Launch]:
    for width in (128, 1024, 2048, 4096, 7168, 16384):
        x, weight, rstd = meta(T, width), meta(width, dtype=F32), meta(T, dtype=F32)
        quick = width == 7168
        yield Launch(f"rms_norm {width}", quick, lambda x=x, w=weight: rms_norm.forward(x, w, 1e-6))  # type: ignore[misc]
        yield Launch(f"add_rms_norm {width}", quick, lambda x=x, w=weight: rms_norm.add_forward(x, x, w, 1e-6))  # type: ignore[misc]
        yield Launch(
            f"add_rms_norm backward {width}",
            quick,
            lambda x=x, w=weight, r=rstd: rms_norm.add_backward(x, x, x, w, r),  # type: ignore[misc]
        )
        yield Launch(
            f"add_rms_norm to FP8 {width}",
            quick,
            lambda x=x, w=weight: rms_norm.quantized(x, x, w, 1e-6),  # type: ignore[misc]
        )


def elementwise() -> Iterator[Launch]:
    gate_up, y = meta(R, 2 * I), meta(R, I)
    yield from over("swiglu", swiglu.CONFIGS, lambda c: swiglu.forward(gate_up, config=c))
    yield from over("swiglu backward", swiglu.CONFIGS, lambda c: swiglu.backward(y, gate_up, config=c))
    yield from over("swiglu to FP8", swiglu.QUANTIZE_CONFIGS, lambda c: swiglu.quantized(gate_up, config=c))
    q, table, positions = meta(T, 32, 128), meta(40960, 128, dtype=F32), meta(T, dtype=I32)
    yield from over("rope", rope.CONFIGS, lambda c: rope.turn_(q, table, positions, config=c))


def quantisers() -> Iterator[Launch]:
    x = meta(T, 7168)
    yield from over("fp8 1x128", fp8.CONFIGS, lambda c: fp8.quantize_rows(x, config=c))
    yield from over("fp8 rows", fp8.ROW_CONFIGS, lambda c: fp8.quantize_rows(x, 7168, config=c))


def rows() -> Iterator[Launch]:
    logits, targets, temperature = meta(512, V), meta(512, dtype=I64), meta(512, dtype=F32)
    yield from over("logprob", logprob.CONFIGS, lambda c: logprob.row_logprob(logits, targets, temperature, config=c))
    yield from over(
        "logprob backward",
        logprob.BACKWARD_CONFIGS,
        lambda c: logprob.row_logprob_backward_(logits, targets, temperature, temperature, temperature, config=c),
    )
    x, y, row, weight = meta(T, D), meta(R, D), meta(T, K, dtype=I32), meta(T, K, dtype=F32)
    yield from over("permute", permute.CONFIGS, lambda c: permute.permute(x, row, config=c))
    yield from over("combine", permute.CONFIGS, lambda c: permute.combine(y, weight, row, config=c))
    yield from over(
        "combine backward", permute.GRADIENT_CONFIGS, lambda c: permute.combine_backward(x, y, weight, row, config=c)
    )


def products() -> Iterator[Launch]:
    x, w, y = meta(T, D), meta(4096, D), meta(T, 4096)
    yield from over("matmul", matmul.HALF_CONFIGS, lambda c: matmul.matmul(x, w.T, y, config=c))
    yield from over("matmul, dx", matmul.HALF_CONFIGS, lambda c: matmul.matmul(y, w, x, config=c))
    dw = meta(4096, D, dtype=F32)
    yield from over("matmul, dw", matmul.HALF_CONFIGS, lambda c: matmul.matmul(y.T, x, dw, add=True, config=c))
    wide_x, router, scores = meta(T, D, dtype=F32), meta(E, D, dtype=F32), meta(T, E, dtype=F32)
    yield from over(
        "matmul in float32", matmul.SINGLE_CONFIGS, lambda c: matmul.matmul(wide_x, router.T, scores, config=c)
    )
    codes, scale = meta(T, 7168, dtype=E4M3), meta(T, 56, dtype=F32)
    w_codes, w_scale = meta(4096, 7168, dtype=E4M3), meta(32, 56, dtype=F32)
    yield from over(
        "fp8 matmul",
        fp8_matmul.CONFIGS,
        lambda c: fp8_matmul.fp8_matmul(codes, scale, w_codes, w_scale, torch.bfloat16, config=c),
    )


def mixtures() -> Iterator[Launch]:
    x, token, offsets = meta(T, D), meta(R, dtype=I32), meta(E + 1, dtype=I32)
    gate_up, down = meta(E, 2 * I, D), meta(E, D, I)
    hidden, act, out = meta(R, 2 * I), meta(R, I), meta(R, D)
    yield from over(
        "experts, gate and up",
        grouped.GATE_UP_CONFIGS,
        lambda c: grouped.gate_up_act(x, token, offsets, gate_up, hidden, act, config=c),
    )
    yield from over(
        "experts, act alone",
        grouped.ACT_CONFIGS,
        lambda c: grouped.gate_up_act(x, token, offsets, gate_up, None, act, config=c),
    )
    yield from over(
        "experts, down",
        grouped.HALF_CONFIGS,
        lambda c: grouped.rows_times_matrices(act, None, offsets, down.transpose(1, 2), out, config=c),
    )
    yield from over(
        "experts, dx",
        grouped.HALF_CONFIGS,
        lambda c: grouped.rows_times_matrices(hidden, None, offsets, gate_up, out, config=c),
    )
    yield from over(
        "experts, dw",
        grouped.GRADIENT_CONFIGS,
        lambda c: grouped.matrix_gradients(hidden, x, token, offsets, gate_up, False, c),
    )
    row, weight = meta(T, K, dtype=I32), meta(T, K, dtype=F32)
    single = [meta(*each.shape, dtype=F32) for each in (x, gate_up, down)]
    given = (weight, offsets, row, token)
    yield Launch("experts in float32", False, lambda: experts.forward(single[0], *given, *single[1:], F32))
    yield Launch(
        "experts backward",
        False,
        lambda: experts.backward(x, x, *given, gate_up, down, hidden, torch.bfloat16),
    )
    h, targets = meta(1000, D), meta(1000, dtype=I64)
    head = meta(V, D)
    yield Launch("linear_logprob", False, lambda: linear_logprob.forward(h, head, targets, 1.0, torch.bfloat16))


def attentions() -> Iterator[Launch]:
    q, k = meta(4096, 32, 128, dtype=F32), meta(4096, 4, 128, dtype=F32)
    bounds, prefix = meta(33, dtype=I32), meta(32, dtype=I32)
    yield from over(
        "attention, packed",
        attention.HALF_CONFIGS,
        lambda c: attention.attend_packed(q, k, k, bounds, prefix, 0.1, True, config=c),
    )
    yield from over(
        "attention, packed, in float32",
        attention.SINGLE_CONFIGS,
        lambda c: attention.attend_packed(q, k, k, bounds, prefix, 0.1, False, config=c),
    )
    lse = meta(4096, 32, dtype=F32)
    for name, narrow in (("", True), (" in float32", False)):
        yield Launch(
            f"attention backward{name}",
            False,
            lambda half=narrow: attention_backward.attend_packed_backward(  # type: ignore[misc]
                q, q, k, k, q, lse, bounds, prefix, 0.1, half
            ),
        )
    few = meta(32, 32, 128, dtype=F32)
    pages, table = (meta(4096, 4, 128, 16), meta(4096, 4, 16, 128)), meta(32, 512, dtype=I32)
    yield from over(
        "attention, paged",
        attention.HALF_CONFIGS,
        lambda c: attention.attend_paged(few, *pages, table, bounds, prefix, 0.1, config=c),
    )
    wide, wide_lse = meta(4096, 16, 256, dtype=F32), meta(4096, 16, dtype=F32)
    for name, compute in (("", True), (" in float32", False)):
        yield Launch(
            f"wide heads{name}",
            False,
            lambda half=compute: attention.attend_packed(wide, wide, wide, bounds, prefix, 0.1, half),  # type: ignore[misc]
        )
        yield Launch(
            f"wide heads, backward{name}",
            False,
            lambda half=compute: attention_backward.attend_packed_backward(  # type: ignore[misc]
                wide, wide, wide, wide, wide, wide_lse, bounds, prefix, 0.1, half
            ),
        )


def launches() -> list[Launch]:
    """All of them."""
    groups = (norms, elementwise, quantisers, rows, products, mixtures, attentions)
    return [each for group in groups for each in group()]
