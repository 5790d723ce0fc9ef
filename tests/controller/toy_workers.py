"""Worker classes small enough to check by hand, importable by worker processes."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from pathlib import Path

import numpy as np

from seedthink.controller.groups import Place
from seedthink.controller.protocol import (
    FIRST,
    ONE_TO_ALL,
    PER_RANK,
    RANK_ZERO,
    SPLIT,
    Transfer,
    concatenated,
    remote,
    to_all,
)
from seedthink.errors import DataError

POLL = Transfer(to_all, concatenated)


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__("holds a lock")
        self.lock = threading.Lock()


class OneWay:
    """Pickles, and refuses to be unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return int, ("not a number",)


class Toy:
    """Adds `base` and its rank to what it gets."""

    def __init__(self, place: Place, base: int = 0) -> None:
        if base < 0:
            raise DataError(f"base is {base}, allowed is 0 or more")
        self.place = place
        self.base = base

    @remote(ONE_TO_ALL)
    def add(self, number: int) -> int:
        return self.base + number + self.place.rank

    @remote(RANK_ZERO)
    def who(self) -> tuple[str, int, int]:
        return self.place.group, self.place.rank, self.place.size

    @remote(SPLIT)
    def scale(self, numbers: list[int], factor: int = 1) -> list[tuple[int, int]]:
        return [(self.place.rank, number * factor) for number in numbers]

    @remote(SPLIT)
    def double(self, numbers: np.ndarray) -> np.ndarray:
        return numbers * 2

    @remote(PER_RANK)
    def shout(self, word: str) -> str:
        return word.upper() + str(self.place.rank)

    @remote(FIRST)
    def first(self) -> int:
        self.base += 1
        return self.base + self.place.rank

    @remote(POLL)
    def poll(self) -> list[int]:
        return [self.place.rank, self.place.rank]

    @remote(ONE_TO_ALL, blocking=False)
    def later(self, seconds: float) -> int:
        time.sleep(seconds)
        return self.place.rank

    @remote(ONE_TO_ALL)
    def fail(self, kind: str) -> None:
        if kind == "data":
            raise DataError("file x, line 3: no JSON")
        if kind == "key":
            raise KeyError("missing")
        raise Unpicklable

    @remote(ONE_TO_ALL, blocking=False)
    def fail_later(self) -> None:
        raise DataError("late")

    @remote(ONE_TO_ALL, deadline=1.0)
    def sleep_past_the_deadline(self) -> None:
        time.sleep(60)

    @remote(ONE_TO_ALL)
    def environment(self) -> dict[str, object]:
        return {
            "threads": os.environ.get("OMP_NUM_THREADS"),
            "rendezvous": self.place.rendezvous,
            "main_thread": threading.current_thread() is threading.main_thread(),
            "torch": "torch" in sys.modules,
        }

    @remote(ONE_TO_ALL)
    def node(self) -> str:
        import ray

        return ray.get_runtime_context().get_node_id()

    @remote(ONE_TO_ALL)
    def lock(self) -> object:
        return threading.Lock()

    @remote(ONE_TO_ALL)
    def chatter(self) -> None:
        print("to stdout")
        print("to stderr", file=sys.stderr)
        os.system("echo from a child")

    @remote(ONE_TO_ALL)
    def hold_the_lock(self, seconds: int) -> None:
        ctypes.PyDLL(None).sleep(seconds)  # native code that never lets another Python thread run

    @remote(ONE_TO_ALL)
    def exit(self) -> None:
        os._exit(3)

    @remote(ONE_TO_ALL)
    def exit_on(self, rank: int) -> None:
        if self.place.rank == rank:
            os._exit(3)
        time.sleep(60)


class Counter:
    """Counts to a target, one step a call; its state is a file, as a run's is its checkpoint."""

    def __init__(self, place: Place, checkpoint: str) -> None:
        self.checkpoint = Path(checkpoint)
        self.count = int(self.checkpoint.read_text()) if self.checkpoint.exists() else 0

    @remote(RANK_ZERO)
    def step(self) -> int:
        self.count += 1
        return self.count

    @remote(RANK_ZERO)
    def rest(self, seconds: float) -> None:
        time.sleep(seconds)

    @remote(RANK_ZERO)
    def save(self) -> None:
        half = self.checkpoint.with_suffix(".half")
        half.write_text(str(self.count))
        half.replace(self.checkpoint)
