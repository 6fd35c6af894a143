"""The report: closed to the network, complete, honest about what failed, and safe whatever a token contains."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from plotly.offline import get_plotlyjs

import toy_results as toy
from microtome.errors import ResourceError, ResultError
from microtome.report import gallery, markup, write_report
from microtome.report import page as page_module
from microtome.report.markup import Html, escape, tag
from microtome.report.numbers import headline
from microtome.report.outline import outline
from microtome.results import Control, Labelled, Query, Result, verdict

VOID = {"br", "hr", "img", "meta", "link", "wbr"}
LIBRARY = get_plotlyjs()
EVIL = tuple(e for e in toy.EVIL)


class Page(HTMLParser):
    """Tags with their attributes, the text of every element, and that all are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text, self.scripts = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif self.open and self.open[-1] != "style":
            self.text.append(data)

    @property
    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.text))

    def all(self, name, **attributes):
        return [
            a
            for t, a in self.tags
            if t == name and all(a.get(k.rstrip("_")) == v for k, v in attributes.items())
        ]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """One dissection with hostile tokens everywhere, its file, and its page parsed."""
    tokens = (*EVIL, *toy.TOKENS[: 14 - len(EVIL)])
    result = toy.dissect(tokens, layers=6)
    about = pd.DataFrame({"name": ["question", "model", EVIL[0]], "value": [EVIL[2], EVIL[3], EVIL[1]]})
    result = replace(result, tables={**result.tables, "about": about})
    path = tmp_path_factory.mktemp("report") / "report.html"
    assert (
        write_report(result, path, command=f"microtome dissect --clean '{EVIL[0]}'", folder="runs/it's mine")
        == path
    )
    text = path.read_text("utf-8")
    return result, path, text, Page(text)


def without_library(text):
    return text.replace(LIBRARY, "", 1)


def test_one_file_with_one_copy_of_the_script_within_eight_megabytes(report):
    _, path, text, page = report
    assert path.stat().st_size <= 8_000_000 and [p.name for p in path.parent.iterdir()] == [path.name]
    assert text.count(LIBRARY[:2000]) == 1 and text.count("plotly.js v") == 1
    assert (
        text.startswith("<!DOCTYPE html>")
        and page.all("html", lang="en")
        and page.all("meta", charset="utf-8")
    )


def test_nothing_is_asked_of_any_network(report):
    _, _, text, page = report
    for name, attributes in page.tags:
        assert name not in {"link", "iframe", "object", "embed", "base", "form", "audio", "video", "img"}, (
            name
        )
        for key, value in attributes.items():
            assert not key.startswith("on"), (name, key)
            assert key not in {
                "src",
                "srcset",
                "action",
                "formaction",
                "poster",
                "background",
                "ping",
                "data",
            }, (name, key)
            if key == "href":
                assert value.startswith("#"), value
            assert key in ("xmlns", "content", "data-title", "aria-label") or "://" not in (value or ""), (
                name,
                key,
                value,
            )
    style = re.findall(r"<style>(.*?)</style>", text, re.S)
    assert (
        len(style) == 1
        and "url(" not in style[0]
        and "@import" not in style[0]
        and "@font-face" not in style[0]
    )


