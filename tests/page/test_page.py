"""The HTML of a page: escaped, alone, the same for the same study, and of the structure that readers rely on."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from paths import REPO
from sloguard.errors import SpecError
from sloguard.page.page import Page, render, write_figures
from sloguard.page.tune import tune_page
from studies import HOSTILE, record, whole

OUTLINE = REPO / "tests" / "golden" / "page_outline.txt"
SHOWN = {"h1", "h2", "h3", "nav", "main", "header", "footer", "section", "table", "caption", "details", "summary"}


@pytest.fixture(scope="module")
def page() -> Page:
    return tune_page(record(whole(choice="priority")))


@pytest.fixture(scope="module")
def html(page: Page) -> str:
    return render(page)


class Outline(HTMLParser):
    """Landmarks, headings, tables and figures with their texts, indented as they lie in each other."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.depth, self.taking = 0, False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "figure":
            self.lines.append(f"{'  ' * self.depth}figure {found['id']}")
        if tag in SHOWN:
            self.lines.append(f"{'  ' * self.depth}{tag} {found.get('id') or ''}".rstrip())
            self.depth += 1
        self.taking = tag in {"h1", "h2", "h3", "caption", "summary", "button"} or (tag == "th" and "scope" in found)

    def handle_endtag(self, tag: str) -> None:
        self.depth -= tag in SHOWN
        self.taking = False

    def handle_data(self, data: str) -> None:
        if self.taking and data.strip():
            self.lines.append(f"{'  ' * self.depth}| {data.strip()}")


def test_the_structure_is_as_recorded(html: str) -> None:
    """SLOGUARD_GOLDEN=1 writes it anew: look at the difference."""
    outline = Outline()
    outline.feed(html)
    text = "\n".join(outline.lines) + "\n"
    if os.environ.get("SLOGUARD_GOLDEN"):
        OUTLINE.write_text(text)
    assert text == OUTLINE.read_text()


def test_the_same_study_is_the_same_bytes(html: str) -> None:
    assert render(tune_page(record(whole(choice="priority")))) == html


def test_what_a_log_says_is_never_markup() -> None:
    trials = whole(HOSTILE, HOSTILE)
    made = record(trials, best_yaml=HOSTILE, model=HOSTILE)
    html = render(tune_page(made))
    assert html.count("<script>") == 1  # the page's own
    assert "&lt;script&gt;alert" in html
    assert "alert(&#39;x&#39;)" in html


def test_it_asks_for_nothing(html: str) -> None:
    assert not re.findall(r"(?:src|srcset|action|formaction|data|poster)=\"(?!-)[^\"]*//", html)
    assert not re.findall(r"href=\"(?!#)", html)
    assert not re.findall(r"@import|url\((?!#)", html)
    assert not re.findall(r"\son\w+=", html)


def test_the_policy_lets_the_page_s_own_script_run_and_no_other(html: str) -> None:
    script = re.findall(r"<script>(.*?)</script>", html, re.S)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', html)
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy


def test_ids_are_its_own_and_every_link_has_a_place(html: str) -> None:
    ids = re.findall(r'\sid="([^"]+)"', html)
    assert len(set(ids)) == len(ids)
    assert set(re.findall(r'href="#([^"]+)"', html)) <= set(ids)
    assert set(re.findall(r'aria-labelledby="([^"]+)"', html)) <= set(ids)


def test_every_figure_says_what_it_shows(page: Page, html: str) -> None:
    assert html.count('role="img"') == len(page.figures) == html.count("<svg")
    assert 'aria-label=""' not in html


def test_it_is_small(html: str) -> None:
    assert len(html.encode()) < 400_000


def test_figures_are_saved_for_papers(page: Page, tmp_path: Path) -> None:
    written = write_figures(page, tmp_path / "figures")
    assert {path.name for path in written} == {f"{f.name}.{s}" for f in page.figures for s in ("svg", "png")}
    assert all(path.stat().st_size > 1000 for path in written)
    (tmp_path / "file").write_text("")
    with pytest.raises(SpecError, match="--figures"):
        write_figures(page, tmp_path / "file")
