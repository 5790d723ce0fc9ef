"""Evidence: the sign test by hand, and how often noise alone is taken for a gain."""

from __future__ import annotations

import random

import pytest

from seedthink.autotune.evidence import MARGIN, Verdict, chance, is_faster, judge, p_value


def test_the_chance_of_heads_by_hand() -> None:
    assert chance(2, 2) == 0.25
    assert chance(1, 2) == 0.75
    assert chance(0, 5) == 1.0
    assert p_value([]) == 1.0


def test_a_gain_within_the_margin_counts_as_none() -> None:
    assert p_value([-MARGIN / 2] * 20) == 1.0
    assert p_value([-2 * MARGIN] * 20) == 2**-20
    assert not is_faster([-MARGIN / 2] * 20)


def test_fourteen_pairs_are_the_fewest_that_convince() -> None:
    assert not is_faster([-0.5] * 13)
    assert is_faster([-0.5] * 14)
    assert not is_faster([-0.5] * 13 + [0.5])


def duel(ratios: list[float]) -> tuple[Verdict, int]:
    """The verdict, and after how many pairs it fell."""
    for pairs in range(1, len(ratios) + 1):
        verdict = judge(ratios[:pairs])
        if verdict is not Verdict.OPEN:
            return verdict, pairs
    return Verdict.OPEN, len(ratios)


def test_a_clear_loser_is_let_go_after_four_pairs_and_an_equal_after_eight() -> None:
    assert duel([0.2] * 50) == (Verdict.NOT_FASTER, 4)
    assert duel([0.001, -0.001] * 25) == (Verdict.NOT_FASTER, 8)
    assert duel([-0.1] * 50) == (Verdict.FASTER, 14)


def test_a_gain_between_margin_and_hysteresis_changes_nothing() -> None:
    assert duel([-0.015] * 50) == (Verdict.NOT_FASTER, 40)


@pytest.mark.parametrize("noise", [0.001, 0.02, 0.3])
def test_identical_arms_are_not_told_apart_in_five_thousand_duels(noise: float) -> None:
    draw = random.Random(1)
    won = sum(duel([draw.gauss(0.0, noise) for _ in range(40)])[0] is Verdict.FASTER for _ in range(5000))
    assert won == 0


def test_a_gain_of_a_tenth_is_found_in_noise_of_a_twentieth() -> None:
    draw = random.Random(2)
    won = sum(duel([draw.gauss(-0.1, 0.05) for _ in range(40)])[0] is Verdict.FASTER for _ in range(200))
    assert won > 190
