"""What goes in and out of the agents' server: sizes, paths, characters; schemas made from signatures; jobs that stop."""

from __future__ import annotations

import inspect
import json
import math
import threading
from pathlib import Path

import numpy as np
import pytest

from microtome.agents.bounds import ARGUMENTS, TEXT, check_size, dump, fit, inside, plain
from microtome.agents.jobs import Job, Stopped, listen, stoppable, working
from microtome.agents.schemas import of_annotation, parameters_of, schema
from microtome.agents.settings import Settings, agent_name
from microtome.agents.tools import check
from microtome.errors import LabError
from microtome.lab.place import Place
from microtome.results import registry


@pytest.mark.parametrize("name", ["../out", "..", "sub/../../out", "/etc/passwd", "a\0b", "x" * 5000])
def test_paths_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    root = tmp_path / "project"
    root.mkdir()
    with pytest.raises(LabError, match="leads out of the project|is no path"):
        inside(root, name)


def test_links_are_followed_before_a_path_is_judged(tmp_path: Path) -> None:
    root, out = tmp_path / "project", tmp_path / "out"
    (root / "model").mkdir(parents=True)
    out.mkdir()
    (out / "weights").write_text("w")
    assert inside(root, "model") == (root / "model").resolve()
    (root / "model" / "weights").symlink_to(out / "weights")
    with pytest.raises(LabError, match="leads out"):  # the folder is inside, a file in it is not
        inside(root, "model", below=True)
    (root / "link").symlink_to(out)
    with pytest.raises(LabError, match="leads out"):
        inside(root, "link")
    (root / "round").symlink_to(root / "round")
    with pytest.raises(LabError, match="is no path|leads out"):
        inside(root, "round")


def test_large_and_deep_arguments_are_refused() -> None:
    check_size({"prompts": ["x" * 1000] * 100})
    with pytest.raises(LabError, match="at most 200,000"):
        check_size({"prompts": ["x" * ARGUMENTS]})
    deep: list[object] = []
    for _ in range(60):
        deep = [deep]
    with pytest.raises(LabError, match="nested more than 40"):
        check_size({"options": deep})


def test_values_become_json() -> None:
    given = {
        "a": np.float32(1 / 3),
        "b": [math.nan, math.inf, 1.0],
        "c": (1, True, None),
        "d": np.arange(3),
        4: Path("x"),
    }
    assert plain(given) == {
        "a": 0.333333,
        "b": [None, None, 1.0],
        "c": [1, True, None],
        "d": [0, 1, 2],
        "4": "x",
    }
    json.dumps(plain(given), allow_nan=False)
    assert plain({"blob": b"x" * 5000}) == {"blob": "(5,000 bytes)"}


def test_characters_that_a_screen_obeys_are_escaped() -> None:
    bad = "\x1b[2J\x9b31m\u202egpj\u200b\ud800 é\n"
    text = dump({"untrusted": bad})
    assert all(c.isprintable() for c in text) and "é" in text
    assert json.loads(text) == {"untrusted": bad}


def test_answers_are_cut_and_say_so() -> None:
    small = {"rows": list(range(10))}
    assert fit(small) is small
    large = {
        "verdict": "supported",
        "rows": [{"site": f"L{i}", "value": i} for i in range(5000)],
        "text": "y" * 100_000,
    }
    found = fit(large)
    assert len(dump(found)) <= TEXT
    assert found["verdict"] == "supported" and found["rows"][0] == {"site": "L0", "value": 0}
    assert found["truncated"]["rows"].endswith(" of 5000") and found["truncated"]["text"].endswith(
        " of 100000"
    )
    assert found["truncated"]["rows"].startswith(f"{len(found['rows'])} ")
    assert len(large["rows"]) == 5000
    assert len(dump(fit({f"k{i}": i for i in range(20_000)}))) <= TEXT


def test_annotations_become_schemas() -> None:
    here = "microtome.agents.schemas"
    assert of_annotation("int", here) == {"type": "integer"}
    assert of_annotation("float | None", here) == {"anyOf": [{"type": "number"}, {"type": "null"}]}
    assert of_annotation("Literal['a', 'b']", here) == {"enum": ["a", "b"]}
    assert of_annotation("str | Sequence[str]", here) == {
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]
    }
    assert of_annotation("tuple[int, ...]", here) == {"type": "array", "items": {"type": "integer"}}
    for left_out in (
        "Any",
        "Callable[[str], str]",
        "tuple[int, str]",
        "Mapping[str, Any]",
        "Tensor | None",
        "NoSuchName",
    ):
        assert of_annotation(left_out, here) is None, left_out


