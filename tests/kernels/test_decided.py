"""A second pass takes the choices of the first, in their order, and is refused what the first was refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seedthink.kernels.decided import Tape, decided
from seedthink.kernels.route import route


@decided
def draw(limit: int) -> tuple[Tensor, Tensor]:
    """Another number at each call; none below 1."""
    if limit < 1:
        raise ValueError("limit: 0 is below 1")
    return torch.rand(limit), torch.rand(1)


def test_without_a_tape_every_call_chooses() -> None:
    assert not torch.equal(draw(3)[0], draw(3)[0])


def test_a_replay_returns_what_was_recorded_and_can_be_repeated() -> None:
    tape = Tape()
    with tape.recording():
        first = [draw(3), draw(2)]
    for _ in range(2):
        with tape.replaying():
            again = [draw(3), draw(2)]
        pairs = zip(sum(first, ()), sum(again, ()), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
    assert not torch.equal(draw(3)[0], first[0][0]), "the tape has ended"


def test_a_refusal_is_recorded_as_one() -> None:
    tape = Tape()
    with tape.recording(), pytest.raises(ValueError, match="below 1"):
        draw(0)
    with tape.replaying(), pytest.raises(ValueError, match="below 1"):
        draw(1)


def test_a_routing_is_replayed_with_its_weights_while_a_gradient_flows_to_the_new_logits() -> None:
    tape, logits_TE = Tape(), torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    with tape.recording():
        first = route(logits_TE, 2)
    others_TE = (-logits_TE).requires_grad_()
    with tape.replaying():
        again = route(others_TE, 2)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    again.weight_TK[:, 0].sum().backward()
    assert others_TE.grad is not None and others_TE.grad.any()
