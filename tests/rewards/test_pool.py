"""Judging in killable processes: hangs, exits and crashes cost one verdict each and leave nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from samples import rollout

from seedthink.errors import ConfigError, RunError
from seedthink.rewards.inline import InlineJudge
from seedthink.rewards.pool import JudgePool
from seedthink.types import Judgement, Rollout, Verdict

OBEYS = {"*": "reward_functions:obeys"}


def judge_all(pool: JudgePool, rollouts: list[Rollout]) -> dict[int, Judgement]:
    """Judgements by the rollout's index; fails when they take over two minutes."""
    pool.submit(rollouts)
    found: dict[int, Judgement] = {}
    until = time.monotonic() + 120
    while len(found) < len(rollouts) and time.monotonic() < until:
        for judged, judgement in pool.collect(5.0):
            assert judged.index not in found
            found[judged.index] = judgement
    assert len(found) == len(rollouts)
    return found


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int) -> bool:
    """Whether the process ends within ten seconds."""
    until = time.monotonic() + 10
    while is_running(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return not is_running(pid)


def test_a_pool_gives_the_judgements_of_the_inline_judge() -> None:
    answers = ["a </think> (3+4)*2", "a </think> 3+4+2", "(3+4)*2", "a </think> \u0663"]
    rollouts = [
        rollout(answers[i % 4], "countdown", i, numbers=[3, 4, 2], target=14, think="open") for i in range(300)
    ] + [rollout("2", "math", 300, answer="\\sqrt{4}")]
    inline = InlineJudge()
    inline.submit(rollouts)
    expected = {judged.index: judgement for judged, judgement in inline.collect()}
    with JudgePool(workers=2) as pool:
        found = judge_all(pool, rollouts)
        assert pool.pending == 0
        assert pool.collect(5.0) == []
    for index, judgement in found.items():
        assert (judgement.verdict, judgement.score, judgement.parts, judgement.evidence) == (
            expected[index].verdict,
            expected[index].score,
            expected[index].parts,
            expected[index].evidence,
        )
    assert Counter(j.verdict for j in found.values()) == {Verdict.RIGHT: 76, Verdict.WRONG: 225}


def test_a_verifier_that_never_ends_is_a_timeout_and_the_pool_goes_on() -> None:
    with JudgePool(OBEYS, workers=1, seconds_per_item=0.5) as pool:
        first = pool.process_ids
        found = judge_all(pool, [rollout("hang" if i in (3, 7) else "fine", index=i) for i in range(12)])
        assert pool.restarts == 2
        assert gone(first[0])
    assert [i for i, judgement in sorted(found.items()) if judgement.verdict is Verdict.TIMEOUT] == [3, 7]
    assert sum(judgement.verdict is Verdict.RIGHT for judgement in found.values()) == 10
    assert "killed after" in found[3].evidence
    assert found[3].score != found[3].score, "a timeout has no score"


def test_a_verifier_that_ends_or_breaks_its_process_is_an_error_and_the_pool_goes_on() -> None:
    texts = ["fine", "exit", "fine", "crash", "fine", "eat", "fine"]
    with JudgePool(OBEYS, workers=2) as pool:
        found = judge_all(pool, [rollout(text, index=i) for i, text in enumerate(texts)])
    assert [found[i].verdict.value for i in range(7)] == ["right", "error"] * 3 + ["right"]
    assert "exit status 3" in found[1].evidence
    assert "SIGABRT" in found[3].evidence
    assert "MemoryError" in found[5].evidence


def test_a_timeout_kills_what_the_verifier_started_too(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    with JudgePool(OBEYS, seconds_per_item=2.0) as pool:
        found = judge_all(pool, [rollout(f"child {note}")])
    assert found[0].verdict is Verdict.TIMEOUT
    assert gone(int(note.read_text()))


def test_close_leaves_no_process_even_in_the_middle_of_work() -> None:
    pool = JudgePool(OBEYS, workers=2)
    pool.submit([rollout("hang", index=i) for i in range(8)])
    pool.collect(0.3)
    ids = pool.process_ids
    pool.close()
    pool.close()
    assert len(ids) == 2
    assert all(gone(pid) for pid in ids)


def test_workers_end_soon_after_a_parent_that_was_killed_even_inside_an_item() -> None:
    code = (
        "import os, sys, time\n"
        f"sys.path[:0] = {sys.path!r}\n"
        "from samples import rollout\nfrom seedthink.rewards.pool import JudgePool\n"
        "pool = JudgePool({'*': 'reward_functions:obeys'}, workers=2, seconds_per_item=0.5)\n"
        "pool.submit([rollout('fine', index=0)])\nassert pool.collect(30)\n"
        "pool.submit([rollout('hang', index=1)])\n"
        "print(*pool.process_ids, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=60)
    ids = [int(word) for word in ended.stdout.split()]
    assert len(ids) == 2
    assert all(gone(pid) for pid in ids)


def test_a_forgotten_pool_leaves_no_process() -> None:
    pool = JudgePool(workers=1)
    ids = pool.process_ids
    del pool
    assert all(gone(pid) for pid in ids)


def test_a_reward_may_print_and_read_stdin() -> None:
    with JudgePool({"*": "reward_functions:chatty"}) as pool:
        assert judge_all(pool, [rollout("x")])[0].verdict is Verdict.RIGHT


def test_texts_longer_than_a_pipe_pass() -> None:
    with JudgePool({"*": "exact"}) as pool:
        rollouts = [rollout("x" * 300_000, index=i, answer="x" * 300_000) for i in range(6)]
        assert {judgement.verdict for judgement in judge_all(pool, rollouts).values()} == {Verdict.RIGHT}


def test_collect_returns_what_is_done_while_a_slow_item_runs() -> None:
    with JudgePool(OBEYS, workers=2, seconds_per_item=30.0) as pool:
        pool.submit([rollout("hang", index=0)])
        pool.submit([rollout("fine", index=1)])
        (done,) = pool.collect(20.0)
        assert done[0].index == 1
        assert pool.pending == 1


def test_a_reward_that_does_not_import_is_a_config_error_at_once() -> None:
    with JudgePool({"*": "no_such_module:f"}) as pool:
        pool.submit([rollout("x")])
        with pytest.raises(ConfigError, match="'no_such_module:f' cannot be imported"):
            pool.collect(30.0)


def test_judging_that_mostly_fails_ends_the_run() -> None:
    with JudgePool({"*": "reward_functions:raises"}, workers=1) as pool:
        pool.submit([rollout("x", index=i) for i in range(64)])
        with pytest.raises(RunError, match=r"could not be judged .* LookupError"):
            for _ in range(200):
                pool.collect(1.0)


def test_workers_run_without_torch_and_find_the_callers_modules() -> None:
    assert "reward_functions" not in os.environ.get("PYTHONPATH", "")
    with JudgePool({"*": "reward_functions:modules"}) as pool:
        judgement = judge_all(pool, [rollout("x")])[0]
    assert judgement.evidence == "[]"


def test_verifiers_are_loaded_before_the_first_answer_and_only_once() -> None:
    with JudgePool({"*": "reward_functions:length"}) as pool:
        pool.load(["math", "puzzles"])
        assert pool.pending == 0 and not pool.collect(0.0)
        pool.load(["math"])
        assert judge_all(pool, [rollout("x" * 10)])[0].score == 1.0
        assert pool.restarts == 0


def test_loading_refuses_what_cannot_be_imported_and_a_family_without_a_verifier(tmp_path: Path) -> None:
    told = pytest.raises(ConfigError, match=r"'no_such_module:f' cannot be imported.*verifiers.log")
    with JudgePool({"*": "no_such_module:f"}, log=tmp_path / "verifiers.log") as pool, told:
        pool.load(["math"])
    with JudgePool() as pool, pytest.raises(ConfigError, match="no verifier for family 'poetry'"):
        pool.load(["poetry"])


def test_a_module_that_kills_its_process_when_imported_is_refused_after_a_few_tries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deadly_rewards.py").write_text("import os\nos._exit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with JudgePool({"*": "deadly_rewards:f"}) as pool:
        with pytest.raises(ConfigError, match=r"'deadly_rewards:f' cannot be imported: .* exit status 3"):
            pool.load(["math"])
        assert pool.restarts == 2


def test_what_verifiers_print_goes_to_the_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "verifiers.log"
    with JudgePool({"*": "reward_functions:chatty"}, log=log) as pool:
        judge_all(pool, [rollout("x")])
    assert "a reward may print" in log.read_text()
    assert capfd.readouterr() == ("", "")


def test_an_answer_whose_verifier_was_killed_from_outside_is_judged_again(tmp_path: Path) -> None:
    with JudgePool(OBEYS, seconds_per_item=60.0) as pool:
        found = judge_all(pool, [rollout(f"killed once {tmp_path / 'note'}", index=0), rollout("fine", index=1)])
        assert [found[i].verdict for i in range(2)] == [Verdict.RIGHT, Verdict.RIGHT]
        assert pool.restarts == 1


def test_an_answer_that_has_its_verifier_killed_twice_is_an_error() -> None:
    with JudgePool(OBEYS, seconds_per_item=60.0) as pool:
        found = judge_all(pool, [rollout("killed", index=0), rollout("fine", index=1)])
        assert found[0].verdict is Verdict.ERROR and "SIGKILL" in found[0].evidence
        assert found[1].verdict is Verdict.RIGHT and pool.restarts == 2
