"""report.html: one self-contained page of a run that works offline, in print and by e-mail.

Pure reader: everything on it comes from the run folder. The page has no script; drawings are inline SVG.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seedthink.config import COMMANDS, from_dict, to_toml
from seedthink.errors import SeedthinkError
from seedthink.report.charts import curves, headline_chart, timing_chart
from seedthink.report.compare import Comparison, comparison
from seedthink.report.run_data import RunData, principal, read_run
from seedthink.report.samples import coloured, reason, telling
from seedthink.report.template import fill
from seedthink.telemetry.health import worst
from seedthink.telemetry.jsonl import write_atomic
from seedthink.telemetry.terminal import duration


def write_report(run_folder: str | Path, beside: Sequence[str | Path] = ()) -> Path:
    """Write report.html into a run folder and return its path; `beside` are runs to show side by side with it.

    A folder of run folders gets one report over its parts. DataError where a folder holds no run.
    """
    run = read_run(run_folder)
    path = run.path / "report.html"
    write_atomic(path, fill("report.html.j2", view(run, [principal(read_run(other)) for other in beside])))
    return path


def view(run: RunData, beside: Sequence[RunData] = ()) -> dict[str, Any]:
    """Collect what the template shows."""
    main = principal(run)
    whole = RunData(
        run.path,
        main.settings,
        run.environment or main.environment,
        run.summary or main.summary,
        main.stages,
        tuple(part for part in run.parts if part is not main),
    )
    timing, stages = timing_chart(whole)
    return {
        "run": whole,
        "title": run.name,
        "subtitle": _subtitle(whole),
        "headline": _headline(whole),
        "headline_chart": headline_chart(whole),
        "facts": _facts(whole),
        "notes": _notes(whole),
        "charts": curves(whole),
        "comparison": _side_by_side(main, [*whole.parts, *beside]),
        "timing": timing,
        "stages": stages,
        "samples": _samples(main),
        "recipe": _recipe(main),
        "settings": json.dumps(main.settings, indent=2),
        "environment": _environment(whole.environment),
    }


def _side_by_side(main: RunData, others: Sequence[RunData]) -> Comparison | None:
    """Compare a run with those that were trained too; the fine-tuning that made its start is a part, no rival."""
    trained = [run for run in others if run.summary.get("accuracy_after") and run.command != "eval"]
    measured = [run for run in trained if run.name != "sft"]
    return comparison([main, *measured]) if measured else None


def _subtitle(run: RunData) -> list[str]:
    summary = run.summary
    words = [run.command, run.preset]
    if summary.get("steps"):
        words.append(f"{summary['steps']} steps")
    total = (summary.get("seconds") or {}).get("total")
    if total:
        words.append(duration(total))
    if summary.get("parameters"):
        active = summary.get("active_parameters") or summary["parameters"]
        size = _millions(summary["parameters"])
        words.append(
            f"{size} parameters" + (f", {_millions(active)} active" if active != summary["parameters"] else "")
        )
    status = summary.get("status")
    words.append("no summary yet: the run is under way, or ended early" if not summary else str(status or ""))
    return [word for word in words if word]


def _headline(run: RunData) -> dict[str, str] | None:
    after = run.summary.get("accuracy_after")
    if not after or after.get("mean") is None:
        return None
    before = run.summary.get("accuracy_before") or {}
    shown = {
        "after": _points(after["mean"]),
        "after_interval": _range(after),
        "problems": str(after.get("problems", "")),
    }
    shown["k"] = str(after.get("k", ""))
    shown["pass_at_k"] = _points(after["pass_at_k"]) if after.get("pass_at_k") is not None else ""
    if before.get("mean") is not None:
        shown["before"], shown["before_interval"] = _points(before["mean"]), _range(before)
        shown["gain"] = f"{100 * (after['mean'] - before['mean']):+.1f}"
        apart = after.get("low", 0) > before.get("high", 1) or after.get("high", 1) < before.get("low", 0)
        shown["apart"] = "intervals disjoint" if apart else "intervals overlap"
    return shown


def _facts(run: RunData) -> list[tuple[str, str, str]]:
    """(value, unit or remark, what it is)."""
    summary, seconds = run.summary, run.summary.get("seconds") or {}
    facts: list[tuple[str, str, str]] = []
    if seconds.get("total"):
        facts.append((duration(seconds["total"]), "", "in all"))
    for stage in ("value", "rl", "sft"):
        if seconds.get(stage):
            facts.append(
                (
                    duration(seconds[stage]),
                    "",
                    {"value": "value pretraining", "rl": "reinforcement learning", "sft": "fine-tuning"}[stage],
                )
            )
    if summary.get("tokens_per_second"):
        facts.append((f"{summary['tokens_per_second']:,.0f}", "tok/s", "generation"))
    if summary.get("peak_rss_bytes"):
        facts.append((f"{summary['peak_rss_bytes'] / 2**30:.2f}", "GiB", "peak memory, all processes"))
    for part in run.parts:
        if part.command == "eval" and part.summary.get("accuracy_after"):
            measured, thinking = part.summary["accuracy_after"], part.settings.get("evaluation", {}).get("thinking")
            block = "with an empty think block" if thinking == "empty" else "on other held-out problems"
            facts.append((_points(measured["mean"]), "%", f"accuracy {block} ({_range(measured)})"))
    if run.series("rollout/logp_gap_max"):
        gap = summary.get("logp_gap_max") or 0.0
        facts.append(
            ("0 bits" if gap == 0 else f"{gap:.2g}", "" if gap == 0 else "nats", "generator to trainer log-prob gap")
        )
    return facts


def _notes(run: RunData) -> list[str]:
    rows = [row for row in run.stages.get("rl", []) if row["step"]]
    found = [
        f"{note.text}; in {count} of {len(rows)} steps, last in step {note.step}"
        for note, count in worst(rows, exact=True)
    ]
    return [*run.summary.get("notes", ()), *found]


def _samples(run: RunData) -> list[dict[str, Any]]:
    """Telling samples of the newest and of the first stored step."""
    steps = run.sampled_steps()
    shown = [steps[-1]] + ([steps[0]] if len(steps) > 1 else []) if steps else []
    return [
        {"step": step, "cards": [_card(kind, row) for kind, row in telling(run.samples(step)).items()]}
        for step in shown
    ]


def _card(kind: str, row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "kind": kind,
        "row": row,
        "reason": reason(dict(row)),
        "tokens": coloured(dict(row)),
        "reference": ", ".join(f"{name} = {value}" for name, value in row["reference"].items()),
    }


def _recipe(run: RunData) -> str:
    """What differs from preset and defaults, as the recipe that repeats the run."""
    table = dict(run.settings)
    command = table.pop("command", "")
    if command not in COMMANDS:
        return ""
    try:
        return to_toml(from_dict(COMMANDS[command], table))
    except SeedthinkError:
        return ""  # settings of another version: the full table below still shows them


def _environment(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in environment.items():
        if name == "memory_bytes":
            rows.append(("memory", f"{value / 2**30:.1f} GiB"))
        elif isinstance(value, Mapping):
            rows.append((name, ", ".join(f"{key} {item}" for key, item in value.items())))
        else:
            rows.append((name, str(value)))
    return rows


def _points(value: float) -> str:
    return f"{100 * value:.1f}"


def _range(entry: Mapping[str, Any]) -> str:
    if entry.get("low") is None or entry.get("high") is None:
        return ""
    return f"{100 * entry['low']:.1f} to {100 * entry['high']:.1f}"


def _millions(count: float) -> str:
    return f"{count / 1e9:.2f}B" if count >= 1e9 else f"{count / 1e6:.2f}M" if count >= 1e5 else f"{count:,.0f}"
