"""`seedthink COMMAND ...`: finds the command's file and turns errors into messages and exit codes.

Nothing heavy is imported before the command is known: `seedthink --help` answers at once, without torch.
Exit codes: 0 done, 1 the run could not go on, 2 a mistake in settings, data or machine, 130 interrupted
(what was done is saved; the last line says how to go on).
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module

from seedthink import __version__
from seedthink.errors import RunError, SeedthinkError

# name -> what it does; the file of the same name holds `run(arguments) -> exit code`.
COMMANDS: dict[str, str] = {
    "quickstart": "build, train and evaluate a small reasoning model, from nothing, in minutes",
    "sft": "supervised fine-tuning on chains of thought",
    "rl": "reinforcement learning from verifiable rewards (VAPO, DAPO, PPO, GRPO ...)",
    "eval": "accuracy of a model on held-out problems, with intervals",
    "generate": "answers from a model",
    "tune": "measure the fastest launch settings of the kernels on this machine",
    "report": "write a run's report.html",
    "samples": "read a run's samples in the terminal, filtered",
    "compare": "several runs side by side",
    "bench": "time the kernels beside other libraries and this machine's ceilings",
    "doctor": "what this machine can do, what is missing, and how to mend it",
    "config": "show, check and explain settings; write a first recipe",
    "checkpoint": "list, verify and export a run's checkpoints",
}

EPILOG = """A first run:    seedthink quickstart
Your own model: seedthink config init rl > run.toml, then seedthink rl run.toml
Each command:   seedthink COMMAND --help shows examples"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if words[0] in ("--version", "-V"):
        print(f"seedthink {__version__}")
        return 0
    if words[0] not in COMMANDS:
        return _complain(f'there is no command "{words[0]}"{_nearest(words[0])}')
    warnings.formatwarning = lambda message, *_, **__: f"seedthink: {message}\n"  # without a line of our sources
    try:
        return int(import_module(f"seedthink.cli.{words[0]}").run(words[1:]))
    except RunError as error:
        return _complain(str(error), code=1)
    except SeedthinkError as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone (`| head`); nothing is left to say
        return 0


def overview() -> str:
    """Return what `seedthink --help` prints."""
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:{width}}  {text}" for name, text in COMMANDS.items())
    return f"seedthink {__version__}: post-training for reasoning models\n\nCommands:\n{listed}\n\n{EPILOG}"


def _nearest(word: str) -> str:
    from seedthink.config.suggest import did_you_mean

    return did_you_mean(word, COMMANDS) or "; `seedthink --help` lists them"


def _complain(message: str, code: int = 2) -> int:
    print(f"seedthink: {message}", file=sys.stderr)
    return code
