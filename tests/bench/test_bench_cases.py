"""The cases: least work by hand, every operation in its place, and every formula held against float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from seedthink.bench.case import Case, Draw, against
from seedthink.bench.cases import (
    OPS,
    attention,
    balance,
    cases,
    chosen_ops,
    experts,
    fp8,
    gae,
    linear,
    logprob,
    norm,
    permute,
    rope,
    route,
    sampling,
    swiglu,
)
from seedthink.bench.presets import Shapes, presets
from seedthink.errors import ConfigError

TINY = Shapes(
    name="tiny",
    source="a test",
    width=128,
    experts=8,
    experts_per_token=2,
    expert_width=32,
    heads=4,
    kv_heads=2,
    head_dim=16,
    vocabulary=48,
    rows=(64,),
    tokens=(33,),
    scored_tokens=(20,),
    sampled_rows=(5,),
    contexts=((3, 20),),
    packed=((2, 24),),
    matrices=((128, 256),),
    linears=((128, 40),),
    scans=((3, 128),),
    balances=((40, 4),),
)
GROUPED = Shapes("grouped", "a test", 16, 16, 4, 8, "sigmoid", 4, 2, 2.5, True, tokens=(50,))
MEANT_FOR_CHECKING = ("eager", "verl_loop", "chunked", "sdpa", "index_add", "F.rms_norm", "python")


def tiny_cases() -> Iterator[Case]:
    yield from cases(list(OPS), TINY, "cpu")
    yield from cases(["route"], GROUPED, "cpu")


@pytest.mark.parametrize(
    ("work", "bytes_", "flops"),
    [
        # per token: two float32 in and two out, 12 bytes of lambdas and bounds per sequence
        (gae.work(2, 100, 0), 2 * 100 * 16 + 24, 2 * 100 * 7),
        (gae.work(2, 100, 1), 2 * 100 * 17 + 24, 2 * 100 * 7),
        # 10 tokens, 4 experts, 2 of them: logits, 16 bytes a row, a count and an offset per expert
        (route.work(10, 4, 2), 160 + 320 + 32, 40),
        (permute.work(10, 3, 2, 4), 4 * (30 + 60 + 20), 0),
        (permute.work(10, 3, 2, 2), 2 * (30 + 60) + 4 * 20, 0),
        (fp8.work((128, 256), (1, 128), "float32"), 128 * 256 * 5 + 4 * 256, 128 * 256 * 4),
        (fp8.work((128, 256), (128, 128), "bfloat16"), 128 * 256 * 3 + 4 * 2, 128 * 256 * 4),
        (fp8.product_work(2, 128, 128, "cpu"), 256 + 16384 + 4 * 3 + 4 * 256, 2 * 2 * 128 * 128),
        (linear.work(2, 3, 5, "float32"), 4 * (6 + 15 + 10), 60),
        (linear.work(2, 3, 5, "bfloat16", passes=3), 3 * 2 * (6 + 15 + 10), 180),
        (logprob.work(2, 3, 5, "float32", 1), 4 * (6 + 15) + 32, 60),
        (norm.work(10, 4, 4, arrays=2), 4 * (80 + 4), 160),
        (swiglu.work(10, 4, 4, 3), 4 * 120, 160),
        (rope.work(10, 2, 4, 4), 4 * 10 * (16 + 4 + 1), 240),
        (sampling.work(3, 10), 120 + 132, 30),
        # q, k, v and o of one sequence of 4; 4 * 5 / 2 pairs, two products of H numbers for each head
        (attention.packed_work((1, 4, 2, 1, 8), "float32"), 4 * 4 * 8 * (4 + 2), 2 * 2 * 10 * 8 * 2),
        (attention.paged_work((1, 4, 2, 1, 8), "bfloat16"), 2 * 2 * 4 * 8 + 8 * 16, 2 * 2 * 4 * 8 * 2),
    ],
)
def test_the_least_work_is_what_the_formulas_give(work: object, bytes_: float, flops: float) -> None:
    assert (work.bytes, work.flops) == (bytes_, flops)  # type: ignore[attr-defined]


def test_experts_that_no_token_is_expected_to_hit_are_not_read() -> None:
    one, many = (experts.work(tokens, 2, 3, 4, 1, "float32") for tokens in (1, 1000))
    assert one.bytes == pytest.approx(3 * 4 * 1 * 6 + 8 * 2 + 12)  # one of four experts
    assert many.bytes == pytest.approx(3 * 4 * 4 * 6 + 1000 * (8 * 2 + 12))
    assert many.flops == 6 * 1000 * 6


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_family_yields_the_operations_that_the_table_gives_it(device: str) -> None:
    for shapes in presets().values():
        made = {case.op for case in cases(list(OPS), shapes, device)}
        assert made <= set(OPS)
    assert {case.op for case in cases(list(OPS), presets()["qwen3-30b-a3b"], "cpu")} == set(OPS)


def test_two_cases_of_a_preset_are_never_the_same_measurement() -> None:
    for shapes in presets().values():
        keys = [(case.op, case.place, case.dtype) for case in cases(list(OPS), shapes, "cpu")]
        assert len(keys) == len(set(keys))


@pytest.mark.parametrize("case", list(tiny_cases()), ids=lambda case: f"{case.op} {case.place} {case.dtype}")
def test_ours_and_the_plain_peers_agree_with_float64(case: Case) -> None:
    with torch.no_grad():
        prepared = case.prepare(Draw(torch.device("cpu")))
        for name, maker in {**prepared.ours, **prepared.peers}.items():
            if name in prepared.ours or name in MEANT_FOR_CHECKING:
                assert prepared.error(maker()()) <= prepared.tolerance, name


def test_inputs_are_the_same_for_the_same_seed_and_hold_no_zeros() -> None:
    one, other = (Draw(torch.device("cpu"), seed=3).normal(1000) for _ in range(2))
    assert torch.equal(one, other) and (one != 0).all()


def test_an_error_is_relative_to_the_largest_value_and_exact_for_whole_numbers() -> None:
    error = against(lambda: (torch.tensor([1.0, -4.0]).double(), torch.tensor([1, 2])))
    assert error((torch.tensor([1.0, -4.0]), torch.tensor([1, 2]))) == 0.0
    assert error((torch.tensor([1.5, -4.0]), None)) == 0.125
    assert error((torch.tensor([1.0, -4.0]), torch.tensor([1, 3]))) == float("inf")
    assert error((torch.tensor([float("nan"), -4.0]), None)) == float("inf")
    assert error((torch.tensor([1.0]), None)) == float("inf")
    assert error((None, None)) == float("inf")


def test_an_operation_is_chosen_by_name_or_family() -> None:
    assert chosen_ops([]) == list(OPS)
    assert chosen_ops(["swiglu_train", "gae"]) == ["gae", "swiglu_train"]
    assert chosen_ops(["fp8"]) == ["fp8_quantize", "fp8_carry", "fp8_linear"]
    assert chosen_ops(["swiglu"]) == ["swiglu"]  # an operation, before it is a family
    with pytest.raises(ConfigError, match="did you mean swiglu"):
        chosen_ops(["swigl"])


def test_a_worse_choice_of_experts_is_an_error() -> None:
    logits_TE = torch.tensor([[3.0, 2.0, 1.0]])
    router = route.Router(2, "softmax", 1, 1, 1.0)
    right = route.in_torch(logits_TE, None, None, router=router)
    assert route.error(logits_TE, None, router, None, right) < 1e-6
    worse = route.in_torch(logits_TE[:, [0, 2, 1]], None, None, router=router)
    assert route.error(logits_TE, None, router, None, worse) == float("inf")
    twice = (torch.tensor([[0, 0]]), *right[1:])
    assert route.error(logits_TE, None, router, None, twice) == float("inf")


def test_a_partition_that_is_heavier_or_unequal_is_an_error() -> None:
    cost_N, even = torch.tensor([4, 3, 2, 1]), torch.tensor([0, 1, 1, 0])
    assert balance.error(cost_N, 2, True, (even,)) == 0.0
    assert balance.error(cost_N, 2, False, (torch.tensor([0, 0, 1, 1]),)) == pytest.approx(0.4)
    assert balance.error(cost_N, 2, True, (torch.tensor([0, 1, 1, 1]),)) == float("inf")
