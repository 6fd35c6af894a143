"""Pages: what a person writes is read and kept; what the tool writes comes back; nothing leaves the folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from microtome.cli import notebook, pace
from microtome.errors import LabError, ResourceError
from microtome.lab.notebook import folder, front
from microtome.lab.notebook.entries import Entry, entries, links, write
from microtome.lab.notebook.indexing import index
from microtome.lab.notebook.limits import read_limits
from microtome.lab.notebook.pages import KINDS, Page, parse, render, slug
from microtome.lab.notebook.records import confidence, highlight, log_entry
from microtome.lab.notebook.timeline import KINDS as KINDS_DONE

NOW = datetime(2026, 11, 28, 10, 15, tzinfo=UTC)
LINES = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\u2028\u2029\ufeff\ufffe\uffff")
)
WORDS = st.sampled_from(["", "no", "true", "null", "~", "12:30", "1e3", "007", "- a", "a: b", "#x", "<<", "=", "2026-11-28", "'", '"', "a\nb", " a ", "---", "...", "&a", "*a", "!x", ".inf", "|", ">", "%a", "@", "\t"])  # fmt: skip
TEXTS = st.one_of(LINES, WORDS).filter(lambda s: front.shown(s) == s)
LEAVES = st.one_of(TEXTS, st.booleans(), st.none(), st.integers(-(10**18) + 1, 10**18 - 1), st.floats(allow_nan=False, allow_infinity=False))  # fmt: skip
VALUES = st.recursive(LEAVES, lambda v: st.lists(v, max_size=3) | st.dictionaries(TEXTS, v, max_size=3), max_leaves=6)  # fmt: skip
KEYS = TEXTS.filter(lambda k: k not in ("kind", "title", "date"))
DATES = st.sampled_from(["", "2026-11-28"])
BODIES = st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.sampled_from(["", "\n", "\n\nx", "---\n", "a\r\nb", "\ufeffx"]))  # fmt: skip
PAGES = st.builds(
    Page, TEXTS, TEXTS, DATES, st.dictionaries(KEYS, VALUES, max_size=4), BODIES, st.just("notes/x.md")
)


@given(PAGES)
@settings(max_examples=400, deadline=None)
def test_a_page_comes_back_as_it_was(page):
    assert parse(render(page), page.path) == page


@given(st.dictionaries(TEXTS, VALUES, max_size=4))
@settings(max_examples=200, deadline=None)
def test_what_we_write_is_yaml_with_the_same_text_for_any_reader(fields):
    """Another reader of YAML agrees, but for dates, which it may take for dates."""
    frozen = front.freeze(fields, "fields")

    def same(a, b):
        if isinstance(b, tuple):
            return len(a) == len(b) and all(map(same, a, b))
        if isinstance(b, dict):
            return set(map(str, a)) == set(b) and all(same(v, b[str(k)]) for k, v in a.items())
        return str(a) == b if hasattr(a, "year") else a == b and type(a) is type(b)

    assert same(yaml.safe_load(front.dump(frozen)) or {}, frozen)


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_page_or_an_error_that_names_the_line(data):
    for head in (b"", b"---\n"):
        try:
            page = parse(head + data, "notes/x.md")
        except LabError as error:
            assert "notes/x.md line" in str(error) and "UTF-8" in str(error)
        else:
            assert parse(render(page), page.path).fields == page.fields


def test_what_editors_do_is_read():
    marked = parse(b"\xef\xbb\xbf---\r\nkind: belief\r\ntitle: x\r\n---\r\n\r\nfree\r\ntext", "beliefs/x.md")
    assert (marked.kind, marked.title, marked.body, marked.problems) == ("belief", "x", "free\r\ntext", ())
    bare = parse(b"# The heading #\n\ntext", "ideas/2026-11-02-x.md")
    assert (bare.kind, bare.title, bare.date) == ("idea", "The heading", "2026-11-02") and not bare.problems
    assert parse(b"", "notes/x.md").title == "x" and parse(b"", "").kind == "note"
    tabs = parse(b"---\nkind:\tbelief\nmore:\n\t- a\n\t- b\n---\nx", "x.md")
    assert tabs.kind == "belief" and tabs.fields["more"] == ("a", "b") and "tabs" in tabs.problems[0]
    words = parse(b"---\ntitle: No\ndate: 2026-11-28\nat: 12:30\nyes: on\nn: 007\n---\n", "x.md")
    assert words.title == "No" and words.fields == {"at": "12:30", "yes": "on", "n": "007"}


def test_front_matter_that_is_no_yaml_is_read_by_its_lines_and_said():
    page = parse(b"---\nkind: belief\ntitle: L9H6: the name mover\n---\n\ntext", "x.md")
    assert (page.kind, page.title, page.body) == ("belief", "L9H6: the name mover", "text")
    assert page.problems[0].startswith("line 3: the front matter is no YAML")
    assert "quotes" in page.problems[0]
    opened = parse(b"---\nkind: belief\ntext", "beliefs/x.md")
    assert opened.body == "---\nkind: belief\ntext" and "line 1" in opened.problems[0]
    twice = parse(b"---\na: 1\na: 2\n---\n", "x.md")
    assert twice.fields == {"a": 2} and twice.problems == ('line 3: the key "a" is there twice; the last one counts',)  # fmt: skip
    for text in (
        b"a: &x [1]\nb: *x",
        b"a: &x 1",
        b"b: *x",
        b"a: !!python/object:os.system x",
        b"a: !!binary YQ==",
        b"? [a]\n: b",
        b"- a",
    ):
        made = parse(b"---\n" + text + b"\n---\n", "x.md")
        assert any("is no YAML" in p for p in made.problems), text
    deep = parse(b"---\na: " + b"[" * 5000 + b"]" * 5000 + b"\n---\n", "x.md")
    assert "nested" in deep.problems[0]
    assert parse(b"---\ntitle: [a]\ndate: soon\n---\n", "x.md").problems == ("title is a list or a mapping; it is not read", 'the date "soon" is not written as 2026-11-28')  # fmt: skip


def test_not_utf8_names_file_and_line(tmp_path):
    (tmp_path / "a.md").write_bytes(b"one\ntwo\n\xe9t\xe9\n")
    with pytest.raises(LabError, match=r"a\.md line 3 is not UTF-8"):
        folder.read(tmp_path, "a.md")
    with pytest.raises(LabError, match=r"a\.md line 3"):
        folder.append(tmp_path, "a.md", "x")
    assert (tmp_path / "a.md").read_bytes() == b"one\ntwo\n\xe9t\xe9\n"
    (page,) = index(tmp_path)
    assert "line 3" in page.problems[0] and page.body == ""


@pytest.mark.parametrize(
    "value", [float("nan"), 10**18, {1: 2}, {"a": NOW}, object(), "a\x1b[31m", {"a\x00": 1}]
)
def test_what_front_matter_cannot_hold_is_refused(value):
    with pytest.raises(LabError, match="cannot stand in front matter"):
        Page("note", "x", fields={"a": value})


def test_a_page_has_its_own_names_once():
    with pytest.raises(LabError, match='a field is called "title"'):
        Page("note", "x", fields={"title": "y"})


@given(LINES)
@settings(deadline=None)
def test_a_slug_is_a_plain_name_and_its_own_slug(title):
    name = slug(title)
    assert name and len(name) <= 40 and slug(name) == name
    assert not set(name) & set("/\\.:\0 <>|*?\"'") and name == name.strip("-")


def test_slugs_keep_apart_what_signs_and_length_tell_apart():
    assert slug("L9H6 moves names.") == "l9h6-moves-names"
    assert (
        len({slug(t) for t in ("a > b", "a < b", "a - b", "a -> b", "a b", "-5", "5", "...", "", "🙂", "🙃")})
        == 11
    )
    assert slug("x" * 50 + "a") != slug("x" * 50 + "b")
    assert slug("../../etc/passwd") not in ("", "..") and "/" not in slug("../../etc/passwd")
    assert slug("CON") != "con"


# ---- entries

ZONES = st.integers(-14 * 60, 14 * 60).map(lambda m: timezone(timedelta(minutes=m)))
TIMES = st.datetimes(datetime(1990, 1, 2), datetime(2090, 1, 1), timezones=ZONES)
SIGNS = st.sampled_from(["## 10:15 x", "## 2026-11-28 10:15 +00:00 x", "- goal: x", "```", "---", "> x", "  x", "# x", "- a", "<!-- x -->", "\x1b[2J", "a\r\nb", "\t"])  # fmt: skip
FREE = st.lists(st.one_of(SIGNS, st.text(max_size=8)), max_size=4).map("\n".join)
NAMES = st.sampled_from(["goal", "tried", "next", "would change it", "a-b"])
ENTRIES = st.builds(Entry, TIMES, FREE, st.dictionaries(NAMES, FREE, max_size=3), FREE)


@given(st.lists(ENTRIES, max_size=3))
@settings(max_examples=300, deadline=None)
def test_as_many_entries_come_back_as_were_written_with_their_fields(written):
    page = parse(("\n".join(map(write, written))).encode(), "x.md")
    read = entries(page)
    assert [(e.at, e.at.utcoffset(), e.title, list(e.fields)) for e in read] == [
        (e.at, e.at.utcoffset(), e.title, list(e.fields)) for e in written
    ]
    for a, b in zip(read, written, strict=True):
        assert dict(a.fields) == dict(b.fields) and a.text == b.text


def test_entries_that_a_person_types():
    text = "intro\n\n## 9:05 exploration\r\n\r\n- goal: look\n  twice\n-  not a field\n\n```\n## 10:00 code\n```\n## 25:00 no time\n## Heading\n## 11:00 +05:30\ntext"
    first, second = entries(parse(text.encode(), "log/2026-11-28.md"), timezone(timedelta(hours=2)))
    assert first.at == datetime(2026, 11, 28, 7, 5, tzinfo=UTC) and first.title == "exploration"
    assert (
        first.fields == {"goal": "look\ntwice"} and "## 10:00 code" in first.text and "## 25:00" in first.text
    )
    assert second.at == datetime(2026, 11, 28, 5, 30, tzinfo=UTC) and second.text == "text"
    assert [e.text for e in entries(parse(text.encode(), "x.md"))] == []  # a time without a day is no entry
    opened = parse(b"```\nnever closed\n\n## 2026-11-28 10:00 +00:00 seen\n", "x.md")
    assert [e.title for e in entries(opened)] == ["seen"]


def test_an_entry_needs_a_time_that_means_one_moment_and_plain_names():
    with pytest.raises(LabError, match="offset"):
        Entry(datetime(2026, 1, 1))
    with pytest.raises(LabError, match="called"):
        Entry(NOW, fields={"a: b": "x"})


def test_links_to_runs():
    assert links("run 17, run 17 and run:0fa3b2; runs 3, prune 4, run:zz, run 5.") == ("17", "0fa3b2", "5")
    _, entry = log_entry(NOW, runs=[17, "0FA3B2"])
    assert entry.fields["runs"] == "run 17, run:0fa3b2" and links(entry.fields["runs"]) == ("17", "0fa3b2")
    for bad in ("-1", "x", "٣", "abc", "1 2"):
        with pytest.raises(LabError, match="is no run"):
            log_entry(NOW, runs=[bad])


# ---- the folder


@given(
    st.one_of(
        st.binary(max_size=200), st.sampled_from([b"---", b"---\na: b", b"```\nx", b"## 2026-11-28 10:00 x"])
    ),
    FREE,
)
@settings(max_examples=100, deadline=None)
def test_appending_keeps_every_byte_before(tmp_path_factory, old, text):
    root = tmp_path_factory.mktemp("n")
    (root / "x.md").write_bytes(old)
    try:
        old.decode()
    except UnicodeDecodeError:
        with pytest.raises(LabError, match="UTF-8"):
            folder.append(root, "x.md", "y")
        assert (root / "x.md").read_bytes() == old
        return
    before = entries(parse(old, "x.md"))
    page = folder.append(root, "x.md", write(Entry(NOW, "t", {}, text)))
    new = (root / "x.md").read_bytes()
    assert new.startswith(old) and parse(new, "x.md").digest == page.digest
    assert [e.at for e in entries(page)] == [*(e.at for e in before), NOW]
    assert {p.name for p in root.iterdir()} == {"x.md", ".lock"}


@pytest.mark.parametrize("line", ["---", "...", "--- "])
def test_what_is_appended_does_not_close_front_matter_that_was_left_open(tmp_path, line):
    (tmp_path / "x.md").write_bytes(b"---\nkind: belief\nmy text")
    page = folder.append(tmp_path, "x.md", write(Entry(NOW, "t", {}, f"a\n{line}\nb")))
    assert [(e.at, e.text) for e in entries(page)] == [(NOW, f"a\n{line.rstrip()}\nb")]
    assert page.body.startswith("---\nkind: belief\nmy text")


def test_line_ends_and_the_last_line_are_those_of_the_file(tmp_path):
    (tmp_path / "a.md").write_bytes(b"one\r\ntwo")
    folder.append(tmp_path, "a.md", "x\ny\n")
    assert (tmp_path / "a.md").read_bytes() == b"one\r\ntwo\r\n\r\nx\r\ny\r\n"
    (tmp_path / "b.md").write_bytes(b"one\n")
    os.chmod(tmp_path / "b.md", 0o640)
    folder.append(tmp_path, "b.md", "x")
    assert (tmp_path / "b.md").read_bytes() == b"one\n\nx\n"
    assert (tmp_path / "b.md").stat().st_mode & 0o777 == 0o640


def test_an_edit_meanwhile_is_seen_and_refused(tmp_path, monkeypatch):
    page = folder.create(tmp_path, Page("note", "x", body="one\n"))
    file = tmp_path / page.path
    file.write_bytes(file.read_bytes() + b"two\n")
    kept = file.read_bytes()
    for change in (
        lambda: folder.append(tmp_path, page.path, "three", digest=page.digest),
        lambda: folder.add(tmp_path, page, Entry(NOW, "three"), digest=page.digest),
        lambda: folder.replace(tmp_path, page.path, lambda old: b"", digest=page.digest),
    ):
        with pytest.raises(LabError, match="has changed since it was read"):
            change()
    real = os.fsync

    def saved_by_an_editor(handle):  # between our reading and our renaming
        real(handle)
        file.write_bytes(b"the editor's\n")

    monkeypatch.setattr(os, "fsync", saved_by_an_editor)
    with pytest.raises(LabError, match="has changed since it was read"):
        folder.append(tmp_path, page.path, "three")
    assert file.read_bytes() == b"the editor's\n" != kept
    assert [p.name for p in file.parent.iterdir()] == [file.name]
    (tmp_path / "gone.md").write_bytes(b"x")
    digest = folder.read(tmp_path, "gone.md").digest
    (tmp_path / "gone.md").unlink()
    with pytest.raises(LabError, match="cannot be read"):
        folder.add(tmp_path, Page("note", "x", path="gone.md"), Entry(NOW, "x"), digest=digest)


KILLS = """
import os, sys
from datetime import UTC, datetime
from pathlib import Path
from microtome.lab.notebook import folder
from microtome.lab.notebook.entries import Entry
from microtome.lab.notebook.pages import Page

