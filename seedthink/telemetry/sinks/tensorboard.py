"""A run folder into TensorBoard's format: `pip install seedthink[tensorboard]`."""

from __future__ import annotations

from pathlib import Path

from seedthink.errors import DeviceError
from seedthink.telemetry.sinks import numbers


def write(run: Path, target: Path) -> int:
    """Write every metric of a run under `target`, one sub-folder per stage; returns the number of points."""
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError:
        raise DeviceError("tensorboard is not installed: pip install 'seedthink[tensorboard]'") from None
    writers: dict[str, EventFileWriter] = {}
    count = 0
    for stage, step, metrics in numbers(run):
        if stage not in writers:
            writers[stage] = EventFileWriter(str(target / stage))
        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        writers[stage].add_event(Event(step=step, summary=Summary(value=values)))
        count += len(values)
    for writer in writers.values():
        writer.close()
    return count
