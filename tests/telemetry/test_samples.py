"""Rows of rollouts."""

from __future__ import annotations

import json

import numpy as np

from seedthink.telemetry.samples import rows, telling
from seedthink.types import Completion, Credited, Finish, Judgement, Prompt, Rollout, Scored, Valued, Verdict

LETTERS = "abcdefgh"


def decode(tokens: object) -> str:
    return "".join(LETTERS[token] for token in tokens)  # type: ignore[attr-defined]


def credited(name: str, reward: float, tokens: list[int], finish: Finish = Finish.STOP) -> Credited:
    prompt = Prompt("p1", "countdown", "make 24", np.array([1, 2], np.int32), {"target": 24})
    ids = np.array(tokens, np.int32)
    logprob = np.full(len(tokens), -0.5, np.float32)
    completion = Completion(name, ids, logprob, np.zeros(len(tokens), np.int32), finish, decode(tokens))
    judgement = Judgement(Verdict.RIGHT if reward else Verdict.WRONG, reward, {"answer": reward}, "8*3=24")
    scored = Scored(Rollout(prompt, completion, "g1", 0), judgement, reward)
    nothing = np.zeros(0, np.float32)
    advantage = np.linspace(-1, 1, len(tokens), dtype=np.float32)
    return Credited(Valued(scored, nothing, nothing, nothing), advantage, advantage, True)


def test_a_row_says_what_was_asked_answered_judged_and_credited() -> None:
    (row,) = rows([credited("r1", 1.0, [0, 1, 2])], decode, gaps={"r1": 0.25})
    assert json.loads(json.dumps(row)) == row
    assert (row["prompt"], row["completion"], row["reference"]) == ("make 24", "abc", {"target": 24})
    assert (row["verdict"], row["evidence"], row["reward"], row["logp_gap"]) == ("right", "8*3=24", 1.0, 0.25)
    assert row["pieces"] == ["a", "b", "c"] and row["advantages"] == [-1.0, 0.0, 1.0]
    assert (row["response_tokens"], row["prompt_tokens"], row["finish"]) == (3, 2, "stop")


def test_only_telling_rows_and_truncated_ones_carry_every_token() -> None:
    items = [credited(f"r{n}", n / 30, [0]) for n in range(30)]
    items[15] = credited("cut", 15 / 30, [0], Finish.LENGTH)
    detailed = [row["id"] for row in rows(items, decode, detailed=3) if "pieces" in row]
    assert detailed == ["r0", "r14", "cut", "r29"]


def test_where_every_answer_is_truncated_most_rows_stay_short() -> None:
    items = [credited(f"r{n}", n / 30, [0], Finish.LENGTH) for n in range(30)]
    assert sum("pieces" in row for row in rows(items, decode, detailed=3)) == 6


def test_telling_rows_are_best_worst_and_middle() -> None:
    assert telling([5.0, 1.0, 3.0, 2.0, 4.0], 3) == {0, 1, 2}
    assert telling([1.0, 2.0], 8) == {0, 1}
