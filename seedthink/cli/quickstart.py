"""`seedthink quickstart`: a small reasoning model from nothing, in minutes."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from seedthink.cli.arguments import Parser

EXAMPLES = """Builds a small Qwen3-MoE, teaches it the format (sft), pretrains its critic, improves it by VAPO, and
evaluates it on held-out puzzles before and after. Running it again goes on where it stopped.

Examples:
  seedthink quickstart
  seedthink quickstart --compare                 GRPO and longer SFT beside it, for the same time
  seedthink quickstart --controller local --seed 1 --folder /tmp/runs"""


def run(arguments: Sequence[str]) -> int:
    """Run the pipeline, write the report, and say where things are."""
    parser = Parser("seedthink quickstart", EXAMPLES)
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="folder that holds run folders (runs)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--controller", choices=["ray", "local"], default="ray", help="worker processes, or this one")
    parser.add_argument("--compare", action="store_true", help="train GRPO and longer SFT for the same time too")
    parser.add_argument("--fresh", action="store_true", help="start over instead of going on")
    parser.add_argument("-v", "--verbose", action="store_true", help="more numbers per step")
    chosen = parser.parse_args(arguments)
    from seedthink.cli.recipe_command import finish
    from seedthink.controller.quickstart import run_quickstart

    trained, *others = run_quickstart(
        folder=chosen.folder,
        seed=chosen.seed,
        controller=chosen.controller,
        compare=chosen.compare,
        fresh=chosen.fresh,
        verbose=chosen.verbose,
    )
    again = shlex.join(["seedthink", "quickstart", *(word for word in arguments if word != "--fresh")])
    return finish(trained, again, beside=others)
