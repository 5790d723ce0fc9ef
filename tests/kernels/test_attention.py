"""Attention: one walk over the keys gives the same bits in training, prefill, chunked prefill and decode."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from seedthink import _C
from seedthink.kernels.attention import (
    PAGE,
    attend_packed,
    attend_paged,
    new_pages,
    reference_attend_packed,
    reference_attend_paged,
    write_pages,
)

DTYPES = [torch.float32, torch.bfloat16]


def bounds(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *torch.tensor(lengths, dtype=torch.int64).cumsum(0).tolist()], dtype=torch.int32)


def draw(lengths: Sequence[int], heads: int, kv_heads: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    sizes = [(total, heads, width), (total, kv_heads, width), (total, kv_heads, width)]
    q, k, v = (torch.randn(*size, generator=generator) for size in sizes)
    return q, k, v


class Cache:
    """Pages of a few sequences, handed out in an arbitrary order, and everything around them filled with NaN."""

    def __init__(self, lengths: Sequence[int], kv_heads: int, width: int, dtype: torch.dtype, seed: int = 0) -> None:
        counts = [-(-length // PAGE) for length in lengths]
        self.k_pages, self.v_pages = new_pages(sum(counts) + 3, kv_heads, width, dtype)
        self.k_pages.fill_(float("nan"))
        self.v_pages.fill_(float("nan"))
        order = torch.randperm(sum(counts) + 3, generator=torch.Generator().manual_seed(seed)).tolist()
        self.table = torch.full((len(lengths), max(counts) + 1), -1, dtype=torch.int32)
        for row, count in enumerate(counts):
            for column in range(count):
                self.table[row, column] = order.pop()

    def slots(self, row: int, begin: int, end: int) -> Tensor:
        positions = torch.arange(begin, end)
        return (self.table[row, positions // PAGE] * PAGE + positions % PAGE).int()

    def write(self, row: int, begin: int, k: Tensor, v: Tensor) -> None:
        write_pages(k, v, self.slots(row, begin, begin + len(k)), self.k_pages, self.v_pages)

    def attend(self, rows: Sequence[int], q: Tensor, counts: Sequence[int], lengths: Sequence[int]) -> Tensor:
        table = self.table[list(rows)].contiguous()
        seen = torch.tensor(lengths, dtype=torch.int32)
        return attend_paged(q, self.k_pages, self.v_pages, table, bounds(counts), seen, 0.3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(4, 2, 32), (3, 3, 16), (8, 1, 64), (6, 2, 128)])
def test_decode_prefill_chunked_prefill_and_packed_training_give_the_same_bits(
    heads: int, kv_heads: int, width: int, dtype: torch.dtype
) -> None:
    lengths = torch.randint(1, 101, (6,), generator=torch.Generator().manual_seed(heads)).tolist()
    q, k, v = draw(lengths, heads, kv_heads, width)
    packed = attend_packed(q, k, v, bounds(lengths), 0.3, dtype)
    cache = Cache(lengths, kv_heads, width, dtype)
    starts = bounds(lengths).tolist()
    decoded = torch.empty_like(q)
    chunked = torch.empty_like(q)
    for row, length in enumerate(lengths):
        begin = starts[row]
        for t in range(length):  # decode: token by token
            at = slice(begin + t, begin + t + 1)
            cache.write(row, t, k[at], v[at])
            decoded[at] = cache.attend([row], q[at].contiguous(), [1], [t + 1])
        for t in range(0, length, 7):  # chunks that respect no page
            chunk = slice(begin + t, begin + min(t + 7, length))
            size = chunk.stop - chunk.start
            chunked[chunk] = cache.attend([row], q[chunk].contiguous(), [size], [t + size])
    prefilled = cache.attend(range(len(lengths)), q, lengths, lengths)
    for other in (decoded, chunked, prefilled):
        assert torch.equal(packed, other)


@pytest.mark.parametrize("dtype", DTYPES)
def test_decode_across_several_key_tiles_equals_packed_training(dtype: torch.dtype) -> None:
    lengths = [700, 256, 257]
    q, k, v = draw(lengths, 2, 1, 32)
    packed = attend_packed(q, k, v, bounds(lengths), 0.3, dtype)
    cache = Cache(lengths, 1, 32, dtype)
    starts = bounds(lengths).tolist()
    for row, length in enumerate(lengths):
        cache.write(row, 0, k[starts[row] : starts[row] + length], v[starts[row] : starts[row] + length])
    for row, t in [(0, 699), (0, 511), (0, 512), (0, 256), (1, 255), (2, 256)]:
        at = slice(starts[row] + t, starts[row] + t + 1)
        assert torch.equal(cache.attend([row], q[at].contiguous(), [1], [t + 1]), packed[at])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sequence_does_not_see_what_shares_its_call(dtype: torch.dtype) -> None:
    lengths = [5, 33, 64, 1, 17]
    q, k, v = draw(lengths, 4, 2, 32)
    together = attend_packed(q, k, v, bounds(lengths), 0.3, dtype)
    starts = bounds(lengths).tolist()
    for begin, end in itertools.pairwise(starts):
        alone = attend_packed(q[begin:end], k[begin:end], v[begin:end], bounds([end - begin]), 0.3, dtype)
        assert torch.equal(together[begin:end], alone)


def test_mixed_batches_of_decode_and_prefill_rows_give_the_bits_of_separate_calls() -> None:
    lengths = [40, 23, 90]
    q, k, v = draw(lengths, 4, 2, 32)
    cache = Cache(lengths, 2, 32, torch.float32)
    starts = bounds(lengths).tolist()
    for row, length in enumerate(lengths):
        cache.write(row, 0, k[starts[row] : starts[row] + length], v[starts[row] : starts[row] + length])
    counts = [1, 23, 12]
    rows = [q[starts[row] + lengths[row] - count : starts[row] + lengths[row]] for row, count in enumerate(counts)]
    mixed = cache.attend([0, 1, 2], torch.cat(rows), counts, lengths)
    separate = [cache.attend([row], rows[row].contiguous(), [counts[row]], [lengths[row]]) for row in range(3)]
    assert torch.equal(mixed, torch.cat(separate))


def test_one_thread_and_two_give_the_same_bits_forward_and_backward() -> None:
    lengths = [100, 3, 77, 50]
    results = []
    before = _C.threads()
    try:
        for threads in (1, 2):
            _C.set_threads(threads)
            q, k, v = (x.requires_grad_() for x in draw(lengths, 4, 2, 32))
            out = attend_packed(q, k, v, bounds(lengths), 0.3)
            out.sin().sum().backward()
            results.append([out, q.grad, k.grad, v.grad])
    finally:
        _C.set_threads(before)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("lengths", [[1], [16, 17], [300, 2, 64], [1, 0, 5]])
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(4, 2, 32), (5, 1, 16), (2, 2, 128)])
def test_values_and_gradients_match_float64(lengths: list[int], heads: int, kv_heads: int, width: int) -> None:
    inputs = draw(lengths, heads, kv_heads, width)
    grad = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1))
    ours = [x.clone().requires_grad_() for x in inputs]
    exact = [x.double().requires_grad_() for x in inputs]
    out = attend_packed(*ours, bounds(lengths), 0.2)
    want = reference_attend_packed(*exact, bounds(lengths), 0.2)
    torch.testing.assert_close(out.double(), want, rtol=2e-5, atol=2e-6)
    out.backward(grad)
    want.backward(grad.double())
    for mine, theirs in zip(ours, exact, strict=True):
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-4, atol=2e-5)


SHARED = [([5, 3, 7], [-1, 0, 0]), ([20, 33, 0, 1], [-1, 0, 0, 0]), ([40, 300, 17, 16, 30], [-1, 0, -1, 2, 0])]


def prefixes(before: list[int]) -> torch.Tensor:
    return torch.tensor(before, dtype=torch.int32)


@pytest.mark.parametrize(("lengths", "before"), SHARED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_behind_a_shared_prefix_have_the_bits_that_they_have_behind_a_copy_of_it(
    lengths: list[int], before: list[int], dtype: torch.dtype
) -> None:
    inputs = draw(lengths, 4, 2, 32)
    shared = attend_packed(*inputs, bounds(lengths), 0.3, dtype, prefixes(before))
    starts = bounds(lengths).tolist()
    for b, prefix in enumerate(before):
        rows = [*(range(starts[prefix], starts[prefix + 1]) if prefix >= 0 else []), *range(starts[b], starts[b + 1])]
        alone = attend_packed(*(x[rows] for x in inputs), bounds([len(rows)]), 0.3, dtype)
        assert torch.equal(shared[starts[b] : starts[b + 1]], alone[len(rows) - lengths[b] :])


@pytest.mark.parametrize(("lengths", "before"), SHARED)
def test_gradients_through_a_shared_prefix_match_float64(lengths: list[int], before: list[int]) -> None:
    inputs = draw(lengths, 4, 2, 32)
    grad = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1))
    ours, exact = [x.clone().requires_grad_() for x in inputs], [x.double().requires_grad_() for x in inputs]
    out = attend_packed(*ours, bounds(lengths), 0.2, prefix_B=prefixes(before))
    want = reference_attend_packed(*exact, bounds(lengths), 0.2, prefixes(before))
    torch.testing.assert_close(out.double(), want, rtol=2e-5, atol=2e-6)
    out.backward(grad)
    want.backward(grad.double())
    for mine, theirs in zip(ours, exact, strict=True):
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-4, atol=2e-5)


def test_gradients_through_a_shared_prefix_do_not_depend_on_threads() -> None:
    lengths, before, results = [30, 50, 7, 20, 9], [-1, 0, 0, -1, 0], []
    threads_before = _C.threads()
    try:
        for threads in (1, 2):
            _C.set_threads(threads)
            leaves = [x.requires_grad_() for x in draw(lengths, 4, 2, 32)]
            attend_packed(*leaves, bounds(lengths), 0.3, prefix_B=prefixes(before)).sin().sum().backward()
            results.append([leaf.grad for leaf in leaves])
    finally:
        _C.set_threads(threads_before)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(("before", "wrong"), [([-1, 2], 1), ([-2, -1], 0), ([0, -1], 0), ([1, 0], 0)])
def test_a_prefix_that_is_none_is_refused(before: list[int], wrong: int) -> None:
    with pytest.raises(
        ValueError, match=f"prefix: entry {wrong} is {before[wrong]}, expected -1 or a sequence without"
    ):
        attend_packed(*draw([3, 4], 2, 1, 16), bounds([3, 4]), 0.5, prefix_B=prefixes(before))


def test_bfloat16_compute_equals_float32_on_rounded_keys_and_values() -> None:
    q, k, v = draw([40, 9], 4, 2, 32)
    rounded = [x.bfloat16().float() for x in (k, v)]
    half = attend_packed(q, k, v, bounds([40, 9]), 0.3, torch.bfloat16)
    assert torch.equal(half, attend_packed(q, *rounded, bounds([40, 9]), 0.3))


def test_paged_reference_agrees_with_the_kernel() -> None:
    lengths = [30, 47]
    q, k, v = draw(lengths, 4, 2, 32)
    cache = Cache(lengths, 2, 32, torch.float32)
    cache.write(0, 0, k[:30], v[:30])
    cache.write(1, 0, k[30:], v[30:])
    arguments = (bounds(lengths), torch.tensor(lengths, dtype=torch.int32), 0.3)
    want = reference_attend_paged(q.double(), cache.k_pages, cache.v_pages, cache.table, *arguments)
    torch.testing.assert_close(cache.attend([0, 1], q, lengths, lengths).double(), want, rtol=1e-5, atol=1e-6)


def test_large_scores_do_not_overflow() -> None:
    q, k, v = draw([20], 2, 2, 16)
    out = attend_packed(q * 1e4, k * 1e4, v, bounds([20]), 1.0)
    want = reference_attend_packed(q.double() * 1e4, k.double() * 1e4, v.double(), bounds([20]), 1.0)
    torch.testing.assert_close(out.double(), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.zeros(9, 2, 16)}, "k: dimension 0 is 9, expected 10"),
        ({"v": torch.zeros(10, 2, 16, dtype=torch.float64)}, "v: expected dtype float32"),
        ({"q": torch.zeros(10, 3, 16)}, "q: has 3 heads, expected a multiple of the 2"),
        ({"cu": bounds([4, 5])}, "cu_seqlens: ends at 9, expected the 10 rows"),
        ({"cu": torch.tensor([0, 7, 3, 10], dtype=torch.int32)}, "cu_seqlens: falls from 7 to 3"),
        ({"compute": torch.float16}, "compute: expected torch.float32 or torch.bfloat16"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, object], message: str) -> None:
    arguments = {"q": torch.zeros(10, 4, 16), "k": torch.zeros(10, 2, 16), "v": torch.zeros(10, 2, 16)}
    merged = {**arguments, "cu": bounds([4, 6]), "scale": 1.0, "compute": torch.float32, **change}
    with pytest.raises(ValueError, match=message):
        attend_packed(*merged.values())


def test_a_head_width_that_is_no_multiple_of_16_is_refused() -> None:
    with pytest.raises(ValueError, match="head width is 24"):
        attend_packed(*(torch.zeros(3, 2, 24) for _ in range(3)), bounds([3]), 1.0)


def test_slots_and_page_tables_outside_the_pages_are_refused() -> None:
    k_pages, v_pages = new_pages(2, 1, 16, torch.float32)
    k = torch.zeros(1, 1, 16)
    with pytest.raises(ValueError, match="slots: entry 0 is 32, outside the 32 positions"):
        write_pages(k, k, torch.tensor([32], dtype=torch.int32), k_pages, v_pages)
    one = torch.tensor([1], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"page_table: entry \[0, 0\] is 2"):
        attend_paged(k, k_pages, v_pages, torch.tensor([[2]], dtype=torch.int32), bounds([1]), one, 1.0)
    with pytest.raises(ValueError, match="needs 2 pages, the table has 1"):
        attend_paged(k, k_pages, v_pages, torch.tensor([[0]], dtype=torch.int32), bounds([1]), one * 17, 1.0)


def test_the_operator_is_registered_soundly() -> None:
    q, k, v = (x.requires_grad_() for x in draw([5, 4], 2, 1, 16))
    torch.library.opcheck(
        torch.ops.seedthink.attend_packed.default, (q, k, v, bounds([5, 4]), prefixes([-1, 0]), 0.5, False)
    )


def test_bounds_without_an_entry_are_refused() -> None:
    q = torch.zeros(2, 1, 16)
    nothing = torch.zeros(0, dtype=torch.int32)
    with pytest.raises(ValueError, match="cu_seqlens: needs at least one entry"):
        _C.attend_packed_forward(q, q, q, nothing, nothing, 1.0, False, torch.empty_like(q), torch.empty(2, 1))


def test_pages_of_no_heads_take_no_keys() -> None:
    k, pages = torch.zeros(3, 0, 16), torch.zeros(2, 0, 16, 16)
    _C.write_pages(k, k, torch.zeros(3, dtype=torch.int32), pages, pages)
