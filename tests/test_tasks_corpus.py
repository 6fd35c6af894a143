"""Corpora: what Python's own holds, files of every kind, splits by file, blocks that cover what they say."""

from __future__ import annotations

import json
import platform
import tracemalloc
from collections import Counter
from itertools import islice

import pyarrow as pa
import pytest
from pyarrow import parquet

import microtome as mt
from microtome.errors import ModelError, TaskError
from microtome.tasks.corpus import Corpus, Document
from microtome.tasks.encode import Encoder
from test_tasks_standin import Standin, bpe, words


def test_the_default_is_pythons_own_and_always_the_same():
    corpus = mt.corpus()
    assert corpus.hash == mt.corpus().hash and corpus.provenance["python"] == platform.python_version()
    first = list(islice(corpus.documents(), 12))
    assert first == list(islice(corpus.documents(), 12))
    assert [d.id for d in first] != [d.id for d in islice(corpus.documents(5), 12)]
    kinds = Counter(d.kind for d in islice(corpus.documents(0), 60))
    assert set(kinds) == {"code", "comments", "docstrings", "topic"}
    whole = next(d for d in corpus.kinds("docstrings").documents() if d.id.startswith("abc.py"))
    assert "abstract" in whole.text and "import" not in whole.text and '"""' not in whole.text


def test_no_file_lies_on_both_sides_of_a_split():
    corpus = mt.corpus([f"text number {i}" for i in range(300)])
    rest, out = corpus.split(0.25, seed=1)
    a, b = ({d.home for d in part.documents()} for part in (rest, out))
    assert not a & b and len(a | b) == 300 and 45 <= len(b) <= 105
    assert len({corpus.hash, rest.hash, out.hash, corpus.split(0.25, seed=2)[0].hash}) == 4
    assert out.hash == corpus.split(0.25, seed=1)[1].hash
    files = mt.corpus()
    homes = [{d.home for d in islice(part.documents(), 40)} for part in files.split(0.5, seed=0)]
    assert not homes[0] & homes[1]
    for share in (0, 1, -0.1, 2):
        with pytest.raises(TaskError, match="held_out"):
            corpus.split(share, seed=0)
    with pytest.raises(TaskError, match="no text"):
        mt.corpus(["one"]).split(0.5, seed=0)


TEXTS = [
    "Mary went to the store. " * 120,
    "John gave a book",
    "Then she gave it back\n" * 90,
    "café — naïve ☕ " * 60,
]


@pytest.mark.parametrize("context", [2, 16, 128])
@pytest.mark.parametrize("make", [bpe, words])
def test_blocks_cover_every_document_and_say_where_they_stand(make, context):
    model = make()
    corpus = mt.corpus(TEXTS)
    by = {d.id: d.text for d in corpus.documents()}
    blocks = list(corpus.blocks(model, context=context, tokens=10**6, seed=0))
    bos = len(Encoder(model).prefix)
    for b in blocks:
        assert bos < len(b.ids) <= context and b.ids[:bos] == Encoder(model).prefix
        assert by[b.document][b.start : b.start + len(b.text)] == b.text
        assert b.cut == (len(b.text) < len(by[b.document].rstrip()))
    for name, text in by.items():
        at = {i for b in blocks if b.document == name for i in range(b.start, b.start + len(b.text))}
        assert at >= {i for i, c in enumerate(text) if not c.isspace()}
    # a block's tokens are those of the text that it says it covers
    b = next(b for b in blocks if b.text.isascii())
    assert model.tokenizer.decode(b.ids[bos:]) == b.text or make is words


def test_as_many_tokens_as_asked_for_the_same_by_the_same_seed():
    model = bpe()
    for n in (1, 7, 100, 1001):
        assert sum(len(b.ids) - 1 for b in mt.corpus(TEXTS).blocks(model, context=32, tokens=n, seed=0)) == n
    one, again, other = (list(mt.corpus().blocks(model, 64, 2000, seed)) for seed in (0, 0, 1))
    assert one == again != other
    assert len({b.document for b in one}) >= 4  # no long document fills it
    prefix = list(mt.corpus().blocks(model, 64, 500, 0))
    assert prefix[:-1] == one[: len(prefix) - 1]
    assert prefix[-1].ids == one[len(prefix) - 1].ids[: len(prefix[-1].ids)]
    assert one[len(prefix) - 1].text.startswith(prefix[-1].text)


def test_bos_as_asked_for():
    model = bpe()
    first = model.tokenizer.bos_token_id
    with_, without, own = (
        list(mt.corpus(TEXTS).blocks(model, 32, 500, bos=b)) for b in (True, False, "model")
    )
    assert with_ == own and all(b.ids[0] == first for b in with_) and not any(first in b.ids for b in without)
    assert all(len(b.ids) <= 32 for b in without)
    with pytest.raises(ModelError, match="no BOS"):
        mt.corpus(TEXTS).blocks(words(), 32, 500, bos=True)


