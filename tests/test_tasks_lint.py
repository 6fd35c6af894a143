"""The linter finds every planted leak, says nothing of clean data at its stated rate, and compares with shuffled labels."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

import microtome as mt
from microtome.errors import TaskError
from microtome.tasks import sets
from microtome.tasks.labelled import LabelledText
from microtome.tasks.lint import ALPHA, lint
from test_tasks_standin import bpe

WORDS = [
    a + b
    for a in ("ba", "ke", "mi", "so", "tu", "ra", "le", "ni", "go", "pu")
    for b in ("lan", "den", "tor", "fis", "mok", "ran", "vel", "sug")
]


def clean(seed, kind="free", n=120):
    """Texts whose labels follow from nothing; kind: how labels lie in the groups."""
    random = np.random.default_rng(seed)
    size = 4
    entity = np.repeat(np.arange(n // size), size)
    own = random.choice(WORDS, size=(n // size, 2))
    texts = [" ".join([*own[e], *random.choice(WORDS, size=random.integers(4, 9))]) + "." for e in entity]
    if kind == "free":
        labels = random.permutation(n) % 2
    elif kind == "groups":
        labels = np.repeat(random.permutation(n // size) % 2, size)
    else:
        labels = np.concatenate([random.permutation(size) % 2 for _ in range(n // size)])
    spans = tuple((0, len(t.split()[0])) if kind != "pairs" else (len(t) // 3, len(t) // 2) for t in texts)
    return LabelledText("clean", tuple(texts), tuple(labels.tolist()), ("no", "yes"), {"entity": tuple(f"e{e}" for e in entity)}, {"who": spans})  # fmt: skip


def kinds(found, *severities):
    return {f.kind for f in found.findings if f.severity in (severities or ("error", "warning"))}


@pytest.mark.parametrize("kind", ["free", "groups", "pairs"])
def test_clean_data_is_passed_at_the_stated_rate(kind):
    runs = 200
    alarms = 0
    for seed in range(runs):
        data = clean(seed, kind)
        found = lint(data, data.split(0.5, 0.5, seed=0), seed=seed, draws=199)
        assert len(found.measured) >= 2 and not kinds(found, "error") - {"word", "length", "position:who"}
        alarms += not found.clean
    assert alarms <= stats.binom.ppf(0.999, runs, ALPHA)


def test_shuffled_labels_are_shuffled_as_they_lie():
    """Were labels of whole groups shuffled among texts, the words of a group would be told from chance far too often."""
    wrong = 0
    for seed in range(60):
        data = clean(seed, "groups")
        wrong += not lint(LabelledText("x", data.texts, data.labels), draws=199).clean
    assert wrong > stats.binom.ppf(0.999, 60, ALPHA)


def changed(data, **how):
    fields = {
        "name": data.name,
        "texts": data.texts,
        "labels": data.labels,
        "classes": data.classes,
        "groups": data.groups,
        "spans": data.spans,
    }
    return LabelledText(**{**fields, **how})


@pytest.mark.parametrize("seed", range(5))
def test_a_word_that_tells_the_class(seed):
    data = clean(seed)
    marked = tuple(
        t + (" indeed" if v else " rather") if i % 3 else t
        for i, (t, v) in enumerate(zip(data.texts, data.labels, strict=True))
    )
    found = lint(changed(data, texts=marked, spans={}))
    one = next(f for f in found.findings if f.kind == "word")
    assert (
        one.statistic > 0.75 > one.null > 0.5
        and one.p <= 0.001
        and ("indeed" in one.detail or "rather" in one.detail)
    )
    assert len(one.examples) == 3
    everywhere = tuple(
        t + (" indeed" if v else " rather") for t, v in zip(data.texts, data.labels, strict=True)
    )
    assert "word" in kinds(lint(changed(data, texts=everywhere, spans={})), "error")


def test_a_token_that_no_word_shows():
    """Words are compared without case and punctuation; tokens are not."""
    data = clean(0)
    marked = tuple(
        t.removesuffix(".") + ("!" if v else ".") for t, v in zip(data.texts, data.labels, strict=True)
    )
    data = changed(data, texts=marked, spans={})
    assert "word" not in kinds(lint(data)) and "word" in kinds(lint(data, tokenizer=bpe().tokenizer))


def test_the_name_of_the_class_in_the_text():
    data = clean(1)
    texts = tuple(
        t + (" frankly cheerful" if v and i % 4 == 0 else "")
        for i, (t, v) in enumerate(zip(data.texts, data.labels, strict=True))
    )
    found = lint(changed(data, texts=texts, classes=("gloomy", "frankly cheerful"), spans={}))
    assert "label_word" in kinds(found, "error")
    quiet = lint(changed(data, classes=("gloomy", WORDS[0]), spans={}))
    assert "label_word" not in kinds(quiet)


@pytest.mark.parametrize("seed", range(5))
def test_length_and_position(seed):
    data = clean(seed)
    longer = tuple(t + " and so on" * int(2 * v) for t, v in zip(data.texts, data.labels, strict=True))
    found = lint(changed(data, texts=longer, spans={}))
    assert "length" in kinds(found) and next(f for f in found.findings if f.kind == "length").statistic > 0.8
    # the same words everywhere, one of them early or late
    body = " ".join(WORDS[:8])
    texts = tuple(f"{i} Xan {body}" if v else f"{i} {body} Xan" for i, v in enumerate(data.labels))
    spans = {"who": tuple((t.index("Xan"), t.index("Xan") + 3) for t in texts)}
    found = lint(changed(data, texts=texts, spans=spans))
    assert kinds(found) >= {"position:who"} and "word" not in kinds(found)
    missing = {"who": tuple((0, 2) if v else None for v in data.labels)}
    assert "position:who" in kinds(lint(changed(data, spans=missing)), "error")


def test_groups_on_both_sides():
    data = clean(3, "groups")
    half = (tuple(range(0, len(data), 2)), tuple(range(1, len(data), 2)))
    found = lint(data, half)
    one = next(f for f in found.findings if f.kind == "leak:entity")
    assert one.severity == "error" and one.statistic == 1 > one.null and one.p <= 0.001 and one.examples
    mixed = lint(clean(3, "free"), half)
    assert next(f for f in mixed.findings if f.kind == "leak:entity").severity == "warning"
    assert "leak:entity" not in kinds(lint(data, data.split(0.5, 0.5, seed=1)), "error", "warning", "note")


def test_templates_on_both_sides_are_noted_and_those_that_tell_the_label_are_errors():
    data = mt.labelled("cities", n=200)
    split = data.split(0.5, 0.5, by=("entity",), seed=0)
    assert "leak:template" in kinds(lint(data, split), "note") and lint(data, split).clean
    names = tuple(f"t{v * 3 + i % 3}" for i, v in enumerate(data.labels))
    assert "leak:template" in kinds(
        lint(changed(data, groups={**data.groups, "template": names}), split), "error"
    )


def test_equal_and_nearly_equal_texts():
    data = clean(5)
    texts = list(data.texts)
    texts[60], texts[61] = texts[0].upper().replace(".", " !"), "Well, " + texts[1]
    labels = list(data.labels)
    labels[60], labels[61] = labels[0], labels[1]
    bare = changed(data, texts=tuple(texts), labels=tuple(labels), groups={}, spans={})
    halves = (tuple(range(60)), tuple(range(60, 120)))
    found = lint(bare, halves)
    assert "duplicate" in kinds(found, "error") and "near_duplicate" in kinds(found, "warning")
    shown = {f.kind: f.examples[0] for f in found.findings if f.examples}
    assert (
        shown["duplicate"].startswith("0: ")
        and shown["near_duplicate"].startswith("1: ")
        and " / 61: " in shown["near_duplicate"]
    )
    assert "duplicate" in kinds(lint(bare), "warning") and "near_duplicate" in kinds(lint(bare), "note")
    together = (tuple(i for i in range(120) if i not in (2, 3)), (2, 3))
    assert not {"duplicate", "near_duplicate"} & kinds(lint(bare, together))
    labels[60] = 1 - labels[0]
    assert "different labels" in repr(lint(changed(bare, labels=tuple(labels))))


def test_a_text_in_two_parts_classes_that_are_rare_and_no_groups():
    data = clean(6)
    assert "overlap" in kinds(lint(data, (range(70), range(60, 120))), "error")
    rare = changed(data, labels=tuple(int(i < 12) for i in range(120)))
    assert "balance" in kinds(lint(rare), "warning")
    assert "balance" in kinds(lint(rare, {"train": range(60), "test": range(60, 120)}), "error")
    assert "groups" in kinds(lint(changed(data, groups={})), "note")
    three = changed(data, labels=tuple(i % 3 for i in range(120)), classes=("a1", "b1", "c1"), spans={})
    assert lint(three).clean
    for split in ((range(60), ()), (range(60), range(60, 121)), (range(60), (-1,))):
        with pytest.raises(TaskError, match="part"):
            lint(data, split)
    with pytest.raises(TaskError, match="draws"):
        lint(data, draws=19)


@pytest.mark.parametrize("name", sets.names())
def test_built_in_sets_say_themselves_what_tells_their_label(name):
    data, told = mt.labelled(name, seed=1), sets.describe(name)
    for split in (None, data.split(0.6, 0.2, 0.2, seed=1), data.split(0.6, 0.4, by=("entity",), seed=1)):
        found = lint(data, split)
        assert found.clean or told["readable"], found
        assert not {k for k in kinds(found) if k.startswith(("leak", "overlap", "balance", "duplicate"))}, (
            found
        )


def test_the_report_is_a_table():
    data = clean(7)
    found = lint(
        changed(
            data, texts=tuple(t + " x" * v for t, v in zip(data.texts, data.labels, strict=True)), spans={}
        )
    )
    frame = found.frame()
    assert list(frame.columns) == [
        "kind",
        "severity",
        "detail",
        "statistic",
        "null",
        "p",
        "examples",
    ] and len(frame) == len(found.findings)
    assert set(found.checks()["kind"]) == {"word", "length"} and found.checks()["fired"].all()
    assert found.errors and "AUROC 1.000" in repr(found) and found == lint(changed(data, texts=tuple(t + " x" * v for t, v in zip(data.texts, data.labels, strict=True)), spans={}))  # fmt: skip
