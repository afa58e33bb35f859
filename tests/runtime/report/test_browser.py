"""The page in a real headless Chromium: silent, alone, and no wider than its window."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from rankfold.runtime.report import write_report

from . import samples

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Everything that lets Chromium talk to the network or ask for a display, off.
_QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
)
_VIEWS: dict[str, tuple[Literal["light", "dark"], int]] = {
    "light": ("light", 1280),
    "dark": ("dark", 1280),
    "tablet": ("light", 820),
    "phone": ("dark", 390),
}
# WCAG 2.2, 1.4.3: contrast of normal text.
_CONTRAST = 4.5


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        pytest.skip(f"no Chromium found; looked for {', '.join(_NAMES)} on PATH")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=list(_QUIET))
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    opened = browser.new_page()
    yield opened
    opened.close()


def look(page: Page, view: str) -> None:
    """As on another device."""
    theme, width = _VIEWS[view]
    page.emulate_media(color_scheme=theme)
    page.set_viewport_size({"width": width, "height": 900})


def problems_of(page: Page, file: Path) -> list[str]:
    """Opens the file, unfolds all that is folded, and returns every complaint and every other request."""
    heard: list[str] = []
    page.on("console", lambda message: heard.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: heard.append(f"page error: {error}"))
    page.on("request", lambda sent: heard.append(f"request: {sent.url}") if sent.url != file.as_uri() else None)
    page.goto(file.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    page.wait_for_load_state("networkidle")
    return heard


def alone(folder: Path) -> Path:
    samples.bench(("dense",)).model_copy(update={"pairs": []}).write(folder / "bench.json")
    return folder


@pytest.mark.parametrize("make", [samples.comparison_folder, samples.run_folder, samples.hostile_folder, alone])
def test_silent_alone_and_no_wider_than_the_window(page: Page, tmp_path: Path, make: Callable[[Path], Path]) -> None:
    heard = problems_of(page, write_report(make(tmp_path)))
    for view in _VIEWS:
        look(page, view)
        width = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert width[0] <= width[1], view
    assert heard == []


def test_text_is_legible_and_figures_have_words(page: Page, tmp_path: Path) -> None:
    problems_of(page, write_report(samples.comparison_folder(tmp_path)))
    assert page.evaluate("[...document.querySelectorAll('svg')].every(s => s.getAttribute('aria-label').length > 30)")
    assert page.evaluate("[...document.querySelectorAll('table')].every(t => t.caption && t.tHead)")
    for view in _VIEWS:
        look(page, view)
        assert page.evaluate(_POOR_CONTRAST, _CONTRAST) == [], view


def test_the_listeners_hear(browser: Browser, tmp_path: Path) -> None:
    """The silence asserted above is worth something only if noise would be heard."""
    noisy = tmp_path / "noisy.html"
    noisy.write_text("<script>console.warn('x'); undefinedName</script><img src='gone.png'>", encoding="utf-8")
    page = browser.new_page()
    heard = " ".join(problems_of(page, noisy))
    page.close()
    assert all(word in heard for word in ("warning: x", "page error", "gone.png"))


# Ratio of relative luminances (WCAG 2.2) of each text on the page's or its row's ground.
_POOR_CONTRAST = """least => {
  const rgb = text => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const light = text => rgb(text).map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = node => {
    for (; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor;
      if (!/, 0\\)$/.test(colour)) return colour;
    }
  };
  const poor = [];
  for (const node of document.querySelectorAll('body *')) {
    const own = [...node.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    if (!own || ['TITLE', 'title'].includes(node.tagName)) continue;
    const style = getComputedStyle(node);
    const inFigure = node.namespaceURI.endsWith('svg');
    const pair = [light(inFigure ? style.fill : style.color), light(ground(node))].sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (ratio < least) poor.push(`${node.tagName}.${node.className} ${ratio.toFixed(2)}`);
  }
  return poor;
}"""
