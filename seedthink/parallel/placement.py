"""Which rank holds which expert: planned from measured loads, and only where a move pays.

A step of an expert-parallel layer lasts as long as its fullest rank. From each expert's tokens, averaged over steps, a
placement with as many experts on every rank is planned: exchanges of two experts between the fullest rank and another,
each the one that lightens it most, and Karmarkar-Karp's differencing (kernels/balance.py) for a start from scratch. Of
all placements on the way the one with the largest gain after its cost is taken; staying costs nothing. An expert that
outweighs a mean rank even beside the lightest ones cannot be balanced by moving; that takes copies.
Plain numbers in, plain numbers out: the weights are moved elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from seedthink.errors import ConfigError
from seedthink.kernels.balance import karmarkar_karp

Placement = tuple[int, ...]  # the rank of each expert, 0 to ep - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What a placement costs: `token_seconds` for an expert's work on one token, `move_seconds` to move one expert.

    `steps` is how many steps a placement is expected to last.
    """

    token_seconds: float
    move_seconds: float
    steps: int


@dataclass(frozen=True, slots=True)
class Move:
    """A planned placement: its fullest rank's load over the mean, before and after, experts moved, and seconds."""

    placement: Placement
    imbalance_before: float
    imbalance_after: float
    moved: int
    gain_seconds: float
    cost_seconds: float


def static_placement(experts: int, ep: int) -> Placement:
    """Contiguous runs, as checkpoints number the experts. ConfigError where ep does not divide them."""
    if experts % ep:
        raise ConfigError(f"ep = {ep} does not divide num_experts = {experts}")
    return tuple(expert // (experts // ep) for expert in range(experts))


def averaged(before_E: Sequence[float], tokens_E: Sequence[float], decay: float) -> list[float]:
    """The running mean of each expert's tokens after one more step; `before_E` is empty at the first."""
    if not before_E:
        return list(tokens_E)
    return [decay * old + (1.0 - decay) * new for old, new in zip(before_E, tokens_E, strict=True)]


def rank_loads(tokens_E: Sequence[float], placement: Placement, ep: int) -> list[float]:
    """Tokens of each rank."""
    loads = [0.0] * ep
    for tokens, rank in zip(tokens_E, placement, strict=True):
        loads[rank] += tokens
    return loads


def imbalance(tokens_E: Sequence[float], placement: Placement, ep: int) -> float:
    """The fullest rank's load over the mean; 1 without tokens."""
    loads = rank_loads(tokens_E, placement, ep)
    return max(loads) * ep / sum(loads) if any(loads) else 1.0


def planned(tokens_E: Sequence[float], now: Placement, ep: int, price: Price) -> Move:
    """The placement whose gain over `price.steps` steps is largest after the cost of moving; `now` where none pays.

    tokens_E: tokens of each expert in a step, averaged. Ties go to fewer moves, then to the placement found first.
    """
    before = max(rank_loads(tokens_E, now, ep))

    def move(placement: Placement) -> Move:
        loads = rank_loads(tokens_E, placement, ep)
        moved = sum(a != b for a, b in zip(now, placement, strict=True))
        gain = (before - max(loads)) * price.token_seconds * price.steps
        after = imbalance(tokens_E, placement, ep)
        return Move(placement, imbalance(tokens_E, now, ep), after, moved, gain, moved * price.move_seconds)

    scratch = relabelled(_differenced(tokens_E, ep), now, ep)
    candidates = [now, *exchanges(tokens_E, now, ep), scratch, *exchanges(tokens_E, scratch, ep)]
    # The first of equals is kept: `now` comes first, then placements by the number of exchanges.
    return max(map(move, candidates), key=lambda each: (each.gain_seconds - each.cost_seconds, -each.moved))


def exchanges(tokens_E: Sequence[float], placement: Placement, ep: int) -> Iterator[Placement]:
    """Placements one exchange apart, each lightening the fullest rank as much as one exchange of its experts can."""
    here = list(placement)
    while (best := _best_exchange(tokens_E, here, ep)) is not None:
        one, other = best
        here[one], here[other] = here[other], here[one]
        yield tuple(here)


def relabelled(placement: Placement, now: Placement, ep: int) -> Placement:
    """The same parts on ranks where most of their experts are already: greedily, the largest overlap first."""
    shared = [[0] * ep for _ in range(ep)]
    for part, rank in zip(placement, now, strict=True):
        shared[part][rank] += 1
    order = sorted((-shared[part][rank], part, rank) for part in range(ep) for rank in range(ep))
    rank_of: dict[int, int] = {}
    for _, part, rank in order:
        if part not in rank_of and rank not in rank_of.values():
            rank_of[part] = rank
    return tuple(rank_of[part] for part in placement)


def _differenced(tokens_E: Sequence[float], ep: int) -> Placement:
    cost_E = torch.tensor(list(tokens_E), dtype=torch.float64)
    return tuple(karmarkar_karp(cost_E, ep, equal_size=True).tolist())


def _best_exchange(tokens_E: Sequence[float], placement: list[int], ep: int) -> tuple[int, int] | None:
    """Two experts, one of the fullest rank, whose exchange leaves the fuller of two ranks lightest; None at the end."""
    loads = rank_loads(tokens_E, tuple(placement), ep)
    fullest = max(range(ep), key=lambda rank: (loads[rank], -rank))
    best, found = loads[fullest], None
    for one in (expert for expert, rank in enumerate(placement) if rank == fullest):
        for other, rank in enumerate(placement):
            less = tokens_E[one] - tokens_E[other]
            if rank == fullest or less <= 0:
                continue
            fuller = max(loads[fullest] - less, loads[rank] + less)
            # Rounding must not let two placements be exchanged for each other for ever.
            if fuller < best - 1e-12 * loads[fullest]:
                best, found = fuller, (one, other)
    return found
