"""One runnable call per search space: inputs for given dims and load, the call, and a float64 reference to check it.

The search runs these; in a running program the tuner times the program's own calls. Inputs are random, never zeros.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from seedthink.kernels import selector
from seedthink.kernels.activation import reference_swiglu, swiglu
from seedthink.kernels.attention import (
    PAGE,
    attend_packed,
    attend_paged,
    new_pages,
    reference_attend_packed,
    reference_attend_paged,
    write_pages,
)
from seedthink.kernels.experts import experts, reference_experts
from seedthink.kernels.gae import gae, reference_gae
from seedthink.kernels.heads import reference_split_heads, split_heads
from seedthink.kernels.linear import linear, reference_linear
from seedthink.kernels.logprob import reference_row_logprob, row_logprob
from seedthink.kernels.norm import reference_rms_norm, rms_norm
from seedthink.kernels.rope import reference_rope, rope, rope_table
from seedthink.kernels.route import reference_route, route
from seedthink.kernels.sampling import reference_sample, sample
from seedthink.kernels.selector import Key, Load

Outputs = tuple[Tensor, ...]
EPS = 1e-6
LONGEST = 8192  # positions of the rotation tables


@dataclass(frozen=True, slots=True)
class Case:
    """A call of one operation. `tolerance` bounds the error against the reference, relative to its largest value."""

    key: Key
    run: Callable[[], Outputs]
    reference: Callable[[], Outputs]
    tolerance: float = 1e-4


def build(key: Key, seed: int = 0) -> Case:
    """The call that a key describes. ValueError for an operation without a case."""
    if key.op not in _BUILDERS:
        raise ValueError(f"op: '{key.op}' has no case; it can be one of {', '.join(sorted(_BUILDERS))}")
    return _BUILDERS[key.op](key, torch.Generator().manual_seed(seed))


def error_of(found: Outputs, wanted: Outputs) -> float:
    """Largest difference from the reference, relative to the reference's largest value; inf where one has NaN."""
    worst = 0.0
    for mine, exact in zip(found, wanted, strict=True):
        exact = exact.double()
        difference = (mine.double() - exact).abs().max() if exact.numel() else torch.zeros(())
        worst = max(worst, float(difference / exact.abs().max().clamp_min(1e-30)) if exact.numel() else 0.0)
        if not bool(torch.isfinite(difference)):
            return float("inf")
    return worst


def same_bits(found: Outputs, wanted: Outputs) -> bool:
    """Whether two results agree bit for bit."""
    return all(
        torch.equal(mine.contiguous().view(torch.uint8), theirs.contiguous().view(torch.uint8))
        for mine, theirs in zip(found, wanted, strict=True)
    )


def loop_clock(op: str, rest: Callable[[], object] = lambda: None) -> Callable[[Callable[[], object], int], float]:
    """A clock for `paired_seconds`: seconds that a call spends in the operation's own loops, the median of the calls.

    The median, because on a busy machine a call that is interrupted takes a hundred times as long as the others.
    """

    def clock(run: Callable[[], object], calls: int) -> float:
        rest()
        selector.watch([op], True)
        try:
            run()  # wakes the threads
            selector.watched(op)
            took = []
            for _ in range(calls):
                run()
                took.append(selector.watched(op)[1])
            return max(statistics.median(took), 1e-9)
        finally:
            selector.watch([op], False)

    return clock


def _dtype(key: Key) -> torch.dtype:
    return torch.bfloat16 if key.dtype == "bfloat16" else torch.float32


def _tolerance(key: Key) -> float:
    return 2e-2 if key.dtype == "bfloat16" else 1e-4


def _norm(key: Key, draw: torch.Generator) -> Case:
    (width,) = key.dims
    x, weight = torch.randn(key.load.tokens, width, generator=draw), torch.rand(width, generator=draw) + 0.5
    return Case(
        key,
        lambda: (rms_norm(x, weight, EPS),),
        lambda: (reference_rms_norm(x.double(), weight.double(), EPS),),
    )


def _swiglu(key: Key, draw: torch.Generator) -> Case:
    x = torch.randn(key.load.tokens, 2 * key.dims[0], generator=draw)
    return Case(key, lambda: (swiglu(x),), lambda: (reference_swiglu(x.double()),))


def _positions(tokens: int) -> Tensor:
    return torch.arange(tokens, dtype=torch.int32) % LONGEST


def _rope(key: Key, draw: torch.Generator) -> Case:
    heads, head_dim = key.dims
    x = torch.randn(key.load.tokens, heads, head_dim, generator=draw)
    table, positions = rope_table(LONGEST, head_dim, 10000.0), _positions(key.load.tokens)
    return Case(
        key, lambda: (rope(x, table, positions),), lambda: (reference_rope(x.double(), table.double(), positions),)
    )


