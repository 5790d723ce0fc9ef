"""Routing: hand-made choices, the reference in float64, bits and places that hold for any batch, and the losses."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from seedthink import _C
from seedthink.kernels.route import (
    balance_loss,
    expert_fraction,
    reference_route,
    route,
    sequence_balance_loss,
    z_loss,
)

PLACES = ("ids_TK", "counts_E", "offsets_E1", "row_TK", "token_R")
INF = float("inf")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def rules(count: int) -> list[dict[str, Any]]:
    """All kinds of routing of `count` experts (a multiple of 4) that leave at least half of them to choose from."""
    bias = draw(count, seed=7) / 10
    return [
        {},
        {"norm_topk": False, "scale": 1.75},
        {"score": "softmax", "bias_E": bias / 4},
        {"score": "softmax", "norm_topk": False, "groups": 2, "topk_groups": 1},
        {"score": "sigmoid"},
        {"score": "sigmoid", "norm_topk": False},
        {"score": "sigmoid", "bias_E": bias, "scale": 2.5, "groups": 4, "topk_groups": 2},  # DeepSeek-V3
        {"score": "sigmoid", "norm_topk": False, "groups": 2, "topk_groups": 2},
    ]


def exact(rule: dict[str, Any]) -> dict[str, Any]:
    """The rule with a float64 bias."""
    return {name: value.double() if isinstance(value, Tensor) else value for name, value in rule.items()}


def test_rows_stand_expert_by_expert_in_token_order() -> None:
    logits = torch.tensor([[3.0, 0.0, 2.0], [0.0, 3.0, 2.0], [2.0, 0.0, 3.0]])
    routing = route(logits, 2)
    assert routing.ids_TK.tolist() == [[0, 2], [1, 2], [0, 2]]
    assert routing.counts_E.tolist() == [2, 1, 3]
    assert routing.offsets_E1.tolist() == [0, 2, 3, 6]
    assert routing.token_R.tolist() == [0, 2, 1, 0, 1, 2]
    assert routing.row_TK.tolist() == [[0, 3], [2, 4], [1, 5]]


def test_weights_are_the_softmax_scores_and_sum_to_one_when_asked() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0]]).log()  # scores 2/3, 1/3, 0
    torch.testing.assert_close(route(logits, 1, norm_topk=False).weight_TK, torch.tensor([[2 / 3]]))
    torch.testing.assert_close(route(logits, 1).weight_TK, torch.tensor([[1.0]]))
    torch.testing.assert_close(route(logits, 2).weight_TK, torch.tensor([[2 / 3, 1 / 3]]))


def test_weights_are_the_sigmoid_scores_times_the_scale() -> None:
    logits = torch.tensor([[3.0, 1.0, 1 / 3]]).log()  # scores 3/4, 1/2, 1/4
    plain = route(logits, 2, score="sigmoid", norm_topk=False, scale=2.0)
    torch.testing.assert_close(plain.weight_TK, torch.tensor([[1.5, 1.0]]))
    normed = route(logits, 2, score="sigmoid", scale=2.5)
    torch.testing.assert_close(normed.weight_TK, torch.tensor([[1.5, 1.0]]))


def test_the_bias_moves_the_choice_and_never_a_weight() -> None:
    logits = torch.tensor([[3.0, 1.0, 1 / 3]]).log()  # scores 3/4, 1/2, 1/4
    bias = torch.tensor([-0.3, 0.0, 0.3])  # 0.45, 0.5, 0.55
    biased = route(logits, 2, score="sigmoid", norm_topk=False, bias_E=bias)
    assert biased.ids_TK.tolist() == [[1, 2]]
    torch.testing.assert_close(biased.weight_TK, torch.tensor([[0.5, 0.25]]))


def test_a_group_is_judged_by_its_two_best_experts() -> None:
    # scores 0.9 0.1 0.1 | 0.6 0.5 0.1: the first group has the best expert, the second the better pair.
    scores = torch.tensor([[0.9, 0.1, 0.1, 0.6, 0.5, 0.1]])
    routing = route(scores.logit(), 2, score="sigmoid", groups=2, topk_groups=1)
    assert routing.ids_TK.tolist() == [[3, 4]]
    biased = route(
        scores.logit(), 2, score="sigmoid", groups=2, topk_groups=1, bias_E=torch.tensor([0.0, 0.2, 0, 0, 0, 0])
    )
    assert biased.ids_TK.tolist() == [[0, 1]]  # 0.9 + 0.3 against 0.6 + 0.5
    single = route(scores.logit(), 2, score="sigmoid", groups=6, topk_groups=3)  # groups of one: the best experts
    assert single.ids_TK.tolist() == [[0, 3]]


def test_ties_go_to_the_smaller_expert_and_to_the_smaller_group() -> None:
    logits = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 5.0, 5.0, 5.0], [5.0, 1.0, 0.0, 5.0], [-0.0, 0.0, -1.0, 0.0]])
    for rule in ({}, {"score": "sigmoid"}, {"bias_E": torch.zeros(4)}):
        assert route(logits, 2, **rule).ids_TK.tolist() == [[0, 1], [1, 2], [0, 3], [0, 1]]
    assert route(logits[:1], 2, groups=2, topk_groups=1).ids_TK.tolist() == [[0, 1]]
    pairs = torch.tensor([[5.0, 1.0, 1.0, 5.0], [0.0, 5.0, 5.0, 5.0]])  # the first two sum to the same
    assert route(pairs, 1, groups=2, topk_groups=1).ids_TK.tolist() == [[0], [2]]


@pytest.mark.parametrize("kind", range(8))
@pytest.mark.parametrize(("t", "count", "k"), [(5, 4, 2), (300, 8, 2), (130, 60, 6), (17, 128, 8), (9, 512, 10)])
def test_routing_agrees_with_the_reference(t: int, count: int, k: int, kind: int) -> None:
    logits, rule = (4 * draw(t, count)).round() / 2, rules(count)[kind]  # many ties
    got, truth = route(logits, k, **rule), reference_route(logits.double(), k, **exact(rule))
    for name in PLACES:
        assert torch.equal(getattr(got, name), getattr(truth, name)), name
        assert getattr(got, name).dtype == torch.int32
    torch.testing.assert_close(got.weight_TK.double(), truth.weight_TK, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("count", "k"), [(1, 1), (40, 33), (300, 36), (300, 300), (2304, 40)])
def test_any_number_of_experts_may_be_chosen(count: int, k: int) -> None:
    logits = torch.cat([draw(3, count), draw(3, count).round(), torch.zeros(1, count)])
    assert torch.equal(route(logits, k).ids_TK, reference_route(logits, k).ids_TK)


@pytest.mark.parametrize("kind", range(8))
def test_gradient_of_the_weights_agrees_with_float64(kind: int) -> None:
    logits, dweight, rule = draw(40, 20), draw(40, 3), rules(20)[kind]
    ours, truth = logits.clone().requires_grad_(), logits.double().requires_grad_()
    route(ours, 3, **rule).weight_TK.backward(dweight)
    reference_route(truth, 3, **exact(rule)).weight_TK.backward(dweight.double())
    assert (ours.grad - truth.grad).norm() <= 2e-6 * truth.grad.norm()


def test_the_bias_gets_no_gradient() -> None:
    logits, bias = draw(6, 4).requires_grad_(), torch.zeros(4, requires_grad=True)
    route(logits, 2, score="sigmoid", bias_E=bias).weight_TK.square().sum().backward()
    assert bias.grad is None and logits.grad is not None and logits.grad.abs().sum() > 0


def test_sigmoid_scores_that_are_all_zero_give_zero_weights() -> None:
    logits = torch.full((1, 4), -200.0, requires_grad=True)
    weight = route(logits, 2, score="sigmoid").weight_TK
    weight.sum().backward()
    assert weight.tolist() == [[0.0, 0.0]] and logits.grad is not None and logits.grad.tolist() == [[0.0] * 4]


def test_an_infinitely_unlikely_expert_gets_no_weight() -> None:
    routing = route(torch.tensor([[-INF, 0.0, -300.0]]), 2)
    assert routing.ids_TK.tolist() == [[1, 2]]
    assert routing.weight_TK.tolist() == [[1.0, 0.0]]
    only = route(torch.tensor([[-INF, -INF, 0.0]]), 2, score="sigmoid")
    assert only.ids_TK.tolist() == [[0, 2]] and only.weight_TK.tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize("rule", [{}, {"score": "sigmoid"}, {"groups": 2, "topk_groups": 1}])
@pytest.mark.parametrize("bad", [float("nan"), INF])
def test_logits_that_are_not_numbers_are_refused(bad: float, rule: dict[str, Any]) -> None:
    logits = torch.zeros(200, 8)
    logits[150:160, 7] = bad
    with pytest.raises(ValueError, match="logits: row 150 has NaN or"):
        route(logits, 2, **rule)
    with pytest.raises(ValueError, match="logits: row 0 has NaN or"):
        route(torch.full((1, 4), -INF), 2, **rule)


def test_no_tokens_and_one_expert_for_all() -> None:
    empty = route(torch.empty(0, 4), 2)
    assert empty.counts_E.tolist() == [0] * 4 and empty.offsets_E1.tolist() == [0] * 5
    logits = torch.zeros(1000, 3)
    logits[:, 1] = 9.0
    routing = route(logits, 1)
    assert routing.counts_E.tolist() == [0, 1000, 0] and routing.token_R.tolist() == list(range(1000))


@pytest.mark.parametrize("kind", range(8))
def test_a_token_has_the_same_bits_alone_and_beside_others_and_for_any_number_of_threads(kind: int) -> None:
    logits, rule, before = draw(300, 64), rules(64)[kind], _C.threads()
    whole = route(logits, 6, **rule)
    for rows in ([0], [299], [3, 200, 201], list(range(0, 300, 2))):
        part = route(logits[rows], 6, **rule)
        assert torch.equal(part.ids_TK, whole.ids_TK[rows]) and torch.equal(part.weight_TK, whole.weight_TK[rows])
    try:
        for threads in (1, 3):
            _C.set_threads(threads)
            assert all(torch.equal(one, two) for one, two in zip(route(logits, 6, **rule), whole, strict=True))
    finally:
        _C.set_threads(before)


CLASS_BITS = """
import torch
from seedthink.kernels.route import route
generator, found = torch.Generator().manual_seed(3), []
logits, bias = torch.randn(200, 64, generator=generator), torch.randn(64, generator=generator) / 10
for rule in (
    {},
    {"bias_E": bias / 4},
    {"groups": 4, "topk_groups": 2},
    {"score": "sigmoid"},
    {"score": "sigmoid", "bias_E": bias, "groups": 8, "topk_groups": 4},
):
    ids, weight, *_ = route(logits, 6, norm_topk=False, **rule)
    found += [ids.tolist(), weight.tolist() if rule else None]  # the plain softmax weights differ in the last bit
