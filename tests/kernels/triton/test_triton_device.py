"""On a CUDA device: the operators agree with the CPU's, rows stand alone, configurations of a class agree."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

import pytest
import torch
from torch import Tensor

from seedthink.kernels.activation import swiglu
from seedthink.kernels.attention import attend_packed, attend_paged
from seedthink.kernels.experts import experts
from seedthink.kernels.fp8 import Fp8, quantize_fp8
from seedthink.kernels.fp8_linear import fp8_linear
from seedthink.kernels.linear import linear
from seedthink.kernels.logprob import linear_logprob
from seedthink.kernels.norm import add_rms_norm, rms_norm
from seedthink.kernels.rope import rope, rope_table
from seedthink.kernels.route import Routing, route
from seedthink.kernels.triton import fp8, fp8_matmul, grouped, logprob, matmul, permute
from seedthink.kernels.triton import swiglu as swiglu_kernels
from seedthink.kernels.triton.launch import Config

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
HALF, SINGLE = torch.bfloat16, torch.float32


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def gradients(call: Callable[..., Tensor | tuple[Tensor, ...]], *tensors: Tensor) -> list[Tensor]:
    """Results and the gradients of all tensors that have one, on the CPU."""
    leaves = [each.detach().requires_grad_(each.is_floating_point()) for each in tensors]
    results = call(*leaves)
    results = results if isinstance(results, tuple) else (results,)
    sum(result.sin().sum() for result in results).backward()
    return [each.detach().cpu() for each in (*results, *(leaf.grad for leaf in leaves if leaf.grad is not None))]


def same(call: Callable[..., Tensor | tuple[Tensor, ...]], *tensors: Tensor, tolerance: float = 1e-4) -> None:
    """The device's results and gradients are the CPU's, within `tolerance` of the largest number."""
    here, there = gradients(call, *tensors), gradients(call, *(each.cuda() for each in tensors))
    assert len(here) == len(there) > 1
    for mine, theirs in zip(there, here, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0.0, atol=tolerance * max(1.0, float(theirs.abs().max())))


def test_norms() -> None:
    x, delta, weight = torch.randn(300, 2048), torch.randn(300, 2048), torch.randn(2048)
    same(lambda x, w: rms_norm(x, w, 1e-6), x, weight)
    same(lambda x, d, w: add_rms_norm(x, d, w, 1e-6), x, delta, weight)


def test_swiglu_and_rope() -> None:
    same(swiglu, torch.randn(100, 1536))
    positions = torch.randint(0, 4096, (100,), dtype=torch.int32)
    same(
        lambda x, table, at: rope(x, table.detach(), at),
        torch.randn(100, 32, 128),
        rope_table(4096, 128, 1e6),
        positions,
    )


@pytest.mark.parametrize(("compute", "tolerance"), [(SINGLE, 1e-4), (HALF, 2e-3)])
def test_linear_and_its_log_probabilities(compute: torch.dtype, tolerance: float) -> None:
    x, weight = torch.randn(300, 512), torch.randn(700, 512) * 0.05
    same(lambda x, w: linear(x, w, compute), x, weight, tolerance=tolerance)
    targets = torch.randint(0, 700, (300,))
    same(lambda h, w, t: linear_logprob(h, w, t, 0.7, compute), x, weight, targets, tolerance=tolerance)


def mixture(tokens: int) -> tuple[list[Tensor], Routing]:
    """x, gate_up and down of 16 experts, and a routing to 4 of them."""
    shapes = ((tokens, 256), (16, 256, 256), (16, 256, 128))
    return [torch.randn(*shape) * 0.1 for shape in shapes], route(torch.randn(tokens, 16), 4)


@pytest.mark.parametrize(("compute", "tolerance"), [(SINGLE, 1e-4), (HALF, 2e-3)])
@pytest.mark.parametrize("tokens", [1, 500])
def test_experts(compute: torch.dtype, tolerance: float, tokens: int) -> None:
    (x, gate_up, down), routing = mixture(tokens)

    def call(x: Tensor, weight: Tensor, gate_up: Tensor, down: Tensor, *places: Tensor) -> Tensor:
        moved = Routing(places[0], weight, *places[1:])
        return experts(x, moved, gate_up, down, compute)

    places = (routing.ids_TK, routing.counts_E, routing.offsets_E1, routing.row_TK, routing.token_R)
    same(call, x, routing.weight_TK, gate_up, down, *places, tolerance=tolerance)


@pytest.mark.parametrize(("compute", "tolerance"), [(SINGLE, 1e-4), (HALF, 1e-2)])
def test_packed_attention(compute: torch.dtype, tolerance: float) -> None:
    bounds = torch.tensor([0, 700, 700, 701, 1300], dtype=torch.int32)
    prefix = torch.tensor([-1, -1, 0, 0], dtype=torch.int32)
    q, k, v = torch.randn(1300, 16, 128), torch.randn(1300, 4, 128), torch.randn(1300, 4, 128)
    here = gradients(lambda q, k, v: attend_packed(q, k, v, bounds, 0.09, compute, prefix), q, k, v)
    moved = bounds.cuda(), prefix.cuda()
    there = gradients(
        lambda q, k, v: attend_packed(q, k, v, moved[0], 0.09, compute, moved[1]), q.cuda(), k.cuda(), v.cuda()
    )
    for mine, theirs in zip(there, here, strict=True):  # of the largest number: a shared prefix gathers large gradients
        torch.testing.assert_close(mine, theirs, rtol=0.0, atol=tolerance * max(1.0, float(theirs.abs().max())))


def test_decoding_has_the_bits_of_packed_attention() -> None:
    length, scale = 1300, 0.09
    q, k, v = (torch.randn(length, heads, 128, device="cuda") for heads in (16, 4, 4))
    bounds = torch.tensor([0, length], dtype=torch.int32, device="cuda")
    want = attend_packed(q, k, v, bounds, scale, HALF)
    count = -(-length // 16)
    padded = [torch.nn.functional.pad(each, (0, 0, 0, 0, 0, count * 16 - length)).to(HALF) for each in (k, v)]
    k_pages = padded[0].view(count, 16, 4, 128).permute(0, 2, 3, 1).contiguous()
    v_pages = padded[1].view(count, 16, 4, 128).permute(0, 2, 1, 3).contiguous()
    table = torch.arange(count, dtype=torch.int32, device="cuda")[None]
    for at in (0, 511, 512, length - 1):
        cu_q, seen = torch.tensor([0, 1]).int().cuda(), torch.tensor([at + 1]).int().cuda()
        alone = attend_paged(q[at : at + 1], k_pages, v_pages, table, cu_q, seen, scale)
        assert torch.equal(alone, want[at : at + 1])


def test_rows_have_the_same_bits_alone_and_in_a_batch() -> None:
    x, weight = torch.randn(300, 512, device="cuda"), torch.randn(700, 512, device="cuda")
    targets = torch.randint(0, 700, (300,), device="cuda")
    for compute in (SINGLE, HALF):
        together, logp = linear(x, weight, compute), linear_logprob(x, weight, targets, 1.0, compute)[0]
        for t in (0, 77, 299):
            row = slice(t, t + 1)
            assert torch.equal(linear(x[row], weight, compute), together[row])
            assert torch.equal(linear_logprob(x[row], weight, targets[row], 1.0, compute)[0], logp[row])


def test_experts_give_a_token_the_same_bits_alone_and_in_a_batch() -> None:
    (x, gate_up, down), _ = mixture(500)
    logits = torch.randn(500, 16)
    weights = gate_up.cuda(), down.cuda()

    def run(rows: slice) -> Tensor:
        routing = Routing(*(each.cuda() for each in route(logits[rows], 4)))
        return experts(x[rows].cuda(), routing, *weights, HALF)

    together = run(slice(0, 500))
    for t in (0, 250, 499):
        assert torch.equal(run(slice(t, t + 1)), together[t : t + 1])


def agree(configs: tuple[Config, ...], call: Callable[[Config], Tensor]) -> None:
    """All configurations of a numerics class give the bits of its first one."""
    for _, group in groupby(sorted(configs, key=lambda each: each.numerics), key=lambda each: each.numerics):
        results = [call(each).clone() for each in group]
        assert all(torch.equal(each, results[0]) for each in results)


def test_configurations_of_a_class_agree_bit_for_bit() -> None:
    x, w = torch.randn(300, 512).cuda().to(HALF), torch.randn(700, 512).cuda().to(HALF)
    y = torch.empty(300, 700, device="cuda")
    agree(matmul.HALF_CONFIGS, lambda c: matmul.matmul(x, w.T, y, config=c))
    wide_x, wide_w = x.float(), w.float()
    agree(matmul.SINGLE_CONFIGS, lambda c: matmul.matmul(wide_x, wide_w.T, y, config=c))
    agree(swiglu_kernels.CONFIGS, lambda c: swiglu_kernels.forward(x, config=c))
    agree(fp8.CONFIGS, lambda c: fp8.quantize_rows(x, config=c)[0].view(torch.uint8))
    codes, scale = fp8.quantize_rows(x)
    quantised = quantize_fp8(w, (128, 128))
    agree(
        fp8_matmul.CONFIGS,
        lambda c: fp8_matmul.fp8_matmul(codes, scale, quantised.codes, quantised.scale, config=c),
    )
    (x, gate_up, _), routing = mixture(300)
    half_x, half_w = x.cuda().to(HALF), gate_up.cuda().to(HALF)
    offsets, token, row = (each.cuda() for each in (routing.offsets_E1, routing.token_R, routing.row_TK))
    act, out = torch.empty(1200, 128, device="cuda", dtype=HALF), torch.empty(1200, 256, device="cuda")
    agree(grouped.GATE_UP_CONFIGS, lambda c: grouped.gate_up_act(half_x, token, offsets, half_w, None, act, config=c))
    transposed = half_w.transpose(1, 2)
    agree(
        grouped.HALF_CONFIGS,
        lambda c: grouped.rows_times_matrices(half_x, token, offsets, transposed, out, config=c),
    )
    agree(permute.CONFIGS, lambda c: permute.combine(out, None, row, config=c))


@pytest.mark.parametrize("dtype", [SINGLE, HALF])
@pytest.mark.parametrize("format", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_fp8_codes_are_those_of_an_exact_rounding(dtype: torch.dtype, format: torch.dtype) -> None:
    x = (torch.randn(70, 512) * 10.0 ** torch.randint(-6, 6, (70, 1))).to(dtype)
    for power_of_two in (True, False):
        codes, scale = fp8.quantize_rows(x.cuda(), 128, format, power_of_two)
        wide = scale.cpu().repeat_interleave(128, 1)
        want = (x.float() / wide).clamp(-fp8.FORMATS[format].top, fp8.FORMATS[format].top).to(format)
        assert torch.equal(codes.cpu().view(torch.uint8), want.view(torch.uint8))


def test_what_is_not_finite_becomes_the_code_nan_and_leaves_its_block_alone() -> None:
    x = torch.ones(1, 128)
    x[0, 3], x[0, 4] = float("inf"), float("nan")
    codes, scale = fp8.quantize_rows(x.cuda())
    assert scale.item() == 2.0**-8
    assert codes.float().isnan().nonzero().tolist() == [[0, 3], [0, 4]]


def test_row_log_probabilities_of_a_wide_vocabulary() -> None:
    logits, targets = torch.randn(8, 151_936) * 4.0, torch.randint(0, 151_936, (8,))
    logp, entropy = logprob.row_logprob(logits.cuda(), targets.cuda(), torch.ones(8, device="cuda"))
    exact = torch.log_softmax(logits.double(), -1)
    torch.testing.assert_close(logp.cpu().double(), exact.gather(-1, targets[:, None])[:, 0], rtol=0.0, atol=1e-5)
    torch.testing.assert_close(entropy.cpu().double(), -(exact.exp() * exact).sum(-1), rtol=0.0, atol=1e-4)


def test_the_fast_fp8_product_is_near_the_exact_one() -> None:
    for rows, columns, depth in ((512, 256, 1024), (500, 256, 1024), (512, 256, 640)):  # torch's, and twice ours
        x, w = (
            quantize_fp8(torch.randn(size, depth), block) for size, block in ((rows, (1, 128)), (columns, (128, 128)))
        )
        moved = [Fp8(each.codes.cuda(), each.scale.cuda(), each.block) for each in (x, w)]
        fast, exact = fp8_linear(*moved, fast=True), fp8_linear(*moved)
        assert fast.dtype == HALF
        torch.testing.assert_close(fast.float(), exact, rtol=2e-2, atol=0.02 * float(exact.abs().max()))
