"""The draft: the author's words come back, computed blocks are not edited, and a record that moved on makes new ones."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

import toy_record as toy
from microtome.cli import lab_report
from microtome.errors import LabError
from microtome.lab import claiming, place
from microtome.lab.claiming import Link
from microtome.lab.reading import Record
from microtome.lab.study import study
from microtome.lab.writing import Words, collect
from microtome.lab.writing.drafting import draft, parse_draft, read_draft, write_draft

SUMMARY = "We looked.\n\n- one <b>bold</b>\n- **two**"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MICROTOME_PERSON", "ada")
        patch.delenv("MICROTOME_LAB_URL", raising=False)
        folder = tmp_path_factory.mktemp("lab")
        place.init(folder)
        with study("names", folder=folder) as s:
            toy.fill(s)
            s.close()
            record = Record(s.place)
            yield record
            record.close()


@pytest.fixture(scope="module")
def write_up(lab):
    return collect(lab, [1], Words("A title", ("Ada",), SUMMARY, "only names", "read 20 prompts", {"1.1": "it stands out"}), seed=5)  # fmt: skip


@pytest.fixture(scope="module")
def text(write_up):
    return draft(write_up)


def test_words_come_back_as_they_were(text):
    found = parse_draft(text, "write-up.md")
    assert found.words == Words(
        "A title", ("Ada",), SUMMARY, "only names", "read 20 prompts", {"1.1": "it stands out", "1.2": ""}
    )
    assert (found.claims, found.seed) == ((1,), 5)
    assert "claim 1" in found.blocks and "experiment 1.1" in found.blocks and "left out" in found.blocks


def test_drafting_again_from_what_was_read_is_the_same(lab, text):
    found = parse_draft(text, "write-up.md")
    assert draft(collect(lab, found.claims, found.words, seed=found.seed)) == text


def test_what_an_editor_does_to_blanks_is_no_edit(text):
    trimmed = "\r\n".join(line.rstrip() for line in text.split("\n")) + "\r\n\r\n"
    assert parse_draft(trimmed, "x").words.summary == SUMMARY


def test_hints_are_no_words(lab):
    found = parse_draft(draft(collect(lab, [1])), "x")
    assert (found.words.summary, found.words.limitations, found.words.verified) == ("", "", "")


@pytest.mark.parametrize(
    ("old", "new", "block"),
    [
        ("Rung: causal on this prompt set", "Rung: replicated", "claim 1"),
        ("finished | not distinguishable from its null", "finished | supported", "left out"),
        ("One model only: toy", "Two models", "computed limitations"),
        ("with probability 0.8", "with probability 0.2", "experiment 1.2"),
    ],
)
def test_an_edited_block_is_refused_by_name(text, old, new, block):
    assert old in text
    with pytest.raises(LabError, match=f"the computed block '{block}' of line .* was edited"):
        parse_draft(text.replace(old, new), "write-up.md")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.replace("<!-- yours summary -->", "words\n<!-- yours summary -->"), "stands outside of the places"),
        (lambda t: t.replace("<!-- end -->", "", 1), "has no end"),
        (lambda t: t + "\n<!-- yours summary -->\nagain\n<!-- end -->\n", "'summary' is there twice"),
        (lambda t: t + "\n<!-- yours praise -->\ngood\n<!-- end -->\n", "nobody reads the place 'praise'"),
        (lambda t: t.replace('microtome: "write-up 1"', 'microtome: "write-up 9"'), "its format is 'write-up 9'"),
        (lambda t: t.replace("claims: [1]", "claims: [one]"), "line 5"),
        (lambda t: t.replace("claims: [1]", "claims: [true]"), "its head does not say"),
        (lambda t: t.replace("seed: 5", "seed: -1"), "its head does not say"),
        (lambda t: t.replace("---\n", "", 1), "it has no head"),
        (lambda t: "", "it has no head"),
    ],
)  # fmt: skip
def test_what_is_no_draft_is_refused(text, change, said):
    with pytest.raises(LabError, match=said):
        parse_draft(change(text), "write-up.md")


def test_a_block_that_was_removed_is_made_anew(text):
    start = text.index("<!-- computed claim 1 ")
    end = text.index("<!-- end -->", start)
    assert "claim 1" not in parse_draft(text[:start] + text[end + len("<!-- end -->") :], "x").blocks


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path):
    with pytest.raises(LabError, match="cannot be read"):
        read_draft(tmp_path / "none.md")
    (tmp_path / "bytes.md").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LabError, match="cannot be read"):
        read_draft(tmp_path / "bytes.md")


def test_words_that_hold_a_mark_lose_nothing_in_silence(lab):
    evil = collect(lab, [1], Words(summary="one\n<!-- end -->\ntwo"))
    with pytest.raises(LabError, match="stands outside of the places"):
        parse_draft(draft(evil), "x")


# ------------------------------------------------------------------------------------------------ the commands


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("MICROTOME_PERSON", "ada")
    monkeypatch.delenv("MICROTOME_LAB_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    place.init(tmp_path)
    with study("names", folder=tmp_path) as s:
        toy.fill(s)
        yield s
    s.database.close()


def run(*arguments):
    return CliRunner().invoke(lab_report.app, list(arguments))


def test_from_a_draft_to_a_page_and_a_record_that_moved_on(project, tmp_path):
    made = run("draft", "--title", "Names", "--author", "Ada L.")
    assert made.exit_code == 0, made.output
    path = tmp_path / "write-up.md"
    text = path.read_text()
    path.write_text(text.replace(text[text.index("<!-- what somebody") : text.index("-->", text.index("<!-- what somebody")) + 3], "It is L3H3."))  # fmt: skip
    claiming.link(project.database, 1, Link(toy.ablation(toy.Model(), toy.Task(hash="3333" * 8))), "ada")
    again = run("draft")
    assert again.exit_code == 0, again.output
    found = read_draft(path)
    assert found.words.summary == "It is L3H3." and "why 1.6" not in found.blocks
    assert any(name == "experiment 1.7" for name in found.blocks)
    done = run("write", "--html", "out.html", "--markdown", "out.md", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)
    assert told["claims"][0]["runs"] == [1, 2, 7] and told["looks"] == 1
    assert "It is L3H3." in (tmp_path / "out.html").read_text()


def test_words_on_a_run_that_is_in_no_claim_are_refused(project, tmp_path):
    assert run("draft").exit_code == 0
    path = tmp_path / "write-up.md"
    text = path.read_text().replace("<!-- yours why 1.1 -->", "<!-- yours why 1.9 -->").replace("<!-- yours summary -->", "<!-- yours summary -->\nx")  # fmt: skip
    path.write_text(text.replace("the place where the name is moved\n<!-- end -->", "my words\n<!-- end -->"))
    done = run("write", "--html", "out.html")
    assert (
        isinstance(done.exception, LabError)
        and "your words on run 9 for claim 1 have no place" in done.exception.what
    )
    assert not (tmp_path / "out.html").exists()


def test_a_report_without_summary_or_kind_or_over_its_draft_is_refused(project, tmp_path):
    assert run("draft").exit_code == 0
    assert "the summary is empty" in run("write", "--html", "out.html").exception.what
    assert "nothing to write" in run("write").exception.what
    (tmp_path / "summary.txt").write_text("It is L3H3.")
    done = run("write", "--markdown", "write-up.md", "--summary", "summary.txt")
    assert "is the draft" in done.exception.what
    done = run("write", "--claim", "1", "--html", "out.html", "--summary", "summary.txt")
    assert done.exit_code == 0, done.output


def test_a_draft_appears_whole_or_not_at_all(write_up, tmp_path):
    (tmp_path / "folder").write_text("a file")
    from microtome.errors import ResourceError

    with pytest.raises(ResourceError):
        write_draft(write_up, tmp_path / "folder" / "write-up.md")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
