"""Values of every kind come back as they were; what cannot be kept is said with name and type, and nothing raises."""

from __future__ import annotations

import functools
import math
import pathlib
import re
import shutil
from dataclasses import dataclass, fields, is_dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import microtome as mt
import planted
import recorded
import steerable
import worded
from microtome import circuits, methods, zoo
from microtome.activations.capturing import capture
from microtome.directions.direction import Direction
from microtome.errors import LabError, ResourceError
from microtome.lab import arguments as a
from microtome.lab.arguments.kept import numbers_of
from microtome.methods.functions import FunctionOptions
from microtome.methods.lensing.translators import Translators
from microtome.methods.prompting import Sampling
from microtome.methods.steer import SteeringOptions
from microtome.methods.steer_measures import Lexicon, Reads, Words, name_of
from microtome.methods.token_attributing import Path
from microtome.results import Labelled, registry
from microtome.sites import parse, parse_edge
from microtome.tasks.asked import ask
from microtome.tasks.corpus import corpus
from microtome.tasks.files import pairs
from microtome.tasks.grid import grid
from microtome.tasks.induction import Induction
from microtome.tasks.thought import thought
from microtome.tasks.word_pairs import word_pairs
from microtome.trace.edits import Ablate, Edit, Keep, Patch, Remove, Steer
from microtome.zoo.checkpoints import Checkpoints
from microtome.zoo.decoys import Decoys
from microtome.zoo.words import word_tokenizer
from test_model_load_fakes import write_gguf


def back(value, files=None, shelf=None):
    """(what comes back, the encoding)."""
    files, shelf = recorded.Kept() if files is None else files, shelf or recorded.Shelf()
    encoded = a.encode({"x": value}, files, model_of=shelf.model_of)
    assert encoded.rerunnable, encoded.why_not
    return a.decode(encoded.text(), files, load_model=shelf.load)["x"], encoded


