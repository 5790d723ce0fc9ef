"""The run folder: what a run leaves behind, and the only thing that terminal, report and trackers read.

    run.toml resolved.json env.json metrics.jsonl events/ rollouts/ checkpoints/ logs/ summary.json report.html

A line of metrics.jsonl is `{"stage", "step", "seconds", NAME: number, ...}`; lines of one step add up. `seconds` is
training time, which goes on where it stood after a resume. Going back to step k drops what lies beyond k, so the
files always tell one history.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from seedthink.config.resolved import Change, diff, to_dict, to_toml
from seedthink.errors import ConfigError, DataError, RunError
from seedthink.telemetry.environment import environment
from seedthink.telemetry.events import Events
from seedthink.telemetry.jsonl import JsonLines, dumps, iterate, keep_until, write_atomic, writing

# Settings that may differ when a run goes on: they change when it ends, who works for it and what is kept, not what it
# learns.
FREE = (
    *("run.*", "controller.*", "checkpoint.*", "evaluation.*", "model.threads", "model.tuner", "reward.workers"),
    *("parallel", "parallel.*"),  # the whole table is new to a run that began before there was one
)
FIXED = ("run.seed", "parallel.numerics")
# What a run itself puts into its folder.
OWN_FILES = ("run.toml", "resolved.json", "env.json", "metrics.jsonl", "summary.json", "report.html")
OWN_FOLDERS = ("events", "rollouts", "checkpoints", "logs", "export", "critic")


class RunFolder:
    """One run's folder, held by one process at a time. Use `open_run` to get one."""

    def __init__(self, path: Path, process: str = "controller", lock: int | None = None) -> None:
        """`lock` is the folder's lock where the caller holds it already; the new object lets go of it."""
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.rollouts = path / "rollouts"
        self.logs = path / "logs"
        self._lock = _locked(path) if lock is None else lock
        self.events = Events(path / "events", process)
        self._metrics = JsonLines(path / "metrics.jsonl")
        self._began, self._evaluations = _recorded(path / "metrics.jsonl")

    @property
    def seconds(self) -> float:
        """Training time so far, in seconds, over all the processes that worked on this run."""
        return time.monotonic() - self._began

    def record(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line of metrics. `stage` is "sft", "value" or "rl"; steps count from 1 (0: before the first)."""
        stamp = {"stage": stage, "step": step, "seconds": round(self.seconds, 3)}
        self._metrics.append(stamp | {name: _short(value) for name, value in metrics.items()})

    def record_evaluation(self, stage: str, step: int, accuracy: Mapping[str, Any]) -> None:
        """Append an evaluation: `{mean, low, high, k, pass_at_k, families: {name: the same}}`.

        One that a run repeats after a resume, with the same outcome, is not written twice.
        """
        metrics = {name: _short(value) for name, value in accuracy_metrics(accuracy).items()}
        if self._evaluations.get((stage, step)) != metrics:
            self._evaluations[stage, step] = metrics
            self.record(stage, step, metrics)

    def evaluated(self, stage: str, step: int) -> bool:
        """Say whether an evaluation after `step` stands in the metrics."""
        return (stage, step) in self._evaluations

    def record_rollouts(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the samples of a step to rollouts/step_N.jsonl, replacing an earlier attempt at that step.

        No training step waits for the disk: a power failure may take the samples of the last seconds.
        """
        text = "".join(dumps(row) + "\n" for row in rows)
        write_atomic(self.rollouts / f"step_{step}.jsonl", text, durable=False)

    def record_skipped(self, step: int, rows: Iterable[Mapping[str, Any]]) -> Path:
        """Keep what an update was skipped for, to be looked at; returns its file, logs/skipped_step_N.jsonl."""
        path = self.logs / f"skipped_step_{step}.jsonl"
        write_atomic(path, "".join(dumps(row) + "\n" for row in rows))
        return path

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json: the headline for programs."""
        write_atomic(self.path / "summary.json", json.dumps(json.loads(dumps(summary)), indent=2) + "\n")

    def summary(self) -> Mapping[str, Any]:
        """What summary.json holds; empty where an earlier process has not come to its end."""
        try:
            found: dict[str, Any] = json.loads((self.path / "summary.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found

    def rewind(self, stage: str, step: int) -> None:
        """Go back to the state after `step` of `stage`: drop later metrics and samples, and set the clock back."""

        def beyond(row: Mapping[str, Any]) -> bool:
            return row["stage"] == stage and row["step"] > step

        self._metrics.close()
        keep_until(self.path / "metrics.jsonl", beyond)
        self._metrics = JsonLines(self.path / "metrics.jsonl")
        for path in self.rollouts.glob("step_*.jsonl"):
            if int(path.stem.removeprefix("step_")) > step:
                path.unlink()
        (self.path / "summary.json").unlink(missing_ok=True)
        self._began, self._evaluations = _recorded(self.path / "metrics.jsonl")
        self.events.emit("rewind", stage=stage, to_step=step)

    def begin_again(self) -> None:
        """Drop everything recorded so far: an attempt that left no checkpoint is no part of the run's history."""
        self._metrics.close()
        with writing(self.path):
            (self.path / "metrics.jsonl").unlink(missing_ok=True)
            for path in [*self.rollouts.glob("step_*.jsonl"), self.path / "summary.json"]:
                path.unlink(missing_ok=True)
        self._metrics = JsonLines(self.path / "metrics.jsonl")
        self._began, self._evaluations = _recorded(self.path / "metrics.jsonl")
        self.events.emit("begin_again")

    def close(self) -> None:
        """Close the files and let go of the folder."""
        self._metrics.close()
        self.events.close()
        os.close(self._lock)


def open_run(config: Any, command: str, facts: Mapping[str, Any] | None = None) -> RunFolder:
    """Create or reopen the folder that a configuration names, and write run.toml, resolved.json and env.json.

    A folder that holds a checkpoint is gone on with: `run.resume` "auto" raises ConfigError with the difference when
    settings that shape the result have changed, "changed" goes on all the same, "fresh" moves it aside first. A folder
    without a checkpoint is started over; one that another command filled is left alone (ConfigError). `facts` (build,
    device) go to env.json. RunError when another process holds it.
    """
    path = Path(config.run.folder) / config.run.name
    resume = getattr(config.run, "resume", "fresh")
    with ExitStack() as held:
        lock = _locked(path)  # held from here on: nobody else may move aside what this run is about to write
        held.callback(os.close, lock)
        begun = any((path / "checkpoints").rglob("step-*"))
        if resume == "auto" or not hasattr(config.run, "resume"):
            _same_command(path, command)
        if resume == "fresh" or not begun:
            with writing(path):
                _move_aside(path, keep=begun)
        changes: list[Change] = []
        if begun and resume != "fresh":
            changes = changed_settings(path, config)
            blocking = [change for change in changes if not free(change.key)]
            if blocking and resume == "auto":
                raise ConfigError(_refusal(path, blocking))
        folder = RunFolder(path, lock=lock)
        write_atomic(path / "run.toml", to_toml(config))
        write_atomic(path / "resolved.json", json.dumps({"command": command, **to_dict(config)}, indent=2) + "\n")
        write_atomic(path / "env.json", json.dumps(environment(facts), indent=2) + "\n")
        folder.events.emit("open", command=command, changes=[str(change) for change in changes])
        held.pop_all()
    return folder


def changed_settings(path: Path, config: Any) -> list[Change]:
    """Return what differs between the settings a folder was last run with and `config`."""
    return diff(_settings(path), to_dict(config))


def free(key: str) -> bool:
    """Say whether a setting may differ when a run goes on."""
    return any(fnmatch(key, pattern) for pattern in FREE) and key not in FIXED


def accuracy_metrics(accuracy: Mapping[str, Any]) -> dict[str, float]:
    """Name the numbers of an evaluation as verl does: val-core/FAMILY/acc/mean@K, and its interval under val-aux."""
    found: dict[str, float] = {}
    for family, entry in {"all": accuracy, **accuracy.get("families", {})}.items():
        found[f"val-core/{family}/acc/mean@{entry['k']}"] = entry["mean"]
        found[f"val-core/{family}/acc/pass@{entry['k']}"] = entry["pass_at_k"]
        found[f"val-aux/{family}/acc/low"] = entry["low"]
        found[f"val-aux/{family}/acc/high"] = entry["high"]
        found[f"val-aux/{family}/problems"] = entry["problems"]
    return found


def _settings(path: Path) -> dict[str, Any]:
    try:
        table = json.loads((path / "resolved.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path / 'resolved.json'} cannot be read ({error}), so it is unknown what this run was; "
            "start over with --run.resume fresh"
        ) from None
    table.pop("command", None)
    return table


def _same_command(path: Path, command: str) -> None:
    """Refuses to replace what another command worked for."""
    worth_keeping = (path / "summary.json").exists() or any((path / "checkpoints").rglob("step-*"))
    try:
        earlier = json.loads((path / "resolved.json").read_text(encoding="utf-8")).get("command", command)
    except (OSError, ValueError):
        return
    if worth_keeping and earlier != command:
        raise ConfigError(f"{path} holds a run of `seedthink {earlier}`; choose another --run.name for `{command}`")


def _refusal(path: Path, changes: Sequence[Change]) -> str:
    listed = "\n".join(f"  {change}" for change in changes)
    return (
        f"{path} was run with other settings:\n{listed}\n"
        "go on with the new ones: --run.resume changed; start over: --run.resume fresh; or choose another --run.name"
    )


def _move_aside(path: Path, keep: bool) -> None:
    """Move an earlier run to NAME-1, NAME-2 ...; one without checkpoint or summary is deleted.

    Only the run's own files go: run folders inside it, and a model that another command put there, stay.
    """
    own = [path / name for name in OWN_FILES + OWN_FOLDERS if (path / name).exists()]
    if keep or (path / "summary.json").exists():
        number = 1
        while (aside := path.with_name(f"{path.name}-{number}")).exists():
            number += 1
        aside.mkdir()
        for entry in own:
            entry.rename(aside / entry.name)
        return
    for entry in own:
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink()


def _locked(path: Path) -> int:
    """Take the folder's lock; the operating system lets go of it when the process dies, however it dies."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        owner = os.pread(lock, 32, 0).decode() or "unknown"
        os.close(lock)
        raise RunError(f"{path} is in use by process {owner}; wait for it, or choose another --run.name") from None
    with suppress(OSError):  # a full disk: the lock holds without its owner's name
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
    return lock


def _recorded(path: Path) -> tuple[float, dict[tuple[str, int], dict[str, Any]]]:
    """When the run's clock began, on this process's clock, and the metrics of each evaluation by (stage, step)."""
    seconds, evaluations = 0.0, {}
    for row in iterate(path):
        seconds = float(row["seconds"])
        metrics = {name: value for name, value in row.items() if name.startswith("val-")}
        if metrics:
            evaluations[row["stage"], row["step"]] = metrics
    return time.monotonic() - seconds, evaluations


def _short(value: float) -> float:
    return float(f"{value:.7g}") if isinstance(value, float) else value
