"""The seam: arguments, the stamped query, controls that may not be forgotten, the verdict."""

from __future__ import annotations

import functools
import inspect
import subprocess
import sys
import textwrap
from dataclasses import dataclass

import numpy as np
import pytest

from microtome.errors import MicrotomeError, ResultError
from microtome.results import Control, Query, Result, observe, technique, verdict
from microtome.results.arguments import ArgumentError
from microtome.results.source import code_hash
from microtome.results.stamp import describe


class Thing:
    def __init__(self, mark, **more):
        self.hash = mark
        self.__dict__.update(more)


MODEL = Thing("abcd", numerics={"dtype": "float32", "attention": "sdpa", "device": "cpu"})
TASK = Thing("1234")


def control(name, passed=True, *, gates=False):
    return Control(name, "something", "0", 0.1, passed, 3, detail="too dear", gates=gates)


handed: list = []


def giving(result, **kwargs):
    """Call the toy technique with a body that returns this result."""
    handed[:] = [result]
    return toy_patching(MODEL, TASK, **kwargs)


def _define():  # local, so that the registry of the whole test run knows nothing of it
    @technique("toy_patching", "1", controls=("identity", "donor"), mandatory=("donor",), random=True)
    def toy_patching(model, task, sites="L*.z", *, mode="denoise", weights=None, seed=0):
        """Toy docstring."""
        if handed:
            return handed.pop()
        return Result(
            "toy",
            controls=(control("identity", gates=True), control("donor")),
            verdict=verdict([], [], 0.0001, 0.001, 0.0),
        )

    return toy_patching


toy_patching = _define()
GOOD = verdict([], [], 0.0001, 0.001, 0.0)


def test_the_query_is_stamped_with_defaults_filled_in():
    result = toy_patching(MODEL, TASK, mode="noise", seed=np.int64(7))
    assert result.query == Query(
        "toy_patching",
        "1",
        "abcd",
        "1234",
        "",
        {"sites": "L*.z", "mode": "noise", "weights": None},
        7,
        {"dtype": "float32", "attention": "sdpa", "device": "cpu"},
    )
    assert result.verdict == "supported" and result.verdict.mandatory == ("donor",)
    assert toy_patching(MODEL, task=TASK).query == toy_patching(MODEL, TASK, "L*.z").query


def test_data_other_models_and_absent_tasks_have_their_places():
    @technique("toy_diff", 2)
    def toy_diff(a, b, data, task=None, prompts=("x",)):
        return Result("toy")

    query = toy_diff(Thing("m1"), Thing("m2"), Thing("d1")).query
    assert (query.model, query.task, query.data, query.version, query.numerics) == ("m1", "", "d1", "2", {})
    assert query.parameters == {"b": {"hash": "m2"}, "prompts": ("x",)}
    assert query.seed is None

    @technique("toy_task_only", "1")
    def toy_task_only(task):
        return Result("toy")

    query = toy_task_only(Thing("t1")).query
    assert (query.model, query.task) == ("", "t1")


def test_signature_docstring_and_spec_remain():
    assert list(inspect.signature(toy_patching).parameters)[:3] == ["model", "task", "sites"]
    assert toy_patching.__doc__ == "Toy docstring." and toy_patching.__name__ == "toy_patching"
    spec = toy_patching.spec
    assert (spec.name, spec.version, spec.controls, spec.mandatory) == (
        "toy_patching",
        "1",
        ("identity", "donor"),
        ("donor",),
    )
    assert spec.random and spec.figure == "" and len(spec.code_hash) == 32


@pytest.mark.parametrize(
    ("args", "kwargs", "says"),
    [
        ((MODEL, TASK), {"site": "x"}, "did you mean 'sites'"),
        ((MODEL, TASK), {"Mode": "x"}, "did you mean 'mode'"),
        ((MODEL, TASK), {"zzzz": 1}, "known: mode, model"),
        ((MODEL,), {}, "needs 'task'"),
        ((), {}, "needs 'model', 'task'"),
        ((MODEL, TASK), {"task": TASK}, "'task' twice"),
        ((MODEL, TASK, "x", "noise"), {}, "4 positional"),
        ((MODEL, TASK), {"seed": None}, "seed is None"),
        ((MODEL, TASK), {"seed": -1}, "seed is -1"),
        ((MODEL, TASK), {"seed": True}, "seed is True"),
        ((MODEL, TASK), {"seed": 0.5}, "seed is 0.5"),
    ],
)
def test_wrong_arguments_are_found_before_any_run_begins(args, kwargs, says):
    events = []
    with observe(events.append), pytest.raises(ArgumentError, match=says) as caught:
        toy_patching(*args, **kwargs)
    assert events == []
    assert isinstance(caught.value, TypeError) and isinstance(caught.value, MicrotomeError)


