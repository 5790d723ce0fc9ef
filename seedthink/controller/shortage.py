"""Out of memory, in words that help: what a rank needs by estimate, what there is, the nearest settings that fit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from seedthink.engine.engine import EngineSettings
from seedthink.engine.model_io import read_config
from seedthink.errors import RunError
from seedthink.parallel.launch import launched
from seedthink.parallel.layout import Layout
from seedthink.planner.fitting import explain
from seedthink.planner.memory import Load
from seedthink.telemetry.memory import limit_bytes

_CPU_WORDS = "can't allocate memory"  # of torch's CPU allocator, which has no exception of its own


def ran_out(error: BaseException) -> bool:
    """Whether an exception says that memory could not be had."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and _CPU_WORDS in str(error)
    )


@contextmanager
def explained(doing: str, settings: EngineSettings, layout: Layout, sampling: str) -> Iterator[None]:
    """Turns running out of memory into a RunError with the estimate; `sampling` is the section of kv_memory_mib."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        launch = launched()
        available = limit_bytes() / (launch.local_size if launch else 1)
        model = read_config(settings.model)
        help_ = explain(model, load_of_engine(settings), layout, available, sampling)
        reason = str(error).splitlines()[0] if str(error) else "no memory"
        raise RunError(f"out of memory in {doing} ({reason}). {help_}") from error


def load_of_engine(settings: EngineSettings) -> Load:
    """What an engine's settings put on a rank."""
    return Load(
        item=getattr(torch, settings.dtype).itemsize,
        micro_batch_tokens=settings.micro_batch_tokens,
        kv_memory_mib=settings.rollout.kv_memory_mib,
        sequences=settings.rollout.max_sequences,
        critic=settings.critic,
        reference=settings.reference,
    )
