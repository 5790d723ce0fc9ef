"""A worker group on Ray: one actor process per slot of a pool.

A worker's output goes to `<logs>/<group>-<rank>.log`, never to the terminal. An exception comes back as the type it was
raised as, with group, rank and log named. Waiting is done here and nowhere else: `RayCall.result` ends with the
results, with what a rank raised, with `WorkerDied`, or after the deadline with the stacks of who did not answer.
Arguments and results are pickled; arrays in them arrive read-only.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from seedthink.controller.answers import Answer, answer, raise_failure
from seedthink.controller.groups import Place, WorkerGroup
from seedthink.controller.protocol import ONE_TO_ALL, Call, Verb
from seedthink.controller.ray_cluster import ResourcePool
from seedthink.controller.ray_start import ray
from seedthink.controller.supervision import DeadlineError, WorkerDied
from seedthink.controller.watchdog import LOOK, Countdown, Heartbeat, dump_on_signal, last_sign
from seedthink.errors import RunError
from seedthink.parallel.layout import Layout

from ray.util.scheduling_strategies import (  # isort: skip  (after ray_start)
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

_SPAWN_SECONDS = 120.0  # for a worker process to come up, before anything of ours is built in it
_DUMP_SECONDS = 5.0  # for stacks to appear in a log


@dataclass(frozen=True, slots=True)
class _Address:
    """Where a worker process runs: its id there, and Ray's id of the node."""

    pid: int
    node: str


class _Host:
    """The actor: holds one worker, runs its methods one at a time on the main thread, and shows that it lives."""

    def __init__(self, log: Path, threads: int, beat_seconds: float, path: Sequence[str]) -> None:
        sys.path += [folder for folder in path if folder not in sys.path]  # a user's modules lie where he started
        # Before torch is imported with the worker's class: its thread pool is sized once.
        os.environ["OMP_NUM_THREADS"] = str(threads)
        log.parent.mkdir(parents=True, exist_ok=True)
        stream = log.open("a", encoding="utf-8", buffering=1)
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        sys.stdout = sys.stderr = stream
        dump_on_signal(stream)
        self._heartbeat = Heartbeat(log.with_suffix(".heartbeat"), beat_seconds)
        self._worker: Any = None

    def address(self) -> _Address:
        """Return where this process runs."""
        return _Address(os.getpid(), ray.get_runtime_context().get_node_id())

    def rendezvous(self, ip: str) -> str:
        """Return "host:port" with a port that is free here now; rank 0 is asked, and binds it when it builds."""
        with socket.socket() as probe:
            probe.bind((ip, 0))
            return f"{ip}:{probe.getsockname()[1]}"

    def build(self, pickled: bytes) -> Answer:
        """Build the worker from its pickled (class, place, arguments)."""
        return self._answer("build", lambda: self._build(pickled), False)

    def run(self, verb: str, call: Call, wanted: bool) -> Answer:
        """Run a method; the result stays here unless it is wanted."""
        return self._answer(verb, lambda: getattr(self._worker, verb)(*call.args, **call.kwargs), wanted)

    def _build(self, pickled: bytes) -> None:
        worker, place, args = pickle.loads(pickled)
        self._worker = worker(place, *args)

    def _answer(self, verb: str, work: Callable[[], Any], wanted: bool) -> Answer:
        self._heartbeat.doing(verb)
        try:
            return answer(work, wanted)
        finally:
            self._heartbeat.doing("nothing")


class RayCall:
    """A call under way on some ranks. Its deadline runs from when it was made."""

    def __init__(self, group: RayGroup, verb: Verb, refs: Mapping[int, Any]) -> None:
        self._group = group
        self._verb = verb
        self._refs = refs
        self._seconds = verb.deadline or group.deadline
        self._countdown = Countdown(self._seconds)

    def done(self) -> bool:
        """Tell whether every rank has answered."""
        ready, _ = ray.wait(list(self._refs.values()), num_returns=len(self._refs), timeout=0)
        return len(ready) == len(self._refs)

    def result(self) -> Any:
        """Wait for all ranks; the first that fails ends the wait, since the others may be waiting for it."""
        ranks = {ref: rank for rank, ref in self._refs.items()}
        answers: dict[int, Any] = {}
        pending = list(ranks)
        while pending:
            left = self._countdown.left()
            if left == 0:
                self._group.give_up(self._verb.name, self._seconds, [ranks[ref] for ref in pending])
            ready, pending = ray.wait(pending, num_returns=1, timeout=min(left, LOOK))
            if not ready:
                self._group.pool.cluster.check()
            for ref in ready:
                answers[ranks[ref]] = self._group.receive(self._verb.name, ranks[ref], ref)
        return self._group.gathered(self._verb, answers)


