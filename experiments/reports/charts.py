"""Charts: described once, drawn for an interactive page, or as a PNG file for a document.

    chart = Chart(title="loss by step", series=(Series(name="training", steps=steps, values=losses),))
    chart.html()                      # a `figure` with inline SVG, for reports/style.py and reports/script.py
    save_charts([chart], path)        # matplotlib, panels side by side

The SVG is text only; colours and fonts come from the page's style sheet (classes `s0`, `s1`, ...), so it follows the
light and the dark theme. A JSON block beside it holds the numbers, from which the page's script draws the chart again
at the width it has, zoomed, and on the other scale.
"""

import dataclasses
import html
import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

COLORS = 8  # colours in the style sheet; further curves start again with the first
_MARGIN_LEFT, _MARGIN_RIGHT, _MARGIN_TOP, _MARGIN_BOTTOM = 48, 14, 10, 30
_MARK = 6  # pixels that a marker needs around it
_SMOOTH_FROM = 40  # points: shorter curves are drawn as they are
_FEW, _MOST_MARKED = 15, 100  # points: curves of at most so many are marked, the second where each point counts
_MOST_POINTS = 500
_LOG_FROM = 12.0  # ratio of the largest value to the smallest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
    """One curve: its values at steps. Values that are not finite are left out of the drawing.

    Attributes:
      name: name in the legend; curves with the same name share one entry.
      steps: positions on the horizontal axis.
      values: values to draw.
      errors: half the length of each error bar; no bar where it is not finite.
      sparse: the points are few and each counts (validation): they are marked, never smoothed.
      joined: whether a line connects the points.
      dashed: whether that line is dashed.
      color: number of the colour; by default the index of the curve.
    """

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    errors: Sequence[float] | None = None
    sparse: bool = False
    joined: bool = True
    dashed: bool = False
    color: int | None = None

    def finite(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Steps, values and halves of error bars, where the value is finite; a missing bar has the length 0."""
        steps, values = np.asarray(self.steps, float), np.asarray(self.values, float)
        errors = np.zeros(len(values)) if self.errors is None else np.asarray(self.errors, float)
        keep = np.isfinite(values)
        return steps[keep], values[keep], np.where(np.isfinite(errors), errors, 0.0)[keep]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chart:
    """Curves over one axis.

    Attributes:
      title: title above the chart.
      series: the curves.
      axis: name of the horizontal axis.
      places: names for the positions 0, 1, ... on it, if these are not amounts.
      log_x: whether it is logarithmic, to the base 2.
      log_y: whether the vertical axis is logarithmic; None: if most of the curve would lie near the bottom otherwise.
    """

    title: str
    series: Sequence[Series]
    axis: str = "step"
    places: Sequence[str] = ()
    log_x: bool = False
    log_y: bool | None = None

    def html(self, *, width: int = 960, height: int = 320) -> str:
        """A `figure` with its legend; an empty text if no value is finite."""
        curves = [_Curve.of(i, one) for i, one in enumerate(self.series)]
        curves = [curve for curve in curves if len(curve.values)]
        if not curves:
            return ""
        x = _Axis(*self._horizontal(curves), _MARGIN_LEFT, width - _MARGIN_RIGHT, self.log_x)
        low, high, log = _range([part for curve in curves for part in curve.range], self._log_y(curves))
        y = _Axis(low, high, height - _MARGIN_BOTTOM, _MARGIN_TOP, log)
        body = "".join(_drawn(curve, x, y) for curve in curves)
        data = {
            "axis": self.axis,
            "places": list(self.places),
            "logX": self.log_x,
            "log": log,
            "x": [x.low, x.high],
            "y": [y.low, y.high],
            "height": height,
            "series": [curve.data() for curve in curves],
        }
        clip = f"clip-{zlib.crc32(repr((self.title, data['series'])).encode())}"
        box = (
            f'x="{_MARGIN_LEFT - _MARK}" y="{_MARGIN_TOP - _MARK}" width="{x.end - x.start + 2 * _MARK}" '
            f'height="{y.start - y.end + 2 * _MARK}"'
        )
        title = html.escape(self.title)
        block = json.dumps(data, allow_nan=False).replace("<", chr(92) + "u003c")
        scale = "" if self.axis == "step" else f' <span class="unit">over {html.escape(self.axis)}</span>'
        scale += ' <span class="unit scale">log scale</span>' if log else ""
        return (
            f'<figure class="chart"><figcaption><strong>{title}</strong>{scale}{self._legend(curves)}</figcaption>'
            f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{title}">'
            f'<clipPath id="{clip}"><rect {box}/></clipPath>{_axes(x, y, self.places)}'
            f'<g clip-path="url(#{clip})">{body}</g></svg>'
            f'<script type="application/json">{block}</script></figure>'
        )

    def _log_y(self, curves: Sequence["_Curve"]) -> bool | None:
        """Whether the vertical axis is logarithmic, which is impossible for values that are not positive."""
        return self.log_y if all(curve.values.min() > 0 for curve in curves) else False

    def _horizontal(self, curves: Sequence["_Curve"]) -> tuple[float, float]:
        if self.places:
            return -0.5, len(self.places) - 0.5
        low, high = min(c.steps.min() for c in curves), max(c.steps.max() for c in curves)
        if self.log_x:
            return (low / 1.12, high * 1.12) if low != high else (low / 2, high * 2)
        return (low, high) if low != high else (low - 1, high + 1)

    def _legend(self, curves: Sequence["_Curve"]) -> str:
        """The name of each curve and, over steps, its last value; a single curve needs no colour key."""
        parts, names = [], set()
        for curve in curves:
            if curve.name in names:
                continue
            names.add(curve.name)
            mine = [one for one in curves if one.name == curve.name]
            key = f'<i class="key s{curve.color}"></i>{html.escape(curve.name)} ' if len(curves) > 1 else ""
            kind = " smoothed" if curve.smoothed else ""
            last = f'<span class="unit">last{kind}</span> {format_number(curve.line[1][-1])}'
            parts.append(f'<span class="legend">{key}{last if self.axis == "step" and len(mine) == 1 else ""}</span>')
        return "".join(parts)


def save_charts(charts: Sequence[Chart], path: Path, *, columns: int = 1, panel: tuple[float, float] = (6.4, 3.6),
                legend: bool = True) -> None:  # fmt: skip
    """Write panels of charts as a PNG file; curves are not smoothed.

    Args:
      charts: charts row by row, the first on the left.
      path: path of the file.
      columns: panels in a row.
      panel: width and height of a panel, in inches.
      legend: whether panels with several names have a legend.
    """
    import matplotlib  # imported here, because it takes a second that a training run does not need

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    columns = min(columns, len(charts))
    rows = -(-len(charts) // columns)
    size = (panel[0] * columns, panel[1] * rows)
    figure, panels = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for axes in panels.flat[len(charts) :]:
        axes.set_axis_off()
    for axes, chart in zip(panels.flat, charts, strict=False):
        _plot(axes, chart, small=columns > 1, legend=legend)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _plot(axes: Any, chart: Chart, *, small: bool, legend: bool) -> None:
    """One panel; `axes` are matplotlib's."""
    names: set[str] = set()
    for i, one in enumerate(chart.series):
        steps, values, errors = one.finite()
        bars = {"yerr": errors, "capsize": 2} if errors.any() else {}
        style = {"color": f"C{i if one.color is None else one.color}", "linewidth": 1 if small else 1.5}
        marks = {"marker": "o", "markersize": 4} if one.sparse else {}
        line = "none" if not one.joined else "--" if one.dashed else "-"
        label = one.name if one.name not in names else None
        names.add(one.name)
        axes.errorbar(steps, values, linestyle=line, label=label, **style, **marks, **bars)
    curves = [curve for i, one in enumerate(chart.series) if len((curve := _Curve.of(i, one)).values)]
    if curves and _range([curve.values for curve in curves], chart._log_y(curves))[2]:
        axes.set_yscale("log")
        ticks = _log_ticks(_Axis(*axes.get_ylim(), 0, 1, True))
        axes.set_yticks(ticks, map(format_number, ticks))
        axes.tick_params(which="minor", labelleft=False)
    if chart.places:
        rotation = 0 if sum(map(len, chart.places)) < 60 else 40
        axes.set_xticks(range(len(chart.places)), chart.places, rotation=rotation, ha="right" if rotation else "center")
    elif chart.log_x:
        steps = np.concatenate([one.finite()[0] for one in chart.series])
        ticks = [2**n for n in range(math.floor(math.log2(steps.min())), math.ceil(math.log2(steps.max())) + 1)]
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, map(str, ticks))
        axes.minorticks_off()
    axes.set_xlabel(chart.axis, fontsize=8 if small else None)
    axes.grid(alpha=0.3)
    if small:
        axes.set_title(chart.title, fontsize=9)
        axes.tick_params(which="both", labelsize=7)
    else:
        axes.set_ylabel(chart.title)
    if legend and len(names) > 1:
        beside = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)} if chart.places else {}
        axes.legend(frameon=False, fontsize=8, **beside)


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


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class _Curve:
    """A series in the form for drawing: thinned, and smoothed if it is noisy."""

    name: str
    color: int
    steps: np.ndarray
    values: np.ndarray
    errors: np.ndarray
    smoothed: bool
    raw: tuple[np.ndarray, np.ndarray] | None
    line: tuple[np.ndarray, np.ndarray]
    range: list[np.ndarray]
    dots: bool
    joined: bool
    dashed: bool

    @classmethod
    def of(cls, place: int, one: Series) -> "_Curve":
        steps, values, errors = one.finite()
        smoothed = not one.sparse and len(values) >= _SMOOTH_FROM and is_noisy(values)
        line = smooth(values) if smoothed else values
        bulk = np.quantile(values, [0.01, 0.99]) if smoothed else values
        return cls(
            name=one.name,
            color=(place if one.color is None else one.color) % COLORS,
            steps=steps,
            values=values,
            errors=errors,
            smoothed=smoothed,
            raw=thin(steps, values) if smoothed else None,
            line=thin(steps, line),
            range=[bulk, line, values - errors, values + errors] if errors.any() else [bulk, line],
            dots=len(values) <= (_MOST_MARKED if one.sparse else _FEW),
            joined=one.joined,
            dashed=one.dashed,
        )

    def data(self) -> dict[str, Any]:
        """The data for the page's script."""
        found: dict[str, Any] = {"name": self.name, "color": self.color, "dots": self.dots, "joined": self.joined}
        found |= {"dashed": self.dashed, "x": _short_list(self.line[0]), "y": _short_list(self.line[1])}
        if self.raw is not None:
            found |= {"rawX": _short_list(self.raw[0]), "rawY": _short_list(self.raw[1])}
        if self.errors.any():
            found["errors"] = _short_list(self.errors)
        return found