def test_a_parameter_that_cannot_be_recorded_is_named():
    with pytest.raises(ResultError, match="toy_patching: parameter 'weights'"):
        toy_patching(MODEL, TASK, weights=object())


# ------------------------------------------------------------------------------ controls and verdict


def test_a_forgotten_control_is_an_error_an_idle_one_is_not():
    events = []
    with observe(events.append), pytest.raises(ResultError, match="'donor' and returned none"):
        giving(Result("toy", controls=(control("identity"),), verdict=GOOD))
    assert [e.kind for e in events] == ["begin", "failed"]
    idle = giving(Result("toy", controls=(control("identity"), control("donor", None)), verdict=GOOD))
    assert idle.verdict == "unchecked" and any("too dear" in r for r in idle.verdict.reasons)


@pytest.mark.parametrize(
    ("identity", "donor", "word"),
    [
        (True, True, "supported"),
        (True, False, "not distinguishable from its null"),
        (True, None, "unchecked"),
        (False, True, "invalid"),
        (None, True, "unchecked"),
    ],
)
def test_the_verdict_is_settled_at_the_seam_from_what_was_declared(identity, donor, word):
    controls = (control("identity", identity, gates=True), control("donor", donor))
    # the function itself may know nothing of what is mandatory, or give no verdict at all
    given = giving(Result("toy", controls=controls, verdict=verdict(controls, [], 0.0001, 0.001, 0.0)))
    assert given.verdict == word
    silent = giving(Result("toy", controls=controls))
    assert silent.verdict == ("invalid" if identity is False else "unchecked")


def test_a_method_may_add_mandatory_controls_but_not_lift_them():
    controls = (control("identity"), control("donor", False), control("extra", None))
    strict = Result("toy", controls=controls, verdict=verdict(controls, ["extra"], 0.0001, 0.001, 0.0))
    made = giving(strict)
    assert made.verdict == "unchecked" and set(made.verdict.mandatory) == {"donor", "extra"}


@pytest.mark.parametrize("bad", [None, 3, "result", {"kind": "toy"}])
def test_what_is_no_result_does_not_pass(bad):
    @technique("toy_bad", "1")
    def toy_bad():
        return bad

    with pytest.raises(ResultError, match="returned a"):
        toy_bad()


def test_another_techniques_result_cannot_be_passed_off_as_ones_own():
    inner = toy_patching(MODEL, TASK)
    with pytest.raises(ResultError, match="answers another question"):
        giving(inner, seed=1)

    @technique("toy_parent", "1")
    def toy_parent(model, task):
        return Result("toy", children=(toy_patching(model, task),))

    assert toy_parent(MODEL, TASK).children == (inner,)


# -------------------------------------------------------------------------------------- declarations


@pytest.mark.parametrize(
    ("declared", "says"),
    [
        ({"name": "Bad Name"}, "lower case"),
        ({"controls": "identity"}, "sequence"),
        ({"controls": ("a", "a")}, "distinct"),
        ({"controls": ("a",), "mandatory": ("b",)}, "not among its controls"),
        ({"figure": "no_colon"}, "no path"),
        ({"figure": "os:system; x"}, "no path"),
        ({"random": True}, "takes no seed"),
    ],
)
def test_declarations_that_contradict_are_refused(declared, says):
    with pytest.raises(ArgumentError, match=says):

        @technique(**{"name": "toy_x", "version": "1", **declared})
        def toy_x(model):
            return Result("toy")


def test_a_seed_must_be_declared_and_every_parameter_written_out():
    with pytest.raises(ArgumentError, match="not declared random"):
        technique("toy_x", "1")(lambda model, seed: Result("toy"))
    with pytest.raises(ArgumentError, match=r"takes \*options"):
        technique("toy_x", "1")(lambda model, **options: Result("toy"))
    with pytest.raises(ArgumentError, match=r"takes \*sites"):
        technique("toy_x", "1")(lambda model, *sites: Result("toy"))


