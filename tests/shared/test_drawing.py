"""The small picture: well-formed, still, from nowhere else, and the same every time."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from paramsmith.drawing import MOST_POINTS, MOST_SERIES, Panel, Series, drawing, nice_scale

NASTY = "</title><script>alert(1)</script>\x00\x1b\u202e&amp;\"'"


def draw(*series: Series, layers: int = 4) -> bytes:
    return drawing("a title", [str(i) for i in range(layers)], [Panel("panel", series), Panel("second", series)])


def elements(document: bytes, kind: str) -> list[ElementTree.Element]:
    return [e for e in ElementTree.fromstring(document).iter() if e.tag.rpartition("}")[2] == kind]


def test_a_line_for_each_series_and_a_dot_for_each_value() -> None:
    document = draw(Series("one", (0.1, 0.2, None, 0.3)), Series("two", (1.0, math.nan, 0.0, -1.0)))
    assert len(elements(document, "circle")) == 2 * (3 + 3)
    assert "one, layer 3: 0.3" in [e.text for e in elements(document, "title")]
    assert document == draw(Series("one", (0.1, 0.2, None, 0.3)), Series("two", (1.0, math.nan, 0.0, -1.0)))


def test_dots_lie_inside_and_higher_values_higher() -> None:
    document = drawing("t", ["0", "1", "2"], [Panel("p", (Series("s", (-3.0, 0.5, 8.0)),))])
    root = ElementTree.fromstring(document)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    dots = [(float(e.attrib["cx"]), float(e.attrib["cy"])) for e in elements(document, "circle")]
    assert all(0 < x < width and 0 < y < height for x, y in dots)
    assert [x for x, _ in dots] == sorted(x for x, _ in dots)
    assert [y for _, y in dots] == sorted((y for _, y in dots), reverse=True)


def test_text_stays_text_and_nothing_comes_from_elsewhere() -> None:
    document = drawing(NASTY, [NASTY] * 3, [Panel(NASTY, (Series(NASTY, (1.0, 2.0, 3.0)),))])
    kinds = {e.tag.rpartition("}")[2] for e in ElementTree.fromstring(document).iter()}
    assert kinds <= {"svg", "title", "style", "g", "text", "line", "path", "circle"}
    names = {name for e in ElementTree.fromstring(document).iter() for name in e.attrib}
    assert not [name for name in names if "href" in name or name.startswith("on")]
    text = document.decode()
    assert "<script" not in text
    assert text.count("http") == 1
    assert "url(" not in text
    assert "@import" not in text
    assert not [c for c in text if not c.isprintable() and c != "\n"]


def test_it_stays_small() -> None:
    lines = [Series(f"model {i}", tuple(i + j / 7 for j in range(1000))) for i in range(20)]
    document = draw(*lines, layers=1000)
    assert len(elements(document, "circle")) == 2 * MOST_SERIES * MOST_POINTS
    assert len(document) < 400_000
    usual = draw(*(Series(f"m{i}", tuple(0.1 * j for j in range(32))) for i in range(3)), layers=32)
    assert len(usual) < 40_000


@pytest.mark.parametrize(
    "series", [(), (Series("none", (None,)),), (Series("zero", (0.0,)),), (Series("nan", (math.nan,)),)]
)
def test_nothing_to_draw(series: tuple[Series, ...]) -> None:
    ElementTree.fromstring(draw(*series, layers=1))
    ElementTree.fromstring(draw(*series, layers=0))


@pytest.mark.parametrize(("low", "high"), [(0, 1e-12), (-1, 1), (0, 1e30), (3, 3), (0, 0), (-0.013, 0.977)])
def test_scales(low: float, high: float) -> None:
    ticks = nice_scale(low, high)
    assert ticks[0] <= low + 1e-9 * abs(low)
    assert ticks[-1] >= high - 1e-9 * abs(high)
    assert 2 <= len(ticks) <= 9
    assert ticks == sorted(set(ticks))