def _short_list(values: np.ndarray) -> list[float]:
    """Numbers with as many digits as a chart can show."""
    return [int(value) if value == int(value) and abs(value) < 1e15 else float(f"{value:.6g}") for value in values]


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
    """Whether a curve goes up and down much more than it changes overall; a learning rate does not."""
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


def format_number(value: float) -> str:
    """A number for people: four significant digits, thousands separators, no trailing zeros."""
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


def _range(parts: list[np.ndarray], log: bool | None) -> tuple[float, float, bool]:
    """Limits of the vertical axis, and whether it is logarithmic: as `log` says, or else if that shows more."""
    values = np.concatenate(parts)
    low, high = float(values.min()), float(values.max())
    if log is None:
        falls_early = np.median(values) - low < 0.25 * (high - low)  # most of the curve would lie near the bottom
        log = low > 0 and high / low > _LOG_FROM and falls_early
    if log:
        low = float(values[values > 0].min())  # an error bar may reach below zero; it is cut off there
        room = (high / low) ** 0.05 if high > low else 2.0
        return low / room, high * room, True
    if low == high:
        room = abs(low) * 0.1 or 1.0
        return low - room, high + room, False
    room = 0.06 * (high - low)
    return (0.0 if 0 <= low < 0.25 * high else low - room), high + room, False