def test_code_hash_follows_the_file_and_the_cell(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    hashes = []
    for i, scale in enumerate((1, 1, 2)):
        (tmp_path / f"toy_source_{i}.py").write_text(f"SCALE = {scale}\ndef f():\n    return SCALE\n")
        hashes.append(code_hash(__import__(f"toy_source_{i}").f))
    assert hashes[0] == hashes[1] != hashes[2]  # a constant beside the function counts

    def cell(text):
        space: dict = {}
        exec(compile(text, "<cell>", "exec"), space)
        return code_hash(space["f"])

    assert cell("def f(x): return x + 1") == cell("def f(x): return x + 1") != cell("def f(x): return x + 2")
    nested = "def f(x):\n  def g(): return {}\n  return g"
    assert cell(nested.format(1)) == cell(nested.format(1)) != cell(nested.format(2))


def test_a_console_definition_can_be_repeated_and_another_path_cannot_take_the_name():
    script = """
        from microtome.results import Result, technique
        from microtome.results import registry
        for scale in (1, 2):
            @technique("mine", "1")
            def mine():
                return Result("toy")
        assert registry.get("techniques", "mine") is mine
        try:
            @technique("mine", "1")
            def other():
                return Result("toy")
        except registry.RegistryError as error:
            assert "__main__:mine" in str(error), error
        else:
            raise SystemExit("not refused")
        assert mine().query.method == "mine"
    """
    subprocess.run([sys.executable, "-W", "error", "-c", textwrap.dedent(script)], check=True, timeout=120)


# --------------------------------------------------------------------------------------- description


def module_level(x):
    return x


def make(y):
    def inner(x, k=1):
        return x + y

    return inner


class Probe:
    def __init__(self, hash_=None):
        self.hash = hash_

    def measure(self):
        return 1


@dataclass
class Span:
    start: int
    ids: object


class Site:
    def __query__(self):
        return "L3.z"


def test_describe_tells_apart_what_differs():
    ones, twos = np.ones(3), np.full(3, 2.0)
    groups = [
        (ones, ones.copy()),
        (twos,),
        (np.ones(3, np.float32),),
        (np.ones((3, 1)),),
        (make(1), make(1)),
        (make(2),),
        (make(ones),),
        (make(twos),),
        (module_level, module_level),
        (functools.partial(module_level, 1), functools.partial(module_level, 1)),
        (functools.partial(module_level, 2),),
        (functools.partial(module_level, x=2),),
        (Probe("a").measure, Probe("a").measure),
        (Probe("b").measure,),
        (Site(), "L3.z"),
        (Thing("ff"),),
        (Span(1, np.ones(2)), Span(1, np.ones(2))),
        (Span(1, np.zeros(2)),),
        (Span(2, np.ones(2)),),
        ([1, 2], (1, 2), range(1, 3)),
        ({"b", "a"}, frozenset("ab")),
    ]
    seen = []
    for group in groups:
        described = {Query("m", "1", parameters={"x": describe(v, "x")}).id for v in group}
        assert len(described) == 1, group
        seen += described
    assert len(set(seen)) == len(groups)


def test_describe_marks_what_cannot_be_had_again():
    def rerunnable(value):
        return Query("m", "1", parameters={"x": describe(value, "x")}).rerunnable

    assert (
        rerunnable(module_level)
        and rerunnable(functools.partial(module_level, 1))
        and rerunnable([1, "a", None])
    )
    assert not rerunnable(make(1)) and not rerunnable(lambda x: x) and not rerunnable([{"a": np.ones(2)}])


@pytest.mark.parametrize(
    "bad",
    [
        make(object()),
        Span(1, object()),
        Probe().measure,
        {1: 2},
        {"a": object()},
        np.array([object()]),
        {1, 2},
        open,
    ],
)
def test_describe_refuses_what_it_cannot_tell_from_another(bad):
    if bad is open:  # importable by name: fine
        assert describe(bad, "here")["callable"].endswith(":open")
        return
    with pytest.raises(ResultError, match="here|parameter 'x'"):
        Query("m", "1", parameters={"x": describe(bad, "here")})


def test_a_result_as_an_argument_is_known_by_its_query():
    one, again, two = toy_patching(MODEL, TASK), toy_patching(MODEL, TASK), toy_patching(MODEL, TASK, seed=1)
    assert describe(one, "x") == describe(again, "x") != describe(two, "x")
    with pytest.raises(ResultError, match="no query"):
        describe(Result("toy"), "x")


def test_describe_stops_at_what_contains_itself():
    loop: list = []
    loop.append(loop)
    with pytest.raises(ResultError, match="nested more than 32"):
        describe(loop, "here")


def test_describe_reads_tensors_of_every_dtype():
    import torch

    base = torch.arange(4.0)
    marks = {
        describe(base.to(t), "x")["array"]
        for t in (torch.float32, torch.bfloat16, torch.float16, torch.int64)
    }
    assert len(marks) == 4
    assert describe(base, "x") == describe(base.clone().requires_grad_(), "x")
    assert describe(base.reshape(2, 2), "x") != describe(base.reshape(2, 2).T, "x")
    assert describe(torch.tensor(1.5), "x") != describe(torch.tensor(2.5), "x")