root, how = Path(sys.argv[1]), sys.argv[2]
place, old = root / "notes" / "x.md", b"old line\\n"
entry = Entry(datetime(2026, 11, 28, tzinfo=UTC), "new", {}, "text")
page = Page("note", "x", path="notes/x.md")

def arm(at):
    count = 0
    def wrap(real):
        def call(*args, **kw):
            nonlocal count
            count += 1
            if count == at: os._exit(9)
            made = real(*args, **kw)
            count += 1
            if count == at: os._exit(9)
            return made
        return call
    for name in ("fsync", "replace", "link", "unlink"):
        setattr(os, name, wrap(getattr(os, name)))

seen, states = 0, []
for at in range(1, 100):
    place.unlink(missing_ok=True)
    if how == "append":
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(old)
    child = os.fork()
    if not child:
        arm(at)
        folder.add(root, page, entry)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    states.append(place.read_bytes() if place.exists() else None)
    if code == 0:
        break
    assert code == 9, code
new = states[-1]
assert new is not None and b"text" in new and (how == "new" or new.startswith(old))
start = old if how == "append" else None
assert set(states) == {start, new}, states     # the old page or the new one, and both were seen
assert states[0] == start and len(states) >= 6, len(states)
from microtome.lab.notebook.indexing import index
from microtome.lab.notebook.limits import read_limits
assert [p.path for p in index(root)] == ["notes/x.md"]   # what a kill left beside it is no page
folder.add(root, page, entry)                            # and stops nobody
assert sorted(os.listdir(place.parent)) == ["x.md"]
print(len(states))
"""


@pytest.mark.parametrize("how", ["append", "new"])
def test_a_kill_at_every_step_leaves_the_old_page_or_the_new_one(tmp_path, how):
    done = subprocess.run([sys.executable, "-c", KILLS, str(tmp_path), how], capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr


ADDS = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from microtome.lab.notebook import folder
from microtome.lab.notebook.records import highlight
for i in range(20):
    folder.add(Path(sys.argv[1]), *highlight(datetime(2026, 11, 28, tzinfo=UTC), f"{sys.argv[2]} {i}"))
"""


