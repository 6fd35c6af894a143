"""Packing: a budget that holds, an order that is fixed, cuts with a mark, and no key ever."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microtome.errors import ChatError
from microtome.llm.never_sent import secret_file, secret_lines
from microtome.llm.packing import Piece, estimate, library, pack, paper, state


def words(text):
    return len(text.split())


A = Piece("a", "One two three. Four five six! Seven " + "eight " * 20 + "nine?", 0, "paper")


def test_the_most_important_come_first_and_the_order_given_does_not_matter():
    pieces = [
        Piece("z", "last.", 0, "source"),
        A,
        *state([("now", "We are here.", 0), ("claim", "It holds.", 5)]),
    ]
    packed = pack(pieces, 1000, count=words)
    assert packed.titles == ("claim", "now", "a", "z") and packed.left == packed.cut == ()
    assert pack(pieces[::-1], 1000, count=words) == packed and not packed.estimated
    assert packed.used == words(packed.text) and packed.text.startswith("BEGIN claim\nIt holds.\nEND claim")


def test_a_cut_is_after_a_sentence_and_marked_and_listed():
    packed = pack([A], 19, count=words)
    assert (
        "Four five six!\n[cut here: the rest of a is left out]\nEND a" in packed.text
        and "Seven" not in packed.text
    )
    assert packed.cut == ("a",) and packed.left[0].tokens == 22 and packed.used <= 19
    none = pack([A], 9, count=words)
    assert (
        none.text == ""
        and none.titles == ()
        and none.left[0].why == "it does not fit"
        and none.left[0].tokens == 28
    )


def test_what_comes_after_a_piece_that_does_not_fit_is_still_tried():
    packed = pack([Piece("big", "word " * 50, 9), Piece("small", "It fits.", 0)], 8, count=words)
    assert packed.titles == ("small",) and [x.title for x in packed.left] == ["big"]
    assert "left out: big, 50 tokens: it does not fit" in packed.lines()


def test_source_is_cut_after_a_line():
    packed = pack([Piece("m", "import os. path\nx = 1\n" + "y = 2\n" * 20, 0, "source")], 17, count=words)
    assert packed.text.splitlines()[1:3] == ["import os. path", "[cut here: the rest of m is left out]"]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.text(alphabet="abé. \n!", min_size=1, max_size=80), min_size=1, max_size=4),
    st.integers(1, 90),
    st.booleans(),
)
def test_the_budget_holds_and_nothing_vanishes(texts, budget, by_words):
    pieces = [Piece(f"t{i}", t, i % 2, ("paper", "source", "state")[i % 3]) for i, t in enumerate(texts)]
    packed = pack(pieces, budget, count=words if by_words else None)
    assert packed.used <= budget and packed.typical <= packed.used
    whole = set(packed.titles) - set(packed.cut)
    assert whole | {x.title for x in packed.left} == {p.title for p in pieces} and not whole & {
        x.title for x in packed.left
    }
    for p in pieces:
        if p.title in whole:
            assert p.text.strip() in packed.text


@pytest.mark.long
def test_the_estimate_holds_with_the_tokenizer_that_it_was_measured_with():
    """No file of the package needs more tokens than the upper end says, and the likely number is right on average."""
    import microtome as mt

    tokenizer = mt.load("smollm2-135m-instruct").tokenizer
    files = [
        p.read_text(encoding="utf-8")
        for p in sorted((Path(__file__).parents[1] / "src/microtome").rglob("*.py"))
    ]
    n = [len(tokenizer(text)["input_ids"]) for text in files]
    assert all(have <= estimate(text)[1] for have, text in zip(n, files, strict=True))
    assert abs(sum(estimate(text)[0] for text in files) / sum(n) - 1) < 0.05


def test_the_estimate_counts_bytes_outside_ascii():
    assert estimate("日本語") == (9, 9) and estimate("") == (0, 0) and estimate("abc 12.") == (5, 6)


@pytest.mark.parametrize("counter", [lambda t: 0, lambda t: -1, lambda t: 2.5, lambda t: None])
def test_a_counter_that_does_not_count_is_refused(counter):
    with pytest.raises(ChatError, match="the counter gave"):
        pack([A], 100, count=counter)


def test_budgets_and_titles_are_checked():
    with pytest.raises(ChatError, match="titles a"):
        pack([A, A], 100)
    with pytest.raises(ChatError, match="budget 0"):
        pack([A], 0)


# ------------------------------------------------------------------------------ what is read


def test_papers_are_text_and_a_pdf_is_refused_with_what_to_do(tmp_path):
    file = tmp_path / "paper.md"
    file.write_text("# A paper\nIt is so.", encoding="utf-8")
    assert paper(file, root=tmp_path, priority=2) == Piece("paper.md", "# A paper\nIt is so.", 2, "paper")
    for name in ("paper.pdf", "named.txt"):
        (tmp_path / name).write_bytes(b"%PDF-1.7 ...")
        with pytest.raises(ChatError, match="pdftotext"):
            paper(tmp_path / name)
    for name, content in (("a.docx", b"x"), ("b.txt", b"\xff\xfe\x00")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ChatError):
            paper(tmp_path / name)
    with pytest.raises(ChatError, match="cannot be read"):
        paper(tmp_path / "none.txt")


def test_what_lies_outside_is_not_read(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out.txt"
    inside.mkdir()
    outside.write_text("secret plans", encoding="utf-8")
    os.symlink(outside, inside / "link.txt")
    for path in (inside / ".." / "out.txt", inside / "link.txt"):
        with pytest.raises(ChatError, match="lies outside"):
            paper(path, root=inside)


def test_source_is_that_of_this_package():
    (piece,) = library(["microtome.llm.quotes"])
    assert piece.kind == "source" and "def verify(" in piece.text
    for name in (
        "os",
        "microtome.nothing",
        "microtome.llm.nothing",
        "../microtome",
        "microtome.",
        "microtomes.x",
    ):
        with pytest.raises(ChatError):
            library([name])


# ------------------------------------------------------------------------------ keys

FILES = [".env", "prod.env", ".env.local", ".microtome/llm.toml", "a/.microtome/LLM.toml", ".config/microtome/llm.toml", "llm.toml", "id_rsa", "id_ed25519.pub", "server.pem", "x.key", ".netrc", "credentials.json", "secrets.yaml", ".ssh/config", ".aws/config"]  # fmt: skip
KEYS = [
    "sk-" + "proj-" + "Ab3" * 10, "OPENAI: sk-" + "x" * 24, "ghp_" + "a1B2" * 9, "hf_" + "Q" * 30, "AKIA" + "ABCD1234" * 2, "AIza" + "x" * 35,
    "-----BEGIN OPENSSH PRIVATE KEY-----", "-----BEGIN PRIVATE KEY-----", "Authorization: Bearer " + "abc123" * 5, "api_key = '" + "k3y" * 6 + "'",
    "postgresql://me:hunter22@host/db", '"password": "correct7horse9"', "eyJ" + "a" * 12 + ".eyJ" + "b" * 12 + "." + "c" * 10, "xoxb-" + "1234567890" * 2,
    'key = "0123456789abcdef"', "key = 'plain-word-9'  # of the endpoint",
]  # fmt: skip
CLEAN = [
    "the key of a query is read by KV2", "sk-learn is a package", "api_key = os.environ['KEY']", "password: ask the user", "a task-specific-direction-found-here",
    "postgresql://localhost/db", "token = tokenizer.decode(ids)", "risk-averse-behaviour-in-models", "secret = word_that_is_hidden", "bearer of bad news",
    "https://arxiv.org/abs/2404.15255", "api_key: str | None = None", "hf_module",
    'key = "resid_pre"', 'key = names["L9H6.pattern"]', 'sort(key="effect9000")', "key = f'{a}9'",
]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_files_of_keys_are_never_packed(name, tmp_path):
    assert secret_file(name) and secret_file(tmp_path / name)
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("x", encoding="utf-8")
    with pytest.raises(ChatError, match="is not packed"):
        paper(file)
    os.symlink(file, tmp_path / "innocent.txt")
    with pytest.raises(ChatError, match="is not packed"):
        paper(tmp_path / "innocent.txt")


@pytest.mark.parametrize(
    "name",
    [
        "paper.txt",
        "environment.md",
        "llm.toml.md",
        "keys.md",
        "monkey.txt",
        "notebook/env.md",
        "secretary.txt",
    ],
)
def test_other_files_are(name):
    assert not secret_file(name)


@pytest.mark.parametrize("line", KEYS)
def test_texts_with_keys_are_left_out_whole(line):
    assert secret_lines(f"first\n{line}\nlast") == (2,)
    packed = pack([Piece("log", f"first\n{line}\nlast", 9), A], 10_000)
    assert line not in packed.text and packed.titles == ("a",) and "line 2" in packed.left[0].why
    assert line not in repr(packed)


@pytest.mark.parametrize("line", CLEAN)
def test_words_about_keys_are_no_keys(line):
    assert secret_lines(line) == ()


def test_this_package_holds_no_key():
    for file in sorted((Path(__file__).parents[1] / "src/microtome").rglob("*.py")):
        assert secret_lines(file.read_text(encoding="utf-8")) == (), file
