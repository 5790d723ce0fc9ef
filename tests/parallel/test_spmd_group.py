"""Worker groups over the ranks of a launch: verbs, failures, and that nobody is left waiting."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from ranks import ROOT, outcome, start_ranks

PROGRAM = str(Path(__file__).with_name("verbs_program.py"))


def test_verbs_reach_every_rank_and_results_come_back_in_rank_order() -> None:
    (code, said, wrong), (other, _, _) = outcome(start_ranks(2, PROGRAM, "ordinary"))
    assert (code, other) == (0, 0), wrong
    answers, later, failure, shouted = said.splitlines()
    assert answers == "[110, 111] ('toys', 0, 2) [(0, 2), (1, 4), (1, 6)] 101 [0, 0, 1, 1]"
    assert later == "[[0, 1], [0, 1]]", "two calls under way at once do not take each other's answers"
    assert failure.startswith("DataError: file x, line 3: no JSON")
    assert shouted == "['A0', 'B1']", "a rank that raised goes on"


def test_ranks_that_share_a_batch_get_the_same_part_and_answer_once() -> None:
    found = outcome(start_ranks(4, PROGRAM, "planes"))
    assert [code for code, _, _ in found] == [0] * 4, found
    assert found[0][1].splitlines() == ["[(0, 2), (2, 4), (2, 6)] ['A0', 'B2'] 101 [101, 102, 103, 104]"]


def test_a_rank_that_dies_is_named_and_the_others_end() -> None:
    (code, _, wrong), (other, _, _) = outcome(start_ranks(2, PROGRAM, "killed"))
    assert other == 3 and code == 1
    assert "WorkerDied: toys rank 1 (a test) died in exit_on; look at its output above" in wrong


def test_a_rank_that_does_not_answer_is_named_with_what_it_does() -> None:
    (code, _, wrong), (other, _, _) = outcome(start_ranks(2, PROGRAM, "hanging"))
    assert code == 1 and other == 1, "the rank at work leaves when rank 0 has ended"
    assert "rank 0 waited 1 s for sleep_past_the_deadline on " in wrong
    assert "toys rank 1 (a test) (in sleep_past_the_deadline for " in wrong


def test_ranks_leave_when_rank_0_dies_while_they_work() -> None:
    (code, _, _), (other, _, wrong) = outcome(start_ranks(2, PROGRAM, "abandoned"))
    assert code == 7 and other == 1
    assert "rank 0 has ended, and this rank waited for it: leaving" in wrong


MPIRUN = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2", sys.executable, PROGRAM, "ordinary"]


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="needs mpirun (Debian: openmpi-bin)")
@pytest.mark.skipif(find_spec("mpi4py") is None, reason="needs mpi4py (pip install 'seedthink[mpi]')")
def test_under_mpirun_mpi_itself_tells_where_rank_0_is() -> None:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "controller"), *sys.path])
    done = subprocess.run(MPIRUN, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "['A0', 'B1']"


@pytest.mark.slow
def test_torchrun_itself_starts_a_group() -> None:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "controller"), *sys.path])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", PROGRAM, "ordinary"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "['A0', 'B1']"
