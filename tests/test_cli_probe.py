"""`microtome probe`: one dataset gives a probe, several a matrix with a probe of each, and what was mistyped is said first."""

from __future__ import annotations

import json

import pytest

import cli_toys
import microtome as mt
import probed
from microtome.cli import inputs


@pytest.fixture
def toys(monkeypatch, tmp_path):
    """The planted model under any name, and two files about its words."""
    monkeypatch.setattr(inputs, "load", lambda *a, **k: probed.model())
    files = []
    for k, data in enumerate(probed.halves()):
        rows = [
            {"text": t, "label": data.classes[y], "entity": w}
            for t, y, w in zip(data.texts, data.labels, data.groups["word"], strict=True)
        ]
        files.append(tmp_path / f"words{k}.jsonl")
        files[-1].write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return files, tmp_path / "out"


def test_one_file_gives_a_probe_and_a_report(toys):
    files, out = toys
    done = cli_toys.run(
        "probe",
        str(files[0]),
        "-n",
        "140",
        "--kind",
        "mass_mean",
        "--site",
        "L2.resid_post@-1",
        "--out",
        str(out),
    )
    assert done.exit_code == 0, done.output
    assert (out / "report.html").exists()
    result = mt.open(out / "result")
    assert result.kind == "probe" and result.effects.coords["site"] == ("L2.resid_post",)


def test_two_files_give_a_matrix_with_a_probe_of_each(toys):
    files, out = toys
    done = cli_toys.run(
        "probe",
        *map(str, files),
        "-n",
        "140",
        "--kind",
        "mass_mean",
        "--site",
        "L2.resid_post@-1",
        "--out",
        str(out),
    )
    assert done.exit_code == 0, done.output
    result = mt.open(out / "result")
    assert result.kind == "generalisation" and [c.kind for c in result.children] == ["probe", "probe"]


def test_words_are_two(toys):
    files, out = toys
    done = cli_toys.run("probe", str(files[0]), "-n", "140", "--words", "good", "--out", str(out))
    assert done.exit_code != 0 and "NEGATIVE,POSITIVE" in done.output


def test_what_cannot_be_split_is_said_before_a_model_is_loaded(toys, monkeypatch, tmp_path):
    def never(*a, **k):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(inputs, "load", never)
    few = tmp_path / "few.csv"
    few.write_text("text,label,entity\n" + "".join(f"text {i},{'ab'[i % 2]},e{i % 2}\n" for i in range(40)), encoding="utf-8")  # fmt: skip
    done = cli_toys.run("probe", str(few), "--out", str(toys[1]))
    assert done.exit_code == 1 and "2 groups for a split in 3" in done.output and not toys[1].exists()
