"""Which charts a run gets: each looks at a few metrics and is left out where the run has none of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from seedthink.report.metric_table import entry
from seedthink.report.run_data import Row, RunData
from seedthink.report.svg import (
    Point,
    Series,
    interval_chart,
    line_chart,
    number,
    percent,
    smooth,
    stacked_bars,
    thin,
)

SMOOTH_ABOVE = 40  # points from which a line is drawn as its moving mean, with the raw line behind
MOST_BARS = 60


@dataclass(frozen=True, slots=True)
class Chart:
    """A finished drawing with its words. `names` and `tips` are the metrics in it and what they mean."""

    title: str
    drawing: str
    names: tuple[str, ...]
    tip: str
    healthy: str
    legend: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """A chart to try: metrics of one quantity over the run's steps."""

    title: str
    metrics: tuple[str, ...]
    labels: tuple[str, ...] = ("",)
    shown: Callable[[float], str] = number
    bounds: tuple[float | None, float | None] = (None, None)
    with_value_stage: bool = False


PLANS: tuple[Plan, ...] = (
    Plan("Training score", ("critic/score/mean",), bounds=(0, None), shown=number),
    Plan("Training loss", ("train/loss",), bounds=(0, None)),
    Plan(
        "Answer length",
        ("response_length/mean", "response_length/max"),
        ("mean", "longest"),
        bounds=(0, None),
    ),
    Plan("Truncated answers", ("response_length/clip_ratio",), shown=percent, bounds=(0, None)),
    Plan("Entropy", ("actor/entropy",), bounds=(0, None)),
    Plan(
        "Value explained variance",
        ("critic/vf_explained_var", "critic/vf_explained_var_held_out"),
        ("of each batch", "held-out"),
        bounds=(None, 1),
        with_value_stage=True,
    ),
    Plan("Log-prob gap, generator to trainer", ("rollout/logp_gap_max",), bounds=(0, None)),
    Plan(
        "Clip fraction",
        ("actor/pg_clipfrac", "actor/pg_clipfrac_lower"),
        ("clipped", "dual clip"),
        shown=percent,
        bounds=(0, None),
    ),
    Plan("Policy step, KL", ("actor/ppo_kl",)),
    Plan("Critic loss", ("critic/vf_loss",), bounds=(0, None), with_value_stage=True),
    Plan(
        "Groups that teach nothing",
        ("rollout/groups_all_right", "rollout/groups_all_wrong"),
        ("all right", "all wrong"),
        shown=percent,
        bounds=(0, 1),
    ),
    Plan("Gradient norm", ("actor/grad_norm", "critic/grad_norm"), ("policy", "critic"), bounds=(0, None)),
    Plan("Generated tokens per second", ("perf/throughput",), bounds=(0, None)),
)


def curves(run: RunData) -> list[Chart]:
    """Return the run's charts: accuracy first, then the plans that have data."""
    found = [chart for chart in (accuracy_chart(run), *(planned(plan, run) for plan in PLANS)) if chart]
    for part in run.parts:
        if part.command == "sft" and run.main_stage != "sft" and part.series("train/loss"):
            chart = planned(PLANS[1], part)
            found += [chart] if chart else []
    return found


def planned(plan: Plan, run: RunData) -> Chart | None:
    """Draw one plan; None where the run has none of its metrics."""
    series: list[Series] = []
    legend: list[tuple[str, str]] = []
    value_steps = len(run.stages.get("value", [])) if plan.with_value_stage and run.main_stage == "rl" else 0
    for index, (metric, label) in enumerate(zip(plan.metrics, plan.labels, strict=True), start=1):
        points: list[Point] = run.series(metric)
        if value_steps:
            points = [(step - value_steps, value) for step, value in run.series(metric, "value")] + points
        if not points:
            continue
        css = f"c{index}"
        series += lines(label or plan.title, points, css)
        legend.append((css, label))
    if not series:
        return None
    names = tuple(metric for metric in plan.metrics if run.series(metric) or run.series(metric, "value"))
    known = entry(names[0])
    drawing = line_chart(series, shown=plan.shown, bounds=plan.bounds, mark=0.5 if value_steps else None)
    words = (known.meaning, known.healthy) if known else ("", "")
    return Chart(plan.title, drawing, names, *words, legend=tuple(legend) if len(legend) > 1 else ())


