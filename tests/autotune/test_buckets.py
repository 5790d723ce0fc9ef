"""Load classes: the nearest power of two in log distance, classes of imbalance and fill, distances in octaves."""

from __future__ import annotations

import math

from seedthink.autotune.buckets import Bucket, bucket, bucket_distance, distance, token_class
from seedthink.kernels.selector import Load


def test_tokens_belong_to_the_power_of_two_nearest_in_log_distance() -> None:
    assert [token_class(t) for t in (0, 1, 2, 3, 4, 5, 6, 11, 12, 1024)] == [0, 0, 1, 2, 2, 2, 3, 3, 4, 10]
    assert all(token_class(t) == round(math.log2(t)) for t in range(1, 5000))


def test_only_what_matters_to_the_operation_makes_a_class() -> None:
    load = Load(64, imbalance=4.0, cache_fill=0.6)
    assert bucket(load) == Bucket(6, 2, 2)
    assert bucket(load, ("imbalance",)) == Bucket(6, 2, 0)
    assert bucket(load, ()) == Bucket(6)


def test_distances_are_octaves() -> None:
    assert distance((128, 64), (256, 32)) == 2.0
    assert distance((128, 0), (128, 0)) == 0.0
    assert distance((128, 0), (128, 64)) == math.inf
    assert distance((128,), (128, 64)) == math.inf
    assert bucket_distance(Bucket(3, 1), Bucket(5, 0)) == 3.0
