"""What the commands that follow a recipe share: flags of their own, --dry-run, and the report at the end."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from seedthink.config import parse, to_toml

Config = TypeVar("Config")

COMMON = """Flags of the command itself:
  --dry-run      resolve the settings, count parameters and memory, and stop; needs no device
  -v, --verbose  more numbers per step, and information that otherwise goes to logs/ only"""


INTERRUPTED = 130  # the exit code of a command that Ctrl-C or SIGTERM stopped


class Switches(NamedTuple):
    """Flags that are no settings."""

    dry_run: bool
    verbose: bool


def split_switches(arguments: Sequence[str]) -> tuple[Switches, list[str]]:
    """Separate the command's own flags from those of the recipe."""
    own = {"--dry-run", "-v", "--verbose"}
    rest = [word for word in arguments if word not in own]
    return Switches("--dry-run" in arguments, bool({"-v", "--verbose"} & set(arguments))), rest


def resolve(cls: type[Config], command: str, examples: str, arguments: Sequence[str]) -> tuple[Config | None, Switches]:
    """Parse a recipe and its flags. With --dry-run the plan is printed and no configuration is returned."""
    switches, rest = split_switches(arguments)
    config = parse(cls, rest, command=f"{command} [RECIPE]", about=f"Examples:\n{examples}\n\n{COMMON}")
    if switches.dry_run:
        from seedthink.cli.estimate import in_words

        print(to_toml(config), end="")
        print("\n".join(["", *in_words(config)]))
        return None, switches
    return config, switches


def finish(run: Path, again: str, *, beside: Sequence[Path] = ()) -> int:
    """Write a run's report and say where things are; returns the exit code.

    A run without a summary was stopped before its end: `again` is the command that goes on with it.
    """
    from seedthink.report.page import write_report
    from seedthink.report.run_data import read_run

    data = read_run(run)
    after = data.summary.get("accuracy_after")
    if after and after.get("mean") is not None:
        before = data.summary.get("accuracy_before") or {}
        start = f"{100 * before['mean']:.1f} % -> " if before.get("mean") is not None else ""
        print(f"accuracy  {start}{100 * after['mean']:.1f} % ({100 * after['low']:.1f} to {100 * after['high']:.1f})")
    if data.summary.get("export"):
        print(f"model     {data.summary['export']}")
    print(f"report    {write_report(run, beside=beside)}")
    if data.sampled_steps():
        print(f"samples   seedthink samples {run}")
    if data.summary:
        return 0
    print(f"stopped   go on with: {again}")
    return INTERRUPTED


def going_on(command: str, arguments: Sequence[str], resume: str) -> str:
    """Write the command line that goes on with a run that these arguments began; `resume` is its run.resume."""
    words = list(arguments)
    for at in reversed(range(len(words))):
        if words[at] == "--run.resume":
            del words[at : at + 2]
        elif words[at].startswith("--run.resume="):
            del words[at]
    return shlex.join(["seedthink", command, *words, *([] if resume == "auto" else ["--run.resume", "auto"])])
