"""What must hold for any shape and any numbers: identities of each operation, checked on drawn cases."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seedthink.kernels.activation import swiglu
from seedthink.kernels.gae import advantage_moments, gae, whiten
from seedthink.kernels.linear import linear
from seedthink.kernels.logprob import linear_logprob, row_logprob
from seedthink.kernels.norm import rms_norm
from seedthink.kernels.rope import rope, rope_table
from seedthink.kernels.sampling import sample

SEEDS = st.integers(0, 2**32 - 1)
LENGTHS = st.lists(st.integers(0, 70), max_size=6)
SIZES = st.integers(1, 100)
COMPUTE = st.sampled_from([torch.float32, torch.bfloat16])
drawn = settings(max_examples=40, deadline=None)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def bounds(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


@drawn
@given(LENGTHS, SEEDS)
def test_gae_of_a_batch_is_gae_of_its_sequences(lengths: list[int], seed: int) -> None:
    reward, value, bootstrap = normal(seed, sum(lengths)), normal(seed + 1, sum(lengths)), normal(seed, len(lengths))
    mask, decay = normal(seed + 2, sum(lengths)) > -0.5, torch.full((len(lengths),), 0.9)
    together = gae(reward, value, bounds(lengths), decay, decay, 0.97, mask, bootstrap)
    parts = zip(*(each.split(lengths) for each in (reward, value, mask)), lengths, strict=True) if lengths else ()
    apart = [
        gae(r, v, bounds([n]), decay[:1], decay[:1], 0.97, m, bootstrap[b : b + 1])
        for b, (r, v, m, n) in enumerate(parts)
    ]
    for whole, pieces in zip(together, zip(*apart, strict=True), strict=False):
        assert torch.equal(whole, torch.cat(pieces))


@drawn
@given(LENGTHS, SEEDS)
def test_gae_without_decay_is_a_reverse_sum_and_with_lambda_zero_the_step_error(lengths: list[int], seed: int) -> None:
    reward, value = normal(seed, sum(lengths)), normal(seed + 1, sum(lengths))
    ones, zeros = torch.ones(len(lengths)), torch.zeros(len(lengths))
    step, returns = gae(reward, value, bounds(lengths), zeros, ones)
    for b, (begin, end) in enumerate(zip(bounds(lengths)[:-1], bounds(lengths)[1:], strict=True)):
        rest = reward[begin:end].double().flip(0).cumsum(0).flip(0)
        torch.testing.assert_close(returns[begin:end].double(), rest, rtol=1e-5, atol=1e-5)
        after = torch.cat([value[begin:end][1:], zeros[b : b + 1]])
        want = (reward[begin:end].double() + after.double() - value[begin:end].double())[: end - begin]
        torch.testing.assert_close(step[begin:end].double(), want, rtol=1e-6, atol=1e-6)


@drawn
@given(LENGTHS, SEEDS)
def test_gae_is_affine_in_the_rewards(lengths: list[int], seed: int) -> None:
    one, two, value = (normal(seed + i, sum(lengths)) for i in range(3))
    decay = torch.full((len(lengths),), 0.95)

    def advantage(reward: Tensor, value: Tensor) -> Tensor:
        return gae(reward, value, bounds(lengths), decay, decay)[0]

    added = advantage(one, value) + advantage(two, torch.zeros_like(value))
    torch.testing.assert_close(advantage(one + two, value), added, rtol=1e-4, atol=1e-4)


@drawn
@given(LENGTHS, SEEDS, st.permutations(range(6)))
def test_whitening_does_not_see_the_order_of_the_sequences(lengths: list[int], seed: int, order: list[int]) -> None:
    parts = normal(seed, sum(lengths)).split(lengths) if lengths else ()
    places = [i for i in order if i < len(lengths)]
    white = whiten(torch.cat([torch.zeros(0), *parts]), bounds(lengths))
    turned = whiten(torch.cat([torch.zeros(0), *(parts[i] for i in places)]), bounds([lengths[i] for i in places]))
    pieces = white.split(lengths) if lengths else ()
    assert torch.equal(turned, torch.cat([torch.zeros(0), *(pieces[i] for i in places)]))
    if sum(lengths) > 1:
        _, mean, variance = advantage_moments(white, bounds(lengths)).tolist()
        assert abs(mean) < 1e-6
        assert abs(variance - 1) < 1e-4


@drawn
@given(SIZES, st.integers(1, 3000), SEEDS, st.floats(0.0, 100.0), st.integers(-1000, 1000))
def test_log_probabilities_and_entropies_stay_in_range_and_ignore_a_shift(
    count: int, vocabulary: int, seed: int, scale: float, shift: int
) -> None:
    logits = (normal(seed, count, vocabulary) * scale).round()  # whole numbers: the shift is exact
    targets, ones = logits.argmin(-1), torch.ones(count)
    logprob, entropy = row_logprob(logits, targets, ones)
    assert (logprob <= 0).all()
    assert (entropy >= -1e-5).all()
    assert (entropy <= math.log(vocabulary) + 1e-5).all()
    for plain, shifted in zip((logprob, entropy), row_logprob(logits + shift, targets, ones), strict=True):
        assert torch.equal(plain, shifted)


@drawn
@given(SIZES, SIZES, st.integers(1, 2500), SEEDS, COMPUTE)
def test_rows_of_a_product_and_of_its_log_probabilities_do_not_see_each_other(
    rows: int, width: int, columns: int, seed: int, compute: torch.dtype
) -> None:
    x, weight = normal(seed, rows, width), normal(seed + 1, columns, width)
    targets, at = torch.arange(rows) % columns, seed % rows
    assert torch.equal(linear(x, weight, compute)[at], linear(x[at : at + 1], weight, compute)[0])
    together = linear_logprob(x, weight, targets, 0.8, compute)
    alone = linear_logprob(x[at : at + 1], weight, targets[at : at + 1], 0.8, compute)
    for whole, one in zip(together, alone, strict=True):
        assert torch.equal(whole[at : at + 1], one)


@drawn
@given(SIZES, SIZES, SEEDS, st.integers(-20, 20))
def test_a_normalised_row_has_unit_mean_square_and_no_scale(rows: int, width: int, seed: int, power: int) -> None:
    x = normal(seed, rows, width) + 0.1
    y = rms_norm(x, torch.ones(width), 0.0)
    torch.testing.assert_close(y.double().square().mean(-1), torch.ones(rows).double(), rtol=1e-5, atol=0.0)
    assert torch.equal(rms_norm(x * 4.0**power, torch.ones(width), 0.0), y)  # powers of two are exact


@drawn
@given(SIZES, st.integers(1, 3), st.integers(1, 40), SEEDS, st.integers(0, 900))
def test_a_turned_head_keeps_its_length_and_turns_back(rows: int, heads: int, half: int, seed: int, first: int) -> None:
    x, table = normal(seed, rows, heads, 2 * half), rope_table(1000, 2 * half, 1e4)
    positions = (torch.arange(rows) + first).clamp(max=999).int()
    turned = rope(x, table, positions)
    torch.testing.assert_close(turned.double().norm(dim=-1), x.double().norm(dim=-1), rtol=1e-5, atol=1e-6)
    mirrored = torch.cat([table[:, :half], -table[:, half:]], -1)
    torch.testing.assert_close(rope(turned, mirrored, positions), x, rtol=1e-4, atol=1e-5)
    # The angle between a query and a key depends on the distance of their positions alone.
    query, key = x, x.roll(1, 0)
    near, far = (
        (rope(query, table, positions * 0 + start) * rope(key, table, positions * 0 + start + 4)).sum(-1)
        for start in (3, 13)
    )
    torch.testing.assert_close(near, far, rtol=1e-3, atol=1e-3)


@drawn
@given(SIZES, SIZES, SEEDS)
def test_swiglu_is_linear_in_up_and_nothing_at_a_closed_gate(rows: int, width: int, seed: int) -> None:
    gate, up = normal(seed, rows, width) * 5, normal(seed + 1, rows, width)
    once, twice = (swiglu(torch.cat([gate, factor * up], -1)) for factor in (1.0, 2.0))
    assert torch.equal(2.0 * once, twice)
    assert not swiglu(torch.cat([torch.zeros_like(gate), up], -1)).any()
    torch.testing.assert_close(
        once.double(), torch.nn.functional.silu(gate.double()) * up.double(), rtol=1e-5, atol=1e-6
    )


@drawn
@given(SIZES, st.integers(1, 300), SEEDS, st.integers(0, 20), st.floats(0.05, 1.0))
def test_a_sample_is_among_the_tokens_that_the_cuts_keep_and_carries_its_log_probability(
    rows: int, vocabulary: int, seed: int, top_k: int, top_p: float
) -> None:
    logits, ones = normal(seed, rows, vocabulary), torch.ones(rows)
    seeds, position = torch.arange(rows) + seed, torch.full((rows,), 5)
    token, logprob = sample(logits, ones, torch.full((rows,), top_k).int(), torch.full((rows,), top_p), seeds, position)
    assert torch.equal(logprob, row_logprob(logits, token, ones)[0])
    p = logits.double().softmax(-1)
    likelier = p > p.gather(1, token[:, None]) * (1 + 1e-6)
    before, rank = (p * likelier).sum(-1), likelier.sum(-1)
    if top_k:
        assert (rank < top_k).all()
        kept = p.sort(-1, descending=True).values[:, :top_k].sum(-1)
        before = before / kept
    assert (before < top_p + 1e-6).all()
    greedy, _ = sample(logits, 0 * ones, torch.zeros(rows).int(), ones, seeds, position)
    assert torch.equal(greedy, logits.argmax(-1))
