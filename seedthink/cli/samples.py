"""`seedthink samples`: read a run's samples in the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice

from seedthink.cli.arguments import Parser

EXAMPLES = """Examples:
  seedthink samples runs/quickstart                          the newest step
  seedthink samples runs/quickstart --step 40 --reward-below 0
  seedthink samples runs/quickstart --text "</think>" --family countdown --limit 3"""


def run(arguments: Sequence[str]) -> int:
    """Print the samples that pass the filters."""
    parser = Parser("seedthink samples", EXAMPLES)
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("--step", type=int, help="step to read (default: the newest; all with --text or --problem)")
    parser.add_argument("--reward-above", type=float, metavar="X", help="only rewards above X")
    parser.add_argument("--reward-below", type=float, metavar="X", help="only rewards below X")
    parser.add_argument("--family", default="", help="only this family")
    parser.add_argument("--verdict", default="", choices=["right", "wrong", "error", "timeout"])
    parser.add_argument("--finish", default="", choices=["stop", "length", "aborted"])
    parser.add_argument("--text", default="", help="only prompts or answers that contain this, in any case")
    parser.add_argument("--problem", default="", metavar="ID", help="only this problem, over all steps")
    parser.add_argument("--limit", type=int, default=8, metavar="N", help="at most N samples (8; 0 for all)")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    chosen = parser.parse_args(arguments)
    from seedthink.report.run_data import principal, read_run
    from seedthink.report.samples import Filter, plain
    from seedthink.report.samples import chosen as chosen_samples

    wanted = Filter(
        step=chosen.step,
        reward_above=chosen.reward_above,
        reward_below=chosen.reward_below,
        family=chosen.family,
        verdict=chosen.verdict,
        finish=chosen.finish,
        text=chosen.text,
        problem=chosen.problem,
    )
    found = chosen_samples(principal(read_run(chosen.run)), wanted)
    shown = 0
    for step, row in islice(found, chosen.limit or None):
        shown += 1
        print(json.dumps({"step": step, **row}, ensure_ascii=False) if chosen.json else plain(step, row))
    rest = sum(1 for _ in found)
    if not chosen.json:
        print(
            f"{shown} shown" + (f", {rest} more (--limit 0 shows all)" if rest else "")
            if shown
            else "none passes the filters"
        )
    return 0
