"""Every technique is run again from its record: the arguments come back from JSON and files, the numbers to the last bit."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

import planted
import recorded
from microtome import dissect, methods, zoo
from microtome.errors import LabError
from microtome.lab import arguments as a
from microtome.results import registry
from microtome.results.stamp import make_query
from microtome.zoo import progress
from test_methods_every import RECIPES, SITES


@pytest.fixture(scope="module")
def model():
    return planted.one_head()


@pytest.fixture(scope="module")
def task(model):
    return planted.pairs_done(model)


@pytest.fixture(scope="module")
def single(model, task):
    return methods.activation_patching(model, task, sites=SITES, positions="all", controls="none", seed=0)


def _patched(m, t, s):
    return methods.activation_patching(m, t, sites=SITES, positions="all", held_out=planted.pairs_done(m, n=24, seed=9), seed=0)  # fmt: skip


def _aligned(m, t, s):
    z = zoo.build("planted_direction", n=32)
    return methods.das(z.model, z.task, variable=next(iter(z.task.differs)), site="L0.resid_pre@0", k=1, steps=10, placebos=1, seed=0)  # fmt: skip


def _followed(m, t, s):
    z = zoo.build("induction_heads", n=4)
    return zoo.dynamics(z.checkpoints()[:3], progress.named("induction", z), nulls=2, seed=0)


CALLS = {
    **RECIPES,
    "activation_patching": _patched,
    "distributed_alignment_search": _aligned,
    "training_dynamics": _followed,
}
"""A call of every technique; those whose toy holds something that no record can keep (a function of a test) with another."""


def test_every_technique_is_run_again_here() -> None:
    own = {n for n in registry.names("techniques") if registry.get("techniques", n).__module__.startswith("microtome.")}  # fmt: skip
    assert own == {*CALLS, "dissect"}


@pytest.mark.parametrize("name", sorted(CALLS))
def test_a_technique_run_again_from_its_record_gives_the_same_bits(name, model, task, single) -> None:
    with recorded.recording() as recorder:
        result = CALLS[name](model, task, single)
    query, encoded, text, told = recorder.runs(name)[-1]
    assert told is result and encoded.rerunnable and encoded.why_not == ()
    assert set(encoded.files) <= set(recorder.files)
    technique = registry.get("techniques", name)
    found = a.decode(text, recorder.files, load_model=recorder.shelf.load)
    assert make_query(name, technique.spec.version, found).id == query.id
    again = a.run_again(name, text, recorder.files, load_model=recorder.shelf.load)
    assert again == result and again.query.id == result.query.id
    kept = a.encode({"scores": result}, recorder.files)  # a later technique may take this result
    taken = a.decode(kept.text(), recorder.files)["scores"]
    assert taken.query == result.query and taken.effects == result.effects and taken.tables == result.tables
    assert a.encode(found, recorded.Kept(), model_of=recorder.shelf.model_of).text() == encoded.text()


def test_the_arguments_of_a_dissection_ask_the_same_again(model, task) -> None:
    signature = inspect.signature(dissect.dissect.__wrapped__)
    bound = signature.bind(model, task, held_out=planted.pairs_done(model, n=24, seed=9))
    bound.apply_defaults()
    files, shelf = recorded.Kept(), recorded.Shelf()
    encoded = a.encode(bound.arguments, files, model_of=shelf.model_of)
    found = a.decode(encoded.text(), files, load_model=shelf.load)
    assert encoded.rerunnable and found["held_out"] == bound.arguments["held_out"]
    assert make_query("dissect", "1", found).id == make_query("dissect", "1", bound.arguments).id


def test_another_seed_in_the_record_is_another_result(model, task) -> None:
    """The comparison above can fail: what is changed in the record changes the numbers."""
    with recorded.recording() as recorder:
        result = methods.ablation(model, task, by="resample", reference=8, seed=0)
    _, _, text, _ = recorder.runs("ablation")[-1]
    changed = json.loads(text)
    changed["arguments"]["seed"] = 1
    again = a.run_again("ablation", changed, recorder.files, load_model=recorder.shelf.load)
    assert again != result and again.query.same_question(result.query)


def test_donors_and_reference_prompts_come_from_the_same_source() -> None:
    """Built by name in the zoo: every control that draws prompts gives the same numbers again."""
    z = zoo.build("shift", n=16)
    with recorded.recording() as recorder:
        result = methods.activation_patching(z.model, z.task, sites="L*.resid_pre", controls="full", seed=3)
    assert {"same_value", "irrelevant", "wrong_value"} <= {c.name for c in result.controls}
    _, encoded, text, _ = recorder.runs("activation_patching")[-1]
    assert encoded.rerunnable
    assert a.run_again("activation_patching", text, recorder.files) == result
    found = a.decode(text, recorder.files)["task"]
    assert found.source is not z.task.source and found.reference(8, 5) == z.task.reference(8, 5)


def test_a_task_without_its_source_would_give_other_numbers() -> None:
    """Why a lost source is refused and not left out."""
    z = zoo.build("shift", n=16)
    with_source, without = z.task, replace(z.task, source=None)
    assert with_source.hash == without.hash and with_source.reference(8, 5) != without.reference(8, 5)


RERUN = """
import sys, pathlib
from microtome.lab import arguments as a
folder = pathlib.Path(sys.argv[1])
class Kept:
    def get(self, key): return (folder / "files" / key).read_bytes()
result = a.run_again("activation_patching", (folder / "arguments.json").read_text("ascii"), Kept())
result.save(folder / "again")
"""


def test_a_patching_of_the_embedded_model_is_run_again_in_another_process(tmp_path) -> None:
    import microtome as mt

    smollm = mt.load()
    pairs = mt.task("ioi", smollm, n=4, seed=0)
    with recorded.recording() as recorder:
        result = mt.methods.activation_patching(smollm, pairs, sites="L10.resid_pre", positions=[-1], seed=0)
    _, encoded, text, _ = recorder.runs("activation_patching")[-1]
    assert encoded.rerunnable
    for key, content in recorder.files.items():
        (tmp_path / "files" / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "files" / key).write_bytes(content)
    (tmp_path / "arguments.json").write_text(text, "ascii")
    env = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", RERUN, str(tmp_path)], check=True, env=env)
    heads = [
        (place / "result.json").read_bytes()
        for place in (result.save(tmp_path / "first"), tmp_path / "again")
    ]
    assert heads[0] == heads[1]  # they hold the digests of all files


def test_a_technique_that_takes_other_arguments_now_is_refused(model, task) -> None:
    files, shelf = recorded.Kept(), recorded.Shelf()
    encoded = a.encode({"model": model, "task": task, "gone": 1}, files, model_of=shelf.model_of)
    with pytest.raises(LabError, match="behaviour takes other arguments than were recorded\n.*has gone"):
        a.run_again("behaviour", encoded, files, load_model=shelf.load)
    encoded = a.encode({"model": model}, files, model_of=shelf.model_of)
    with pytest.raises(LabError, match="the record lacks task"):
        a.run_again("behaviour", encoded, files, load_model=shelf.load)
    with pytest.raises(LabError, match="'behavior' cannot be run again"):
        a.run_again("behavior", encoded, files, load_model=shelf.load)
