"""Measured rows as a table for a terminal, a pipe or a Markdown page."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from seedthink.autotune.timing import QUIET_CORES, Spread
from seedthink.bench.rows import Row

WIDE = 200  # characters of a table that is not read on a terminal


def seconds(value: float) -> str:
    """Three digits and a unit."""
    for factor, unit in ((1e6, "us"), (1e3, "ms")):
        if value * factor < 999.5:
            return f"{value * factor:.3g} {unit}"
    return f"{value:.3g} s"


def times(ratio: float) -> str:
    """Two digits that count, of a ratio."""
    return f"{ratio:.0f}x" if ratio >= 10 else f"{ratio:.2g}x"


def _time(row: Row) -> str:
    return "FAIL" if row.status == "FAIL" else seconds(row.seconds.median) if row.seconds else row.status


def _spread(row: Row) -> str:
    if row.seconds is None:
        return ""
    if row.repeats == 1:
        return "one call"
    return f"{seconds(row.seconds.p20)} .. {seconds(row.seconds.p80)}"


def _peers(row: Row) -> str:
    """What each peer takes, the fastest first; of a row without times, why."""
    if row.seconds is None:
        return row.reason
    ratios: list[tuple[str, Spread]] = sorted((row.ratios or {}).items(), key=lambda item: item[1].median)
    return ", ".join(f"{peer} {times(ratio.median)}" for peer, ratio in ratios)


COLUMNS: dict[str, Callable[[Row], str]] = {
    "operation": lambda row: row.op,
    "shape": lambda row: row.place.replace(",", " "),
    "dtype": lambda row: row.dtype,
    "by": lambda row: row.implementation,
    "time": _time,
    "p20 .. p80": _spread,
    "GB/s": lambda row: f"{row.gb_per_second:.1f}" if row.gb_per_second else "",
    "TFLOP/s": lambda row: (
        f"{row.tflop_per_second:.3g}" if row.tflop_per_second and row.matmul_flops_per_second else ""
    ),
    "of ceiling": lambda row: f"{100 * row.of_ceiling:.0f} %" if row.of_ceiling else "",
    "others": lambda row: f"{row.cores_used_elsewhere:.1f}" if row.cores_used_elsewhere is not None else "",
    "error": lambda row: f"{row.error:.1e}" if row.error is not None else "",
    "peak": lambda row: f"{row.peak_bytes / 2**20:.3g} MiB" if row.peak_bytes else "",
    "peers take": _peers,
}
LEFT = {"operation", "shape", "dtype", "by", "peers take"}


def show(rows: Sequence[Row], console: Console | None = None) -> None:
    """Print the table; our rows are bold, a line stands between cases."""
    console = console or Console()
    if not console.is_terminal:
        console = Console(width=WIDE, file=console.file)
    table = Table(box=None, pad_edge=False)
    for head in COLUMNS:
        table.add_column(head, justify="left" if head in LEFT else "right", no_wrap=head not in ("peers take", "shape"))
    for at, row in enumerate(rows):
        style = "bold" if row.ours else "red" if row.status == "FAIL" else None
        ends = at + 1 == len(rows) or rows[at + 1].place != row.place or rows[at + 1].op != row.op
        table.add_row(*(cell(row) for cell in COLUMNS.values()), style=style, end_section=ends)
    console.print(table)
    disturbed = [row for row in rows if (row.cores_used_elsewhere or 0.0) > QUIET_CORES]
    if disturbed:
        busiest = max(row.cores_used_elsewhere or 0.0 for row in disturbed)
        console.print(
            f"{len(disturbed)} of {len(rows)} rows were taken while others used up to {busiest:.1f} cores: their "
            "times and ratios say little. Threads that wait for each other suffer most from a crowd."
        )