def test_every_technique_has_a_schema_that_its_defaults_fit() -> None:
    for name in registry.names("techniques"):
        signature = parameters_of(name)
        taken = inspect.signature(registry.get("techniques", name)).parameters
        assert {p.name for p in signature.parameters} | set(signature.left_out) == set(taken), name
        for p in signature.parameters:
            assert p.required == (taken[p.name].default is inspect.Parameter.empty) or p.name == "model", (
                name,
                p.name,
            )
            if "default" in p.schema:
                check(name, {"properties": {p.name: p.schema}}, {p.name: p.schema["default"]})


def test_an_agent_cannot_loosen_a_technique() -> None:
    for name in registry.names("techniques"):
        found = schema(parameters_of(name))["properties"]
        assert "none" not in found.get("controls", {}).get("enum", ()), name
        if "alpha" in found:
            default = inspect.signature(registry.get("techniques", name)).parameters["alpha"].default
            with pytest.raises(LabError, match="alpha does not fit"):
                check(name, {"properties": found}, {"alpha": default * 1.01})
    for name, parameter in (("head_roles", "ablate"), ("component_set", "nulls"), ("composition", "draws")):
        with pytest.raises(LabError, match=f"{parameter} does not fit"):
            check(name, {"properties": schema(parameters_of(name))["properties"]}, {parameter: 0})


def test_unknown_parameters_name_the_nearest() -> None:
    with pytest.raises(LabError, match="did you mean 'sites'"):
        check("ablation", schema(parameters_of("ablation")), {"site": "L1.z"})


def test_names_of_agents() -> None:
    settings = Settings(Place(Path()))
    assert agent_name(settings, "  Claude\x1b[31m\n ") == "Claude[31m"
    assert agent_name(settings, "") == agent_name(settings, "\n\t") == "agent"
    assert len(agent_name(settings, "x" * 500)) == 80
    assert agent_name(Settings(Place(Path()), name="Eve"), "Claude") == "Eve"
    with pytest.raises(LabError, match="printable"):
        Settings(Place(Path()), name="E\x1bve")
    with pytest.raises(LabError, match="few words"):
        Settings(Place(Path()), study=" ")


def test_a_job_stops_at_its_next_step_and_not_after_its_end() -> None:
    from microtome.results.events import observe, progress, running
    from microtome.results.query import Query

    job, heard = Job(), []
    query = Query(method="m", version="1")
    with observe(listen), observe(heard.append), pytest.raises(Stopped), working(job), running("m", query):
        progress(1, 3, "cells")
        assert (job.said, job.steps) == ("m: 1 of 3 cells", 1)
        job.stop()
        progress(2, 3, "cells")
        pytest.fail("it went on")
    assert [e.kind for e in heard] == ["begin", "progress", "interrupted"]
    assert "cancelled by the client" in heard[-1].error
    with observe(listen), running("m", query) as run:  # other threads and later calls are not stopped
        progress(1, 3)
        run.tell("end")


def test_a_job_that_waits_for_the_models_can_be_stopped() -> None:
    lock, job, seen = threading.Lock(), Job(), []
    lock.acquire()

    def wait() -> None:
        try:
            job.take(lock)
        except Stopped:
            seen.append("stopped")
        job.over()

    thread = threading.Thread(target=wait)
    thread.start()
    assert not job.wait(0.05)
    job.stop()
    assert job.wait(10) and seen == ["stopped"]
    thread.join()


def test_a_forward_between_two_events_stops_too_and_nothing_is_left() -> None:
    import torch
    from torch.nn.modules import module

    layer, job, calls = torch.nn.Linear(2, 2), Job(), []
    layer.register_forward_pre_hook(lambda m, a: calls.append(1))
    with working(job), stoppable():
        before = layer(torch.ones(2))
        job.stop()
        with pytest.raises(Stopped):
            layer(torch.ones(2))
    assert len(calls) == 1 and not module._global_forward_pre_hooks
    with stoppable():  # another thread's work, outside of any job
        assert torch.equal(layer(torch.ones(2)), before)
