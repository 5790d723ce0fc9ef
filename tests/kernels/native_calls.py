"""A valid call of every bound kernel, with sizes drawn at random, edges included: what the fuzz test starts from."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

PAGE, PANEL = 16, 64
Call = list[Any]


class Draw:
    """Sizes, tensors and index arrays from one seed."""

    def __init__(self, seed: str, library: Any) -> None:
        self.library = library
        self.random = random.Random(seed)
        self.torch = torch.Generator().manual_seed(self.random.getrandbits(62))

    def size(self, least: int = 0, most: int = 140) -> int:
        edges = [n for n in (0, 1, 2, 3, 7, 15, 16, 17, 31, 33, 63, 64, 65, 96, 97, 129) if least <= n <= most]
        return self.random.choice([*edges, self.random.randint(least, most)])

    def flag(self) -> bool:
        return self.random.random() < 0.5

    def f32(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.torch)

    def i32(self, low: int, high: int, *shape: int) -> Tensor:
        """Integers in [low, high); none where the range is empty."""
        return torch.randint(low, max(high, low + 1), shape, generator=self.torch, dtype=torch.int32)

    def bounds(self, total: int, count: int) -> Tensor:
        """[count + 1] rising from 0 to total; a total of zero needs no count."""
        cuts = sorted(self.random.randint(0, total) for _ in range(count - 1)) if count else []
        return torch.tensor([0, *cuts, total][: count + 1] if count else [0], dtype=torch.int32)

    def panels(self, columns: int, reduced: int, stack: int = 1, half: bool | None = None) -> Tensor:
        """Packed weights of a product with `columns` results over `reduced` terms."""
        wide = -(-columns // PANEL)
        if self.flag() if half is None else half:
            return self.f32(stack, wide, -(-reduced // 2), PANEL, 2).bfloat16()
        return self.f32(stack, wide, reduced, PANEL)


def like(*tensors: Tensor) -> list[Tensor]:
    """Outputs: full of NaN, so that what is not written shows."""
    return [torch.full_like(each, float("nan") if each.is_floating_point() else 0) for each in tensors]


def pack_panels(d: Draw) -> Call:
    stack, rows, columns, transposed = d.size(0, 3), d.size(), d.size(), d.flag()
    shape = (columns, rows) if transposed else (rows, columns)
    return [d.f32(stack, rows, columns), transposed, *like(d.panels(*shape, stack))]


def linear_forward(d: Draw) -> Call:
    t, k, n = d.size(), d.size(), d.size()
    return [d.f32(t, k), d.panels(n, k), *like(d.f32(t, n))]


def linear_weight_grad(d: Draw) -> Call:
    t, k, n = d.size(most=600), d.size(), d.size()
    return [d.f32(t, n), d.f32(t, k), d.flag(), *like(d.f32(n, k))]


def heads(d: Draw) -> tuple[int, int, int]:
    """(query heads, key-value heads, width)."""
    n = d.random.choice([1, 2, 3])
    return n * d.random.choice([1, 2, 5]), n, 16 * d.random.choice([1, 2, 4, 16])


def packed(d: Draw) -> tuple[list[Tensor], list[Tensor]]:
    """(q, k, v), (bounds, prefix): some sequences share the rows of one without a prefix."""
    t, count = d.size(), d.size(1, 5)
    queries, n, h = heads(d)
    prefix = torch.full((count,), -1, dtype=torch.int32)
    prefix[1:] = torch.where(torch.rand(count - 1, generator=d.torch) < 0.4, 0, -1)
    return [d.f32(t, queries, h), d.f32(t, n, h), d.f32(t, n, h)], [d.bounds(t, count), prefix]


def attend_packed_forward(d: Draw) -> Call:
    qkv, places = packed(d)
    return [*qkv, *places, 0.3, d.flag(), *like(qkv[0], qkv[0][..., 0])]


def attend_packed_backward(d: Draw) -> Call:
    qkv, places = packed(d)
    lse = d.f32(*qkv[0].shape[:2]) + 5.0
    return [torch.ones_like(qkv[0]), *qkv, torch.ones_like(qkv[0]), lse, *places, 0.3, d.flag(), *like(*qkv)]


def pages(d: Draw, count: int, n: int, h: int) -> list[Tensor]:
    dtype = torch.bfloat16 if d.flag() else torch.float32
    return [d.f32(count, n, h, PAGE).to(dtype), d.f32(count, n, PAGE, h).to(dtype)]


def write_pages(d: Draw) -> Call:
    t, n, h, count = d.size(), d.size(0, 3), d.size(0, 40), d.size(1, 5)
    return [d.f32(t, n, h), d.f32(t, n, h), d.i32(0, count * PAGE, t), *pages(d, count, n, h)]


def paged_places(d: Draw, t: int, count: int) -> list[Tensor]:
    """(page table, bounds of the query rows, lengths) of sequences that lie in `count` pages."""
    sequences = d.size(1, 4)
    cu_q = d.bounds(t, sequences)
    lengths = cu_q.diff() + d.i32(0, 40, sequences)
    columns = -(-int(lengths.max()) // PAGE) + d.size(0, 2)
    return [d.i32(0, count, sequences, columns), cu_q, lengths]


def attend_paged(d: Draw) -> Call:
    t, count = d.size(), d.size(1, 5)
    queries, n, h = heads(d)
    q = d.f32(t, queries, h)
    return [q, *pages(d, count, n, h), *paged_places(d, t, count), 0.3, *like(q)]


def attention_step(d: Draw) -> Call:
    t, width, count = d.size(most=40), d.size(1, 70), d.size(1, 5)
    queries, n, h = heads(d)
    half, table = d.flag(), d.f32(9, h)
    bias, *norms = biased_and_normed(d, (queries + 2 * n) * h, h)
    return [
        d.f32(t, width),
        d.f32(width),
        1e-6,
        d.panels((queries + 2 * n) * h, width, half=half),
        bias,
        *norms,
        table,
        d.i32(0, 9, t),
        d.i32(0, count * PAGE, t),
        *pages(d, count, n, h),
        *paged_places(d, t, count),
        0.3,
        d.panels(width, queries * h, half=half),
        queries,
    ]


def dense_step(d: Draw) -> Call:
    t, width, hidden = d.size(most=40), d.size(1, 70), d.size(0, 70)
    return [d.f32(t, width), d.f32(width), 1e-6, d.panels(2 * hidden, width), d.panels(width, hidden), hidden]


def logprob_columns(d: Draw) -> Call:
    t, first = d.size(), 1024 * d.size(0, 2)
    n = d.size(1, 1500)
    total = first + n + d.size()
    targets = d.i32(0, total, t).long()
    state = torch.rand(t, 4, generator=d.torch, dtype=torch.float64)
    return [d.f32(t, n), first, total, targets, torch.rand(t, generator=d.torch) + 0.1, state]


def logprob_finish(d: Draw) -> Call:
    t = d.size()
    state = torch.rand(t, 4, generator=d.torch, dtype=torch.float64)
    return [state, torch.ones(t), *like(d.f32(t), d.f32(t))]


def logprob_columns_backward(d: Draw) -> Call:
    call = logprob_columns(d)
    return [*call, d.f32(len(call[0])), d.f32(len(call[0]))]


def sample_rows(d: Draw) -> Call:
    b, v = d.size(most=20), d.size(1, 1500)
    temperature = torch.where(torch.rand(b, generator=d.torch) < 0.3, 0.0, 0.8)
    top_p = torch.rand(b, generator=d.torch) * 0.9 + 0.05
    keys = [d.i32(-(2**31), 2**31 - 1, b).long() for _ in range(2)]
    return [d.f32(b, v), temperature, d.i32(0, v + 5, b), top_p, *keys, *like(keys[0], temperature)]


def rope_turn(d: Draw) -> Call:
    t, n, h = d.size(), d.size(0, 5), 2 * d.size(0, 40)
    x = d.f32(t, n, h)
    return [x, d.f32(9, h), d.i32(0, 9, t), d.flag(), *like(x)]


def biased_and_normed(d: Draw, wide: int, h: int) -> list[Tensor | None]:
    """[bias, q_norm, k_norm] of a projection, each there or not; the norms go together."""
    bias = d.f32(wide) if d.flag() else None
    return [bias, d.f32(h), d.f32(h)] if d.flag() else [bias, None, None]


def split(d: Draw) -> tuple[list[Tensor | None], list[Any], list[Tensor]]:
    """(qkv, bias, norms), (table, positions), (q, k, v, rstd)."""
    t, queries, n, h = d.size(), d.size(0, 5), d.size(0, 3), 2 * d.size(0, 40)
    wide = (queries + 2 * n) * h
    source = [d.f32(t, wide), *biased_and_normed(d, wide, h)]
    rstd = d.f32(t, 0 if source[2] is None else queries + n)
    made = [d.f32(t, queries, h), d.f32(t, n, h), d.f32(t, n, h), rstd]
    return source, [d.f32(9, h), d.i32(0, 9, t)], made


def split_heads_forward(d: Draw) -> Call:
    source, places, made = split(d)
    return [*source, 1e-6, *places, *like(*made)]


def split_heads_backward(d: Draw) -> Call:
    source, places, (*grads, rstd) = split(d)
    written = [None if x is None else like(x)[0] for x in source]
    return [*grads, *source, rstd, *places, *written]


def swiglu_forward(d: Draw) -> Call:
    t, i = d.size(), d.size()
    return [d.f32(t, 2 * i), *like(d.f32(t, i))]


def swiglu_backward(d: Draw) -> Call:
    t, i = d.size(), d.size()
    gate_up = d.f32(t, 2 * i)
    return [d.f32(t, i), gate_up, *like(gate_up)]


def sequences(d: Draw) -> tuple[int, Tensor, Tensor | None]:
    """(tokens, bounds, mask or None); sometimes one long enough to be cut into pieces."""
    t = d.random.choice([d.size(), d.size(most=600), 70000 if d.random.random() < 0.05 else 3])
    mask = torch.rand(t, generator=d.torch) > 0.3 if d.flag() else None
    return t, d.bounds(t, d.size(1, 3)), mask


def gae_scan(d: Draw) -> Call:
    t, bounds, mask = sequences(d)
    count = len(bounds) - 1
    reward, value = d.f32(t), d.f32(t)
    bootstrap = d.f32(count) if d.flag() else None
    return [reward, value, bounds, torch.ones(count), torch.ones(count), 0.9, mask, bootstrap, *like(reward, value)]


def advantage_moments(d: Draw) -> Call:
    t, bounds, mask = sequences(d)
    return [d.f32(t), bounds, mask, *like(torch.zeros(3, dtype=torch.float64))]


def shift_and_scale(d: Draw) -> Call:
    t, _, mask = sequences(d)
    return [d.f32(t), mask, 0.5, 2.0, *like(d.f32(t))]


def rms_norm_forward(d: Draw) -> Call:
    x = d.f32(d.size(), d.size())
    return [x, d.f32(x.shape[1]), 1e-6, *like(x, x.new_empty(len(x)))]


def rms_norm_backward(d: Draw) -> Call:
    x = d.f32(d.size(most=300), d.size())
    weight = d.f32(x.shape[1])
    return [torch.ones_like(x), x, weight, torch.ones(len(x)), *like(x, weight)]


def add_rms_norm_forward(d: Draw) -> Call:
    x = d.f32(d.size(), d.size())
    return [x, torch.ones_like(x), d.f32(x.shape[1]), 1e-6, *like(x, x, x.new_empty(len(x)))]


def add_rms_norm_backward(d: Draw) -> Call:
    call = rms_norm_backward(d)
    return [torch.ones_like(call[0]), *call]


def karmarkar_karp(d: Draw) -> Call:
    cost = d.i32(0, 1000, d.size()).to(d.random.choice([torch.int64, torch.float64]))
    return [cost, d.size(1, 20), d.flag(), *like(cost.long())]


def within_budget(d: Draw) -> Call:
    size = d.i32(0, 1000, d.size()).long()
    return [size.double() if d.flag() else size, size, d.random.choice([1000, 3000, 10**18]), d.size(1, 5), *like(size)]


def route_forward(d: Draw) -> Call:
    groups, size = d.random.choice([1, 1, 2, 4]), d.size(1, 33)
    kept = d.random.randint(1, groups)
    t, e, k = d.size(), groups * size, d.size(1, min(kept * size, 9))
    ids, counts, offsets, token = (torch.zeros(*n, dtype=torch.int32) for n in ((t, k), (e,), (e + 1,), (t * k,)))
    rule = [d.f32(e) if d.flag() else None, d.flag(), d.flag(), 2.5, groups, kept]
    return [d.f32(t, e), *rule, ids, *like(d.f32(t, k)), counts, offsets, ids.clone(), token]


def routed(d: Draw, tokens: int) -> tuple[int, list[Tensor]]:
    """Number of experts; ids, weight, offsets, row and token of a routing."""
    e = d.size(1, 9)
    k = d.size(1, min(e, 3))
    ids = torch.rand(tokens, e, generator=d.torch).argsort(1)[:, :k].sort(1).values.int()
    order = ids.flatten().argsort(stable=True).int()
    row = torch.empty_like(order)
    row[order.long()] = torch.arange(len(order), dtype=torch.int32)
    offsets = torch.zeros(e + 1, dtype=torch.int32)
    offsets[1:] = torch.bincount(ids.flatten(), minlength=e).cumsum(0)
    return e, [ids, d.f32(tokens, k), offsets, row.view(tokens, k), order // k]


def route_backward(d: Draw) -> Call:
    t = d.size()
    e, (ids, weight, *_) = routed(d, t)
    logits = d.f32(t, e)
    return [torch.ones_like(weight), logits, ids, weight, d.flag(), d.flag(), 2.5, *like(logits)]


def permuted(d: Draw) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Rows of tokens, rows of experts, (weight, row, token); float32 or bfloat16."""
    t, width, dtype = d.size(), d.size(), torch.bfloat16 if d.flag() else torch.float32
    _, (_, weight, _, row, token) = routed(d, t)
    return d.f32(t, width).to(dtype), d.f32(len(token), width).to(dtype), [weight, row, token]


