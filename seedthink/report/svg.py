"""Charts as inline SVG: no script, no font, no library; colours come from the page's style sheet.

Every chart has a fixed viewBox and scales with its column. Points carry a <title>, which browsers show as a tooltip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from math import ceil, floor, log10

WIDTH, HEIGHT = 520, 216
LEFT, RIGHT, TOP, BOTTOM = 46, 58, 12, 30

MOST_HITS = 120  # points of a line that get a tooltip each; more would only make the file larger

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line. `bars` are (low, high) per point; `css` names its colour class; `faint` draws it thin behind."""

    label: str
    points: Sequence[Point]
    css: str = "c1"
    bars: Sequence[tuple[float, float]] = ()
    faint: bool = False
    dots: bool = False


@dataclass(frozen=True)
class Frame:
    """Maps data to the drawing: x in [x0, x1], y in [y0, y1]."""

    x0: float
    x1: float
    y0: float
    y1: float
    width: int = WIDTH
    height: int = HEIGHT

    def x(self, value: float) -> float:
        """Horizontal position of a value."""
        span = self.x1 - self.x0 or 1.0
        return LEFT + (value - self.x0) / span * (self.width - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Vertical position of a value."""
        span = self.y1 - self.y0 or 1.0
        return self.height - BOTTOM - (value - self.y0) / span * (self.height - TOP - BOTTOM)


def number(value: float) -> str:
    """Write a number in at most five characters or so."""
    size = abs(value)
    if value == 0:
        return "0"
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e3:
        return f"{value / 1e3:.3g}k" if size >= 1e4 or value % 100 == 0 else f"{value:.0f}"
    if size < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:.3g}"


def percent(value: float) -> str:
    """Write a fraction as per cent: whole, or where it is below ten per cent with two digits that count."""
    points = 100 * value
    return f"{points:.2g} %" if 0 < abs(points) < 10 else f"{points:.0f} %"


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return about `count` round numbers that cover low to high."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / count
    power = 10.0 ** floor(log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    return [round(step * at, 12) for at in range(first, last + 1)]


def smooth(points: Sequence[Point], width: int) -> list[Point]:
    """Return the centred moving mean over `width` points, shorter at the ends."""
    half, out = width // 2, []
    for at, (x, _) in enumerate(points):
        window = points[max(0, at - half) : at + half + 1]
        out.append((x, sum(y for _, y in window) / len(window)))
    return out


def thin(points: Sequence[Point], most: int = 400) -> list[Point]:
    """Average neighbours so that at most `most` points remain."""
    if len(points) <= most:
        return list(points)
    edges = [round(at * len(points) / most) for at in range(most + 1)]
    cuts = [points[a:b] for a, b in pairwise(edges)]
    return [(sum(x for x, _ in cut) / len(cut), sum(y for _, y in cut) / len(cut)) for cut in cuts]


def line_chart(
    series: Sequence[Series],
    *,
    shown: Callable[[float], str] = number,
    bounds: tuple[float | None, float | None] = (None, None),
    x_label: str = "step",
    x_shown: Callable[[float], str] = number,
    mark: float | None = None,
) -> str:
    """Draw lines over a common x. `bounds` fixes the y range where it is known; `mark` draws a vertical rule at x."""
    drawn = [item for item in series if item.points]
    if not drawn:
        return ""
    frame, levels = _frame(drawn, bounds)
    parts = [_grid(frame, levels, shown), _x_axis(frame, x_label, x_shown)]
    if mark is not None:
        parts.append(_rule("mark", (frame.x(mark), TOP), (frame.x(mark), frame.height - BOTTOM)))
    parts += [_line(item, frame, shown, x_shown, x_label) for item in sorted(drawn, key=lambda item: not item.faint)]
    parts.append(_end_labels([item for item in drawn if not item.faint], frame, shown))
    return _svg("".join(parts), frame)


def stacked_bars(labels: Sequence[str], steps: Sequence[tuple[float, Sequence[float]]], unit: str = "s") -> str:
    """Draw one stacked bar per (step, values), values in the order of labels; colours are c1, c2, ..."""
    if not steps:
        return ""
    top = max(sum(values) for _, values in steps) or 1.0
    levels = ticks(0, top, 3)
    frame = Frame(-0.5, len(steps) - 0.5, 0, levels[-1], width=1080, height=240)
    parts = [_grid(frame, levels, lambda value: f"{number(value)} {unit}")]
    width = min(40.0, 0.72 * (frame.x(1) - frame.x(0)))
    for at, (step, values) in enumerate(steps):
        base = 0.0
        for index, value in enumerate(values):
            if value > 0:
                y, height = frame.y(base + value), frame.y(base) - frame.y(base + value)
                place = f'x="{frame.x(at) - width / 2:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
                title = escape(f"step {step:g}: {labels[index]} {value:.3g} {unit}")
                parts.append(f'<rect class="fill c{index + 1}" {place}><title>{title}</title></rect>')
            base += value
    every = max(1, len(steps) // 8)
    for at, (step, _) in enumerate(steps):
        if at % every == 0:
            parts.append(_text(frame.x(at), frame.height - 12, number(step), "tick mid"))
    return _svg("".join(parts), frame)


def interval_chart(
    rows: Sequence[tuple[str, tuple[float, float, float] | None, tuple[float, float, float] | None]],
) -> str:
    """Draw (label, before, after) as points with intervals on an axis from 0 to 100 %; each is (mean, low, high)."""
    row_height, top, left, right = 34, 6, 132, 70
    width, height = 720, top + row_height * len(rows) + 26
    parts: list[str] = []

    def x(value: float) -> float:
        return left + value * (width - left - right)

    for level in (0, 0.25, 0.5, 0.75, 1):
        parts.append(_rule("grid", (x(level), top), (x(level), height - 22)))
        parts.append(_text(x(level), height - 7, percent(level), "tick mid"))
    for at, (label, before, after) in enumerate(rows):
        y = top + row_height * (at + 0.5)
        parts.append(_text(left - 14, y + 4, label, "row end" if at else "row end strong"))
        if before and after:
            parts.append(_rule("path", (x(before[0]), y), (x(after[0]), y)))
        for kind, entry in (("before", before), ("after", after)):
            if entry:
                mean, low, high = entry
                title = f"{label} {kind}: {percent(mean)} ({100 * low:.1f} to {100 * high:.1f})"
                parts.append(
                    f'<g class="{kind}"><line x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{y}" y2="{y}"/>'
                    f'<circle cx="{x(mean):.1f}" cy="{y}" r="5.5"><title>{escape(title)}</title></circle></g>'
                )
        if before and after:
            gain = 100 * (after[0] - before[0])
            parts.append(_text(width - right + 16, y + 4, f"{gain:+.1f}", "gain"))
    return f'<svg class="chart intervals" viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>'


def _frame(series: Sequence[Series], bounds: tuple[float | None, float | None]) -> tuple[Frame, list[float]]:
    xs = [x for item in series for x, _ in item.points]
    ys = [y for item in series for _, y in item.points] + [end for item in series for bar in item.bars for end in bar]
    low = min(ys) if bounds[0] is None else bounds[0]
    high = max(ys) if bounds[1] is None else bounds[1]
    levels = ticks(low, high)
    return Frame(min(xs), max(xs), levels[0], levels[-1]), levels


def _line(item: Series, frame: Frame, shown: Callable, x_shown: Callable, x_label: str) -> str:
    points = [(frame.x(x), frame.y(y)) for x, y in item.points]
    path = " ".join(f"{'L' if at else 'M'}{x:.1f} {y:.1f}" for at, (x, y) in enumerate(points))
    out = f'<path class="line {item.css}{" faint" if item.faint else ""}" d="{path}"/>'
    for (low, high), (x, _) in zip(item.bars, points, strict=bool(item.bars)):
        out += _rule(f"bar {item.css}", (x, frame.y(low)), (x, frame.y(high)))
    dots = item.dots or len(points) == 1
    if item.faint or (len(points) > MOST_HITS and not dots):
        return out
    css, radius = (f"dot {item.css}", 3.4) if dots else ("hit", 6)
    for (x, y), (step, value) in zip(points, item.points, strict=True):
        title = escape(f"{item.label}: {shown(value)} at {x_label} {x_shown(step)}")
        out += f'<circle class="{css}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"><title>{title}</title></circle>'
    return out


def _end_labels(series: Sequence[Series], frame: Frame, shown: Callable[[float], str]) -> str:
    """The last value beside the end of each line, pushed apart so that none overlap."""
    ends = sorted(((frame.y(item.points[-1][1]), item) for item in series), key=lambda end: end[0])
    heights: list[float] = []
    for y, _ in ends:
        heights.append(max(y, heights[-1] + 12) if heights else y)
    above = max(0.0, heights[-1] - (frame.height - BOTTOM)) if heights else 0.0
    return "".join(
        _text(frame.x(item.points[-1][0]) + 7, y - above + 4, shown(item.points[-1][1]), f"end-label {item.css}")
        for y, (_, item) in zip(heights, ends, strict=True)
    )


def _grid(frame: Frame, levels: Sequence[float], shown: Callable[[float], str]) -> str:
    out = ""
    for level in levels:
        y = frame.y(level)
        out += _rule("grid", (LEFT, y), (frame.width - RIGHT, y))
        out += _text(LEFT - 8, y + 4, shown(level), "tick end")
    return out


def _x_axis(frame: Frame, label: str, shown: Callable[[float], str]) -> str:
    out = ""
    inside = [level for level in ticks(frame.x0, frame.x1, 5) if frame.x0 <= level <= frame.x1]
    for level in inside:
        out += _text(frame.x(level), frame.height - 12, shown(level), "tick mid")
    return out + _text(frame.width - RIGHT + 16, frame.height - 12, label, "tick")


def _rule(css: str, start: Point, end: Point) -> str:
    (x1, y1), (x2, y2) = start, end
    return f'<line class="{css}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, css: str) -> str:
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _svg(body: str, frame: Frame) -> str:
    return f'<svg class="chart" viewBox="0 0 {frame.width} {frame.height}" role="img">{body}</svg>'
