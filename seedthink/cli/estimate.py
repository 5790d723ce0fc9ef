"""What --dry-run prints: a model's parameters, and the memory of each rank under the layout asked for."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

from seedthink.errors import DataError
from seedthink.models.config import ModelConfig
from seedthink.models.sizes import parameters
from seedthink.parallel.launch import launched
from seedthink.parallel.layout_check import chosen
from seedthink.planner.memory import lines, load_of, memory, rank_parameters, sizes_of


def in_words(config: Any) -> list[str]:
    """Return the lines that --dry-run prints.

    The ranks are those of the launch, or as many as the settings ask for. Errors: DataError where the model folder that
    is named cannot be read, ConfigError where the layout does not fit the model.
    """
    if not config.model.path:
        return ["parameters  unknown: model.path is not set"]
    model = read_model(Path(config.model.path))
    total, active = parameters(model)
    asked, launch = config.parallel, launched()
    ranks = launch.size if launch else prod((asked.dp_replicate, asked.dp_shard or 1, asked.cp, asked.tp))
    layout = chosen(asked, ranks, sizes_of(model))
    first = [f"parameters  {total:,} ({active:,} per token)"]
    if layout.size > 1:
        first.append(
            f"layout      {layout.size} ranks: {layout}; {rank_parameters(model, layout):,.0f} parameters a rank"
        )
    whose = "in all, estimated" if layout.size == 1 else "a rank, estimated"
    table = lines(memory(model, load_of(config), layout), whose)
    return [*first, *(f"{'memory' if not at else '':12}{line}" for at, line in enumerate(table))]


def read_model(folder: Path) -> ModelConfig:
    """Read a model folder's config.json. DataError names what is wrong with it."""
    try:
        table = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{folder} holds no config.json; model.path must be a Hugging Face model folder") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / 'config.json'} cannot be read: {error}") from None
    return ModelConfig.from_hf(table)
