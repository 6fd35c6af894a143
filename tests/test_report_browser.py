"""The report in a real browser: drawn, quiet, closed, narrow and wide, with and without scripts."""

from __future__ import annotations

import os
import shutil

import pandas as pd
import pytest
from plotly.offline import get_plotlyjs

import toy_results as toy
from microtome.report import write_report
from microtome.results import Control, Result

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
WIDTHS = {"phone": (390, 844), "desktop": (1280, 800)}


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        said = "no chromium on the path: the report was not opened (Debian: apt-get install chromium)"
        if os.environ.get("CI"):
            pytest.fail(said)
        pytest.skip(said)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    tokens = (*toy.EVIL, *toy.TOKENS[: 14 - len(toy.EVIL)])
    result = toy.dissect(tokens, layers=4)
    path = tmp_path_factory.mktemp("report") / "report.html"
    return result, write_report(result, path, command=toy.EVIL[0], folder="runs/ioi")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A report of one stage with three figures, for what does not depend on the number of figures."""
    path = tmp_path_factory.mktemp("small") / "report.html"
    return write_report(toy.patching(layers=3, metrics=("logit_diff",)), path, folder="runs/ioi")


class Visit:
    """One page, opened and drawn, with what it said and what it asked for."""

    def __init__(self, browser, path, size, **options):
        self.context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **options)
        self.page = self.context.new_page()
        self.said, self.asked = [], []
        self.page.on("console", lambda m: self.said.append(m.text))
        self.page.on("pageerror", lambda e: self.said.append(str(e)))
        self.page.on("request", lambda r: self.asked.append(r.url))
        self.page.goto(path.as_uri())

    def drawn(self):
        self.page.wait_for_selector("html[data-drawn]", state="attached", timeout=60_000)
        return self

    def until(self, condition):
        """Wait until it holds; playwright's own way needs eval, which the page forbids."""
        for _ in range(200):
            if self.js(condition):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"never: {condition}")

    def js(self, code):
        return self.page.evaluate(code)


@pytest.fixture(scope="module")
def narrow(browser, small):
    """The small report on a phone."""
    seen = Visit(browser, small, WIDTHS["phone"]).drawn()
    yield seen
    seen.context.close()


@pytest.fixture(scope="module", params=WIDTHS)
def visit(request, browser, report):
    seen = Visit(browser, report[1], WIDTHS[request.param]).drawn()
    yield seen
    seen.context.close()


def test_every_figure_is_drawn_without_a_word_or_a_request(visit, report):
    shown = visit.js(
        "[...document.querySelectorAll('figure.fig')].filter(f => !f.parentElement.closest('details')).length"
    )
    assert shown >= 15
    assert (
        visit.js("document.querySelectorAll('.plot.drawn').length")
        == shown
        == int(visit.js("document.documentElement.dataset.drawn"))
    )
    # plotly draws three layers per figure
    assert visit.js("document.querySelectorAll('.main-svg').length") == 3 * shown
    assert visit.js(
        "[...document.querySelectorAll('.plot.drawn > svg')].every(s => getComputedStyle(s).display === 'none')"
    )
    assert visit.js(
        "[...document.querySelectorAll('.plot.drawn')].every(p => p.querySelectorAll('.heatmaplayer image, .barlayer path, .scatterlayer path').length > 0)"
    )
    assert visit.said == []
    assert (
        all(url.startswith(("file://", "data:", "blob:")) for url in visit.asked)
        and visit.asked[0] == report[1].as_uri()
    )


def test_no_page_is_wider_than_its_screen_and_every_figure_fits(visit):
    assert visit.js(
        "document.documentElement.scrollWidth <= window.innerWidth && document.body.scrollWidth <= window.innerWidth"
    )
    too_wide = "[...document.querySelectorAll('.main-svg')].filter(s => s.getBoundingClientRect().right > s.closest('.fig').getBoundingClientRect().right + 1).length"
    assert visit.js(too_wide) == 0
    assert visit.js(
        "[...document.querySelectorAll('.main-svg')].every(s => s.getBoundingClientRect().width > 300)"
    )


