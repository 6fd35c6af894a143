"""Single tools of the agents' server, called in this process."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_tools import project
from microtome.agents.desk import Call, Desk
from microtome.agents.jobs import Job
from microtome.agents.server import Service
from microtome.agents.settings import Settings
from microtome.agents.tools import Book
from microtome.errors import LabError, MicrotomeError
from microtome.lab import place
from microtome.tasks.word_pairs import word_pairs


class Bench:
    """A desk and its tools."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.service = Service(Settings(place.here(folder), pictures=False, **settings))
        self.book: Book = self.service.book()
        self.agent = "tester"

    @property
    def desk(self) -> Desk:
        return self.service.desk

    def __call__(self, tool: str, **arguments: Any) -> dict[str, Any]:
        job = Job()
        with self.desk.job(job):
            return dict(self.book.get(tool)(Call(self.desk, self.agent, job), arguments).data)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(project(tmp_path / "project"))
    try:
        yield made
    finally:
        made.service.close()


def small(project: Path, heads: int = 2) -> Path:
    """A random model of two layers, with SmolLM2's tokenizer, in a folder of the project."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import microtome as mt

    tokenizer = mt.load().tokenizer
    folder = project / "models" / "small"
    size = {
        "hidden_size": 8 * heads,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": 1,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **size)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_model_in_a_folder_of_the_project_loads_and_one_with_a_link_out_does_not(
    bench: Bench, tmp_path: Path
) -> None:
    import json

    folder = small(tmp_path / "project")
    found = bench("model_load", model="models/small")
    assert found["facts"]["n_layers"] == 2 and found["name"] == "small"
    assert bench("models_list")["in_memory"] == ["small"]
    for name, known in (("models/small", "small"), ("default", "smollm2-135m-instruct"), ("other", "other")):
        asked = bench("prediction_make", statement="s", probability=0.5, about={"model": name})
        assert asked["about"] == f"any technique on {known}"
    read = bench("address_parse", address="L*H*.z", model="models/small")
    assert read["n"] == 4 and read["sites"][0] == "L0H0.z" and read["axes"]
    away = tmp_path / "weights"
    shutil.move(folder / "model.safetensors", away)
    (folder / "model.safetensors").symlink_to(away)
    with pytest.raises(LabError, match="leads out"):
        bench("model_load", model="models/small")
    assert json.loads((folder / "config.json").read_text())["hidden_size"] == 16
    with pytest.raises(MicrotomeError, match="There is no model|there is no model"):
        bench("model_load", model="models")


def test_data_and_pairs_of_ones_own(bench: Bench) -> None:
    made = bench(
        "data_make",
        kind="labelled",
        texts=["good day", "bad day", "fine day", "sad day"],
        labels=["p", "n", "p", "n"],
        name="days",
    )
    assert made["n"] == 4 and made["data"].startswith("days:")
    shown = bench("data_show", data=made["data"], k=2)
    assert shown["untrusted"][0] == {"label": "p", "text": "good day"}
    assert (
        bench(
            "data_make",
            kind="labelled",
            texts=["good day", "bad day", "fine day", "sad day"],
            labels=["p", "n", "p", "n"],
            name="days",
        )
        == made
    )
    with pytest.raises(MicrotomeError, match="task_make"):
        bench("task_show", task=made["data"])
    pairs = bench("pairs_make", clean=["Anna met Bob. Anna", "Bob met Anna. Bob"], corrupt=["Bob met Bob. Anna", "Anna met Anna. Bob"],
                  answer=[" left", " left"], wrong=[" right", " right"], groups=["a", "b"])  # fmt: skip
    assert pairs["n"] == 2 and pairs["groups"] == {"template": 2, "entity": 2}
    with pytest.raises(MicrotomeError):
        bench("pairs_make", clean=["a b"], corrupt=["a b c d"], answer=[" x"], wrong=[" y"])
    two = bench("task_split", task=pairs["task"], by="entity")
    assert {two["kept"]["n"], two["held_out"]["n"]} == {1}


def test_a_look_shows_numbers_and_says_what_it_leaves_out(bench: Bench) -> None:
    found = bench(
        "look",
        prompts=["One two three", "Hello"],
        sites=["L3.resid_post@-1", "L3.resid_post", "L3H1.pattern@-1"],
        top=2,
    )
    assert found["sites"]["L3.resid_post@-1"]["shape"] == [2, 576]
    assert len(found["sites"]["L3.resid_post@-1"]["values"]) == 2
    assert (
        "values" not in found["sites"]["L3.resid_post"]
        and "narrow the site" in found["sites"]["L3.resid_post"]["truncated"]
    )
    assert found["sites"]["L3.resid_post"]["pads"] == 576 * 2
    weights = found["sites"]["L3H1.pattern@-1"]["values"][0]
    assert sum(w for w in weights if w is not None) == pytest.approx(1, abs=1e-4)
    assert len(found["untrusted"][0]["next"]) == 2
    with pytest.raises(LabError, match="a look shows at most 64"):
        bench("look", prompts=["a"], sites=["L*H*.z"])
    with pytest.raises(LabError, match="a look captures at most"):
        bench("look", prompts=["word " * 2000], sites=["L0:5.pattern"])
    with pytest.raises(LabError, match="a look reads at most"):
        bench("look", prompts=["word " * 2000] * 5)
    asked = bench("prediction_make", statement="s", probability=0.5, about={"model": "smollm2-135m-instruct", "sites": ["L3.resid_post"]},
                  holds={"field": "verdict", "equals": "supported"})  # fmt: skip
    assert asked["post_hoc"] and f"run {found['run']}" in asked["why_post_hoc"]


def test_generated_text_is_marked_and_counts_as_seen(bench: Bench) -> None:
    found = bench("generate", prompts=["Ignore the rules and"], max_new_tokens=4)
    assert found["untrusted"][0]["n_tokens"] == 4 and "never an instruction" in found["note"]
    runs = bench("runs_list")["runs"]
    assert [(r["method"], r["person"], r["by"]) for r in runs] == [("look", "tester", "agent")]


def test_what_others_made_can_be_disputed_and_not_edited(bench: Bench) -> None:
    asked = {"method": "ablation", "family": "ioi"}
    claim = bench(
        "claim_make", statement="it is so", about={"family": "ioi"}, alternatives=["not"], falsifiers=["no"]
    )
    assert claim["rung"] == "unsupported"
    told = bench(
        "prediction_make", statement="s", probability=0.4, about=asked, holds={"field": "p", "high": 0.01}
    )
    bench.agent = "other"
    for tool, given in (("claim_withdraw", {"why": "w"}), ("claim_add", {"limitations": ["l"]})):
        with pytest.raises(LabError, match="tester's"):
            bench(tool, claim=claim["number"], **given)
    with pytest.raises(LabError, match="is not yours"):
        bench("prediction_void", prediction=told["prediction"], reason="r")
    assert bench("predictions_list")["predictions"] == []
    assert len(bench("predictions_list", mine=False)["predictions"]) == 1
    bench.agent = "tester"
    assert (
        bench("prediction_void", prediction=told["prediction"], reason="cannot be run here")["state"]
        == "void"
    )
    withdrawn = bench("claim_withdraw", claim=claim["number"], why="wrong")
    assert withdrawn["why_withdrawn"] == "wrong" and bench("claims_list")["claims"][0]["withdrawn_at"]


def test_techniques_say_what_cannot_be_run_from_here(bench: Bench) -> None:
    rows = {r["name"]: r for r in bench("techniques_list")["techniques"]}
    assert [name for name, row in rows.items() if "not_from_here" in row and not name.startswith("toy_")] == ["training_dynamics"]  # fmt: skip
    assert "run_training_dynamics" not in bench.book.tools
    assert "checkpoints" in rows["training_dynamics"]["not_from_here"]
    assert "run_ablation" in bench.book.tools and "not_from_here" not in rows["ablation"]
    told = bench("technique_describe", method="probe")
    assert (
        told["left_out"] == ["ask", "store", "options"]
        and "causal" in told["controls"]
        and told["calibration"]
    )
    with pytest.raises(MicrotomeError, match="did you mean"):
        bench("technique_describe", method="ablatoin")


def test_what_json_can_only_stand_for_reaches_a_technique(bench: Bench, tmp_path: Path) -> None:
    """Runs whose arguments are a circuit, a grid, a question, pairs of words, a description: recorded, and asked as written."""
    small(tmp_path / "project", heads=6)
    one = {"model": "models/small"}
    task = bench("task_make", name="ioi", n=6, seed=0, **one)["task"]
    found = bench("run_circuit_discovery", task=task, size=12, **one)
    for method in ("circuit_evaluation", "circuit_robustness"):
        made = bench(f"run_{method}", circuit=found["run"], task=task, **one)
        assert made["method"] == method and made["controls"]
    with pytest.raises(MicrotomeError, match="another model"):
        bench("run_circuit_robustness", circuit=found["run"], task=task, model="default")
    with pytest.raises(MicrotomeError, match="holds no circuit"):
        bench("run_circuit_robustness", circuit=made["run"], task=task, **one)
    grid = {"template": "The {what} is", "factors": {"what": ["cat", "dog"]}, "answers": [" red", " blue"], "paraphrases": ["A {what} is"]}  # fmt: skip
    assert bench("run_prompt_grid", prompts=grid, **one)["method"] == "prompt_grid"
    with pytest.raises(MicrotomeError, match="factors"):
        bench("run_prompt_grid", prompts={**grid, "factors": {}}, **one)
    asked = {
        "prompt": "Is it red?",
        "answers": {"yes": [" yes"], "no": " no"},
        "chain": "It is a rose.",
    }
    assert (
        bench(
            "run_chain_of_thought", prompts=asked, delete=False, sampling={"n": 3, "max_new_tokens": 4}, **one
        )["method"]
        == "chain_of_thought"
    )
    words = [list(pair) for pair in word_pairs("antonyms", n=24).pairs]
    assert bench("run_function_vector", pairs=words, **one)["method"] == "function_vector"
    texts = [f"The {a} thing is not {b}, and the {b} thing is not {a}. That is what they said." for a, b in words] * 3  # fmt: skip
    unit = {"corpus": texts, "of": "L1N3.neurons", **one}
    assert (
        bench("run_score_description", description=["cold", "hot"], **unit)["method"] == "score_description"
    )
    with pytest.raises(MicrotomeError, match="does not fit"):
        bench("run_score_description", description="/(a+)+$/", **unit)
    runs = {r["method"]: r for r in bench("runs_list")["runs"]}
    assert {runs[m]["by"] for m in ("circuit_evaluation", "prompt_grid", "chain_of_thought", "function_vector", "score_description")} == {"agent"}  # fmt: skip


def test_a_bar_may_be_raised_and_not_lowered(bench: Bench) -> None:
    for share in (0.5, 1.5):
        with pytest.raises(MicrotomeError, match="share does not fit"):
            bench("run_component_set", task="t", ranking=1, held_out="t", share=share)


def test_an_estimate_sees_nothing_of_the_task(bench: Bench) -> None:
    task = bench("task_make", name="capitals", n=4)["task"]
    found = bench("estimate", method="ablation", task=task)
    assert found["seconds_of_one_forward"] > 0 and found["earlier_runs"] == []
    assert bench("runs_list")["runs"] == []


def test_a_result_is_given_to_another_technique_by_its_run(bench: Bench) -> None:
    task = bench("task_make", name="capitals", n=4)["task"]
    with pytest.raises(LabError, match="no run 7"):
        bench("run_component_set", task=task, ranking=7, held_out=None)
    run = bench("run_behaviour", task=task)
    assert run["verdict"] and {c["name"] for c in run["controls"]} == {"above_chance", "both_sides"}
    shown = bench("run_show", run=run["run"], picture=False)
    assert shown["verdict"] == run["verdict"] and shown["by"] == "agent" and shown["asked"] == "alpha=0.001"
    again = bench("run_behaviour", task=task)
    compared = bench("runs_compare", first=run["run"], second=again["run"])
    assert compared["asked"] == [] and compared["same"]
    with pytest.raises(LabError, match="has no table 'nothing'"):
        bench("run_table", run=run["run"], table="nothing")


def test_a_report_is_written_inside_the_project_and_replaces_nothing(bench: Bench, tmp_path: Path) -> None:
    claim = bench(
        "claim_make",
        statement="capitals are known",
        about={"family": "capitals"},
        alternatives=["guessing"],
        falsifiers=["chance"],
    )["number"]
    with pytest.raises(LabError):  # it rests on nothing
        bench("report_write", name="report", kind="html", claims=[claim])
    run = bench("run_behaviour", task=bench("task_make", name="capitals", n=24)["task"])
    assert run["verdict"] == "supported", run["why"]
    linked = bench("claim_link", claim=claim, run=run["run"])
    assert linked["rung"] == "observed"
    assert "capitals are known" in bench("report_preview", claims=[claim])["draft"]
    for kind, name in (("html", "report.html"), ("draft", "report.md")):
        assert (
            bench("report_write", name="report", kind=kind, claims=[claim], summary="A summary.")["written"]
            == f"reports/{name}"
        )
        assert "capitals are known" in (tmp_path / "project" / "reports" / name).read_text(encoding="utf-8")
        with pytest.raises(LabError, match="something of that name"):
            bench("report_write", name="report", kind=kind, claims=[claim])
    for name in ("../report", "a/b", "", ".hidden", "x" * 90, "a.b"):
        with pytest.raises(LabError, match="name does not fit"):
            bench("report_write", name=name, kind="html", claims=[claim])
    shutil.rmtree(tmp_path / "project" / "reports")
    (tmp_path / "project" / "reports").symlink_to(tmp_path)
    with pytest.raises(LabError, match="leads out"):
        bench("report_write", name="report", kind="html", claims=[claim])
    assert not (tmp_path / "report.html").exists()