def test_the_first_tokens_are_of_many_modules_and_every_kind():
    seen = list(mt.corpus().blocks(bpe(), 64, 6000, 0))
    assert {b.kind for b in seen} >= {"code", "comments", "docstrings"}
    assert len({b.document.partition("#")[0] for b in seen}) > 0.7 * len({b.document for b in seen})


def test_blocks_read_no_more_documents_than_they_need():
    read = []

    def documents(seed, wanted):
        for i in range(10**9):
            read.append(i)
            yield Document(f"d{i}", "Mary went to the store " * 50, "text")

    endless = Corpus("endless", "0", documents)
    assert sum(len(b.ids) - 1 for b in endless.blocks(bpe(), context=32, tokens=900)) == 900
    assert len(read) < 20
    rest, out = endless.split(0.5, seed=0)
    assert next(rest.documents()).id != next(out.documents()).id


def test_blocks_that_cannot_be_made():
    corpus, model = mt.corpus(TEXTS), Standin(words().tokenizer, n_ctx=10)
    for context, said in ((1, "context of 1"), (11, "10 at most"), (0, "context")):
        with pytest.raises(TaskError, match=said):
            corpus.blocks(model, context=context)
    with pytest.raises(TaskError, match="tokens"):
        corpus.blocks(model, context=8, tokens=0)
    model.tokenizer = None
    with pytest.raises(ModelError, match="no tokenizer"):
        corpus.blocks(model, context=8)


def written(folder):
    (folder / "in").mkdir()
    (folder / "a.txt").write_text("first file", encoding="utf-8")
    (folder / "in" / "b.md").write_text("# second", encoding="utf-8-sig")
    (folder / "in" / "c.py").write_text("x = 1  # third\n")
    (folder / "d.jsonl").write_text(
        "".join(json.dumps({"text": t, "id": 1}) + "\n" for t in ("fourth", "fifth"))
    )
    parquet.write_table(pa.table({"text": ["sixth", "seventh"]}), folder / "e.parquet")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    return folder


def test_a_folder_of_files_of_every_kind(tmp_path):
    corpus = mt.corpus(written(tmp_path))
    found = {d.id: d.text for d in corpus.documents()}
    assert found == {
        "a.txt": "first file", "in/b.md": "# second", "in/c.py": "x = 1  # third\n", "d.jsonl:1": "fourth", "d.jsonl:2": "fifth",
        "e.parquet:0": "sixth", "e.parquet:1": "seventh",
    }  # fmt: skip
    assert corpus.provenance["files"] == 5 and corpus.provenance["other_files"] == 1
    assert {d.id for d in corpus.documents(3)} == set(found)
    before = corpus.hash
    (tmp_path / "a.txt").write_text("first fila", encoding="utf-8")
    assert mt.corpus(tmp_path).hash != before
    assert [d.text for d in mt.corpus(str(tmp_path / "d.jsonl")).documents()] == ["fourth", "fifth"]


def test_a_large_file_is_read_in_parts_that_join_up(tmp_path):
    lines = "".join(f"line {i} of a large file, ün\n" for i in range(90_000))
    (tmp_path / "large.txt").write_text(lines, encoding="utf-8")
    parts = list(mt.corpus(tmp_path / "large.txt").documents())
    assert len(parts) > 2 and "".join(p.text for p in parts) == lines and len({p.home for p in parts}) == 1
    assert all(p.text.endswith("\n") for p in parts)


def test_files_that_are_not_text_are_named_and_counted(tmp_path):
    written(tmp_path)
    (tmp_path / "bad.txt").write_bytes(b"caf\xe9 in Latin-1")
    (tmp_path / "in" / "cut.txt").write_bytes("é".encode()[:1])
    with pytest.raises(TaskError, match=r"2 of 7 files are not UTF-8: bad.txt .*; in/cut.txt"):
        mt.corpus(tmp_path)
    kept = mt.corpus(tmp_path, undecodable="skip")
    assert [s.split()[0] for s in kept.provenance["skipped"]] == ["bad.txt", "in/cut.txt"]
    assert kept.hash == mt.corpus(tmp_path, undecodable="skip").hash
    with pytest.raises(TaskError, match="undecodable"):
        mt.corpus(tmp_path, undecodable="ignore")
    with pytest.raises(TaskError, match="1 of 1 files"):
        mt.corpus(tmp_path / "bad.txt", undecodable="skip")


