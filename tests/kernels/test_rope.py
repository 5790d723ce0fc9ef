"""RoPE: half-split rotation, the derivative turns back."""

from __future__ import annotations

import math

import pytest
import torch

from seedthink.kernels.rope import reference_rope, rope, rope_table
from seedthink.kernels.rope_scaling import LinearScaling, Llama3Scaling, YarnScaling


def test_a_head_of_width_two_turns_by_the_position_in_radians() -> None:
    table = rope_table(8, 2, 10000.0)
    x = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]])
    y = rope(x, table, torch.tensor([0, 3], dtype=torch.int32))
    want = torch.tensor([[[1.0, 0.0]], [[math.cos(3.0), math.sin(3.0)]]])
    torch.testing.assert_close(y, want)


def test_pairs_are_half_a_head_apart() -> None:
    table = rope_table(4, 4, 100.0)  # frequencies 1 and 0.1
    y = rope(torch.tensor([[[1.0, 1.0, 0.0, 0.0]]]), table, torch.tensor([2], dtype=torch.int32))
    want = torch.tensor([[[math.cos(2.0), math.cos(0.2), math.sin(2.0), math.sin(0.2)]]])
    torch.testing.assert_close(y, want)


@pytest.mark.parametrize("width", [2, 6, 32, 40, 128])
def test_values_and_gradients_match_float64(width: int) -> None:
    torch.manual_seed(width)
    table, positions = rope_table(500, width, 1e6), torch.randint(0, 500, (30,), dtype=torch.int32)
    x, grad = torch.randn(30, 3, width), torch.randn(30, 3, width)
    ours, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    y, want = rope(ours, table, positions), reference_rope(exact, table.double(), positions)
    torch.testing.assert_close(y.double(), want, rtol=1e-6, atol=1e-6)
    y.backward(grad)
    want.backward(grad.double())
    torch.testing.assert_close(ours.grad.double(), exact.grad, rtol=1e-6, atol=1e-6)


def test_linear_scaling_counts_every_position_by_its_share() -> None:
    plain, stretched = rope_table(9, 4, 100.0), rope_table(36, 4, 100.0, LinearScaling(factor=4.0))
    assert torch.equal(stretched[::4], plain)


def test_llama3_scaling_keeps_short_waves_stretches_long_ones_and_blends_between() -> None:
    # Frequencies 1, 0.1, 0.01 and 0.001 turn 15.9, 1.59, 0.159 and 0.0159 times within 100 positions.
    rule = Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=100)
    power = torch.tensor([1.0, 10.0, 100.0, 1000.0])
    turns = 100 * 0.1 / (2 * math.pi)
    ramp = (turns - 1.0) / 3.0
    want = torch.tensor([1.0, (1 - ramp) * 0.1 / 8 + ramp * 0.1, 0.01 / 8, 0.001 / 8])
    torch.testing.assert_close(rule.frequencies(power, 1e4), want, rtol=1e-6, atol=0)


def test_yarn_keeps_fast_pairs_divides_slow_ones_and_is_louder() -> None:
    context, theta = 64, 16.0
    power = theta ** (torch.arange(8) / 8)
    turns = (context / (2 * math.pi) / power).tolist()
    rule = YarnScaling(
        factor=4.0, original_max_position_embeddings=context, beta_fast=turns[2], beta_slow=turns[6], truncate=False
    )
    ramp = torch.tensor([0.0, 0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0])
    want = (1 - ramp) / power + ramp / (4 * power)
    torch.testing.assert_close(rule.frequencies(power, theta), want, rtol=1e-5, atol=0)
    louder = 0.1 * math.log(4.0) + 1.0
    torch.testing.assert_close(rope_table(3, 16, theta, rule)[0], torch.tensor([louder] * 8 + [0.0] * 8))


def test_scores_depend_on_the_distance_alone() -> None:
    table = rope_table(64, 16, 10000.0)
    q, k = torch.randn(1, 1, 16), torch.randn(1, 1, 16)

    def score(i: int, j: int) -> torch.Tensor:
        turned = [rope(x, table, torch.tensor([at], dtype=torch.int32)) for x, at in ((q, i), (k, j))]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(score(50, 45), score(12, 7), rtol=1e-4, atol=1e-5)


def test_positions_outside_the_table_and_odd_heads_are_refused() -> None:
    table = rope_table(4, 8, 100.0)
    for position in (-1, 4):
        with pytest.raises(ValueError, match=f"positions: entry 0 is {position}"):
            rope(torch.zeros(1, 1, 8), table, torch.tensor([position], dtype=torch.int32))
    with pytest.raises(ValueError, match="head_dim: must be positive and even, got 7"):
        rope_table(4, 7, 100.0)


def test_the_operator_is_registered_soundly() -> None:
    positions = torch.tensor([1, 3], dtype=torch.int32)
    arguments = (torch.randn(2, 2, 8, requires_grad=True), rope_table(4, 8, 100.0), positions, False)
    torch.library.opcheck(torch.ops.seedthink.rope.default, arguments)