def test_processes_that_write_at_once_lose_nothing(tmp_path):
    every = [subprocess.Popen([sys.executable, "-c", ADDS, str(tmp_path), str(k)]) for k in range(3)]
    assert [p.wait() for p in every] == [0, 0, 0]
    titles = [e.title for e in entries(folder.read(tmp_path, "highlights.md"))]
    assert sorted(titles) == sorted(f"{k} {i}" for k in range(3) for i in range(20))


def test_a_full_disk_changes_nothing(tmp_path, monkeypatch):
    page = folder.create(tmp_path, Page("note", "x", body="one\n"))
    kept = (tmp_path / page.path).read_bytes()

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="no room"):
        folder.append(tmp_path, page.path, "two")
    assert (tmp_path / page.path).read_bytes() == kept and len(list((tmp_path / "notes").iterdir())) == 1


@pytest.mark.parametrize("path", ["../x.md", "/etc/x.md", "a/../../x.md", "", "a//b.md", ".", "c:x.md", "a\\b.md", "a\n.md", "out/x.md"])  # fmt: skip
def test_nothing_is_read_or_written_outside(tmp_path, path):
    root = tmp_path / "notebook"
    root.mkdir()
    (root / "out").symlink_to(tmp_path)
    (tmp_path / "x.md").write_bytes(b"secret")
    for act in (
        lambda: folder.read(root, path),
        lambda: folder.append(root, path, "x"),
        lambda: folder.add(root, Page("note", "x", path=path or "//"), Entry(NOW, "x")),
        lambda: folder.create(root, Page("note", "x", path=path or "//")),
    ):
        with pytest.raises(LabError, match=r"no page of the notebook|leads out of"):
            act()
    assert (tmp_path / "x.md").read_bytes() == b"secret"