def test_corpora_without_text_and_columns_that_are_missing(tmp_path):
    (tmp_path / "void").mkdir()
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "blank.txt").write_text(" \n ")
    (tmp_path / "a.jsonl").write_text('{"txet": "a"}\n')
    (tmp_path / "b.jsonl").write_text("not json\n")
    (tmp_path / "c.jsonl").write_text('{"text": 3}\n')
    parquet.write_table(pa.table({"body": ["a"]}), tmp_path / "p.parquet")
    (tmp_path / "q.parquet").write_bytes(b"nothing of the kind")
    for source, said in [
        ([], "0 texts"), (["", "  "], "2 texts"), ([1, 2], "text 0 is a int"), (tmp_path / "void", "no text"), (tmp_path / "empty.txt", "empty"),
        (tmp_path / "none.txt", "no file or folder"), ("a text that was meant", "no file or folder"),
    ]:  # fmt: skip
        with pytest.raises(TaskError, match=said):
            mt.corpus(source)
    for name, said in [
        ("blank.txt", "no text"), ("a.jsonl", 'line 1: the column "text"[\\s\\S]*txet'), ("b.jsonl", "line 1 is not JSON"), ("c.jsonl", "is 3"),
        ("p.parquet", "body"), ("q.parquet", "not Parquet"),
    ]:  # fmt: skip
        with pytest.raises(TaskError, match=said):
            list(mt.corpus(tmp_path / name).documents())
    assert [d.text for d in mt.corpus(tmp_path / "p.parquet", column="body").documents()] == ["a"]


def test_a_streamed_dataset(tmp_path):
    import datasets

    made = datasets.Dataset.from_dict({"body": [f"text {i}" for i in range(200)]})
    made.save_to_disk(tmp_path / "saved")
    (tmp_path / "files").mkdir()
    made.to_parquet(tmp_path / "files" / "train.parquet")
    for folder in ("saved", "files"):
        corpus = mt.corpus(f"hf:{tmp_path / folder}", column="body")
        assert [d.text for d in corpus.documents()] == made["body"] and "hash_covers" in corpus.provenance
        assert corpus.hash == mt.corpus(f"hf:{tmp_path / folder}", column="body").hash
    with pytest.raises(TaskError, match="body"):
        mt.corpus(f"hf:{tmp_path / 'files'}")


def test_methods_take_blocks_of_one_length_from_many_files():
    from microtome.methods.texts import blocks_of

    model = bpe()
    found = blocks_of(model, mt.corpus(), context=32, most=6, seed=0)
    assert len(found) == 6 and {len(row) for row in found.ids} == {32} and len(set(found.documents)) >= 4
    assert all(row[0] == model.tokenizer.bos_token_id for row in found.ids)
    few = blocks_of(model, mt.corpus(TEXTS), context=32, most=50, seed=0)
    assert 4 < len(few) <= 50 and {len(row) for row in few.ids} == {32}
    with pytest.raises(TaskError, match="no block of 200 tokens"):
        blocks_of(model, mt.corpus(["John gave a book"]), context=200, most=5, seed=0)


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    peaks = []
    model = bpe()  # made before anything is counted
    for size in (4, 12):
        (tmp_path / f"{size}.txt").write_text("Mary went to the store and gave a book.\n" * (25_000 * size))
        corpus = mt.corpus(tmp_path / f"{size}.txt")
        tracemalloc.start()
        assert (
            sum(len(b.ids) - 1 for b in corpus.blocks(model, context=128, tokens=1000 * size)) == 1000 * size
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.25 * peaks[0]


def test_passages_do_not_go_on_from_each_other_and_name_their_files():
    """Neighbouring blocks of one text are one sample: of each stretch that is read in one go, one block is taken."""
    long = "\n\n".join(f"Line {i} of a long story about number {i * 7}." for i in range(400))
    corpus = mt.corpus([long, long.replace("story", "letter"), "Too short."])
    model = bpe()
    found = corpus.passages(model, 8, context=32, seed=0)
    assert len(found) == 8 and len(set(found.ids)) == 8 and len(set(found.documents)) == 2
    assert all(16 <= len(row) <= 32 for row in found.ids)
    blocks = list(corpus.blocks(model, context=32, tokens=1 << 40, seed=0))
    place = {b.ids: (b.document, b.start, b.start + len(b.text)) for b in blocks}
    taken = sorted(place[row] for row in found.ids)
    apart = [b[1] - a[2] for a, b in zip(taken, taken[1:], strict=False) if a[0] == b[0]]
    assert apart and min(apart) > 1
    assert found == corpus.passages(model, 8, context=32, seed=0)
    assert found.hash != corpus.passages(model, 8, context=32, seed=1).hash
    with pytest.raises(TaskError, match="passages of 32 tokens"):
        corpus.passages(model, 10_000, context=32)
