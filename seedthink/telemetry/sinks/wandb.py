"""A run folder into Weights & Biases: `pip install seedthink[wandb]`."""

from __future__ import annotations

import json
from pathlib import Path

from seedthink.errors import DeviceError
from seedthink.telemetry.sinks import numbers


def write(run: Path, project: str = "seedthink") -> int:
    """Log every metric of a run, with its settings, to `project`; returns the number of points."""
    try:
        import wandb
    except ImportError:
        raise DeviceError("wandb is not installed: pip install 'seedthink[wandb]'") from None
    settings = json.loads((run / "resolved.json").read_text(encoding="utf-8"))
    count = 0
    with wandb.init(project=project, name=run.name, config=settings) as session:
        session.define_metric("*", step_metric="step")
        for stage, step, metrics in numbers(run):
            session.log({"step": step, "stage": stage} | metrics)
            count += len(metrics)
    return count