def test_nothing_in_a_figure_is_cut_off_or_lies_on_its_title(visit):
    """Titles, keys and tick labels lie inside the picture, and titles above everything else."""
    outside = """[...document.querySelectorAll('.plot.drawn')].flatMap(p => {
        const box = p.getBoundingClientRect();
        return [...p.querySelectorAll('.gtitle, .annotation-text, [class$=tick] text, [class$=title]')].filter(t => {
            const r = t.getBoundingClientRect();
            return r.width && (r.left < box.left - 2 || r.right > box.right + 3 || r.top < box.top - 2 || r.bottom > box.bottom + 3);
        }).map(t => t.textContent);
    })"""
    assert visit.js(outside) == []
    overlapping = """[...document.querySelectorAll('.plot.drawn')].filter(p => {
        const title = p.querySelector('.gtitle').getBoundingClientRect();
        return [...p.querySelectorAll('.annotation-text, .bg')].some(t => t.getBoundingClientRect().top < title.bottom - 3);
    }).map(p => p.querySelector('.gtitle').textContent)"""
    assert visit.js(overlapping) == []


def test_hostile_tokens_are_inert_and_shown_as_they_are(visit):
    assert visit.js("window.pwned === undefined")
    assert visit.js("document.querySelectorAll('.main-svg a, .main-svg image[href^=http], img').length") == 0
    ticks = visit.js("[...document.querySelectorAll('[class$=tick] text')].map(t => t.textContent)")
    for i, token in enumerate(toy.EVIL):
        shown = token.replace(" ", "␣").replace("\u202e", "\\u202e")[:13]
        assert any(t.startswith(f"{i} {shown}") for t in ticks), (
            shown,
            [t for t in ticks if t.startswith(f"{i} ")][:2],
        )
    bold = "[...document.querySelectorAll('[class$=tick] text tspan')].filter(t => t.style.fontWeight === 'bold').length"
    assert visit.js(bold) == 0


def test_the_first_screen_answers_the_question(visit):
    """Question, verdict, finding and the head of the first number need no scrolling; on a desktop the stages neither."""
    tall = visit.js("window.innerHeight")
    assert visit.js("document.querySelector('h1').getBoundingClientRect().bottom") < tall / 3
    assert visit.js("document.querySelector('.judgement .verdict').getBoundingClientRect().bottom") < tall / 2
    assert visit.js("document.querySelector('.finding').getBoundingClientRect().bottom") < tall
    assert visit.js("document.querySelector('.numbers > li').getBoundingClientRect().top") < tall
    if visit.js("window.innerWidth") > 1000:
        assert visit.js("document.querySelector('table.stages').getBoundingClientRect().bottom") < tall


def test_no_text_is_smaller_than_eleven_pixels(visit):
    small = """[...new Set([...document.querySelectorAll('body *')].filter(e => !['SCRIPT', 'STYLE'].includes(e.tagName)
        && [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) && e.getBoundingClientRect().width
        && parseFloat(getComputedStyle(e).fontSize) < 11).map(e => e.tagName + ' ' + e.textContent.slice(0, 20)))]"""
    assert visit.js(small) == []


def test_the_table_of_stages_is_seen_whole(visit):
    """No column is cut off, on no screen."""
    box = "document.querySelector('table.stages').parentElement"
    for width in (visit.js("window.innerWidth"), 768, 1024):
        visit.page.set_viewport_size({"width": width, "height": visit.js("window.innerHeight")})
        assert visit.js(f"{box}.scrollWidth <= {box}.clientWidth"), width


def test_heads_stand_upright_only_where_they_must(browser, tmp_path):
    """Digits below a map of heads and parts are read without turning one's head, and do not touch."""
    path = write_report(toy.heads(), tmp_path / "r.html")
    seen = Visit(browser, path, WIDTHS["phone"]).drawn()
    ticks = "[...document.querySelectorAll('.plot.drawn')[0].querySelectorAll('.x2tick text, .x2tick tspan.line')]"
    turned = f"{ticks}.filter(t => /rotate\\((?!0)/.test(t.getAttribute('transform') || '')).length"
    assert seen.js(f"{ticks}.length") >= 10 and seen.js(turned) == 0
    touch = """(() => { const r = [...document.querySelectorAll('.plot.drawn')[0].querySelectorAll('.x2tick text')].map(t => t.getBoundingClientRect());
        return r.slice(1).filter((b, i) => b.left < r[i].right + 1).length; })()"""
    assert seen.js(touch) == 0
    seen.context.close()


