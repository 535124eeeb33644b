"""Charts of the report as inline SVG: they take the page's colours, so they follow light and dark.

Every function returns markup whose text is escaped. Colours are classes (`real`, `fake`, `floor` ...) that the
page's style sheet defines. Dots are zero-length strokes with round caps: a thousand of them cost a few kilobytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

Points = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Axis:
    """A scale from data to pixels, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        v = math.log10(max(value, self.low)) if self.log else value
        return self.start + (v - low) / ((high - low) or 1.0) * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Round values that a person would choose."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            values = [
                m * 10.0**p
                for p in powers
                for m in ((1, 1.5, 2, 3, 5, 7) if len(powers) < 3 else (1, 2, 5) if len(powers) < 4 else (1,))
            ]
        else:
            raw = (self.high - self.low) / max(count, 1) or 1.0
            power = 10.0 ** math.floor(math.log10(raw))
            step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
            values = [math.ceil(self.low / step - 1e-9) * step + i * step for i in range(count + 3)]
        slack = 1e-9 * abs(self.high - self.low)
        return [0.0 if abs(v) < 1e-12 else v for v in values if self.low - slack <= v <= self.high + slack]


def label(value: float) -> str:
    """A short tick label.

    >>> label(0.25), label(1000.0), label(2_500_000)
    ('0.25', '1000', '2.5M')
    """
    for factor, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "")):
        if abs(value) >= factor:
            return f"{value / factor:.3g}{suffix}" if suffix else f"{value / 1e3:.3g}k"
    return f"{value:.0f}" if value == int(value) else f"{value:.3g}"


def _dots(points: Points, x: Axis, y: Axis) -> str:
    inside = (p for p in points if math.isfinite(p[0]) and math.isfinite(p[1]))
    return "".join(f"M{x(a):.1f} {y(b):.1f}h0" for a, b in inside)


def _svg(width: float, height: float, alt: str, body: str, kind: str = "chart") -> Markup:
    return Markup(
        f'<svg class="{kind}" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(alt)}"'
        f' style="max-width:{width:g}px"><title>{escape(alt)}</title>{body}</svg>'
    )


