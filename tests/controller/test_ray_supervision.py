from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from toy_workers import Counter, Toy

from seedthink.controller.ray_cluster import RayCluster, ResourcePool, Slot, _signal_handlers_kept
from seedthink.controller.ray_group import RayGroup
from seedthink.controller.ray_start import ray
from seedthink.controller.supervision import WorkerDied, supervise
from seedthink.errors import ConfigError
from seedthink.telemetry.memory import tree


def child(code: str, **kwargs) -> subprocess.Popen:
    """Start Python code in a process of its own, with the toy workers importable."""
    start = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    return subprocess.Popen(
        [sys.executable, "-c", start + textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **kwargs,
    )


def gone(pids: list[int], seconds: float = 30.0) -> bool:
    """Wait until none of the processes runs any more."""
    until = time.monotonic() + seconds
    while any(running(pid) for pid in pids):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_run_whose_worker_or_ray_server_is_killed_goes_on_exactly(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)  # a StopSignal's in a real run; ray.init would replace it
    checkpoint = tmp_path / "count"
    trace: list[int] = []
    kills = {5: "ray::_Host", 7: "gcs_server"}

    @contextmanager
    def build() -> Iterator[RayGroup]:
        with (
            RayCluster(cpus=1) as cluster,
            ResourcePool(cluster, "pool", [Slot()]) as pool,
            RayGroup("counter", pool, Counter, (str(checkpoint),), logs=tmp_path) as group,
        ):
            yield group

    def run(group: RayGroup) -> int:
        assert signal.getsignal(signal.SIGTERM) is before
        while (count := group.step()) < 9:
            trace.append(count)
            if count % 2 == 0:
                group.save()
            if victim := kills.pop(count, ""):
                (pid,) = (pid for pid in tree(os.getpid()) if name(pid).startswith(victim))
                os.kill(pid, signal.SIGKILL)
                group.rest(20.0)
        return count

    said: list[str] = []
    assert supervise(build, run, restarts=2, say=said.append) == 9
    assert trace == [1, 2, 3, 4, 5, 5, 6, 7, 7, 8]
    assert [line.partition(" (")[0] for line in said] == ["counter rank 0", "Ray's gcs_server"]


def test_a_call_that_would_be_short_says_that_rays_servers_are_gone(tmp_path: Path) -> None:
    with (
        RayCluster(cpus=1) as cluster,
        ResourcePool(cluster, "pool", [Slot()]) as pool,
        RayGroup("toy", pool, Toy, (1,), logs=tmp_path) as group,
    ):
        (pid,) = (pid for pid in tree(os.getpid()) if name(pid) == "gcs_server")
        os.kill(pid, signal.SIGKILL)
        assert gone([pid])
        with pytest.raises(WorkerDied, match=r"Ray's gcs_server \(pid \d+\) is gone"):
            group.add(1)


def test_ray_does_not_take_sigterm_over_while_it_starts() -> None:
    before = signal.getsignal(signal.SIGTERM)
    theirs = ray._private.utils.set_sigterm_handler
    with _signal_handlers_kept():
        ray._private.utils.set_sigterm_handler(lambda number, frame: sys.exit(number))
        assert signal.getsignal(signal.SIGTERM) is before
    assert ray._private.utils.set_sigterm_handler is theirs


def test_groups_on_two_pools_run_on_the_nodes_that_their_slots_name(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "resources": {"left": 1}})
    try:
        nodes.add_node(num_cpus=1, resources={"right": 1})
        nodes.wait_for_nodes()
        left, right = Slot(0.4, resources={"left": 0.4}), Slot(0.4, resources={"right": 0.4})
        with (
            RayCluster(nodes.address) as cluster,
            ResourcePool(cluster, "left", [left]) as one,
            ResourcePool(cluster, "right", [right]) as other,
            ResourcePool(cluster, "both", [left, right]) as both,
            RayGroup("policy", one, Toy, logs=tmp_path) as policy,
            RayGroup("judge", other, Toy, logs=tmp_path) as judge,
            RayGroup("spread", both, Toy, logs=tmp_path) as spread,
        ):
            (here,), (there,) = policy.node(), judge.node()
            assert here != there
            assert spread.node() == [here, there]
            assert spread.scale([1, 2]) == [(0, 1), (1, 2)]
            judge.deadline = 2.0
            with pytest.raises(Exception, match="judge rank 0"):
                judge.hold_the_lock(30)
            assert "in hold_the_lock" in (tmp_path / "judge-0.log").read_text()
    finally:
        nodes.shutdown()


