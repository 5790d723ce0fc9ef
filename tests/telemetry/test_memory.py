"""Memory of a process tree."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from seedthink.telemetry.memory import MemorySampler, limit_bytes, pss_bytes, tree, tree_bytes


def fake(proc: Path, pid: int, parent: int, pss_kib: int, name: str = "worker") -> None:
    (proc / str(pid)).mkdir(parents=True)
    (proc / str(pid) / "stat").write_text(f"{pid} ({name}) S {parent} 1 1 0")
    (proc / str(pid) / "smaps_rollup").write_text(
        f"00-ff ---p\nRss: {9 * pss_kib} kB\nPss: {pss_kib} kB\nPss_Dirty: 1 kB\n"
    )


def test_a_tree_holds_all_descendants_and_nobody_else(tmp_path: Path) -> None:
    #   10 -> 11 -> 13      20 -> 21
    #      -> 12
    for pid, parent in ((10, 1), (11, 10), (12, 10), (13, 11), (20, 1), (21, 20)):
        fake(tmp_path, pid, parent, 100, name="a) S 10 (b" if pid == 21 else "worker")
    assert sorted(tree(10, tmp_path)) == [10, 11, 12, 13]
    assert tree_bytes(10, tmp_path) == 4 * 100 * 1024


def test_a_process_that_has_gone_counts_nothing(tmp_path: Path) -> None:
    fake(tmp_path, 10, 1, 100)
    assert pss_bytes(99, tmp_path) == 0
    (tmp_path / "10" / "smaps_rollup").unlink()
    assert tree_bytes(10, tmp_path) == 0


def test_the_limit_is_the_machines_memory_or_what_the_control_group_allows(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  2048 kB\nMemFree:  100 kB\n")
    assert limit_bytes(tmp_path, tmp_path / "none") == 2 << 20
    for text, wanted in (("max\n", 2 << 20), ("1048576\n", 1 << 20), ("8388608\n", 2 << 20)):
        (tmp_path / "memory.max").write_text(text)
        assert limit_bytes(tmp_path, tmp_path) == wanted


def test_a_child_process_is_part_of_the_sum() -> None:
    alone = tree_bytes(os.getpid())
    code = "data = bytearray(64 << 20); data[::4096] = b'x' * len(data[::4096]); print('ready', flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout and child.stdout.readline() == "ready\n"
        assert tree_bytes(os.getpid()) - alone > 60 << 20
    finally:
        child.communicate("\n")


def test_the_sampler_remembers_the_largest_sum() -> None:
    with MemorySampler(interval_seconds=0.01) as sampler:
        now = sampler.sample()
    assert sampler.peak_bytes >= now > 1 << 20
