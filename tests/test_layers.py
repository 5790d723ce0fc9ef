"""Who may import whom: the table of the design's section 4, held against every import in the sources.

Sources are parsed, never imported. Imports under TYPE_CHECKING are left out: they do not run.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

BASE = {"types", "errors", "config", "telemetry"}
BELOW_ENGINE = BASE | {"kernels", "parallel", "models", "checkpoint"}
BELOW_CONTROLLER = BELOW_ENGINE | {"autotune", "engine", "planner", "data", "rewards", "rollout", "rl"}
# folder -> folders it may import; itself is always allowed. cli may import anything and is imported by nobody.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "types": {"errors"},
    "config": {"types", "errors"},
    "telemetry": {"types", "errors", "config"},
    "kernels": {"errors"},
    "autotune": BASE | {"kernels"},
    "parallel": BASE | {"kernels"},
    "models": BASE | {"kernels", "parallel"},
    "checkpoint": BASE | {"kernels", "parallel"},
    "engine": BELOW_ENGINE | {"autotune"},
    "data": BASE,
    "rewards": BASE,
    "rollout": BASE,
    "rl": BASE | {"kernels"},
    "planner": BELOW_ENGINE | {"engine", "data", "rewards", "rollout", "rl"},
    "controller": BELOW_CONTROLLER,
    "serve": BASE | {"engine", "data"},
    "report": BASE,
    "bench": BASE | {"kernels", "autotune"},
    "cli": BELOW_CONTROLLER | {"controller", "serve", "report", "bench"},
}
# Modules that must load without torch: `--help`, `report` and `samples` never wait for it.
WITHOUT_TORCH = {"types", "errors", "config", "telemetry", "report", "cli"}
VAGUE = {"utils", "util", "common", "misc", "helpers", "helper"}


def sources() -> Iterator[tuple[str, Path]]:
    """Yield (folder, file) of every Python source; kernels/ and autotune/ stand at the root."""
    for top in ("kernels", "autotune"):
        yield from ((top, path) for path in sorted((ROOT / top).rglob("*.py")))
    package = ROOT / "seedthink"
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).parts
        if not (package / parts[0]).is_symlink():
            yield (parts[0] if len(parts) > 1 else path.stem), path


def running_imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, absolute dotted name) of every import that can run."""
    silent: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            silent.update(inner for child in node.body for inner in ast.walk(child))
    for node in ast.walk(tree):
        if node in silent:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: imports are absolute here"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def edges(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, folder of ours) for the imports of a module."""
    for line, name in running_imports(tree):
        parts = name.split(".")
        if parts[0] == "seedthink" and len(parts) > 1 and parts[1] in MAY_IMPORT:
            yield line, parts[1]


def test_every_import_follows_the_layers() -> None:
    broken = [
        f"{path.relative_to(ROOT)}:{line}: {folder} imports {other}"
        for folder, path in sources()
        if folder in MAY_IMPORT
        for line, other in edges(ast.parse(path.read_text(encoding="utf-8")))
        if other not in MAY_IMPORT[folder] | {folder}
    ]
    assert broken == []


def test_every_folder_has_its_place_in_the_table() -> None:
    package = ROOT / "seedthink"
    folders = {child.name for child in package.iterdir() if any(child.glob("*.py"))}
    assert folders <= set(MAY_IMPORT)


def test_no_folder_is_part_of_a_cycle() -> None:
    reach: dict[str, set[str]] = defaultdict(set)
    for folder, path in sources():
        reach[folder] |= {other for _, other in edges(ast.parse(path.read_text(encoding="utf-8")))} - {folder}
    for _ in range(len(reach)):
        for folder in list(reach):
            reach[folder] |= {further for other in list(reach[folder]) for further in reach.get(other, ())}
    assert [folder for folder in reach if folder in reach[folder]] == []


def test_light_folders_never_import_torch_at_module_level() -> None:
    broken = []
    for folder, path in sources():
        if folder not in WITHOUT_TORCH:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        top = ast.Module([node for node in tree.body if not isinstance(node, ast.FunctionDef | ast.ClassDef)], [])
        broken += [
            f"{path.relative_to(ROOT)}:{line}" for line, name in running_imports(top) if name.split(".")[0] == "torch"
        ]
    assert broken == []


def test_the_check_sees_a_forbidden_import() -> None:
    inside = "def f():\n    from seedthink.controller import loop\n"
    assert list(edges(ast.parse(inside))) == [(2, "controller")]
    silent = "if TYPE_CHECKING:\n    from seedthink.controller import loop\n"
    assert list(edges(ast.parse(silent))) == []
    assert list(edges(ast.parse("from seedthink import kernels, __version__"))) == [(1, "kernels")]


def test_nothing_has_a_vague_name() -> None:
    assert [path for _, path in sources() if set(path.relative_to(ROOT).with_suffix("").parts) & VAGUE] == []
