"""Ray's machines as pools of slots: an embedded instance by default, a cluster by its address.

A `ResourcePool` is a list of slots, one per rank, held as one Ray placement group. Groups on one pool are colocated:
they share its slots in time, each holding its part of them. Groups on two pools never share one. (HybridFlow, arXiv
2409.19256, section 4.1.)
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from seedthink.controller.ray_start import ray
from seedthink.controller.supervision import WorkerDied
from seedthink.errors import ConfigError, DeviceError
from seedthink.telemetry.memory import tree

from ray.util.placement_group import placement_group, remove_placement_group  # isort: skip  (after ray_start)

OBJECT_STORE_BYTES = 100 << 20  # Ray's least is 75 MiB; larger payloads spill to disk
_SERVERS = {"gcs_server", "raylet"}
_KNOCK_SECONDS = 10.0  # for a cluster's address to accept a connection


class RayCluster:
    """A Ray instance of this process (`address` ""), or a running cluster, for the length of a `with` block.

    An instance that the program has already started with `ray.init` is used as it is and left running.
    `cpus` is what the embedded instance may hand out; default: the cores this process may use.
    Raises DeviceError when Ray does not start, ConfigError when nothing answers at `address`.
    """

    def __init__(self, address: str = "", *, cpus: int | None = None) -> None:
        self._folder: Path | None = None
        self._servers: dict[int, str] = {}
        self._lost = False
        self._ours = not ray.is_initialized()
        if not self._ours:
            return
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "CRITICAL"}
        with _signal_handlers_kept():
            if address:
                _join(address, quiet)
            else:
                self._start(cpus, quiet)
        atexit.register(self.close)

    def _start(self, cpus: int | None, quiet: Mapping[str, Any]) -> None:
        # A Unix socket's path may have 107 characters and Ray adds 80, so the folder stands in /tmp where it can.
        self._folder = Path(tempfile.mkdtemp(prefix="st-ray-", dir="/tmp" if os.access("/tmp", os.W_OK) else None))
        try:
            ray.init(
                address="local",
                num_cpus=cpus or len(os.sched_getaffinity(0)),
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                _temp_dir=str(self._folder),
                **quiet,
            )
        except Exception as error:
            ray.shutdown()  # what came up before it failed; a restart begins with nothing
            raise DeviceError(
                f"Ray did not start: {error}. Its logs are in {self._folder}. Run `seedthink doctor`, or use "
                "--controller local to do without Ray"
            ) from error
        names = {pid: _name(pid) for pid in tree(os.getpid())}
        self._servers = {pid: name for pid, name in names.items() if name in _SERVERS}

    def check(self) -> None:
        """Raise WorkerDied when a server of the embedded instance is gone; Ray itself notices that after a minute."""
        for pid, name in self._servers.items():
            if _name(pid) != name:
                self._lost = True
                raise WorkerDied(f"Ray's {name} (pid {pid}) is gone: killed, or out of memory")

    @property
    def answers(self) -> bool:
        """Whether Ray can be asked for something; without its servers a request would wait for a minute."""
        return ray.is_initialized() and not self._lost

    def close(self) -> None:
        """Shut down or leave; may be called twice."""
        if not self._ours:
            return
        self._ours = False
        atexit.unregister(self.close)
        self._servers = {}
        ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Slot:
    """Room for one rank. `resources` are names that a node was started with; they tie the slot to such a node."""

    cpus: float = 1.0
    gpus: float = 0.0
    resources: Mapping[str, float] = field(default_factory=dict)

    def bundle(self, share: float = 1.0) -> dict[str, float]:
        """Return the slot in Ray's words, scaled by `share`."""
        wants = {"CPU": self.cpus, "GPU": self.gpus, **self.resources}
        return {name: amount * share for name, amount in wants.items() if amount > 0}


class ResourcePool:
    """Slots held for up to `groups` colocated groups; each group has one rank per slot and 1 / `groups` of it.

    Raises DeviceError when the cluster does not offer the slots within `patience` seconds.
    """

    def __init__(
        self, cluster: RayCluster, name: str, slots: Sequence[Slot], *, groups: int = 1, patience: float = 60.0
    ) -> None:
        self.cluster = cluster
        self.name = name
        self.slots = tuple(slots)
        self.groups = groups
        self._tenants: set[str] = set()
        self.placement = placement_group([slot.bundle() for slot in slots], strategy="PACK")
        if not self.placement.wait(timeout_seconds=patience):
            remove_placement_group(self.placement)
            wanted = "; ".join(_words(slot.bundle()) for slot in slots)
            raise DeviceError(
                f"pool {name!r} needs {len(slots)} slots ({wanted}); after {patience:g} s the cluster has "
                f"{_words(ray.available_resources())} free of {_words(ray.cluster_resources())}. Use fewer or smaller "
                "slots, or free the cluster (`ray status`)"
            )

    def admit(self, group: str) -> float:
        """Take in a group and return its share of each slot. Raises ConfigError when the pool is full."""
        if len(self._tenants) == self.groups or group in self._tenants:
            tenants = ", ".join(sorted(self._tenants))
            raise ConfigError(
                f"pool {self.name!r} is for {self.groups} groups and holds {tenants}; no room for {group!r}"
            )
        self._tenants.add(group)
        return 1 / self.groups

    def leave(self, group: str) -> None:
        """Give a group's share back."""
        self._tenants.discard(group)

    def close(self) -> None:
        """Give the slots back; may be called twice."""
        if self.cluster.answers:
            remove_placement_group(self.placement)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _join(address: str, quiet: Mapping[str, Any]) -> None:
    host, _, port = address.rpartition(":")
    try:
        if host and port.isdigit():  # Ray itself would try for minutes
            socket.create_connection((host.removeprefix("ray://"), int(port)), timeout=_KNOCK_SECONDS).close()
        ray.init(address=address, **quiet)
    except Exception as error:
        raise ConfigError(
            f"no Ray cluster answers at {address}: {error}. Start one with `ray start --head`, or leave the address "
            "out for an embedded one"
        ) from error


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Keep `ray.init` from replacing the SIGTERM handler, which may be a `StopSignal`'s.

    Ray's own leaves at once, without its servers: a SIGTERM while it starts would leave those behind.
    """
    before = signal.getsignal(signal.SIGTERM)
    utils = ray._private.utils
    theirs = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = theirs
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _name(pid: int) -> str:
    """Return a live process's command name, "" for one that is gone or only waits to be reaped."""
    try:
        head, _, after = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    except OSError:
        return ""
    return "" if after.split()[0] == "Z" else head.partition("(")[2]


def _words(resources: Mapping[str, float]) -> str:
    """Return e.g. "2 CPU + 1 left", without the memory that Ray counts as well."""
    known = {name: amount for name, amount in resources.items() if not name.startswith(("node:", "object_", "memory"))}
    return " + ".join(f"{amount:g} {name}" for name, amount in sorted(known.items())) or "nothing"
