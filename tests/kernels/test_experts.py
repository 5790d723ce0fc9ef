"""Routed experts: bits against themselves, values and gradients against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seedthink import _C
from seedthink.kernels import experts as experts_module
from seedthink.kernels.experts import experts, reference_experts
from seedthink.kernels.linear import linear
from seedthink.kernels.route import Routing, reference_route, route


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def weights(count: int, d: int, i: int) -> tuple[Tensor, Tensor]:
    return draw(count, 2 * i, d) / d**0.5, draw(count, d, i) / i**0.5


@pytest.fixture
def threads():
    """Sets the number of threads and puts it back."""
    before = _C.threads()
    yield _C.set_threads
    _C.set_threads(before)


def loads() -> list[tuple[str, Routing]]:
    """Routings of 45 tokens to 4 experts: spread, to every expert, all to one expert, and some experts empty."""
    spread, narrow = draw(45, 4), draw(45, 4)
    one, two = torch.zeros(45, 4), torch.zeros(45, 4)
    one[:, 2], two[:, 1], two[:, 3] = 9.0, 9.0, 8.0
    return [
        ("spread", route(spread, 2)),
        ("every", route(narrow, 4)),
        ("one", route(one, 1, norm_topk=False)),
        ("two of four", route(two, 2)),
    ]


@pytest.mark.parametrize(("d", "i"), [(32, 16), (65, 33), (64, 96)])
@pytest.mark.parametrize("load", range(4))
def test_values_and_gradients_agree_with_float64(load: int, d: int, i: int) -> None:
    _, routing = loads()[load]
    x, dy, (gate_up, down) = draw(45, d), draw(45, d), weights(4, d, i)
    truths = run(reference_experts, [value.double() for value in (x, routing.weight_TK, gate_up, down)], routing, dy)
    ours = run(experts, [x, routing.weight_TK, gate_up, down], routing, dy)
    theirs = run(reference_experts, [x, routing.weight_TK, gate_up, down], routing, dy)
    for our, their, truth in zip(ours, theirs, truths, strict=True):
        assert (our - truth).norm() <= 2 * (their - truth).norm() + 2e-7 * truth.norm()


def run(
    function, leaves: list[Tensor], routing: Routing, dy: Tensor, compute: torch.dtype = torch.float32
) -> list[Tensor]:
    """The output, then the gradients of x, the routing weights, gate_up and down."""
    x, weight, gate_up, down = (leaf.detach().clone().requires_grad_() for leaf in leaves)
    y = function(x, routing._replace(weight_TK=weight), gate_up, down, compute)
    y.backward(dy.to(y.dtype))
    return [y.detach(), x.grad, weight.grad, gate_up.grad, down.grad]


@pytest.mark.parametrize(("d", "i"), [(32, 16), (65, 33)])
@pytest.mark.parametrize("load", range(4))
def test_bfloat16_rounds_the_operands_of_the_products(half: torch.dtype, load: int, d: int, i: int) -> None:
    _, routing = loads()[load]
    x, dy, (gate_up, down) = draw(45, d), draw(45, d), weights(4, d, i)
    ours = run(experts, [x, routing.weight_TK, gate_up, down], routing, dy, half)
    leaves = [value.double() for value in (x, routing.weight_TK, gate_up, down)]
    truths = run(reference_experts, leaves, routing, dy, half)
    # A value beside a rounding border of bfloat16 may fall to the other side, so a few activations differ by 2^-8.
    assert (ours[0] - truths[0]).norm() <= 5e-4 * truths[0].norm()
    for our, truth in zip(ours[1:], truths[1:], strict=True):
        assert (our - truth).norm() <= 1e-2 * truth.norm()  # their operands are rounded too, the reference's are not


def test_a_token_has_the_same_bits_alone_and_beside_others(compute: torch.dtype) -> None:
    x, logits, (gate_up, down) = draw(150, 40), draw(150, 4), weights(4, 40, 24)
    whole = experts(x, route(logits, 2), gate_up, down, compute)
    for rows in ([0], [149], [3, 70, 71], list(range(0, 150, 2)), list(range(100))):
        part = experts(x[rows], route(logits[rows], 2), gate_up, down, compute)
        assert torch.equal(part, whole[rows])


def test_an_expert_is_two_row_exact_products(compute: torch.dtype) -> None:
    # One expert with weight 1: the same bits as the products by themselves around the same activation.
    x, (gate_up, down) = draw(20, 48), weights(3, 48, 16)
    logits = torch.zeros(20, 3)
    logits[:, 1] = 200.0
    hidden = linear(x, gate_up[1], compute)
    act = torch.empty(20, 16)
    _C.swiglu_forward(hidden, act)
    assert torch.equal(experts(x, route(logits, 1), gate_up, down, compute), linear(act, down[1], compute))


def test_bits_do_not_depend_on_threads_or_on_keeping_what_the_backward_needs(threads, compute: torch.dtype) -> None:
    x, dy, logits, (gate_up, down) = draw(260, 64), draw(260, 64), 2 * draw(260, 8), weights(8, 64, 32)
    results = []
    for count in (1, 2, 3):
        threads(count)
        routing = route(logits, 2)
        results.append([*run(experts, [x, routing.weight_TK, gate_up, down], routing, dy, compute), *routing])
        with torch.no_grad():
            assert torch.equal(experts(x, routing, gate_up, down, compute), results[-1][0])
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


def test_the_backward_may_take_any_number_of_experts_at_a_time(
    monkeypatch: pytest.MonkeyPatch, compute: torch.dtype
) -> None:
    x, dy, (gate_up, down) = draw(90, 20), draw(90, 20), weights(6, 20, 12)
    routing = route(draw(90, 6), 2)
    whole = run(experts, [x, routing.weight_TK, gate_up, down], routing, dy, compute)
    for rows in (1, 70):
        monkeypatch.setattr(experts_module, "_ROWS_AT_A_TIME", rows)
        parts = run(experts, [x, routing.weight_TK, gate_up, down], routing, dy, compute)
        assert all(torch.equal(one, two) for one, two in zip(whole, parts, strict=True))


def test_no_tokens(compute: torch.dtype) -> None:
    gate_up, down = weights(4, 8, 6)
    routing = route(torch.empty(0, 4), 2)
    assert routing.counts_E.tolist() == [0] * 4 and routing.offsets_E1.tolist() == [0] * 5
    leaves = [torch.empty(0, 8), routing.weight_TK, gate_up, down]
    y, dx, dweight, dgate_up, ddown = run(experts, leaves, routing, torch.empty(0, 8), compute)
    assert y.shape == dx.shape == (0, 8) and dweight.shape == (0, 2)
    assert dgate_up.abs().sum() == 0 and ddown.abs().sum() == 0


def test_an_empty_expert_has_a_zero_gradient(compute: torch.dtype) -> None:
    name, routing = loads()[3]
    x, (gate_up, down) = draw(45, 16), weights(4, 16, 8)
    *_, dgate_up, ddown = run(experts, [x, routing.weight_TK, gate_up, down], routing, draw(45, 16), compute)
    assert routing.counts_E.tolist() == [0, 45, 0, 45], name
    for gradient in (dgate_up, ddown):
        assert gradient[[0, 2]].abs().sum() == 0
        assert (gradient[[1, 3]].abs().sum((1, 2)) > 0).all()


def test_gradients_reach_the_logits_through_the_experts() -> None:
    x, logits, (gate_up, down) = draw(12, 16), draw(12, 4), weights(4, 16, 8)
    ours, truth = logits.clone().requires_grad_(), logits.double().requires_grad_()
    experts(x, route(ours, 2), gate_up, down).square().sum().backward()
    reference = reference_experts(x.double(), reference_route(truth, 2), gate_up.double(), down.double())
    reference.square().sum().backward()
    assert (ours.grad - truth.grad).norm() <= 1e-5 * truth.grad.norm()


def test_bad_input_is_an_error_that_names_the_argument() -> None:
    logits, x, (gate_up, down) = draw(6, 4), draw(6, 8), weights(4, 8, 5)
    routing = route(logits, 2)
    for message, arguments in (
        ("x: expected 2 dimensions", (x[0], routing, gate_up, down)),
        ("x: expected dtype float32", (x.double(), routing, gate_up, down)),
        ("gate_up: expected shape", (x, routing, gate_up[:, :9], down)),
        ("gate_up: expected contiguous torch.float32", (x, routing, gate_up.double(), down)),
        ("down: expected shape", (x, routing, gate_up, down[:3])),
        ("down: expected shape", (draw(6, 9), routing, gate_up, down)),
        ("routing.weight_TK: dimension 0 is 6, expected 5", (x[:5], routing, gate_up, down)),
        ("routing.row_TK: entry 0 is not", (x, routing._replace(row_TK=routing.row_TK + 1), gate_up, down)),
        (
            "routing.offsets_E1: must run from 0",
            (x, routing._replace(offsets_E1=routing.offsets_E1 + 1), gate_up, down),
        ),
        ("compute: torch.float16", (x, routing, gate_up, down, torch.float16)),
    ):
        with pytest.raises(ValueError, match=message):
            experts(*arguments)


def test_operators_pass_opcheck() -> None:
    x, logits, (gate_up, down) = draw(6, 8).requires_grad_(), draw(6, 4).requires_grad_(), weights(4, 8, 5)
    routing = route(logits.detach(), 2)
    leaves = (x, routing.weight_TK.requires_grad_(), routing.offsets_E1, routing.row_TK, routing.token_R)
    torch.library.opcheck(
        torch.ops.seedthink.experts.default,
        (*leaves, gate_up.requires_grad_(), down.requires_grad_(), torch.bfloat16),
    )