def test_an_address_where_nothing_answers_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"no Ray cluster answers at 127\.0\.0\.1:1: "):
        RayCluster("127.0.0.1:1")


QUIET = """
import os, signal, sys, time
from pathlib import Path
from seedthink.controller.ray_cluster import RayCluster, ResourcePool, Slot
from seedthink.controller.ray_group import RayGroup
from seedthink.controller.supervision import WorkerDied
from toy_workers import Toy

with RayCluster(cpus=1) as cluster, ResourcePool(cluster, "pool", [Slot()]) as pool:
    with RayGroup("toy", pool, Toy, logs=Path(sys.argv[1])) as group:
        assert group.add(1) == [1]
        group.chatter()
        future = group.later(30.0)
        time.sleep(0.2)
        os.kill(group.pids()[0], signal.SIGKILL)
        try:
            future.result()
        except WorkerDied:
            time.sleep(1.0)
"""


def test_ray_is_quiet_and_leaves_nothing_behind_even_when_a_worker_is_killed(tmp_path: Path) -> None:
    before = set(Path("/tmp").glob("st-ray-*"))
    process = child(QUIET.replace("sys.argv[1]", repr(str(tmp_path))))
    seen: set[int] = set()
    while process.poll() is None:
        seen |= set(tree(process.pid))
        time.sleep(0.1)
    assert process.communicate() == ("", "")
    assert process.returncode == 0
    assert len(seen) > 4
    assert gone(list(seen))
    assert set(Path("/tmp").glob("st-ray-*")) <= before


WAITING = """
import sys
from pathlib import Path
from seedthink.controller.ray_cluster import RayCluster, ResourcePool, Slot
from seedthink.controller.ray_group import RayGroup
from seedthink.controller.signals import StopSignal
from toy_workers import Toy

with RayCluster(cpus=1) as cluster, ResourcePool(cluster, "pool", [Slot()]) as pool, StopSignal() as stop:
    with RayGroup("toy", pool, Toy, logs=Path(LOGS)) as group:
        steps = 0
        while not stop.requested:
            steps += 1
            print("step", steps, flush=True)  # said inside the step: a signal sent after it never falls between two
            group.later(1.0).result()
        print("saved", steps, group.add(1), flush=True)
        group.later(600.0).result()
"""


def test_ctrl_c_once_finishes_the_step_and_twice_ends_all_processes(tmp_path: Path) -> None:
    process = child(WAITING.replace("LOGS", repr(str(tmp_path))))
    assert process.stdout is not None
    assert process.stdout.readline() == "step 1\n"
    family = tree(process.pid)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group, Ray's processes included
    assert process.stdout.readline() == "saved 1 [1]\n"
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert errors.startswith("stopping: this step is finished") and errors.rstrip().endswith("KeyboardInterrupt")
    assert gone(family)


def test_kill_9_of_the_controller_takes_workers_and_servers_along(tmp_path: Path) -> None:
    before = set(Path("/tmp").glob("st-ray-*"))
    process = child(WAITING.replace("LOGS", repr(str(tmp_path))))
    assert process.stdout is not None
    assert process.stdout.readline() == "step 1\n"
    family = {pid: name(pid) for pid in tree(process.pid)}
    assert any("_Host" in name for name in family.values()) and "raylet" in family.values()
    process.kill()
    process.communicate()
    # Ray's two agents (100 MB) spend another minute on telling a server that is gone; they hold nothing of ours.
    assert gone([pid for pid, name in family.items() if "DashboardA" not in name and "RuntimeEnv" not in name])
    for folder in set(Path("/tmp").glob("st-ray-*")) - before:  # nobody was left to remove it
        shutil.rmtree(folder, ignore_errors=True)
