"""Rows of benchmarks/gpu.py: routing, the rows' way to the experts and back, the experts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from gpu_rows import Call, Case, Made, compiled, first_wrong, near, same
from torch import Tensor

EXPERTS, K = 128, 8


def routing() -> Iterator[Case]:
    """Qwen3's router at three sizes, DeepSeek-V3's with groups and bias."""
    for tokens, reach in ((64, "<= 4 us"), (256, "<= 4 us"), (4096, "<= 6 us"), (8192, ""), (65536, "")):
        yield Case("route", f"T={tokens} E=128 K=8", reach, partial(_route, tokens, 128, {}))
    grouped = {"score": "sigmoid", "groups": 8, "topk_groups": 4, "scale": 2.5}
    yield Case("route", "T=8192 E=256 K=8 groups, bias", "<= 12 us", partial(_route, 8192, 256, grouped))
    yield Case("route backward", "T=4096 E=128 K=8", "", partial(_route_backward, 4096, 128))


def _rule(how: dict[str, object], bias: Tensor | None) -> tuple[object, ...]:
    """What follows the logits and k in the operator."""
    groups = (how.get("groups", 1), how.get("topk_groups", 1))
    return how.get("score", "softmax"), True, how.get("scale", 1.0), bias, *groups


def _route(tokens: int, experts: int, how: dict[str, object]) -> Made:
    from gpu_clock import rotations

    from seedthink.kernels import cuda

    rows = tokens * K
    moved = 4.0 * tokens * experts + 16.0 * rows
    sets = [torch.randn(tokens, experts, device="cuda") for _ in range(rotations(moved))]
    bias = 0.1 * torch.randn(experts, device="cuda") if how else None
    rule = _rule(how, bias)
    ours: list[Call] = [partial(cuda.route, logits, K, *rule) for logits in sets]
    peers: dict[str, list[Call]] = {}
    if not how:
        peers = {
            "eager": [partial(_eager_route, logits) for logits in sets],
            "compile": compiled(_eager_route, *((logits,) for logits in sets)),
        }
    return Made({"cuda": ours}, peers, partial(_check_route, sets[0], rule), bytes=moved)


def _eager_route(logits: Tensor) -> tuple[Tensor, ...]:
    weight, ids = logits.softmax(-1).topk(K, dim=-1)
    weight = weight / weight.sum(-1, keepdim=True)
    flat = ids.flatten()
    order = torch.argsort(flat, stable=True)
    row = torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=order.device))
    counts = torch.zeros(logits.shape[1], dtype=torch.int64, device=flat.device).scatter_add_(
        0, flat, torch.ones_like(flat)
    )
    return weight, ids, counts, counts.cumsum(0), row, order // K


def _check_route(logits: Tensor, rule: tuple[object, ...], _: str) -> str:
    from seedthink.kernels import cuda
    from seedthink.kernels.route import _route_forward

    tied = torch.randint(-2, 3, logits.shape, device="cuda").float()
    wrong = []
    for given in (logits, tied, logits[:1].contiguous(), logits[:0]):
        mine = cuda.route(given, K, *rule)
        on_cpu = [each.cpu() if isinstance(each, Tensor) else each for each in rule]
        theirs = _route_forward(given.cpu(), K, *on_cpu)
        names = ("ids", "counts", "offsets", "row", "token")
        wrong += [same(name, a, b) for name, a, b in zip(names, mine[1:], theirs[1:], strict=True)]
        wrong.append(near("weight", mine[0], theirs[0], 1e-6))
        again = cuda.route(given, K, *rule)
        wrong += [same("run to run", a, b) for a, b in zip(mine, again, strict=True)]
    half = cuda.route(logits.bfloat16(), K, *rule)
    wrong += [
        same("bfloat16 logits", a, b)
        for a, b in zip(half, cuda.route(logits.bfloat16().float(), K, *rule), strict=True)
    ]
    broken = logits.clone()
    broken[-1, 3] = torch.nan
    weight = cuda.route(broken, K, *rule)[0]
    wrong.append(
        "" if bool(weight[-1].isnan().all()) and not bool(weight[:-1].isnan().any()) else "NaN logits: wrong rows"
    )
    return first_wrong(*wrong)


def _route_backward(tokens: int, experts: int) -> Made:
    from gpu_clock import rotations

    from seedthink.kernels import cuda
    from seedthink.kernels.route import _route_grad_cpu

    moved = 4.0 * tokens * experts + 12.0 * tokens * K
    made = []
    for _ in range(rotations(moved)):
        logits = torch.randn(tokens, experts, device="cuda")
        weight, ids, *_ = cuda.route(logits, K, "softmax", True, 1.0, None, 1, 1)
        made.append((torch.randn_like(weight), logits, ids, weight))

    def check(_: str) -> str:
        wrong = []
        for rule in (("softmax", True, 1.0), ("softmax", False, 2.0), ("sigmoid", True, 2.5), ("sigmoid", False, 1.0)):
            weight, ids, *_ = cuda.route(made[0][1], K, *rule, None, 1, 1)
            given = (made[0][0], made[0][1], ids, weight)
            theirs = _route_grad_cpu(*(each.cpu() for each in given), *rule)
            wrong.append(near(f"gradient {rule}", cuda.route_backward(*given, *rule), theirs, 1e-5))
        return first_wrong(*wrong)

    calls = [partial(cuda.route_backward, *each, "softmax", True, 1.0) for each in made]
    return Made({"cuda": calls}, {}, check, bytes=moved)


def rows() -> Iterator[Case]:
    """Permute, combine and its gradient at the widths of the table."""
    for width in (2048, 4096, 7168):
        shape = f"T=8192 D={width} K=8 bf16"
        yield Case("permute", shape, ">= 85 % of copy", partial(_permute, 8192, width))
        yield Case("combine", shape, ">= 85 % of copy", partial(_combine, 8192, width))
    yield Case("combine backward", "T=8192 D=2048 K=8 bf16", "", partial(_combine_backward, 8192, 2048))


def routed(tokens: int, experts: int = EXPERTS) -> tuple[Tensor, ...]:
    """(weight_TK, row_TK, token_R, offsets_E1) of random logits."""
    from seedthink.kernels import cuda

    logits = torch.randn(tokens, experts, device="cuda")
    weight, _, _, offsets, row, token = cuda.route(logits, K, "softmax", True, 1.0, None, 1, 1)
    return weight, row, token, offsets


def _permute(tokens: int, width: int) -> Made:
    from seedthink.kernels import cuda
    from seedthink.kernels.triton import permute as by_triton

    x = torch.randn(tokens, width, device="cuda").bfloat16()
    _, row, token, _ = routed(tokens)
    ours = {"cuda": lambda: cuda.permute(x, row, token), "triton": lambda: by_triton.permute(x, row)}
    index = token.long()

    def check(name: str) -> str:
        odd = torch.randn(64, 37, device="cuda").bfloat16()
        _, few_rows, few_tokens, _ = routed(64)
        small = cuda.permute(odd, few_rows, few_tokens) if name == "cuda" else by_triton.permute(odd, few_rows)
        full = ours[name]().view(torch.int16)
        return first_wrong(
            same("odd width against the CPU", small, odd.cpu()[few_tokens.cpu().long()]),
            "" if torch.equal(full, x.view(torch.int16)[index]) else "rows differ",
        )

    moved = 2.0 * tokens * width * (1 + K) + 4 * tokens * K
    peers = {"index_select": [lambda: x.index_select(0, index)]}
    return Made({name: [call] for name, call in ours.items()}, peers, check, bytes=moved, peers_within=0.0)


def _sum_rows(y: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    return (weight[:, :, None] * y[index].float()).sum(1).bfloat16()


def _combine(tokens: int, width: int) -> Made:
    from seedthink.kernels import cuda
    from seedthink.kernels.permute import _unpermute_forward
    from seedthink.kernels.triton import permute as by_triton

    weight, row, token, _ = routed(tokens)
    y = torch.randn(tokens * K, width, device="cuda").bfloat16()
    index = row.long()

    def run(name: str, y: Tensor, weight: Tensor, row: Tensor, token: Tensor) -> Tensor:
        return cuda.unpermute(y, weight, row, token) if name == "cuda" else by_triton.combine(y, weight, row)

    def check(name: str) -> str:
        few = routed(96)
        small = torch.randn(96 * K, width, device="cuda").bfloat16()
        mine = run(name, small, *few[:3])
        theirs = _unpermute_forward(small.cpu(), *(each.cpu() for each in few[:3]))
        return first_wrong(
            near("against the CPU", mine, theirs, 1e-3),
            near("against torch", run(name, y, weight, row, token), _sum_rows(y, weight, index), 1e-3),
        )

    ours = {name: [partial(run, name, y, weight, row, token)] for name in ("cuda", "triton")}
    peers = {"eager": [lambda: _sum_rows(y, weight, index)], "compile": compiled(_sum_rows, (y, weight, index))}
    moved = 2.0 * tokens * width * (1 + K) + 8 * tokens * K
    return Made(ours, peers, check, bytes=moved, peers_within=1e-2)


def _combine_backward(tokens: int, width: int) -> Made:
    from seedthink.kernels import cuda
    from seedthink.kernels.permute import _unpermute_grad_cpu
    from seedthink.kernels.triton import permute as by_triton

    weight, row, token, _ = routed(tokens)
    y, dy = (torch.randn(rows, width, device="cuda").bfloat16() for rows in (tokens * K, tokens))

    def run(name: str, dy: Tensor, y: Tensor, weight: Tensor, row: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        if name == "cuda":
            return cuda.unpermute_backward(dy, y, weight, row, token)
        return by_triton.combine_backward(dy, y, weight, row)

    def check(name: str) -> str:
        few = routed(96)[:3]
        given = [torch.randn(rows, width, device="cuda").bfloat16() for rows in (96, 96 * K)]
        mine = run(name, *given, *few)
        theirs = _unpermute_grad_cpu(*(each.cpu() for each in (*given, *few)))
        return first_wrong(
            *(near(what, a, b, 1e-3) for what, a, b in zip(("dy", "dweight"), mine, theirs, strict=True))
        )

    ours = {name: [partial(run, name, dy, y, weight, row, token)] for name in ("cuda", "triton")}
    return Made(ours, {}, check, bytes=2.0 * tokens * width * (1 + 2 * K) + 12 * tokens * K)


def experts() -> Iterator[Case]:
    """The grouped MLP at Qwen3-30B-A3B's shapes; our only variant is the batch-invariant one."""
    for tokens in (4096, 32768):
        reach = ">= 500 TFLOP/s, >= 0.95 of the best peer" if tokens == 32768 else ""
        shape = f"T={tokens} D=2048 I=768 E=128 K=8 bf16"
        yield Case("experts", shape, reach, partial(_experts, tokens, 2048, 768), seconds=40.0)


