"""Who started this process, and as which of how many: torchrun, mpirun, or neither.

Nothing at the top of this file needs torch: a command asks before it imports anything heavy.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from seedthink.errors import ConfigError, DeviceError

# launcher -> the variables that it sets: rank, size, rank on this host, size on this host.
_LAUNCHERS = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    "mpirun": (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    "mpiexec": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
}
_MEETING_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Launch:
    """One process of `size`; `local_rank` of `local_size` on this host."""

    launcher: str
    rank: int
    size: int
    local_rank: int
    local_size: int


def launched(environment: Mapping[str, str] = os.environ) -> Launch | None:
    """What the launcher says in the environment; None for a process that stands alone.

    Errors: ConfigError where a variable is missing or no number.
    """
    for launcher, names in _LAUNCHERS.items():
        if names[0] in environment and names[1] in environment:
            rank, size = _number(environment, names[0]), _number(environment, names[1])
            # A launcher that says nothing about hosts has started all on this one.
            local = [_number(environment, name) if name in environment else -1 for name in names[2:]]
            local_rank, local_size = (rank, size) if -1 in local else local
            return Launch(launcher, rank, size, local_rank, local_size) if size > 1 else None
    return None


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not text.isdigit():
        raise ConfigError(f"{name} = {text!r} in the environment is no number; start with torchrun or mpirun again")
    return int(text)


def share(launch: Launch, words: str, environment: Mapping[str, str] = os.environ) -> str:
    """Rank 0's words, told to every rank: over the launcher's store where it names one, else by MPI, across hosts too.

    Every rank calls it once. Errors: DeviceError where neither can be had, or where ranks do not come.
    """
    if "MASTER_ADDR" in environment and "MASTER_PORT" in environment:
        return _by_store(launch, words, environment)
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise DeviceError(
            f"{launch.launcher} does not say where rank 0 is, and mpi4py, which would, cannot be loaded ({error}): "
            "pip install 'seedthink[mpi]', or set MASTER_ADDR and MASTER_PORT"
        ) from None
    found: str = MPI.COMM_WORLD.bcast(words if launch.rank == 0 else None, root=0)
    return found


def _by_store(launch: Launch, words: str, environment: Mapping[str, str]) -> str:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    host, port = environment["MASTER_ADDR"], _number(environment, "MASTER_PORT")
    theirs = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # the launcher itself keeps the store
    attempt = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        store = TCPStore(
            host,
            port,
            is_master=launch.rank == 0 and not theirs,
            timeout=timedelta(seconds=_MEETING_SECONDS),
            wait_for_workers=False,
        )
        if launch.rank == 0:
            store.set(f"seedthink/{attempt}", words)
        found: str = store.get(f"seedthink/{attempt}").decode()
        store.add(f"seedthink/{attempt}/read", 1)
        while launch.rank == 0 and not theirs and store.add(f"seedthink/{attempt}/read", 0) < launch.size:
            pass  # the store lives in this process: the others have to have read it
    except RuntimeError as error:
        raise DeviceError(f"rank {launch.rank} did not meet the others at {host}:{port}: {error}") from None
    return found


def own_address() -> str:
    """An address of this host that other hosts can reach; the loopback where the host's name has none."""
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "127.0.0.1"


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