def test_folded_figures_are_drawn_when_they_are_opened(visit):
    before = visit.js("document.querySelectorAll('.plot.drawn').length")
    fold = visit.page.locator("details.more").first
    fold.locator("> summary").click()
    fold.locator(".plot.drawn").first.wait_for(timeout=20_000)
    assert visit.js("document.querySelectorAll('.plot.drawn').length") > before and visit.said == []
    assert visit.js("document.documentElement.scrollWidth <= window.innerWidth")


def pasted(page):
    """What Ctrl+V gives, in a textarea made for it."""
    page.evaluate(
        "(() => { const t = document.createElement('textarea'); t.id = 'paste'; document.body.prepend(t); t.focus(); })()"
    )
    page.keyboard.press("Control+V")
    text = page.evaluate("document.getElementById('paste').value")
    page.evaluate("document.getElementById('paste').remove()")
    return text


NO_CLIPBOARD = "Object.defineProperty(navigator, 'clipboard', {value: undefined, configurable: true})"
NO_COMMAND = "Document.prototype.execCommand = () => false"


def test_copy_as_python_works_from_a_file(narrow):
    """By the clipboard's own interface, without it, and without any: then the text is selected for Ctrl+C."""
    page = narrow.page
    wanted = page.locator("figure.fig pre").first.text_content().strip()
    assert "mt.open('runs/ioi').figure()" in wanted
    said = page.locator("figure.fig .said").first
    assert said.get_attribute("role") == "status"
    for without in ("0", NO_CLIPBOARD):
        narrow.js(without)
        narrow.js("navigator.clipboard && navigator.clipboard.writeText('').catch(() => 0)")
        narrow.js("document.querySelector('.said').textContent = ''")
        page.locator("button.copy").first.focus()
        page.keyboard.press("Enter")
        page.wait_for_selector(".said:text('Copied')")
        assert pasted(page).strip() == wanted
    narrow.js(NO_COMMAND)
    page.locator("button.copy").first.click()
    page.wait_for_selector(".said:text('Ctrl+C')")
    assert narrow.js("window.getSelection().toString()").strip() == wanted
    page.keyboard.press("Control+C")
    assert pasted(page).strip() == wanted


def test_figures_follow_the_window(narrow):
    widest = (
        "Math.max(...[...document.querySelectorAll('.main-svg')].map(s => s.getBoundingClientRect().width))"
    )
    assert narrow.js(widest) < 400
    narrow.page.set_viewport_size({"width": 1280, "height": 800})
    narrow.until(f"{widest} > 450")
    narrow.page.set_viewport_size({"width": 390, "height": 844})
    narrow.until(f"{widest} < 400 && document.documentElement.scrollWidth <= window.innerWidth")
    assert narrow.said == []


def test_a_dark_screen_gets_light_ink_and_the_same_data(narrow):
    ink = "getComputedStyle(document.querySelector('.gtitle')).fill"
    cells = "JSON.stringify(document.querySelector('.live').data.filter(t => t.type === 'heatmap').map(t => [t.colorscale, t.zmin, t.zmax]))"
    before = narrow.js(cells)
    assert narrow.js(ink) == "rgb(32, 36, 42)"
    narrow.page.emulate_media(color_scheme="dark")
    narrow.until(f"{ink} === 'rgb(231, 233, 236)'")
    assert narrow.js(cells) == before
    narrow.page.emulate_media(color_scheme="light")
    narrow.until(f"{ink} === 'rgb(32, 36, 42)'")
    assert narrow.said == []


