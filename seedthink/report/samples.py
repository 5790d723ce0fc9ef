"""Samples of a run: filtered, chosen to tell something, and shown with the reason of their reward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from seedthink.errors import DataError
from seedthink.report.run_data import Row, RunData


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which samples to show; the defaults show all of the newest step."""

    step: int | None = None
    reward_above: float | None = None
    reward_below: float | None = None
    family: str = ""
    verdict: str = ""
    finish: str = ""
    text: str = ""
    problem: str = ""

    def keeps(self, row: Row) -> bool:
        """Say whether a sample passes."""
        wanted = self.text.lower()
        return (
            (self.reward_above is None or row["reward"] > self.reward_above)
            and (self.reward_below is None or row["reward"] < self.reward_below)
            and self.family in ("", row["family"])
            and self.verdict in ("", row["verdict"])
            and self.finish in ("", row["finish"])
            and self.problem in ("", row["problem"])
            and (not wanted or wanted in row["prompt"].lower() or wanted in row["completion"].lower())
        )


def chosen(run: RunData, wanted: Filter) -> Iterator[tuple[int, Row]]:
    """Yield (step, sample) of every sample that passes. DataError names the stored steps where there are none."""
    steps = run.sampled_steps()
    if not steps:
        raise DataError(f"{run.path} holds no samples; `seedthink rl` stores them under rollouts/")
    if wanted.step is not None and wanted.step not in steps:
        raise DataError(f"step {wanted.step} of {run.path} has no samples; stored are {spans(steps)}")
    across = wanted.problem or wanted.text
    picked = [wanted.step] if wanted.step is not None else steps if across else steps[-1:]
    for step in picked:
        for row in run.samples(step):
            if wanted.keeps(row):
                yield step, row


def telling(rows: Iterable[Row]) -> dict[str, Row]:
    """Pick the best, median and worst sample by reward and a truncated one; samples with token credit come first."""
    known = list(rows)
    if not known:
        return {}
    detailed = [row for row in known if "pieces" in row] or known
    ranked = sorted(detailed, key=lambda row: (row["reward"], row.get("advantage", 0.0)))
    found = {"best": ranked[-1], "median": ranked[len(ranked) // 2], "worst": ranked[0]}
    cut = next((row for row in detailed if row["finish"] == "length" and row is not found["worst"]), None)
    return found | ({"truncated": cut} if cut else {})


def reason(row: Row) -> str:
    """Say why a sample has its reward: verdict, evidence, parts of the score, and what became of it."""
    words = [row["verdict"]]
    if row.get("evidence"):
        words.append(row["evidence"])
    parts = row.get("parts") or {}
    if parts:
        words.append(", ".join(f"{name} {value:g}" for name, value in parts.items()))
    if row["finish"] == "length":
        words.append(f"cut off after {row['response_tokens']} tokens")
    if not row["kept"]:
        words.append(f"left out of learning: {row['reason'] or 'no reason stored'}")
    return "; ".join(words)


def plain(step: int, row: Row, width: int = 88) -> str:
    """Write a sample as text for the terminal."""
    rule = "-" * width
    head = f"step {step}  {row['family']}  problem {row['problem']}  answer {row['index']}"
    numbers = f"reward {row['reward']:g}  advantage {row['advantage']:+.3f}  {row['response_tokens']} tokens"
    reference = ", ".join(f"{name} = {value}" for name, value in row["reference"].items())
    blocks = [
        rule,
        head,
        f"{numbers}  ({reason(row)})",
        "",
        row["prompt"].rstrip(),
        "",
        row["completion"].rstrip(),
        "",
        f"reference: {reference}",
    ]
    return "\n".join(blocks)


def spans(numbers: Sequence[int]) -> str:
    """Write ascending numbers as ranges: 1-4, 7, 9-10."""
    runs: list[list[int]] = []
    for value in numbers:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)


def coloured(row: Row) -> list[tuple[str, str, str]]:
    """Return (text, style, tooltip) per token: blue where the advantage is positive, orange where negative.

    Without token credit the whole completion is one plain piece. Strength is relative to the sample's largest
    advantage.
    """
    pieces, advantages = row.get("pieces"), row.get("advantages")
    if not pieces or not advantages or len(pieces) != len(advantages):
        return [(row["completion"], "", "")]
    largest = max(abs(value) for value in advantages) or 1.0
    tint: Callable[[float], str] = lambda value: (  # noqa: E731
        f"--t:{min(1.0, abs(value) / largest) * 62:.0f}%;--c:var(--{'plus' if value > 0 else 'minus'})"
    )
    return [
        (piece, tint(value) if value else "", f"advantage {value:+.3g}")
        for piece, value in zip(pieces, advantages, strict=True)
    ]


def as_table(rows: Iterable[tuple[int, Row]]) -> list[Mapping[str, Any]]:
    """Return samples as flat records for --json."""
    return [{"step": step, **row} for step, row in rows]