def test_titles_that_are_paths_or_worse_stay_in_the_folder(tmp_path):
    root = tmp_path / "notebook"
    for title in (
        "../../evil",
        "/etc/passwd",
        "..",
        ".",
        "",
        "a/b",
        "C:\\x",
        "x" * 500,
        "<script>alert(1)</script>",
    ):
        page = folder.create(root, Page("belief", title))
        assert folder.read(root, page.path).title == title
        assert (root / page.path).resolve().parent == (root / "beliefs").resolve()
    assert len(index(root)) == 9 and {p.name for p in tmp_path.iterdir()} == {"notebook"}


def test_a_page_is_never_replaced(tmp_path):
    one, two = (folder.create(tmp_path, Page("idea", "x", body=b)) for b in "ab")
    assert (one.path, two.path) == ("ideas/x.md", "ideas/x-2.md")
    with pytest.raises(LabError, match="is there already"):
        folder.create(tmp_path, one)
    (tmp_path / "ideas" / "link.md").symlink_to(tmp_path / "ideas" / "x.md")
    with pytest.raises(LabError, match="symbolic link"):
        folder.append(tmp_path, "ideas/link.md", "x")
    assert (tmp_path / "ideas" / "link.md").is_symlink()


def test_the_index_lists_all_and_believes_little(tmp_path):
    root = tmp_path / "notebook"
    folder.add(root, *highlight(NOW, "seen"))
    folder.add(root, *log_entry(NOW, tried="x"))
    (tmp_path / "secret.md").write_text("secret")
    (root / "out.md").symlink_to(tmp_path / "secret.md")
    (root / "dir").symlink_to(tmp_path)
    (root / "in.md").symlink_to(root / "highlights.md")
    (root / ".hidden.md").write_text("x")
    (root / ".git").mkdir()
    (root / ".git" / "x.md").write_text("x")
    (root / "other.txt").write_text("x")
    (root / "broken.md").symlink_to(root / "nowhere.md")
    os.mkfifo(root / "pipe.md")
    (root / "huge.md").write_bytes(b"x" * (folder.LARGEST + 1))
    (root / os.fsdecode(b"n\xff.md")).write_text("odd name")
    found = {p.path: p for p in index(root)}
    assert set(found) == {"broken.md", "dir", "highlights.md", "huge.md", "in.md", "log/2026-11-28.md", "n\\udcff.md", "out.md", "pipe.md"}  # fmt: skip
    assert "leads out" in found["out.md"].problems[0] and "secret" not in repr(found["out.md"])
    assert "link" in found["dir"].problems[0] and found["in.md"].digest == found["highlights.md"].digest
    assert (
        found["huge.md"].body == ""
        and found["huge.md"].digest
        and "without text" in found["huge.md"].problems[0]
    )
    assert "no plain file" in found["pipe.md"].problems[0] and found["broken.md"].problems
    log = found["log/2026-11-28.md"]
    assert (log.kind, log.date, log.problems) == ("log", "2026-11-28", ())
    assert index(tmp_path / "absent") == ()
    with pytest.raises(LabError, match="is a file"):
        index(root / "huge.md")