def span(values: Sequence[float], pad: float = 0.06) -> tuple[float, float]:
    """Limits that hold all finite values with a margin."""
    finite = [v for v in values if math.isfinite(v)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    margin = (high - low) * pad or abs(high) * 0.1 or 1.0
    return low - margin, high + margin


def scatter(real: Points, fake: Points | None, alt: str, size: int = 260) -> Markup:
    """Real points in grey beneath generated ones in colour, on one square scale fixed by the real data."""
    (x0, x1), (y0, y1) = span([p[0] for p in real], 0.12), span([p[1] for p in real], 0.12)
    x, y = Axis(x0, x1, 4, size - 4), Axis(y0, y1, size - 4, 4)
    shown = [p for p in fake or () if x0 <= p[0] <= x1 and y0 <= p[1] <= y1]
    body = f'<path class="dots real" d="{_dots(real, x, y)}"/>'
    if fake is not None:
        body += f'<path class="dots fake" d="{_dots(shown, x, y)}"/>'
    return _svg(size, size, alt, body, "chart scatter")


Series = tuple[str, Sequence[float], Sequence[float]]  # name, x, y


def curve(series: Sequence[Series], alt: str, unit: str = "s") -> Markup:
    """Lines against training time or steps; the first plunge may leave the scale at its top."""
    width, height, left, bottom = 340, 190, 46, 26
    xs = [v for _, a, _ in series for v in a]
    ys = sorted(v for _, _, b in series for v in b if math.isfinite(v))
    if not xs or not ys:
        return _svg(width, height, alt, "")
    low, high = len(ys) // 100, len(ys) // 10 if len(ys) >= 20 else 0
    y0, y1 = span(ys[low : len(ys) - high])
    x, y = Axis(min(xs), max(xs), left, width - 8), Axis(y0, y1, height - bottom, 8)
    body = "".join(
        f'<path class="grid" d="M{left} {y(t):.1f}H{width - 8}"/>'
        f'<text x="{left - 6}" y="{y(t) + 4:.1f}" text-anchor="end">{label(t)}</text>'
        for t in y.ticks(4)
    )
    body += "".join(
        f'<text x="{x(t):.1f}" y="{height - 8}" text-anchor="middle">{label(t)}</text>' for t in x.ticks(4)[:-1]
    )
    body += f'<text x="{width - 8}" y="{height - 8}" text-anchor="end">{escape(unit)}</text>'
    for i, (_, a, b) in enumerate(series):
        points = [(x(u), min(max(y(v), 4.0), height - bottom)) for u, v in zip(a, b) if math.isfinite(v)]
        step = max(1, len(points) // 300)
        kept = points[::step] + ([points[-1]] if points and (len(points) - 1) % step else [])
        line = "M" + "L".join(f"{u:.1f} {v:.1f}" for u, v in kept)
        body += f'<path class="line c{i % 4}" d="{line}"/>'
    return _svg(width, height, alt, body)


def interval(
    value: float, low: float, high: float, domain: tuple[float, float], marks: Sequence[tuple[str, float]]
) -> Markup:
    """A dot with its interval on a fixed scale, with ticks for the null rows (the numbers stand beside it)."""
    width, height = 132, 18
    axis = Axis(*domain, 5, width - 5)

    def at(v: float) -> float:
        return min(max(axis(v), 2.0), width - 2.0)

    body = f'<path class="track" d="M4 9H{width - 4}"/>'
    body += "".join(
        f'<path class="mark {escape(kind)}" d="M{at(v):.1f} 3V15"/>' for kind, v in marks if math.isfinite(v)
    )
    if math.isfinite(low) and math.isfinite(high):
        body += f'<path class="whisker" d="M{at(low):.1f} 9H{at(high):.1f}"/>'
    body += f'<circle class="dot" cx="{at(value):.1f}" cy="9" r="4"/>'
    return Markup(f'<svg class="interval" viewBox="0 0 {width} {height}" aria-hidden="true">{body}</svg>')


@dataclass(frozen=True)
class Spot:
    """A model on the frontier chart."""

    name: str
    cost: float
    value: float
    low: float
    high: float


def frontier(
    spots: Sequence[Spot],
    levels: Sequence[tuple[str, str, float]],
    *,
    x_title: str,
    y_title: str,
    best: str,
    width: int,
) -> Markup:
    """Quality against cost. The line joins the models that no cheaper model matches.

    Args:
        spots: one for each model, cost > 0.
        levels: (class, words, value) of horizontal reference lines: ceiling and floor.
        x_title: what the cost is, with its unit.
        y_title: what the quality is.
        best: "low" or "high": which end of the vertical axis is good; good is always drawn upwards.
        width: in pixels; a phone gets its own narrower drawing.
    """
    height, left, right, top, bottom = 340, 52, 16, 14, 44
    values = [v for s in spots for v in (s.value, s.low, s.high)] + [v for _, _, v in levels]
    y0, y1 = span(values)
    costs = [s.cost for s in spots]
    low, high = min(costs), max(costs)
    x = Axis(low / 1.6, high * 2.4, left, width - right, log=True)
    y = Axis(y0, y1, top, height - bottom) if best == "low" else Axis(y0, y1, height - bottom, top)
    body = "".join(
        f'<path class="grid" d="M{left} {y(t):.1f}H{width - right}"/>'
        f'<text x="{left - 8}" y="{y(t) + 4:.1f}" text-anchor="end">{label(t)}</text>'
        for t in y.ticks(5)
    )
    body += "".join(f'<text x="{x(t):.1f}" y="{height - 24}" text-anchor="middle">{label(t)}</text>' for t in x.ticks())
    centre = (left + width - right) / 2
    body += f'<text class="title" x="{centre}" y="{height - 5}" text-anchor="middle">{escape(x_title)}</text>'
    middle = (top + height - bottom) / 2
    turn = f"translate(12 {middle}) rotate(-90)"
    body += f'<text class="title" transform="{turn}" text-anchor="middle">{escape(y_title)}</text>'
    taken: list[tuple[float, float, float]] = []  # (left, right, y) of words already placed
    for kind, words, value in levels:
        body += f'<path class="level {escape(kind)}" d="M{left} {y(value):.1f}H{width - right}"/>'
        body += f'<text class="level {escape(kind)}" x="{left + 4}" y="{y(value) - 6:.1f}">{escape(words)}</text>'
        taken.append((left, left + 7.0 * len(words), y(value) - 6))
    sign = 1.0 if best == "low" else -1.0
    front, record = [], math.inf
    for s in sorted(spots, key=lambda s: (s.cost, sign * s.value)):
        if sign * s.value < record:
            front.append(s)
            record = sign * s.value
    line = "M" + "L".join(f"{x(s.cost):.1f} {y(s.value):.1f}" for s in front)
    body += f'<path class="front" d="{line}"/>'
    taken += [(x(s.cost) - 7, x(s.cost) + 7, y(s.value) + 4) for s in spots]
    for s in sorted(spots, key=lambda s: y(s.value)):
        px, py = x(s.cost), y(s.value)
        body += f'<path class="whisker" d="M{px:.1f} {y(s.low):.1f}V{y(s.high):.1f}"/>'
        body += f'<circle class="{"dot" if s in front else "dot dim"}" cx="{px:.1f}" cy="{py:.1f}" r="5"/>'
        text_width = 6.6 * len(s.name)
        flip = px + 10 + text_width > width
        a = px - 10 - text_width if flip else px + 10
        ty = py + 4
        while any(a < r and l < a + text_width and abs(ty - v) < 13 for l, r, v in taken):
            ty += 13
        taken.append((a, a + text_width, ty))
        anchor, tx = ("end", px - 10) if flip else ("start", px + 10)
        body += f'<text class="name" x="{tx:.1f}" y="{ty:.1f}" text-anchor="{anchor}">{escape(s.name)}</text>'
    alt = f"{y_title} against {x_title}: " + "; ".join(f"{s.name} {s.value:.3g} at {s.cost:.3g}" for s in spots)
    return _svg(width, height, alt, body)
