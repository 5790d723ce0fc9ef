"""Routing, permute and the gather-combine against torch and a warm copy of the same bytes, in turns in one process.

Every way is checked before it is timed. Peers, each eager and compiled (inductor), all from float32 logits:
- dispatch: softmax, topk, normalised weights, counts, the order of the rows, and the rows themselves. "argsort" sorts
  the flat ids and gathers with index_select (transformers' grouped path), "map" is Megatron's routing map with
  masked_select.
- combine: "view_sum" multiplies and gathers all rows and sums over K (transformers' grouped path), "index_add" adds
  weighted rows into zeros (transformers' eager experts), "scatter_add" is Megatron's unpermute, "embedding_bag" is the
  operation of torch that fits best, which neither uses. Weights have the dtype of the rows, as in transformers.
Two clocks: "fresh" allocates its results, as a call in Python does (the kernel hands out zeroed pages meanwhile, which
costs both sides the same); "into" writes into warm memory, where torch has an `out=`. The copy moves the same number of
bytes (read and written) between warm arrays with torch on the same threads, half of them each way.
Run: `python benchmarks/kernel_route.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, one_hot
from turns import environment, in_turns, save

from seedthink import _C
from seedthink.kernels.permute import permute, reference_unpermute, unpermute
from seedthink.kernels.route import route

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
# name, T, E, K, rule of the router: the issue's shape, then DeepSeek-V3's
ROUTERS: list[tuple[str, int, int, int, dict[str, Any]]] = [
    ("softmax top-8 of 128", 16384, 128, 8, {}),
    ("softmax top-8 of 128", 4096, 128, 8, {}),
    ("sigmoid, bias, 4 of 8 groups, top-8 of 256", 4096, 256, 8, {"score": "sigmoid", "groups": 8, "topk_groups": 4}),
]
DISPATCH = (16384, 128, 8, 2048)  # T, E, K, D
COMBINE = (4096, 128, 8, 2048)

Run = Callable[[], object]


def copy_of(total_bytes: int) -> Run:
    """A warm copy that reads half of the bytes and writes the other half."""
    source = torch.randint(0, 255, (total_bytes // 2,), dtype=torch.uint8)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def eager_router(logits_TE: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(weights, ids) as transformers' Qwen3-MoE computes them."""
    value, ids = torch.topk(logits_TE.softmax(-1, dtype=torch.float), k, dim=-1)
    return value / value.sum(-1, keepdim=True), ids


