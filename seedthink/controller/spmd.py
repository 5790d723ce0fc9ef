"""Commands under torchrun or mpirun: rank 0 runs the command, the others serve it; all must have been asked the same.

torchrun --nproc-per-node 2 -m seedthink rl run.toml
mpirun -n 2 seedthink rl run.toml
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from seedthink import __version__
from seedthink.config.resolved import diff, to_dict
from seedthink.errors import ConfigError
from seedthink.parallel.launch import Launch, launched


@dataclass(frozen=True, slots=True)
class Facts:
    """What a rank says of itself when it joins: where it runs, with what, and what it was asked to do."""

    process: str
    versions: Mapping[str, str]
    settings: Mapping[str, Any]


def follows(config: Any) -> bool:
    """On a rank other than 0 of a launch: serves rank 0 until it is done, then True. Elsewhere False, at once."""
    launch = launched()
    if launch is None or launch.rank == 0:
        return False
    from seedthink.controller.spmd_group import leave, serve
    from seedthink.parallel.control import Spoke

    serve(Spoke(launch, facts(config), leave))
    return True


@contextmanager
def leading(config: Any) -> Iterator[Any]:
    """On rank 0 of a launch: a `Hub` that all ranks have joined; None for a process that stands alone.

    Errors: ConfigError where a rank was started with other settings or other versions of what computes.
    """
    launch = launched()
    if launch is None:
        yield None
        return
    from seedthink.parallel.control import Hub

    hub = Hub(launch, facts(config))
    try:
        check_alike(hub.facts)
        yield hub
    finally:
        hub.close()


def facts(config: Any) -> Facts:
    """This process's."""
    import torch

    from seedthink.kernels.build import build_info

    versions = {
        "seedthink": __version__,
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "device class": str(build_info()["isa"]),
    }
    return Facts(f"pid {os.getpid()} on {socket.gethostname()}", versions, to_dict(config))


def check_alike(found: Mapping[int, Facts]) -> None:
    """Refuses ranks that differ; the message names key, ranks and both values."""
    first = found[0]
    for rank, other in sorted(found.items()):
        for what, mine, theirs in (
            ("setting", first.settings, other.settings),
            ("version", first.versions, other.versions),
        ):
            for change in diff(mine, theirs):
                raise ConfigError(
                    f"rank {rank} ({other.process}) has the {what} {change.key} = {change.after!r}, rank 0 "
                    f"({first.process}) has {change.before!r}; start all ranks alike"
                )


def threads_of(wanted: int) -> int:
    """CPU threads of an engine: as set, or its share of the cores that the ranks of this host may use."""
    launch: Launch | None = launched()
    return wanted or max(1, len(os.sched_getaffinity(0)) // (launch.local_size if launch else 1))
