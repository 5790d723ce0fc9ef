"""Which settings fit into the memory of a rank where the chosen ones do not: the nearest ones.

Changes are doublings and halvings: smaller micro-batches (the result is the same), a smaller KV cache (sequences wait
longer), another layout of as many ranks, or of up to eight times as many.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import log2

from seedthink.models.config import ModelConfig
from seedthink.parallel.layout import AXES, Layout
from seedthink.parallel.layout_check import fits, layouts
from seedthink.planner.memory import FSDP, Load, in_words, kv_cache, lines, memory, sizes_of, total

_GROWTH = (1, 2, 4, 8)  # ranks, relative to those there are
_LOAD, _LAYOUT = ("micro_batch_tokens", "kv_memory_mib"), (*AXES, "ep")


@dataclass(frozen=True, slots=True)
class Choice:
    """A load and a layout, and by how many doublings each setting differs from the one that did not fit."""

    load: Load
    layout: Layout
    steps: tuple[tuple[str, float], ...]

    @property
    def distance(self) -> float:
        """All doublings together."""
        return sum(abs(step) for _, step in self.steps)

    def goes_further_than(self, other: Choice) -> bool:
        """Whether everything that `other` changes is changed here too, the same way and at least as far."""
        mine = dict(self.steps)
        return all(mine.get(name, 0.0) * step > 0 and abs(mine[name]) >= abs(step) for name, step in other.steps)

    def settings(self, sampling: str) -> str:
        """The keys to set; `sampling` is the section that holds kv_memory_mib."""
        values = {
            "trainer.micro_batch_tokens": self.load.micro_batch_tokens,
            f"{sampling}.kv_memory_mib": self.load.kv_memory_mib,
            **{f"parallel.{axis}": getattr(self.layout, axis) for axis in (*reversed(AXES), "ep")},
        }
        changed = {name.rpartition(".")[2] for name, _ in self.steps}
        return ", ".join(f"{key} = {value}" for key, value in values.items() if key.rpartition(".")[2] in changed)


def nearest_that_fit(
    model: ModelConfig, load: Load, layout: Layout, available: float, wanted: int = 2, fsdp: bool = FSDP
) -> list[Choice]:
    """Up to `wanted` choices whose estimate is within `available` bytes a rank, and below the present one's.

    The nearest come first; none goes further than one before it. At like distance micro-batches shrink first, then the
    KV cache, then the layout changes; more ranks come last.
    """
    found: list[Choice] = []
    for choice in sorted(_that_fit(model, load, layout, available, fsdp), key=_order):
        if len(found) == wanted:
            break
        if not any(choice.goes_further_than(nearer) for nearer in found):
            found.append(choice)
    return found


def explain(model: ModelConfig, load: Load, layout: Layout, available: float, sampling: str) -> str:
    """What a rank needs by estimate, what it has, and the nearest settings that fit, for an error's message."""
    parts = memory(model, load, layout)
    said = [f"{in_words(total(parts))} are needed by estimate, {in_words(available)} are there ({layout}):"]
    said += [f"  {line}" for line in lines(parts, "in all")]
    choices = nearest_that_fit(model, load, layout, available)
    if not choices:
        return "\n".join([*said, f"no setting fits, on up to {_GROWTH[-1] * layout.size} ranks: take a smaller model"])
    for choice in choices:
        more = f" on {choice.layout.size} ranks" if choice.layout.size != layout.size else ""
        needs = in_words(total(memory(model, choice.load, choice.layout)))
        said.append(f"{choice.settings(sampling)}{more} would need {needs}")
    return "\n".join(said)


def _order(choice: Choice) -> tuple[float, int, float, tuple[int, ...], tuple[float, ...]]:
    return (
        round(choice.distance, 9),
        choice.layout.size,
        sum(abs(step) for name, step in choice.steps if name in _LAYOUT),
        tuple((*_LOAD, *_LAYOUT).index(name) for name, _ in choice.steps),
        tuple(step for _, step in choice.steps),
    )


def _that_fit(model: ModelConfig, load: Load, layout: Layout, available: float, fsdp: bool) -> Iterator[Choice]:
    """For every layout and size of a micro-batch, the largest KV cache that fits."""
    sizes, present = sizes_of(model), total(memory(model, load, layout, fsdp))
    for other in (each for growth in _GROWTH for each in layouts(growth * layout.size) if fits(each, sizes)):
        moved = [(axis, log2(getattr(other, axis) / getattr(layout, axis))) for axis in _LAYOUT]
        for tokens in range(max(1, load.micro_batch_tokens.bit_length())):
            smaller = replace(load, micro_batch_tokens=load.micro_batch_tokens >> tokens)
            others = total(memory(model, smaller, other, fsdp)) - kv_cache(model, load, other, load.kv_memory_mib)
            for cache in range(load.kv_memory_mib.bit_length()):
                needs = others + kv_cache(model, load, other, load.kv_memory_mib >> cache)
                if needs <= available and needs < present:
                    steps = [*zip(_LOAD, (-float(tokens), -float(cache)), strict=True), *moved]
                    found = replace(smaller, kv_memory_mib=load.kv_memory_mib >> cache)
                    yield Choice(found, other, tuple((name, step) for name, step in steps if step))
                    break
