"""What to say where a network computes NaN: a run that cannot go on, not a defect with a trace."""

from __future__ import annotations

from seedthink.errors import RunError


def diverged(error: ValueError) -> RunError:
    """The error to raise in place of a kernel's that was `not_finite`."""
    return RunError(
        f"the network computes NaN or infinity ({error}): training has diverged, or the model folder holds such "
        "weights. Earlier checkpoints are whole; go on from one with a lower learning rate"
    )