@pytest.mark.parametrize(
    "text",
    [
        "## 10:00 a" + " " * 200_000 + "b",
        "# a" + " " * 200_000 + "b",
        "---\na: b: c\na" + " " * 60_000 + "\n---\n",
        "---\na: " + "x" * 100_000 + "\n---\n",
        "- a" + " " * 200_000,
        "run" + " " * 200_000,
        "```" * 70_000 + "x`",
        "---\n" + "\t" * 60_000 + "\n---\n",
    ],
)
def test_long_lines_take_no_long_time(text):
    """Quadratic patterns would take minutes here; the limit on front matter is said."""
    page = parse(text.encode(), "log/2026-11-28.md")
    entries(page)
    links(text)
    if "x" * 1000 in text:
        assert "more than 65536" in page.problems[0] and page.body == text


def test_a_page_that_is_too_long_is_neither_read_nor_made(tmp_path):
    (tmp_path / "x.md").write_bytes(b"x" * (folder.LARGEST - 2))
    with pytest.raises(LabError, match="would have"):
        folder.append(tmp_path, "x.md", "yyyy")
    (tmp_path / "x.md").write_bytes(b"x" * (folder.LARGEST + 1))
    with pytest.raises(LabError, match="pages are read up to"):
        folder.read(tmp_path, "x.md")