"""


@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_every_device_class_chooses_the_same_experts(isa: str) -> None:
    here: dict[str, Any] = {}
    exec(CLASS_BITS, here)
    there = subprocess.run(
        [sys.executable, "-c", CLASS_BITS + "print(found)"],
        env={**os.environ, "SEEDTHINK_ISA": isa},
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout.strip() == str(here["found"])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    t=st.integers(0, 40),
    quarter=st.integers(1, 40),
    kind=st.integers(0, 7),
    data=st.data(),
)
def test_properties_of_routing(seed: int, t: int, quarter: int, kind: int, data: st.DataObject) -> None:
    count = 4 * quarter
    k = data.draw(st.integers(1, count // 2), label="k")
    rule, generator = rules(count)[kind], torch.Generator().manual_seed(seed)
    # Distinct multiples of 1/8: sums with whole numbers are exact, and no two experts of a token tie.
    logits = torch.stack([torch.randperm(count, generator=generator) for _ in range(t)] or [torch.empty(0, count)])
    logits = (logits.reshape(t, count).float() - count / 2) / 8
    routing = route(logits, k, **rule)
    assert int(routing.counts_E.sum()) == t * k and routing.offsets_E1.diff().tolist() == routing.counts_E.tolist()
    assert routing.row_TK.flatten().sort().values.tolist() == list(range(t * k))
    assert (routing.ids_TK.diff(dim=1) > 0).all() and torch.equal(
        routing.token_R[routing.row_TK.long()], torch.arange(t).int()[:, None].expand(t, k)
    )
    if rule.get("score") != "sigmoid":  # a softmax does not see a shift of its row
        shifted = route(logits + torch.randint(-8, 9, (t, 1), generator=generator).float(), k, **rule)
        assert all(torch.equal(one, two) for one, two in zip(shifted, routing, strict=True))
    if "groups" not in rule:  # experts renamed: the same choice and the same weights under the new names
        order = torch.randperm(count, generator=generator)
        bias = {"bias_E": rule["bias_E"][order]} if "bias_E" in rule else {}
        renamed = route(logits[:, order], k, **{**rule, **bias})
        back, place = order[renamed.ids_TK.long()].sort(dim=1)
        assert torch.equal(back.int(), routing.ids_TK)
        torch.testing.assert_close(renamed.weight_TK.gather(1, place), routing.weight_TK)


def test_bad_input_is_an_error_that_names_the_argument() -> None:
    logits, bias = draw(6, 4), torch.zeros(4)
    bad_bias = torch.tensor([0.0, 0.0, float("nan"), 0.0])
    cases: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("k: 5 is not between 1 and the number of experts, 4", (logits, 5), {}),
        ("k: 0 is not", (logits, 0), {}),
        ("logits: expected 2 dimensions", (logits[0], 1), {}),
        ("logits: expected dtype float32", (logits.double(), 1), {}),
        ("logits: must be contiguous", (draw(4, 6).T, 1), {}),
        ("score: 'relu' is not one of softmax, sigmoid", (logits, 1), {"score": "relu"}),
        ("scale: 0 is not finite and above 0", (logits, 1), {"scale": 0.0}),
        ("scale: ", (logits, 1), {"scale": INF}),
        ("bias: dimension 0 is 3, expected 4", (logits, 1), {"bias_E": bias[:3]}),
        ("bias: expected dtype float32", (logits, 1), {"bias_E": bias.double()}),
        ("bias: entry 2 is not finite", (logits, 1), {"bias_E": bad_bias}),
        ("groups: 3 does not divide the number of experts, 4", (logits, 1), {"groups": 3}),
        ("groups: 0 does not", (logits, 1), {"groups": 0}),
        ("topk_groups: 3 is not between 1 and the number of groups, 2", (logits, 1), {"groups": 2, "topk_groups": 3}),
        ("k: 3 is more than the 2 experts of topk_groups = 1", (logits, 3), {"groups": 2, "topk_groups": 1}),
    ]
    for message, arguments, rule in cases:
        with pytest.raises(ValueError, match=message):
            route(*arguments, **rule)


@pytest.mark.parametrize("kind", range(8))
def test_the_operator_passes_opcheck(kind: int) -> None:
    rule = {"score": "softmax", "norm_topk": True, "scale": 1.0, "bias_E": None, "groups": 1, "topk_groups": 1}
    logits = draw(6, 8).requires_grad_()
    torch.library.opcheck(torch.ops.seedthink.route.default, (logits, 2, *(rule | rules(8)[kind]).values()))


def test_routing_compiles_to_the_same_bits() -> None:
    logits = draw(20, 8)
    compiled = torch.compile(lambda x: tuple(route(x, 2, score="sigmoid", scale=2.5)), fullgraph=True, backend="eager")
    assert all(
        torch.equal(one, two)
        for one, two in zip(compiled(logits), route(logits, 2, score="sigmoid", scale=2.5), strict=True)
    )


def test_the_balance_loss_by_hand() -> None:
    even = balance_loss(torch.zeros(3, 2), torch.tensor([0.5, 0.5]), 3.0)
    assert even.item() == pytest.approx(1.0)
    logits = torch.log(torch.tensor([[0.75, 0.25], [0.5, 0.5], [0.1, 0.9]]))
    masked = balance_loss(logits, torch.tensor([1.0, 0.0]), 2.0, torch.tensor([1.0, 1.0, 0.0]))
    assert masked.item() == pytest.approx(2 * (0.75 + 0.5) / 2)
    assert expert_fraction(torch.tensor([3, 1], dtype=torch.int32)).tolist() == [0.75, 0.25]
    assert expert_fraction(torch.zeros(2, dtype=torch.int32)).tolist() == [0.0, 0.0]
    # sigmoids 3/4 and 1/4, then 1/2 and 1/2: already shares of 1
    sigmoids = torch.tensor([[3.0, 1 / 3], [1.0, 1.0]]).log()
    shared = balance_loss(sigmoids, torch.tensor([1.0, 0.0]), 2.0, score="sigmoid")
    assert shared.item() == pytest.approx(2 * (0.75 + 0.5) / 2)


def test_the_balance_loss_does_not_depend_on_the_cut_into_micro_batches() -> None:
    logits, fraction = torch.randn(10, 4, dtype=torch.float64), torch.tensor([0.4, 0.3, 0.2, 0.1])
    whole = balance_loss(logits, fraction, 10.0)
    parts = [balance_loss(part, fraction, 10.0) for part in logits.split((3, 7))]
    assert torch.allclose(whole, parts[0] + parts[1], rtol=1e-12)


def test_the_balance_loss_is_that_of_transformers_over_k() -> None:
    logits, k = draw(50, 8), 2
    routing = route(logits, k)
    theirs = load_balancing_loss_func((logits,), num_experts=8, top_k=k)
    torch.testing.assert_close(k * balance_loss(logits, expert_fraction(routing.counts_E), 50.0), theirs)


def test_the_balance_loss_of_sequences_is_the_mean_of_their_own_losses() -> None:
    logits, cu_seqlens, lengths = draw(30, 8), torch.tensor([0, 11, 11, 30], dtype=torch.int32), (11, 0, 19)
    routing = route(logits, 2, score="sigmoid")
    ours = logits.clone().requires_grad_()
    sequence_balance_loss(ours, routing.ids_TK, cu_seqlens, 3.0).backward()
    truth = logits.clone().requires_grad_()
    total = torch.zeros(())
    for part, length in zip(truth.split(lengths), lengths, strict=True):
        if length:
            fraction = expert_fraction(route(part.detach(), 2, score="sigmoid").counts_E)
            total = total + balance_loss(part, fraction, float(length), score="sigmoid") / 3
    total.backward()
    torch.testing.assert_close(sequence_balance_loss(logits, routing.ids_TK, cu_seqlens, 3.0), total.detach())
    torch.testing.assert_close(ours.grad, truth.grad)


def test_the_z_loss_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0], [1.0, 1.0], [9.0, 9.0]])
    log2 = torch.tensor(2.0).log().item()
    assert z_loss(logits[:2], 2.0).item() == pytest.approx((log2**2 + (1 + log2) ** 2) / 2)
    masked = z_loss(logits, 2.0, torch.tensor([1.0, 1.0, 0.0]))
    torch.testing.assert_close(masked, z_loss(logits[:2], 2.0))
    ours = logits[1:2].clone().requires_grad_()
    z_loss(ours, 1.0).backward()
    torch.testing.assert_close(ours.grad, torch.full((1, 2), 1 + log2))  # 2 lse * softmax
