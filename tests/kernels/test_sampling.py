"""Sampling: the right distribution, the cuts, and draws that depend on (seed, position) and the row alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from seedthink import _C
from seedthink.kernels.logprob import row_logprob
from seedthink.kernels.sampling import (
    philox_uniform,
    reference_sample,
    reference_sample_probabilities,
    sample,
)


def draw(
    logits_BV: Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    positions: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One draw per row with the same settings; positions default to 0, 1, 2 ..."""
    rows = len(logits_BV)
    return sample(
        logits_BV,
        torch.full((rows,), temperature),
        torch.full((rows,), top_k, dtype=torch.int32),
        torch.full((rows,), top_p),
        torch.full((rows,), seed, dtype=torch.int64),
        torch.arange(rows) if positions is None else positions,
    )


def test_philox_gives_its_published_numbers() -> None:
    # Known answers of Philox4x32-10 for an all-zero key and counter: 6627e8d5 e169c58d ...
    assert philox_uniform(0, 0) == (0x6627E8D5E169C58D >> 11) / 2**53


def test_uniform_logits_turn_the_random_number_into_an_id() -> None:
    tokens, _ = draw(torch.zeros(200, 64), seed=12345678901)
    want = [int(philox_uniform(12345678901, position) * 64) for position in range(200)]
    assert tokens.tolist() == want


@pytest.mark.parametrize(("seed", "position"), [(-1, 5), (2**62, 2**40), (7, 0)])
def test_seeds_and_positions_use_all_their_bits(seed: int, position: int) -> None:
    token, _ = draw(torch.zeros(1, 1000), seed=seed, positions=torch.tensor([position]))
    assert token.item() == int(philox_uniform(seed, position) * 1000)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.5, 0, 1.0), (1.7, 4, 1.0), (1.0, 0, 0.8), (0.9, 5, 0.7)]
)
def test_draws_follow_the_distribution(temperature: float, top_k: int, top_p: float) -> None:
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0, 1.0, -0.5, 1.5, 0.9])
    count = 20000
    tokens, _ = draw(logits.repeat(count, 1), temperature, top_k, top_p, seed=3)
    expected = reference_sample_probabilities(logits.double(), temperature, top_k, top_p) * count
    observed = torch.bincount(tokens, minlength=8).double()
    assert (observed[expected == 0] == 0).all()
    inside = expected > 0
    chi_square = ((observed - expected)[inside] ** 2 / expected[inside]).sum().item()
    assert chi_square < 28.0  # 7 degrees of freedom: exceeded once in 4000 seeds, and the seed is fixed


def test_tokens_match_the_float64_reference() -> None:
    torch.manual_seed(0)
    logits = torch.randn(300, 50) * 3
    settings = (
        torch.rand(300) * 1.5 + 0.2,
        torch.randint(0, 60, (300,), dtype=torch.int32),
        torch.rand(300) * 0.9 + 0.1,
        torch.randint(0, 2**60, (300,)),
        torch.randint(0, 10000, (300,)),
    )
    tokens, logprobs = sample(logits, *settings)
    want_tokens, want_logprobs = reference_sample(logits.double(), *settings)
    assert (tokens == want_tokens).float().mean() > 0.995
    same = tokens == want_tokens
    torch.testing.assert_close(logprobs.double()[same], want_logprobs[same], rtol=1e-5, atol=1e-5)


def test_a_row_draws_the_same_token_whatever_shares_its_batch() -> None:
    logits = torch.randn(40, 100)
    together = draw(logits, 0.8, 20, 0.9, seed=5)
    for row in range(0, 40, 3):
        alone = draw(logits[row : row + 1], 0.8, 20, 0.9, seed=5, positions=torch.tensor([row]))
        assert alone[0].item() == together[0][row].item()
        assert torch.equal(alone[1], together[1][row : row + 1])