def same(one, other) -> bool:
    """Equal in type and content; arrays and tensors to the bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if is_dataclass(one):
        return type(one) is type(other) and all(
            same(getattr(one, f.name), getattr(other, f.name)) for f in fields(one)
        )
    if isinstance(one, float):
        return type(one) is type(other) and (one == other or (math.isnan(one) and math.isnan(other)))
    if isinstance(one, dict):
        return same(list(one.items()), list(other.items()))
    if isinstance(one, list | tuple):
        return isinstance(other, type(one)) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


PLAIN = [
    None, True, 0, -(2**80), 1.5, math.nan, math.inf, -math.inf, 5e-324, -0.0, "", "text", "\ud800 half", "$", [], (), [1, (2, [3])], {"a": 1},
    {1: "x", (2, 3): "y", None: "z", False: "w"}, {"$": "model", "items": 1}, {"b": 1, "a": 2}, {1, 2}, frozenset({"a", "b"}), set(), range(2, 11, 3), b"\x00\xff",
    pathlib.Path("/a/b"), np.float32(0.1), np.float64(math.nan), np.int64(7), np.bool_(True), np.float16(2), [np.uint8(3)],
]  # fmt: skip


def named(value) -> str:
    """The same in every process: each hashes text its own way."""
    return f"{type(value).__name__} {sorted(value)}" if isinstance(value, frozenset) else repr(value)


@pytest.mark.parametrize("value", PLAIN, ids=named)
def test_plain_values_come_back_with_their_types(value) -> None:
    found, _ = back(value)
    assert same(value, found), (value, found)


@pytest.mark.parametrize(
    "array",
    [np.arange(6.0).reshape(2, 3), np.array(3.5), np.zeros((0, 4), np.int32), np.array([True, False]), np.array([math.nan, -0.0], np.float16),
     np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.arange(4, dtype=">i4")[::2]],
    ids=["plain", "no axis", "empty", "bool", "half", "columns first", "strided and big-endian"],
)  # fmt: skip
def test_arrays_come_back_to_the_bit(array) -> None:
    found, encoded = back(array)
    assert found.shape == array.shape and found.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(found, array)
    assert (
        found.flags.c_contiguous == (array.flags.c_contiguous or array.ndim == 1) and len(encoded.files) == 1
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_come_back_to_the_bit(dtype) -> None:
    tensor = torch.arange(12).reshape(3, 4).T.to(dtype)
    assert same(tensor, back(tensor)[0]) and same(tensor.contiguous(), back(torch.nn.Parameter(tensor, requires_grad=False))[0])  # fmt: skip


def _values():
    m = worded.with_words(planted.one_head())
    direction = Direction(
        torch.arange(1.0, 9.0), parse("L1.resid_post"), m.hash, "up", {"from": [1, 2.5], "seed": 0}
    )
    task = planted.pairs(m)
    shape = circuits.graph(m).shape
    return {
        "site": parse("L9H6.pattern@-1<-subject"),
        "wildcard": parse("L0,3,7H*.z@3:8"),
        "edge": parse_edge("L0H3.z->L1KV1.k"),
        "side": task.clean,
        "task": task,
        "direction": direction,
        "texts": steerable.texts(),
        "words": Words(("glad", 3), ("sad",)),
        "lexicon": Lexicon(("glad",)),
        "reads": Reads(direction),
        "steering": SteeringOptions(data=steerable.texts(), sibling=direction, few_shot=("a",)),
        "functions": FunctionOptions(layers=(0, 1)),
        "path": Path(steps=4),
        "sampling": Sampling(n=3, extract=r"(\d+)"),
        "grid": grid("w4 {x} w6 {item}", {"x": ["w8", "w9"], "item": ["w10", "w11"]}, [" w20", " w21"], over=["item"]),  # fmt: skip
        "thought": thought("w4 w5", ["w8", "w9"], " w6 w7\nw10"),
        "asked": ask(m, ["w4 w5 w6"], [" w7"], [" w8"]),
        "word pairs": word_pairs([("hot", "cold"), ("big", "small")]),
        "circuit": circuits.Circuit(("embed->L1KV1.k", "L1H2.z->logits"), shape, m.hash, scores={"embed->L1KV1.k": math.nan}),  # fmt: skip
        "choices": circuits.Choices(ablation="mean", reference=8, seed=3),
        "lens": Translators("tuned", {0: torch.eye(4), 3: 2 * torch.eye(4)}, {3: torch.ones(4)}, m.hash, {"steps": 5}),  # fmt: skip
        "labelled": Labelled(np.ones((2, 1)), ("prompt", "metric"), {"prompt": (0, 1), "metric": ("m",)}),
        "edits": [Patch("L1.z@-1", torch.ones(3, 2)), Ablate("L0H1.z", "mean", over=task.clean, seed=None), Steer("L0.resid_post", torch.ones(8), 2.0, "resid_norm"),
                  Remove("L0.resid_post", torch.ones(8)), Keep("L0.resid_post", torch.eye(8)[:2])],
        "function": name_of,
        "mapping of tasks": {"first": task, "second": replace(task, name="other")},
    }  # fmt: skip


VALUES = _values()


@pytest.mark.parametrize("name", VALUES)
def test_values_of_microtome_come_back_as_they_were(name) -> None:
    value = VALUES[name]
    found, encoded = back(value)
    assert same(value, found)
    assert getattr(value, "hash", None) == getattr(found, "hash", None)
    assert back(found)[1].text() == encoded.text()


def test_an_edit_by_a_function_of_microtome_comes_back() -> None:
    found, _ = back(Edit("L0.z", name_of))
    assert found.fn is name_of


def test_the_same_task_is_one_file_however_often_it_is_asked() -> None:
    files, task = recorded.Kept(), VALUES["task"]
    for arguments in ({"task": task}, {"task": task, "held_out": replace(task, provenance={"from": "me"})}, {"task": planted.pairs(planted.one_head())}):  # fmt: skip
        a.encode(arguments, files)
    assert len(files) == 2  # another provenance is another file: it is shown


def test_a_long_argument_is_a_file_and_a_short_one_is_not() -> None:
    files = recorded.Kept()
    assert back([1, 2, 3], files)[1].files == () and not files
    long = [list(range(40)) for _ in range(60)]
    found, encoded = back(long, files)
    assert found == long and len(encoded.files) == 1 and len(encoded.text()) < 200


def test_what_is_written_is_read_however_deep_it_is() -> None:
    """The limits of the two ways fit: no value is kept that cannot be had again."""
    value: object = 1.5
    kept = []
    for k in range(40):
        value = {k: [value, None]} if k % 2 else ({"text": "x" * 200}, value)
        encoded = a.encode({"x": value}, files := recorded.Kept())
        kept.append(encoded.rerunnable)
        if encoded.rerunnable:
            assert same(value, a.decode(encoded.text(), files)["x"])
    assert kept[0] and not kept[-1] and kept == sorted(kept, reverse=True)


# ---- models


def test_a_model_of_the_zoo_is_built_again_and_its_task_has_a_source_again() -> None:
    z = zoo.build("shift", n=8, decoys=Decoys(heads=1, layers=0), seed=2)
    files = recorded.Kept()
    encoded = a.encode({"model": z.model, "task": z.task, "again": z.model}, files)
    found = a.decode(encoded.text(), files)
    assert encoded.rerunnable and found["model"] is not z.model and found["again"] is found["model"]
    assert found["model"].hash == z.model.hash and found["task"].reference(5, 1) == z.task.reference(5, 1)


def test_checkpoints_of_the_zoo_are_had_again() -> None:
    z = zoo.build("induction_heads", n=4)
    steps, models = zip(*z.checkpoints()[:2], strict=True)
    found, _ = back(Checkpoints(steps, models))
    assert found.steps == steps and [m.hash for m in found.models] == [m.hash for m in models]


def test_a_model_from_a_folder_is_loaded_again_as_it_was(tmp_path) -> None:
    planted.one_head().hf.save_pretrained(tmp_path / "toy")
    worded.tokenizer().save_pretrained(tmp_path / "toy")
    model = mt.load(tmp_path / "toy", dtype="bfloat16", attn_implementation="eager")
    files = recorded.Kept()
    encoded = a.encode({"model": model}, files)
    found = a.decode(encoded.text(), files)["model"]
    assert encoded.rerunnable and found.hash == model.hash and found.numerics == model.numerics
    assert model.numerics == {"dtype": "bfloat16", "attention": "eager", "device": "cpu"}
    with torch.no_grad():
        next(model.hf.parameters()).mul_(2)
    changed = a.encode({"model": model}, files)  # nothing says what was done to it
    with pytest.raises(LabError, match=f"not the one that was recorded\n.*{found.hash}, the record says {model.hash}"):  # fmt: skip
        a.decode(changed.text(), files)


def test_a_generator_task_has_its_donors_again_also_for_a_second_copy_of_its_model(tmp_path) -> None:
    """The task was made with one object, the run with another of the same tokenizer."""
    planted.one_head().hf.save_pretrained(tmp_path / "toy")
    worded.tokenizer().save_pretrained(tmp_path / "toy")
    first, second = mt.load(tmp_path / "toy"), mt.load(tmp_path / "toy")
    task = mt.task("induction", first, n=4, seed=1, counterfactual="no_repeat").subset([2, 0])
    files = recorded.Kept()
    encoded = a.encode({"model": second, "task": task}, files)
    assert encoded.rerunnable, encoded.why_not
    found = a.decode(encoded.text(), files)["task"]
    assert found == task and found.provenance == task.provenance
    assert found.source.counterfactual == "no_repeat" and found.reference(6, 2) == task.reference(6, 2)


def test_pairs_of_ones_own_come_back(tmp_path) -> None:
    model = worded.with_words(planted.one_head())
    path = tmp_path / "mine.csv"
    path.write_text("clean,corrupt,answer,wrong,entity\nw4 w5,w4 w6, w7, w8,a\nw5 w9,w5 w8, w7, w8,b\n")
    task = pairs(model, path)
    path.unlink()
    assert same(task, back(task)[0])


# ---- corpora, results, stores


def test_corpora_are_read_again_with_their_parts(tmp_path) -> None:
    for i in range(12):
        (tmp_path / f"t{i}.txt").write_text(f"some text number {i}")
        (tmp_path / f"m{i}.md").write_text(f"# more text {i}")
    whole = corpus(tmp_path, name="mine").kinds("text", "markdown")
    part = whole.split(0.4, seed=3)[1].kinds("text")
    for one in (whole, part, corpus(["one text", "", "another"]), corpus(["a", "b"]).kinds("text")):
        found, _ = back(one)
        assert (found.hash, found.name) == (one.hash, one.name)
        assert list(found.documents(seed=5)) == list(one.documents(seed=5))
    files = recorded.Kept()
    encoded = a.encode({"corpus": part}, files)
    (tmp_path / "t0.txt").write_text("changed")
    with pytest.raises(
        LabError, match="argument 'corpus': the corpus 'mine' is not the one that was recorded"
    ):
        a.decode(encoded.text(), files)
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(LabError, match="cannot be read again"):
        a.decode(encoded.text(), files)


@pytest.fixture(scope="module")
def found_result():
    model = planted.one_head()
    return methods.ablation(model, planted.pairs_done(model), by="zero", seed=0)


def test_a_result_is_kept_whole_or_by_reference(found_result) -> None:
    files = recorded.Kept()
    found, encoded = back(found_result, files)
    assert found.query == found_result.query and numbers_of(found) == numbers_of(found_result)
    assert (
        found.effects == found_result.effects
        and found.tables == found_result.tables
        and len(encoded.files) >= 3
    )
    assert back(circuits.Circuit((), (), result=found_result))[0].result.effects == found_result.effects
    brief = a.encode({"scores": found_result}, recorded.Kept(), recorded=lambda query: query == found_result.query.id)  # fmt: skip
    assert brief.rerunnable and brief.files == ()
    given = a.decode(brief.text(), {}, result_of={found_result.query.id: found_result}.__getitem__)
    assert given["scores"] is found_result
    with pytest.raises(LabError, match="is needed\n.*result of an earlier one"):
        a.decode(brief.text(), {})
    with pytest.raises(LabError, match="KeyError"):
        a.decode(brief.text(), {}, result_of={}.__getitem__)


def test_a_referenced_result_with_other_numbers_is_refused(found_result) -> None:
    brief = a.encode({"scores": found_result}, recorded.Kept(), recorded=lambda query: True)
    other = replace(
        found_result, effects=replace(found_result.effects, values=found_result.effects.values + 1e-6)
    )
    with pytest.raises(LabError, match="not the one that was given to this call"):
        a.decode(brief.text(), {}, result_of=lambda query: other)


def test_a_store_is_its_folder(tmp_path) -> None:
    model = planted.one_head()
    texts = [[1, 2, 3], [4, 5, 6]]
    store = capture(model, texts, ["L1.resid_post"], folder=tmp_path / "kept")
    files = recorded.Kept()
    found, encoded = back(store, files)
    assert same(found["L1.resid_post"], store["L1.resid_post"])
    held = a.encode({"store": capture(model, texts, ["L1.resid_post"])}, files)
    assert not held.rerunnable and "in memory" in held.why_not[0]
    shutil.rmtree(tmp_path / "kept")
    capture(model, [[1, 2, 3], [4, 5, 7]], ["L1.resid_post"], folder=tmp_path / "kept")
    with pytest.raises(LabError, match="not the one that was recorded"):
        a.decode(encoded.text(), files)
    shutil.rmtree(tmp_path / "kept")
    with pytest.raises(LabError, match="cannot be made again"):
        a.decode(encoded.text(), files)


# ---- what cannot be kept


@dataclass(frozen=True)
class Mine:
    """A value of somebody else."""

    hash = "abc"


def _cycle():
    out: list = []
    out.append(out)
    return out


LOST = {
    "a model in memory": (planted.one_head, "microtome.facade.Model: .* is held in memory"),
    "a function of a test": (lambda: same, "test_lab_arguments_values:same is no function of Microtome"),
    "a function of the standard library": (lambda: math.sqrt, "math:sqrt is no function of Microtome"),
    "a lambda": (lambda: (lambda x: x), "cannot be imported by its name"),
    "a partial": (lambda: functools.partial(name_of, 1), "functools.partial: .*cannot be imported"),
    "a private function of Microtome": (lambda: methods.steer_measures._texts, "is no function of Microtome"),
    "a bound method": (lambda: VALUES["direction"].cosine, "cannot be imported by its name"),
    "a value of another package": (Mine, "Mine: values of this type have no written form"),
    "a list that holds itself": (_cycle, "nested more than 32 deep"),
    "objects in an array": (lambda: np.array([{}, 1], object), "numpy.ndarray: arrays of object"),
    "a sparse tensor": (lambda: torch.eye(2).to_sparse(), "has no file format here"),
    "a class": (lambda: Words, "no written form"),
    "a generator": (lambda: (x for x in "ab"), "no written form"),
    "a namespace": (lambda: SimpleNamespace(hash="x"), "no written form"),
    "inside a dataclass": (lambda: Sampling(extract=lambda x: x), "cannot be imported"),
    "a task of another's making": (lambda: planted.copied(), "planted.Lookup: the source of the task copied"),
    "a trace": (lambda: Patch("L1.z", planted.one_head().run([[1, 2]], "L1.z")), "Trace: it holds a whole run of a model; give the tensor"),
    "complex numbers": (lambda: 1j, "complex: values of this type"),
}  # fmt: skip


@pytest.mark.parametrize("name", LOST)
def test_what_cannot_be_kept_is_said_and_refused_on_the_way_back(name) -> None:
    make, why = LOST[name]
    files = recorded.Kept()
    encoded = a.encode({"kept": 1, "gone": [make()]}, files)
    assert not encoded.rerunnable and len(encoded.why_not) == 1 and encoded.why_not[0].startswith("gone: ")
    assert re.search(why, encoded.why_not[0]), encoded.why_not
    with pytest.raises(LabError, match="argument 'gone': .* of this call was not kept"):
        a.decode(encoded.text(), files)


class Full(recorded.Kept):
    """A disk without room."""

    def put(self, content: bytes, suffix: str) -> str:
        raise ResourceError("no room", why="the disk is full", instead="free some space")


@pytest.mark.parametrize("name", ["direction", "task", "lens", "mapping of tasks"])
def test_a_full_disk_is_an_error_and_no_property_of_the_value(name) -> None:
    with pytest.raises(ResourceError, match="no room"):
        a.encode({"x": VALUES[name]}, Full())


def test_a_model_whose_options_need_files_is_not_rerunnable() -> None:
    z = zoo.build("shift", n=4)
    z.model.asked = {**z.model.asked, "options": {"decoys": torch.ones(2)}}
    encoded = a.encode({"model": z.model, "alpha": 0.1}, recorded.Kept())
    assert encoded.why_not == ("model: microtome.facade.Model: a recipe of a model holds no files",)


class Toy(Induction):
    """A task of another package."""

    name = "toy_task_of_a_test"


def test_a_task_of_another_package_is_found_by_its_name_in_the_registry() -> None:
    shelf, files, model = recorded.Shelf(), recorded.Kept(), worded.with_words(planted.one_head())
    task = Toy(model).task(4, 0)
    lost = a.encode({"model": model, "task": task}, files, model_of=shelf.model_of)
    assert "it is no task of the registry" in lost.why_not[0]
    registry.register("tasks", Toy.name, Toy)
    try:
        encoded = a.encode({"model": model, "task": task}, files, model_of=shelf.model_of)
        assert encoded.rerunnable
        found = a.decode(encoded.text(), files, load_model=shelf.load)["task"]
        assert type(found.source) is Toy and found.reference(5, 1) == task.reference(5, 1)
    finally:
        registry._objects["tasks"].pop(Toy.name)
    with pytest.raises(LabError, match="nothing is called 'toy_task_of_a_test'"):
        a.decode(encoded.text(), files, load_model=shelf.load)


def test_a_task_for_a_tokenizer_that_is_not_there_is_not_rerunnable() -> None:
    z = zoo.build("shift", n=4)
    encoded = a.encode({"task": z.task}, recorded.Kept())
    assert "task: microtome.zoo.pairs.DomainSource: the source of the task zoo/shift: it was made for another tokenizer" in encoded.why_not[0]  # fmt: skip


def test_a_task_belongs_to_the_model_whose_tokenizer_it_uses() -> None:
    shelf, first = recorded.Shelf(), worded.with_words(planted.one_head())
    words = [f"v{i}" for i in range(3, len(worded.WORDS))]
    second = mt.load(planted.one_head().hf, tokenizer=word_tokenizer(words))
    task = mt.task("induction", second, n=3, seed=0)
    encoded = a.encode({"a": first, "b": second, "task": task}, recorded.Kept(), model_of=shelf.model_of)
    told = encoded.arguments["arguments"]
    assert encoded.rerunnable and told["task"]["source"]["model"] == told["b"] != told["a"]
    alone = a.encode({"a": first, "task": task}, recorded.Kept(), model_of=shelf.model_of)
    assert "it was made for another tokenizer" in alone.why_not[0]


def test_a_tokenizer_that_the_caller_gave_is_not_kept(tmp_path) -> None:
    planted.one_head().hf.save_pretrained(tmp_path / "toy")
    model = mt.load(tmp_path / "toy", tokenizer=worded.tokenizer())
    encoded = a.encode({"model": model}, recorded.Kept())
    assert "loaded with a tokenizer that the caller gave" in encoded.why_not[0]


def test_a_model_from_a_gguf_file_is_loaded_again(tmp_path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    model = mt.load(path)
    files = recorded.Kept()
    encoded = a.encode({"model": model}, files)
    assert encoded.rerunnable and encoded.arguments["arguments"]["model"]["recipe"]["name"] == str(path)
    assert a.decode(encoded.text(), files)["model"].hash == model.hash
    path.unlink()
    with pytest.raises(LabError, match="There is no model"):
        a.decode(encoded.text(), files)


def test_a_model_of_the_hub_is_named_by_its_commit(tmp_path, monkeypatch) -> None:
    """Loaded by a branch, it is asked for again by the commit that this branch was then."""
    planted.one_head().hf.save_pretrained(tmp_path / "made")
    worded.tokenizer().save_pretrained(tmp_path / "made")
    asked = []

    def snapshot(name, revision, progress=None, *, hint=""):
        asked.append(revision)
        shutil.copytree(tmp_path / "made", tmp_path / "0123abc", dirs_exist_ok=True)
        return tmp_path / "0123abc"

    monkeypatch.setattr("microtome.model.hub.snapshot", snapshot)
    model = mt.load("somebody/toy", revision="main")
    files = recorded.Kept()
    encoded = a.encode({"model": model}, files)
    found = a.decode(encoded.text(), files)["model"]
    assert asked == ["main", "0123abc"] and found.hash == model.hash and found.asked == model.asked


def test_the_standard_library_is_read_again_by_the_hash_of_this_python() -> None:
    whole = corpus().kinds("topic")
    found, encoded = back(whole)
    assert found.hash == whole.hash and encoded.arguments["arguments"]["x"]["hash"] == whole.hash
