"""Puzzle families with difficulty knobs, by name: `make` draws problems from one side of the train / held-out split."""

from __future__ import annotations

from seedthink.data.puzzles.problem import Family, Habits, Problem, Split, check_disjoint, split_of
from seedthink.data.puzzles.registry import FAMILIES, family, make

__all__ = ["FAMILIES", "Family", "Habits", "Problem", "Split", "check_disjoint", "family", "make", "split_of"]