def grouped_router(logits_TE: Tensor, k: int, bias_E: Tensor, groups: int, kept: int) -> tuple[Tensor, Tensor]:
    """(weights, ids) as transformers' DeepSeek-V3 computes them."""
    score = logits_TE.sigmoid()
    biased = score + bias_E
    of_group = biased.view(len(biased), groups, -1).topk(2, dim=-1)[0].sum(-1)
    mask = torch.zeros_like(of_group).scatter_(1, torch.topk(of_group, kept, dim=-1, sorted=False)[1], 1)
    mask = mask.unsqueeze(-1).expand(-1, groups, biased.shape[1] // groups).reshape(len(biased), -1)
    ids = torch.topk(biased.masked_fill(~mask.bool(), float("-inf")), k, dim=-1, sorted=False)[1]
    weight = score.gather(1, ids)
    return weight / (weight.sum(-1, keepdim=True) + 1e-20) * 2.5, ids


def places(ids_TK: Tensor, experts: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Counts, offsets, the rows of the tokens and the tokens of the rows."""
    counts = torch.bincount(ids_TK.reshape(-1), minlength=experts)
    slots = torch.argsort(ids_TK.reshape(-1), stable=True)
    row = torch.empty_like(slots).scatter_(0, slots, torch.arange(slots.numel()))
    return counts, counts.cumsum(0), row, slots // ids_TK.shape[1]


def dispatch_argsort(logits_TE: Tensor, x_TD: Tensor, k: int) -> tuple[Tensor, ...]:
    """Route and permute by sorting the flat ids."""
    weight, ids = eager_router(logits_TE, k)
    counts, offsets, row, token = places(ids, logits_TE.shape[1])
    return weight, counts, offsets, row, x_TD.index_select(0, token)


def dispatch_map(logits_TE: Tensor, x_TD: Tensor, k: int) -> tuple[Tensor, ...]:
    """Route and permute by Megatron's routing map."""
    weight, ids = eager_router(logits_TE, k)
    tokens, experts = logits_TE.shape
    routing_map = one_hot(ids, experts).sum(1).bool()
    counts = routing_map.sum(0)
    by_expert = routing_map.T.contiguous()
    token = torch.arange(tokens).expand(experts, -1).masked_select(by_expert)
    probabilities = torch.zeros_like(logits_TE).scatter(1, ids, weight).T.contiguous().masked_select(by_expert)
    return probabilities, counts, counts.cumsum(0), token, x_TD.index_select(0, token)


def dispatch_ours(logits_TE: Tensor, x_TD: Tensor, k: int) -> Tensor:
    """Route and permute."""
    return permute(x_TD, route(logits_TE, k))


def combine_view_sum(y_RD: Tensor, weight_TK: Tensor, row_TK: Tensor, token_R: Tensor) -> Tensor:
    """Weighted rows gathered back to [T, K, D], summed over K."""
    row = row_TK.reshape(-1)
    weight_R = torch.empty_like(weight_TK).reshape(-1).scatter_(0, row, weight_TK.reshape(-1))
    weighted = y_RD * weight_R[:, None]
    return weighted[row].view(*row_TK.shape, -1).sum(1)


def combine_index_add(y_RD: Tensor, weight_TK: Tensor, row_TK: Tensor, token_R: Tensor) -> Tensor:
    """Weighted rows added into zeros, in the dtype of the rows."""
    weight_R = torch.empty_like(weight_TK).reshape(-1).scatter_(0, row_TK.reshape(-1), weight_TK.reshape(-1))
    zeros = torch.zeros(len(row_TK), y_RD.shape[1], dtype=y_RD.dtype)
    return zeros.index_add_(0, token_R, y_RD * weight_R[:, None])


def combine_scatter_add(y_RD: Tensor, weight_TK: Tensor, row_TK: Tensor, token_R: Tensor) -> Tensor:
    """The same by scatter_add_."""
    weight_R = torch.empty_like(weight_TK).reshape(-1).scatter_(0, row_TK.reshape(-1), weight_TK.reshape(-1))
    zeros = torch.zeros(len(row_TK), y_RD.shape[1], dtype=y_RD.dtype)
    return zeros.scatter_add_(0, token_R[:, None].expand_as(y_RD), y_RD * weight_R[:, None])


def combine_bag(y_RD: Tensor, weight_TK: Tensor, row_TK: Tensor, token_R: Tensor) -> Tensor:
    """The weighted sum of K gathered rows as one call of torch."""
    return embedding_bag(row_TK, y_RD, mode="sum", per_sample_weights=weight_TK)


COMBINES = {
    "view_sum": combine_view_sum,
    "index_add": combine_index_add,
    "scatter_add": combine_scatter_add,
    "embedding_bag": combine_bag,
}


def best(times: dict[str, Any], names: list[str], ours: str) -> dict[str, Any]:
    """The fastest of the peers and its ratio to ours: of medians, and of its least time to our greatest."""
    peer = min(names, key=lambda name: times[f"{name}_ms"])
    return {
        "baseline": peer,
        "ratio": times[f"{peer}_ms"] / times[f"{ours}_ms"],
        "ratio_lowest": times[f"{peer}_ms_least"] / times[f"{ours}_ms_most"],
    }


def of_copy(times: dict[str, Any], ours: str, copy: str, total_bytes: int) -> dict[str, Any]:
    """Bytes per second, and the fraction of the copy's."""
    return {
        f"{ours}_gb_per_s": total_bytes / times[f"{ours}_ms"] / 1e6,
        f"{ours}_of_copy": times[f"{copy}_ms"] / times[f"{ours}_ms"],
        f"{ours}_of_copy_least": times[f"{copy}_ms_least"] / times[f"{ours}_ms_least"],
    }


def measure_router(
    name: str, tokens: int, experts: int, k: int, rule: dict[str, Any], samples: int, patience: int
) -> dict[str, Any]:
    """Scores, choice, weights and the places of the rows, without any row."""
    logits = torch.randn(tokens, experts)
    if rule:
        rule = {**rule, "scale": 2.5, "bias_E": torch.randn(experts) / 50}

    def peer(logits: Tensor) -> tuple[Tensor, ...]:
        if rule:
            weight, ids = grouped_router(logits, k, rule["bias_E"], rule["groups"], rule["topk_groups"])
        else:
            weight, ids = eager_router(logits, k)
        return weight, *places(ids, experts)

    compiled, routing = torch.compile(peer), route(logits, k, **rule)
    for found in (peer(logits), compiled(logits)):
        assert torch.equal(found[1], routing.counts_E.long())
        torch.testing.assert_close(found[0].sort(-1).values, routing.weight_TK.sort(-1).values, rtol=1e-5, atol=1e-6)
    runs: dict[str, Run] = {
        "route": lambda: route(logits, k, **rule),
        "eager": lambda: peer(logits),
        "inductor": lambda: compiled(logits),
    }
    times = in_turns(runs, samples, patience)
    row = {"op": "route", "case": name, "T": tokens, "E": experts, "K": k, **times}
    return row | best(times, ["eager", "inductor"], "route")


def measure_dispatch(dtype: str, samples: int, patience: int) -> dict[str, Any]:
    """Route, metadata and permute, whole; and the permute alone into warm memory."""
    tokens, experts, k, width = DISPATCH
    logits, x = torch.randn(tokens, experts), torch.randn(tokens, width).to(DTYPES[dtype])
    routing = route(logits, k)
    rows = permute(x, routing)
    peers: dict[str, Callable[..., tuple[Tensor, ...]]] = {}
    for name, peer in (("argsort", dispatch_argsort), ("map", dispatch_map)):
        peers |= {f"{name}_eager": peer, f"{name}_inductor": torch.compile(peer)}
    for peer in peers.values():  # ids within a token may differ in order, rows of an expert may not
        assert torch.equal(peer(logits, x, k)[-1], rows)
    token, into = routing.token_R.long(), torch.empty_like(rows)

    def whole_into() -> None:
        found = route(logits, k)
        _C.permute_forward(x, found.row_TK, found.token_R, into)

    def argsort_into() -> None:
        _, ids = eager_router(logits, k)
        torch.index_select(x, 0, places(ids, experts)[3], out=into)

    total = (x.numel() + rows.numel()) * x.element_size()
    runs: dict[str, Run] = {
        "ours_fresh": lambda: dispatch_ours(logits, x, k),
        **{name: (lambda peer=peer: peer(logits, x, k)) for name, peer in peers.items()},
        "ours_into": whole_into,
        "argsort_into": argsort_into,
        "permute_into": lambda: _C.permute_forward(x, routing.row_TK, routing.token_R, into),
        "index_select_into": lambda: torch.index_select(x, 0, token, out=into),
        "copy": copy_of(total),
    }
    times = in_turns(runs, samples, patience)
    row = {"op": "route, metadata, permute", "dtype": dtype, "T": tokens, "E": experts, "K": k, "D": width, **times}
    row |= best(times, list(peers), "ours_fresh")
    row |= {f"into_{name}": value for name, value in best(times, ["argsort_into"], "ours_into").items()}
    return row | of_copy(times, "permute_into", "copy", total)


def measure_combine(dtype: str, samples: int, patience: int) -> dict[str, Any]:
    """The weighted sum of gathered rows."""
    tokens, experts, k, width = COMBINE
    routing = route(torch.randn(tokens, experts), k)
    y = torch.randn(tokens * k, width).to(DTYPES[dtype])
    exact = reference_unpermute(y, routing._replace(weight_TK=routing.weight_TK.double()))
    arguments = (y, routing.weight_TK.to(y.dtype), routing.row_TK.long(), routing.token_R.long())
    peers: dict[str, Callable[..., Tensor]] = {}
    for name, peer in COMBINES.items():
        peers |= {f"{name}_eager": peer, f"{name}_inductor": torch.compile(peer)}
    errors = {"ours": float((unpermute(y, routing).double() - exact).norm() / exact.norm())}
    for name, peer in peers.items():
        errors[name] = float((peer(*arguments).double() - exact).norm() / exact.norm())
    assert errors["ours"] < 0.01 and all(error < 0.05 for error in errors.values()), errors
    into = torch.empty(tokens, width, dtype=y.dtype)
    total = (y.numel() + into.numel()) * y.element_size()
    runs: dict[str, Run] = {
        "ours_fresh": lambda: unpermute(y, routing),
        **{name: (lambda peer=peer: peer(*arguments)) for name, peer in peers.items()},
        "ours_into": lambda: _C.unpermute_forward(y, routing.weight_TK, routing.row_TK, routing.token_R, into),
        "copy": copy_of(total),
    }
    times = in_turns(runs, samples, patience)
    row = {"op": "gather-combine", "dtype": dtype, "T": tokens, "K": k, "D": width, "errors": errors, **times}
    used = [name for name in peers if not name.startswith("embedding_bag")]
    row |= best(times, used, "ours_fresh")
    row |= {f"bag_{name}": value for name, value in best(times, list(peers), "ours_fresh").items()}
    return row | of_copy(times, "ours_into", "copy", total)


def show(row: dict[str, Any]) -> None:
    """One line with what the targets are about, one with every time."""
    name = " ".join(str(row[key]) for key in ("op", "case", "dtype") if key in row)
    text = f"{name}, T {row['T']}: {row['ratio']:.1f}x of {row['baseline']} (lowest {row['ratio_lowest']:.1f}x)"
    if "into_ratio" in row:
        text += f", into warm memory {row['into_ratio']:.1f}x (lowest {row['into_ratio_lowest']:.1f}x)"
    if "bag_ratio" in row:
        text += f", {row['bag_ratio']:.1f}x of {row['bag_baseline']}"
    text += "".join(f", {key.split('_of_')[0]} {row[key]:.0%} of copy" for key in row if key.endswith("_of_copy"))
    print(f"{text}, elsewhere {row['cores_used_elsewhere']:.2f}")
    print("   " + ", ".join(f"{key[:-3]} {row[key]:.2f} ms" for key in row if key.endswith("_ms")), flush=True)


def main() -> None:
    """Measure, print a table, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=15)
    parser.add_argument("--patience", type=int, default=3, help="times to repeat a case that others disturbed")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    _C.set_threads(options.threads)
    torch.manual_seed(0)
    surroundings, rows = environment(), []
    for router in ROUTERS:
        rows.append(measure_router(*router, options.samples, options.patience))
        show(rows[-1])
    for dtype in DTYPES:
        rows.append(measure_dispatch(dtype, options.samples, options.patience))
        show(rows[-1])
        rows.append(measure_combine(dtype, options.samples, options.patience))
        show(rows[-1])
    save("kernel_route", rows, surroundings)


if __name__ == "__main__":
    main()
