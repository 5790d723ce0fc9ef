"""When a configuration counts as faster: outside noise and by more than a margin, judged from paired measurements.

Each number is log(seconds of the challenger / seconds of the incumbent) of two measurements taken close together. The
test is the sign test (distribution-free: timings have heavy tails) of "the median is at or above -margin": identical
arms pass it in less than one duel of ten thousand, whatever the noise.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from enum import Enum
from math import comb, log1p

MARGIN = log1p(0.01)  # a gain below 1 % is none
HYSTERESIS = log1p(0.02)  # what a running program asks of the median besides, so that it does not waver
SIGNIFICANCE = 1e-4
LOOKS = (14, 20, 28, 40)  # pairs after which a duel may be won; looking after each pair would find luck
CLEARLY_WORSE = log1p(0.03)


class Verdict(Enum):
    """What a duel has shown so far."""

    OPEN = "open"
    FASTER = "faster"
    NOT_FASTER = "not faster"


def chance(wins: int, pairs: int) -> float:
    """Probability of at least `wins` heads in `pairs` tosses of a fair coin."""
    return sum(comb(pairs, k) for k in range(wins, pairs + 1)) / 2**pairs


def p_value(log_ratios: Sequence[float], margin: float = MARGIN) -> float:
    """Probability of so many pairs below -margin if the challenger's median were not below it; 1 without pairs."""
    wins = sum(ratio < -margin for ratio in log_ratios)
    return chance(wins, len(log_ratios))


def is_faster(log_ratios: Sequence[float], margin: float = MARGIN, significance: float = SIGNIFICANCE) -> bool:
    """Whether the challenger is faster by more than the margin, outside noise. Needs 14 pairs at least."""
    return len(log_ratios) >= LOOKS[0] and p_value(log_ratios, margin) < significance


def judge(log_ratios: Sequence[float]) -> Verdict:
    """State of a duel under way: clear losers are let go after four pairs, equals after eight, the rest at a look."""
    pairs = len(log_ratios)
    if pairs < 4:
        return Verdict.OPEN
    if pairs == 4 and min(log_ratios) > CLEARLY_WORSE:
        return Verdict.NOT_FASTER
    middle = statistics.median(log_ratios)
    if pairs >= 8 and middle > -MARGIN / 2:
        return Verdict.NOT_FASTER
    if pairs in LOOKS and middle < -HYSTERESIS and is_faster(log_ratios):
        return Verdict.FASTER
    return Verdict.NOT_FASTER if pairs >= LOOKS[-1] else Verdict.OPEN