class RayGroup(WorkerGroup):
    """`worker(place, *args)` in a process of its own on every slot of `pool`.

    The worker class and `args` must be picklable. `logs` is the folder for the workers' output (the run folder's).
    `threads` becomes OMP_NUM_THREADS in the workers. `deadline` in seconds bounds every call, and building. `layout`
    says which ranks share what.
    """

    def __init__(
        self,
        name: str,
        pool: ResourcePool,
        worker: type,
        args: tuple[Any, ...] = (),
        *,
        logs: Path,
        threads: int = 1,
        deadline: float = 600.0,
        beat_seconds: float = 5.0,
        layout: Layout | None = None,
    ) -> None:
        super().__init__(name, worker, len(pool.slots), deadline, layout)
        self.pool = pool
        self._logs = logs.resolve()
        self._broken: RunError | None = None
        self._addresses: dict[int, _Address] = {}
        self._ips: dict[int, str] = {}
        share = pool.admit(name)
        self._hosts: list[Any] = [
            _ACTOR.options(
                num_cpus=slot.cpus * share,
                num_gpus=slot.gpus * share,
                resources={key: amount * share for key, amount in slot.resources.items()},
                scheduling_strategy=PlacementGroupSchedulingStrategy(pool.placement, placement_group_bundle_index=rank),
            ).remote(self._log(rank), threads, beat_seconds, sys.path)
            for rank, slot in enumerate(pool.slots)
        ]
        try:
            self._build(worker, args, threads)
        except BaseException:
            self.close()
            raise

    def start(self, verb: Verb, calls: Mapping[int, Call]) -> RayCall:
        """Send the calls; nothing waits yet. Raises what broke the group, WorkerDied where Ray's servers are gone."""
        if self._broken is not None:
            raise self._broken
        # Short calls do well without the servers, until Ray ends this process for it a minute later.
        self.pool.cluster.check()
        wanted = verb.transfer.answering(self.layout, calls)
        refs = {rank: self._hosts[rank].run.remote(verb.name, call, rank in wanted) for rank, call in calls.items()}
        return RayCall(self, verb, refs)

    def pids(self) -> list[int]:
        """Return the workers' process ids in rank order."""
        return [self._addresses[rank].pid for rank in range(self.size)]

    def close(self) -> None:
        """Kill the worker processes and give the slots' share back."""
        if self.pool.cluster.answers:
            for host in self._hosts:
                ray.kill(host)
        self._hosts = []
        self.pool.leave(self.name)

    def receive(self, verb: str, rank: int, ref: Any) -> Any:
        """Return one rank's finished answer, or raise what happened there instead."""
        try:
            found = ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            # `_Host` catches what a worker raises, so this comes from around it: pickling.
            raise RunError(
                f"{self._who(rank)} could not unpickle the arguments or pickle the result of {verb}: {error.cause!r}"
            ) from None
        except ray.exceptions.RayError as error:
            self._broken = WorkerDied(f"{self._who(rank)} died in {verb}: {_reason(error)}; log: {self._log(rank)}")
            raise self._broken from None
        if not isinstance(found, Answer):
            return found
        if found.error is not None:
            raise_failure(found, f"{self._who(rank)}, {verb}; traceback in {self._log(rank)}")
        return found.value

    def give_up(self, verb: str, seconds: float, ranks: list[int]) -> NoReturn:
        """Have the ranks that did not answer write their stacks, and raise DeadlineError."""
        signs = []
        for rank in ranks:
            sign = last_sign(self._log(rank).with_suffix(".heartbeat"))
            self._dump_stacks(rank)
            signs.append(f"{self._who(rank)}, {sign}; stacks in {self._log(rank)}")
        self._broken = DeadlineError(f"controller waited {seconds:g} s for {verb} on {' and '.join(signs)}")
        raise self._broken

    def _build(self, worker: type, args: tuple[Any, ...], threads: int) -> None:
        self._addresses = self._ask("address", _SPAWN_SECONDS)
        ips = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
        self._ips = {rank: ips[address.node] for rank, address in self._addresses.items()}
        rendezvous = self._ask("rendezvous", _SPAWN_SECONDS, self._ips)[0]
        places = {rank: Place(self.name, rank, self.layout, threads, rendezvous) for rank in self._addresses}
        pickled = {rank: ray.cloudpickle.dumps((worker, place, args)) for rank, place in places.items()}
        self._ask("build", self.deadline, pickled)

    def _ask(self, method: str, seconds: float, args: Mapping[int, Any] | None = None) -> dict[int, Any]:
        """Call one of the actor's own methods on every rank, with `args[rank]`."""
        methods = [getattr(host, method) for host in self._hosts]
        refs = {rank: ask.remote(*([args[rank]] if args else [])) for rank, ask in enumerate(methods)}
        answers = RayCall(self, Verb(method, ONE_TO_ALL, deadline=seconds), refs).result()
        return dict(enumerate(answers))

    def _log(self, rank: int) -> Path:
        return self._logs / f"{self.name}-{rank}.log"

    def _who(self, rank: int) -> str:
        address = self._addresses.get(rank)
        where = f"pid {address.pid} on {self._ips.get(rank, 'unknown node')}" if address else "not started yet"
        return f"{self.name} rank {rank} ({where})"

    def _dump_stacks(self, rank: int) -> None:
        """Send SIGUSR1 from a process of the worker's own node: its handler runs even where Python does not."""
        address, log = self._addresses.get(rank), self._log(rank)
        if address is None:
            return
        before = _size(log)
        with suppress(ProcessLookupError, ray.exceptions.RayError):
            if address.node == ray.get_runtime_context().get_node_id():
                _ask_for_stacks(address.pid)
            else:
                there = NodeAffinitySchedulingStrategy(address.node, soft=False)
                ask = ray.remote(_ask_for_stacks).options(num_cpus=0, scheduling_strategy=there)
                ray.get(ask.remote(address.pid), timeout=_SPAWN_SECONDS)
        until = time.monotonic() + _DUMP_SECONDS
        while _size(log) == before and time.monotonic() < until:
            time.sleep(0.05)


_ACTOR = ray.remote(max_restarts=0)(_Host)


def _ask_for_stacks(pid: int) -> None:
    os.kill(pid, signal.SIGUSR1)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _reason(error: Exception) -> str:
    """Cut Ray's page about a dead worker down to what it knows."""
    text = str(error)
    detail = text.partition("Worker exit detail: ")[2] or text
    first = detail.partition(" Some common causes")[0].partition("There are some potential")[0]
    return " ".join(first.split()).rstrip(".")