def test_only_these_very_scripts_may_run(report):
    _, _, text, page = report
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    rules = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert (
        rules["default-src"] == rules["connect-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    )
    assert "unsafe" not in rules["script-src"] and "*" not in policy and "http" not in policy
    kinds = [a.get("type") for a in page.all("script")]
    code = [s for s, kind in zip(page.scripts, kinds, strict=True) if kind is None]
    assert len(code) == 2 and {k for k in kinds if k} == {"application/json"}
    for script in code:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in rules["script-src"]
    assert text.index("Content-Security-Policy") < text.index("<style>")
    assert (
        "innerHTML" not in code[1]
        and "eval" not in code[1]
        and "fetch(" not in code[1]
        and "document.write" not in code[1]
    )


def test_hostile_text_is_shown_and_never_obeyed(report):
    _, _, text, page = report
    rest = without_library(text)
    assert len(page.all("script")) == rest.count("<script") == rest.count("</script>")
    assert "<!--" not in rest and "<img" not in rest and "\u2028" not in rest and "\u202e" not in rest
    assert not [a for a in page.all("a") if "javascript" in a["href"]]
    for token in (
        "</script><script>window.pwned=1</script>"[:20],
        "<img src=http://evil.example/x",
        "\\u202eright",
    ):
        assert token in page.words.replace("␣", " "), token


def test_the_data_of_a_figure_is_json_that_cannot_end_its_element(report):
    _, _, _, page = report
    islands = [
        s
        for s, a in zip(page.scripts, page.all("script"), strict=True)
        if a.get("type") == "application/json"
    ]
    assert len(islands) >= 20
    for text in islands:
        assert not re.search("[<>&\u2028\u2029]", text)
        figure = json.loads(text)
        assert figure["data"] and figure["layout"]["height"]
        assert "<script" not in json.dumps(figure).replace("\\u003c", "<") or "&lt;" in json.dumps(figure)


def test_a_forgotten_escape_would_be_seen(monkeypatch, tmp_path):
    monkeypatch.setattr(markup, "escape", lambda text: Html(str(text)))
    write_report(toy.behaviour(EVIL), tmp_path / "r.html")
    text = without_library((tmp_path / "r.html").read_text("utf-8"))
    assert "<b>bold</b>" in text


def test_every_stage_has_its_section_with_all_that_belongs_to_it(report):
    result, _, text, page = report
    stages = outline(result)
    assert len(stages) == 10
    for stage in stages:
        section = text[text.index(f'<section id="{stage.anchor}"') :]
        section = section[: section.index("</section>")]
        assert (
            "<h2>" in section and 'class="asked"' in section and "Controls" in section and "Query" in section
        )
        assert 'class="verdict supported"' in section and stage.result.verdict.reasons[0] in section
        assert section.count("<figure ") >= 1 and section.count('class="copy"') == section.count("<figure ")
        for control in stage.result.controls:
            assert escape(control.rules_out) in section and escape(control.expected) in section
        assert any(a["href"] == f"#{stage.anchor}" for a in page.all("a"))
        assert stage.seconds is not None and f"{stage.seconds:,.1f} s" in section
    assert len(page.all("figure")) == text.count('class="plot-data"')


def test_every_figure_is_there_without_a_script(report):
    _, _, text, page = report
    assert len(page.all("svg", role="img")) == len(page.all("figure"))
    assert "currentColor" in text and all("aria-label" in a for a in page.all("svg", role="img"))


def test_what_failed_and_what_did_not_run_is_said_by_name(report):
    result, _, text, page = report
    closing = text[text.index('<section id="checked"') :]
    closing = re.sub("<[^>]*>", "", closing[: closing.index("</section>")])
    assert (
        closing.count("irrelevant. Not ruled out: that the cell carries something else") == 1
        and closing.count(": no held-out prompts") == 9
        and closing.count("observed 0.31; the verdict does not rest on it") == 9
    )
    for kind in ("Failed", "Did not run"):
        part = closing[closing.index(kind) :]
        for stage in outline(result)[1:]:  # the behaviour has neither
            assert f"{stage.number}. " in part
    assert (
        "every stage is supported" in closing
        and "What this does not show" in closing
        and "self-repair" in closing
    )
    total = sum(len(s.result.controls) for s in outline(result)) + 1
    assert f"{total} controls: 19 passed, 10 failed, 9 did not run" in page.words


def test_a_refused_stage_stands_in_its_place_with_its_reason(report):
    result, _, text, page = report
    table = text[text.index('class="stages"') :]
    table = re.sub("<[^>]*>", " ", table[: table.index("</table>")])
    assert table.index("3. Attention outputs") < table.index("MLP outputs") < table.index("4. Components")
    assert "no mlp_out in this family" in table and "refused" in table and "216.7" in table
    assert [s.name for s in outline(result)] == list(toy.STAGES)
    assert [s.n for s in outline(result)][:2] == [48, 16]


def test_provenance_has_the_command_the_hashes_and_the_queries(report):
    result, _, text, page = report
    words = page.words
    assert result.query.model in words and result.query.task in words and result.query.id in words
    assert "microtome dissect --clean" in words and "sdpa" in words and "not calibrated" in words
    queries = [
        json.loads(m.replace("&quot;", '"'))
        for m in re.findall(r'<pre tabindex="0"><code>(\{.*?\})</code></pre>', text, re.S)
    ]
    assert len(queries) == 11 and {q["method"] for q in queries} >= {"dissect", "activation_patching"}


def test_copy_as_python_leads_to_the_saved_stage(report):
    _, _, text, page = report
    blocks = re.findall(r'<pre id="(figure-[^"]*-python)" tabindex="0"><code>(.*?)</code></pre>', text, re.S)
    assert len(blocks) == len(page.all("button", class_="copy")) == len({name for name, _ in blocks})
    assert {a["data-for"] for a in page.all("button", class_="copy")} == {name for name, _ in blocks}
    first = next(code for name, code in blocks if name.startswith("figure-stage-2-"))
    assert escape('mt.open("runs/it\'s mine").children[1].figure()') in first


def test_a_snippet_of_the_report_runs(tmp_path, monkeypatch):
    result = toy.dissect(layers=3)
    folder = result.save(tmp_path / "result")
    write_report(result, tmp_path / "report.html", folder=folder)
    text = (tmp_path / "report.html").read_text("utf-8")
    code = next(
        c for c in re.findall(r"<code>(import microtome.*?)</code>", text, re.S) if "patching.donors" in c
    )
    import html

    monkeypatch.setattr("plotly.graph_objects.Figure.show", lambda self: None)
    names = {}
    exec(html.unescape(code), names)
    assert names["result"] == result.children[1] and "other donors" in names["figure"].layout.title.text


def test_raw_examples_show_tokens_answers_and_outputs(report):
    result, _, text, page = report
    part = text[
        text.index('<details class="examples" open>')
        if '<details class="examples" open>' in text
        else text.index('class="examples"') :
    ]
    part = re.sub("<[^>]*>", " ", part[: part.index("</details>")])
    assert "not chosen" in part and "␣Mary" in part and "Most likely next tokens" in part and "0.71" in part
    assert part.count("answer") == 3 and part.count("wrong") >= 3


def test_the_numbers_that_matter_have_interval_null_and_n(report):
    result, _, _, page = report
    numbers = headline(result, outline(result))
    assert 3 <= len(numbers) <= 6
    labels = " | ".join(n.label for n in numbers)
    assert (
        "share of clean prompts that prefer the answer" in labels
        and "held-out faithfulness of 16 parts" in labels
        and "largest effect: L3H3.z" in labels
    )
    assert "attribution ranks parts" in labels
    for one in numbers:
        assert np.isfinite(one.value) and np.isfinite(one.null_low) and one.n and one.anchor and one.null
    held = next(n for n in numbers if "faithfulness" in n.label)
    strong = result.children[-1].tables["nulls"].query("family == 'top_pool'")["value"]
    assert (held.value, held.low, held.high, held.n) == (0.81, 0.72, 0.89, 32)
    assert (held.null_low, held.null_high) == pytest.approx(
        tuple(np.quantile(strong, [0.025, 0.975]))
    )  # the harder family
    assert (
        page.all("ul", class_="numbers") and page.words.count("no interval") == 1
    )  # the rank correlation has none here
    assert "n\xa032" in "".join(page.text) and "\\xa0" not in page.words


def test_the_interval_of_the_agreement_comes_from_its_control():
    result = toy.dissect(layers=3)
    child = result.children[4]
    seen = {"correlation": 0.7, "low": 0.6, "high": 0.8, "overlap": 1.0}
    control = Control("approximation", "that it invents cells", "at least 0.7", seen, True, 30)
    child = replace(child, controls=(*child.controls, control))
    children = (*result.children[:4], child, *result.children[5:])
    numbers = headline(replace(result, children=children), outline(result))
    assert next((n.low, n.high) for n in numbers if "ranks" in n.label) == (0.6, 0.8)


@pytest.mark.parametrize(
    "builder",
    [toy.behaviour, lambda: toy.patching(layers=3), toy.lens, toy.attention, toy.components, toy.ablation],
)
def test_a_single_result_is_a_report_too(builder, tmp_path):
    result = builder()
    page = Page(write_report(result, tmp_path / "r.html").read_text("utf-8"))
    assert len(page.all("section", id="stage-1")) == 1 and not page.all("section", id="whole")
    assert (
        len(page.all("figure")) >= 1
        and page.all("section", id="checked")
        and page.all("section", id="provenance")
    )


def test_a_dissection_that_stopped_says_why_on_the_first_screen(tmp_path):
    behaviour = toy.behaviour(accuracy=0.52, p=0.4)
    stopped = toy.control(
        "stages",
        passed=False,
        observed="the model does not do this task better than chance",
        expected="every stage is supported",
    )
    stages = pd.DataFrame(
        [{"stage": "behaviour", "n": 48, "seconds": 3.0, "verdict": str(behaviour.verdict), "note": ""}]
    )
    result = Result(
        "dissect",
        toy.query("dissect", task="ioi"),
        tables={"stages": stages},
        children=(behaviour,),
        **toy.judged((stopped,), 0.4, ("stages",)),
    )
    page = Page(write_report(result, tmp_path / "r.html").read_text("utf-8"))
    top = page.words[: page.words.index("1. Behaviour 2") if "1. Behaviour 2" in page.words else 3000]
    assert "Which parts of the model carry ioi?" in top and "not distinguishable from its null" in top
    assert "does not do this task better than chance" in top and "0.52" in top
    assert len(page.all("figure")) == 1 and "Verdict: not distinguishable from its null" in page.words


def test_a_result_with_nothing_in_it_still_makes_a_page(tmp_path):
    page = Page(write_report(Result("homegrown_kind"), tmp_path / "r.html").read_text("utf-8"))
    assert "Homegrown kind" in page.words and "No control ran." in page.words and "unchecked" in page.words
    assert "page made with" in page.words


def test_every_name_that_can_be_hostile_is_escaped(tmp_path):
    text = " ".join(EVIL) + "\ud800\x00\x1b"
    label = text.replace("\ud800", "")
    effects = Labelled(
        np.ones((1, 2, 1)),
        ("site", "prompt", "metric"),
        {"site": (label,), "prompt": (label, 1), "metric": (label,)},
    )
    controls = (
        Control(text, text, text, {text: text}, False, 2, (-1.0, 1.0), text, gates=True),
        Control.not_run(text + "2", text, text, text),
    )
    table = pd.DataFrame({label: [label], "b": [1.0]})
    result = Result("activation_patching", Query(text, text, parameters={text: text}, numerics={text: text}), effects, {"odd": table}, controls=controls,
                    verdict=verdict(controls, (), 0.5, 0.001, 0.1), raw_examples=({"prompt": text, text: text, "tokens": [text], "top": [[text, 0.5]], "list": [text]},))  # fmt: skip
    stages = pd.DataFrame(
        [
            {"stage": label, "n": 1, "seconds": 1.0, "verdict": str(result.verdict), "note": label},
            {"stage": label, "verdict": label, "note": label},
        ]
    )
    whole = Result(
        "dissect",
        tables={
            "stages": stages,
            "checks": pd.DataFrame([{"check": label, "outcome": label, "detail": label}]),
        },
        children=(result,),
    )
    written = write_report(whole, tmp_path / "r.html", command=text, folder=text).read_text("utf-8")
    page, rest = Page(written), without_library(written)
    assert rest.count("<script") == len(page.all("script")) == 3 and "<img" not in rest and "<!--" not in rest
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\u2028\u202e]", rest)
    assert not [a for a in page.all("a") if not a["href"].startswith("#")]


def test_what_does_not_fit_is_left_out_and_said(tmp_path, monkeypatch):
    result = toy.patching(layers=6)
    whole = Page(write_report(result, tmp_path / "a.html").read_text("utf-8"))
    monkeypatch.setattr(page_module, "MOST_BYTES", len(LIBRARY.encode()) + page_module.RESERVE + 60_000)
    page = Page(write_report(result, tmp_path / "b.html").read_text("utf-8"))
    assert (tmp_path / "b.html").stat().st_size < page_module.MOST_BYTES
    assert 0 < len(page.all("svg", role="img")) < len(whole.all("svg", role="img"))
    assert len(page.all("button", class_="copy")) == len(
        whole.all("button", class_="copy")
    )  # the Python of all is there
    assert "Figures left out to keep the file small" in page.words and "Left out" in page.words


def test_many_patterns_stay_within_the_limit_and_say_how_many_are_hidden(tmp_path):
    tensors = {f"pattern/L{i}H0": np.tril(np.ones((40, 40), np.float32)) for i in range(20)}
    path = write_report(Result("attention_patterns", tensors=tensors), tmp_path / "r.html")
    assert path.stat().st_size < 8_000_000 and "8 more are in the saved result" in path.read_text("utf-8")


def test_a_figure_that_cannot_be_drawn_does_not_take_the_page_along(tmp_path):
    result = toy.components()
    broken = replace(
        result,
        tables={**result.tables, "curve": pd.DataFrame({"k": [1]}), "held_out": pd.DataFrame({"odd": [1]})},
    )
    page = Page(write_report(broken, tmp_path / "r.html").read_text("utf-8"))
    assert (
        "No picture of faithfulness" in page.words and "value" in page.words and len(page.all("figure")) == 1
    )


def test_the_same_result_gives_the_same_bytes(tmp_path):
    a, b = (write_report(toy.patching(layers=3), tmp_path / name) for name in ("a.html", "b.html"))
    assert a.read_bytes() == b.read_bytes()


def test_an_older_report_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new folder" / "r.html"
    write_report(toy.behaviour(), path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(ResourceError, match="cannot be written"):
        write_report(toy.components(), path)
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == ["r.html"]


def test_wrong_arguments_are_refused(tmp_path):
    with pytest.raises(ResultError, match="folder"):
        write_report(toy.behaviour(), tmp_path)
    with pytest.raises(ResultError, match="reports are made from results"):
        write_report({"kind": "behaviour"}, tmp_path / "r.html")


def test_a_script_that_would_end_its_element_is_refused(monkeypatch):
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "var x = '</SCRIPT>'")
    with pytest.raises(ResultError, match="end its own element"):
        page_module.page(toy.behaviour())


def test_text_is_escaped_unless_it_is_html():
    assert (
        tag("p", "<b>", Html("<i>x</i>"), None, ["&", [1]], cls='a"b', data_x=None, open=True)
        == '<p class="a&quot;b" open><b>'.replace("<b>", "&lt;b&gt;") + "<i>x</i>&amp;1</p>"
    )
    assert escape("\ud800\x07") == "\\ud800\\x07"
    assert gallery.island.__doc__ and isinstance(escape("a"), Html)


def test_the_first_lines_say_what_was_asked_where_it_is_which_parts_and_what_failed(report):
    result, _, text, page = report
    part = text[text.index('<dl class="finding">') :]
    part = re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", part[: part.index("</dl>")]))
    assert "Asked" in part and "␣Mary" in part and "not ␣John" in part
    assert re.search(r"Where .* in layers? \d", part) and "stage 2" in part
    parts = result.children[-1].tables["components"]["site"]
    assert (
        f"{len(parts)} of" in part and "carry 0.81 [0.72, 0.89] of the effect on 32 held-out prompts" in part
    )
    assert str(parts[0]).removesuffix(".z") in part and "95 % of sets" in part
    assert "Not ruled out 10 of 38 controls failed" in part and "9 did not run" in part
    assert text.index('class="finding"') < text.index('class="numbers"') < text.index('class="stages"')


def test_a_finding_of_a_stage_that_is_not_supported_says_so_beside_it(tmp_path):
    result = toy.dissect(layers=4)
    weak = replace(result.children[-1], **toy.judged(p=0.2))
    result = replace(result, children=(*result.children[:-1], weak))
    text = write_report(result, tmp_path / "r.html").read_text("utf-8")
    finding = text[text.index('<dl class="finding">') :]
    finding = finding[: finding.index("</dl>")]
    assert finding.count("not distinguishable from its null") == 1
    cards = text[text.index('class="numbers"') :]
    card = next(c for c in cards.split("<li>") if "faithfulness" in c)
    assert "not distinguishable from its null" in card[: card.index("</li>")]


def test_the_verdict_of_the_whole_names_what_it_stands_on_and_what_it_does_not(tmp_path):
    result = toy.dissect(layers=3)
    weak = replace(result.children[3], **toy.judged(p=0.2))
    stages = toy.control(
        "stages", expected="supported: behaviour, components", observed={"of": 10, "supported": 9}
    )
    children = (*result.children[:3], weak, *result.children[4:])
    result = replace(result, children=children, **toy.judged((stages,), 0.0002, ("stages",)))
    page = Page(write_report(result, tmp_path / "r.html").read_text("utf-8"))
    name = outline(result)[3].name
    assert "Every stage that the conclusion stands on is supported: behaviour, components." in page.words
    assert f"It does not stand on {name}." in page.words


def test_reasons_are_sentences_and_not_python(tmp_path):
    seen = {f"L{i}.resid_pre@s2": 0.20706504329980813 for i in range(6)}
    control = toy.control("noise", passed=False, observed=seen, expected="ratio <= 0.2")
    result = replace(toy.patching(layers=3), **toy.judged((control,), 0.0002, ("noise",)))
    (reason,) = result.verdict.reasons
    assert reason == (
        "control noise failed: expected ratio <= 0.2, observed L0.resid_pre@s2 0.207, L1.resid_pre@s2 0.207, "
        "L2.resid_pre@s2 0.207, L3.resid_pre@s2 0.207 and 2 more"
    )
    words = Page(write_report(result, tmp_path / "r.html").read_text("utf-8")).words
    assert "{'" not in words and "0.20706504" not in words and "ratio ≤ 0.2" in words


def test_a_reason_is_not_said_twice(tmp_path):
    """Also where a file has sorted the names of what was observed since the note was written."""
    child = toy.patching(layers=3)
    note = "; ".join(child.verdict.reasons)[:60] + " and more that differs"
    table = pd.DataFrame(
        [{"stage": "one", "n": 8, "seconds": 1.0, "verdict": str(child.verdict), "note": note}]
    )
    stages = outline(Result("dissect", tables={"stages": table}, children=(child,)))
    assert stages[0].note == ""


def test_the_table_of_stages_counts_controls_beside_each_verdict(report):
    result, _, text, _ = report
    table = text[text.index('class="stages"') :]
    rows = table[: table.index("</table>")].split("<tr>")[2:]
    for stage in outline(result):
        passed = sum(c.passed is True for c in stage.result.controls)
        row = next(r for r in rows if f'href="#{stage.anchor}"' in r)
        assert f"{passed}/{len(stage.result.controls)}<" in row


def test_what_was_typed_names_model_and_data_where_the_result_does_not(tmp_path):
    line = "microtome steer happiness --model toy --seed 0"
    page = Page(write_report(toy.lens(), tmp_path / "r.html", command=line).read_text("utf-8"))
    assert (
        line
        in page.words[
            : page.words.index("The whole" if "The whole" in page.words else "Where this came from")
        ]
    )