def permute_forward(d: Draw) -> Call:
    x, rows, (_, *places) = permuted(d)
    return [x, *places, *like(rows)]


def permute_backward(d: Draw) -> Call:
    x, rows, (_, *places) = permuted(d)
    return [rows, *places, *like(x)]


def unpermute_forward(d: Draw) -> Call:
    x, rows, routing = permuted(d)
    return [rows, *routing, *like(x)]


def unpermute_backward(d: Draw) -> Call:
    x, rows, routing = permuted(d)
    return [x, rows, *routing, *like(rows, routing[0])]


def experts_forward(d: Draw) -> Call:
    t, width, hidden, half = d.size(), d.size(0, 70), d.size(0, 70), d.flag()
    e, (_, *routing) = routed(d, t)
    x, rows = d.f32(t, width), len(routing[-1])
    panels = [d.panels(2 * hidden, width, e, half), d.panels(width, hidden, e, half)]
    kept = d.f32(rows, 2 * hidden) if d.flag() else None
    return [x, *routing, *panels, hidden, kept, *like(d.f32(rows, width), x)]


def experts_backward(d: Draw) -> Call:
    t, width, hidden, half = d.size(), d.size(0, 70), d.size(0, 70), d.flag()
    e, (_, *routing) = routed(d, t)
    x, rows = d.f32(t, width), len(routing[-1])
    panels = [d.panels(width, 2 * hidden, e, half), d.panels(hidden, width, e, half)]
    held = int(routing[1].diff().max()) + d.size()
    workspace = [d.f32(held, 2 * hidden), d.f32(held, hidden), d.f32(rows, width)]
    grads = [x, routing[0], d.f32(e, 2 * hidden, width), d.f32(e, width, hidden)]
    return [torch.ones_like(x), x, *routing, *panels, d.f32(rows, 2 * hidden), *like(*workspace, *grads)]


