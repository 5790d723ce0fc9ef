"""Whether a layout fits the ranks there are and the model, and which one that does is nearest where it does not.

The rules are those of the sharding itself: an axis that cuts a size must cut it evenly. Keys and values are named all
at once, so that one try is enough to mend a recipe. Plain numbers: nothing here needs torch or a model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from math import prod

from seedthink.config.sections import ParallelConfig
from seedthink.errors import ConfigError
from seedthink.parallel.layout import AXES, Layout

_PROPOSALS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What a layout cuts. `intermediate_size` is 0 where no layer has a dense MLP, `num_experts` 0 without experts."""

    num_heads: int
    num_kv_heads: int
    hidden_size: int
    intermediate_size: int = 0
    num_experts: int = 0


def chosen(asked: ParallelConfig, ranks: int, sizes: Sizes) -> Layout:
    """The layout that the settings ask for on so many ranks.

    Errors: ConfigError with every rule that it breaks, and the nearest layouts of as many ranks that break none.
    """
    reasons = broken(asked, ranks, sizes)
    if reasons:
        raise ConfigError(f"[parallel] {'; '.join(reasons)}; {proposals(asked, ranks, sizes)}")
    shard = asked.dp_shard or ranks // (asked.dp_replicate * asked.cp * asked.tp)
    return Layout(dp_replicate=asked.dp_replicate, dp_shard=shard, cp=asked.cp, tp=asked.tp, ep=asked.ep)


def proposals(asked: ParallelConfig, ranks: int, sizes: Sizes) -> str:
    """The nearest layouts in words, as settings."""
    found = [_as_settings(layout, asked) for layout in nearest(asked, ranks, sizes)[:_PROPOSALS]]
    return f"nearest layout of {_ranks(ranks)}: {' or '.join(found)}"


def broken(asked: ParallelConfig, ranks: int, sizes: Sizes) -> list[str]:
    """What is wrong with the settings, a sentence each; nothing where they fit."""
    return [*_world(asked, ranks), *_model(asked, sizes), *_experts(asked, ranks, sizes)]


def nearest(asked: ParallelConfig, ranks: int, sizes: Sizes) -> list[Layout]:
    """Every layout of so many ranks that fits, the nearest first. One always does: all ranks on dp_shard.

    The distance of two layouts is the product of the factors by which their axes differ, which ranks them as the sum of
    the differences of their exponents does, and exactly. Ties go to fewer changed axes, then to smaller outer axes.
    """
    axes = (*AXES, "ep")
    wanted = [Fraction(getattr(asked, axis)) for axis in axes]
    # dp_shard = 0 leaves the choice to the other axes; what they leave may be no whole number.
    rest = asked.dp_replicate * asked.cp * asked.tp
    wanted[1] = Fraction(asked.dp_shard or Fraction(ranks, rest))

    def key(layout: Layout) -> tuple[Fraction, int, tuple[int, ...]]:
        has = [getattr(layout, axis) for axis in axes]
        factors = [max(a / b, b / a) for a, b in zip(has, wanted, strict=True)]
        return prod(factors, start=Fraction(1)), sum(factor != 1 for factor in factors), tuple(has)

    return sorted((layout for layout in layouts(ranks) if fits(layout, sizes)), key=key)


def fits(layout: Layout, sizes: Sizes) -> bool:
    """Whether a model can be laid out so."""
    asked = ParallelConfig(
        dp_replicate=layout.dp_replicate, dp_shard=layout.dp_shard, cp=layout.cp, tp=layout.tp, ep=layout.ep
    )
    return not broken(asked, layout.size, sizes)


def layouts(ranks: int) -> Iterator[Layout]:
    """Every way to lay out so many ranks, whatever the model."""
    divisors = [size for size in range(1, ranks + 1) if ranks % size == 0]
    for replicate, cp, tp, ep in product(divisors, repeat=4):
        if ranks % (replicate * cp * tp) == 0 and (ranks // replicate) % ep == 0:
            yield Layout(dp_replicate=replicate, dp_shard=ranks // (replicate * cp * tp), cp=cp, tp=tp, ep=ep)


def _as_settings(layout: Layout, asked: ParallelConfig) -> str:
    """The axes that are not 1 and those that have to change, innermost first."""
    axes = {axis: getattr(layout, axis) for axis in (*reversed(AXES), "ep")}
    named = {axis: size for axis, size in axes.items() if size > 1 or getattr(asked, axis) > 1}
    return ", ".join(f"{axis} = {size}" for axis, size in named.items())


def _ranks(count: int) -> str:
    return "1 rank" if count == 1 else f"{count} ranks"


def _world(asked: ParallelConfig, ranks: int) -> Iterator[str]:
    rest = asked.dp_replicate * asked.cp * asked.tp
    if asked.dp_shard and asked.dp_shard * rest != ranks:
        said = f"{asked.dp_replicate} * {asked.dp_shard} * {asked.cp} * {asked.tp}"
        yield f"dp_replicate * dp_shard * cp * tp = {said} = {asked.dp_shard * rest}, but the run has {_ranks(ranks)}"
    elif ranks % rest:
        yield f"{_product(asked, 'dp_replicate', 'cp', 'tp')} does not divide the {_ranks(ranks)}"


def _model(asked: ParallelConfig, sizes: Sizes) -> Iterator[str]:
    heads, kv_heads = sizes.num_heads, sizes.num_kv_heads
    together, said = asked.tp * asked.cp, _product(asked, "tp", "cp")
    if heads % together:
        yield f"{said} does not divide num_heads = {heads}"
    for ranks, words in {together: said, asked.tp: f"tp = {asked.tp}"}.items():  # tp projects heads, both attend
        if kv_heads % ranks and ranks % kv_heads:
            yield f"{words} neither divides num_kv_heads = {kv_heads} nor is a multiple of it"
    for name in ("hidden_size", "intermediate_size"):
        if getattr(sizes, name) % asked.tp:
            yield f"tp = {asked.tp} does not divide {name} = {getattr(sizes, name)}"


def _experts(asked: ParallelConfig, ranks: int, sizes: Sizes) -> Iterator[str]:
    if asked.ep == 1:
        return
    if not sizes.num_experts:
        yield f"ep = {asked.ep}, but the model has no experts"
    elif sizes.num_experts % asked.ep:
        yield f"ep = {asked.ep} does not divide num_experts = {sizes.num_experts}"
    known = asked.dp_shard or ranks % (asked.dp_replicate * asked.cp * asked.tp) == 0
    lent = asked.dp_shard * asked.cp * asked.tp or ranks // asked.dp_replicate
    if known and lent % asked.ep:
        yield f"ep = {asked.ep} does not divide dp_shard * cp * tp = {lent}, whose ranks it borrows"


def _product(asked: ParallelConfig, *axes: str) -> str:
    """`tp = 3`, or `tp * cp = 2 * 3 = 6`: the axes that are not 1, and what they make together."""
    named = {axis: getattr(asked, axis) for axis in axes if getattr(asked, axis) > 1} or {axes[-1]: 1}
    whole = f" = {prod(named.values())}" if len(named) > 1 else ""
    return f"{' * '.join(named)} = {' * '.join(map(str, named.values()))}{whole}"
