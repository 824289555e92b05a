"""Line charts as inline SVG, for the report: raw and smoothed curves, log axis where it helps, values on hover.

A chart is text only; colours and fonts come from the page's style sheet (classes `s0`, `s1`, ...), so it follows the
light and the dark theme. The hover values are a JSON block beside the SVG, read by the page's script.
"""

import dataclasses
import html
import json
import math
import zlib
from collections.abc import Sequence

import numpy as np

_MARGIN_LEFT, _MARGIN_RIGHT, _MARGIN_TOP, _MARGIN_BOTTOM = 48, 14, 10, 30
_SMOOTH_FROM = 40  # points: shorter curves are drawn as they are
_MOST_POINTS = 500
_LOG_FROM = 12.0  # ratio of the largest value to the smallest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
    """One curve: its values at steps. Values that are not finite are left out of the drawing."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    sparse: bool = False  # few points that each count (validation): marked, never smoothed

    def finite(self) -> tuple[np.ndarray, np.ndarray]:
        steps, values = np.asarray(self.steps, float), np.asarray(self.values, float)
        keep = np.isfinite(values)
        return steps[keep], values[keep]


@dataclasses.dataclass(frozen=True)
class _Axis:
    """Maps values in [low, high] to pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: np.ndarray) -> np.ndarray:
        value, low, high = (np.log(np.maximum(v, 1e-300)) if self.log else v for v in (value, self.low, self.high))
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def smooth(values: np.ndarray) -> np.ndarray:
    """Exponential moving average, forwards and then backwards so that it does not lag; half-life 1/100 of the curve."""
    decay = 0.5 ** (100.0 / max(len(values), 100))
    for _ in range(2):
        average, weight, out = 0.0, 0.0, np.empty(len(values))
        for i, value in enumerate(values):
            average, weight = decay * average + (1 - decay) * value, decay * weight + (1 - decay)
            out[i] = average / weight
        values = out[::-1]
    return values


def is_noisy(values: np.ndarray) -> bool:
    """Whether a curve goes up and down far more than it goes anywhere; a learning rate does not."""
    return bool(np.abs(np.diff(values)).sum() > 4 * (values.max() - values.min()))