def _drawn(curve: _Curve, x: _Axis, y: _Axis) -> str:
    """The curve as SVG."""
    color, parts = f"s{curve.color}", []
    if curve.raw is not None:
        parts.append(f'<path class="raw {color}" d="{_path(x, y, *curve.raw)}"/>')
    if curve.errors.any():
        at = x(curve.steps)
        for left, value, error in zip(at, curve.values, curve.errors, strict=True):
            ends = y(np.array([max(value - error, y.low), min(value + error, y.high)]))
            parts.append(f'<path class="bar {color}" d="M{left:.1f},{ends[0]:.1f}V{ends[1]:.1f}"/>')
    if curve.joined:
        dash = " dashed" if curve.dashed else ""
        parts.append(f'<path class="line {color}{dash}" d="{_path(x, y, *curve.line)}"/>')
    if curve.dots:
        dots = zip(x(curve.line[0]), y(curve.line[1]), strict=True)
        parts += [f'<circle class="dot {color}" cx="{a:.1f}" cy="{b:.1f}" r="2.6"/>' for a, b in dots]
    return "".join(parts)


def _axes(x: _Axis, y: _Axis, places: Sequence[str]) -> str:
    parts = []
    for value in _log_ticks(y) if y.log else _ticks(y.low, y.high, 5):
        at = float(y(np.float64(value)))
        parts.append(f'<line class="grid" x1="{x.start}" x2="{x.end}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{x.start - 8}" y="{at + 3.5:.1f}" text-anchor="end">{format_number(value)}</text>')
    below = {float(i): name for i, name in enumerate(places)}
    if not below:
        ticks = _powers_of_two(x) if x.log else _ticks(x.low, x.high, 8 if x.end > 600 else 4)
        below = {value: _short(value) for value in ticks}
    for value, text in below.items():
        at = float(x(np.float64(value)))
        anchor = "end" if at > x.end - 12 else "middle"
        label = f'x="{at:.1f}" y="{y.start + 20}" text-anchor="{anchor}"'
        parts.append(f"<text {label}>{html.escape(text)}</text>")
    parts.append(f'<line class="axis" x1="{x.start}" x2="{x.end}" y1="{y.start}" y2="{y.start}"/>')
    return "".join(parts)


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers in [low, high], about `about` of them."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [float(f"{k * step:.12g}") for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _powers_of_two(x: _Axis) -> list[float]:
    return [2.0**n for n in range(math.ceil(math.log2(x.low)), math.floor(math.log2(x.high)) + 1)]


def _log_ticks(y: _Axis) -> list[float]:
    exponents = range(math.floor(math.log10(y.low)), math.ceil(math.log10(y.high)) + 1)
    for multiples in ((1,), (1, 3), (1, 2, 5)):
        ticks = [m * 10.0**e for e in exponents for m in multiples if y.low <= m * 10.0**e <= y.high]
        if len(ticks) >= 4:
            break
    if len(ticks) < 3:  # less than a decade
        ticks = _ticks(y.low, y.high, 5)
    every = -(-len(ticks) // 7)
    return [float(f"{tick:.12g}") for tick in ticks[::every]]


def _path(x: _Axis, y: _Axis, steps: np.ndarray, values: np.ndarray) -> str:
    return "M" + "L".join(f"{a:.1f},{b:.1f}" for a, b in zip(x(steps), y(values), strict=True))


def _short(step: float) -> str:
    """A step count: 500, 2k, 12.5k, 1.2M."""
    for size, unit in ((1e6, "M"), (1e4, "k")):
        if abs(step) >= size:
            return f"{step / (1e6 if unit == 'M' else 1e3):.4g}{unit}"
    return f"{step:,.0f}" if step == round(step) else f"{step:g}"
