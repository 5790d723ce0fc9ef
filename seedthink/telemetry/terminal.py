"""What a run shows while it works: one line per step, and a bar only where somebody can see it move.

On a terminal, rich draws the bar and the newest numbers; in a file or a pipe each step is one plain line without
colour, at most one a second for steps that are faster, so logs stay readable. NO_COLOR and TERM=dumb are honoured.
Everything shown here also stands in the run folder.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, TextIO

from seedthink.telemetry.health import notes

# (metric, label, format), in the order of the line; what a step does not have is left out.
COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("train/loss", "loss", "{:.4f}"),
    ("critic/score/mean", "score", "{:.3f}"),
    ("critic/vf_explained_var", "explained", "{:.2f}"),
    ("critic/vf_explained_var_held_out", "held-out", "{:.2f}"),
    ("response_length/mean", "length", "{:.0f}"),
    ("actor/entropy", "entropy", "{:.3f}"),
    ("actor/ppo_kl", "kl", "{:.1e}"),
    ("rollout/logp_gap_max", "gap", "{:.1g}"),
    ("timing_s/step", "step", "{:.2f} s"),
    ("perf/throughput", "rate", "{:.0f} tok/s"),
)
DETAILS: tuple[tuple[str, str, str], ...] = (
    ("actor/pg_loss", "pg_loss", "{:.4f}"),
    ("actor/pg_clipfrac", "clipped", "{:.3f}"),
    ("actor/grad_norm", "grad_norm", "{:.3f}"),
    ("actor/lr", "lr", "{:.2e}"),
    ("critic/vf_loss", "vf_loss", "{:.4f}"),
    ("rollout/groups_all_equal", "no signal", "{:.2f}"),
)
LINE_SECONDS = 1.0  # between two lines of a log; every step stands in metrics.jsonl
BARS = "".join(chr(0x2581 + height) for height in range(8))


class Terminal:
    """The view of one command. `steps` 0 means that its end is not known in steps.

    A health note appears once, at the first step that deserves it; the report counts them all.
    """

    def __init__(
        self,
        stage: str,
        steps: int,
        verbose: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stage = stage
        self._steps = steps
        self._verbose = verbose
        self._stream = stream or sys.stdout
        self._scores: list[float] = []
        self._first: dict[str, float] = {}
        self._warned: set[str] = set()
        self._clock = clock
        self._began = clock()
        self._printed = -LINE_SECONDS
        self._unprinted: dict[str, float] = {}
        self._counted: tuple[str, int | None] = (stage, None)
        self._done = 0
        self._live: Any = None
        self._task: Any = None

    def __enter__(self) -> Terminal:
        if fancy(self._stream):
            self._live, self._task = _bar(self._stream, self._stage, self._steps)
            self._live.start()
        return self

    def __exit__(self, *reason: object) -> None:
        if self._live is not None:
            self._live.stop()

    def step(self, step: int, metrics: Mapping[str, float], stage: str = "", steps: int | None = None) -> None:
        """Show one step of the command's stage, or of another `stage` of `steps` steps that precedes it.

        A line that several steps share has the newest value of every number, also of those that few steps measure.
        """
        if (stage or self._stage, steps) != self._counted:
            self._counted, self._began, self._done = (stage or self._stage, steps), self._clock(), 0
            self._printed, self._unprinted = self._began - LINE_SECONDS, {}
        self._done += 1
        score = metrics.get("critic/score/mean")
        if score is not None:
            self._scores.append(score)
        self._unprinted |= metrics
        text, total = line(self._unprinted, self._verbose), self._steps if steps is None else steps
        if self._live is not None:
            spark = f"  {sparkline(self._scores)}" if len(self._scores) > 1 else ""
            shown = {"description": stage or self._stage, "total": total or None, "numbers": text + spark}
            self._live.update(self._task, completed=step, **shown)
        elif step == total or self._clock() - self._printed >= LINE_SECONDS:
            self._printed, self._unprinted = self._clock(), {}
            self._print(f"{stage or self._stage} {self._progress(step, total)}  {text}")
        if (stage or self._stage) == "rl":
            self._note(step, metrics)

    def say(self, text: str) -> None:
        """Print a line of its own above the bar: what was resumed, an evaluation, where the report is."""
        if self._live is not None:
            self._live.console.print(text, highlight=False, markup=False)
        else:
            self._print(text)

    def warn(self, text: str) -> None:
        """Print a warning."""
        if self._live is not None:
            self._live.console.print(f"! {text}", style="yellow", highlight=False, markup=False)
        else:
            self._print(f"! {text}")

    def _note(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._first.setdefault(name, value)
        for note in notes(metrics, self._first):
            if note.metric not in self._warned:
                self._warned.add(note.metric)
                self.warn(f"step {step}: {note.text}")

    def _progress(self, step: int, total: int) -> str:
        if not total:
            return f"step {step}"
        left = (self._clock() - self._began) / self._done * (total - step)
        return f"step {step:{len(str(total))}d}/{total} {100 * step / total:3.0f} %  eta {duration(left)}"

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


def line(metrics: Mapping[str, float], verbose: bool = False) -> str:
    """Return the numbers of one step as "label value" pairs."""
    columns = COLUMNS + (DETAILS if verbose else ())
    found = [(label, shape, metrics.get(name)) for name, label, shape in columns]
    return "  ".join(f"{label} {shape.format(value)}" for label, shape, value in found if value is not None)


def fancy(stream: TextIO) -> bool:
    """Say whether a moving bar makes sense: a real terminal that is not dumb."""
    return stream.isatty() and os.environ.get("TERM", "") != "dumb"


def colourful(stream: TextIO) -> bool:
    """Say whether colour is welcome: a terminal, and NO_COLOR is not set (no-color.org)."""
    return fancy(stream) and not os.environ.get("NO_COLOR")


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """Draw the last values as bars of eight heights; longer histories are averaged into `width` bars."""
    if not values:
        return ""
    bins = min(width, len(values))
    edges = [round(at * len(values) / bins) for at in range(bins + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    span = high - low or 1.0
    return "".join(BARS[min(7, int(8 * (mean - low) / span))] for mean in means)


def duration(seconds: float) -> str:
    """Write seconds as 42s, 3m05 or 1h12."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}"


def _bar(stream: TextIO, stage: str, steps: int) -> tuple[Any, Any]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(file=stream, no_color=not colourful(stream))
    remaining = [TimeRemainingColumn(compact=True)] if steps else [TimeElapsedColumn()]
    columns = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        *remaining,
        TextColumn("{task.fields[numbers]}"),
    ]
    progress = Progress(*columns, console=console, transient=False)
    return progress, progress.add_task(stage, total=steps or None, numbers="")