def _experts(tokens: int, width: int, inner: int) -> Made:
    from seedthink.kernels.triton import experts as by_triton

    weight, row, token, offsets = routed(tokens)
    x = torch.randn(tokens, width, device="cuda").bfloat16()
    gate_up = (torch.randn(EXPERTS, 2 * inner, width, device="cuda") * width**-0.5).bfloat16()
    down = (torch.randn(EXPERTS, width, inner, device="cuda") * inner**-0.5).bfloat16()
    index, rows_of_token, ends = token.long(), row.long(), offsets[1:]

    def run(x: Tensor, weight: Tensor, offsets: Tensor, row: Tensor, token: Tensor) -> Tensor:
        return by_triton.forward(x, weight, offsets, row, token, gate_up, down, torch.bfloat16, keep=False)[0]

    def grouped(x: Tensor, weight: Tensor) -> Tensor:
        hidden = torch._grouped_mm(x[index], gate_up.transpose(1, 2), offs=ends)
        act = torch.nn.functional.silu(hidden[:, :inner]) * hidden[:, inner:]
        out = torch._grouped_mm(act, down.transpose(1, 2), offs=ends)
        return _sum_rows(out, weight, rows_of_token)

    def check(_: str) -> str:
        few_weight, few_row, few_token, few_offsets = routed(256)
        small = torch.randn(256, width, device="cuda").bfloat16()
        mine = run(small, few_weight, few_offsets, few_row, few_token)
        theirs = _experts_in_float(small, few_weight, few_row, few_token, few_offsets, gate_up, down)
        alone = run(x, weight, offsets, row, token)
        return first_wrong(
            near("against float64", mine, theirs, 1e-2), near("against torch", alone, grouped(x, weight), 1e-2)
        )

    peers: dict[str, list[Call]] = {
        "grouped_mm": [lambda: grouped(x, weight)],
        "compile": compiled(grouped, (x, weight)),
    }
    ours: dict[str, list[Call]] = {"triton": [lambda: run(x, weight, offsets, row, token)]}
    return Made(ours, peers, check, flops=6.0 * tokens * K * width * inner, peers_within=1e-2)


def _experts_in_float(
    x: Tensor, weight: Tensor, row: Tensor, token: Tensor, offsets: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    """The formula expert by expert in float64 on the CPU."""
    inner, bounds, parts = down.shape[2], offsets.tolist(), []
    rows = x.cpu().double()[token.cpu().long()]
    for e in range(len(bounds) - 1):
        hidden = rows[bounds[e] : bounds[e + 1]] @ gate_up[e].cpu().double().T
        act = torch.nn.functional.silu(hidden[:, :inner]) * hidden[:, inner:]
        parts.append(act @ down[e].cpu().double().T)
    return (weight.cpu().double()[:, :, None] * torch.cat(parts)[row.cpu().long()]).sum(1)
