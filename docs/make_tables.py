"""Writes the tables of measured numbers into README.md from benchmarks/results: `python docs/make_tables.py`.

A table stands between `<!-- begin NAME -->` and `<!-- end -->`. A result that was not measured says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"<!-- begin (\w+) -->\n.*?<!-- end -->", re.DOTALL)
Rows = Sequence[Mapping[str, Any]]


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def per_cent(entry: Mapping[str, float] | None) -> str:
    """A mean with its interval."""
    return "not measured" if entry is None else f"{entry['mean']:.1f} % ({entry['low']:.1f} to {entry['high']:.1f})"


def quickstart(rows: Rows) -> str:
    """The quickstart's seeds, one column each."""
    lines: list[tuple[str, Callable[[Mapping[str, Any]], str]]] = [
        ("held-out accuracy before", lambda row: per_cent(row["before"])),
        ("**after**", lambda row: f"**{per_cent(row['after'])}**"),
        ("gain, points", lambda row: f"{row['gain']:+.1f}"),
        ("GRPO, same start and time", lambda row: per_cent(row["grpo"]) if "grpo" in row else "not measured"),
        (
            "SFT continued for the same time",
            lambda r: per_cent(r["longer_sft"]) if "longer_sft" in r else "not measured",
        ),
        ("other held-out problems", lambda row: per_cent(row["thinking_free"])),
        ("the same with an empty think block", lambda row: per_cent(row["thinking_empty"])),
        ("export sampled by transformers, another seed", lambda row: per_cent(row["by_transformers"])),
        ("the same problems by our generator", lambda row: per_cent(row["by_ours"])),
        ("critic's held-out explained variance", lambda row: f"{row['value_explained']:.2f}"),
        ("log-prob gap, generator to trainer", lambda row: f"{row['logp_gap_max']:g}"),
        ("wall time of the command", lambda row: f"{row['wall_seconds'] / 60:.1f} min"),
        ("peak memory, all processes (PSS)", lambda row: f"{row['peak_pss_gib']:.2f} GiB"),
    ]
    return table(["", *(f"seed {row['seed']}" for row in rows)], [[name, *map(shown, rows)] for name, shown in lines])


def generate(rows: Rows) -> str:
    """Generation against transformers."""
    return table(
        ["128 requests, 32 prompt tokens", "ours, tok/s", "transformers, tok/s", "ratio (worst pairing)"],
        [
            [
                f"{row['dtype']}, {'64 new tokens each' if row['lengths'] == 'uniform' else 'log-normal lengths'}",
                f"{row['ours_tokens_per_second']:,.0f}",
                f"{row['peer_tokens_per_second']:,.0f}",
                f"{row['ratio']:.1f} ({row['ratio_lowest']:.1f})",
            ]
            for row in rows
            if "lengths" in row
        ],
    )


def rl_step(rows: Rows) -> str:
    """One step of reinforcement learning against TRL."""
    sides = {row["side"]: row for row in rows if "side" in row}
    return table(
        ["128 rollouts x 64 tokens, one update", "ours, s", "TRL, s", "ratio (worst pairing)"],
        [
            [
                row["ours"].removeprefix("ours "),
                f"{sides[row['ours']]['median_seconds']:.2f}",
                f"{sides[row['peer']]['median_seconds']:.2f} ({row['peer'].removeprefix('TRL ')})",
                f"{row['ratio']:.1f} ({row['ratio_lowest']:.1f})",
            ]
            for row in rows
            if "peer" in row and "side" not in row
        ],
    )


def startup(rows: Rows) -> str:
    """Time to the first step, and of the steps after it."""
    return table(
        ["0.3 M parameters, 64 rollouts x 32 tokens", "process start to the end of step 1", "then, a step"],
        [[row["side"], f"{row['median_first']:.2f} s", f"{row['median_then']:.3f} s"] for row in rows if "side" in row],
    )


TABLES: Mapping[str, Callable[[Rows], str]] = {
    "quickstart": quickstart,
    "generate": generate,
    "rl_step": rl_step,
    "startup": startup,
}


def filled(text: str, results: Path) -> str:
    """`text` with every block's table made anew."""

    def block(found: re.Match[str]) -> str:
        name = found[1]
        path = results / f"{name}.json"
        made = TABLES[name](json.loads(path.read_text())["rows"]) if path.exists() else "Not measured."
        return f"<!-- begin {name} -->\n{made}\n<!-- end -->"

    return BLOCK.sub(block, text)


def main() -> None:
    """Rewrite README.md."""
    path = ROOT / "README.md"
    path.write_text(filled(path.read_text(encoding="utf-8"), ROOT / "benchmarks" / "results"), encoding="utf-8")


if __name__ == "__main__":
    main()
