"""The table of metrics: complete, and what the docs say."""

from __future__ import annotations

import ast
import re
from fnmatch import fnmatchcase
from pathlib import Path

from seedthink.config import COMMANDS
from seedthink.config.tree import keys
from seedthink.report.charts import PLANS
from seedthink.report.metric_table import entry, markdown, related, table
from seedthink.telemetry.health import RULES
from seedthink.telemetry.terminal import COLUMNS, DETAILS

NAME = re.compile(
    r"(actor|critic|rollout|response|response_length|prompt_length|mismatch|verifier|credit|router|train|training|perf|timing_s)/[a-z_/]+"
)


def test_every_entry_is_whole() -> None:
    for found in table():
        for text in (found.meaning, found.healthy, found.if_rises):
            assert text.endswith("."), found.name
    names = [found.name for found in table()]
    assert len(names) == len(set(names))


def test_every_setting_that_an_entry_names_exists() -> None:
    known = {key for cls in COMMANDS.values() for key in keys(cls)}
    assert {key for found in table() for key in found.keys} <= known
    assert "actor/entropy" in {found.name for found in related("algorithm.clip_high")}


def test_what_charts_notes_and_terminal_show_is_documented() -> None:
    shown = {metric for plan in PLANS for metric in plan.metrics} | {rule.metric for rule in RULES}
    shown |= {name for name, _, _ in (*COLUMNS, *DETAILS)}
    assert [name for name in shown if entry(name) is None] == []


def test_every_metric_that_the_sources_name_is_documented(root: Path) -> None:
    """Names stand in the sources as string constants; those built from parts are covered by patterns."""
    unknown = set()
    for folder in ("rl", "rollout", "engine", "controller"):
        for path in (root / "seedthink" / folder).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and NAME.fullmatch(node.value):
                    unknown |= {node.value} if entry(node.value) is None else set()
    assert unknown == set()


def test_docs_hold_the_table_as_it_is(root: Path) -> None:
    """After a change of the table: python docs/make_metrics.py."""
    assert markdown() in (root / "docs" / "metrics.md").read_text(encoding="utf-8")


def test_patterns_do_not_hide_later_entries() -> None:
    rows = table()
    for at, found in enumerate(rows):
        hidden = [later.name for later in rows[at + 1 :] if fnmatchcase(later.name, found.name)]
        assert hidden == [], f"{found.name} hides {hidden}"
