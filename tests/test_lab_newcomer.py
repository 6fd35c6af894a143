"""The way of a newcomer, as docs/lab.md has it, in an empty folder: from `lab init` to a report with one scored prediction
and one capped claim. The page's own commands run, in their order."""  # fmt: skip

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "lab.md"
STEP = re.compile(r"^## (\d)\. .*?(?=^## )", re.M | re.S)
FENCE = re.compile(r"^```(bash|python)\n(.*?)^```$", re.M | re.S)
SUMMARY = (
    "Patching head 3 of layer 23 at the last token moves the answer more than any other head of that layer."
)


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """What each command printed, by the command; and the folder."""
    folder = tmp_path_factory.mktemp("newcomer")
    env = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith("MICROTOME_") or k in ("MICROTOME_CACHE", "MICROTOME_MODEL_WHEEL")
    }
    env |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}", "MICROTOME_PERSON": "newcomer"}
    said: dict[str, str] = {}
    for step in STEP.finditer(PAGE.read_text(encoding="utf-8")):
        for kind, text in FENCE.findall(step[0]):
            if kind == "python":
                (folder / "patch.py").write_text(text, encoding="utf-8")
                continue
            for line in text.splitlines():
                done = subprocess.run(
                    ["bash", "-c", line], cwd=folder, env=env, capture_output=True, text=True, check=False
                )
                assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
                assert "Traceback" not in done.stderr, done.stderr
                said[line] = done.stdout
                if line.startswith("microtome report draft"):
                    write_summary(folder / "write-up.md")
    return folder, env, said


def write_summary(path: Path) -> None:
    """As a person does: into the place under the heading."""
    text = path.read_text(encoding="utf-8")
    mark = "<!-- yours summary -->\n"
    assert text.count(mark) == 1, text
    path.write_text(text.replace(mark, f"{mark}{SUMMARY}\n"), encoding="utf-8")


def ask(walked, *words):
    folder, env, _ = walked
    done = subprocess.run(
        ["microtome", *words, "--json"], cwd=folder, env=env, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_the_page_has_the_whole_way(walked):
    _, _, said = walked
    words = " ".join(said)
    for needed in (
        "lab init",
        "predict new",
        "python patch.py",
        "lab runs",
        "claim new",
        "redteam",
        "report draft",
        "report write",
    ):
        assert needed in words


def test_the_prediction_was_made_before_and_is_scored(walked):
    (one,) = ask(walked, "lab", "predict", "list")
    assert one["state"] == "true" and not one["post_hoc"] and one["run"] == 1
    (score,) = ask(walked, "lab", "predict", "score")
    assert score["person"] == "newcomer" and score["n"] == 1 and score["brier"] == pytest.approx(0.16)


def test_the_claim_is_capped_and_says_why(walked):
    claim = ask(walked, "lab", "claim", "show", "1")
    assert claim["rung"] == "causal on this prompt set"
    assert any("post hoc" in cap["why"] for cap in claim["caps"])


def test_the_report_tells_both_and_needs_no_network(walked):
    folder, _, _ = walked
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert SUMMARY in page and "causal on this prompt set" in page and "some head of layer 23" in page
    assert not re.search(r"""(src|href)=["']https?://""", page)
    assert (folder / "report.md").exists() and (folder / "report.zip").exists()


def test_what_ran_is_in_the_record(walked):
    runs = ask(walked, "lab", "runs")
    assert [(r["method"], r["state"], r["verdict"]) for r in runs] == [
        ("activation_patching", "finished", "supported")
    ]
    assert (
        runs[0]["called_from"].endswith("patch.py:7") and runs[0]["not_again"] == "" and not runs[0]["stale"]
    )
