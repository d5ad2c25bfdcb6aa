"""A small picture of numbers by layer, as SVG: static, nothing from elsewhere, readable on light and on dark ground."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from paramsmith.errors import printable

# The name of the language, which no reader asks the network for.
_LANGUAGE = "http://www.w3.org/2000/svg"
# Readable on white and on black, in an order that a colour-blind reader can tell apart with the dashes.
_COLOURS = ("#3b82f6", "#d97706", "#059669", "#c026d3", "#0891b2", "#dc2626")
_DASHES = ("", "6 3", "2 3", "8 3 2 3", "4 4", "1 4")
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#57606a}.h{font-weight:600}.g{stroke:#8c959f;stroke-opacity:.35}"
    "@media(prefers-color-scheme:dark){text{fill:#9da7b3}}"
)
_WIDTH, _LEFT, _RIGHT = 760, 52, 16
_PLOT, _HEAD, _ROW, _FOOT, _GAP = 150, 30, 18, 30, 14
_COLUMN = (_WIDTH - _LEFT - _RIGHT) / 3
MOST_SERIES, MOST_POINTS = len(_COLOURS), 200


@dataclass(frozen=True)
class Series:
    """A line: one value a layer, None where there is none."""

    name: str
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Panel:
    """A plot of lines over the layers."""

    title: str
    series: tuple[Series, ...]


def drawing(title: str, layers: Sequence[str], panels: Sequence[Panel]) -> bytes:
    """The panels one above the other, as an SVG document; of each the first six lines, of the layers the first 200.

    The same numbers give the same bytes.
    """
    shown, height = list(layers[:MOST_POINTS]), float(_GAP)
    root = ElementTree.Element("svg", {"xmlns": _LANGUAGE, "role": "img"})
    _text(root, "title", title)
    _text(root, "style", _STYLE)
    for panel in panels:
        height = _draw_panel(root, panel, shown, height)
    root.set("width", str(_WIDTH))
    root.set("height", f"{height:.0f}")
    root.set("viewBox", f"0 0 {_WIDTH} {height:.0f}")
    document: bytes = ElementTree.tostring(root, encoding="utf-8")
    return document + b"\n"


def nice_scale(low: float, high: float) -> list[float]:
    """Round numbers around an interval, three to seven of them at equal distances.

    >>> nice_scale(0, 0.23)
    [0.0, 0.05, 0.1, 0.15, 0.2, 0.25]
    """
    if not high > low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if raw <= power * factor * 1.0001)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{number * step:.10g}") for number in range(first, last + 1)]


def _draw_panel(root: ElementTree.Element, panel: Panel, layers: Sequence[str], top: float) -> float:
    """Draw a panel from `top` on; where it ends."""
    series = panel.series[:MOST_SERIES]
    values = [v for line in series for v in line.values[: len(layers)] if v is not None and math.isfinite(v)]
    ticks = nice_scale(min([0.0, *values]), max([0.0, *values]))
    group = ElementTree.SubElement(root, "g", {"transform": f"translate(0 {top:.0f})"})
    _text(group, "text", panel.title, x=str(_LEFT), y="12", **{"class": "h"})
    rows = math.ceil(len(series) / 3)
    start = _HEAD + rows * _ROW
    for tick in ticks:
        y = f"{_height(tick, ticks, start):.1f}"
        ends = {"x1": str(_LEFT), "x2": str(_WIDTH - _RIGHT), "y1": y, "y2": y, "class": "g"}
        ElementTree.SubElement(group, "line", ends)
        _text(group, "text", f"{tick:g}", x=str(_LEFT - 8), y=f"{float(y) + 4:.1f}", **{"text-anchor": "end"})
    every = max(1, math.ceil(len(layers) / 16))
    for number, layer in enumerate(layers):
        if number % every == 0:
            x = f"{_across(number, len(layers)):.1f}"
            _text(group, "text", printable(layer, 12), x=x, y=str(start + _PLOT + 18), **{"text-anchor": "middle"})
    for number, line in enumerate(series):
        _draw_line(group, line, number, layers, ticks, start)
    return top + start + _PLOT + _FOOT + _GAP


def _draw_line(
    group: ElementTree.Element, line: Series, number: int, layers: Sequence[str], ticks: Sequence[float], start: float
) -> None:
    colour, name = _COLOURS[number], printable(line.name, 60)
    stroke = {"stroke": colour, "stroke-width": "1.8", "stroke-dasharray": _DASHES[number], "fill": "none"}
    x, y = _LEFT + number % 3 * _COLUMN, _HEAD + number // 3 * _ROW
    ElementTree.SubElement(group, "path", {**stroke, "d": f"M{x:.1f} {y - 4}h22"})
    _text(group, "text", printable(line.name, 26), x=f"{x + 28:.1f}", y=str(y))
    path, pen = [], "M"
    dots = []
    for at, value in enumerate(line.values[: len(layers)]):
        if value is None or not math.isfinite(value):
            pen = "M"  # a gap
            continue
        place = f"{_across(at, len(layers)):.1f}", f"{_height(value, ticks, start):.1f}"
        path.append(f"{pen}{' '.join(place)}")
        dots.append((*place, f"{name}, layer {printable(layers[at], 20)}: {value:.4g}"))
        pen = "L"
    ElementTree.SubElement(group, "path", {**stroke, "d": "".join(path)})
    for cx, cy, told in dots:
        dot = ElementTree.SubElement(group, "circle", {"cx": cx, "cy": cy, "r": "2.6", "fill": colour})
        _text(dot, "title", told)


def _text(parent: ElementTree.Element, kind: str, text: str, **attributes: str) -> None:
    """An element with text, which is written as text whatever it holds."""
    ElementTree.SubElement(parent, kind, attributes).text = printable(text, 1000)


def _across(number: int, count: int) -> float:
    room = _WIDTH - _LEFT - _RIGHT - 24
    return _LEFT + 12 + (room * number / (count - 1) if count > 1 else room / 2)


def _height(value: float, ticks: Sequence[float], start: float) -> float:
    return start + _PLOT * (1 - (value - ticks[0]) / (ticks[-1] - ticks[0]))
