"""Writes the tables of measured numbers into the pages from benchmarks/results: `python docs/make_tables.py`.

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


def kernels(rows: Rows) -> str:
    """Our kernels on one device: the largest shape of each operation and dtype, beside the peers of the same run."""
    largest = {
        (row["op"], row["dtype"], row["shape"].get("masked"), row["shape"].get("block")): row
        for row in rows
        if row["ours"]
    }
    return table(
        ["operation", "shape", "dtype", "time (p20 to p80)", "of ceiling", "peers take"],
        [
            [
                row["op"],
                " ".join(f"{name}={size}" for name, size in row["shape"].items()),
                row["dtype"],
                "{} ({} to {})".format(*(duration(row["seconds"][name]) for name in ("median", "p20", "p80")))
                if row["seconds"]
                else row["status"],
                f"{100 * row['of_ceiling']:.0f} %" if row["of_ceiling"] else "",
                ", ".join(f"{peer} {ratio['median']:.3g}x" for peer, ratio in (row["ratios"] or {}).items()),
            ]
            for row in largest.values()
        ],
    )


def gpu(rows: Rows) -> str:
    """Our CUDA and Triton kernels on one GPU, beside what each should reach and the peers."""

    def fraction(row: Mapping[str, Any]) -> str:
        if "of_matmul" in row:
            return f"{row['tflop_per_s']:.0f} TFLOP/s, {row['of_matmul']:.0%} of matmul"
        return f"{row['of_copy']:.0%} of copy" if "of_copy" in row else ""

    def time(row: Mapping[str, Any]) -> str:
        if "us" not in row:
            return f"{row['status']}: {row.get('reason', '')}"
        return f"{min(row['us'], row.get('graph_us', row['us'])):.1f} us"

    return table(
        ["operation", "shape", "kernel", "time", "of ceiling", "to reach", "peers take"],
        [
            [
                *(row[name] for name in ("op", "shape", "impl")),
                time(row),
                fraction(row),
                row["reach"],
                ", ".join(f"{peer} {ratio:.3g}x" for peer, ratio in row.get("ratios", {}).items()),
            ]
            for row in rows
            if not row.get("peer")
        ],
    )


def duration(seconds: float) -> str:
    """Seconds in a unit that fits."""
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"


TABLES: Mapping[str, Callable[[Rows], str]] = {
    "quickstart": quickstart,
    "generate": generate,
    "rl_step": rl_step,
    "startup": startup,
    "kernels": kernels,
    "gpu": gpu,
}
PAGES = ("README.md", "docs/kernels.md", "docs/gpu-kernels.md")


def made(name: str, results: Path) -> str:
    """The table of one results file, or of each device in a folder of them."""
    if (results / name).is_dir():
        found = [json.loads(path.read_text()) for path in sorted((results / name).glob("*.json"))]
        return "\n\n".join(f"**{heading(each)}**\n\n{TABLES[name](each['rows'])}" for each in found)
    if name == "gpu":
        each_device = [json.loads(path.read_text()) for path in sorted(results.glob("gpu_*.json"))]
        return "\n\n".join(f"**{gpu_heading(found)}**\n\n{gpu(found['rows'])}" for found in each_device)
    path = results / f"{name}.json"
    return TABLES[name](json.loads(path.read_text())["rows"]) if path.exists() else "Not measured."


def gpu_heading(found: Mapping[str, Any]) -> str:
    """What a GPU's numbers were taken on, and its ceilings."""
    environment = found["environment"]
    ceilings = environment["ceilings"]
    words = [environment["device"], f"torch {environment['torch']}", f"Triton {environment['triton']}"]
    words += [f"copy {ceilings['copy'] / 1e9:.0f} GB/s", f"bf16 matmul {ceilings['matmul'] / 1e12:.0f} TFLOP/s"]
    return ", ".join([*words, environment["date"][:10]])


def heading(found: Mapping[str, Any]) -> str:
    """What a device's numbers were taken on, and how much other processes used meanwhile."""
    environment = found["environment"]
    words = [environment["device"], environment["device_class"], f"{environment['threads']} threads"]
    words += [f"torch {environment['packages']['torch']}", environment["date"]]
    busiest = max((row["cores_used_elsewhere"] or 0.0 for row in found["rows"]), default=0.0)
    return ", ".join([*words, f"other processes used up to {busiest:.1f} cores"])


def filled(text: str, results: Path) -> str:
    """`text` with every block's table made anew."""
    return BLOCK.sub(lambda found: f"<!-- begin {found[1]} -->\n{made(found[1], results)}\n<!-- end -->", text)


def main() -> None:
    """Rewrite the pages."""
    for page in PAGES:
        path = ROOT / page
        path.write_text(filled(path.read_text(encoding="utf-8"), ROOT / "benchmarks" / "results"), encoding="utf-8")


if __name__ == "__main__":
    main()
