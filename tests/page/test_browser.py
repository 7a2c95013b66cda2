"""The page in a real browser, opened from a disk: it works by mouse and keyboard, in both themes and on a phone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from result_files import OWN, PROMISED, VLLM, one
from simulated_files import COMMANDS, save
from sloguard.load.run_figures import held_against
from sloguard.page.load import load_page
from sloguard.page.page import render
from sloguard.page.tune import tune_page
from studies import HOSTILE, nothing_kept, record, trial, whole

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium, or make test-browser"),
]
PAGES = {
    "whole": lambda: tune_page(record(whole(choice="priority"))),
    "hostile": lambda: tune_page(record(whole(HOSTILE, HOSTILE), best_yaml=HOSTILE)),
    "infeasible": lambda: tune_page(record([trial(1, nothing_kept(), seqs=1), trial(2, nothing_kept(), seqs=2)])),
    "load": lambda: load_page([held_against(one(path), PROMISED) for path in (OWN, VLLM)]),
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("pages")
    made = {name: directory / f"{name}.html" for name in PAGES}
    for name, path in made.items():
        path.write_text(render(PAGES[name]()), encoding="utf-8")
    return made | {name: path.with_suffix(".html") for name, path in save(directory).items()}


@pytest.fixture
def opened(browser: Any, files: dict[str, Path], request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page named by the parameter, or `whole`; anything it complains of or asks for fails the test."""
    name, scheme, width = getattr(request, "param", ("whole", "light", 1280))
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    troubles: list[str] = []
    page.on("console", lambda message: troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("dialog", lambda dialog: (troubles.append(dialog.message), dialog.dismiss()))
    page.on("requestfailed", lambda asked: troubles.append(asked.url))
    page.on("request", lambda asked: troubles.append(asked.url) if not asked.url.startswith("file://") else None)
    page.goto(files[name].as_uri())
    yield page
    context.close()
    assert not troubles


def first_column(page: Any) -> list[str]:
    return page.locator("#trials tbody tr:visible th").all_inner_texts()


def head(page: Any, name: str) -> Any:
    return page.locator("#trials thead th", has=page.get_by_role("button", name=name, exact=True))


def test_a_click_sorts_and_another_turns_it_round(opened: Any) -> None:
    head(opened, "time, s").get_by_role("button").click()
    assert head(opened, "time, s").get_attribute("aria-sort") == "ascending"
    assert first_column(opened)[:2] == ["2", "6"]
    head(opened, "time, s").get_by_role("button").click()
    assert head(opened, "time, s").get_attribute("aria-sort") == "descending"
    assert first_column(opened)[-2:] == ["6", "2"]


def test_numbers_sort_as_numbers_and_what_is_missing_comes_last_either_way(opened: Any) -> None:
    for way in ("ascending", "descending"):
        head(opened, "capacity, req/s").get_by_role("button").click()
        assert head(opened, "capacity, req/s").get_attribute("aria-sort") == way
        assert set(first_column(opened)[-3:]) == {"2", "3", "6"}
    head(opened, "seqs").get_by_role("button").click()
    shown = opened.locator("#trials tbody tr td:nth-of-type(6)").all_inner_texts()
    assert shown == sorted(shown, key=float)
    assert opened.locator("#trials th[aria-sort]").count() == 1


def test_the_keyboard_sorts(opened: Any) -> None:
    head(opened, "trial").get_by_role("button").focus()
    opened.keyboard.press("Tab")
    opened.keyboard.press("Enter")
    assert head(opened, "status").get_attribute("aria-sort") == "ascending"
    assert first_column(opened)[:2] == ["2", "6"]
    opened.keyboard.press("Space")
    assert head(opened, "status").get_attribute("aria-sort") == "descending"
    outline = opened.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_a_status_can_be_chosen(opened: Any) -> None:
    opened.get_by_label("Status").select_option("crashed")
    assert first_column(opened) == ["2", "6"]
    assert opened.locator("#trials output").inner_text() == "2 of 13"
    opened.get_by_label("Status").select_option("all")
    assert len(first_column(opened)) == 13


def test_the_theme_can_be_changed_and_is_remembered(opened: Any) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    stroke = "getComputedStyle(document.querySelector('#figure-best-by-trial text')).fill"
    light = opened.evaluate(ground), opened.evaluate(stroke)
    opened.get_by_role("button", name="Dark theme").click()
    dark = opened.evaluate(ground), opened.evaluate(stroke)
    assert light[0] != dark[0]
    assert light[1] != dark[1]
    opened.reload()
    assert (opened.evaluate(ground), opened.evaluate(stroke)) == dark
    opened.get_by_role("button", name="Light theme").click()
    assert opened.evaluate(ground) == light[0]


def test_the_command_can_be_copied(opened: Any) -> None:
    opened.context.grant_permissions(["clipboard-read", "clipboard-write"])
    button = opened.locator(".code", has_text="Apply it").get_by_role("button")
    button.click()
    opened.wait_for_function("document.querySelector('.copy').textContent === 'Copied'")
    assert opened.evaluate("navigator.clipboard.readText()") == "vllm serve --config study/best.yaml"


VIEWS = [(name, scheme, width) for name in (*PAGES, *COMMANDS) for scheme in ("light", "dark") for width in (1280, 400)]


@pytest.mark.parametrize("opened", VIEWS, indirect=True, ids=["-".join(map(str, view)) for view in VIEWS])
def test_everybody_can_use_it(opened: Any) -> None:
    """No page wider than its window, no serious finding of axe, nothing drawn beyond its figure."""
    opened.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert opened.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = axe.run(opened).response["violations"]
    assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []
    assert opened.evaluate(OUTSIDE) == []


# Texts of figures that reach beyond the window, or that lie on one another.
OUTSIDE = """() => {
  const found = [];
  for (const svg of document.querySelectorAll("svg")) {
    const texts = [...svg.querySelectorAll("text")].map((t) => [t.textContent, t.getBoundingClientRect()]);
    for (const [text, box] of texts)
      if (box.left < -1 || box.right > innerWidth + 1) found.push(["outside", text]);
    texts.forEach(([a, one], i) => texts.slice(i + 1).forEach(([b, other]) => {
      const wide = Math.min(one.right, other.right) - Math.max(one.left, other.left);
      const high = Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top);
      if (wide > 1 && high > 4) found.push(["overlap", a, b]);
    }));
  }
  return found;
}"""


def test_without_a_script_all_is_there(browser: Any, files: dict[str, Path]) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(files["whole"].as_uri())
    assert page.locator("#trials tbody tr").count() == 13
    assert page.locator("button:visible").count() == 0
    context.close()


def test_it_prints_in_light_colours(opened: Any) -> None:
    opened.get_by_role("button", name="Dark theme").click()
    opened.emulate_media(media="print")
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert opened.locator("nav").is_hidden()
