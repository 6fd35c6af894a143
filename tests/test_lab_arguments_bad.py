"""Records that are damaged or written by an enemy: refused with a LabError that says what, never run, never a bare KeyError."""

from __future__ import annotations

import copy
import json
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

import microtome as mt
import planted
import recorded
import worded
from microtome import zoo
from microtome.directions.direction import Direction
from microtome.errors import LabError, MicrotomeError
from microtome.lab import arguments as a
from microtome.methods.steer_measures import Words
from microtome.sites import parse
from microtome.tasks.corpus import corpus
from microtome.tasks.induction import Induction


def record(value) -> dict:
    return {"schema_version": 1, "order": ["x"], "arguments": {"x": value}}


def refused(value, files=None, **more) -> str:
    with pytest.raises(LabError) as caught:
        a.decode(record(value), recorded.Kept() if files is None else files, **more)
    assert caught.value.what.startswith("argument 'x': ") and caught.value.instead
    return str(caught.value)


BAD = {
    "an unknown tag": ({"$": "pickle", "data": "x"}, "nothing is encoded as 'pickle'"),
    "no tag": ({"a": 1}, "nothing is encoded as None"),
    "a tag that is no text": ({"$": ["tuple"]}, "nothing is encoded as"),
    "a missing file": ({"$": "file", "key": "ab/abcd.json"}, "the file ab/abcd.json of the record is missing"),
    "no key": ({"$": "file"}, "the file None"),
    "a key above the folder": ({"$": "file", "key": "../../etc/passwd"}, "keys are letters"),
    "a key with a hidden step up": ({"$": "file", "key": "ab/../../x.json"}, "keys are letters"),
    "an absolute key": ({"$": "file", "key": "/etc/passwd"}, "keys are letters"),
    "a key of Windows": ({"$": "file", "key": "..\\x"}, "keys are letters"),
    "a class of another package": ({"$": "made", "class": "subprocess:Popen", "fields": {"args": "true"}}, "public values and functions of Microtome only"),
    "a class through Microtome": ({"$": "made", "class": "microtome.tasks.rng:np.random.Generator", "fields": {}}, "defines no np.random.Generator"),
    "a class that Microtome imports": ({"$": "made", "class": "microtome.methods.steer_measures:Callable", "fields": {}}, "defines no Callable"),
    "a name that only looks like ours": ({"$": "made", "class": "microtome_evil.tasks:X", "fields": {}}, "public values and functions of Microtome only"),
    "a private class": ({"$": "made", "class": "microtome.tasks.generator:_Pair", "fields": {}}, "public values and functions of Microtome only"),
    "the command line": ({"$": "function", "path": "microtome.cli.main:main"}, "public values and functions of Microtome only"),
    "the module that runs": ({"$": "function", "path": "microtome.__main__:main"}, "public values and functions of Microtome only"),
    "the loader": ({"$": "function", "path": "microtome.model.fetch:fetch"}, "public values and functions of Microtome only"),
    "no module": ({"$": "made", "class": "microtome.tasks.nothing:X", "fields": {}}, "has no microtome.tasks.nothing"),
    "no such class": ({"$": "made", "class": "microtome.tasks.pairs:Nothing", "fields": {}}, "defines no Nothing"),
    "a class that is no value": ({"$": "made", "class": "microtome.tasks.generator:Generator", "fields": {}}, "is no class of values"),
    "a function as a class": ({"$": "made", "class": "microtome.methods.steer_measures:name_of", "fields": {}}, "is no class of values"),
    "a class as a function": ({"$": "function", "path": "microtome.methods.steer_measures:Words"}, "is no function"),
    "an outside function": ({"$": "function", "path": "os:system"}, "public values and functions of Microtome only"),
    "an unknown field": ({"$": "made", "class": "microtome.methods.steer_measures:Words", "fields": {"up": "a", "evil": 1}}, "has no evil"),
    "a missing field": ({"$": "made", "class": "microtome.methods.steer_measures:Words", "fields": {}}, "TypeError"),
    "fields that are none": ({"$": "made", "class": "microtome.methods.steer_measures:Words", "fields": 3}, "its fields are no mapping"),
    "a field of another type": ({"$": "made", "class": "microtome.tasks.pairs:Side", "fields": {"texts": 3, "ids": 4}}, "TypeError"),
    "a value that checks itself": ({"$": "made", "class": "microtome.circuits.circuit:Choices", "fields": {"ablation": "magic"}}, "ablation='magic' is no choice"),
    "items that are none": ({"$": "tuple", "items": 3}, "its 'items' is 3"),
    "a pair of three": ({"$": "dict", "items": [[1, 2, 3]]}, "no pair"),
    "a key that cannot be one": ({"$": "dict", "items": [[[1], 2]]}, "unhashable"),
    "a range of texts": ({"$": "range", "items": ["a"]}, "TypeError"),
    "a float that is none": ({"$": "float", "value": "nan?"}, "KeyError"),
    "a type of number": ({"$": "scalar", "dtype": "object", "value": 1}, "its type is 'object'"),
    "bytes that are none": ({"$": "bytes", "hex": "zz"}, "ValueError"),
    "a site that is none": ({"$": "site", "text": "L5.nothing"}, "cannot be made again"),
    "a model without a hash": ({"$": "model", "recipe": {"kind": "zoo"}}, "its 'hash' is None"),
    "a model without a kind": ({"$": "model", "recipe": {}, "hash": "x"}, "its kind is None"),
    "a model of the zoo that is not there": ({"$": "model", "recipe": {"kind": "zoo", "name": "nothing", "seed": 0, "options": {}}, "hash": "x"}, "the zoo has no 'nothing'"),
    "a model with code in its options": ({"$": "model", "recipe": {"kind": "zoo", "name": "shift", "seed": 0, "options": {"decoys": {"$": "function", "path": "os:system"}}}, "hash": "x"}, "public values"),
    "a model with a file in its options": ({"$": "model", "recipe": {"kind": "zoo", "name": "shift", "seed": 0, "options": {"n": {"$": "file", "key": "a.json"}}}, "hash": "x"}, "names the file"),
    "a model that would write files": ({"$": "model", "recipe": {"kind": "zoo", "name": "shift", "seed": 0, "options": {"folder": {"$": "path", "text": "/tmp/evil"}}}, "hash": "x"}, "it has the option 'folder'"),
    "a checkpoint that is not there": ({"$": "model", "recipe": {"kind": "zoo", "name": "induction_heads", "seed": 0, "options": {"n": 4}, "step": 3}, "hash": "x"}, "no checkpoint at step 3"),
    "a model's name that is a number": ({"$": "model", "recipe": {"kind": "folder", "name": 7}, "hash": "x"}, "its 'name' is 7"),
    "a model that is gone": ({"$": "model", "recipe": {"kind": "folder", "name": "/nowhere/at/all", "revision": None, "dtype": "float32", "device": "cpu", "attention": "sdpa"}, "hash": "x"}, "There is no model"),
    "a task without a file": ({"$": "task", "hash": "x", "source": None}, "its fields are no mapping"),
    "a source of an unknown kind": ({"$": "task", "hash": "x", "source": {"$": "magic"}}, "nothing is encoded as 'magic'"),
    "a generator that is not there": ({"$": "task", "hash": "x", "source": {"$": "generator", "name": "ioo", "options": {}}}, "nothing is called 'ioo'"),
    "a source that is text": ({"$": "task", "source": "ioi"}, "it is a str"),
    "a corpus without a file": ({"$": "corpus", "name": "x", "hash": "x"}, "the file None"),
    "a result by an unsafe path": ({"$": "result", "query": "q", "numbers": "n", "files": {"../../evil": "a"}}, "is no file of one"),
    "a result by an absolute path": ({"$": "result", "query": "q", "numbers": "n", "files": {"/tmp/result.json": "a"}}, "is no file of one"),
    "a result of no files": ({"$": "result", "query": "q", "numbers": "n", "files": {}}, "no result in"),
    "a store that is gone": ({"$": "store", "folder": "/nowhere/at/all", "manifest": "x"}, "cannot be made again"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_value_is_refused_with_what_is_wrong(name, monkeypatch) -> None:
    value, why = BAD[name]
    loaded = set(sys.modules)
    assert why in refused(value)
    assert not {m for m in set(sys.modules) - loaded if m.startswith(("microtome.cli", "microtome_evil"))}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it is no JSON"), ("{", "it is no JSON"), ("[" * 100_000, "it is no JSON"), ('{"schema_version": NaN}', "bare NaN"), ("[]", "they are a list"),
        ("{}", "their schema version is None"), ('{"schema_version": "1"}', "their schema version is '1'"), ('{"schema_version": true}', "is True"),
        ('{"schema_version": 0}', "is 0"), ('{"schema_version": 1}', "no mapping with the order"),
        ('{"schema_version": 1, "order": ["a"], "arguments": {"b": 1}}', "no mapping with the order"),
        ('{"schema_version": 1, "order": [["a"]], "arguments": {"b": 1}}', "no mapping with the order"),
    ],
)  # fmt: skip
def test_a_bad_record_is_refused(text, why) -> None:
    with pytest.raises(LabError) as caught:
        a.decode(text, recorded.Kept())
    assert why in str(caught.value)


def test_a_record_of_a_newer_microtome_is_refused() -> None:
    newer = {**record(1), "schema_version": 2}
    with pytest.raises(LabError, match="have schema version 2\n.*reads up to 1\n.*update Microtome"):
        a.decode(newer, recorded.Kept())


def test_values_nested_too_deep_are_refused() -> None:
    value: object = 1
    for _ in range(51):
        value = {"$": "tuple", "items": [value]}
    assert "nested more than 100 deep" in refused(value)


# ---- damage to what was written


def encoded(value):
    files = recorded.Kept()
    made = a.encode({"x": value}, files)
    assert made.rerunnable
    return json.loads(made.text())["arguments"]["x"], files


def test_a_file_that_is_no_safetensors_file_is_refused() -> None:
    value, files = encoded(torch.ones(3))
    assert "is missing" in refused(value, recorded.Kept())
    for content in (b"", b"nonsense", files[value["file"]][:-1]):
        assert "it is no safetensors file" in refused(value, recorded.Kept({value["file"]: content}))


@pytest.mark.parametrize("change", [{"shape": [4]}, {"shape": [3, 1]}, {"dtype": "float64"}, {"shape": "3"}, {"dtype": None}, {"device": "mars"}, {"device": "cuda:9"}])  # fmt: skip
def test_a_tensor_of_another_shape_or_type_than_the_record_says_is_refused(change) -> None:
    value, files = encoded(torch.ones(3))
    refused({**value, **change}, files)


def test_a_tensors_file_under_an_arrays_name_is_refused() -> None:
    value, files = encoded(torch.ones(3))
    files[value["file"]] = save({"value": torch.ones(3), "more": torch.ones(3)})
    assert "it holds more, value" in refused(value, files)


@pytest.mark.parametrize("of", ["task", "direction", "corpus"])
def test_content_that_was_changed_is_refused_by_its_hash(of) -> None:
    made = {
        "task": lambda: planted.pairs(planted.one_head()),
        "direction": lambda: Direction(torch.ones(4), parse("L1.resid_post")),
        "corpus": lambda: corpus(["one text", "another text"]),
    }
    value, files = encoded(made[of]())
    name = value["file"]
    before = {"task": b'"planted"', "direction": b"L1.resid_post", "corpus": b"one text"}[of]
    after = {"task": b'"placebo"', "direction": b"L2.resid_post", "corpus": b"two text"}[of]
    assert before in files[name]
    files[name] = files[name].replace(before, after)
    assert "is not the one that was recorded" in refused(value, files)


def test_a_model_with_another_hash_is_refused_with_both() -> None:
    files, shelf = recorded.Kept(), recorded.Shelf()
    model = planted.one_head()
    made = json.loads(a.encode({"x": model}, files, model_of=shelf.model_of).text())
    made["arguments"]["x"]["hash"] = "0123456789abcdef"
    with pytest.raises(LabError, match=f"have the hash {model.hash}, the record says 0123456789abcdef"):
        a.decode(made, files, load_model=shelf.load)


def test_a_generator_with_other_pools_or_version_is_refused(monkeypatch) -> None:
    z, model, shelf = zoo.build("shift", n=4), worded.with_words(planted.one_head()), recorded.Shelf()
    task = mt.task("induction", model, n=3, seed=0)
    value, files = encoded_with(model, task, shelf)
    assert a.decode(value, files, load_model=shelf.load)["task"] == task
    with monkeypatch.context() as patch:
        patch.setattr(Induction, "version", "next")
        with pytest.raises(LabError, match="draws from other prompts than it did"):
            a.decode(value, files, load_model=shelf.load)
    with monkeypatch.context() as patch:
        patch.setattr(Induction, "details", lambda self: {"n_ids": 3})
        with pytest.raises(LabError, match="draws from other prompts than it did"):
            a.decode(value, files, load_model=shelf.load)
    value, files = encoded_with(z.model, z.task, shelf)
    value["arguments"]["task"]["source"]["of"] = "other"
    with pytest.raises(LabError, match="it is DomainSource of shift, the record says DomainSource of other"):
        a.decode(value, files)


def encoded_with(model, task, shelf):
    files = recorded.Kept()
    made = a.encode({"model": model, "task": task}, files, model_of=shelf.model_of)
    assert made.rerunnable, made.why_not
    return json.loads(made.text()), files


def _paths(value, at=()):
    yield at
    for key, item in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield from _paths(item, (*at, key))


GOOD = {
    "words": Words(("a", 2), ("b",)), "numbers": [1, (2.5, None)], "keys": {(1, 2): {3}}, "direction": Direction(torch.ones(3), parse("L0.z")),
    "task": planted.pairs(planted.one_head(), n=2), "tensor": torch.ones(2, 2), "range": range(3),
}  # fmt: skip
FILES = recorded.Kept()
GOOD_RECORD = json.loads(a.encode(GOOD, FILES).text())
PLACES = sorted(filter(None, _paths(GOOD_RECORD)), key=repr)
JUNK = st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=4) | st.lists(st.integers(0, 3), max_size=2) | st.dictionaries(st.sampled_from(["$", "a", "items"]), st.sampled_from(["tuple", "dict", "task", 1]), max_size=2)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(PLACES), JUNK)
def test_junk_anywhere_in_a_record_is_read_or_refused_and_nothing_else(place, junk) -> None:
    changed = copy.deepcopy(GOOD_RECORD)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = junk
    try:
        a.decode(changed, FILES)
    except MicrotomeError as error:
        assert isinstance(error, LabError)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(k for k in FILES if k.endswith(".json"))), st.data())
def test_junk_in_a_file_is_read_or_refused_and_nothing_else(key, data) -> None:
    content = json.loads(FILES[key])
    place = data.draw(st.sampled_from(sorted(filter(None, _paths(content)), key=repr)))
    inner = content
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = data.draw(JUNK)
    try:
        a.decode(GOOD_RECORD, {**FILES, key: json.dumps(content).encode()})
    except MicrotomeError as error:
        assert isinstance(error, LabError)
