"""The documentation says what was measured, and names files and commands that exist."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {
    "device": "A CPU",
    "device_class": "avx2",
    "threads": 2,
    "packages": {"torch": "2.13.0"},
    "date": "2026-01-02",
}
KERNEL = {
    "op": "gae",
    "ours": True,
    "shape": {"B": 2, "T": 8},
    "dtype": "float32",
    "seconds": {"median": 2e-3, "p20": 1.5e-3, "p80": 8e-4},
    "of_ceiling": 0.62,
    "cores_used_elsewhere": 0.31,
    "ratios": {"eager": {"median": 3.0, "p20": 2.9, "p80": 3.1}},
}


def make_tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_tables", ROOT / "docs" / "make_tables.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_of_the_pages_are_those_of_the_results() -> None:
    """After new results: python docs/make_tables.py."""
    tables = make_tables()
    pages = [(ROOT / page).read_text(encoding="utf-8") for page in tables.PAGES]
    assert {name for page in pages for name in tables.BLOCK.findall(page)} == set(tables.TABLES)
    for page in pages:
        assert page == tables.filled(page, ROOT / "benchmarks" / "results")


def test_a_result_that_is_missing_is_said_not_to_be_measured(tmp_path: Path) -> None:
    text = "a\n<!-- begin startup -->\nold\n<!-- end -->\nb\n"
    assert make_tables().filled(text, tmp_path) == "a\n<!-- begin startup -->\nNot measured.\n<!-- end -->\nb\n"


def test_a_table_of_kernels_has_a_part_for_each_device(tmp_path: Path) -> None:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "a.json").write_text(json.dumps({"environment": ENVIRONMENT, "rows": [KERNEL]}))
    assert make_tables().made("kernels", tmp_path) == (
        "**A CPU, avx2, 2 threads, torch 2.13.0, 2026-01-02, other processes used up to 0.3 cores**\n\n"
        "| operation | shape | dtype | time (p20 to p80) | of ceiling | peers take |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| gae | B=2 T=8 | float32 | 2 ms (1.5 ms to 800 us) | 62 % | eager 3x |"
    )


def test_relative_links_lead_to_files() -> None:
    broken = [
        f"{page.name}: {target}"
        for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert not broken