def test_on_paper_ink_is_dark_and_what_cannot_be_clicked_is_gone(narrow):
    """Also from a dark screen: the pictures that are printed are the static ones."""
    narrow.page.emulate_media(media="print", color_scheme="dark")
    narrow.until("getComputedStyle(document.body).color === 'rgb(32, 36, 42)'")
    shown = "[...document.querySelectorAll('{}')].filter(e => getComputedStyle(e).display !== 'none').length"
    assert narrow.js(shown.format("button.copy, nav, .live")) == 0
    assert narrow.js(shown.format(".plot.drawn > svg")) == narrow.js(shown.format(".plot.drawn")) > 0
    narrow.page.emulate_media(media="screen", color_scheme="light")
    narrow.until("getComputedStyle(document.querySelector('.gtitle')).fill === 'rgb(32, 36, 42)'")
    assert narrow.said == []


def test_the_keyboard_reaches_what_a_mouse_does(narrow):
    narrow.js("window.scrollTo(0, 0); document.activeElement.blur(); window.getSelection().removeAllRanges()")
    first = narrow.js(
        "[...document.querySelectorAll('a, button, summary, [tabindex]')].filter(e => e.tabIndex >= 0)[0].textContent"
    )
    assert first == "Skip to the stages"
    narrow.page.locator("a.skip").focus()
    assert narrow.js("document.activeElement.getBoundingClientRect().left") >= 0
    assert narrow.js(
        "[...document.querySelectorAll('.scroll')].every(s => s.tabIndex === 0 && s.getAttribute('aria-label'))"
    )
    assert narrow.js("[...document.querySelectorAll('.live')].every(p => p.getAttribute('aria-label'))")
    assert narrow.js(
        "[...document.querySelectorAll('button, summary')].every(e => e.textContent.trim() || e.getAttribute('aria-label') || e.dataset.title)"
    )


def test_without_scripts_all_is_there(browser, report):
    for size in WIDTHS.values():
        seen = Visit(browser, report[1], size, java_script_enabled=False)
        page = seen.page
        assert (
            page.locator("#stage-2 .plot > svg").first.is_visible()
            and not page.locator("button.copy").first.is_visible()
        )
        assert (
            page.locator("#stage-2 table.controls").is_visible()
            and page.locator(".numbers > li").count() >= 3
        )
        widest = "Math.max(...[...document.querySelectorAll('.plot > svg')].map(s => s.getBoundingClientRect().right))"
        assert seen.js(widest) <= size[0] and seen.js(
            "document.documentElement.scrollWidth <= window.innerWidth"
        )
        assert seen.asked == [report[1].as_uri()]
        seen.context.close()


def without_library(path):
    """The page without Plotly: what is static must hold then too, and it opens in no time."""
    return path.read_text("utf-8").replace(get_plotlyjs(), "", 1)


def test_a_page_that_was_tampered_with_runs_and_asks_nothing(browser, small, tmp_path):
    """The policy alone stops an injected script and picture, and says so: the tests above can fail."""
    added = "<script>window.pwned=1</script><img src='http://evil.example/x.png'></header>"
    bad = tmp_path / "bad.html"
    bad.write_text(without_library(small).replace("</header>", added, 1), "utf-8")
    seen = Visit(browser, bad, WIDTHS["desktop"])
    assert seen.js("window.pwned === undefined")
    assert sum("Content Security Policy" in m for m in seen.said) >= 2
    assert seen.js("document.querySelector('img').naturalWidth") == 0
    seen.context.close()


def test_words_that_cannot_be_broken_do_not_widen_the_page(browser, tmp_path):
    word = "Averyveryverylongwordthatcannotbebrokenanywhere" * 3
    table = pd.DataFrame({"name": ["question", word], "value": [word, word]})
    control = Control(word, word, word, {word: word}, False, 2, detail=word)
    result = Result(
        "component_set",
        tables={**toy.components().tables, "about": table},
        controls=(control,),
        raw_examples=({"tokens": [word] * 3, word: word},),
    )
    path = write_report(result, tmp_path / "r.html", command=word)
    path.write_text(without_library(path), "utf-8")
    seen = Visit(browser, path, WIDTHS["phone"])
    assert seen.js("document.documentElement.scrollWidth <= window.innerWidth")
    seen.context.close()
