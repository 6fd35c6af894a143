"""`microtome models` and `microtome tasks`, on tiny models and an empty cache."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import microtome
import tiny
from cli_toys import run
from microtome.cli.models import _ranges
from microtome.model import catalog


@pytest.fixture
def nothing_cached(monkeypatch, tmp_path):
    monkeypatch.setenv("MICROTOME_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def small(monkeypatch):
    model = microtome.load(tiny.model("llama"))
    monkeypatch.setattr(microtome, "load", lambda name, **options: model)
    return model


def test_models_list_names_the_embedded_one_and_says_what_it_is(nothing_cached):
    said = run("models", "list").stdout
    assert "smollm2-135m-instruct" in said and "dequantised from Q4_1" in said and "models pull" in said
    told = json.loads(run("models", "list", "--json").stdout)
    assert told[0]["present"] is False and "default" in told[0]["aliases"]


def test_models_pull_passes_the_name_and_shows_the_steps(monkeypatch):
    asked = []

    def pull(name, *, revision=None, progress=None):
        asked.append((name, revision))
        progress("downloading 92 MB")
        return catalog.Entry(name, (), catalog.EMBEDDED, True, 5_000_000, Path("/cache/x"), "a card")

    monkeypatch.setattr(catalog, "pull", pull)
    done = run("models", "pull", "default")
    assert asked == [("default", None)] and "downloading 92 MB" in done.stderr
    assert done.stdout == "default: 5 MB in /cache/x\na card\n"
    assert json.loads(run("models", "pull", "default", "--json").stdout)["size"] == 5_000_000


def test_models_check_prints_the_certificate_and_what_is_lacking(small):
    done = run("models", "check", "tiny")
    assert done.exit_code == 0 and "Certificate: passed" in done.stdout
    assert "pattern @ v" in done.stdout and "pos_embed" in done.stdout and "Noise floor" in done.stdout
    told = json.loads(run("models", "check", "tiny", "--json").stdout)
    assert told["passed"] is True and {c["name"] for c in told["checks"]} >= {"parity", "replay"}


def test_models_check_ends_with_1_where_a_check_fails(small):
    good = small.certificate()
    small._certificate = replace(good, checks=(replace(good.checks[0], passed=False), *good.checks[1:]))
    done = run("models", "check", "tiny")
    assert done.exit_code == 1 and "1 FAILED" in done.stdout
    assert run("models", "check", "tiny", "--json").exit_code == 1


@pytest.mark.parametrize(("name", "word"), [("", "No model was named"), (".", "local path")])
def test_what_cannot_be_pulled(name, word):
    done = run("models", "pull", name)
    assert done.exit_code == 1 and word in done.stderr


def test_ranges():
    assert _ranges((7, 0, 1, 2, 9, 10)) == "0-2, 7, 9-10" and _ranges(()) == ""


def test_tasks_list_has_every_registered_task():
    from microtome.tasks import names

    said = run("tasks", "list").stdout
    assert all(name in said for name in names())
    assert {row["name"] for row in json.loads(run("tasks", "list", "--json").stdout)} == set(names())


def test_tasks_show_of_a_file_shows_ids_positions_spans_and_answers(small, tmp_path):
    file = tmp_path / "ids.jsonl"
    rows = [
        {
            "clean": [5, 6, 7, 8],
            "corrupt": [5, 9, 7, 8],
            "answer": 11,
            "wrong": 12,
            "span:who": [1, 2],
            "template": "t",
        },
        {
            "clean": [5, 6, 7, 9],
            "corrupt": [5, 9, 7, 9],
            "answer": 13,
            "wrong": 12,
            "span:who": [1, 2],
            "template": "u",
        },
    ]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    done = run("tasks", "show", file, "-k", 1)
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any(line.split()[0] == "1" and "who" in line and "*" in line for line in lines if line.strip())
    assert any(line.startswith("answers: ") for line in lines) and "pair 1" not in done.stdout
    told = json.loads(run("tasks", "show", file, "--json").stdout)
    assert told["metric"] == "logit_diff" and told["pairs"][0]["clean"]["tokens"][1]["id"] == 6
    assert told["pairs"][0]["clean"]["tokens"][1]["spans"] == ["who"]


def test_bad_files_are_refused_in_words(small, tmp_path):
    for name, content in (
        ("a.csv", "clean,corrupt\nx,y\n"),
        ("b.csv", ""),
        ("c.jsonl", "{"),
        ("d.csv", b"\xff\xfe\x00"),
    ):
        file = tmp_path / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        done = run("tasks", "show", file)
        assert done.exit_code == 1 and "instead:" in done.stderr and done.stdout == "", name


def test_datasets_are_listed_and_one_is_described_with_what_the_linter_says(tmp_path):
    said = run("tasks", "datasets").stdout
    assert "neg_cities" in said and "past_tense" in said and "standard library" in said
    told = json.loads(run("tasks", "datasets", "--json").stdout)
    assert {d["name"] for d in told["labelled"]} >= {"cities", "likely"} and told["corpora"]
    assert {d["name"] for d in told["word_pairs"]} >= {"antonyms", "capitals"}
    said = run("tasks", "describe", "cities", "-n", "40").stdout
    assert "whether the city is in that country" in said and "checks against shuffled labels" in said
    file = tmp_path / "mine.csv"
    file.write_text(
        "text,label\n" + "".join(f"word{i} {'plus' if i % 2 else 'minus'},{i % 2}\n" for i in range(40))
    )
    told = json.loads(run("tasks", "describe", str(file), "--json").stdout)
    assert told["counts"] == {"0": 20, "1": 20} and {f["kind"] for f in told["findings"]} >= {
        "word",
        "groups",
    }
    done = run("tasks", "describe", "citties")
    assert done.exit_code == 1 and "did you mean" in done.stderr
