"""Questions: which runs they match and say why not, what counts as seen, and mistakes found before anything runs."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microtome.errors import LabError, ResultError, SiteError
from microtome.lab.questions import Question, query, seen
from microtome.lab.signatures import parameters_of
from microtome.results import Query, registry
from microtome.results.frozen import dumps, loads
from microtome.results.stamp import make_query


@dataclass(frozen=True)
class Named:
    """A model, task or corpus as questions see it."""

    hash: str
    name: str


MODEL, OTHER = Named("085155b13d556527", "smollm2-135m-instruct"), Named("ffff55b13d556527", "gpt2")
IOI, IOI_AGAIN = Named("38659b720db0a57036074b0dd88e2467", "ioi"), Named("aa" * 16, "ioi")
CAPITALS = Named("cc" * 16, "capitals")


def run(method="ablation", model=MODEL, task=IOI, seed=0, **parameters) -> Query:
    """What a call of a technique is stamped with."""
    return make_query(method, "2", {"model": model, "task": task, "seed": seed, **parameters})


def asks(question: Question, asked: Query, *, model=MODEL, task=IOI, sites=("L9H6.z",)):
    return question.matches(asked, model_name=model.name, family=task.name, sites=sites)


def test_what_is_named_must_agree_and_the_rest_may_be_anything() -> None:
    asked = run(by="mean", sites=["L9H6.z"])
    for question in (
        query("ablation"), query(model=MODEL), query(model=MODEL.hash), query(model=MODEL.hash[:12]), query(model="SmolLM2-135M-Instruct"),
        query(task=IOI), query(task="ioi"), query(sites="L9.attn_out"), query("ablation", by="mean"), query("ablation", seed=0),
        query("ablation", model=MODEL, task=IOI, sites=["L*H*.z"], by="mean", seed=0),
    ):  # fmt: skip
        assert asks(question, asked) is None, question.text
        assert not asks(question, run(by="mean", seed=0), sites=()), "sites that are not known do not speak against it"  # fmt: skip


@pytest.mark.parametrize(
    ("question", "part", "said"),
    [
        (query("activation_patching"), "method", "asked about activation_patching, the run has ablation"),
        (query(model=OTHER), "model", "asked about gpt2 (ffff55b13d55), the run has smollm2-135m-instruct (085155b13d55)"),
        (query(model="ffff55b13d55"), "model", "asked about ffff55b13d55"),
        (query(model="gpt2"), "model", "asked about gpt2, the run has smollm2-135m-instruct"),
        (query(task=IOI_AGAIN), "task", "asked about ioi (aaaaaaaaaaaa), the run has ioi (38659b720db0)"),
        (query(task="capitals"), "task", "asked about capitals, the run has ioi"),
        (query("ablation", by="zero"), "by", "asked about 'zero', the run has 'mean'"),
        (query("ablation", alpha=0.05), "alpha", "no such parameter"),
        (query("ablation", reference=64.0), "reference", "asked about 64.0, the run has 64"),
        (query("ablation", seed=1), "seed", "asked about 1, the run has 0"),
        (query(sites="L9H5.z"), "sites", "asked about L9H5.z, the run has L9H6.z"),
    ],
)  # fmt: skip
def test_the_first_thing_that_differs_is_said(question: Question, part: str, said: str) -> None:
    answer = asks(question, run(by="mean", reference=64))
    assert answer is not None and answer.part == part and said in str(answer)


def test_data_of_a_technique_is_its_task() -> None:
    asked = make_query("probe", "1", {"model": MODEL, "data": CAPITALS, "kinds": ("mean",), "seed": 0})
    assert asked.data == CAPITALS.hash
    assert asks(query("probe", task=CAPITALS, kinds=["mean"]), asked, task=CAPITALS) is None
    assert asks(query("probe", task=IOI), asked, task=CAPITALS).part == "task"
    assert asks(query(task="web"), asked, task=Named("dd" * 16, "web/held_out")) is None
    assert asks(query(task="web"), asked, task=Named("dd" * 16, "website")).part == "task"


_text = st.text(min_size=0, max_size=6)
_values = st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False), _text, st.lists(st.integers(), max_size=3))  # fmt: skip
_questions = st.builds(
    Question,
    method=_text,
    model=_text,
    model_name=_text,
    task=_text,
    family=st.text(min_size=1, max_size=6),
    sites=st.lists(st.sampled_from(["L9H6.z", "L*.resid_pre@-1", "L5H3.z->L9KV2.k", "logits"]), max_size=3),
    parameters=st.dictionaries(_text, _values, max_size=3),
    seed=st.one_of(st.none(), st.integers(0)),
)


@settings(max_examples=80, deadline=None)
@given(_questions)
def test_a_question_reads_back_and_matches_what_it_did(question: Question) -> None:
    again = Question.from_json(loads(dumps(question.as_json())))
    assert again == question and again.text == question.text and again.parts == question.parts
    plain = Question.from_json(json.loads(json.dumps(question.as_json())))
    assert plain == question or any(v != v or v in (float("inf"), -float("inf")) for v in question.parameters.values() if isinstance(v, float))  # fmt: skip


def test_the_text_says_all_that_was_asked() -> None:
    made = query("ablation", model=MODEL, task=IOI, sites=["L9H6.z", "L8H6.z", "L7H6.z", "L6H6.z"], by="mean", seed=3)  # fmt: skip
    assert made.text == "ablation on smollm2-135m-instruct with ioi (38659b720db0) at L9H6.z, L8H6.z, L7H6.z and 1 more, by='mean', seed=3"  # fmt: skip
    assert query(task="ioi").text == "any technique with ioi"


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: query(), LabError, "no method, model, task or sites"),
        (lambda: query(by="mean"), LabError, "no method, model, task or sites"),
        (lambda: query("ablaton"), LabError, "'ablation'"),
        (lambda: query("ablation", bye="mean"), LabError, "did you mean 'by'"),
        (lambda: query("probe", data=CAPITALS), LabError, "say task="),
        (lambda: query("model_diff", a=MODEL), LabError, "say model="),
        (lambda: query("ablation", sites="L9H6.zz"), SiteError, "no point called"),
        (lambda: query("ablation", sites={"L9H6.z"}), LabError, "a list of addresses"),
        (lambda: query(model=3), LabError, "model is 'int'"),
        (lambda: query(model=" "), LabError, "names nothing"),
        (lambda: query(task=IOI.hash), LabError, "give the task itself"),
        (lambda: query(task=["a prompt"]), LabError, "no hash and name"),
        (lambda: query("ablation", seed="0"), LabError, "a seed is an integer"),
        (lambda: query("ablation", by=object), ResultError, "parameter 'by'"),
        (lambda: Question.from_json({"method": "x", "colour": 1}), LabError, "unknown fields: colour"),
        (lambda: Question.from_json(["ablation"]), LabError, "is none (list)"),
        (lambda: Question.from_json({"method": 3}), LabError, "method is 3"),
        (lambda: Question.from_json({"method": "x", "sites": "L9H6.z"}), LabError, "a list of addresses"),
        (lambda: Question.from_json({}), LabError, "no method, model"),
    ],
)
def test_mistakes_are_refused_when_the_question_is_asked(call, error, said) -> None:
    with pytest.raises(error) as caught:
        call()
    assert said.replace("\\", "") in str(caught.value)


def test_a_stored_question_may_name_a_technique_that_is_not_here() -> None:
    assert Question.from_json({"method": "of_a_plugin", "parameters": {"x": 1}}).method == "of_a_plugin"


def saw(question: Question, *, model=MODEL, family="ioi", sites=("L9H6.z",), model_name=MODEL.name) -> str:
    return seen(question, model=getattr(model, "hash", model), family=family, sites=sites, model_name=model_name)  # fmt: skip


def test_seen_leans_to_yes_whatever_the_method_and_seed() -> None:
    question = query("ablation", model=MODEL, task=IOI, sites="L9H6.z", by="mean", seed=7)
    assert saw(question) == "it saw ioi on smollm2-135m-instruct at L9H6"
    assert saw(question, sites=["L9.attn_out@-1"]) and saw(question, sites=["L9KV2.k"])
    assert "sites that are not known" in saw(question, sites=())
    assert "a task that is not known" in saw(question, family="")
    assert "a model that is not known" in saw(question, model="", model_name="")
    assert saw(question, model=OTHER.hash), "the same name with another hash: another dtype of it"
    assert saw(question, model_name="renamed"), "the same hash by another name"
    assert saw(question, model=OTHER.hash, model_name="") == "", "another model, by its hash"
    assert saw(question, sites=["L9H5.z"]) == saw(question, sites=["logits"]) == saw(question, family="capitals") == ""  # fmt: skip
    assert saw(question, model=OTHER.hash, model_name=OTHER.name) == ""


def test_seen_of_a_question_that_leaves_things_open() -> None:
    assert "about any site" in saw(query(task="ioi", model=MODEL), sites=["logits"])
    assert saw(query(sites="L9H6.z"), model=OTHER.hash, model_name="gpt2", family="capitals")
    assert saw(query(model="smollm2-135m-instruct", task="ioi"), model_name=""), "only its hash is known"
    assert saw(query(model=MODEL.hash[:12]), model_name="") and not saw(query(model="ab" * 8), model_name="")
    assert saw(query(task="web"), family="web/held_out") and saw(query(task="web/held_out"), family="web")
    assert not saw(query(task="web"), family="website") and not saw(query(task="website"), family="web")


@settings(max_examples=100, deadline=None)
@given(st.booleans(), st.booleans(), st.booleans(), st.sampled_from(["L9H6.z", "L9.attn_out", "L5.mlp_out"]))
def test_whoever_ran_it_has_seen_it(with_model: bool, with_task: bool, with_method: bool, site: str) -> None:
    question = query("ablation" if with_method else None, model=MODEL if with_model else None, task=IOI if with_task else None, sites=site)  # fmt: skip
    for sites in (["L9H6.z"], ["L*H*.z", "L*.mlp_out"], []):
        if asks(question, run(), sites=sites) is None:
            assert saw(question, sites=sites), "a run that answers a question has seen what it asks"


def test_parameters_read_from_source_are_those_of_the_technique() -> None:
    code = (
        "import sys, json; from microtome.lab.questions import query; from microtome.lab.signatures import parameters_of;"
        "from microtome.results import registry; query('ablation', by='mean', sites='L9H6.z');"
        "print(json.dumps({n: parameters_of(n) for n in registry.names('techniques')}));"
        "assert not {'torch', 'pandas', 'plotly', 'transformers'} & set(sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    read = json.loads(out)
    ours = {
        n
        for n in registry.names("techniques")
        if (registry.module_of("techniques", n) or "").startswith("microtome.")
    }
    assert set(read) == ours  # other tests' toys are in this process alone
    for name, found in read.items():
        assert found == list(inspect.signature(registry.get("techniques", name)).parameters) == list(parameters_of(name)), name  # fmt: skip
