from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy_workers import Counter, Toy

from seedthink.controller.local_group import LocalGroup
from seedthink.controller.signals import StopSignal
from seedthink.controller.supervision import DeadlineError, WorkerDied, supervise
from seedthink.controller.watchdog import Countdown, Watchdog
from seedthink.errors import DataError, DeviceError, RunError
from seedthink.parallel.layout import Layout


def test_a_verb_that_is_not_registered_is_an_attribute_error_that_lists_the_verbs() -> None:
    group = LocalGroup("toy", Toy)
    with pytest.raises(AttributeError, match=r"no verb 'learn'; it has add, .*who"):
        group.learn()


def test_ranks_that_share_a_batch_get_the_same_part_and_answer_once() -> None:
    group = LocalGroup("toy", Toy, (100,), size=4, layout=Layout(dp_shard=2, tp=2))
    assert group.scale([1, 2, 3], factor=10) == [(0, 10), (2, 20), (2, 30)]
    assert group.shout(["a", "b"]) == ["A0", "B2"]
    assert group.poll() == [0, 0, 1, 1, 2, 2, 3, 3], "a protocol over ranks looks at no layout"
    assert group.first() == 101 and group.add(0) == [101, 102, 103, 104], "`first` ran on every rank"
    assert [worker.place.layout for worker in group.workers] == [group.layout] * 4
    with pytest.raises(ValueError, match="one element per data index is needed: got 4 for 2"):
        group.shout(["a", "b", "c", "d"])


def test_exceptions_of_local_workers_arrive_as_they_were_raised() -> None:
    group = LocalGroup("toy", Toy)
    with pytest.raises(DataError, match="line 3"):
        group.fail("data")
    with pytest.raises(DataError, match="base is -1"):
        LocalGroup("toy", Toy, (-1,))


def test_a_local_call_that_does_not_block_keeps_its_exception_for_the_result() -> None:
    future = LocalGroup("toy", Toy).fail_later()
    assert future.done()
    with pytest.raises(DataError, match="late"):
        future.result()


def test_a_local_call_past_its_deadline_says_who_waits_and_leaves_the_stacks(tmp_path: Path) -> None:
    group = LocalGroup("toy", Toy, logs=tmp_path)
    with pytest.raises(
        DeadlineError, match=r"controller waited 1 s for sleep_past_the_deadline on toy, in this process"
    ):
        group.sleep_past_the_deadline()
    stacks = (tmp_path / "toy.log").read_text()
    assert "sleep_past_the_deadline" in stacks and "toy_workers.py" in stacks
    assert group.add(1) == [1]


def test_a_guard_that_ended_in_time_raises_nothing_later() -> None:
    watchdog = Watchdog()
    with watchdog.guard("first", 0.01):
        pass
    with watchdog.guard("second", 30.0):
        time.sleep(0.6)


def test_a_countdown_does_not_count_time_in_which_the_process_was_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("seedthink.controller.watchdog.time.monotonic", lambda: clock[0])
    countdown = Countdown(10.0)
    clock[0] += 2.0
    assert countdown.left() == 8.0
    clock[0] += 3600.0  # Ctrl-Z, an hour, fg
    assert countdown.left() == 4.0
    clock[0] += 4.0
    assert countdown.left() == 0.0


def test_the_first_signal_asks_and_the_second_interrupts() -> None:
    said: list[str] = []
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts with SIGINT ignored
    with pytest.raises(KeyboardInterrupt), StopSignal(said.append) as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        assert stop.requested
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    assert len(said) == 1 and "Ctrl-C again" in said[0]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_batch_systems_sigterm_asks_too_and_never_interrupts() -> None:
    with StopSignal(lambda line: None) as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
        assert stop.requested


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_without_steps_stops_at_the_first_signal(number: signal.Signals) -> None:
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt), StopSignal(said.append, at_once=True):
        os.kill(os.getpid(), number)
        time.sleep(5)
    assert said == []


def counting(checkpoint: Path, trouble: dict[int, Exception], trace: list[int]):
    """A run of 6 steps that saves every second step and meets trouble once before each named step."""

    def run(group: LocalGroup) -> int:
        while (count := group.step()) < 6:
            if count in trouble:
                raise trouble.pop(count)
            trace.append(count)
            if count % 2 == 0:
                group.save()
        return count

    return run


def build_counter(checkpoint: Path):
    return lambda: LocalGroup("counter", Counter, (str(checkpoint),))


def test_supervision_goes_on_from_the_last_checkpoint(tmp_path: Path) -> None:
    checkpoint, trace, said = tmp_path / "count", [], []
    run = counting(checkpoint, {4: WorkerDied("counter rank 0 died"), 5: DeadlineError("too late")}, trace)
    assert supervise(build_counter(checkpoint), run, restarts=2, say=said.append) == 6
    assert trace == [1, 2, 3, 3, 4, 5]
    assert said[0].startswith("counter rank 0 died. Restart 1 of 2") and said[1].startswith("too late. Restart 2 of 2")


def test_too_many_failures_end_the_run_with_the_last_one_named(tmp_path: Path) -> None:
    def run(group: LocalGroup) -> None:
        raise WorkerDied("counter rank 0 died again")

    with pytest.raises(RunError, match=r"gave up after 3 worker failures .* died again.*resumes") as caught:
        supervise(build_counter(tmp_path / "count"), run, restarts=2, say=lambda line: None)
    assert not isinstance(caught.value, WorkerDied)


def test_a_restart_that_does_not_come_up_is_tried_again_but_a_first_start_is_not(tmp_path: Path) -> None:
    group = build_counter(tmp_path / "count")
    starts = [None, DeviceError("Ray did not start"), None]
    trouble = [WorkerDied("counter rank 0 died")]
    said: list[str] = []

    def build() -> LocalGroup:
        if error := starts.pop(0):
            raise error
        return group()

    def run(group: LocalGroup) -> str:
        if trouble:
            raise trouble.pop()
        return "done"

    assert supervise(build, run, restarts=2, say=said.append) == "done"
    assert said[1].startswith("Ray did not start. Restart 2 of 2")
    starts[:] = [DeviceError("Ray did not start")]
    with pytest.raises(DeviceError):
        supervise(build, run, restarts=2, say=said.append)


def test_failures_longer_ago_than_the_window_are_forgotten(tmp_path: Path) -> None:
    left = [WorkerDied("a"), WorkerDied("b"), WorkerDied("c")]

    def run(group: LocalGroup) -> str:
        time.sleep(0.02)
        if left:
            raise left.pop()
        return "done"

    build = build_counter(tmp_path / "count")
    assert supervise(build, run, restarts=1, window=0.01, say=lambda line: None) == "done"


def test_other_exceptions_are_not_met_with_a_restart(tmp_path: Path) -> None:
    runs: list[int] = []

    def run(group: LocalGroup) -> None:
        runs.append(1)
        raise DataError("no such file")

    with pytest.raises(DataError):
        supervise(build_counter(tmp_path / "count"), run, say=lambda line: None)
    assert runs == [1]


def test_the_local_controller_does_without_ray_and_torch() -> None:
    modules = "sys, seedthink.controller.local_group, seedthink.controller.signals, seedthink.controller.supervision"
    code = f"import {modules}; print({{'ray', 'torch'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
