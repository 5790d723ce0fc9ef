"""Starts ranks as torchrun would: fresh interpreters with its environment."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from seedthink.parallel.launch import free_port

ROOT = Path(__file__).parents[2]
Found = list[dict[tuple[str, str, str], Any]]  # for each rank: (layout, model, case) -> what it found


def start_ranks(size: int, *words: str, per_rank: Sequence[Sequence[str]] = ()) -> list[subprocess.Popen[str]]:
    """`size` processes of `python *words`, rank r with the words of `per_rank[r]` behind them."""
    port = str(free_port())
    ranks = []
    for rank in range(size):
        told = {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size)}
        told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "controller"), str(ROOT / "tests" / "parallel")])
        command = [sys.executable, *words, *(per_rank[rank] if per_rank else ())]
        ranks.append(
            subprocess.Popen(
                command,
                env={**os.environ, **told, "PYTHONPATH": path},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return ranks


def outcome(ranks: Sequence[subprocess.Popen[str]], seconds: float = 120.0) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of every rank; whoever has not ended by then is killed, and the test fails."""
    try:
        said = [rank.communicate(timeout=seconds) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [(rank.returncode, out, err) for rank, (out, err) in zip(ranks, said, strict=True)]


def found_by_ranks(size: int, module: str, folder: Path) -> Found:
    """What each of `size` ranks found in all cases that `module` plans (mesh_program.py); one launch."""
    program = str(Path(__file__).with_name("mesh_program.py"))
    ended = outcome(start_ranks(size, program, f"127.0.0.1:{free_port()}", str(folder), module), 280.0)
    assert [code for code, _, _ in ended] == [0] * size, ended
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]
