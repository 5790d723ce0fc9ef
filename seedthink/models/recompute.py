"""Saved tensors that are forgotten and made again in the backward: all of a block, or the cheap ones.

    layers: forward keeps a block's input; the first tensor that its backward asks for runs the block once more
    selective: forward keeps recipes in place of results that are cheap to make again (kernels/remade.py)

The graph stays that of the first forward, and only the saved tensors are replaced; kernels are deterministic, so every
gradient has the same bits. Choices of the router are those of the first forward (kernels/decided.py). Ranks that share
a block repeat its exchanges: their graphs are alike, so they do so in the same order.
(Chen et al. 2016, arXiv:1604.06174; Korthikanti et al. 2022, arXiv:2205.05198, for the selective one.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from seedthink.kernels.decided import Tape
from seedthink.kernels.remade import Remake, watched
from seedthink.models.stores import Store, hooks_into, is_weight


class Forgotten:
    """A piece of a forward whose saved tensors are made again by running it once more.

    again: runs the piece on equal inputs and under a recorded graph, saving the same tensors in the same order.
    """

    def __init__(self, again: Callable[[], object]) -> None:
        self._again, self._tape = again, Tape()
        self._count = 0
        self._made: dict[int, Tensor] = {}

    @contextmanager
    def forgetting(self) -> Iterator[None]:
        """Around the piece in the forward."""
        with saved_tensors_hooks(self._number, self._take), self._tape.recording():
            yield

    def _number(self, x: Tensor) -> int:
        self._count += 1
        return self._count - 1

    def _take(self, number: int) -> Tensor:
        """The tensor that was saved as `number`; it is let go, so memory falls as the backward goes through."""
        if number not in self._made:
            self._run_again()
        return self._made.pop(number)

    def _run_again(self) -> None:
        made: list[Tensor] = []

        def pack(x: Tensor) -> int:
            made.append(x if is_weight(x) else x.detach())
            return len(made) - 1

        with torch.enable_grad(), saved_tensors_hooks(pack, made.__getitem__), self._tape.replaying():
            self._again()
        if len(made) != self._count:
            raise RuntimeError(f"a recomputation saved {len(made)} tensors where the forward saved {self._count}")
        self._made = dict(enumerate(made))


class _Recipe:
    """How to make an operator's results again, and how many of them are wanted."""

    def __init__(self, remake: Remake, store: Store) -> None:
        self._kernel, self._store = remake.kernel, store
        self._inputs = [
            (True, store.put(each)) if isinstance(each, Tensor) and not is_weight(each) else (False, each)
            for each in remake.inputs
        ]
        self._users: Counter[int] = Counter()
        self._left: Counter[int] = Counter()
        self._made: dict[int, Tensor] = {}

    def want(self, index: int) -> tuple[_Recipe, int]:
        """One more user of result `index`."""
        self._users[index] += 1
        return self, index

    @torch.no_grad()
    def take(self, index: int) -> Tensor:
        """Result `index`; the last user takes it away."""
        if index not in self._made:
            inputs = (self._store.get(each) if kept else each for kept, each in self._inputs)
            self._made = {at: made for at, made in enumerate(self._kernel(*inputs)) if self._users[at]}
            self._left = self._users.copy()
        self._left[index] -= 1
        return self._made[index] if self._left[index] else self._made.pop(index)


class _Recipes:
    """The recipes of a piece of a forward, by the place of the result in memory.

    Results are held until the piece ends, so that no other tensor comes to stand there.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._held: list[Tensor] = []
        self._known: dict[tuple[Any, ...], tuple[Callable[[], _Recipe], int]] = {}

    def note(self, remake: Remake) -> None:
        """Remembers how a call's results are made again."""
        found: list[_Recipe] = []

        def recipe() -> _Recipe:
            """Made when the first result is saved: who is not saved needs none."""
            if not found:
                found.append(_Recipe(remake, self._store))
            return found[0]

        for index, result in enumerate(remake.results):
            if result.numel():
                self._held.append(result)
                self._known[_place(result)] = recipe, index

    def of(self, x: Tensor) -> tuple[_Recipe, int] | None:
        """The recipe of a tensor that is saved, if it has one."""
        known = self._known.get(_place(x))
        return None if known is None else known[0]().want(known[1])

    def close(self) -> None:
        """The piece has ended."""
        self._held.clear()
        self._known.clear()


def _place(x: Tensor) -> tuple[Any, ...]:
    return x.data_ptr(), x.dtype, x.shape, x.stride()


@contextmanager
def cheap_ones_remade(store: Store) -> Iterator[None]:
    """Within, saved tensors with a recipe are kept as that, and the others in `store`."""
    recipes, (put, get) = _Recipes(store), hooks_into(store)

    def pack(x: Tensor) -> Any:
        return recipes.of(x) or put(x)

    def unpack(kept: Any) -> Tensor:
        if isinstance(kept, tuple):
            recipe, index = kept
            return recipe.take(index)
        return get(kept)

    try:
        with saved_tensors_hooks(pack, unpack), watched(recipes.note):
            yield
    finally:
        recipes.close()
