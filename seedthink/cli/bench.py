"""`seedthink bench`: measure the kernels, list what can be measured, and compare two measurements."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from seedthink.cli.arguments import Parser

if TYPE_CHECKING:
    from seedthink.bench.case import Case
    from seedthink.bench.rows import Row
    from seedthink.bench.run import Settings

EXAMPLES = """Examples:
  seedthink bench kernels --op gae,route --shapes qwen3-30b-a3b
  seedthink bench kernels --shapes quickstart --quick
  seedthink bench kernels --op fp8 --impl cpu,eager,compile --json fp8.json --plot fp8.svg
  seedthink bench kernels --shapes mine.toml --json after.json && seedthink bench compare before.json after.json
  seedthink bench list"""

KERNELS = """Times every implementation in turns with its peers and with this machine's copy and matmul rates.
An implementation is first held against float64 on random data; one that fails shows FAIL in place of a time.

Examples:
  seedthink bench kernels --op gae --shapes qwen3-30b-a3b
  seedthink bench kernels --op linear --at M=64,K=2048,N=4096 --dtype bfloat16 --impl cpu,eager
  seedthink bench kernels --shapes all --json all.json --plot all.svg

Exit code 1: one of our kernels failed its check."""


def run(arguments: Sequence[str]) -> int:
    """Dispatch to kernels, list or compare."""
    parser = Parser("seedthink bench", EXAMPLES)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="kernels|list|compare")
    _kernel_options(verbs.add_parser("kernels", description=KERNELS, help="measure"))
    verbs.add_parser("list", help="operations, presets and peers")
    sub = verbs.add_parser("compare", help="exit code 1 where B is slower than A by more than noise")
    sub.add_argument("before", metavar="A.json")
    sub.add_argument("after", metavar="B.json")
    chosen = parser.parse_args(arguments)
    return {"kernels": _kernels, "list": _list, "compare": _compare}[chosen.verb](chosen)


def _kernel_options(sub: Parser) -> None:
    sub.add_argument("--op", default="", metavar="A,B", help="operations or families (seedthink bench list); all")
    sub.add_argument("--shapes", default="qwen3-30b-a3b", metavar="NAME", help="presets A,B, all, or a .toml file")
    sub.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    sub.add_argument("--impl", default="", metavar="A,B", help="implementations: cpu, cuda, eager, compile ...")
    sub.add_argument("--dtype", default="", metavar="A,B", help="only these dtypes")
    sub.add_argument("--at", default="", metavar="T=256,...", help="only this shape, as a row's command gives it")
    sub.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: the usable cores)")
    sub.add_argument("--repeats", type=int, default=15, metavar="N", help="turns (15)")
    sub.add_argument("--patience", type=int, default=1, metavar="N", help="retries of a case that others disturbed (1)")
    sub.add_argument("--json", type=Path, metavar="FILE", help="write the rows with the environment")
    sub.add_argument("--plot", type=Path, metavar="FILE", help="write an SVG: roofline and ratios to the peers")
    sub.add_argument("--quick", action="store_true", help="three turns, the first amount of work, nothing compiled")


def _kernels(chosen: Namespace) -> int:
    from seedthink.bench.memory import freed_memory_kept
    from seedthink.bench.plots import drawing
    from seedthink.bench.rows import save
    from seedthink.bench.run import measured, surroundings
    from seedthink.bench.table import show
    from seedthink.errors import ConfigError

    settings, cases = _settings(chosen), list(_cases(chosen))
    found: list[Row] = []
    with freed_memory_kept() as kept:
        environment = surroundings(settings) | {"freed_memory_kept": kept}
        for at, (preset, case) in enumerate(cases):
            print(f"[{at + 1}/{len(cases)}] {preset} {case.op} {case.place} {case.dtype}", file=sys.stderr, flush=True)
            found += measured(case, preset, settings)
            if chosen.json:  # after every case, so that an interruption loses little
                save(chosen.json, found, environment)
    if not found:
        raise ConfigError(f"--impl: no case that was chosen has an implementation {chosen.impl}")
    show(found)
    if chosen.plot:
        chosen.plot.parent.mkdir(parents=True, exist_ok=True)
        chosen.plot.write_text(drawing(found), encoding="utf-8")
    return int(any(row.ours and row.status == "FAIL" for row in found))


def _settings(chosen: Namespace) -> Settings:
    import os

    import torch

    from seedthink.bench.run import Settings
    from seedthink.errors import ConfigError, DeviceError
    from seedthink.kernels.build import set_threads

    if chosen.device == "cuda" and not torch.cuda.is_available():
        raise DeviceError("--device cuda: torch sees no CUDA device; `seedthink doctor` says why")
    for name in ("threads", "repeats"):
        if getattr(chosen, name) is not None and getattr(chosen, name) < 1:
            raise ConfigError(f"--{name}: {getattr(chosen, name)} is not at least 1")
    threads = chosen.threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    set_threads(threads)
    return Settings(
        device=torch.device(chosen.device),
        threads=threads,
        repeats=3 if chosen.quick else chosen.repeats,
        side_seconds=0.5 if chosen.quick else 4.0,
        patience=0 if chosen.quick else chosen.patience,
        implementations=tuple(_words(chosen.impl)),
        compiled=not chosen.quick,
        shapes_file=chosen.shapes if chosen.shapes.endswith(".toml") else "",
    )


def _cases(chosen: Namespace) -> Iterator[tuple[str, Case]]:
    """Yield (preset, case) of everything that was asked for."""
    from seedthink.bench.cases import cases, chosen_ops
    from seedthink.bench.presets import chosen_shapes, only_first
    from seedthink.errors import ConfigError

    ops, dtypes, empty = chosen_ops(_words(chosen.op)), _words(chosen.dtype), True
    for shapes in chosen_shapes(chosen.shapes):
        for case in cases(ops, only_first(shapes) if chosen.quick else shapes, chosen.device):
            if (not dtypes or case.dtype in dtypes) and chosen.at in ("", case.place):
                empty = False
                yield shapes.name, case
    if empty:
        raise ConfigError(
            "nothing to measure: no case fits --op, --shapes, --at and --dtype; `seedthink bench list` shows all"
        )


def _list(chosen: Namespace) -> int:
    from seedthink.bench.cases import OPS
    from seedthink.bench.presets import presets
    from seedthink.telemetry.environment import versions

    width = max(map(len, OPS))
    print("Operations (--op; a family's name stands for all of it):")
    print("\n".join(f"  {op:{width}}  {family:9}  {text}" for op, (family, text) in OPS.items()))
    print("\nPresets (--shapes):")
    print("\n".join(f"  {shapes.name:{width}}  {shapes.source}" for shapes in presets().values()))
    found = versions(("torch", "transformers", "torchrl", "torchao"))
    print(
        "\nPeers:",
        ", ".join(
            f"{name} {found.get(name, 'not installed')}" for name in ("torch", "transformers", "torchrl", "torchao")
        ),
    )
    return 0


def _compare(chosen: Namespace) -> int:
    from seedthink.bench.compare import REGRESSIONS, differences
    from seedthink.bench.rows import load

    (before, _), (after, _) = load(Path(chosen.before)), load(Path(chosen.after))
    found = differences(before, after)
    print("\n".join(map(str, found)))
    worse = sum(each.verdict in REGRESSIONS for each in found)
    print(f"{len(found)} rows, {worse} worse")
    return int(worse > 0)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
