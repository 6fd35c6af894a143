"""`mt.labelled`: lists, files, Hugging Face datasets and built-in sets; and every bad input that they can bring."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

import microtome as mt
from microtome.errors import MicrotomeError, ResourceError, TaskError
from microtome.results import registry
from microtome.tasks import sets
from microtome.tasks.lint_duplicates import words
from microtome.tasks.sets.numbers import spelled

TEXTS = ["good film", "bad film", "good book", "bad book"]
ROWS = [{"text": t, "label": t.split()[0], "entity": t.split()[1]} for t in TEXTS]
# sets whose words tell nothing: each stands equally often in either class
HIDDEN = (
    *(
        "capital_of",
        "cities",
        "cities_conj",
        "cities_disj",
        "continents",
        "currencies",
        "elements",
        "larger_than",
        "likely",
        "neg_cities",
    ),
    *("populations", "sentiment_negated", "smaller_than", "sp_en_trans", "sums"),
)


def csv_of(rows, path):
    head = list(rows[0])
    lines = [",".join(head), *(",".join(str(row[h]) for h in head) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_the_same_rows_from_lists_and_every_kind_of_file(tmp_path):
    labels, entity = [r["label"] for r in ROWS], [r["entity"] for r in ROWS]
    lists = mt.labelled(TEXTS, labels, {"entity": entity}, name="films")
    csv_of(ROWS, tmp_path / "films.csv")
    (tmp_path / "films.tsv").write_text(
        "text\tlabel\tentity\n" + "".join("\t".join(r.values()) + "\n" for r in ROWS)
    )
    (tmp_path / "films.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "films.parquet")
    for ending in ("csv", "tsv", "jsonl", "parquet"):
        found = mt.labelled(tmp_path / f"films.{ending}")
        assert found == lists and found.hash == lists.hash
        assert found == mt.labelled(str(tmp_path / f"films.{ending}"))
    assert lists.classes == ("bad", "good") and lists.labels == (1, 0, 1, 0)


def test_columns_of_other_names_spans_and_unused_ones(tmp_path):
    rows = [
        {"sentence": t, "mood": i % 2, "who": f"w{i // 2}", "span:thing": t.split()[1], "id": i}
        for i, t in enumerate(TEXTS)
    ]
    data = mt.labelled(
        csv_of(rows, tmp_path / "a.csv"), columns={"text": "sentence", "label": "mood", "speaker": "who"}
    )
    assert data.groups == {"speaker": ("w0", "w0", "w1", "w1")} and data.classes == ("0", "1")
    assert [t[slice(*at)] for t, at in zip(data.texts, data.spans["thing"], strict=True)] == [
        t.split()[1] for t in TEXTS
    ]
    assert data.provenance["notes"] == ["columns not used: id"]


@pytest.mark.parametrize(
    "labels",
    [[True, False] * 2, [1, 0] * 2, np.array([1, 0, 1, 0]), [np.bool_(True), np.bool_(False)] * 2],
)
def test_what_labels_may_be(labels):
    assert mt.labelled(TEXTS, labels).labels == (1, 0, 1, 0)


@pytest.mark.parametrize(
    "labels, said",
    [
        ([1, 1, 1, 1], "the same label"),
        ([1, 0, None, 1], "text 2 has no label"),
        ([1.0, 0.0, float("nan"), 1.0], "text|label"),
        ([0.3, 0.7, 0.1, 0.9], "not a label"),
        ([1, "0", 1, 0], "two kinds"),
        ([[1], [0], [1], [0]], "not a label"),
        ([1, 0, 1], "4 texts and 3 labels"),
        (["a", "b", "c", "d"], "4 different labels for 4 texts"),
        (["x", "", "x", "y"], "no label"),
        ("1010", "one text where a list"),
    ],
)
def test_labels_that_are_no_labels(labels, said):
    with pytest.raises(TaskError, match=said):
        mt.labelled(TEXTS, labels)


def test_texts_that_are_none_and_texts_given_twice():
    with pytest.raises(TaskError, match="text 1 of user is"):
        mt.labelled(["a", " ", "b", "c"], [0, 1, 0, 1])
    with pytest.raises(TaskError, match="text 1 of user is"):
        mt.labelled(["a", 7, "b", "c"], [0, 1, 0, 1])
    with pytest.raises(TaskError, match="no texts"):
        mt.labelled([], [])
    with pytest.raises(TaskError, match="without labels"):
        mt.labelled(TEXTS)
    with pytest.raises(TaskError, match="texts 0 and 2 are the same"):
        mt.labelled(["a", "b", "a", "c"], [0, 1, 1, 0])
    twice = mt.labelled(["a", "b", "a", "c", "d", "e"], [0, 1, 0, 1, 0, 1])
    assert "1 texts are there more than once" in twice.provenance["notes"][0]
    assert twice.units[0] == twice.units[2] != twice.units[1]
    for seed in range(20):
        parts = twice.split(0.5, 0.5, seed=seed) if _both(twice, seed) else ()
        assert all(({0, 2} & set(p)) in (set(), {0, 2}) for p in parts)


def _both(data, seed):
    try:
        return data.split(0.5, 0.5, seed=seed)
    except TaskError:
        return ()


@pytest.mark.parametrize(
    "content, said",
    [
        ("text,lable\na,1\nb,0\n", 'no column "lable"[\\s\\S]*did you mean "label"'),
        ("text,mood\na,1\nb,0\n", 'column "label" is missing'),
        ("text,label,entitty\na,1,x\nb,0,y\n", 'did you mean "entity"'),
        ("text,label\na,1\nb,\n", "line 3 has no label"),
        ("text,label\na,1\nb,NaN\n", "line 3 has no label"),
        ("text,label\na,1\n,0\n", "line 3: the text is"),
        ("text,label,entity\na,1,x\nb,0,\n", "grouping .* is empty"),
        ("text,label\na,1\nb,1\n", "the same label"),
        ("text,label\n", "header and no texts"),
        ("", "is empty"),
        ("text;label\na;1\n", "semicolons"),
        ("text,label\na,1,2\n", "3 cells"),
        ("text,label,text\na,1,b\nb,0,c\n", "twice"),
        ("text,label\na,0.31\nb,0.42\nc,0.5\nd,0.9\n", "4 different labels"),
        ("text,label,span:who\na dog,1,cat\nb cat,0,cat\n", "span 'cat' is 0 times"),
    ],
)
def test_files_that_are_refused(tmp_path, content, said):
    file = tmp_path / "bad.csv"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(TaskError, match=said):
        mt.labelled(file)


def test_files_that_cannot_be_read(tmp_path):
    for source, said in [
        (tmp_path / "none.csv", "cannot be read"),
        (tmp_path / "none.parquet", "cannot be read"),
        ("texts.docx.txt", "ending"),
    ]:
        with pytest.raises(TaskError, match=said):
            mt.labelled(source)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "bad.csv").write_bytes(b"text,label\n\xff,1\n")
    for name in ("bad.parquet", "bad.csv"):
        with pytest.raises(TaskError):
            mt.labelled(tmp_path / name)
    parquet.write_table(
        pa.table({"text": TEXTS, "label": [0.0, 1.0, float("nan"), 0.0]}), tmp_path / "n.parquet"
    )
    with pytest.raises(TaskError, match="no label|not a label"):
        mt.labelled(tmp_path / "n.parquet")
    good = csv_of(ROWS, tmp_path / "good.csv")
    with pytest.raises(TaskError, match="brings its own"):
        mt.labelled(good, [1, 0, 1, 0])
    with pytest.raises(TaskError, match="has no 9 texts"):
        mt.labelled(good, n=9)
    with pytest.raises(TaskError, match="only Hugging Face"):
        mt.labelled(good, split="test")
    some = mt.labelled(good, n=3, seed=1)
    assert len(some) == 3 and some == mt.labelled(good, n=3, seed=1) and some.provenance["of"] == 4


def test_a_class_called_none_is_a_class(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("text,label\na,none\nb,some\nc,none\nd,some\n")
    assert mt.labelled(file).classes == ("none", "some")
    file.write_text("text,label\na,None\nb,some\nc,none\nd,some\n")
    with pytest.raises(TaskError, match="line 2 has no label"):
        mt.labelled(file)


# built-in sets


def test_names_are_suggested_and_arguments_checked():
    with pytest.raises(registry.RegistryError, match="'cities'"):
        mt.labelled("citties")
    with pytest.raises(TaskError, match="come 2 to a subject"):
        mt.labelled("cities", n=7)
    with pytest.raises(TaskError, match="has no 100000 texts"):
        mt.labelled("cities", n=100_000)
    with pytest.raises(TaskError, match="columns for the built-in"):
        mt.labelled("cities", columns={"text": "a"})
    for wrong in (0, -2, 1.5, True):
        with pytest.raises(MicrotomeError):
            mt.labelled("cities", n=wrong)


@pytest.mark.parametrize("name", sets.names())
def test_every_set_is_balanced_grouped_and_the_same_again(name):
    data, told = mt.labelled(name, seed=3), sets.describe(name)
    assert data == mt.labelled(name, seed=3) and data.hash != mt.labelled(name, seed=4).hash
    assert set(data.groups) == {"template", "entity"} and data.about and data.provenance["source"]
    assert len(set(data.counts.values())) == 1 and len(set(data.texts)) == len(data)
    for by in ("entity", "template"):
        for label in set(data.groups[by]):
            inside = Counter(v for v, g in zip(data.labels, data.groups[by], strict=True) if g == label)
            assert len(inside) == len(data.classes) and len(set(inside.values())) == 1, (by, label)
    assert len(set(data.units)) == len(set(data.groups["template"])) >= 8
    assert [len(p) for p in data.split(0.6, 0.2, 0.2, seed=0)]
    assert (
        len(mt.labelled(name, n=told["most"]))
        == told["most"]
        == len(set(mt.labelled(name, n=told["most"]).texts))
    )
    for text, at in zip(data.texts, data.spans.get("subject", ()), strict=False):
        assert at is not None and text[slice(*at)].strip() == text[slice(*at)]
    assert not any(re.search(r"[{}]|  | \.", t) for t in data.texts)


@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.parametrize("n", [8, 16, 64, 100])
def test_no_word_tells_the_class(name, n):
    data = mt.labelled(name, n=n, seed=n)
    counts = Counter((w, v) for t, v in zip(data.texts, data.labels, strict=True) for w in words(t))
    assert all(counts[w, 0] == counts[w, 1] for w, _ in counts)


def test_statements_are_true_when_they_say_so():
    from microtome.tasks.sets.places import cities

    known = dict(cities())
    plain, denied = mt.labelled("cities", n=200), mt.labelled("neg_cities", n=200)
    for data, flip in ((plain, 0), (denied, 1)):
        for text, label, city in zip(data.texts, data.labels, data.groups["entity"], strict=True):
            assert (known[city] in text) == bool(label ^ flip), text


def test_statements_about_countries_numbers_and_sums_are_true_when_they_say_so():
    from microtome.tasks.sets.countries import continents
    from microtome.tasks.sets.places import country_facts

    rows, of = country_facts(), dict(continents())
    for name, right in [
        ("capital_of", lambda c: rows[c]["capital"]),
        ("continents", of.__getitem__),
        ("currencies", lambda c: rows[c]["currencyname"].lower()),
    ]:
        data = mt.labelled(name, seed=2)
        for text, label, country in zip(data.texts, data.labels, data.groups["entity"], strict=True):
            rest = text.replace(country, "")
            assert (right(country) in rest) == bool(label), text
    data = mt.labelled("populations", n=300, seed=2)
    for text, label, pair in zip(data.texts, data.labels, data.groups["entity"], strict=True):
        large, small = pair.split("|")
        assert rows[large]["population"] >= 2 * rows[small]["population"]
        says_less = any(w in text for w in ("ewer", "below", "smaller"))
        first_is_large = (
            text.replace(large, "#", 1).find("#") < text.replace(small, "#", 1).find("#")
            if small not in large
            else None
        )
        if first_is_large is not None and large not in small:
            assert bool(label) == (first_is_large != says_less), text
    value = {spelled(i): i for i in range(100)}
    for name, sign in (("larger_than", 1), ("smaller_than", -1)):
        data = mt.labelled(name, seed=2)
        for text, label, at in zip(data.texts, data.labels, data.spans["subject"], strict=True):
            said = text[slice(*at)].lower()
            other = next(w for w in data.groups["entity"][data.texts.index(text)].split("|") if w != said)
            assert bool(label) == (sign * (value[said] - value[other]) > 0), text
    data = mt.labelled("sums", seed=2)
    for text, label, x in zip(data.texts, data.labels, data.groups["entity"], strict=True):
        a, b = (value[w] for w in x.split(" plus "))
        assert bool(label) == (
            re.search(rf"(?<![\w-]){spelled(a + b)}(?![\w-])", text.lower().replace(x, "")) is not None
        ), text


def test_conjunctions_and_disjunctions_follow_their_clauses():
    from microtome.tasks.sets.places import cities

    known = dict(cities())
    kinds = Counter()
    for name, whole in (("cities_conj", all), ("cities_disj", any)):
        data = mt.labelled(name, seed=5)
        for text, label in zip(data.texts, data.labels, strict=True):
            clauses = re.findall(
                r"the city of (.+?) is in ([A-Z][\w]*(?: [A-Z][\w]*| and Herzegovina)*)", text
            )
            assert len(clauses) == 2, text
            truths = [known[city] == country for city, country in clauses]
            kinds[name, tuple(truths)] += 1
            assert bool(label) == whole(truths), text
    # every combination of the mixed class is there
    assert len(kinds) == 8 and min(kinds.values()) >= 40


# Hugging Face datasets


def _no_network(*_):
    raise AssertionError("the network was asked")


def test_a_dataset_saved_here_and_one_that_is_not(tmp_path, monkeypatch):
    import datasets

    monkeypatch.delenv("MICROTOME_ONLINE", raising=False)
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    rows = {"text": TEXTS, "label": [1, 0, 1, 0]}
    made = datasets.Dataset.from_dict(rows, features=features)
    made.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": made, "test": made}).save_to_disk(tmp_path / "both")
    (tmp_path / "files").mkdir()
    made.to_parquet(tmp_path / "files" / "train.parquet")
    for folder in ("one", "both", "files"):
        data = mt.labelled(f"hf:{tmp_path / folder}")
        assert data.classes == ("bad", "good") and data.labels == (1, 0, 1, 0) and data.texts == tuple(TEXTS)
    assert data.provenance["datasets"] == datasets.__version__
    with pytest.raises(TaskError, match="no split"):
        mt.labelled(f"hf:{tmp_path / 'both'}", split="tset")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TaskError, match="holds no dataset"):
        mt.labelled(f"hf:{tmp_path / 'empty'}")
    with monkeypatch.context() as offline, pytest.raises(ResourceError, match="MICROTOME_ONLINE"):
        offline.setattr("socket.socket.connect", _no_network)
        mt.labelled("hf:nobody/nothing-of-that-name")
    assert not datasets.config.HF_HUB_OFFLINE
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ResourceError, match="microtome\\[data\\]"):
        mt.labelled(f"hf:{tmp_path / 'one'}")
