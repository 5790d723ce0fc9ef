"""What the ranks of test_spmd_group.py run. Rank 0 prints one line for each thing that it learned."""

from __future__ import annotations

import sys
from collections.abc import Callable

from toy_workers import Toy

from seedthink.controller.spmd_group import SpmdGroup, leave, serve
from seedthink.errors import DataError
from seedthink.parallel.control import Hub, Spoke
from seedthink.parallel.launch import launched
from seedthink.parallel.layout import Layout


class Facts:
    process = "a test"


def ordinary(group: SpmdGroup) -> None:
    print(group.add(10), group.who(), group.scale([1, 2, 3], factor=2), group.first(), group.poll())
    futures = [group.later(0.05), group.later(0.0)]
    print([future.result() for future in reversed(futures)])
    try:
        group.fail("data")
    except DataError as error:
        print(f"DataError: {error}")
    print(group.shout(["a", "b"]))


def planes(group: SpmdGroup) -> None:
    print(group.scale([1, 2, 3], factor=2), group.shout(["a", "b"]), group.first(), group.add(0))


def killed(group: SpmdGroup) -> None:
    group.exit_on(1)


def hanging(group: SpmdGroup) -> None:
    group.sleep_past_the_deadline()


def abandoned(group: SpmdGroup) -> None:
    import os

    group.later(60.0)
    os._exit(7)


CASES: dict[str, Callable[[SpmdGroup], None]] = {
    "ordinary": ordinary,
    "planes": planes,
    "killed": killed,
    "hanging": hanging,
    "abandoned": abandoned,
}

if __name__ == "__main__":
    launch = launched()
    assert launch is not None
    if launch.rank:
        serve(Spoke(launch, Facts(), leave))
    else:
        hub = Hub(launch, Facts())
        try:
            layout = Layout(dp_shard=2, cp=2) if sys.argv[1] == "planes" else None
            with SpmdGroup("toys", hub, Toy, (100,), layout=layout) as group:
                CASES[sys.argv[1]](group)
        finally:
            hub.close()
