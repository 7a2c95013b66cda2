"""Figures inside a page: themes by variables, ids of their own, hostile text as text, equal bytes."""

from __future__ import annotations

import re
from itertools import combinations

import pytest

from sloguard.page.canvas import COLOURS, Ink, inline_svg, picture, plain
from studies import HOSTILE

SIZE = (300, 200)


def scene(axes, ink: Ink) -> None:
    axes.plot([1, 2], [1, 4], "o-", color=ink["accent"], gid=ink.tip(HOSTILE))
    axes.axvspan(1, 1.5, color=ink["crash"], alpha=0.2, gid=ink.crisp)
    axes.set_xlabel(plain(HOSTILE))


def test_colours_of_a_page_are_variables_and_those_of_a_file_are_light() -> None:
    svg = inline_svg(scene, SIZE, "a")
    assert set(re.findall(r"var\(--(\w+)\)", svg)) == {"accent", "crash", "muted", "rule"}
    assert not re.findall(r"#[0-9a-f]{6}", svg)
    assert COLOURS["accent"][0] in picture(scene, SIZE, "svg", "a").decode()
    assert picture(scene, SIZE, "png", "a").startswith(b"\x89PNG")


def test_ids_of_two_figures_never_meet_and_all_that_is_referred_to_is_there() -> None:
    one, other = (inline_svg(scene, SIZE, name) for name in ("a", "b"))
    ids = [set(re.findall(r' id="([^"]+)"', svg)) for svg in (one, other)]
    assert ids[0]
    assert not ids[0] & ids[1]
    for svg, own in zip((one, other), ids, strict=True):
        assert set(re.findall(r'(?:href="|url\()#([\w.-]+)', svg)) == own


def test_hostile_text_is_text() -> None:
    svg = inline_svg(scene, SIZE, "a")
    assert "<script" not in svg
    assert svg.count("&lt;script&gt;alert") == 2
    assert "<title>" in svg
    assert "$x^2$" in svg
    assert svg.count('shape-rendering="crispEdges"') == 1
    assert not {"tip:", 'id="crisp"'} & set(re.findall(r'tip:|id="crisp"', picture(scene, SIZE, "svg", "a").decode()))


def test_equal_drawings_give_equal_bytes() -> None:
    assert inline_svg(scene, SIZE, "a") == inline_svg(scene, SIZE, "a")
    for suffix in ("svg", "png"):
        assert picture(scene, SIZE, suffix, "a") == picture(scene, SIZE, suffix, "a")


def test_a_page_font_is_used_and_no_style_reaches_beyond_the_figure() -> None:
    svg = inline_svg(scene, SIZE, "a")
    assert "font-family" not in svg
    assert "DejaVu" not in svg
    assert "<style" not in svg
    assert "xmlns" not in svg


def test_letters_that_matplotlib_lacks_are_left_to_the_browser() -> None:
    assert "調整" in inline_svg(lambda axes, ink: axes.set_xlabel("調整"), SIZE, "a")


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["ink", "muted", "accent", "crash"])
@pytest.mark.parametrize("ground", ["paper", "card"])
def test_text_is_readable_in_both_themes(theme: int, name: str, ground: str) -> None:
    assert _contrast(COLOURS[name][theme], COLOURS[ground][theme]) >= 4.5  # WCAG 2.2 AA, text


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_series_are_seen_and_differ(theme: int) -> None:
    for name in ("default", "accent", "crash"):
        assert _contrast(COLOURS[name][theme], COLOURS["paper"][theme]) >= 3.0  # WCAG 2.2 AA, graphics
    for one, other in combinations(("default", "accent", "crash"), 2):
        assert COLOURS[one][theme] != COLOURS[other][theme]


def _contrast(a: str, b: str) -> float:
    """WCAG 2.2, relative luminance."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)
