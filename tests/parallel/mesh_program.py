"""What the ranks of test_mesh.py run: some cases under every layout of their number. Each rank writes what it found."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import engine_cases
import mesh_cases
import router_cases
import torch

from seedthink.kernels.build import set_threads
from seedthink.parallel.launch import launched
from seedthink.parallel.mesh import Mesh
from seedthink.parallel.replicas import Replicas


def case_of(name: str) -> Callable[[str, Mesh], Any]:
    found: Callable[[str, Mesh], Any] = next(
        vars(each)[name] for each in (mesh_cases, engine_cases, router_cases) if name in vars(each)
    )
    return found


if __name__ == "__main__":
    rendezvous, folder = sys.argv[1:]
    launch = launched()
    assert launch is not None
    torch.set_num_threads(1)
    set_threads(1)
    replicas = Replicas(launch.rank, launch.size, rendezvous, 60.0)
    found = {}
    meshes = {name: Mesh(layout, replicas) for name, layout in mesh_cases.LAYOUTS[launch.size].items()}
    for layout, model, case in mesh_cases.plan(launch.size):
        found[layout, model, case] = case_of(case)(model, meshes[layout])
    torch.save(found, Path(folder) / f"{launch.rank}.pt")
    replicas.group.tell("done")
    replicas.close()
