"""What happens when a worker dies or hangs: name it, rebuild everything, go on from the last checkpoint.

A run's state lives in its folder, never in a process, so recovery is the same as resuming: close what is left, build
the groups again, run the loop again. Only the two failures below are worth it; any other exception is an answer
(a bad setting, bad data, a defect) that a restart would meet again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeVar

from seedthink.errors import DeviceError, RunError

Groups = TypeVar("Groups")
Result = TypeVar("Result")


class WorkerDied(RunError):
    """A worker process, or what carries it, is gone. The message names group, rank, pid and what is known of it."""


class DeadlineError(RunError):
    """A wait took too long. The message says who waited how long for what on whom, and where the stacks are."""


def supervise(
    build: Callable[[], AbstractContextManager[Groups]],
    run: Callable[[Groups], Result],
    *,
    restarts: int = 3,
    window: float = 3600.0,
    say: Callable[[str], None],
) -> Result:
    """Run, and after a `WorkerDied` or `DeadlineError` build anew and run again; building may fail then, too.

    `build()` returns a context manager over all that a failure can take along (Ray, pools, groups); `run(groups)`
    must resume from the run folder by itself. At most `restarts` restarts within `window` seconds, else RunError.
    """
    failures: list[float] = []
    while True:
        try:
            with build() as groups:
                return run(groups)
        except (WorkerDied, DeadlineError, DeviceError) as error:
            if isinstance(error, DeviceError) and not failures:
                raise  # the machine cannot do it at all; after a failure, it has done it once and may do it again
            now = time.monotonic()
            failures = [at for at in failures if now - at < window] + [now]
            if len(failures) > restarts:
                raise RunError(
                    f"gave up after {len(failures)} worker failures within {window:g} s. The last one: {error}. "
                    "The last checkpoint is whole: starting the same command again resumes from it"
                ) from error
            say(f"{error}. Restart {len(failures)} of {restarts} from the last checkpoint")
