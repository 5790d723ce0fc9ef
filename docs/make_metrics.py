"""Writes docs/metrics.md from the table that the report reads. Run: python docs/make_metrics.py"""

from __future__ import annotations

from pathlib import Path

from seedthink.report.metric_table import markdown

HEAD = """# Metrics

Every step of a run is a line of `metrics.jsonl` ([the run folder](run-folder.md)); `report.html` draws the ones that
tell most, and shows the words below as tooltips. Names follow verl's (`actor/`, `critic/`, `response_length/`,
`timing_s/`, `val-core/`), with `rollout/`, `mismatch/`, `staleness/` and `verifier/` for what verl keeps elsewhere.
`*` stands for a family, a count or a part.

Where to look first:

1. `val-core/all/acc/mean@k` with its interval: the only curve that says the model reasons better.
2. `critic/score/mean` beside it. If it rises alone, the policy learns the problems or games the verifier.
3. `rollout/groups_all_right` and `rollout/groups_all_wrong`: sampling spent on groups that teach nothing.
4. `actor/entropy`: an early collapse ends exploration long before the score shows it.
5. `critic/vf_explained_var`: a critic that foresees nothing gives noise for credit.
6. `rollout/logp_gap_max`: 0 in exact mode, or something is broken.

"""


def main() -> None:
    """Write the page."""
    Path(__file__).with_name("metrics.md").write_text(HEAD + markdown(), encoding="utf-8")


if __name__ == "__main__":
    main()
