"""A run folder read back: settings, numbers by stage and step, samples, and the headline.

Readers trust nothing but the files, so a report can be made of a copied folder, of a running job, or of a run that
died. A folder of run folders (what `seedthink quickstart` leaves) is read as one run made of parts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seedthink.errors import DataError
from seedthink.telemetry.jsonl import iterate

Row = dict[str, Any]
_OF_A_SAMPLE = {"prompt", "completion", "reference", "family", "problem", "reward", "verdict", "finish", "kept"}
_STAMPS = ("stage", "step", "seconds")


@dataclass(frozen=True)
class RunData:
    """What a run folder holds. `stages` maps a stage to its rows, one per step, in order."""

    path: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    stages: Mapping[str, list[Row]] = field(default_factory=dict)
    parts: tuple[RunData, ...] = ()

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    @property
    def command(self) -> str:
        """The command that made it: rl, sft, eval, quickstart."""
        return str(self.summary.get("command") or self.settings.get("command") or "run")

    @property
    def preset(self) -> str:
        """The algorithm's preset, "" where there is no algorithm."""
        return str(self.settings.get("algorithm", {}).get("preset", ""))

    def rows(self) -> list[Row]:
        """Every step of every stage, in the order of training."""
        return [row for rows in self.stages.values() for row in rows]

    def series(self, metric: str, stage: str | None = None) -> list[tuple[float, float]]:
        """(step, value) of a metric; `stage` None takes the stage that trained last."""
        rows = self.stages.get(stage or self.main_stage, [])
        return [(row["step"], row[metric]) for row in rows if isinstance(row.get(metric), int | float)]

    @property
    def main_stage(self) -> str:
        """The stage the run is about: rl where there is one."""
        return next((stage for stage in ("rl", "sft", "value") if stage in self.stages), "")

    def sampled_steps(self) -> list[int]:
        """Steps whose samples are stored, ascending."""
        found = (path.stem.removeprefix("step_") for path in (self.path / "rollouts").glob("step_*.jsonl"))
        return sorted(int(number) for number in found if number.isdigit())

    def samples(self, step: int) -> Iterator[Row]:
        """Yield the stored samples of a step. DataError for one that lacks what every sample has."""
        path = self.path / "rollouts" / f"step_{step}.jsonl"
        for row in iterate(path):
            if missing := _OF_A_SAMPLE - row.keys():
                raise DataError(f"{path} holds a sample without {', '.join(sorted(missing))}; delete that line")
            yield row

    def accuracies(self, family: str = "all") -> list[tuple[Row, float, float, float]]:
        """(row, mean, low, high) of every evaluation of a family; low and high equal the mean where none are stored."""
        prefix, found = f"val-core/{family}/acc/mean@", []
        for row in self.rows():
            name = next((name for name in row if name.startswith(prefix)), None)
            if name is not None and row[name] is not None:
                low, high = (row.get(f"val-aux/{family}/acc/{end}") for end in ("low", "high"))
                mean = float(row[name])
                found.append((row, mean, mean if low is None else low, mean if high is None else high))
        return found

    def families(self) -> list[str]:
        """Families that were evaluated, without "all"."""
        names = {name.split("/")[1] for row in self.rows() for name in row if name.startswith("val-core/")}
        return sorted(names - {"all"})


def read_run(path: str | Path) -> RunData:
    """Read a run folder, or a folder of them. DataError where there is nothing to read."""
    folder = Path(path)
    if not folder.is_dir():
        raise DataError(f"run folder {folder} does not exist{_runs_beside(folder)}")
    if (folder / "metrics.jsonl").exists() or (folder / "summary.json").exists():
        parts = tuple(_parts(folder))
    else:
        parts = tuple(_parts(folder))
        if not parts:
            raise DataError(f"{folder} is no run folder: it holds no metrics.jsonl{_runs_beside(folder)}")
    return RunData(
        path=folder,
        settings=_json(folder / "resolved.json"),
        environment=_json(folder / "env.json"),
        summary=_json(folder / "summary.json"),
        stages=_stages(folder / "metrics.jsonl"),
        parts=parts,
    )


def principal(run: RunData) -> RunData:
    """Return the part a combined run is about: itself, or its reinforcement learning (VAPO before other presets)."""
    if run.stages or not run.parts:
        return run
    by_rank = sorted(run.parts, key=lambda part: (part.command != "rl", part.preset != "vapo"))
    return by_rank[0]


def _parts(folder: Path) -> list[RunData]:
    asides = re.compile(r".*-\d+$")  # earlier runs that a fresh start moved out of the way
    found = [child.parent for child in folder.glob("*/metrics.jsonl") if not asides.match(child.parent.name)]
    runs = [read_run(child) for child in found]
    return sorted(runs, key=lambda run: (run.path / "resolved.json").stat().st_mtime if run.settings else 0.0)


def _stages(path: Path) -> dict[str, list[Row]]:
    """Lines of one step join into one row; a later line wins."""
    joined: dict[str, dict[int, Row]] = {}
    for line in iterate(path):
        if not {"stage", "step"} <= line.keys():
            raise DataError(f"{path} holds a line without stage and step ({str(line)[:80]}); delete it to see the rest")
        row = joined.setdefault(line["stage"], {}).setdefault(int(line["step"]), {})
        row.update(line)
    return {stage: [rows[step] for step in sorted(rows)] for stage, rows in joined.items()}


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); delete it to see the rest of the run") from None


def _runs_beside(folder: Path) -> str:
    names = sorted(str(found.parent) for found in folder.parent.glob("*/metrics.jsonl"))[:8]
    return f"; runs here: {', '.join(names)}" if names else ""