def test_kinds_are_where_the_index_finds_them(tmp_path):
    for kind in KINDS:
        page = folder.create(tmp_path, Page(kind, "x", "2026-11-28"))
        bare = parse(b"text", page.path)
        assert bare.kind == kind and page.kind == kind
    with pytest.raises(LabError, match="no kind of page called"):
        folder.create(tmp_path, Page("diary", "x"))


def test_the_import_is_light():
    code = "import sys, microtome.lab.notebook.timers, microtome.lab.notebook.views, microtome.lab.notebook.folder; print([m for m in ('torch', 'numpy', 'pandas', 'plotly', 'sqlalchemy', 'alembic', 'yaml') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent)  # fmt: skip
    assert done.stdout.strip() == "[]"


def test_the_pages_in_the_guide_mean_what_it_says(tmp_path):
    guide = (Path(__file__).parents[1] / "docs" / "notebook.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```markdown\n(.*?)^```$", guide, re.M | re.S)
    page = parse(example.encode(), "beliefs/x.md")
    assert (page.kind, page.title, page.date, page.problems) == (
        "belief",
        "L9H6 moves names",
        "2026-11-28",
        (),
    )
    (entry,) = entries(page)
    assert [c.confidence for c in confidence(page)] == [0.7] and links(entry.fields["runs"]) == (
        "17",
        "0fa3b2c4",
    )
    (numbers,) = re.findall(r"^```yaml\n(.*?)^```$", guide, re.M | re.S)
    (tmp_path / "limits.yaml").write_text(numbers)
    assert sum(limit.changed for limit in read_limits(tmp_path).table.values()) == 3
    assert all(place.removesuffix(".md") in guide for place in KINDS.values())
    commands = {
        c.name or c.callback.__name__ for a in (notebook.app, pace.app) for c in a.registered_commands
    }
    assert commands - {"gate", "timers", "index"} <= set(re.findall(r"`(\w+)[ `]", guide))
    for kind in re.findall(
        r"`([a-z-]+)`", guide[guide.index("What timers cannot see") : guide.index("## Ratings")]
    ):
        assert kind in KINDS_DONE or kind == "did"
