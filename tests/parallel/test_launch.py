"""What launchers say in the environment, and how ranks hear of each other."""

from __future__ import annotations

import pytest

from seedthink.controller.spmd import Facts, check_alike
from seedthink.errors import ConfigError
from seedthink.parallel.launch import Launch, launched

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_SIZE": "6",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}


def test_launchers_are_told_apart() -> None:
    assert launched({}) is None
    assert launched(TORCHRUN) == Launch("torchrun", 3, 8, 1, 2)
    assert launched(OPEN_MPI) == Launch("mpirun", 5, 6, 1, 2)
    assert launched({"PMI_RANK": "1", "PMI_SIZE": "2"}) == Launch("mpiexec", 1, 2, 1, 2)


def test_a_launch_of_one_is_none() -> None:
    assert launched({**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1"}) is None


def test_a_rank_that_is_no_number_is_refused() -> None:
    with pytest.raises(ConfigError, match="RANK = 'x' in the environment is no number"):
        launched({**TORCHRUN, "RANK": "x"})


def test_ranks_that_were_asked_for_different_things_are_refused_with_both_values() -> None:
    first = Facts("pid 1 on a", {"torch": "2.13.0"}, {"run": {"seed": 0}})
    check_alike({0: first, 1: Facts("pid 2 on a", {"torch": "2.13.0"}, {"run": {"seed": 0}})})
    says = r"rank 1 \(pid 2 on a\) has the setting run.seed = 4, rank 0 \(pid 1 on a\) has 0; start all ranks alike"
    with pytest.raises(ConfigError, match=says):
        check_alike({0: first, 1: Facts("pid 2 on a", {"torch": "2.13.0"}, {"run": {"seed": 4}})})
    with pytest.raises(ConfigError, match=r"rank 1 .* has the version torch = '2.12.0', rank 0 .* has '2.13.0'"):
        check_alike({0: first, 1: Facts("pid 2 on a", {"torch": "2.12.0"}, {"run": {"seed": 0}})})
