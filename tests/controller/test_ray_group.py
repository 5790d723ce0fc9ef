from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from toy_workers import OneWay, Toy, Unpicklable

from seedthink.controller.local_group import LocalGroup
from seedthink.controller.ray_cluster import RayCluster, ResourcePool, Slot
from seedthink.controller.ray_group import RayGroup
from seedthink.controller.supervision import DeadlineError, WorkerDied
from seedthink.errors import ConfigError, DataError, DeviceError, RunError
from seedthink.parallel.layout import Layout

HALF = Slot(cpus=0.5)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with RayCluster(cpus=2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def pair(cluster: RayCluster, logs: Path) -> Iterator[RayGroup]:
    with ResourcePool(cluster, "pair", [HALF, HALF]) as pool, RayGroup("toy", pool, Toy, (100,), logs=logs) as group:
        yield group


def test_ray_and_local_groups_give_the_same_results(pair: RayGroup) -> None:
    local = LocalGroup("toy", Toy, (100,), size=2)
    for group in (pair, local):
        assert group.add(7) == [107, 108]
        assert group.who() == ("toy", 0, 2)
        assert group.scale([1, 2, 3], factor=10) == [(0, 10), (1, 20), (1, 30)]
        assert group.shout(["a", "b"]) == ["A0", "B1"]
        assert group.poll() == [0, 0, 1, 1]
        assert group.first() == 101
        assert group.add(0) == [101, 102]  # `first` ran on rank 1 too
        assert group.later(0.0).result() == [0, 1]
        doubled = group.double(np.arange(200_000))
        assert isinstance(doubled, np.ndarray) and np.array_equal(doubled, np.arange(200_000) * 2)


def test_ranks_of_one_data_index_answer_once_under_ray_too(cluster: RayCluster, logs: Path) -> None:
    with (
        ResourcePool(cluster, "plane", [HALF, HALF]) as pool,
        RayGroup("plane", pool, Toy, (100,), logs=logs, layout=Layout(tp=2)) as group,
    ):
        assert group.scale([1, 2], factor=10) == [(0, 10), (0, 20)]
        assert group.shout(["a"]) == ["A0"]
        assert group.add(0) == [100, 101]


def test_futures_run_while_the_controller_does_something_else(pair: RayGroup) -> None:
    future = pair.later(0.5)
    assert not future.done()
    assert future.result() == [0, 1]
    assert future.done()


def test_workers_run_verbs_on_the_main_thread_with_their_threads_and_one_meeting_point(pair: RayGroup) -> None:
    first, second = pair.environment()
    assert first == second
    assert first["main_thread"] and first["threads"] == "1" and not first["torch"]
    host, _, port = str(first["rendezvous"]).rpartition(":")
    assert host.count(".") == 3 and 1024 <= int(port) <= 65535


def test_exceptions_keep_their_type_and_name_worker_and_log(pair: RayGroup, logs: Path) -> None:
    with pytest.raises(
        DataError, match=r"line 3: no JSON \[toy rank [01] \(pid \d+ .*\), fail; traceback in .*toy-[01].log\]"
    ):
        pair.fail("data")
    with pytest.raises(KeyError, match="missing") as caught:
        pair.fail("key")
    assert caught.value.__notes__[0].startswith("raised in toy rank ")
    with pytest.raises(RunError, match=r"Unpicklable: holds a lock \[toy rank [01]"):
        pair.fail("unpicklable")
    assert pair.add(0)  # an exception is an answer: the workers live
    for rank in range(2):
        log = (logs / f"toy-{rank}.log").read_text()
        assert Unpicklable.__name__ in log and 'raise DataError("file x' in log


def test_what_workers_print_goes_to_their_logs_only(
    pair: RayGroup, logs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pair.chatter()
    for rank in range(2):
        text = (logs / f"toy-{rank}.log").read_text()
        assert "to stdout" in text and "to stderr" in text and "from a child" in text
    assert capfd.readouterr() == ("", "")


def test_a_worker_that_cannot_be_built_says_why_and_frees_its_slots(cluster: RayCluster, logs: Path) -> None:
    with ResourcePool(cluster, "small", [HALF]) as pool:
        with pytest.raises(DataError, match=r"base is -1.*\[broken rank 0 .*build"):
            RayGroup("broken", pool, Toy, (-1,), logs=logs)
        with RayGroup("fixed", pool, Toy, (1,), logs=logs) as group:
            assert group.add(1) == [2]


def test_payloads_that_cannot_be_sent_or_split_leave_the_group_usable(pair: RayGroup) -> None:
    with pytest.raises(ValueError, match="got 3 for 2"):
        pair.shout(["a", "b", "c"])
    with pytest.raises(TypeError, match="lock"):
        pair.add(threading.Lock())
    with pytest.raises(RunError, match=r"toy rank [01] .* arguments or pickle the result of add: .*ValueError"):
        pair.add(OneWay())
    with pytest.raises(RunError, match=r"toy rank [01] .* the result of lock: .*TypeError"):
        pair.lock()
    assert len(pair.add(0)) == 2


def test_a_killed_worker_is_named_and_breaks_the_group(cluster: RayCluster, logs: Path) -> None:
    with ResourcePool(cluster, "doomed", [HALF, HALF]) as pool, RayGroup("doomed", pool, Toy, logs=logs) as group:
        future = group.later(60.0)
        time.sleep(0.2)
        victim = group.pids()[1]
        os.kill(victim, signal.SIGKILL)
        with pytest.raises(WorkerDied, match=rf"doomed rank 1 \(pid {victim} .*\) died in later: .*doomed-1.log"):
            future.result()
        with pytest.raises(WorkerDied, match="doomed rank 1"):
            group.add(1)


def test_a_worker_that_exits_is_dead_with_its_status(cluster: RayCluster, logs: Path) -> None:
    with (
        ResourcePool(cluster, "quitter", [HALF]) as pool,
        RayGroup("quitter", pool, Toy, logs=logs) as group,
        pytest.raises(WorkerDied, match=r"quitter rank 0 .* died in exit: .*"),
    ):
        group.exit()


def test_a_deadline_names_the_hung_rank_and_leaves_its_stack(cluster: RayCluster, logs: Path) -> None:
    with (
        ResourcePool(cluster, "slow", [HALF]) as pool,
        RayGroup("slow", pool, Toy, logs=logs, beat_seconds=0.1) as group,
    ):
        says = r"controller waited 1 s for sleep_past_the_deadline on slow rank 0 \(pid \d+ on [\d.]+\), "
        with pytest.raises(DeadlineError, match=says + r"last heartbeat 0 s ago, in sleep_past_the_deadline for 1 s; "):
            group.sleep_past_the_deadline()
        assert "in sleep_past_the_deadline" in (logs / "slow-0.log").read_text()


def test_a_worker_stuck_in_native_code_shows_its_stack_too(cluster: RayCluster, logs: Path) -> None:
    with (
        ResourcePool(cluster, "stuck", [HALF]) as pool,
        RayGroup("stuck", pool, Toy, logs=logs, beat_seconds=0.1, deadline=20.0) as group,
    ):
        group.deadline = 2.0
        with pytest.raises(DeadlineError, match=r"last heartbeat [12] s ago, in "):
            group.hold_the_lock(30)
        assert "in hold_the_lock" in (logs / "stuck-0.log").read_text()


def test_two_groups_are_colocated_on_one_pool_and_a_third_is_refused(cluster: RayCluster, logs: Path) -> None:
    with (
        ResourcePool(cluster, "shared", [HALF], groups=2) as pool,
        RayGroup("policy", pool, Toy, (1,), logs=logs) as policy,
        RayGroup("reference", pool, Toy, (2,), logs=logs) as reference,
    ):
        assert (policy.add(0), reference.add(0)) == ([1], [2])
        assert policy.pids() != reference.pids()
        with pytest.raises(ConfigError, match=r"'shared' is for 2 groups and holds policy, reference"):
            RayGroup("third", pool, Toy, logs=logs)


def test_pools_do_not_overlap_and_what_does_not_fit_is_refused(cluster: RayCluster) -> None:
    with ResourcePool(cluster, "one", [HALF]):
        with pytest.raises(
            DeviceError, match=r"pool 'two' needs 1 slots \(2 CPU\); after 0.2 s the cluster has .* free"
        ):
            ResourcePool(cluster, "two", [Slot(cpus=2.0)], patience=0.2)
        with ResourcePool(cluster, "three", [HALF], patience=10.0):
            pass