def test_one_thread_and_two_draw_the_same() -> None:
    logits, before, results = torch.randn(3000, 40), _C.threads(), []
    try:
        for threads in (1, 2):
            _C.set_threads(threads)
            results.append(draw(logits, 0.9, 0, 0.9))
    finally:
        _C.set_threads(before)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_the_log_probability_is_the_trainers_and_from_before_the_cuts() -> None:
    logits = torch.randn(60, 77) * 2
    tokens, logprobs = draw(logits, 0.7, top_k=3, top_p=0.5)
    assert torch.equal(logprobs, row_logprob(logits, tokens, torch.full((60,), 0.7))[0])


def test_temperature_zero_is_greedy_with_ties_to_the_smaller_id() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0, 1.0], [5.0, 5.0, 5.0, 5.0]])
    tokens, logprobs = draw(logits, temperature=0.0)
    assert tokens.tolist() == [1, 0]
    assert torch.equal(logprobs, row_logprob(logits, tokens, torch.ones(2))[0])


def test_top_k_of_one_is_greedy_and_ties_go_to_the_smaller_id() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 0.0]]).repeat(50, 1)
    tokens, _ = draw(logits, top_k=1)
    assert tokens.unique().tolist() == [1]
    tokens, _ = draw(torch.zeros(50, 8), top_k=3)
    assert tokens.unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize(("top_p", "kept"), [(0.5, [1]), (0.51, [1, 3]), (0.75, [1, 3]), (0.8, [0, 1, 3])])
def test_the_nucleus_is_the_smallest_set_that_reaches_its_mass(top_p: float, kept: list[int]) -> None:
    logits = torch.tensor([0.125, 0.5, 0.125, 0.25]).log()
    tokens, _ = draw(logits.repeat(400, 1), top_p=top_p)
    assert tokens.unique().tolist() == kept


def test_a_nucleus_wider_than_the_first_sorted_prefix_is_complete() -> None:
    tokens, _ = draw(torch.zeros(5000, 1000), top_p=0.9)
    assert tokens.max().item() < 900
    assert tokens.max().item() > 880


def test_forbidden_tokens_are_never_drawn() -> None:
    logits = torch.zeros(500, 6)
    logits[:, [0, 5]] = float("-inf")
    tokens, logprobs = draw(logits)
    assert tokens.unique().tolist() == [1, 2, 3, 4]
    torch.testing.assert_close(logprobs, torch.full((500,), -math.log(4)))


def test_bad_arguments_are_named() -> None:
    logits = torch.zeros(2, 4)
    with pytest.raises(ValueError, match="temperature: row 0 is -1"):
        draw(logits, temperature=-1.0)
    with pytest.raises(ValueError, match="top_p: row 0 is 0, expected above 0"):
        draw(logits, top_p=0.0)
    with pytest.raises(ValueError, match=r"top_p: row 0 is 1\.5"):
        draw(logits, top_p=1.5)
    logits[1, 2] = float("nan")
    with pytest.raises(ValueError, match="logits: row 1 holds NaN"):
        draw(logits)
    with pytest.raises(ValueError, match="temperature"):
        draw(torch.zeros(2, 4), temperature=float("nan"))


@pytest.mark.parametrize(("top_k", "top_p"), [(50, 0.95), (0, 0.95), (3000, 1.0), (0, 0.5)])
@pytest.mark.parametrize("spread", [0.0, 0.3, 3.0])
def test_a_wide_vocabulary_is_cut_as_the_reference_cuts_it(spread: float, top_k: int, top_p: float) -> None:
    logits = torch.randn(1, 40_000, generator=torch.Generator().manual_seed(7)) * spread
    tokens, _ = draw(logits.repeat(64, 1), top_k=top_k, top_p=top_p)
    kept = reference_sample_probabilities(logits[0].double(), 1.0, top_k, top_p) > 0
    least = logits[0, kept].min()
    # At the nucleus's edge float32 and float64 may disagree about a token of the smallest weight.
    assert (logits[0, tokens] >= least - 1e-3 * spread).all() and kept[tokens].float().mean() > 0.95
