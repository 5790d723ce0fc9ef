"""Products on AMX tiles: emulation against documented arithmetic, bit for bit, and the hardware's code against both.

`documented` is TDPBF16PS of Intel's manual (csrc/linear/tile.h) written down once more: for 16 pairs at a time, one
chain of the even and one of the odd elements, whose sum is then added to the result.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from seedthink import _C
from seedthink.kernels.experts import experts
from seedthink.kernels.linear import linear
from seedthink.kernels.route import route

ROOT = Path(__file__).parents[2]
SHAPES = [(1, 1), (31, 7), (32, 16), (33, 65), (64, 64), (129, 83), (95, 130)]  # (K, N)
HALF = torch.bfloat16
LEAST = 2.0**-126


@pytest.fixture
def tiles() -> Iterator[None]:
    """bfloat16 products on emulated tiles."""
    _C.emulate_amx(True)
    yield
    _C.emulate_amx(False)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def rounded(exact: Tensor) -> Tensor:
    """float32 to nearest even; a result that is subnormal after rounding is zero. Stays float64."""
    return torch.where(
        exact.abs() < LEAST - 2.0**-151, torch.zeros(()).double().copysign(exact), exact.float().double()
    )


def documented(x_TK: Tensor, weight_NK: Tensor) -> Tensor:
    x, weight = (
        torch.nn.functional.pad(rounded(v.to(HALF).double()), (0, -v.shape[1] % 32)) for v in (x_TK, weight_NK)
    )
    y = torch.zeros(len(x), len(weight)).double()
    for start in range(0, x.shape[1], 32):
        chains = [torch.zeros_like(y), torch.zeros_like(y)]
        for k in range(start, start + 32):
            chains[k % 2] = rounded(x[:, k, None] * weight[None, :, k] + chains[k % 2])
        y = rounded(y + rounded(chains[0] + chains[1]))
    return y.float()


def same(one: Tensor, two: Tensor) -> bool:
    return torch.equal(one.view(torch.int32), two.view(torch.int32))


@pytest.mark.parametrize(("k", "n"), SHAPES)
def test_a_product_has_the_documented_bits_for_any_number_of_rows(tiles: None, k: int, n: int) -> None:
    x, weight = draw(40, k), draw(n, k)
    expected = documented(x, weight)
    for rows in range(1, 41):
        assert same(linear(x[:rows], weight, HALF), expected[:rows]), rows


@pytest.mark.parametrize(("k", "n"), SHAPES)
def test_subnormal_operands_products_and_sums_are_zeros_as_documented(tiles: None, k: int, n: int) -> None:
    for scale in (2.0**-62, 2.0**-63, 2.0**-125):
        x, weight = scale * draw(19, k), scale * draw(n, k)
        assert same(linear(x, weight, HALF), documented(x, weight))
        assert same(linear(x, weight / scale, HALF), documented(x, weight / scale))


@pytest.mark.parametrize(
    ("t", "k", "n"), [(1, 1, 1), (2, 70, 33), (33, 64, 16), (40, 31, 65), (512, 17, 20), (1100, 9, 77)]
)
def test_gradients_have_the_documented_bits(tiles: None, t: int, k: int, n: int) -> None:
    x, weight, dy = draw(t, k).requires_grad_(), draw(n, k).requires_grad_(), draw(t, n)
    linear(x, weight, HALF).backward(dy)
    assert same(x.grad, documented(dy, weight.detach().T))
    # Chains of 512 tokens, added in order.
    parts = [documented(d.T, a.T) for d, a in zip(dy.split(512), x.detach().split(512), strict=True)]
    expected = parts[0]
    for part in parts[1:]:
        expected = expected + part
    assert same(weight.grad, expected)


def test_nothing_that_an_earlier_call_left_behind_is_read(tiles: None) -> None:
    x, weight, dy = draw(37, 33).requires_grad_(), draw(7, 33).requires_grad_(), draw(37, 7)
    full = torch.full((64, 64), float("nan"))
    for _ in range(2):  # rows, then a gradient's chains, full of NaN beside and behind the ones that follow
        linear(full, full, HALF)
        y = linear(x, weight, HALF)
        assert same(y.detach(), documented(x.detach(), weight.detach()))
        linear(full, full.clone().requires_grad_(), HALF).backward(full)
        x.grad = weight.grad = None
        y.backward(dy)
        assert same(x.grad, documented(dy, weight.detach().T))
        assert same(weight.grad, documented(dy.T, x.detach().T))


def test_experts_of_any_number_of_rows_have_the_documented_bits(tiles: None) -> None:
    counts, d, i = [0, 1, 2, 15, 0, 16, 17, 40, 0], 37, 21
    x, gate_up, down = draw(sum(counts), d), draw(len(counts), 2 * i, d) / 6, draw(len(counts), d, i) / 5
    logits = torch.zeros(sum(counts), len(counts))
    chosen = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    logits[torch.arange(sum(counts)), chosen] = 9.0
    y = experts(x, route(logits, 1), gate_up, down, HALF)  # one expert a token: its weight is 1
    for e, rows in enumerate(x.split(counts)):
        act = torch.empty(len(rows), i)
        _C.swiglu_forward(documented(rows, gate_up[e]), act)
        assert same(y[chosen == e], documented(act, down[e])), e


def test_a_tile_product_is_an_even_and_an_odd_chain(tiles: None) -> None:
    # 2^24 + 1 is a tie that rounds to 2^24, so the even chain loses its ones and the odd chain keeps all of its 16.
    x = torch.ones(1, 32)
    x[0, 0] = 2.0**24
    assert linear(x, torch.ones(1, 32), HALF).item() == 2.0**24 + 16


def asked(isa: str) -> list[str]:
    """What a process says that SEEDTHINK_ISA was set for."""
    code = "from seedthink import _C; print(_C.isa()); print(_C.build_info()['amx'])"
    environment = {**os.environ, "SEEDTHINK_ISA": isa}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True, timeout=120
    )
    return done.stdout.splitlines()


def test_the_device_class_says_how_products_are_computed() -> None:
    name, note = asked("amx_emulated")
    assert name.endswith("-amx_emulated") and note == "emulated: SEEDTHINK_ISA=amx_emulated"
    for other in ("avx512", "avx2", "portable"):
        name, note = asked(other)
        assert "amx" not in name and note == "not used: SEEDTHINK_ISA asks for another instruction set"
    name, note = asked("amx")
    assert ("amx" in name) is (note == "in use")


def has_avx512_bf16() -> bool:
    info = Path("/proc/cpuinfo")
    return info.exists() and "avx512_bf16" in info.read_text()


@pytest.mark.skipif(not has_avx512_bf16(), reason="AMX code is built for CPUs with AVX-512 and bfloat16")
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_the_tile_instructions_as_compiled_have_the_emulations_bits(tmp_path: Path) -> None:
    # Where the CPU has no AMX the instructions are trapped and carried out by the test program.
    program, sources = tmp_path / "amx", ROOT / "csrc"
    names = ("linear/linear.isa.cpp", "linear/tile_check.isa.cpp", "common/pool.cpp", "common/tuning.cpp")
    command = ["g++", "-O2", "-std=c++17", "-w", "-ffp-contract=off", "-DST_ISA=avx512", f"-I{sources}", "-pthread"]
    command += [f"-m{name}" for name in ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512bf16", "fma")]
    command += [
        "-mamx-tile",
        "-mamx-bf16",
        str(ROOT / "tests/kernels/amx_on_any_cpu.cpp"),
        *(str(sources / name) for name in names),
    ]
    subprocess.run([*command, "-o", str(program)], check=True, timeout=250)
    environment = {key: value for key, value in os.environ.items() if key != "SEEDTHINK_ISA"}
    done = subprocess.run([program], env=environment, check=True, capture_output=True, text=True, timeout=120)
    name, *rest = done.stdout.splitlines()
    assert name in ("avx512-amx", "avx512-amx-undocumented"), done.stdout
    assert name == "avx512-amx-undocumented" or len(rest) == 1, done.stdout  # the number of instructions, no difference