def _heads(key: Key, draw: torch.Generator) -> Case:
    heads, kv_heads, head_dim = key.dims
    qkv = torch.randn(key.load.tokens, (heads + 2 * kv_heads) * head_dim, generator=draw)
    norms = torch.rand(2, head_dim, generator=draw) + 0.5
    table, positions = rope_table(LONGEST, head_dim, 10000.0), _positions(key.load.tokens)

    def reference() -> Outputs:
        q_norm, k_norm = norms.double()
        return reference_split_heads(qkv.double(), q_norm, k_norm, EPS, table.double(), positions, heads, kv_heads)

    def run() -> Outputs:
        return split_heads(qkv, norms[0], norms[1], EPS, table, positions, heads, kv_heads)

    return Case(key, run, reference)


def _linear(key: Key, draw: torch.Generator) -> Case:
    """Every product of a layer and the head, one after the other, as a step runs them under one setting."""
    pairs = _products(key, draw)

    def reference() -> Outputs:
        return tuple(reference_linear(x.double(), w.double(), _dtype(key)) for x, w in pairs)

    return Case(key, lambda: tuple(linear(x, w, _dtype(key)) for x, w in pairs), reference, _tolerance(key))


def _products(key: Key, draw: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    width, qkv, out, dense, vocabulary = key.dims
    sizes = [(width, qkv), (out, width), (width, vocabulary), (width, 2 * dense), (dense, width)]
    return [
        (torch.randn(key.load.tokens, k, generator=draw), torch.randn(n, k, generator=draw) * k**-0.5)
        for k, n in sizes
        if k and n
    ]


def _linear_grad(key: Key, draw: torch.Generator) -> Case:
    without_head = key._replace(dims=(*key.dims[:-1], 0))
    triples = [
        (x, w.requires_grad_(), torch.randn(len(x), len(w), generator=draw)) for x, w in _products(without_head, draw)
    ]
    outputs = [linear(x, w, _dtype(key)) for x, w, _ in triples]

    def run() -> Outputs:
        return tuple(
            torch.autograd.grad(y, w, dy, retain_graph=True)[0] for y, (_, w, dy) in zip(outputs, triples, strict=True)
        )

    def reference() -> Outputs:
        return tuple(_rounded(dy, key).T @ _rounded(x, key) for x, _, dy in triples)

    return Case(key, run, reference, _tolerance(key))


def _rounded(x: Tensor, key: Key) -> Tensor:
    return x.detach().to(_dtype(key)).double()


def skewed_logits(tokens: int, count: int, imbalance: float, draw: torch.Generator) -> Tensor:
    """Logits [tokens, count] whose first expert is chosen about `imbalance` times as often as the mean."""
    logits = torch.randn(tokens, count, generator=draw)
    if imbalance > 1:
        share = torch.rand(tokens, generator=draw) < min(1.0, (imbalance - 1) / max(1e-9, count - 1) * 2)
        logits[:, 0] += share * 20.0
    return logits


def _experts(key: Key, draw: torch.Generator) -> Case:
    count, k, width, inner = key.dims
    x = torch.randn(key.load.tokens, width, generator=draw)
    logits = skewed_logits(key.load.tokens, count, key.load.imbalance, draw)
    gate_up = torch.randn(count, 2 * inner, width, generator=draw) * width**-0.5
    down = torch.randn(count, width, inner, generator=draw) * inner**-0.5
    routing = route(logits, k)

    def reference() -> Outputs:
        exact = reference_route(logits.double(), k)
        return (reference_experts(x.double(), exact, gate_up.double(), down.double(), _dtype(key)),)

    return Case(key, lambda: (experts(x, routing, gate_up, down, _dtype(key)),), reference, _tolerance(key))


def _experts_grad(key: Key, draw: torch.Generator) -> Case:
    count, k, width, inner = key.dims
    x = torch.randn(key.load.tokens, width, generator=draw, requires_grad=True)
    logits = skewed_logits(key.load.tokens, count, key.load.imbalance, draw)
    gate_up = (torch.randn(count, 2 * inner, width, generator=draw) * width**-0.5).requires_grad_()
    down = (torch.randn(count, width, inner, generator=draw) * inner**-0.5).requires_grad_()
    dy = torch.randn(key.load.tokens, width, generator=draw)
    y = experts(x, route(logits, k), gate_up, down, _dtype(key))

    def reference() -> Outputs:
        exact_x, exact_up, exact_down = (leaf.detach().double().requires_grad_() for leaf in (x, gate_up, down))
        exact_routing = reference_route(logits.double(), k)
        exact = reference_experts(exact_x, exact_routing, exact_up, exact_down, _dtype(key))
        return torch.autograd.grad(exact, (exact_x, exact_up, exact_down), dy.double())

    def run() -> Outputs:
        return torch.autograd.grad(y, (x, gate_up, down), dy, retain_graph=True)

    return Case(key, run, reference, _tolerance(key))


def _bounds(tokens: int, length: int) -> Tensor:
    return torch.tensor([*range(0, tokens, length), tokens], dtype=torch.int32)


def _attend(key: Key, draw: torch.Generator) -> Case:
    heads, kv_heads, head_dim, length = key.dims
    q = torch.randn(key.load.tokens, heads, head_dim, generator=draw)
    k, v = torch.randn(2, key.load.tokens, kv_heads, head_dim, generator=draw)
    cu, scale = _bounds(key.load.tokens, length), head_dim**-0.5
    return Case(
        key,
        lambda: (attend_packed(q, k, v, cu, scale, _dtype(key)),),
        lambda: (reference_attend_packed(q.double(), _rounded(k, key), _rounded(v, key), cu, scale),),
        _tolerance(key),
    )


def _paged(key: Key, draw: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, float]:
    heads, kv_heads, head_dim, count = key.dims
    sequences = key.load.tokens
    each = max(1, min(LONGEST // PAGE, int(key.load.cache_fill * count) // sequences))
    pages = new_pages(each * sequences, kv_heads, head_dim, _dtype(key))
    for page in pages:
        page.copy_(torch.randn(page.shape, generator=draw))
    table = torch.randperm(each * sequences, generator=draw).int().view(sequences, each)
    lengths = torch.full((sequences,), each * PAGE, dtype=torch.int32)
    q = torch.randn(sequences, heads, head_dim, generator=draw)
    return q, *pages, table, lengths, head_dim**-0.5


def _attend_paged(key: Key, draw: torch.Generator) -> Case:
    """Decoding: one row for each of `tokens` sequences that share the used part of the cache evenly."""
    q, k_pages, v_pages, table, lengths, scale = _paged(key, draw)
    cu = torch.arange(key.load.tokens + 1, dtype=torch.int32)

    def reference() -> Outputs:
        return (reference_attend_paged(q.double(), k_pages, v_pages, table, cu, lengths, scale),)

    def run() -> Outputs:
        return (attend_paged(q, k_pages, v_pages, table, cu, lengths, scale),)

    return Case(key, run, reference, _tolerance(key))


def _pages(key: Key, draw: torch.Generator) -> Case:
    kv_heads, head_dim = key.dims
    tokens = key.load.tokens
    k, v = torch.randn(2, tokens, kv_heads, head_dim, generator=draw)
    slots = torch.randperm(-(-tokens // PAGE) * PAGE, generator=draw)[:tokens].int()
    k_pages, v_pages = new_pages(-(-tokens // PAGE), kv_heads, head_dim, _dtype(key))

    def run() -> Outputs:
        write_pages(k, v, slots, k_pages, v_pages)
        page, offset = slots.long() // PAGE, slots.long() % PAGE
        return k_pages[page, :, :, offset].float(), v_pages[page, :, offset].float()

    return Case(key, run, lambda: (_rounded(k, key), _rounded(v, key)), _tolerance(key))


def _logprob(key: Key, draw: torch.Generator) -> Case:
    rows, vocabulary = key.load.tokens, key.dims[0]
    logits = torch.randn(rows, vocabulary, generator=draw)
    targets = torch.randint(vocabulary, (rows,), generator=draw)
    temperature = torch.ones(rows)
    return Case(
        key,
        lambda: row_logprob(logits, targets, temperature),
        lambda: reference_row_logprob(logits.double(), targets, temperature.double()),
    )


def _sampling(key: Key, draw: torch.Generator) -> Case:
    rows, vocabulary = key.load.tokens, key.dims[0]
    logits = torch.randn(rows, vocabulary, generator=draw)
    ones, zeros = torch.ones(rows), torch.zeros(rows, dtype=torch.int32)
    seed, position = torch.randint(1 << 40, (rows,), generator=draw), torch.arange(rows)
    settings = (ones, zeros, ones, seed, position)

    def reference() -> Outputs:  # of the log-probability: a token may differ where rounding moves a boundary
        return (reference_sample(logits.double(), ones.double(), *settings[1:])[1],)

    return Case(key, lambda: (sample(logits, *settings)[1],), reference)


def _gae(key: Key, draw: torch.Generator) -> Case:
    tokens = key.load.tokens
    reward, value = torch.randn(2, tokens, generator=draw)
    cu = _bounds(tokens, key.dims[0])
    lambdas = torch.rand(2, len(cu) - 1, generator=draw) * 0.2 + 0.8
    return Case(
        key,
        lambda: gae(reward, value, cu, lambdas[0], lambdas[1]),
        lambda: reference_gae(reward.double(), value.double(), cu, lambdas[0], lambdas[1]),
        1e-3,
    )


_BUILDERS: Mapping[str, Callable[[Key, torch.Generator], Case]] = {
    "attend": _attend,
    "attend_paged": _attend_paged,
    "experts": _experts,
    "experts_grad": _experts_grad,
    "gae": _gae,
    "heads": _heads,
    "linear": _linear,
    "linear_grad": _linear_grad,
    "logprob": _logprob,
    "norm": _norm,
    "pages": _pages,
    "rope": _rope,
    "sampling": _sampling,
    "swiglu": _swiglu,
}


def with_tokens(key: Key, tokens: int) -> Key:
    """The same question at another number of rows."""
    return key._replace(load=Load(tokens, key.load.imbalance, key.load.cache_fill))