def sparse_step(d: Draw) -> Call:
    t, width, hidden, e, half = d.size(most=40), d.size(1, 70), d.size(0, 70), d.size(1, 9), d.flag()
    router, k = d.panels(e, width, half=False), d.size(1, min(e, 3))
    grouped = d.random.choice([n for n in (1, 3) if e % n == 0])
    kept = next(n for n in range(1, grouped + 1) if n * (e // grouped) >= k)
    rule = [d.f32(e) if d.flag() else None, d.flag(), d.flag(), 1.5, grouped, kept]
    experts = [d.panels(2 * hidden, width, e, half), d.panels(width, hidden, e, half)]
    shared, many = [None, None], d.size(0, 70)
    if d.flag():
        shared = [d.panels(2 * many, width, half=half), d.panels(width, many, half=half)]
    return [d.f32(t, width), d.f32(width), 1e-6, router, e, k, *rule, *experts, hidden, *shared, many]


def fp8_codes(d: Draw, *shape: int) -> Tensor:
    codes = torch.randint(0, 256, shape, generator=d.torch, dtype=torch.uint8)
    return codes.view(torch.float8_e4m3fn if d.flag() else torch.float8_e5m2)


def fp8_blocks(d: Draw, rows: int, columns: int) -> tuple[list[int], Tensor]:
    """A block's size and a scale for each block."""
    block = list(d.random.choice([(1, 128), (128, 128), (1, 7), (3, 16)]))
    return block, torch.rand(-(-rows // block[0]), -(-columns // block[1]), generator=d.torch) + 0.01


def fp8_quantize(d: Draw) -> Call:
    m, n = d.size(), d.size(most=300)
    block, scale = fp8_blocks(d, m, n)
    x = d.f32(m, n).bfloat16() if d.flag() else d.f32(m, n)
    residual = d.f32(m, n).bfloat16() if d.flag() else None
    left = None if residual is None else torch.zeros_like(residual)
    rule = [scale + 0.5 if d.flag() else None, *block, d.flag(), 1.0, 0.5, 1.0]
    return [x, residual, *rule, fp8_codes(d, m, n), *like(scale), left]


def fp8_dequantize(d: Draw) -> Call:
    m, n = d.size(), d.size(most=300)
    block, scale = fp8_blocks(d, m, n)
    return [fp8_codes(d, m, n), scale, *block, d.f32(m, n).bfloat16() if d.flag() else d.f32(m, n)]


def fp8_feedback(d: Draw) -> Call:
    n, k = d.size(), d.size(most=300)
    block, scale = fp8_blocks(d, n, k)
    codes = fp8_codes(d, n, k)
    old = [codes.clone(), scale.clone()] if d.flag() else [None, None]
    return [d.f32(n, k), d.f32(k, k), d.panels(k, k, half=False), scale, *block, *old, 0.75, codes]


def fp8_linear(d: Draw) -> Call:
    t, k, n = d.size(), d.size(most=300), d.size()
    wide = -(-k // 128)
    cells = torch.zeros(t, d.library.fp8_linear_pitch(k), dtype=torch.int32)
    scales = [torch.rand(t, wide, generator=d.torch), torch.rand(-(-n // 128), wide, generator=d.torch)]
    return [fp8_codes(d, t, k), scales[0], fp8_codes(d, n, k), scales[1], cells, *like(d.f32(t, n))]


def fp8_versions(d: Draw) -> tuple[Tensor, Tensor, Tensor]:
    """Two versions of codes and how many differ in each row."""
    old = fp8_codes(d, d.size(), d.size())
    changed = torch.rand(old.shape, generator=d.torch) < 0.2
    new = torch.where(changed, old.view(torch.uint8) ^ 1, old.view(torch.uint8)).view(old.dtype)
    return old, new, changed.sum(1)


def fp8_delta_count(d: Draw) -> Call:
    old, new, events = fp8_versions(d)
    return [old, new, *like(events)]


def fp8_delta_write(d: Draw) -> Call:
    old, new, events = fp8_versions(d)
    first = torch.cat([torch.zeros(1, dtype=torch.int64), events.cumsum(0)])
    return [old, new, first, *(torch.zeros(int(first[-1]), dtype=torch.uint8) for _ in range(2))]


def fp8_delta_apply(d: Draw) -> Call:
    codes = fp8_codes(d, d.size(), d.size(1))
    gaps = d.i32(0, codes.shape[1], len(codes)).to(torch.uint8)
    return [torch.arange(len(codes) + 1), gaps, torch.full_like(gaps, 7), codes]


CALLS: dict[str, Callable[[Draw], Call]] = {
    call.__name__: call
    for call in (
        pack_panels,
        linear_forward,
        linear_weight_grad,
        attend_packed_forward,
        attend_packed_backward,
        write_pages,
        attend_paged,
        attention_step,
        dense_step,
        sparse_step,
        route_forward,
        route_backward,
        permute_forward,
        permute_backward,
        unpermute_forward,
        unpermute_backward,
        experts_forward,
        experts_backward,
        logprob_columns,
        logprob_finish,
        logprob_columns_backward,
        sample_rows,
        rope_turn,
        split_heads_forward,
        split_heads_backward,
        swiglu_forward,
        swiglu_backward,
        gae_scan,
        advantage_moments,
        shift_and_scale,
        rms_norm_forward,
        rms_norm_backward,
        add_rms_norm_forward,
        add_rms_norm_backward,
        karmarkar_karp,
        within_budget,
        fp8_quantize,
        fp8_dequantize,
        fp8_feedback,
        fp8_linear,
        fp8_delta_count,
        fp8_delta_write,
        fp8_delta_apply,
    )
}
