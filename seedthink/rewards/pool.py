"""Judging in worker processes that can be killed: a verifier that hangs or crashes costs one verdict, not the run.

Workers are fresh Python processes over pipes (no fork: torch's threads do not survive one; no torch, no __main__ of the
caller). Items travel in batches and come back one by one, so the parent knows which item a worker is at: past the limit
its process group gets SIGKILL, the item is a TIMEOUT, the rest of the batch is queued again and a new worker starts.
There is no thread: work advances inside `submit` and `collect`.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
import weakref
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from seedthink.errors import ConfigError, RunError
from seedthink.rewards.verifiers import error_judgement, prompt_dict, verifier_name
from seedthink.rewards.watch import VerdictWatch
from seedthink.rewards.worker import pack, unpack
from seedthink.types import Judgement, Rollout, Verdict

MAX_BATCH = 64
START_SECONDS = 60.0
LOAD_SECONDS = 120.0
MAX_FAILED_STARTS = 3
_COMMAND = [sys.executable, "-c", "from seedthink.rewards.worker import main; main()"]


class _Item(NamedTuple):
    """What a worker is asked; without a rollout, only to load the verifier."""

    key: int
    name: str
    rollout: Rollout | None

    @property
    def message(self) -> list[Any]:
        if self.rollout is None:
            return [self.key, self.name, None, ""]
        return [self.key, self.name, prompt_dict(self.rollout), self.rollout.completion.text]


class _Worker:
    """One process: the items it was sent and has not answered, and when it must have answered the first of them."""

    def __init__(self, settings: Mapping[str, Any], log: Path | None) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(settings["path"]), "OMP_NUM_THREADS": "1"}
        with log.open("ab") if log else contextlib.nullcontext() as stderr:
            self.process = subprocess.Popen(
                _COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment,
                start_new_session=True,
                bufsize=0,
            )
        self.items: deque[_Item] = deque()
        self.buffer = bytearray()
        self.ready = False
        self.loading = ""  # the verifier that it imports just now
        self.began = time.monotonic()
        self.deadline = self.began + START_SECONDS
        self.send(settings)

    def send(self, message: object) -> None:
        """Write a message; a worker that is gone shows at its output's end of file."""
        assert self.process.stdin is not None
        view = memoryview(pack(message))
        try:
            while view:
                view = view[self.process.stdin.write(view) or 0 :]
        except BrokenPipeError:
            pass

    def output(self) -> int:
        """File descriptor of the worker's replies."""
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def kill(self) -> int:
        """Kill the process and whatever it has started, and reap it; returns its exit status."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        return self.process.wait()


class JudgePool:
    """A `seedthink.types.Judge` over worker processes. Close it, or use it as a context manager."""

    def __init__(
        self,
        verifiers: Mapping[str, str] | None = None,
        *,
        workers: int = 1,
        seconds_per_item: float = 10.0,
        memory_bytes: int = 4 << 30,
        error_limit: float = 0.5,
        log: Path | None = None,
    ) -> None:
        """Start the workers and return at once.

        `verifiers` maps a family (or "*") to a built-in's name or to `module:function`; a family without an entry uses
        the built-in of its own name. `seconds_per_item` is wall-clock; `memory_bytes` bounds a worker's address space
        (0: no bound); `error_limit` is the share of errors and timeouts above which `collect` raises `RunError`;
        `log` is a file for what verifiers print (standard error without one).
        """
        if workers < 1 or seconds_per_item <= 0:
            raise ConfigError(f"a judge pool needs workers >= 1 and seconds > 0, not {workers} and {seconds_per_item}")
        self._verifiers = dict(verifiers or {})
        self._seconds = seconds_per_item
        path = [entry or os.getcwd() for entry in sys.path]
        self._settings = {
            "path": [*path, *([] if os.getcwd() in path else [os.getcwd()])],
            "memory_bytes": memory_bytes,
            "seconds": seconds_per_item,
        }
        self._log = log
        self._queue: deque[_Item] = deque()
        self._done: list[tuple[Rollout, Judgement]] = []
        self._loaded: set[str] = set()
        self._next_key = 0
        self._failed_starts = 0
        self._failed_loads: Counter[str] = Counter()
        self._killed: set[int] = set()  # keys of items whose worker got a SIGKILL that was not ours
        self.restarts = 0
        self.watch = VerdictWatch(error_limit)
        self._selector = selectors.DefaultSelector()
        self._workers: list[_Worker] = []
        self._finalizer = weakref.finalize(self, _stop, self._workers, self._selector)
        for _ in range(workers):
            self._start_worker()

    def submit(self, rollouts: Sequence[Rollout]) -> None:
        """Queue rollouts. Raises `ConfigError` for a family that has no verifier."""
        for rollout in rollouts:
            name = verifier_name(rollout.prompt.family, self._verifiers)
            self._queue.append(_Item(self._next_key, name, rollout))
            self._next_key += 1
        self._advance(0.0)

    def collect(self, timeout: float = 0.0) -> Sequence[tuple[Rollout, Judgement]]:
        """Judgements since the last call; waits at most `timeout` seconds for the first while any is due.

        Raises `RunError` when most judgements fail and `ConfigError` when a verifier cannot be imported.
        """
        until = time.monotonic() + timeout
        self._advance(0.0)
        while not self._done and self.pending and (left := until - time.monotonic()) > 0:
            self._advance(left)
        self.watch.check()
        done, self._done = self._done, []
        return done

    def load(self, families: Iterable[str]) -> None:
        """Import the verifiers of these families in one worker, and wait for it.

        Raises `ConfigError` for a family without a verifier and for one that cannot be imported: better now than after
        the first answers. The other workers import theirs when they need them.
        """
        names = {verifier_name(family, self._verifiers) for family in families}
        for name in sorted(names - self._loaded):
            self._queue.appendleft(_Item(-1, name, None))
            while name not in self._loaded:
                self._advance(1.0)

    @property
    def pending(self) -> int:
        """Rollouts submitted and not yet collected."""
        return len(self._queue) + sum(len(worker.items) for worker in self._workers) + len(self._done)

    @property
    def process_ids(self) -> list[int]:
        """Process ids of the workers, for memory accounts."""
        return [worker.process.pid for worker in self._workers]

    def close(self) -> None:
        """Kill the workers; what is pending is forgotten. May be called twice."""
        self._finalizer()

    def __enter__(self) -> JudgePool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _advance(self, wait: float) -> None:
        """Hand out work, read replies for at most `wait` seconds, end workers that are past their deadline."""
        assert self._finalizer.alive, "the judge pool is closed"
        self._hand_out()
        now = time.monotonic()
        busy = [worker.deadline for worker in self._workers if worker.items or not worker.ready]
        patience = max(0.0, min([wait, *(deadline - now for deadline in busy)]))
        for key, _ in self._selector.select(patience):
            self._read(key.data)
        now = time.monotonic()
        for worker in list(self._workers):
            if (worker.items or not worker.ready) and now > worker.deadline:
                self._replace(worker, timed_out=True)
        self._hand_out()

    def _hand_out(self) -> None:
        for worker in self._workers:
            if self._queue and worker.ready and not worker.items:
                size = min(MAX_BATCH, -(-len(self._queue) // (2 * len(self._workers))))
                batch = [self._queue.popleft() for _ in range(size)]
                worker.items.extend(batch)
                self._expect(worker, self._seconds)
                worker.send([item.message for item in batch])

    def _expect(self, worker: _Worker, seconds: float) -> None:
        worker.began = time.monotonic()
        worker.deadline = worker.began + seconds

    def _read(self, worker: _Worker) -> None:
        received = os.read(worker.output(), 1 << 20)
        worker.buffer += received
        for message in unpack(worker.buffer):
            if "refused" in message:
                raise ConfigError(f"{message['refused']}{self._where()}")
            worker.loading = message.get("loading", "")
            if "key" in message:
                item = worker.items.popleft()
                assert message.pop("key") == item.key, "a worker answers in order"
                if item.rollout is None:
                    self._loaded.add(item.name)
                else:
                    self._finish(item.rollout, Judgement(**{**message, "verdict": Verdict(message["verdict"])}))
            worker.ready = True
            self._failed_starts = 0
            self._expect(worker, LOAD_SECONDS if "loading" in message else self._seconds)
        if not received:
            self._replace(worker, timed_out=False)

    def _finish(self, rollout: Rollout, judgement: Judgement) -> None:
        self.watch.note(judgement)
        self._done.append((rollout, judgement))

    def _where(self) -> str:
        return f"; what it printed is in {self._log}" if self._log else ""

    def _replace(self, worker: _Worker, *, timed_out: bool) -> None:
        """Kill a worker, blame the item it was at, queue the rest of its batch again and start another.

        Nobody is blamed for a death while a verifier is imported: the items are queued again, a few times. Nor for a
        first SIGKILL that was not ours, which comes from outside (the system short of memory, an operator).
        """
        self._selector.unregister(worker.output())
        self._workers.remove(worker)
        status = worker.kill()
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts >= MAX_FAILED_STARTS:
                raise RunError(
                    f"verifier processes end before they are ready (last exit status {status}); what they printed to "
                    f"{self._log or 'stderr'} says why. They run {_COMMAND[0]}"
                )
        seconds = time.monotonic() - worker.began
        words = f"the verifier was killed after {seconds:.1f} s" if timed_out else _died(status)
        if worker.loading:
            self._failed_loads[worker.loading] += 1
            if timed_out or self._failed_loads[worker.loading] >= MAX_FAILED_STARTS:
                raise ConfigError(f"the reward '{worker.loading}' cannot be imported: {words}{self._where()}")
        elif worker.items and not self._tried_again(worker.items[0], status, timed_out):
            item = worker.items.popleft()
            assert item.rollout is not None, "an item without a rollout only loads"
            verdict = Verdict.TIMEOUT if timed_out else Verdict.ERROR
            self._finish(item.rollout, error_judgement(words, verdict, seconds))
        if worker.items:
            self._queue.extendleft(reversed(worker.items))
        self.restarts += 1
        self._start_worker()

    def _tried_again(self, item: _Item, status: int, timed_out: bool) -> bool:
        """Whether the item whose worker ended is to be judged once more."""
        if item.rollout is None:
            return True
        again = status == -signal.SIGKILL and not timed_out and item.key not in self._killed
        self._killed.add(item.key)
        return again

    def _start_worker(self) -> None:
        worker = _Worker(self._settings, self._log)
        self._workers.append(worker)
        self._selector.register(worker.output(), selectors.EVENT_READ, worker)


def _died(status: int) -> str:
    if status < 0:
        return f"the verifier's process was ended by {signal.Signals(-status).name} (a crash, or out of memory)"
    return f"the verifier ended its process with exit status {status}"


def _stop(workers: list[_Worker], selector: selectors.BaseSelector) -> None:
    """Kill every worker; not a method, so that the finalizer holds no reference to the pool."""
    selector.close()
    for worker in workers:
        worker.kill()
    workers.clear()
