"""The published budgets: short files, short functions, everything annotated and introduced, ASCII."""

from __future__ import annotations

import ast
from pathlib import Path

from test_layers import sources

ROOT = Path(__file__).resolve().parents[1]

PYTHON_LINES, CPP_LINES, WHOLE_LINES = 500, 600, 32_000
FUNCTION_MAX, FUNCTION_P90 = 100, 40


def functions() -> list[tuple[int, str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """(lines, place, node) of every function."""
    found = []
    for _, path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                found.append((lines, f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node))
    return found


def line_count(path: Path) -> int:
    return path.read_text(encoding="utf-8").count("\n")


def test_files_stay_short() -> None:
    long = [path for _, path in sources() if line_count(path) > PYTHON_LINES]
    native = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".cpp", ".h", ".cu", ".cuh")]
    long += [path for path in native if line_count(path) > CPP_LINES]
    assert [str(path.relative_to(ROOT)) for path in long] == []
    assert sum(line_count(path) for _, path in sources()) <= WHOLE_LINES


def test_functions_stay_short() -> None:
    lengths = sorted(((lines, place) for lines, place, _ in functions()), reverse=True)
    assert [entry for entry in lengths if entry[0] > FUNCTION_MAX] == []
    assert lengths[len(lengths) // 10][0] <= FUNCTION_P90


def test_every_function_is_annotated() -> None:
    bare = []
    for _, place, node in functions():
        arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
        if not all(each.annotation for each in arguments if each.arg not in ("self", "cls")) or not node.returns:
            bare.append(place)
    assert bare == []


def test_every_module_opens_with_what_it_is() -> None:
    silent = [path for _, path in sources() if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]
    assert [str(path.relative_to(ROOT)) for path in silent if line_count(path) > 3] == []


def test_sources_are_ascii() -> None:
    places = [path for _, path in sources() if not path.read_text(encoding="utf-8").isascii()]
    assert [str(path.relative_to(ROOT)) for path in places] == []
