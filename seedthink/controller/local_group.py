"""A worker group inside this process: `--controller local`, notebooks, and tests with several workers.

Calls run when they are made, rank after rank, and exceptions arrive as they were raised. Workers of such a group cannot
meet in a collective (rank 0 would wait for a rank 1 that has not begun), so a group that trains has one rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seedthink.controller.groups import Place, WorkerGroup
from seedthink.controller.protocol import Call, Verb
from seedthink.controller.watchdog import Watchdog
from seedthink.parallel.layout import Layout


@dataclass(frozen=True, slots=True)
class _Done:
    """A finished call: what came out of it, or what it raised."""

    value: Any = None
    error: BaseException | None = None

    def result(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.value

    def done(self) -> bool:
        return True


class LocalGroup(WorkerGroup):
    """`size` workers built as `worker(place, *args)` in this process, laid out as `layout` says.

    `deadline` in seconds bounds every call; when it passes, the stacks of all threads go to `<logs>/<name>.log` (stderr
    without `logs`) and DeadlineError is raised.
    """

    def __init__(
        self,
        name: str,
        worker: type,
        args: tuple[Any, ...] = (),
        *,
        size: int = 1,
        threads: int = 1,
        deadline: float = 600.0,
        logs: Path | None = None,
        layout: Layout | None = None,
    ) -> None:
        super().__init__(name, worker, size, deadline, layout)
        self._watchdog = Watchdog(logs / f"{name}.log" if logs else None)
        self._where = f"stacks in {logs / f'{name}.log'}" if logs else "stacks on stderr"
        self.workers = [worker(Place(name, rank, self.layout, threads), *args) for rank in range(size)]

    def start(self, verb: Verb, calls: Mapping[int, Call]) -> _Done:
        """Run the ranks one after the other, now."""
        seconds = verb.deadline or self.deadline
        message = f"controller waited {seconds:g} s for {verb.name} on {self.name}, in this process; {self._where}"
        try:
            with self._watchdog.guard(message, seconds):
                results = {rank: self._run(rank, verb, call) for rank, call in calls.items()}
        except Exception as error:
            if verb.blocking:
                raise
            return _Done(error=error)
        return _Done(self.gathered(verb, results))

    def _run(self, rank: int, verb: Verb, call: Call) -> Any:
        return getattr(self.workers[rank], verb.name)(*call.args, **call.kwargs)

    def close(self) -> None:
        """Drop the workers."""
        self.workers.clear()
