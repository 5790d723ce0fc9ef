"""Loads in classes: powers of two of tokens, four classes of expert imbalance, four of cache fill."""

from __future__ import annotations

from bisect import bisect_right
from math import log2
from typing import NamedTuple

from seedthink.kernels.selector import Key, Load

IMBALANCE_BOUNDS = (1.5, 3.0, 6.0)  # largest expert's rows over the mean
FILL_BOUNDS = (0.25, 0.5, 0.75)


class Bucket(NamedTuple):
    """One class of loads. `tokens` is the exponent of the nearest power of two."""

    tokens: int
    imbalance: int = 0
    cache_fill: int = 0


class Place(NamedTuple):
    """Where a decision is kept: a key with its load in classes."""

    op: str
    dtype: str
    dims: tuple[int, ...]
    bucket: Bucket

    def __str__(self) -> str:
        sizes = "x".join(map(str, self.dims))
        return f"{self.op}/{self.dtype}/{sizes}/{'.'.join(map(str, self.bucket))}"


def token_class(tokens: int) -> int:
    """Exponent of the power of two nearest to `tokens` in log distance; 0 for none."""
    return (tokens * tokens).bit_length() // 2 if tokens > 0 else 0


def bucket(load: Load, matters: tuple[str, ...] = ("imbalance", "cache_fill")) -> Bucket:
    """The class of a load; of the fields besides tokens only those that matter to the operation are looked at."""
    return Bucket(
        token_class(load.tokens),
        bisect_right(IMBALANCE_BOUNDS, load.imbalance) if "imbalance" in matters else 0,
        bisect_right(FILL_BOUNDS, load.cache_fill) if "cache_fill" in matters else 0,
    )


def distance(dims: tuple[int, ...], others: tuple[int, ...]) -> float:
    """Octaves between two tuples of sizes, all together; inf where they cannot be compared."""
    if len(dims) != len(others) or any((a == 0) != (b == 0) for a, b in zip(dims, others, strict=True)):
        return float("inf")
    return sum(abs(log2(a / b)) for a, b in zip(dims, others, strict=True) if a)


def bucket_distance(one: Bucket, other: Bucket) -> float:
    """Octaves of tokens, and as much for each class of imbalance and fill."""
    return float(sum(abs(a - b) for a, b in zip(one, other, strict=True)))


def place_of(key: Key, matters: tuple[str, ...]) -> Place:
    """Where decisions on `key` are kept."""
    return Place(key.op, key.dtype, key.dims, bucket(key.load, matters))
