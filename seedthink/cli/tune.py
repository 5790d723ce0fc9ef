"""`seedthink tune`: measure which launch settings are fastest on this machine, and write its table."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seedthink.cli.arguments import Parser
from seedthink.config.suggest import did_you_mean
from seedthink.errors import ConfigError

EXAMPLES = """Searches each operation for each load: prunes its configurations by a cost model, checks that they give
the bits of the built-in one, times them in turns, and adopts what is faster outside noise and by over 1 %.

Examples:
  seedthink tune                                     everything, for the quickstart's model
  seedthink tune --op linear --op experts --shape small-moe --dtype bfloat16
  seedthink tune --budget-seconds 60 --out my.json   what a minute is enough for

Measure on an otherwise idle machine. The table is used where `model.tuner` is "table" or "online"."""


def run(arguments: Sequence[str]) -> int:
    """Search, print one line a point, write the table; 1 when a configuration gave a wrong result."""
    parser = Parser("seedthink tune", EXAMPLES)
    parser.add_argument("--op", action="append", default=[], metavar="NAME", help="operation; several may be named")
    parser.add_argument("--shape", action="append", default=[], metavar="NAME", help="model shape (quickstart)")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="operands of products")
    parser.add_argument("--threads", type=int, default=0, help="0: the cores that this process may use")
    parser.add_argument("--budget-seconds", type=float, default=math.inf, help="stop after so many seconds")
    parser.add_argument("--out", type=Path, help="file to write instead of the device's own")
    chosen = parser.parse_args(arguments)
    if chosen.threads < 0 or not chosen.budget_seconds > 0:
        raise ConfigError("tune: --threads must be 0 or more and --budget-seconds above 0")

    import torch

    from seedthink.kernels.build import set_threads

    torch.set_num_threads(1)
    if chosen.threads:
        set_threads(chosen.threads)
    return _tune(chosen, shlex.join(["seedthink", "tune", *arguments]))


def _tune(chosen: Any, command: str) -> int:
    from seedthink.autotune import search, table
    from seedthink.autotune.device import identity, sources
    from seedthink.autotune.roofline import measure
    from seedthink.autotune.spaces import SHAPES, SPACES
    from seedthink.telemetry.environment import environment

    ops, shapes = _known("--op", chosen.op, SPACES), _known("--shape", chosen.shape or ["quickstart"], SHAPES)
    here, built_from, rates = identity(), sources(), measure(identity().threads)
    path = chosen.out or table.SHIPPED / f"{here.slug}.json"
    keys = [key for shape in shapes for key in search.points(SHAPES[shape], chosen.dtype, ops)]
    print(f"{here.device}, {here.threads} threads, {here.numerics}: {len(keys)} points -> {path}")
    entries, failed = [], False
    for found in search.search(keys, here.threads, rates, built_from, budget_seconds=chosen.budget_seconds):
        print(search.in_words(found), flush=True)
        failed |= found.entry is None or bool(found.note)
        entries += [found.entry] if found.entry is not None else []
    if len(entries) < len(keys) and not failed:
        print(f"the budget ended after {len(entries)} of {len(keys)} points; the rest stays as it was")
    old = table.read(path, here, built_from)
    facts = search.facts(rates, command, environment())
    table.write(path, table.Table(here.as_dict(), table.merged(old, entries), facts))
    adopted = sum(bool(entry.values) for entry in entries)
    print(f"{adopted} of {len(entries)} points are faster than built in; written to {path}")
    return int(failed)


def _known(option: str, names: Sequence[str], known: Any) -> list[str]:
    for name in names:
        if name not in known:
            raise ConfigError(
                f'tune: {option} "{name}" is unknown{did_you_mean(name, known)}; known: {", ".join(known)}'
            )
    return list(names or known)
