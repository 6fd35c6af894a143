"""The archive: it runs again elsewhere, says where it differs, names nothing of this machine; and bad ones are refused unwritten."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import struct
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from sqlalchemy import update
from typer.testing import CliRunner

import microtome
import toy_record as toy
from microtome import methods, zoo
from microtome.cli import lab_report
from microtome.errors import LabError
from microtome.lab import place, schema
from microtome.lab.equality import compared
from microtome.lab.reading import Record
from microtome.lab.study import study
from microtome.lab.writing import Words, collect, pack, reproduce, unpacking
from microtome.lab.writing.unpacking import inspect, unpack

WORDS = Words("A planted direction", ("Ada",), "It is planted.")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A record with two runs of a model that anybody can build, one claim on both."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MICROTOME_LAB_URL", raising=False)
        patch.setenv("MICROTOME_PERSON", "ada")
        folder = tmp_path_factory.mktemp("lab")
        place.init(folder)
        built = zoo.build("induction_heads", n=24)
        with study("planted", folder=folder) as s:
            first = methods.logit_lens(built.model, built.task, seed=0)
            second = methods.direct_logit_attribution(built.model, built.task, seed=0)
            s.claim("the answer is written late", evidence=[first, second], **toy.WORDS)
        record = Record(s.place)
        yield record
        record.close()


@pytest.fixture(scope="module")
def made(lab, tmp_path_factory):
    return pack(collect(lab, [1], WORDS), lab, tmp_path_factory.mktemp("made") / "a.zip")


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewritten(path, to, change, *, sealed=True):
    """The archive with other members; sealed: the manifest is made to fit."""
    found = members(path)
    manifest = json.loads(found.pop("manifest.json"))
    change(found, manifest)
    if sealed:
        manifest["files"] = {n: {"blake2b": hashlib.blake2b(c, digest_size=32).hexdigest(), "bytes": len(c)} for n, c in found.items()}  # fmt: skip
    with zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {**found, "manifest.json": json.dumps(manifest).encode()}.items():
            archive.writestr(name, content)
    return to


# ------------------------------------------------------------------------------------------------ what it holds


def test_it_holds_what_a_stranger_needs_and_nothing_of_this_machine(lab, made):
    found = members(made)
    assert {"README.txt", "manifest.json", "write-up.html", "claims.json", "predictions.json", "controls.json", "environment.json",
            "constraints.txt", "arguments/1.json", "arguments/2.json", "results/1/result.json"} <= set(found)  # fmt: skip
    whole = b"".join(v for k, v in found.items() if k.endswith((".json", ".txt", ".html", ".md")))
    for name in (
        str(lab.place.folder),
        str(Path.home()) + "/",
        os.uname().nodename if len(os.uname().nodename) > 4 else "\0",
    ):
        assert name.encode() not in whole
    assert b"microtome lab reproduce" in found["README.txt"] and b"2 of 2 runs" in found["README.txt"]
    (claim,) = json.loads(found["claims.json"])
    assert (
        claim["rung"] == collect(lab, [1]).claims[0].rung and "torch==" in found["constraints.txt"].decode()
    )
    assert json.loads(found["controls.json"])["1"][0]["name"]


def test_the_same_record_gives_the_same_bytes(lab, made, tmp_path):
    assert pack(collect(lab, [1], WORDS), lab, tmp_path / "b.zip").read_bytes() == made.read_bytes()


def test_its_results_open_by_themselves(made, tmp_path, lab):
    unpack(made, tmp_path)
    assert microtome.open(tmp_path / "results" / "1") == lab.result(1)


# ------------------------------------------------------------------------------------------------- it runs again


def test_it_runs_again_in_an_empty_home_by_one_command(made, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    kept = {"PYTHONPATH": str(Path(microtome.__file__).parents[1])} | {
        k: v for k, v in os.environ.items() if k in ("PATH", "LANG", "SYSTEMROOT", "OMP_NUM_THREADS")
    }
    code = "import sys, typer; from microtome.cli.lab_report import reproduce; a = typer.Typer(); a.command()(reproduce); a(sys.argv[1:])"
    command = [sys.executable, "-c", code, str(made), "--json"]
    done = subprocess.run(command, cwd=home, env={**kept, "HOME": str(home), "TMPDIR": str(tmp_path)}, capture_output=True, text=True, timeout=300, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["good"] and [(r["run"], r["outcome"]) for r in told["runs"]] == [(1, "equal"), (2, "equal")]
    assert not (home / ".microtome").exists()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("microtome-archive-")]


def test_only_what_is_asked_for_runs(made):
    found = reproduce(made, only=[2])
    assert [(r.run, r.method, r.outcome) for r in found.runs] == [(2, "direct_logit_attribution", "equal")]
    with pytest.raises(LabError, match="the archive has no run 9"):
        reproduce(made, only=[9])


def _other_numbers(found, manifest, factor=1.5):
    """A stored result with other effects, well-formed and sealed."""
    from microtome.results import pieces

    get = lambda name: found[f"results/1/{name}"]  # noqa: E731
    result = pieces.read(get, "x")
    effects = replace(result.effects, values=(result.effects.values * np.float32(factor)))
    tables = {k: v for k, v in result.tables.items() if k != "cells"}
    for name in [n for n in found if n.startswith("results/1/")]:
        del found[name]

    def put(name, content):
        found[f"results/1/{name}"] = content
        return pieces.piece_digest(content)

    pieces.write(replace(result, effects=effects, tables={**tables, "cells": result.tables["cells"]}), put)


def test_a_result_that_differs_is_told_and_the_command_fails(made, tmp_path):
    path = rewritten(made, tmp_path / "b.zip", _other_numbers)
    found = reproduce(path, only=[1])
    (run,) = found.runs
    assert run.outcome == "differs" and "effects differs by 0.33" in run.said and not found.good
    assert "is not what it was" not in run.said
    older = rewritten(path, tmp_path / "c.zip", lambda f, m: m["runs"][0].update(code="00"))
    assert "the code of logit_lens is not what it was" in reproduce(older, only=[1]).runs[0].said
    app = typer.Typer()
    app.command()(lab_report.reproduce)
    done = CliRunner().invoke(app, [str(path), "--only", "1"])
    assert done.exit_code == 1 and "not reproduced" in done.output


def test_a_difference_within_the_tolerance_is_no_failure(made, tmp_path):
    path = rewritten(made, tmp_path / "b.zip", lambda f, m: _other_numbers(f, m, 1 + 1e-5))
    found = reproduce(path, only=[1])
    assert found.runs[0].outcome == "within tolerance" and 0 < found.runs[0].largest < 1e-4 and found.good
    assert not reproduce(path, only=[1], tolerance=1e-7).good
    with pytest.raises(LabError, match="the tolerance is 2"):
        reproduce(path, tolerance=2)


def test_other_verdicts_and_controls_are_no_agreement():
    import toy_results

    one = toy_results.patching(layers=2)
    flipped = toy_results.judged(
        (*one.controls[:1], replace(one.controls[1], passed=False), *one.controls[2:])
    )
    found = compared(one, replace(one, **flipped))
    assert not found.within and "the verdict is supported in one and not distinguishable" in found.said
    cautious = toy_results.judged(
        (*one.controls[:2], replace(one.controls[2], passed=True), *one.controls[3:])
    )
    assert (
        "the control irrelevant failed in one and passed in the other"
        in compared(one, replace(one, **cautious)).said
    )
    assert compared(one, one).same


# ------------------------------------------------------------------------------------------- what is not packed


def test_a_run_that_cannot_be_run_elsewhere_is_in_it_with_the_reason(lab, tmp_path):
    with lab.database.writing() as connection:
        connection.execute(
            update(schema.run).where(schema.run.c.number == 2).values(not_again="model: held in memory")
        )
    try:
        path = pack(collect(lab, [1], WORDS), lab, tmp_path / "c.zip")
        found = reproduce(path)
        assert [(r.run, r.outcome) for r in found.runs] == [
            (1, "equal"),
            (2, "not in the archive"),
        ] and found.good
        assert (
            "Run 2 (direct_logit_attribution) cannot be: model: held in memory."
            in members(path)["README.txt"].decode()
        )
        with lab.database.writing() as connection:
            connection.execute(update(schema.run).values(not_again="model: held in memory"))
        with pytest.raises(LabError, match="no run of this write-up can be reproduced"):
            pack(collect(lab, [1], WORDS), lab, tmp_path / "d.zip")
    finally:
        with lab.database.writing() as connection:
            connection.execute(update(schema.run).values(not_again=""))


def test_an_archive_of_which_nothing_runs_is_not_reproduced(made, tmp_path):
    def forget(found, manifest):
        for run in manifest["runs"]:
            run.update(arguments="", not_again="held in memory")

    found = reproduce(rewritten(made, tmp_path / "b.zip", forget))
    assert [r.outcome for r in found.runs] == ["not in the archive"] * 2 and not found.good


def test_what_arguments_name_is_followed_and_what_is_local_keeps_them_out(lab, tmp_path):
    def put(data):
        return lab.files.put(json.dumps(data).encode(), ".json")

    inner = put({"$": "float", "value": "nan"})
    outer = put({"deep": [{"$": "file", "key": inner}]})
    local = put({"$": "path", "text": "/srv/mine.txt"})
    before = {row.number: row.arguments for row in lab.runs()}
    try:
        _arguments_are(
            lab, {1: put({"a": {"$": "file", "key": outer}}), 2: put({"a": {"$": "file", "key": local}})}
        )
        path = pack(collect(lab, [1], WORDS), lab, tmp_path / "a.zip")
        found = members(path)
        assert {f"files/{inner}", f"files/{outer}", "arguments/1.json"} <= set(found)
        assert f"files/{local}" not in found and "arguments/2.json" not in found
        assert (
            b"Run 2 (direct_logit_attribution) cannot be: it was given the path mine.txt."
            in found["README.txt"]
        )
    finally:
        _arguments_are(lab, before)


def _arguments_are(lab, keys):
    with lab.database.writing() as connection:
        for number, key in keys.items():
            connection.execute(update(schema.run).where(schema.run.c.number == number).values(arguments=key))


@pytest.mark.parametrize(
    ("data", "local"),
    [
        ({"$": "path", "text": "/srv/x.txt"}, True),
        ({"$": "store", "folder": "/tmp/x", "manifest": "0"}, True),
        ({"$": "model", "recipe": {"kind": "folder", "name": "models/x"}}, True),
        ({"$": "model", "recipe": {"kind": "gguf", "name": "x.gguf"}}, True),
        ({"$": "model", "recipe": {"kind": "hub", "name": "../x"}}, True),
        ({"asked": {"source": "/data/text"}, "parts": []}, True),
        ({"asked": {"source": "hf:/data/text"}, "parts": []}, True),
        ({"asked": {"source": "hf:somebody/text"}, "parts": []}, False),
        ({"asked": {"source": ["a text", "/ another"]}, "parts": []}, False),
        ({"$": "model", "recipe": {"kind": "embedded", "name": "smollm2-135m-instruct"}}, False),
        ({"a": [{"b": {"$": "path", "text": "x"}}]}, True),
    ],
)  # fmt: skip
def test_what_is_read_from_the_machine_is_found(data, local):
    from microtome.lab.writing.foreign import local_paths

    assert bool(list(local_paths(data))) is local


@pytest.mark.parametrize("secret", ["sk-" + "a1B2" * 8, "hf_" + "x" * 30, "-----BEGIN RSA PRIVATE KEY-----"])
def test_a_key_in_the_words_is_refused_and_not_shown(lab, tmp_path, secret):
    with pytest.raises(LabError, match="holds what looks like a key") as caught:
        pack(collect(lab, [1], replace(WORDS, verified=f"with {secret} it works")), lab, tmp_path / "a.zip")
    assert secret not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_a_key_of_the_environment_and_a_path_of_the_machine_are_refused(lab, tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "correct horse battery")
    with pytest.raises(LabError, match="looks like a key"):
        pack(collect(lab, [1], replace(WORDS, limitations="correct horse battery")), lab, tmp_path / "a.zip")
    with pytest.raises(LabError, match="names the project's folder of this machine"):
        pack(
            collect(lab, [1], replace(WORDS, limitations=f"see {lab.place.folder}/x")),
            lab,
            tmp_path / "a.zip",
        )


# ------------------------------------------------------------------------------------------------ what is refused


def refused(path, tmp_path, said):
    folder = tmp_path / "out"
    folder.mkdir()
    before = sorted(p.as_posix() for p in tmp_path.rglob("*"))
    with pytest.raises(LabError, match=said):
        unpack(path, folder)
    assert sorted(p.as_posix() for p in tmp_path.rglob("*")) == before
    with pytest.raises(LabError):
        inspect(path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../evil.txt", "leads out of the folder"),
        ("files/../../evil.json", "leads out of the folder"),
        ("/etc/evil.txt", "is an absolute path"),
        ("C:/evil.txt", "is an absolute path"),
        ("files\\..\\evil.json", "has a backslash"),
        ("files/.hidden.json", "is no name"),
        ("files/con.json", "is no name"),
        ("files//evil.json", "is no name"),
        ("files/", "is a link, folder or device"),
        ("elsewhere/evil.json", "is no file that an archive"),
        ("files/evil.py", "is of a kind"),
        ("files/evil.pkl", "is of a kind"),
        ("files/evil\x1b[31m.json", "is no name"),
    ],
)
def test_names_that_lead_elsewhere_are_refused(made, tmp_path, name, said):
    path = rewritten(made, tmp_path / "b.zip", lambda found, manifest: found.update({name: b"x"}))
    refused(path, tmp_path, said)


def _with(made, to, *entries):
    """The archive with raw entries more: (ZipInfo, content)."""
    to.write_bytes(made.read_bytes())
    with zipfile.ZipFile(to, "a") as archive:
        for info, content in entries:
            archive.writestr(info, content)
    return to


def test_links_duplicates_and_strangers_are_refused(made, tmp_path):
    link = zipfile.ZipInfo("files/link.json")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    refused(_with(made, tmp_path / "link.zip", (link, "/etc/passwd")), tmp_path, "is a link")
    (tmp_path / "out").rmdir()
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = _with(made, tmp_path / "twice.zip", (zipfile.ZipInfo("README.txt"), "other"))
    refused(path, tmp_path, "is in it twice")
    (tmp_path / "out").rmdir()
    path = _with(
        made,
        tmp_path / "case.zip",
        (zipfile.ZipInfo("files/A.json"), "1"),
        (zipfile.ZipInfo("files/a.json"), "2"),
    )
    refused(path, tmp_path, "is in it twice")
    (tmp_path / "out").rmdir()
    refused(
        _with(made, tmp_path / "more.zip", (zipfile.ZipInfo("files/a.json"), "1")),
        tmp_path,
        "not in its manifest",
    )


def test_a_changed_or_missing_file_is_refused(made, tmp_path):
    path = rewritten(
        made,
        tmp_path / "b.zip",
        lambda f, m: f.update({"claims.json": f["claims.json"].replace(b"late", b"soon")}),
        sealed=False,
    )
    refused(path, tmp_path, "claims.json is not what it was")
    (tmp_path / "out").rmdir()
    path = rewritten(made, tmp_path / "c.zip", lambda f, m: f.pop("claims.json"), sealed=False)
    refused(path, tmp_path, "'claims.json' is missing")


def test_bombs_are_refused_by_what_they_say_and_by_what_they_hold(made, tmp_path, monkeypatch):
    path = rewritten(made, tmp_path / "b.zip", lambda f, m: f.update({"files/a.json": bytes(3_000_000)}))
    inspect(path)
    monkeypatch.setattr(unpacking, "LARGEST", 2_000_000)
    refused(path, tmp_path, "unpacks to more than")
    (tmp_path / "out").rmdir()
    monkeypatch.undo()
    # one that says it is small and is not: the sizes in its directory are overwritten
    content = bytearray(path.read_bytes())
    at = content.rindex(b"files/a.json") - 46
    assert content[at : at + 4] == b"PK\x01\x02"
    struct.pack_into("<I", content, at + 24, 10)
    (tmp_path / "liar.zip").write_bytes(content)
    refused(
        tmp_path / "liar.zip",
        tmp_path,
        "has 10 bytes, its manifest says 3000000|larger than it says|cannot be read",
    )
    monkeypatch.setattr(unpacking, "MOST_FILES", 3)
    (tmp_path / "out").rmdir()
    refused(path, tmp_path, "are read at most")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.update(format="other"), "is not one of Microtome"),
        (lambda m: m.update(schema_version=99), "has schema version 99"),
        (lambda m: m.update(schema_version=True), "its schema version is True"),
        (lambda m: m.update(runs=None), "lists no runs"),
        (lambda m: m["runs"][0].pop("method"), "lacks a part"),
        (lambda m: m["runs"][0].update(number="1"), "lacks a part"),
        (lambda m: m["runs"][0].update(result="results/9"), "the files of run 1 are not in it"),
        (lambda m: m["runs"][0].update(arguments="../x"), "the files of run 1 are not in it"),
        (lambda m: m["runs"].append(m["runs"][0]), "is in its manifest twice"),
    ],
)
def test_a_manifest_that_says_nonsense_is_refused(made, tmp_path, change, said):
    refused(rewritten(made, tmp_path / "b.zip", lambda found, manifest: change(manifest)), tmp_path, said)


def test_what_is_no_zip_is_refused(made, tmp_path):
    with pytest.raises(LabError, match="no archive at"):
        inspect(tmp_path / "none.zip")
    for name, content in (("text.zip", b"text"), ("half.zip", made.read_bytes()[:-40]), ("empty.zip", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(LabError, match="is no archive that can be opened"):
            inspect(tmp_path / name)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("manifest.json", "[" * 100_000)
    (tmp_path / "deep.zip").write_bytes(stream.getvalue())
    with pytest.raises(LabError, match="its manifest is no JSON"):
        inspect(tmp_path / "deep.zip")


def _behind_a_file(found):
    found[f"files/{'ab' * 16}.json"] = b'{"$": "path", "text": "/etc/passwd"}'
    _arguments(found, arguments={"model": {"$": "file", "key": f"{'ab' * 16}.json"}}, order=["model"])


def _arguments(found, **change):
    data = json.loads(found["arguments/1.json"])
    data.update(change)
    found["arguments/1.json"] = json.dumps(data).encode()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f, m: _arguments(f, arguments={"model": {"$": "path", "text": "/etc/passwd"}}, order=["model"]), "the archive asks for the path passwd"),
        (lambda f, m: _arguments(f, arguments={"model": {"$": "function", "path": "os:system"}}, order=["model"]), "may name public values"),
        (lambda f, m: _arguments(f, arguments={"model": {"$": "file", "key": "../../etc/passwd"}}, order=["model"]), "keys are letters"),
        (lambda f, m: _arguments(f, arguments={"model": {"$": "file", "key": "ab/c.json"}}, order=["model"]), "is missing"),
        (lambda f, m: _behind_a_file(f), "the archive asks for the path passwd"),
        (lambda f, m: f.update({"arguments/1.json": b"no json"}), "no JSON"),
        (lambda f, m: m["runs"][0].update(query="00"), "answers another question"),
        (lambda f, m: m["runs"][0].update(method="os.system"), "answers another question"),
    ],
)  # fmt: skip
def test_arguments_that_reach_for_the_machine_fail_and_run_nothing(made, tmp_path, change, said):
    found = reproduce(rewritten(made, tmp_path / "b.zip", change), only=[1])
    assert found.runs[0].outcome == "failed" and said in found.runs[0].said and not found.good
