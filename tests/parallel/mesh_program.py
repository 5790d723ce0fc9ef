"""What the ranks of test_mesh.py and test_fsdp.py run: the cases that a module plans, under layouts of their number.

Each rank writes what it found.
"""

from __future__ import annotations

import importlib
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


def case_of(module: str, name: str) -> Callable[[str, Mesh], Any]:
    """A case of the module that plans it, or of one that it builds on."""
    places = (importlib.import_module(module), mesh_cases, engine_cases, router_cases)
    found: Callable[[str, Mesh], Any] = next(getattr(place, name) for place in places if hasattr(place, name))
    return found


if __name__ == "__main__":
    rendezvous, folder, module = sys.argv[1:]
    cases = importlib.import_module(module)
    launch = launched()
    assert launch is not None
    torch.set_num_threads(1)
    set_threads(1)
    replicas = Replicas(launch.rank, launch.size, rendezvous, 60.0)
    found = {}
    meshes = {name: Mesh(layout, replicas) for name, layout in cases.LAYOUTS[launch.size].items()}
    for layout, model, case in cases.plan(launch.size):
        found[layout, model, case] = case_of(module, case)(model, meshes[layout])
    torch.save(found, Path(folder) / f"{launch.rank}.pt")
    replicas.group.tell("done")
    replicas.close()