def lines(label: str, points: Sequence[Point], css: str) -> list[Series]:
    """Return a line, or for a long noisy one its moving mean with the raw line behind it."""
    if len(points) <= SMOOTH_ABOVE:
        return [Series(label, points, css)]
    return [
        Series(label, thin(smooth(points, max(5, len(points) // 20))), css),
        Series(label, thin(points), css, faint=True),
    ]


def accuracy_chart(run: RunData) -> Chart | None:
    """Draw held-out accuracy with interval bars, all families and each, over the steps of the main stage."""
    families = run.families()
    shown = ["all"] if len(families) <= 1 else ["all", *families]
    series: list[Series] = []
    legend: list[tuple[str, str]] = []
    for index, family in enumerate(shown[:6], start=1):
        found = [each for each in run.accuracies(family) if each[0]["stage"] == run.main_stage]
        if not found:
            continue
        points = [(float(row["step"]), mean) for row, mean, _, _ in found]
        bars = [(low, high) for _, _, low, high in found]
        series.append(Series(family, points, f"c{index}", bars=bars, dots=True))
        legend.append((f"c{index}", family))
    if not series:
        return None
    known = entry("val-core/all/acc/mean@1")
    assert known is not None
    drawing = line_chart(series, shown=percent, bounds=(0, 1))
    named = ("val-core/*/acc/mean@k",)
    title = "Held-out accuracy, 95 % intervals"
    return Chart(title, drawing, named, known.meaning, known.healthy, tuple(legend) if len(legend) > 1 else ())


def headline_chart(run: RunData) -> str:
    """Draw accuracy before and after, for all problems and per family; "" where there is none."""
    before, after = run.summary.get("accuracy_before") or {}, run.summary.get("accuracy_after") or {}
    if not after:
        return ""
    rows = [("all problems", _interval(before), _interval(after))]
    families = after.get("families", {})
    if len(families) > 1:
        rows += [
            (name, _interval(before.get("families", {}).get(name)), _interval(families[name])) for name in families
        ]
    return interval_chart(rows)


def timing_chart(run: RunData) -> tuple[str, list[tuple[str, str, float, float]]]:
    """Draw the seconds of each stage per step; also return (css, stage, seconds, share) in all, largest first."""
    rows = run.stages.get(run.main_stage, [])
    totals: dict[str, float] = {}
    for row in rows:
        for name, value in row.items():
            if name.startswith("timing_s/") and name != "timing_s/step" and isinstance(value, int | float):
                totals[name.removeprefix("timing_s/")] = totals.get(name.removeprefix("timing_s/"), 0.0) + value
    names = sorted((name for name in totals if totals[name] > 0), key=lambda name: -totals[name])[:8]
    if not names:
        return "", []
    whole = sum(totals.values())
    table = [(f"c{at}", name, totals[name], totals[name] / whole) for at, name in enumerate(names, start=1)]
    return stacked_bars(names, _binned(rows, names)), table


def _binned(rows: Sequence[Row], names: Sequence[str]) -> list[tuple[float, list[float]]]:
    """Mean seconds per stage over neighbouring steps, at most MOST_BARS bars."""
    timed = [row for row in rows if any(f"timing_s/{name}" in row for name in names)]
    bins = min(MOST_BARS, len(timed))
    edges = [round(at * len(timed) / bins) for at in range(bins + 1)]
    out = []
    for a, b in pairwise(edges):
        cut = timed[a:b]
        means = [sum(row.get(f"timing_s/{name}") or 0.0 for row in cut) / len(cut) for name in names]
        out.append((float(cut[-1]["step"]), means))
    return out


def _interval(entry_: dict | None) -> tuple[float, float, float] | None:
    if not entry_ or entry_.get("mean") is None:
        return None
    mean = entry_["mean"]
    low, high = entry_.get("low"), entry_.get("high")
    return mean, mean if low is None else low, mean if high is None else high
