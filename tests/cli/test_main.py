"""The command line as a user meets it: help, mistakes, exit codes."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from seedthink import __version__
from seedthink.cli.main import COMMANDS, main
from seedthink.errors import DataError, RunError


def test_help_lists_every_command_with_a_phrase(capsys: pytest.CaptureFixture[str], root: Path) -> None:
    assert main([]) == main(["--help"]) == 0
    text = capsys.readouterr().out
    for command in COMMANDS:
        assert f"  {command} " in text and (root / "seedthink" / "cli" / f"{command}.py").exists()


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"seedthink {__version__}\n"


@pytest.mark.parametrize("command", list(COMMANDS))
def test_help_of_every_command_shows_three_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert text.count(f"seedthink {command}") >= 4  # usage and three examples


def test_a_mistyped_command_is_told_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reprot"]) == 2
    assert capsys.readouterr().err == 'seedthink: there is no command "reprot"; did you mean report?\n'


def test_a_warning_is_one_line_without_our_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    main(["config", "explain", "run.steps"])
    shown = warnings.formatwarning("checkpoint passed over: a", RuntimeWarning, "store.py", 7, "latest()")
    assert shown == "seedthink: checkpoint passed over: a\n"


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (DataError("a.jsonl line 3 is not JSON"), 2, "seedthink: a.jsonl line 3 is not JSON\n"),
        (RunError("worker 1 died 3 times"), 1, "seedthink: worker 1 died 3 times\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted\n"),
    ],
)
def test_errors_become_a_message_and_an_exit_code(
    raised: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(arguments: list[str]) -> int:
        raise raised

    monkeypatch.setitem(sys.modules, "seedthink.cli.doctor", SimpleNamespace(run=run))
    assert main(["doctor"]) == code
    assert capsys.readouterr().err == said


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(arguments: list[str]) -> int:
        raise ZeroDivisionError

    monkeypatch.setitem(sys.modules, "seedthink.cli.doctor", SimpleNamespace(run=run))
    with pytest.raises(ZeroDivisionError):
        main(["doctor"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["report", "runs/a", "--besides", "runs/b"], "did you mean --beside?"),
        (["samples", "runs/a", "--rewrd-below=0"], "did you mean --reward-below?"),
        (["samples", "runs/a", "--verdict", "rihgt"], "did you mean right?"),
        (["checkpoint", "veryfy", "runs/a"], "did you mean verify?"),
        (["quickstart", "--sed", "1"], "did you mean --seed?"),
        (["doctor", "--jsn"], "did you mean --json?"),
    ],
)
def test_a_mistyped_option_is_told_the_nearest(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"seedthink: {words[0]}: ") and says in told
