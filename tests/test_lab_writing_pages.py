"""The pages: what is hostile is shown as text, the same record gives the same bytes, a browser opens it in silence, the PDF has pages."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import pytest

import toy_record as toy
import toy_results
from microtome.errors import LabError, ResourceError
from microtome.lab import place
from microtome.lab.reading import Record
from microtome.lab.study import study
from microtome.lab.writing import Words, collect, collecting, html, markdown, pdf
from microtome.lab.writing.prose import as_html, as_markdown, escape
from test_report_browser import Visit, browser

opened = browser  # the fixture by another name: a parameter of a test would shadow it

ESCAPES = "\x1b[31mred\x1b]0;title\x07 \u202eright \x9b2J"
EVIL = "".join(toy_results.EVIL) + ESCAPES


def record_of(folder, **given):
    place.init(folder)
    with study("names" + given.pop("title", ""), folder=folder, person=given.pop("person", "ada")) as s:
        toy.fill(s, **given)
    s.database.close()
    return Record(s.place)


@pytest.fixture(scope="module")
def environment():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MICROTOME_LAB_URL", raising=False)
        patch.setenv("MICROTOME_PERSON", "ada")
        yield


@pytest.fixture(scope="module")
def plain(environment, tmp_path_factory):
    record = record_of(tmp_path_factory.mktemp("plain"))
    yield record
    record.close()


@pytest.fixture(scope="module")
def hostile(environment, tmp_path_factory):
    tokens = (*toy_results.EVIL, *toy_results.TOKENS[:8])
    evil = "".join(
        c for c in EVIL if c.isprintable()
    )  # a study's title and a person's name are text of a database
    record = record_of(tmp_path_factory.mktemp("evil"), tokens=tokens, name=EVIL, title=evil, person=evil)
    words = Words(
        EVIL,
        (EVIL,),
        f"{EVIL}\n\n- `{EVIL}`\n- **{EVIL}**\n\n![x](http://evil.example/y) [a](javascript:x)",
        EVIL,
        EVIL,
        {"1.1": EVIL},
    )
    yield collect(record, [1], words)
    record.close()


WORDS = Words("Names", ("Ada",), "It is L3H3.", "", "", {})


class Tags(HTMLParser):
    """The elements of a page and their attributes."""

    def __init__(self, text):
        super().__init__()
        self.found, self.named = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_what_is_hostile_is_text_in_html(hostile):
    text = html.page(hostile)
    tags = Tags(text).found
    assert not [t for t, _ in tags if t in ("script", "img", "iframe", "object", "link", "form")]
    assert not [a for _, a in tags for k in a if k.startswith("on")]
    links = {a["href"] for t, a in tags if t == "a"}
    assert links == {"#claim-1"}
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\u2028\u200b]", text)
    assert "<b>bold" not in text and "<i>" not in text
    assert "&lt;/script&gt;&lt;script&gt;window.pwned=1&lt;/script&gt;" in text
    policy = next(a["content"] for t, a in tags if t == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'") and "script-src" not in policy


def test_what_is_hostile_is_text_in_markdown(hostile):
    text = markdown.page(hostile)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\u2028\u200b]", text)
    outside = re.sub(r"(?ms)^(`{3,})json\n.*?^\1$", "", text)
    assert not re.search(r"<[A-Za-z/!]", outside)
    assert "javascript:x" in outside  # the author's own Markdown stays what it is


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("a|b", r"a\|b"),
        ("# no heading", r"\# no heading"),
        ("- no list", r"\- no list"),
        ("1. no list", r"1\. no list"),
        ("*x* _y_ `z`", r"\*x\* \_y\_ \`z\`"),
        ("[a](b) ![c](d)", r"\[a\](b) \!\[c\](d)"),
        ("<b>&amp;", "&lt;b&gt;&amp;amp;"),
        ("http://x", "http&#58;//x"),
        ("one\ntwo", "one⏎two"),
    ],
)
def test_markdown_text_shows_exactly_its_characters(given, shown):
    assert escape(given) == shown


def test_prose_knows_a_little_markdown_and_no_html():
    made = as_html("One **bold** `<code>` *em* a*b*c 2*3\n\n1. x\n2. y\n   more\n\n## Head\n\n<img src=x>")
    assert "<strong>bold</strong>" in made and "<code>&lt;code&gt;</code>" in made and "<em>em</em>" in made
    assert "a*b*c 2*3" in made and '<ol class="prose"><li>x</li><li>y more</li></ol>' in made
    assert "<h4>Head</h4>" in made and "&lt;img src=x&gt;" in made
    assert as_markdown("a < b\x1b\n<img>") == "a < b\\x1b\n&lt;img>"


def test_an_example_cannot_close_its_fence():
    made = markdown._fenced({"prompt": "```\n# out\n````"})
    fence = made.split("json")[0]
    assert made.endswith(f"\n{fence}") and len(fence) > 4 and made.count(fence) == 2


def test_the_same_record_gives_the_same_bytes(plain, tmp_path):
    one, two = (collect(plain, [1], WORDS, seed=3) for _ in range(2))
    assert html.page(one).encode() == html.page(two).encode()
    assert markdown.page(one).encode() == markdown.page(two).encode()
    first, second = html.write_html(one, tmp_path / "a.html"), html.write_html(two, tmp_path / "b.html")
    assert first.read_bytes() == second.read_bytes()


def test_another_seed_draws_other_examples(plain):
    result = toy_results.patching(layers=2)
    rows = [{"prompt": str(i)} for i in range(40)]
    many = replace(result, raw_examples=rows)
    row = plain.run(1)
    drawn = {seed: collecting._examples(many, row, seed) for seed in (0, 1)}
    assert drawn[0].of == 40 and len(drawn[0].rows) == 3 and drawn[0].rows != drawn[1].rows
    assert drawn[0] == collecting._examples(many, row, 0)
    assert drawn[0].rows != collecting._examples(many, replace(row, query="another"), 0).rows


def test_a_page_says_what_a_reader_must_not_miss(plain):
    text = html.page(collect(plain, [1], WORDS))
    for said in ("causal on this prompt set", "Why it is not higher", "What would show it wrong", "names only",
                 "What was run and is not here", "2 runs are in this write-up, 3 are not, and models were looked at raw 1 time",
                 "Post hoc: prediction 2", "with probability 0.8", "did not come true", "any head of that layer does it",
                 "Raw examples: all that the result keeps", "not calibrated"):  # fmt: skip
        assert said in text, said


def test_markdown_comes_with_its_figures(plain, tmp_path):
    path = markdown.write_markdown(collect(plain, [1], WORDS), tmp_path / "report.md")
    linked = re.findall(r"\]\((report_figures/[a-z0-9-]+\.svg)\)", path.read_text())
    assert linked and all((tmp_path / name).read_text().startswith("<svg") for name in linked)
    assert {p.name for p in (tmp_path / "report_figures").iterdir()} == {n.partition("/")[2] for n in linked}


def test_a_page_that_cannot_be_written_leaves_what_was_there(plain, tmp_path):
    made = collect(plain, [1], WORDS)
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(LabError, match="is a folder"):
        html.write_html(made, tmp_path / "folder.html")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ResourceError):
        html.write_html(made, tmp_path / "file" / "out.html")
    assert {p.name for p in tmp_path.iterdir()} == {"folder.html", "file"}


# ------------------------------------------------------------------------------------------------- a real browser


@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_opens_it_in_silence_and_asks_for_nothing(opened, hostile, tmp_path, width):
    path = html.write_html(hostile, tmp_path / "write-up.html")
    visit = Visit(opened, path, (width, 900))
    pictures = visit.js("document.querySelectorAll('figure svg').length")
    assert (visit.said, visit.asked, visit.js("typeof window.pwned")) == ([], [path.as_uri()], "undefined")
    assert visit.js("document.documentElement.scrollWidth") <= width and pictures >= 3
    visit.context.close()


def test_the_pdf_has_pages_and_the_words(opened, plain, tmp_path):
    path = pdf.write_pdf(collect(plain, [1], WORDS), tmp_path / "out.pdf")
    content = path.read_bytes()
    assert content.startswith(b"%PDF") and 2 <= pdf.pages_of(content) <= 30
    if shutil.which("pdftotext"):
        text = subprocess.run(["pdftotext", str(path), "-"], capture_output=True, check=True).stdout.decode()
        assert "L3H3 carries the name" in text and "Limitations" in text
    assert [p.name for p in tmp_path.iterdir()] == ["out.pdf"]


def _program(folder, body):
    path = folder / "browser"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("echo no display >&2; exit 3", "ended with 3"),
        ("exit 0", "made no PDF"),
        ('for a; do case $a in --print-to-pdf=*) echo text > "${a#*=}";; esac; done', "a PDF without pages"),
        ("sleep 60", "took longer than 1 seconds"),
    ],
)
def test_a_browser_that_fails_is_told(plain, tmp_path, monkeypatch, body, said):
    monkeypatch.setenv(pdf.BROWSER, str(_program(tmp_path, body)))
    with pytest.raises(LabError, match=said):
        pdf.write_pdf(
            collect(plain, [1], WORDS), tmp_path / "out.pdf", patience=1.0 if "sleep" in body else 30.0
        )
    assert not (tmp_path / "out.pdf").exists()


def test_without_a_browser_it_is_said_what_to_do(monkeypatch, tmp_path):
    monkeypatch.delenv(pdf.BROWSER, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match="no browser") as caught:
        pdf.browser()
    assert "apt-get install chromium" in caught.value.instead and "print it" in caught.value.instead
    monkeypatch.setenv(pdf.BROWSER, "nothing-of-this-name")
    with pytest.raises(LabError, match="nothing-of-this-name is no program"):
        pdf.browser()


@pytest.mark.parametrize("root", [True, False])
def test_only_root_gives_up_the_sandbox_and_nobody_gets_a_network(plain, tmp_path, monkeypatch, root):
    log = tmp_path / "said"
    monkeypatch.setenv(pdf.BROWSER, str(_program(tmp_path, f'echo "$@" > {log}; exit 1')))
    monkeypatch.setattr(os, "geteuid", lambda: 0 if root else 1000)
    with pytest.raises(LabError):
        pdf.write_pdf(collect(plain, [1], WORDS), tmp_path / "out.pdf")
    words = log.read_text().split()
    assert ("--no-sandbox" in words) is root
    assert "--host-resolver-rules=MAP" in words and any(w.startswith("--user-data-dir=") for w in words)
