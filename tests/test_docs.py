"""The documentation says what was measured, and names files and commands that exist."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent


def make_tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_tables", ROOT / "docs" / "make_tables.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_of_the_readme_are_those_of_the_results() -> None:
    """After new results: python docs/make_tables.py."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tables = make_tables()
    assert set(tables.BLOCK.findall(readme)) == set(tables.TABLES)
    assert readme == tables.filled(readme, ROOT / "benchmarks" / "results")


def test_a_result_that_is_missing_is_said_not_to_be_measured(tmp_path: Path) -> None:
    text = "a\n<!-- begin startup -->\nold\n<!-- end -->\nb\n"
    assert make_tables().filled(text, tmp_path) == "a\n<!-- begin startup -->\nNot measured.\n<!-- end -->\nb\n"


def test_relative_links_lead_to_files() -> None:
    broken = [
        f"{page.name}: {target}"
        for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert not broken