def thin(steps: np.ndarray, values: np.ndarray, most: int = _MOST_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most about `most` points that keep the extremes: the least and the greatest of each run of points."""
    if len(values) <= most:
        return steps, values
    keep = {0, len(values) - 1}
    for part in np.array_split(np.arange(len(values)), most // 2):
        keep |= {int(part[values[part].argmin()]), int(part[values[part].argmax()])}
    index = sorted(keep)
    return steps[index], values[index]


def line_chart(title: str, series: Sequence[Series], *, axis: str = "step", width: int = 960, height: int = 320) -> str:
    """A chart with its legend as an HTML `figure`, over what `axis` names; empty text if nothing finite is there."""
    curves = [(one, *one.finite()) for one in series]
    curves = [(one, steps, values) for one, steps, values in curves if len(values)]
    if not curves:
        return ""
    drawn = [_curve(one, steps, values) for one, steps, values in curves]
    x_low, x_high = min(s.min() for _, s, _ in curves), max(s.max() for _, s, _ in curves)
    if x_low == x_high:
        x_low, x_high = x_low - 1, x_high + 1
    low, high, log = _range([points for curve in drawn for points in curve["range"]])
    x = _Axis(x_low, x_high, _MARGIN_LEFT, width - _MARGIN_RIGHT)
    y = _Axis(low, high, height - _MARGIN_BOTTOM, _MARGIN_TOP, log)
    body = [_axes(x, y, width, height)]
    hover = []
    for index, curve in enumerate(drawn):
        if curve["raw"] is not None:
            body.append(f'<path class="raw s{index}" d="{_path(x, y, *curve["raw"])}"/>')
        body.append(f'<path class="line s{index}" d="{_path(x, y, *curve["line"])}"/>')
        if curve["dots"]:
            steps, values = curve["line"]
            dots = zip(x(steps), y(values), strict=True)
            body += [f'<circle class="dot s{index}" cx="{a:.1f}" cy="{b:.1f}" r="2.6"/>' for a, b in dots]
        steps, values = curve["line"]
        points = [
            [round(float(a), 1), _short(s), format_number(v)] for a, s, v in zip(x(steps), steps, values, strict=True)
        ]
        heights = [round(float(b), 1) for b in y(values)]
        hover.append({"name": curve["name"], "points": points, "heights": heights})
    clip = f"clip-{zlib.crc32(title.encode())}"
    box = f'x="{_MARGIN_LEFT}" y="0" width="{width - _MARGIN_LEFT}" height="{height - _MARGIN_BOTTOM + 3}"'
    data = json.dumps(
        {"axis": axis, "width": width, "top": _MARGIN_TOP, "bottom": height - _MARGIN_BOTTOM, "series": hover}
    )
    scale = ' <span class="unit">log scale</span>' if log else ""
    return (
        f'<figure class="chart"><figcaption><b>{html.escape(title)}</b>{scale}{_legend(drawn)}</figcaption>'
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(title)}">'
        f'<clipPath id="{clip}"><rect {box}/></clipPath>{body[0]}'
        f'<g clip-path="url(#{clip})">{"".join(body[1:])}</g><g class="hover"></g></svg>'
        f'<script type="application/json">{data.replace("<", chr(92) + "u003c")}</script></figure>'
    )


def format_number(value: float) -> str:
    """A number for people: four significant digits, thousands separated, no trailing zeros."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return str(value)
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 1e-3:
        mantissa, exponent = f"{value:.3e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.4g}"


def _curve(one: Series, steps: np.ndarray, values: np.ndarray) -> dict:
    smoothed = not one.sparse and len(values) >= _SMOOTH_FROM and is_noisy(values)
    line = smooth(values) if smoothed else values
    bulk = np.quantile(values, [0.01, 0.99]) if smoothed else values
    return {
        "name": one.name,
        "last": line[-1],
        "smoothed": smoothed,
        "raw": thin(steps, values) if smoothed else None,
        "line": thin(steps, line),
        "dots": len(values) <= _SMOOTH_FROM,
        "range": [bulk, line],
    }


def _range(parts: list[np.ndarray]) -> tuple[float, float, bool]:
    """Limits of the vertical axis, and whether it is logarithmic."""
    values = np.concatenate(parts)
    low, high = float(values.min()), float(values.max())
    falls_early = np.median(values) - low < 0.25 * (high - low)  # most of the curve would lie on the floor
    if low > 0 and high / low > _LOG_FROM and falls_early:
        room = (high / low) ** 0.05
        return low / room, high * room, True
    if low == high:
        room = abs(low) * 0.1 or 1.0
        return low - room, high + room, False
    room = 0.06 * (high - low)
    return (0.0 if 0 <= low < 0.25 * high else low - room), high + room, False


def _axes(x: _Axis, y: _Axis, width: int, height: int) -> str:
    parts = []
    for value in _log_ticks(y) if y.log else _ticks(y.low, y.high, 5):
        at = float(y(np.float64(value)))
        parts.append(f'<line class="grid" x1="{x.start}" x2="{width - _MARGIN_RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{x.start - 8}" y="{at + 3.5:.1f}" text-anchor="end">{format_number(value)}</text>')
    for value in _ticks(x.low, x.high, 8 if width > 600 else 4):
        at = float(x(np.float64(value)))
        anchor = "end" if at > width - _MARGIN_RIGHT - 12 else "middle"
        label = f'x="{at:.1f}" y="{height - 10}" text-anchor="{anchor}"'
        parts.append(f"<text {label}>{_short(value)}</text>")
    bottom = height - _MARGIN_BOTTOM
    parts.append(f'<line class="axis" x1="{x.start}" x2="{width - _MARGIN_RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    return "".join(parts)


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers in [low, high], some `about` of them."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [float(f"{k * step:.12g}") for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(y: _Axis) -> list[float]:
    exponents = range(math.floor(math.log10(y.low)), math.ceil(math.log10(y.high)) + 1)
    for multiples in ((1,), (1, 3), (1, 2, 5)):
        ticks = [m * 10.0**e for e in exponents for m in multiples if y.low <= m * 10.0**e <= y.high]
        if len(ticks) >= 4:
            break
    every = -(-len(ticks) // 7)
    return [float(f"{tick:.12g}") for tick in ticks[::every]]


def _path(x: _Axis, y: _Axis, steps: np.ndarray, values: np.ndarray) -> str:
    return "M" + "L".join(f"{a:.1f},{b:.1f}" for a, b in zip(x(steps), y(values), strict=True))


def _legend(drawn: list[dict]) -> str:
    """Name, and the last value of the curve; an only curve needs no colour key."""
    parts = []
    for index, curve in enumerate(drawn):
        key = f'<i class="key s{index}"></i>{html.escape(curve["name"])} ' if len(drawn) > 1 else ""
        kind = " smoothed" if curve["smoothed"] else ""
        parts.append(
            f'<span class="legend">{key}<span class="unit">last{kind}</span> {format_number(curve["last"])}</span>'
        )
    return "".join(parts)


def _short(step: float) -> str:
    """A step count: 500, 2k, 12.5k, 1.2M."""
    for size, unit in ((1e6, "M"), (1e4, "k")):
        if abs(step) >= size:
            return f"{step / (1e6 if unit == 'M' else 1e3):.4g}{unit}"
    return f"{step:,.0f}" if step == round(step) else f"{step:g}"
