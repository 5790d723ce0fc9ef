"""The layout of a run: what the settings ask for, held against the ranks that a launcher has started and the model."""

from __future__ import annotations

from math import prod

from seedthink.config.sections import ParallelConfig
from seedthink.errors import ConfigError
from seedthink.models.config import ModelConfig
from seedthink.parallel.layout import Layout
from seedthink.parallel.layout_check import broken, chosen, proposals
from seedthink.planner.memory import sizes_of


def layout_of_run(asked: ParallelConfig, ranks: int, model: ModelConfig, command: str) -> Layout:
    """The layout of `ranks` processes, 1 where no launcher has started any.

    Errors: ConfigError with all that does not fit, and what to do: the nearest layouts, or how to start more ranks.
    """
    sizes, wanted = sizes_of(model), prod((asked.dp_replicate, asked.dp_shard or 1, asked.cp, asked.tp))
    if ranks > 1 or wanted == 1:
        return chosen(asked, ranks, sizes)
    reasons = [
        f"dp_replicate * dp_shard * cp * tp = {wanted} ranks, but this run has one: only a launcher starts more, "
        f"torchrun --nproc-per-node {wanted} -m seedthink {command} ... or mpirun -n {wanted} seedthink {command} ...",
        *broken(asked, wanted, sizes),
    ]
    if len(reasons) > 1:
        reasons.append(proposals(asked, wanted, sizes))
    raise ConfigError(f"[parallel] {'; '.join(reasons)}")
