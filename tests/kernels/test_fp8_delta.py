"""Deltas between publishes: exact round trips, their size, messages that do not fit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seedthink.kernels.fp8 import Fp8, quantize_fp8
from seedthink.kernels.fp8_delta import Fp8Delta, apply_delta, fp8_delta


def of_bytes(codes: list[list[int]] | Tensor, scale: list[list[float]] | None = None) -> Fp8:
    rows = torch.as_tensor(codes).to(torch.uint8)
    one = torch.ones(1, 1) if scale is None else torch.tensor(scale)
    return Fp8(rows.view(torch.float8_e4m3fn), one, (max(1, rows.shape[0]), max(1, rows.shape[1] // one.shape[1])))


def same(one: Fp8, other: Fp8) -> bool:
    pairs = [(one.codes.view(torch.uint8), other.codes.view(torch.uint8)), (one.scale, other.scale)]
    return one.block == other.block and all(torch.equal(*pair) for pair in pairs)


def test_a_message_lists_what_changed_row_by_row() -> None:
    old = of_bytes([[1, 2, 3, 4], [5, 6, 7, 8], [1, 1, 1, 1]], [[1.0, 2.0]])
    new = of_bytes([[1, 9, 3, 8], [5, 6, 7, 8], [2, 1, 1, 1]], [[1.0, 4.0]])
    delta = fp8_delta(old, new)
    assert delta.first_M1.tolist() == [0, 2, 2, 3]
    assert delta.gaps_R.tolist() == [1, 1, 0] and delta.codes_R.tolist() == [9, 8, 2]
    assert delta.index_S.tolist() == [1] and delta.scale_S.tolist() == [4.0]
    assert delta.nbytes == 4 * 8 + 2 * 3 + 8 + 4
    assert same(apply_delta(old, delta), new)


def test_a_long_way_between_changes_is_bridged_by_unchanged_codes() -> None:
    before = torch.arange(1000).remainder(250)[None]
    for columns in ([999], [255], [256], [0, 256], [0, 257, 999], list(range(0, 1000, 256))):
        after = before.clone()
        after[0, columns] += 1
        old, new = of_bytes(before), of_bytes(after)
        delta = fp8_delta(old, new)
        assert same(apply_delta(old, delta), new)
        assert delta.gaps_R.numel() <= len(columns) + 1000 // 256


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 5), st.integers(0, 700), st.floats(0, 1), st.integers(0, 2**31))
def test_round_trips_are_exact(rows: int, columns: int, share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    before, other = torch.randint(0, 256, (2, rows, columns), generator=generator)
    after = torch.where(torch.rand(rows, columns, generator=generator) < share, other, before)
    old, new = of_bytes(before), of_bytes(after)
    kept = old.codes.view(torch.uint8).clone()
    assert same(apply_delta(old, fp8_delta(old, new)), new)
    assert torch.equal(old.codes.view(torch.uint8), kept)


def test_a_publish_after_a_small_update_is_a_small_message() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(256, 512, generator=generator)
    old = quantize_fp8(weight, (128, 128), headroom=1.125)
    moved = weight * (1 + 1e-3 * torch.randn(weight.shape, generator=generator))
    sticky = quantize_fp8(moved, (128, 128), headroom=1.125, previous=old.scale)
    fresh = quantize_fp8(moved, (128, 128), headroom=1.125)
    assert torch.equal(sticky.scale, old.scale)
    message = fp8_delta(old, sticky)
    assert message.nbytes < 0.05 * sticky.nbytes
    assert message.nbytes < fp8_delta(old, fresh).nbytes
    assert same(apply_delta(old, message), sticky)


def test_equal_publishes_make_an_empty_message() -> None:
    old = quantize_fp8(torch.randn(10, 300))
    delta = fp8_delta(old, old)
    assert delta.gaps_R.numel() == delta.index_S.numel() == 0
    assert same(apply_delta(old, delta), old)


def test_publishes_of_two_kinds_have_no_delta() -> None:
    old = quantize_fp8(torch.ones(4, 256))
    x = torch.ones(4, 256)
    shapes = [quantize_fp8(torch.ones(4, 128)), quantize_fp8(torch.ones(5, 256))]
    for other in (*shapes, quantize_fp8(x, (2, 128)), quantize_fp8(x, format="e5m2")):
        with pytest.raises(ValueError, match=r"new: .* does not follow on old: e4m3"):
            fp8_delta(old, other)


def test_a_message_that_does_not_fit_is_refused() -> None:
    old = of_bytes(torch.zeros(2, 4))
    none = torch.zeros(0, dtype=torch.int64)

    def message(first: list[int], gaps: list[int], index: Tensor = none) -> Fp8Delta:
        bytes_R = torch.tensor(gaps, dtype=torch.uint8)
        return Fp8Delta(torch.tensor(first), bytes_R, bytes_R, index, torch.ones(len(index)))

    cases = [
        (message([0, 1, 1], [4]), "an event lies behind the last of 4 columns"),
        (message([0, 2, 2], [3, 0]), "an event lies behind"),
        (message([0, 1], [0]), "first: dimension 0 is 2, expected 3"),
        (message([0, 2, 1], [0]), "first: descends"),
        (message([0, 0, 2], [0]), "first: must run from 0 to 1"),
        (message([0, 0, 0], [], torch.tensor([1])), "index: an entry is outside 0 to 0"),
        (message([0, 0, 0], [], torch.tensor([-1])), "index: an entry is outside"),
    ]
    for delta, text in cases:
        with pytest.raises(ValueError, match=text):
            apply_delta(old, delta)
