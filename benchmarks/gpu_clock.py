"""Times work on a GPU with events.

Stream times: launches are queued behind a kernel that sleeps, so the device never waits for the host, and a time is
what one call adds to a busy stream. Graph times: the same calls captured once and replayed, without the launches' gaps.
No call finds its inputs in the last cache: it is emptied before each sample, and the calls of a sample go round over
sets of buffers, as many as there are calls or as exceed the cache three times.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch

Call = Callable[[], object]

SAMPLES = 9
SAMPLE_US = 3000.0  # aimed at, of one sample
MOST_CALLS = 60  # of a sample: the queue of launches must hold them all
SLEEP_CYCLES_PER_CALL = 60_000  # about 35 us: longer than the host takes for any call here


def time_in_stream(calls: Sequence[Call]) -> dict[str, float]:
    """Median, least and most microseconds of a call, and how many were timed."""
    for call in calls:
        call()
    count = _count(calls)
    found = []
    for _ in range(SAMPLES):
        _empty_cache()
        torch.cuda._sleep(SLEEP_CYCLES_PER_CALL * count)
        found.append(_elapsed(lambda: [calls[i % len(calls)]() for i in range(count)]) / count)
    return _summary(found) | {"calls": count * SAMPLES}


def time_in_graph(calls: Sequence[Call]) -> dict[str, float]:
    """The same inside a CUDA graph. RuntimeError where the calls cannot be captured."""
    count = max(len(calls), 20)  # a sample's calls; few sets are large ones
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [calls[i % len(calls)]() for i in range(count)]
    graph.replay()
    found = []
    for _ in range(SAMPLES):
        _empty_cache()
        torch.cuda._sleep(SLEEP_CYCLES_PER_CALL * 4)
        found.append(_elapsed(graph.replay) / count)
    del kept
    return _summary(found)


def _last_cache() -> int:
    size: int = torch.cuda.get_device_properties(0).L2_cache_size
    return size


def _empty_cache() -> None:
    torch.empty(3 * _last_cache(), dtype=torch.uint8, device="cuda").zero_()


def _elapsed(work: Call) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e3


def _count(calls: Sequence[Call]) -> int:
    first = min(_elapsed(calls[0]) for _ in range(2))
    return max(1, min(MOST_CALLS, int(SAMPLE_US / max(first, 1.0)) + 1))


def _summary(found: list[float]) -> dict[str, float]:
    return {"us": statistics.median(found), "us_least": min(found), "us_most": max(found)}


def rotations(bytes_of_a_set: float) -> int:
    """Sets of buffers that exceed three times the last cache together, or one for each call of a sample."""
    return max(1, min(MOST_CALLS, -(-3 * _last_cache() // max(1, int(bytes_of_a_set)))))


def copy_rate() -> float:
    """Bytes per second, read and written, of a large copy of random numbers."""
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    seconds = time_in_stream([lambda: target.copy_(source)])["us_least"] / 1e6
    return 2 * source.nbytes / seconds


def matmul_rate() -> float:
    """FLOP per second of a large bfloat16 product of random numbers."""
    a, b = (torch.randn(8192, 8192, device="cuda").bfloat16() for _ in range(2))
    return 2 * 8192**3 / (time_in_stream([lambda: a @ b])["us_least"] / 1e6)
