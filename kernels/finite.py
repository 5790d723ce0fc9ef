"""Telling a network that computes NaN from a kernel that was called wrongly: both are a ValueError.

The router and the sampler refuse rows that hold NaN or +inf, because no choice can be made from them. Everything else
that a kernel refuses is a mistake of its caller.
"""

from __future__ import annotations

_WORDS = "NaN or +inf"  # of csrc/moe/route.isa.cpp and csrc/sampling/sampling.isa.cpp


def not_finite(error: ValueError) -> bool:
    """Whether a kernel raised `error` because the numbers it was given are not finite."""
    return _WORDS in str(error)
