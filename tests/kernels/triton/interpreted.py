"""What `test_triton_interpreted.py` runs under TRITON_INTERPRET=1: small odd shapes, float32, float64 references."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from seedthink.kernels.activation import reference_swiglu
from seedthink.kernels.attention import reference_attend_packed
from seedthink.kernels.experts import reference_experts
from seedthink.kernels.logprob import reference_linear_logprob, reference_row_logprob
from seedthink.kernels.norm import reference_rms_norm
from seedthink.kernels.rope import reference_rope, rope_table
from seedthink.kernels.route import Routing, reference_route
from seedthink.kernels.triton import (
    attention,
    attention_backward,
    experts,
    fp8,
    fp8_matmul,
    linear,
    linear_logprob,
    logprob,
    permute,
    rms_norm,
    rope,
    swiglu,
)
from seedthink.kernels.triton.launch import config

assert os.environ.get("TRITON_INTERPRET") == "1"
F32 = torch.float32


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def close(ours: Tensor, exact: Tensor, tolerance: float = 1e-5) -> None:
    """Within `tolerance` of the largest number; false for NaN."""
    assert ours.shape == exact.shape
    scale = float(exact.detach().abs().max()) if exact.numel() else 1.0
    assert bool(((ours.double() - exact).abs() <= tolerance * max(scale, 1e-30)).all())


def doubled(*tensors: Tensor) -> list[Tensor]:
    return [each.double().requires_grad_(each.is_floating_point()) for each in tensors]


@pytest.mark.parametrize("width", [1, 70, 256])
def test_rms_norm(width: int) -> None:
    x, delta, dsum, dy, weight = *(torch.randn(7, width) for _ in range(4)), torch.randn(width)
    y, rstd = rms_norm.forward(x, weight, 1e-3)
    exact = doubled(x, weight)
    want = reference_rms_norm(*exact, 1e-3)
    close(y, want)
    want.backward(dy.double())
    for ours, theirs in zip(rms_norm.backward(dy, x, weight, rstd), exact, strict=True):
        close(ours, theirs.grad)
    total, normed, rstd = rms_norm.add_forward(x, delta, weight, 1e-3)
    assert torch.equal(total, x + delta)
    assert torch.equal(normed, rms_norm.forward(total, weight, 1e-3)[0])
    dx, dweight = rms_norm.add_backward(dsum, dy, total, weight, rstd)
    apart, dweight_apart = rms_norm.backward(dy, total, weight, rstd)
    close(dx, (apart + dsum).double())
    assert torch.equal(dweight, dweight_apart)


def test_the_parts_of_a_weight_gradient_cover_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rms_norm, "PARTS", 3)
    x, dy, weight = torch.randn(52, 3), torch.randn(52, 3), torch.randn(3)
    exact = doubled(x, weight)
    reference_rms_norm(*exact, 1e-3).backward(dy.double())
    rstd = rms_norm.forward(x, weight, 1e-3)[1]
    close(rms_norm.backward(dy, x, weight, rstd)[1], exact[1].grad)
    assert torch.equal(rms_norm.backward(dy[:0], x[:0], weight, rstd[:0])[1], torch.zeros(3))


@pytest.mark.parametrize("shape", [(5, 2), (3, 600)])
def test_swiglu(shape: tuple[int, int]) -> None:
    gate_up = torch.randn(*shape)
    exact = gate_up.double().requires_grad_()
    want = reference_swiglu(exact)
    close(swiglu.forward(gate_up), want)
    dy = torch.randn(shape[0], shape[1] // 2)
    want.backward(dy.double())
    close(swiglu.backward(dy, gate_up), exact.grad)


def test_rope() -> None:
    x, table = torch.randn(5, 3, 10), rope_table(40, 10, 100.0)
    positions = torch.tensor([0, 39, 7, 1, 2], dtype=torch.int32)
    y = rope.turn(x, table, positions)
    close(y, reference_rope(x.double(), table.double(), positions))
    close(rope.turn(y, table, positions, True), x.double())
    copy = x.clone()
    assert rope.turn_(copy, table, positions) is copy
    assert torch.equal(copy, y)


def test_a_position_outside_the_table_shows_as_nan_in_its_own_token() -> None:
    positions = torch.tensor([1, 40, -1], dtype=torch.int32)
    y = rope.turn(torch.randn(3, 2, 4), rope_table(40, 4, 100.0), positions)
    assert y.isnan().flatten(1).all(1).tolist() == [False, True, True]
    assert not y[0].isnan().any()


@pytest.mark.parametrize("width", [1, 9000])
def test_row_logprob(width: int) -> None:
    logits, targets = torch.randn(4, width) * 5, torch.randint(0, width, (4,))
    if width > 1:
        logits[1, targets[1] - 1] = float("-inf")
        logits[2] = float("-inf")
        logits[2, targets[2]] = 3.0
    temperature = torch.tensor([1.0, 0.5, 2.0, 1.0])
    ours = logprob.row_logprob(logits, targets, temperature)
    for mine, theirs in zip(ours, reference_row_logprob(logits.double(), targets, temperature), strict=True):
        assert bool(((mine.double() - theirs).abs() <= 1e-5 * theirs.abs() + 1e-5).all())


def test_row_logprob_backward() -> None:
    logits, targets, temperature = torch.randn(3, 70), torch.randint(0, 70, (3,)), torch.tensor([1.0, 0.5, 2.0])
    dlogprob, dentropy = torch.randn(3), torch.randn(3)
    exact = logits.double().requires_grad_()
    torch.autograd.backward(reference_row_logprob(exact, targets, temperature), [dlogprob.double(), dentropy.double()])
    close(logprob.row_logprob_backward_(logits, targets, temperature, dlogprob, dentropy), exact.grad)


def test_a_target_outside_the_vocabulary_and_a_nan_row_show_as_nan() -> None:
    logits = torch.randn(4, 5)
    logits[2, 3] = float("nan")
    logits[3, 3] = float("inf")
    logp, entropy = logprob.row_logprob(logits, torch.tensor([5, 0, 0, 0]), torch.ones(4))
    assert logp.isnan().tolist() == [True, False, True, True]
    assert entropy.isnan().tolist() == [False, False, True, True]


@pytest.mark.parametrize("sizes", [(3, 5, 7), (70, 33, 48), (1, 1, 1), (0, 4, 3)])
def test_linear_and_its_gradients(sizes: tuple[int, int, int]) -> None:
    rows, depth, columns = sizes
    x, weight, dy = torch.randn(rows, depth), torch.randn(columns, depth), torch.randn(rows, columns)
    close(linear.forward(x, weight, F32), x.double() @ weight.double().T)
    close(linear.input_gradient(dy, weight, F32), dy.double() @ weight.double())
    close(linear.weight_gradient(dy, x, F32), dy.double().T @ x.double())


def test_linear_logprob(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_logprob, "LEAST_ROWS", 4)
    monkeypatch.setattr(linear_logprob, "STEP", 1)  # three chunks
    h, weight, targets = torch.randn(11, 6), torch.randn(11, 6), torch.randint(0, 11, (11,))
    exact = doubled(h, weight)
    want = reference_linear_logprob(*exact, targets, 0.7)
    for mine, theirs in zip(linear_logprob.forward(h, weight, targets, 0.7, F32), want, strict=True):
        close(mine, theirs)
    grads = torch.randn(11), torch.randn(11)
    torch.autograd.backward(want, [each.double() for each in grads])
    for mine, leaf in zip(linear_logprob.backward(*grads, h, weight, targets, 0.7, F32), exact, strict=True):
        close(mine, leaf.grad)
    *found, state = linear_logprob.operator_forward(h, weight, targets, 0.7, F32)
    again = linear_logprob.operator_backward(*grads, h, weight, targets, state, 0.7, F32)
    for mine, leaf in zip(again, exact, strict=True):
        close(mine, leaf.grad)
    assert torch.equal(found[0], linear_logprob.forward(h, weight, targets, 0.7, F32)[0])
    assert state.dtype == torch.float64 and state.shape == (11, 4)


def routed(tokens: int, count: int, k: int) -> Routing:
    logits = torch.randn(tokens, count)
    logits[:, 1] = -9.0  # an expert without rows
    return reference_route(logits, k)


def test_permute_and_combine() -> None:
    routing, x, y = routed(13, 6, 3), torch.randn(13, 70), torch.randn(39, 70)
    row = routing.row_TK.long()
    assert torch.equal(permute.permute(x, routing.row_TK), x[routing.token_R.long()])
    weight, dout = torch.rand(13, 3), torch.randn(13, 70)
    exact_y, exact_weight = doubled(y, weight)
    want = (exact_y[row] * exact_weight[..., None]).sum(1)
    close(permute.combine(y, weight, routing.row_TK), want)
    close(permute.combine(y, None, routing.row_TK), y.double()[row].sum(1))
    want.backward(dout.double())
    dy, dweight = permute.combine_backward(dout, y, weight, routing.row_TK)
    close(dy, exact_y.grad)
    close(dweight, exact_weight.grad)


@pytest.mark.parametrize("tokens", [0, 1, 40])
def test_experts(tokens: int) -> None:
    routing = routed(tokens, 5, 2)
    weight = routing.weight_TK.float()
    x, gate_up, down, dy = (torch.randn(*shape) for shape in ((tokens, 20), (5, 12, 20), (5, 20, 6), (tokens, 20)))
    places = (routing.offsets_E1, routing.row_TK, routing.token_R)
    exact = doubled(x, weight, gate_up, down)
    want = reference_experts(exact[0], routing._replace(weight_TK=exact[1]), exact[2], exact[3])
    y, hidden = experts.forward(x, weight, *places, gate_up, down, F32)
    close(y, want)
    assert torch.equal(experts.forward(x, weight, *places, gate_up, down, F32, keep=False)[0], y)
    want.backward(dy.double())
    ours = experts.backward(dy, x, weight, *places, gate_up, down, hidden, F32)
    for mine, leaf in zip(ours, exact, strict=True):
        close(mine, leaf.grad)


def test_the_scales_of_fp8_blocks() -> None:
    x = torch.zeros(3, 300)
    x[0, 5], x[0, 130], x[0, 290] = 448.0, torch.tensor(448.0).nextafter(torch.tensor(500.0)), -3.0
    x[1, 0], x[1, 1], x[1, 200] = float("nan"), 2.0**-140, float("inf")
    codes, scale = fp8.quantize_rows(x)
    assert codes.shape == (3, 300)
    assert scale.tolist() == [[1.0, 2.0, 2.0**-7], [2.0**-126, 2.0**-126, 2.0**-126], [2.0**-126] * 3]
    assert torch.equal(fp8.quantize_rows(x, power_of_two_scale=False)[1][0], x[0, [5, 130, 290]].abs() / 448.0)
    assert fp8.quantize_rows(x[:1], 300)[1].tolist() == [[2.0]]
    assert fp8.quantize_rows(x[:1], 128, torch.float8_e5m2)[1].tolist() == [[2.0**-7, 2.0**-6, 2.0**-14]]


def test_fp8_matmul_of_numbers_that_codes_hold_exactly() -> None:
    x, w = (torch.randint(-8, 9, (rows, 300)).float() for rows in (5, 140))
    x_scale, w_scale = 2.0 ** torch.randint(-3, 4, (5, 3)), 2.0 ** torch.randint(-3, 4, (2, 3))
    wide_x = x.double() * x_scale.double().repeat_interleave(128, 1)[:, :300]
    wide_w = w.double() * w_scale.double().repeat_interleave(128, 0)[:140].repeat_interleave(128, 1)[:, :300]
    y = fp8_matmul.fp8_matmul(x.to(torch.float8_e4m3fn), x_scale, w.to(torch.float8_e4m3fn), w_scale)
    assert torch.equal(y.double(), wide_x @ wide_w.T)


SMALL = config("a test's", warps=4, ROWS=16, KEYS=16, SPLIT=32)


def test_packed_attention_with_and_without_a_prefix() -> None:
    lengths = [40, 0, 1, 20, 18]
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    q, k, v = (torch.randn(int(bounds[-1]), heads, 16) for heads in (6, 2, 2))
    prefix = torch.tensor([-1, -1, 0, 0, -1], dtype=torch.int32)
    o, lse = attention.attend_packed(q, k, v, bounds, prefix, 0.3, False, config=SMALL)
    close(o, reference_attend_packed(q.double(), k.double(), v.double(), bounds, 0.3, prefix))
    score = q[40].double() @ torch.cat([k[:40], k[40:41]])[:, [0, 0, 0, 1, 1, 1]].double().permute(1, 2, 0)
    own = torch.stack([score[head, head] for head in range(6)]) * 0.3
    close(lse[40], own.logsumexp(-1))


def test_the_gradient_of_packed_attention() -> None:
    lengths = [20, 0, 1, 35, 18]
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    q, k, v = (torch.randn(int(bounds[-1]), heads, 16) for heads in (6, 2, 2))
    prefix, do = torch.tensor([-1, -1, 0, 0, -1], dtype=torch.int32), torch.randn_like(q)
    exact = doubled(q, k, v)
    reference_attend_packed(*exact, bounds, 0.3, prefix).backward(do.double())
    o, lse = attention.attend_packed(q, k, v, bounds, prefix, 0.3, False, config=SMALL)
    small = config("a test's", warps=4, ROWS=16, KEYS=16), config("a test's", warps=4, ROWS=8, KEYS=16)
    ours = attention_backward.attend_packed_backward(do, q, k, v, o, lse, bounds, prefix, 0.3, False, configs=small)
    for mine, leaf in zip(ours, exact, strict=True):
        close(mine, leaf.grad)


def paged(k: Tensor, v: Tensor, bounds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pages in an order of their own, and the table."""
    lengths = bounds.diff().tolist()
    counts = [-(-length // 16) for length in lengths]
    order = torch.randperm(sum(counts) + 1)
    k_pages = torch.full((sum(counts) + 1, k.shape[1], 16, 16), float("nan"))
    v_pages, table, used = (
        torch.full_like(k_pages, float("nan")),
        torch.zeros(len(lengths), max(counts), dtype=torch.int32),
        0,
    )
    for b, length in enumerate(lengths):
        for at in range(length):
            page, token = int(order[used + at // 16]), int(bounds[b]) + at
            table[b, at // 16] = page
            k_pages[page, :, :, at % 16], v_pages[page, :, at % 16] = k[token], v[token]
        used += counts[b]
    return k_pages, v_pages, table


def test_paged_attention_has_the_bits_of_packed_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = torch.tensor([0, 38, 39, 57], dtype=torch.int32)
    q, k, v = (torch.randn(57, heads, 16) for heads in (4, 2, 2))
    none = torch.full((3,), -1, dtype=torch.int32)
    want = attention.attend_packed(q, k, v, bounds, none, 0.3, False, config=SMALL)[0]
    pages = paged(k, v, bounds)
    last = torch.tensor([37, 38, 55, 56])
    cu_q = torch.tensor([0, 1, 2, 4], dtype=torch.int32)
    for most_parts in (1 << 26, 0):  # splits in programs of their own, or all in one
        monkeypatch.setattr(attention, "MOST_PARTS", most_parts)
        all_rows = attention.attend_paged(q, *pages, bounds, bounds.diff(), 0.3, config=SMALL)
        assert torch.equal(all_rows, want)
        few = attention.attend_paged(q[last], *pages, cu_q, bounds.diff(), 0.3, config=SMALL)
        assert torch.equal(few, want[last])


def test_a_page_outside_the_pages_shows_as_nan() -> None:
    bounds = torch.tensor([0, 20, 40], dtype=torch.int32)
    q, k, v = (torch.randn(40, 2, 16) for _ in range(3))
    k_pages, v_pages, table = paged(k, v, bounds)
    table[1, 1] = 99
    o = attention.attend_paged(q, k_pages, v_pages, table, bounds, bounds.diff(), 0.3, config=SMALL)
    assert o.isnan().flatten(1).all(1).tolist() == [False] * 36 + [True] * 4
