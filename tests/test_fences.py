"""Third-party packages that only one folder may name, so that each can be replaced in one place."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from test_layers import running_imports, sources

ROOT = Path(__file__).resolve().parents[1]

FENCES: dict[str, set[str]] = {
    "ray": {"controller"},
    "triton": {"kernels"},
    "seedthink._C": {"kernels"},
    "torch.distributed": {"parallel"},
    "safetensors": {"checkpoint"},
    "fastapi": {"serve"},
    "uvicorn": {"serve"},
    "wandb": {"telemetry"},
    "tensorboard": {"telemetry"},
    "math_verify": {"rewards"},
    "tokenizers": {"data"},
    "tyro": {"config", "cli"},
    "mpi4py": {"parallel"},
    "transformers": {"bench"},
    "torchrl": {"bench"},
    "torchao": {"bench"},
}
TRACKERS = {"wandb", "tensorboard"}


def named(tree: ast.AST, package: str) -> list[int]:
    """Lines that import a package or something inside it."""
    return [line for line, name in running_imports(tree) if f"{name}.".startswith(f"{package}.")]


@pytest.mark.parametrize("package", list(FENCES))
def test_a_package_is_named_only_behind_its_fence(package: str) -> None:
    broken = [
        f"{path.relative_to(ROOT)}:{line}"
        for folder, path in sources()
        if folder not in FENCES[package]
        for line in named(ast.parse(path.read_text(encoding="utf-8")), package)
    ]
    assert broken == []


def test_trackers_stay_inside_the_sinks() -> None:
    for _, path in sources():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if path.parent.name != "sinks":
            assert not [line for package in TRACKERS for line in named(tree, package)], path


def test_the_check_sees_every_way_to_import() -> None:
    for text in ("import ray", "import ray.util", "from ray import get", "from ray.util import x"):
        assert named(ast.parse(text), "ray") == [1]
    assert named(ast.parse("import rays\nfrom rayon import ray"), "ray") == []
    assert named(ast.parse("from torch import distributed"), "torch.distributed") == [1]
    assert named(ast.parse("from seedthink import _C"), "seedthink._C") == [1]
