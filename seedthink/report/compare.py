"""Several runs side by side: what they reached, how fast, and which settings tell them apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seedthink.config import diff
from seedthink.report.run_data import RunData
from seedthink.report.svg import Series, line_chart, percent
from seedthink.report.template import fill
from seedthink.telemetry.jsonl import write_atomic
from seedthink.telemetry.terminal import duration

MOST = 8  # runs that get a colour of their own


@dataclass(frozen=True, slots=True)
class Comparison:
    """Labelled runs with their colours, two charts, and the settings in which they differ."""

    rows: tuple[dict[str, str], ...]
    by_time: str
    by_step: str
    settings: tuple[tuple[str, tuple[str, ...]], ...]


def comparison(runs: Sequence[RunData]) -> Comparison:
    """Compare runs by held-out accuracy over training time and over steps.

    A step of rl and one of sft are different things: only runs of the first one's command share the steps' axis.
    """
    shown = list(runs[:MOST])
    names = labels(shown)
    time_series: list[Series] = []
    step_series: list[Series] = []
    for index, (run, label) in enumerate(zip(shown, names, strict=True), start=1):
        found = run.accuracies()
        bars = [(low, high) for _, _, low, high in found]
        css = f"c{index}"
        minutes = [(row["seconds"] / 60, mean) for row, mean, _, _ in found]
        steps = [(float(row["step"]), mean) for row, mean, _, _ in found]
        time_series.append(Series(label, minutes, css, bars=bars, dots=True))
        if run.command == shown[0].command:
            step_series.append(Series(label, steps, css, bars=bars, dots=True))
    return Comparison(
        tuple(_row(run, label, f"c{at}") for at, (run, label) in enumerate(zip(shown, names, strict=True), start=1)),
        line_chart(time_series, shown=percent, bounds=(0, 1), x_label="minutes"),
        line_chart(step_series, shown=percent, bounds=(0, 1)),
        differences(shown),
    )


def labels(runs: Sequence[RunData]) -> list[str]:
    """Return each run's folder name, with its parent's where two have the same."""
    names = [run.name for run in runs]
    return [
        name if names.count(name) == 1 else f"{run.path.resolve().parent.name}/{name}"
        for run, name in zip(runs, names, strict=True)
    ]


def differences(runs: Sequence[RunData]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return (key, value per run) for every setting that is not the same in all runs; names of runs are left out."""
    found: dict[str, None] = {}
    for run in runs[1:]:
        for change in diff(runs[0].settings, run.settings):
            if not change.key.startswith("run.name") and change.key != "command":
                found[change.key] = None
    leaves = [key for key in found if not any(isinstance(_at(run.settings, key), Mapping) for run in runs)]
    return tuple((key, tuple(_words(_at(run.settings, key)) for run in runs)) for key in leaves)


def write_comparison(runs: Sequence[RunData], path: Path) -> Path:
    """Write a page that compares runs; returns its path."""
    write_atomic(path, fill("compare.html.j2", {"comparison": comparison(runs), "count": len(runs)}))
    return path


def table(runs: Sequence[RunData]) -> list[dict[str, str]]:
    """Return one row of words per run, for the terminal."""
    return [_row(run, label, "") for run, label in zip(runs, labels(runs), strict=True)]


def _row(run: RunData, label: str, css: str) -> dict[str, str]:
    summary = run.summary
    before, after = summary.get("accuracy_before") or {}, summary.get("accuracy_after") or {}
    gain = ""
    if before.get("mean") is not None and after.get("mean") is not None:
        gain = f"{100 * (after['mean'] - before['mean']):+.1f}"
    total = (summary.get("seconds") or {}).get("total")
    rate, memory = summary.get("tokens_per_second"), summary.get("peak_rss_bytes")
    return {
        "css": css,
        "label": label,
        "command": " ".join(word for word in (run.command, run.preset) if word),
        "before": _accuracy(before),
        "after": _accuracy(after),
        "gain": gain,
        "steps": str(summary.get("steps", "")),
        "time": duration(total) if total else "",
        "rate": f"{rate:,.0f}" if rate else "",
        "memory": f"{memory / 2**30:.2f}" if memory else "",
    }


def _accuracy(entry: Mapping[str, Any]) -> str:
    if entry.get("mean") is None:
        return ""
    low, high = entry.get("low"), entry.get("high")
    interval = f" ({100 * low:.1f} to {100 * high:.1f})" if low is not None and high is not None else ""
    return f"{100 * entry['mean']:.1f} %{interval}"


def _at(settings: Mapping[str, Any], key: str) -> Any:
    value: Any = settings
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _words(value: Any) -> str:
    return "" if value is None else str(value)
