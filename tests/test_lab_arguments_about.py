"""What a record says beside the arguments: sites seen, family, material, the prompts of a look."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

import planted
import probed
import steerable
from microtome import circuits, methods, zoo
from microtome.directions.direction import Direction
from microtome.lab import arguments as a
from microtome.results import Result, observe
from microtome.sites import parse
from microtome.tasks.corpus import corpus

PATCHED = {"model": None, "task": None, "sites": ("L*H*.z", "L*.mlp_out"), "positions": "all"}


@pytest.mark.parametrize(
    ("method", "arguments", "sites"),
    [
        ("activation_patching", PATCHED, ("L*.mlp_out", "L*H*.z")),
        ("activation_patching", {"sites": "L3.resid_pre@-1"}, ("L3.resid_pre@-1",)),
        ("attention_patterns", {"heads": "L*H*.pattern", "show": ["L1H2"]}, ("L*H*.pattern", "L1H2.pattern")),
        ("attribution_patching", {"of": "nodes", "sites": "L1.z"}, ("L1.z",)),
        ("max_activating", {"of": ["L1.z", parse("L2N3.neurons")]}, ("L1.z", "L2N3.neurons")),
        ("path_patching", {"sender": "L0H1.z", "receiver": ("logits",), "through": "L1H0.q"}, ("L0H1.z", "L1H0.q", "logits")),
        ("path_patching", {"sender": "embed->L1KV1.k", "receiver": ()}, ("L1KV1.k", "embed")),
        ("steering", {"site": None, "direction": Direction(torch.ones(3), parse("L2.resid_post"))}, ("L2.resid_post",)),
        ("steering", {"site": "L1.resid_post", "direction": steerable.texts()}, ("L1.resid_post",)),
        ("circuit_evaluation", {"circuit": circuits.Circuit(("embed->L1KV1.k", "L1H2.z->logits"), ())}, ("L1H2.z", "L1KV1.k", "embed", "logits")),
        ("behaviour", {"task": None}, ("logits",)),
        ("composition", {"draws": 19}, ()),
        ("vocabulary_svd", {"parts": ("L*H*", "L*.mlp")}, ("L*.mlp_out", "L*H*.z")),
        ("look", {"prompts": "L1.z", "model": None}, ()),
        ("look", {"capture": ["L1.resid_post!before"]}, ("L1.resid_post!before",)),
        ("probe", {"sites": 3, "site": math.nan, "heads": {"L1.z"}}, ("L1.z",)),
    ],
)  # fmt: skip
def test_the_sites_that_the_arguments_name(method, arguments, sites) -> None:
    assert a.sites_of(method, arguments) == sites


def test_the_sites_that_a_result_measured_are_added() -> None:
    model = planted.one_head()
    task = planted.pairs_done(model)
    result = methods.ablation(model, task, sites="L1H*.z", by="zero", seed=0)
    assert a.sites_of("ablation", {"sites": "L1H*.z"}, result) == ("L1H*.z", *(f"L1H{h}.z" for h in range(4)))
    parent = Result(
        "dissect", children=(result,), tables={"edges": pd.DataFrame({"edge": ["embed->L1KV1.k", None]})}
    )
    assert set(a.sites_of("dissect", {}, parent)) == {*(f"L1H{h}.z" for h in range(4)), "embed", "L1KV1.k"}
    assert (
        a.sites_of("composition", {}, Result("composition", tables={"x": pd.DataFrame({"site": [1, 2]})}))
        == ()
    )


def test_a_method_whose_arguments_say_nothing_is_known_by_what_it_measured() -> None:
    model = planted.one_head()
    result = methods.direct_logit_attribution(model, planted.pairs_done(model), seed=0)
    measured = {s for s in result.frame()["site"] if s.startswith("L") and not s.endswith("_bias")}
    assert measured and measured <= set(a.sites_of("direct_logit_attribution", {"alpha": 0.001}, result))


def test_the_family_is_the_name_of_the_task_or_data() -> None:
    model = planted.one_head()
    task = planted.pairs(model)
    assert a.family_of({"model": model, "alpha": 0.1, "task": task}) == "planted"
    assert a.family_of({"task": "ioi"}) == "ioi"
    assert a.family_of({"data": probed.halves()}) == "words 0+words 1"
    assert a.family_of({"corpus": corpus(["a text"], name="mine")}) == "mine"
    assert a.family_of({"model": model, "prompts": ["a", "b"], "texts": [[1, 2]]}) == ""
    assert a.family_of({"direction": steerable.texts()}) == "" == a.family_of({})


def test_the_material_says_what_each_thing_is_and_how_to_have_it_again() -> None:
    z = zoo.build("shift", n=4, seed=2)
    model = planted.one_head()
    direction = Direction(torch.ones(3), parse("L2.resid_post"), name="up")
    circuit = circuits.Circuit(("embed->logits",), ())
    arguments = {
        "model": z.model, "other": model, "task": z.task, "again": z.task, "sets": {"one": z.task.swap()}, "corpus": corpus(["one text"]),
        "direction": direction, "circuit": circuit, "alpha": 0.1, "sites": ["L1.z"], "none": None,
    }  # fmt: skip
    found = a.material_of(arguments)
    assert [(m.kind, m.hash) for m in found] == [
        ("model", z.model.hash), ("model", model.hash), ("task", z.task.hash), ("task", z.task.swap().hash), ("data", arguments["corpus"].hash),
        ("direction", direction.hash), ("circuit", circuit.__query__()["circuit"]),
    ]  # fmt: skip
    assert found[0].recipe == {"kind": "zoo", "name": "shift", "seed": 2, "options": {"n": 4}} and found[1].recipe == {}  # fmt: skip
    assert found[2].name == "zoo/shift" and (found[2].recipe["n"], found[2].recipe["seed"]) == (4, 2)
    assert found[4].recipe["texts"] == 1 and "one text" not in str(found[4].recipe)


# ---- looks


@pytest.mark.parametrize(
    ("prompts", "shown", "of", "said"),
    [
        ("one text", ["one text"], 1, ""),
        (["a", "b"], ["a", "b"], 2, ""),
        ([1, 2, 3], [[1, 2, 3]], 1, ""),
        ([[1, 2], (3,)], [[1, 2], [3]], 2, ""),
        (torch.tensor([[1, 2], [3, 4]]), [[1, 2], [3, 4]], 2, ""),
        (np.array([5, 6]), [[5, 6]], 1, ""),
        ([torch.tensor([1, 2]), "text"], [[1, 2], "text"], 2, ""),
        (planted.pairs(planted.one_head(), n=2).clean, ["clean 0", "clean 1"], 2, ""),
        ([], [], 0, ""),
        ([f"p{i}" for i in range(25)], [f"p{i}" for i in range(20)], 25, "20 of 25 prompts are shown"),
        (["x" * 401, "y" * 400], ["x" * 400, "y" * 400], 2, "1 of those shown are cut at 400 characters or 100 tokens"),
        (list(range(101)), [list(range(100))], 1, "1 of those shown are cut at 400 characters or 100 tokens"),
        (object(), [], None, "prompts of the type object are not shown"),
        (torch.ones(2, 3), [], None, "prompts of the type torch.Tensor are not shown"),
        ([[1.5]], [], None, "prompts of the type list are not shown"),
        (None, [], None, "prompts of the type NoneType are not shown"),
    ],
)  # fmt: skip
def test_a_look_shows_its_prompts_and_says_what_it_leaves_out(prompts, shown, of, said) -> None:
    assert a.look_of({"model": None, "prompts": prompts}) == {"prompts": shown, "of": of, "said": said}


def test_the_look_of_a_real_run_is_shown() -> None:
    model, seen = planted.one_head(), []
    with observe(seen.append):
        model.run([[1, 2, 3]], capture="L1.resid_post")
    (event,) = seen
    assert event.kind == "look" and a.look_of(event.arguments)["prompts"] == [[1, 2, 3]]


def test_nothing_heavy_is_imported_with_the_package() -> None:
    import subprocess
    import sys

    code = "import sys, microtome.lab.arguments; print(sorted({'torch', 'pandas', 'numpy', 'plotly', 'sqlalchemy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
