"""`seedthink generate` with a fake model."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from seedthink.cli.main import main
from seedthink.types import Completion, Finish


class FakeLLM:
    """Answers every prompt with its own text in capitals."""

    template: str | None = None
    asked: list[Any] = []  # noqa: RUF012

    def __init__(self, path: str, **settings: Any) -> None:
        self.tokenizer = SimpleNamespace(chat_template=self.template)

    def generate(self, prompts: list[Any], n: int, **sampling: Any) -> list[list[Completion]]:
        FakeLLM.asked = prompts
        none = np.zeros(1, np.int32)

        def answer(prompt: Any, index: int) -> Completion:
            text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
            return Completion(str(index), none, np.array([-0.5], np.float32), none, Finish.STOP, text.upper())

        return [[answer(prompt, index) for index in range(n)] for prompt in prompts]


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "seedthink.controller.llm", SimpleNamespace(LLM=FakeLLM))
    monkeypatch.setattr(FakeLLM, "template", None)


def generate(*arguments: str) -> int:
    return main(["generate", "--model.path", "m", *arguments])


def test_a_prompt_is_answered_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate("--request.prompt", "hello", "--request.samples", "2") == 0
    assert capsys.readouterr().out == "HELLO\n\nHELLO\n"


def test_a_prompt_can_come_from_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("from a pipe"))
    assert generate("--request.prompt", "-") == 0
    assert capsys.readouterr().out == "FROM A PIPE\n"


def test_a_file_of_prompts_becomes_a_file_of_answers(in_tmp: Path) -> None:
    (in_tmp / "in.jsonl").write_text('{"prompt": "a"}\n\n{"prompt": [{"role": "user", "content": "b"}]}\n')
    assert generate("--request.input", "in.jsonl", "--request.output", "out.jsonl") == 0
    rows = [json.loads(line) for line in (in_tmp / "out.jsonl").read_text().splitlines()]
    assert [(row["completion"], row["finish"], row["tokens"], row["logprob"]) for row in rows] == [
        ("A", "stop", 1, -0.5),
        ("B", "stop", 1, -0.5),
    ]


def test_a_model_with_a_chat_template_is_asked_in_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeLLM, "template", "{{ messages }}")
    assert generate("--request.prompt", "hi") == 0
    assert FakeLLM.asked == [[{"role": "user", "content": "hi"}]]
    assert generate("--request.prompt", "hi", "--request.chat", "off") == 0
    assert FakeLLM.asked == ["hi"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "give one of request.prompt"),
        (["--request.prompt", "a", "--request.input", "b"], "give one of request.prompt"),
        (["--request.input", "none.jsonl"], "cannot be read"),
        (["--request.prompt", "a", "--parallel.tp", "2"], "generate answers in one process, but [parallel] asks for 2"),
        (["--request.input", "bad.jsonl"], "bad.jsonl line 2 is not an object"),
    ],
)
def test_mistakes_are_told(arguments: list[str], told: str, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (in_tmp / "bad.jsonl").write_text('{"prompt": "a"}\n{"text": "b"}\n')
    assert generate(*arguments) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("output", ["file/answers.jsonl", "folder"])
def test_a_place_that_takes_no_answers_is_refused_before_they_are_made(
    in_tmp: Path, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (in_tmp / "file").write_text("")
    (in_tmp / "folder").mkdir()
    FakeLLM.asked = []
    assert generate("--request.prompt", "hello", "--request.output", output) == 1
    assert f"cannot write {output}" in capsys.readouterr().err and FakeLLM.asked == []
