"""A plot of numbers by depth as SVG, to stand inside a page: sharp at any size, a name under the pointer, no script."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDE, HIGH = 1100, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 14, 34
_MOST = 2000  # points of a line; beyond that, the largest of each group stands for it
_SMALLEST = 1e-9  # on a logarithmic scale, of the largest


@dataclass(frozen=True, slots=True)
class Mark:
    """A point: `x` in [0, 1] (depth), `y` as it is, what the pointer shows, and whether it stands out as a failure."""

    x: float
    y: float
    title: str
    bad: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """Points from left to right under one name; `style` is a class of the page's style sheet, such as "local"."""

    name: str
    style: str
    marks: Sequence[Mark]
    dots: bool = True


def chart(lines: Sequence[Line], *, y_label: str, x_label: str, logarithmic: bool) -> str:
    """The SVG, all text in it escaped; "" where there is no number to draw."""
    thinned = [Line(line.name, line.style, _thin(line.marks), line.dots) for line in lines]
    values = [m.y for line in thinned for m in line.marks if math.isfinite(m.y)]
    if logarithmic:
        values = [v for v in values if v > 0]
    if not values:
        return ""
    low, high, ticks = _logarithmic(values) if logarithmic else _linear(values)

    def place(mark: Mark) -> tuple[float, float]:
        value = high if mark.y == math.inf else mark.y
        if logarithmic:
            part = (math.log10(max(value, low)) - math.log10(low)) / (math.log10(high) - math.log10(low))
        else:
            part = (value - low) / (high - low)
        x = _LEFT + 8 + mark.x * (WIDE - _LEFT - _RIGHT - 16)
        return x, HIGH - _BOTTOM - min(max(part, 0.0), 1.0) * (HIGH - _TOP - _BOTTOM)

    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDE} {HIGH}" role="img" aria-label="{escape(y_label)}">',
        *_frame(place, ticks, y_label, x_label),
    ]
    for line in thinned:
        there = [(place(m), m) for m in line.marks if not math.isnan(m.y)]
        path = " ".join(f"{x:.1f},{y:.1f}" for (x, y), _ in there)
        parts.append(f'<polyline class="{escape(line.style)}" points="{path}"/>')
        for (x, y), mark in there:
            if line.dots or mark.bad:
                look, radius = ("bad", 5) if mark.bad else (line.style, 3)
                parts.append(
                    f'<circle class="dot {escape(look)}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">'
                    f"<title>{escape(mark.title)}</title></circle>"
                )
    return "\n".join([*parts, "</svg>"])


def _frame(
    place: Callable[[Mark], tuple[float, float]], ticks: Sequence[tuple[float, str]], y_label: str, x_label: str
) -> list[str]:
    parts = []
    for value, label in ticks:
        y = place(Mark(0.0, value, ""))[1]
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDE - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(label)}</text>')
    middle = (_LEFT + WIDE - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HIGH - 8}" text-anchor="middle">{escape(x_label)}</text>')
    side = f'transform="translate(14 {(_TOP + HIGH - _BOTTOM) / 2}) rotate(-90)"'
    parts.append(f'<text {side} text-anchor="middle">{escape(y_label)}</text>')
    return parts


def _thin(marks: Sequence[Mark]) -> list[Mark]:
    if len(marks) <= _MOST:
        return list(marks)
    size = -(-len(marks) // _MOST)
    groups = [marks[k : k + size] for k in range(0, len(marks), size)]
    return [max(group, key=lambda m: (m.bad, -math.inf if math.isnan(m.y) else m.y)) for group in groups]


def _logarithmic(values: Sequence[float]) -> tuple[float, float, list[tuple[float, str]]]:
    top = math.ceil(math.log10(max(values)) + 1e-9)
    bottom = max(math.floor(math.log10(min(values)) - 1e-9), top + round(math.log10(_SMALLEST)))
    bottom = min(bottom, top - 1)
    step = max(1, -(-(top - bottom) // 6))
    return 10.0**bottom, 10.0**top, [(10.0**k, f"1e{k}") for k in range(bottom, top + 1, step)]


def _linear(values: Sequence[float]) -> tuple[float, float, list[tuple[float, str]]]:
    low, high = min(0.0, *values), max(values)
    high = high if high > low else low + 1
    raw = (high - low) / 4
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return first * step, last * step, [(k * step, f"{k * step:.3g}") for k in range(first, last + 1)]
