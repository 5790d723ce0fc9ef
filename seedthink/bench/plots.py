"""One SVG of measured rows: a roofline, and how many times as long each peer takes. No script, font or library.

Colours follow the reader's preference for light or dark. A <title> on every mark shows its row as a tooltip.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import ceil, floor, log10
from statistics import median

from seedthink.bench.rows import Row
from seedthink.bench.table import seconds, times

WIDTH, LEFT, RIGHT = 960, 350, 40
ROOF_HEIGHT, ROOF_LEFT, BAR = 420, 100, 13
LABEL_WIDTH, LABEL_HEIGHT = 110, 11  # what a point's name needs: one that would cover another is left out
STYLE = """
svg { background: #fff; color: #1d2430; font: 12px system-ui, sans-serif }
.ink { fill: currentColor } .faint { fill: #6b7687 } .grid { stroke: #dde2ea }
.roof { stroke: currentColor; fill: none; stroke-width: 1.5 } .one { stroke: currentColor; stroke-dasharray: 4 3 }
.end { text-anchor: end } .mid { text-anchor: middle } .head { font-weight: 600; font-size: 15px; fill: currentColor }
.point, .bar { fill: #2563c9 } .lost { fill: #c2452d }
@media (prefers-color-scheme: dark) {
  svg { background: #14181f; color: #e6eaf0 } .grid { stroke: #2b3340 } .faint { fill: #98a3b3 }
  .point, .bar { fill: #6ea3ff } .lost { fill: #ff8a6b }
}
"""


class Scale:
    """A logarithmic axis from whole power of ten to whole power of ten."""

    def __init__(self, values: Sequence[float], begin: float, end: float) -> None:
        self.low, self.high = floor(log10(min(values))), ceil(log10(max(values)))
        self.high += self.high == self.low
        self.begin, self.end = begin, end

    def __call__(self, value: float) -> float:
        """Where a value stands."""
        return self.begin + (log10(value) - self.low) / (self.high - self.low) * (self.end - self.begin)

    def decades(self) -> list[float]:
        """The powers of ten."""
        return [10.0**power for power in range(self.low, self.high + 1)]


def drawing(rows: Sequence[Row]) -> str:
    """The SVG of our rows that were measured."""
    ours = [row for row in rows if row.ours and row.seconds]
    roof = _roofline([row for row in ours if row.flops and row.bytes and row.copy_bytes_per_second])
    bars, height = _ratio_bars([row for row in ours if row.ratios], ROOF_HEIGHT + 60 if roof else 40)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img">'
        f"<style>{STYLE}</style>{roof}{bars}</svg>\n"
    )


def _roofline(rows: Sequence[Row]) -> str:
    """FLOP/s over FLOPs per byte, below the roofs that were measured beside them (medians; each dtype has its own)."""
    if not rows:
        return ""
    copy = median(row.copy_bytes_per_second or 0.0 for row in rows)
    tops = {
        row.dtype: median(
            each.matmul_flops_per_second or 0.0 for each in rows if _bound(each) and each.dtype == row.dtype
        )
        for row in rows
        if _bound(row)
    }
    rates = [row.flops / row.seconds.median for row in rows if row.seconds]
    x = Scale([row.flops / row.bytes for row in rows] + [1.0], ROOF_LEFT, WIDTH - RIGHT)
    y = Scale([*rates, *tops.values(), copy], ROOF_HEIGHT, 50)
    parts = [_text(ROOF_LEFT, 26, "Roofline: our kernels below what this machine was measured to do", "head")]
    parts += [
        _line("grid", x(at), 50, x(at), ROOF_HEIGHT) + _text(x(at), ROOF_HEIGHT + 18, f"{at:g}", "faint mid")
        for at in x.decades()
    ]
    parts += [
        _line("grid", ROOF_LEFT, y(at), WIDTH - RIGHT, y(at)) + _text(ROOF_LEFT - 8, y(at) + 4, _rate(at), "faint end")
        for at in y.decades()
    ]
    parts.append(_text(WIDTH - RIGHT, ROOF_HEIGHT + 34, "FLOPs per byte", "faint end"))
    top = max(tops.values(), default=10.0**y.high)
    left, right = 10.0**x.low, 10.0**x.high
    knee = min(top / copy, right)
    parts.append(
        _line("roof", x(max(left, 10.0**y.low / copy)), y(max(left * copy, 10.0**y.low)), x(knee), y(knee * copy))
    )
    for dtype, rate in tops.items():
        start = min(max(rate / copy, left), right)
        parts.append(_line("roof", x(start), y(rate), x(right), y(rate)))
        parts.append(_text(x(right), y(rate) - 5, f"{dtype} matmul {_rate(rate)}", "ink end"))
    return "".join([*parts, *(_point(row, x, y) for row in rows), *_names(rows, x, y)])


def _bound(row: Row) -> bool:
    return bool(row.matmul_flops_per_second)


def _point(row: Row, x: Scale, y: Scale) -> str:
    assert row.seconds is not None
    title = f"{_name(row)}: {seconds(row.seconds.median)}, {100 * (row.of_ceiling or 0):.0f} % of the ceiling"
    place = f'cx="{x(row.flops / row.bytes):.1f}" cy="{y(row.flops / row.seconds.median):.1f}"'
    return f'<circle class="point" {place} r="4.5"><title>{escape(title)}</title></circle>'


def _names(rows: Sequence[Row], x: Scale, y: Scale) -> list[str]:
    """The operation beside each point, where there is room."""
    taken: list[tuple[float, float]] = []
    parts = []
    for row in rows:
        assert row.seconds is not None
        at = x(row.flops / row.bytes) + 8, y(row.flops / row.seconds.median) + 4
        if all(abs(at[0] - left) > LABEL_WIDTH or abs(at[1] - top) > LABEL_HEIGHT for left, top in taken):
            taken.append(at)
            parts.append(_text(*at, row.op, "faint"))
    return parts


def _ratio_bars(rows: Sequence[Row], top: float) -> tuple[str, float]:
    """(bars, height of the drawing): one bar per peer and row from 1x, to the right where the peer takes longer."""
    if not rows:
        return "", top
    lines = [(row, peer, ratio.median) for row in rows for peer, ratio in (row.ratios or {}).items()]
    x = Scale([ratio for _, _, ratio in lines] + [0.9, 1.1], LEFT, WIDTH - RIGHT - 40)
    height = top + 30 + len(lines) * (BAR + 4) + len(rows) * 10
    parts = [_text(20, top, "How many times as long the peers take", "head")]
    parts += [
        _line("grid", x(at), top + 12, x(at), height - 14) + _text(x(at), height, f"{at:g}x", "faint mid")
        for at in x.decades()
    ]
    y, last = top + 18.0, None
    for row, peer, ratio in lines:
        if row is not last:
            y += 10
            parts.append(_text(20, y + 10, _name(row), "ink"))
            last = row
        begin, end = sorted((x(1.0), x(ratio)))
        css = "bar" if ratio >= 1 else "lost"
        title = escape(f"{_name(row)}: {peer} takes {times(ratio)}")
        place = f'x="{begin:.1f}" y="{y:.1f}" width="{max(1.0, end - begin):.1f}" height="{BAR}"'
        parts.append(f'<rect class="{css}" {place}><title>{title}</title></rect>')
        parts.append(_text(end + 5, y + 11, f"{peer} {times(ratio)}", "faint"))
        y += BAR + 4
    parts.append(_line("one", x(1.0), top + 12, x(1.0), height - 14))
    return "".join(parts), height + 16


def _name(row: Row) -> str:
    return f"{row.op} {row.place.replace(',', ' ')} {row.dtype}"


def _rate(flops: float) -> str:
    """FLOP/s with a prefix."""
    for factor, unit in ((1e12, "TFLOP/s"), (1e9, "GFLOP/s"), (1e6, "MFLOP/s")):
        if flops >= factor:
            return f"{flops / factor:.3g} {unit}"
    return f"{flops:.3g} FLOP/s"


def _line(css: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{css}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, css: str) -> str:
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'
