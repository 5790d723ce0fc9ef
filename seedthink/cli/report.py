"""`seedthink report`: write a run's report.html."""

from __future__ import annotations

from collections.abc import Sequence

from seedthink.cli.arguments import Parser

EXAMPLES = """Examples:
  seedthink report runs/quickstart
  seedthink report runs/mine --beside runs/grpo runs/sft
  seedthink report runs/mine --tensorboard tb/mine"""


def run(arguments: Sequence[str]) -> int:
    """Write the page; optionally hand the metrics to a tracker."""
    parser = Parser("seedthink report", EXAMPLES)
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("--beside", nargs="+", default=[], metavar="RUN", help="other runs to show side by side")
    parser.add_argument("--tensorboard", metavar="FOLDER", help="also write the metrics as TensorBoard events")
    parser.add_argument("--wandb", metavar="PROJECT", help="also log the metrics to Weights & Biases")
    chosen = parser.parse_args(arguments)
    from pathlib import Path

    from seedthink.report.page import write_report

    print(write_report(chosen.run, beside=chosen.beside))
    if chosen.tensorboard:
        from seedthink.telemetry.sinks import tensorboard

        print(f"{tensorboard.write(Path(chosen.run), Path(chosen.tensorboard))} points in {chosen.tensorboard}")
    if chosen.wandb:
        from seedthink.telemetry.sinks import wandb

        print(f"{wandb.write(Path(chosen.run), chosen.wandb)} points in project {chosen.wandb}")
    return 0
