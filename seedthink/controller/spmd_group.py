"""A worker group over the processes of a torchrun or mpirun launch: the same loop without Ray.

Rank 0 runs the command, and one worker beside it on a thread; every other rank runs `serve`, which builds its worker
and answers calls until rank 0 is done. A rank that raises, dies or stops answering ends the wait of rank 0, which names
it; and when rank 0 ends, the others end. Who launched the ranks may start them again: the run then resumes.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import Pipe
from queue import SimpleQueue
from typing import Any, NoReturn

from seedthink.controller.answers import Answer, answer, raise_failure
from seedthink.controller.groups import Place, WorkerGroup
from seedthink.controller.protocol import ONE_TO_ALL, Call, Verb
from seedthink.controller.supervision import DeadlineError, WorkerDied
from seedthink.controller.watchdog import LOOK, Countdown
from seedthink.parallel.control import Hub, Lost, Spoke
from seedthink.parallel.launch import free_port
from seedthink.parallel.layout import Layout

_GRACE = 3.0  # seconds for a dead rank's connection to end, after a collective has noticed that somebody is missing
_ABANDONED = 5.0  # seconds that a rank may work on after rank 0 has ended


@dataclass(frozen=True, slots=True)
class _Build:
    """Rank 0 asks another rank to build its worker; call number 0."""

    worker: type
    place: Place
    args: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class _Run:
    """Rank 0 asks another rank to run a verb; `number` comes back with the answer."""

    number: int
    verb: str
    call: Call
    wanted: bool


class SpmdCall:
    """A call under way on some ranks. Its deadline runs from when it was made."""

    def __init__(self, group: SpmdGroup, verb: Verb, number: int, ranks: list[int]) -> None:
        self._group, self._verb, self._number, self._pending = group, verb, number, ranks
        self._answers: dict[int, Any] = {}
        self._seconds = verb.deadline or group.deadline
        self._countdown = Countdown(self._seconds)

    def done(self) -> bool:
        """Tell whether every rank has answered."""
        self._look(0.0)
        return not self._pending

    def result(self) -> Any:
        """Wait for all ranks; the first that fails ends the wait, since the others may be waiting for it."""
        while self._pending:
            left = self._countdown.left()
            if left == 0:
                self._group.give_up(self._verb.name, self._seconds, self._pending)
            self._look(min(left, LOOK))
        return self._group.gathered(self._verb, self._answers)

    def _look(self, seconds: float) -> None:
        if self._pending:
            found = self._group.receive(self._verb.name, self._number, self._pending, seconds)
            self._answers |= found
            self._pending = [rank for rank in self._pending if rank not in found]


class SpmdGroup(WorkerGroup):
    """`worker(place, *args)` on every rank of the launch that `hub` speaks to; `deadline` in seconds bounds each call.

    The worker class and `args` must be picklable. `layout` says which ranks share what, `where` in words what the
    run is at, for messages.
    """

    def __init__(
        self,
        name: str,
        hub: Hub,
        worker: type,
        args: tuple[Any, ...] = (),
        *,
        threads: int = 1,
        deadline: float = 600.0,
        where: Callable[[], str] = lambda: "",
        layout: Layout | None = None,
    ) -> None:
        super().__init__(name, worker, hub.size, deadline, layout)
        self._hub, self._where = hub, where
        self._own, self._calls = _OwnRank(), 0
        self._arrived: dict[tuple[int, int], Answer | Exception] = {}  # (call, rank) -> an answer nobody has taken yet
        rendezvous = f"{hub.address}:{free_port()}"
        places = {rank: Place(name, rank, self.layout, threads, rendezvous) for rank in range(hub.size)}
        self._send("build", {rank: _Build(worker, place, args) for rank, place in places.items() if rank})
        self._own.run(0, lambda: self._own.build(worker, places[0], args))
        SpmdCall(self, Verb("build", ONE_TO_ALL), 0, list(places)).result()

    def start(self, verb: Verb, calls: Mapping[int, Call]) -> SpmdCall:
        """Send the calls; nothing waits yet."""
        self._calls = number = self._calls + 1
        wanted = verb.transfer.answering(self.layout, calls)
        runs = {rank: _Run(number, verb.name, call, rank in wanted) for rank, call in calls.items()}
        self._send(verb.name, {rank: run for rank, run in runs.items() if rank})
        if 0 in runs:
            self._own.run(number, lambda: self._own.call(runs[0]))
        return SpmdCall(self, verb, number, list(calls))

    def receive(self, verb: str, number: int, ranks: list[int], seconds: float) -> dict[int, Any]:
        """Values of a call that come within `seconds`. Raises what a rank raised, `WorkerDied` where one has ended."""
        others = [rank for rank in ranks if rank]
        if not any((number, rank) in self._arrived for rank in ranks):
            self._read(verb, others, self._own.done if 0 in ranks else None, seconds)
        values: dict[int, Any] = {}
        for rank in ranks:
            found = self._arrived.pop((number, rank), None)
            if isinstance(found, Exception):
                self._read(verb, others, None, _GRACE)  # a collective fails here for want of a rank that died there
                raise found
            if found is not None and found.error is not None:
                raise_failure(found, f"{self._who(rank)}, {verb}")
            if found is not None:
                values[rank] = found.value
        return values

    def _read(self, verb: str, others: list[int], own: Any, seconds: float) -> None:
        try:
            for rank, (number, found) in self._hub.poll(others, own, seconds).items():
                self._arrived[number, rank] = found
        except Lost as lost:
            self._lost(verb, lost)

    def give_up(self, verb: str, seconds: float, ranks: list[int]) -> NoReturn:
        """Raise DeadlineError with what the ranks that did not answer say of themselves."""
        signs = self._hub.signs([rank for rank in ranks if rank])
        owing = [f"{self._who(rank)} ({signs.get(rank, 'in this process')})" for rank in ranks]
        raise DeadlineError(f"rank 0 waited {seconds:g} s for {verb} on {', '.join(owing)}{self._where()}")

    def close(self) -> None:
        """Let go of this rank's worker; the others end with the hub's connections."""
        self._own.stop()

    def _send(self, verb: str, messages: Mapping[int, Any]) -> None:
        try:
            self._hub.send(messages)
        except Lost as lost:
            self._lost(verb, lost)

    def _lost(self, verb: str, lost: Lost) -> NoReturn:
        who = " and ".join(self._who(rank) for rank in lost.ranks)
        raise WorkerDied(f"{who} died in {verb}{self._where()}; look at its output above") from None

    def _who(self, rank: int) -> str:
        return f"{self.name} rank {rank} ({self._hub.facts[rank].process})"


class _OwnRank:
    """Rank 0's worker on a thread of its own, so that rank 0 can wait for the others at the same time.

    From `done` come (number of the call, answer or exception); the values themselves are not pickled.
    """

    def __init__(self) -> None:
        self.done = _Replies()
        self._work: SimpleQueue[tuple[int, Callable[[], Any]] | None] = SimpleQueue()
        self._worker: Any = None
        threading.Thread(target=self._loop, name="rank-0", daemon=True).start()

    def run(self, number: int, work: Callable[[], Any]) -> None:
        """Have it done on the thread."""
        self._work.put((number, work))

    def build(self, worker: type, place: Place, args: tuple[Any, ...]) -> None:
        """On the thread: build the worker."""
        self._worker = worker(place, *args)

    def call(self, run: _Run) -> Any:
        """On the thread: run a verb."""
        return getattr(self._worker, run.verb)(*run.call.args, **run.call.kwargs)

    def stop(self) -> None:
        """End the thread once its work is done; drop the worker."""
        self._work.put(None)

    def _loop(self) -> None:
        while (task := self._work.get()) is not None:
            number, work = task
            try:
                self.done.send((number, Answer(work())))
            except Exception as error:
                self.done.send((number, error))
        self._worker = None


class _Replies:
    """A queue that `multiprocessing.connection.wait` can wait for, like a connection."""

    def __init__(self) -> None:
        self._waiting: SimpleQueue[Any] = SimpleQueue()
        self._readable, self._bell = Pipe(duplex=False)

    def fileno(self) -> int:
        """Readable when something is there."""
        return self._readable.fileno()

    def send(self, value: Any) -> None:
        """Put a value."""
        self._waiting.put(value)
        self._bell.send_bytes(b"!")

    def recv(self) -> Any:
        """Take the next value."""
        self._readable.recv_bytes()
        return self._waiting.get()


def serve(spoke: Spoke) -> None:
    """The life of a rank other than 0: builds its worker and answers calls, until rank 0 is done."""
    worker: Any = None
    while (asked := spoke.receive()) is not None:
        if isinstance(asked, _Build):
            spoke.doing("build")
            built = answer(partial(asked.worker, asked.place, *asked.args), True)
            worker = built.value
            spoke.send((0, replace(built, value=None)))
        else:
            spoke.doing(asked.verb)
            work = partial(getattr(worker, asked.verb), *asked.call.args, **asked.call.kwargs)
            spoke.send((asked.number, answer(work, asked.wanted)))


def leave() -> None:
    """End this rank a little later, if it has not ended by then: rank 0 has, and a collective would wait for ever."""
    time.sleep(_ABANDONED)
    print("rank 0 has ended, and this rank waited for it: leaving", file=sys.stderr, flush=True)
    os._exit(1)
