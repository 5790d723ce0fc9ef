"""The search spaces as data: for each operation its parameters, the load its speed depends on, its work and its cut.

A space adds no code to a kernel beyond one line (docs/autotune.md): the kernel reads its launch settings, and all that
the search, the cost model and the online selector know about it stands here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

from seedthink.kernels.selector import BUILT_IN, EXACT, Config, Key, Load

Dims = tuple[int, ...]
Values = Mapping[str, int]
PANEL = 64  # columns of a packed panel (csrc/linear/panel.h)
TYPICAL_LENGTH = 256  # tokens of a sequence in a learning step, where a space needs one
CACHED = 8.0  # how many times as fast bytes come that were read a moment ago


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes of a model, of which every space takes its dims. `experts` 0 means dense layers of `dense_width`."""

    width: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    experts: int = 0
    experts_per_token: int = 0
    expert_width: int = 0
    dense_width: int = 0
    pages: int = 4096

    @property
    def qkv(self) -> int:
        """Columns of the projection to queries, keys and values."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim


SHAPES: Mapping[str, ModelShape] = {
    "quickstart": ModelShape(
        width=128, heads=4, kv_heads=2, head_dim=32, vocabulary=64, experts=8, experts_per_token=2, expert_width=128
    ),
    "small-moe": ModelShape(
        width=512, heads=8, kv_heads=4, head_dim=64, vocabulary=8192, experts=32, experts_per_token=4, expert_width=256
    ),
    "qwen3-0.6b": ModelShape(width=1024, heads=16, kv_heads=8, head_dim=128, vocabulary=151936, dense_width=3072),
}


class Work(NamedTuple):
    """What one call moves and computes at least, and the pieces that threads can share it in."""

    bytes: float
    flops: float
    pieces: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """One operation's space. The first value of each parameter is 0, the built-in one, given in `built_in`.

    families: folders of csrc/ whose sources it is made of. loads: fields of `Load` besides tokens that matter to it.
    dims: its part of a model's sizes. work(dims, load, values): values are complete, built-in ones filled in.
    phase: "generate", "learn" or "both", the kind of step that runs it; "credit" is outside of the engine.
    grain_cuts: the grain only says how threads share a loop, so it is void on one. relevant(shape): a model has it.
    """

    op: str
    families: tuple[str, ...]
    dims: Callable[[ModelShape], Dims]
    work: Callable[[Dims, Load, Values], Work]
    parameters: Mapping[str, tuple[int, ...]]
    built_in: Mapping[str, int]
    loads: tuple[str, ...] = ()
    phase: str = "both"
    numerics: str = EXACT
    grain_cuts: bool = True
    relevant: Callable[[ModelShape], bool] = lambda shape: True

    def configs(self, threads: int, tokens: int = 1 << 30) -> list[Config]:
        """Valid configurations on `threads` threads at `tokens` rows, the built-in one first.

        Left out are thread counts that the machine lacks, grains that cut nothing, and blocks above the number of rows.
        """
        found = [BUILT_IN]
        names = list(self.parameters)
        for values in itertools.product(*self.parameters.values()):
            chosen = {name: value for name, value in zip(names, values, strict=True) if value}
            some = chosen.get("threads", 0)
            void = self.grain_cuts and "grain" in chosen and 1 in (some, threads)
            if not chosen or some >= threads or void or chosen.get("block", 0) > tokens:
                continue
            found.append(Config(" ".join(f"{name}={value}" for name, value in chosen.items()), chosen, self.numerics))
        return found

    def complete(self, values: Values, threads: int) -> dict[str, int]:
        """`values` with the built-in ones where there are none."""
        return {"threads": threads, **self.built_in, **{name: value for name, value in values.items() if value}}

    def key(self, shape: ModelShape, dtype: str, load: Load) -> Key:
        """The question that a step of this model asks."""
        return Key(self.op, dtype, self.dims(shape), load)


def _rows(width: Callable[[Dims], float], moved: float, flops: float) -> Callable[[Dims, Load, Values], Work]:
    """Row operations: `moved` bytes and `flops` per element; a piece is as many rows as make up a grain."""

    def work(dims: Dims, load: Load, values: Values) -> Work:
        elements = load.tokens * width(dims)
        rows = 1 + values["grain"] // (int(width(dims)) + 1)
        return Work(moved * elements, flops * elements, ceil(load.tokens / rows))

    return work


def _product(rows: float, k: int, n: int, values: Values) -> Work:
    """A row-exact product: every block of rows reads the packed weight once (csrc/linear/linear.isa.cpp)."""
    if rows == 0 or k == 0 or n == 0:
        return Work(0, 0, 0)
    wanted, panels = 4 * values["threads"], ceil(n / PANEL)
    blocks, group = ceil(rows / values["block"]), panels
    while group > 1 and blocks * ceil(panels / group) < wanted:
        group = (group + 1) // 2
    groups = ceil(panels / group)
    if blocks * groups < wanted:
        blocks = int(max(blocks, min(ceil(wanted / groups), rows // 24)))
    inline = rows * ceil(n / 16) * k < values["grain"]
    again = rows * k * (groups - 1) + k * n * (blocks - 1)
    moved = 4.0 * (rows * k + k * n + rows * n + again / CACHED)
    return Work(moved, 2.0 * rows * k * n, 1 if inline else blocks * groups)


def _linears(dims: Dims, load: Load, values: Values) -> Work:
    width, qkv, out, dense, vocabulary = dims
    shapes = [(width, qkv), (out, width), (width, vocabulary), (width, 2 * dense), (dense, width)]
    parts = [_product(load.tokens, k, n, values) for k, n in shapes]
    return Work(sum(p.bytes for p in parts), sum(p.flops for p in parts), max(p.pieces for p in parts))


def _weight_grads(dims: Dims, load: Load, values: Values) -> Work:
    width, qkv, out, dense, _ = dims
    side, moved, flops, pieces = values["block"], 0.0, 0.0, 1.0
    for k, n in [(width, qkv), (out, width), (width, 2 * dense), (dense, width)]:
        down, across = ceil(n / side), ceil(k / side)
        again = load.tokens * (n * (across - 1) + k * (down - 1))
        moved += 4.0 * (load.tokens * (n + k) + n * k + again / CACHED)
        flops += 2.0 * load.tokens * n * k
        pieces = max(pieces, down * across)
    return Work(moved, flops, pieces)


def _experts(dims: Dims, load: Load, values: Values) -> Work:
    experts, k, width, inner = dims
    rows = load.tokens * k
    aim = min(values["block"], max(12, rows // (8 * values["threads"])))
    hot = min(rows, load.imbalance * rows / experts)
    used = min(experts, rows) if load.imbalance < experts else 1
    units = max(used, ceil(hot / aim) + (used - 1) * ceil(max(0.0, rows - hot) / max(1, used - 1) / aim))
    panels = 3 * width * inner * (used + (units - used) / CACHED)
    moved = 4.0 * (panels + rows * (3 * width + 5 * inner))
    return Work(moved, 6.0 * rows * width * inner, units)


def _expert_grads(dims: Dims, load: Load, values: Values) -> Work:
    forward = _experts(dims, load, values)
    return Work(3 * forward.bytes, 2 * forward.flops, forward.pieces)


def _attend(dims: Dims, load: Load, values: Values) -> Work:
    heads, kv_heads, head_dim, length = dims
    sequences, rows = ceil(load.tokens / length), min(length, load.tokens)
    spans = ceil(rows / values["block"])
    repacked = 8.0 * rows * head_dim * (spans + 1) * kv_heads * sequences / CACHED
    flops = 2.0 * load.tokens * rows * head_dim * heads
    return Work(repacked + 16.0 * load.tokens * heads * head_dim, flops, sequences * spans * kv_heads)


def _attend_paged(dims: Dims, load: Load, values: Values) -> Work:
    heads, kv_heads, head_dim, pages = dims
    keys = max(1.0, load.cache_fill * pages * 16)  # of all sequences together
    tasks = load.tokens * kv_heads
    return Work(8.0 * keys * kv_heads * head_dim, 4.0 * keys * heads * head_dim, ceil(tasks / values["grain"]))


def _gae(dims: Dims, load: Load, values: Values) -> Work:
    (length,) = dims
    sequences = ceil(load.tokens / length)
    return Work(16.0 * load.tokens, 40.0 * load.tokens, min(sequences, ceil(load.tokens / values["grain"])))


_THREADS = (0, 1, 2, 4, 8)
_ROW_GRAINS = (0, 2048, 65536, 262144)


def _row_space(op: str, families: tuple[str, ...], grain: int, work: Callable[..., Work], **rest: object) -> Space:
    parameters = {"threads": _THREADS, "grain": tuple(g for g in _ROW_GRAINS if g != grain)}
    return Space(op=op, families=families, work=work, parameters=parameters, built_in={"grain": grain}, **rest)  # type: ignore[arg-type]


def _linear_dims(shape: ModelShape) -> Dims:
    return (shape.width, shape.qkv, shape.heads * shape.head_dim, shape.dense_width, shape.vocabulary)


def _expert_dims(shape: ModelShape) -> Dims:
    return (shape.experts, shape.experts_per_token, shape.width, shape.expert_width)


def _has_experts(shape: ModelShape) -> bool:
    return shape.experts > 0


_ALL = [
    _row_space("norm", ("norm",), 32768, _rows(lambda d: d[0], 8, 5), dims=lambda s: (s.width,)),
    _row_space(
        "swiglu",
        ("activation",),
        8192,
        _rows(lambda d: d[0], 12, 30),
        dims=lambda s: (s.dense_width,),
        relevant=lambda s: s.dense_width > 0,
    ),
    _row_space(
        "rope",
        ("rope",),
        8192,
        _rows(lambda d: d[0] * d[1], 8, 4),
        dims=lambda s: (s.heads, s.head_dim),
        relevant=lambda s: False,  # a model turns its heads in `heads`; for users of the operation alone
    ),
    _row_space(
        "heads",
        ("heads", "norm", "rope"),
        8192,
        _rows(lambda d: (d[0] + 2 * d[1]) * d[2], 8, 10),
        dims=lambda s: (s.heads, s.kv_heads, s.head_dim),
    ),
    _row_space(
        "pages",
        ("attention",),
        8192,
        _rows(lambda d: d[0] * d[1], 16, 1),
        dims=lambda s: (s.kv_heads, s.head_dim),
        phase="generate",
    ),
    _row_space(
        "logprob",
        ("logprob",),
        16384,
        _rows(lambda d: d[0], 8, 40),
        dims=lambda s: (s.vocabulary,),
        phase="learn",
    ),
    _row_space(
        "sampling",
        ("sampling", "logprob"),
        2048,
        _rows(lambda d: d[0], 12, 60),
        dims=lambda s: (s.vocabulary,),
        phase="generate",
    ),
    Space(
        op="gae",
        families=("scan",),
        dims=lambda s: (TYPICAL_LENGTH,),
        work=_gae,
        parameters={"threads": _THREADS, "grain": (0, 1024, 65536, 524288)},
        built_in={"grain": 8192},
        phase="credit",
    ),
    Space(
        op="attend_paged",
        families=("attention",),
        dims=lambda s: (s.heads, s.kv_heads, s.head_dim, s.pages),
        work=_attend_paged,
        parameters={"threads": _THREADS, "grain": (0, 4, 16, 64)},
        built_in={"grain": 1},
        loads=("cache_fill",),
        phase="generate",
    ),
    Space(
        op="attend",
        families=("attention",),
        dims=lambda s: (s.heads, s.kv_heads, s.head_dim, TYPICAL_LENGTH),
        work=_attend,
        parameters={"threads": _THREADS, "block": (0, 64, 128, 256)},
        built_in={"grain": 1, "block": 512},
        phase="learn",
    ),
    Space(
        op="linear",
        families=("linear",),
        dims=_linear_dims,
        work=_linears,
        parameters={"threads": _THREADS, "block": (0, 24, 48), "grain": (0, 2048)},
        built_in={"grain": 16384, "block": 96},
    ),
    Space(
        op="linear_grad",
        families=("linear",),
        dims=_linear_dims,
        work=_weight_grads,
        parameters={"threads": _THREADS, "block": (0, 64, 128, 512)},
        built_in={"grain": 16384, "block": 256},
        phase="learn",
    ),
    Space(
        op="experts",
        families=("moe", "linear", "activation"),
        dims=_expert_dims,
        work=_experts,
        parameters={"threads": _THREADS, "block": (0, 24, 48), "grain": (0, 4096)},
        built_in={"grain": 32768, "block": 96},
        loads=("imbalance",),
        relevant=_has_experts,
    ),
    Space(
        op="experts_grad",
        families=("moe", "linear", "activation"),
        dims=_expert_dims,
        work=_expert_grads,
        parameters={"threads": _THREADS, "block": (0, 48), "grain": (0, 128, 512)},
        built_in={"grain": 256, "block": 96},
        grain_cuts=False,
        loads=("imbalance",),
        phase="learn",
        relevant=_has_experts,
    ),
]

SPACES: Mapping[str, Space] = {space.op: space for space in _ALL}
