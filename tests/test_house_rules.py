"""The house: names and their stub, the arrows, the words that methods must not know, Makefile, hooks, skips."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import microtome

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "microtome"
SNAPSHOT = Path(__file__).parent / "snapshots" / "names.json"
SKIPS = 2  # how many tests may be skipped or expected to fail; this number may only fall


def files():
    """Every text file of the project that people read; caches are left out."""
    kinds = {".py", ".pyi", ".md", ".toml", ".yaml", ".cff", ".txt", ".json", ".css", ".js", ""}
    caches = ("__pycache__", ".hypothesis", "egg-info", "_cache")
    inner = [p for d in ("src", "tests", "docs", "tools", "benchmarks", ".ci") for p in (ROOT / d).rglob("*")]
    every = [*ROOT.iterdir(), *inner]
    return [
        p
        for p in every
        if p.is_file()
        and p.name != ".git"
        and p.suffix in kinds
        and not any(c in str(p.relative_to(ROOT)) for c in caches)
    ]


def test_the_stub_says_what_the_package_offers():
    tree = ast.parse((SOURCE / "__init__.pyi").read_text(encoding="utf-8"))
    listed = next(n.value for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "__all__")
    bound = {a.asname for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names if a.asname}
    functions = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}
    assert ast.literal_eval(listed) == microtome.__all__ == sorted(microtome.__all__)
    assert bound | set(functions) == set(microtome.__all__) == {*microtome._HOME, "load"}
    stub, real = functions["load"].args, inspect.signature(microtome.load).parameters
    assert [a.arg for a in (*stub.args, *stub.kwonlyargs)] == list(real)
    defaults = [ast.literal_eval(d) for d in (*stub.defaults, *stub.kw_defaults)]
    assert defaults == [p.default for p in real.values()]


def test_public_names_are_few_and_every_one_is_there():
    assert len(microtome.__all__) <= 25
    for name in microtome.__all__:
        assert getattr(microtome, name) is not None
        assert name in dir(microtome)
    with pytest.raises(AttributeError, match="lod"):
        _ = microtome.lod


def test_names_and_signatures_change_only_with_a_decision():
    """Run with MICROTOME_SNAPSHOTS=1 to write the file again, and add a page to docs/decisions."""
    told = {name: _signature(getattr(microtome, name)) for name in microtome.__all__}
    told |= {
        f"methods.{name}": _signature(getattr(microtome.methods, name)) for name in microtome.methods.__all__
    }
    if os.environ.get("MICROTOME_SNAPSHOTS"):
        SNAPSHOT.parent.mkdir(exist_ok=True)
        SNAPSHOT.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    assert told == json.loads(SNAPSHOT.read_text(encoding="utf-8"))


def _signature(thing):
    if inspect.ismodule(thing):
        return "module"
    text = str(inspect.signature(thing))
    return ("class" if inspect.isclass(thing) else "") + re.sub(r" at 0x[0-9a-f]+", "", text)


def test_editors_complete_and_checkers_know_the_types():
    jedi = pytest.importorskip("jedi")
    names = {c.name for c in jedi.Script("import microtome as mt\nmt.").complete(2, 3)}
    assert set(microtome.__all__) <= names
    methods = {c.name for c in jedi.Script("import microtome as mt\nmt.methods.").complete(2, 11)}
    assert set(microtome.methods.__all__) <= methods
    model = {c.name for c in jedi.Script("import microtome as mt\nm = mt.load('x')\nm.").complete(3, 2)}
    assert {"run", "grad", "generate", "certificate", "facts"} <= model


def test_a_checker_sees_a_techniques_parameters_and_its_result(tmp_path):
    """Through the lazy names: what a user of `mt.methods` writes is checked as if the function were imported."""
    script = tmp_path / "user.py"
    lines = ["import microtome as mt", "m = mt.load('x')", "t = mt.task('ioi', m)"]
    lines += ["reveal_type(mt.methods.activation_patching(m, t, sites='L*.resid_pre', seed=0))"]
    lines += ["mt.methods.activation_patching(m, t, sitez='L*.z')", "mt.methods.component_set(m, t)"]
    script.write_text("\n".join(lines) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "mypy", str(script)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert 'Revealed type is "microtome.results.result.Result"' in done.stdout, done.stdout + done.stderr
    assert (
        'Unexpected keyword argument "sitez"' in done.stdout
        and 'Missing named argument "ranking"' in done.stdout
    )
    assert len(re.findall(r"user\.py:\d+: error", done.stdout)) <= 3


def test_an_environment_is_never_committed_not_even_as_a_link():
    """A pattern that ends in a slash matches directories only; merging a link over an environment deletes it."""
    lines = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert ".venv*" in lines


def test_the_package_says_that_it_is_typed():
    assert (SOURCE / "py.typed").exists()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert {"py.typed", "*.pyi"} <= set(project["tool"]["setuptools"]["package-data"]["microtome"])


def lint(folder):
    # the name is resolved in this process: the environment may not be on the path
    code = "from importlinter.cli import lint_imports_command as c; c()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--no-cache"], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(folder / "src")},
    )  # fmt: skip
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    "file, line",
    [
        ("controls/rank.py", "import microtome.methods"),
        ("results/seeds.py", "from microtome.model import facts"),
        ("model/facts.py", "from microtome.trace import run"),
        ("methods/lens.py", "import microtome.report"),
        ("unplaced.py", ""),
    ],
)
def test_an_arrow_that_points_up_is_caught(tmp_path, file, line):
    shutil.copytree(
        SOURCE, tmp_path / "src" / "microtome", ignore=shutil.ignore_patterns("__pycache__", "assets")
    )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "src" / "microtome" / file).open("a", encoding="utf-8") as target:
        target.write(f"\n{line}\n")
    code, said = lint(tmp_path)
    assert code == 1 and "BROKEN" in said


def test_the_arrows_are_those_of_the_decision():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    page = (ROOT / "docs" / "decisions" / "0001-layout-and-arrows.md").read_text(encoding="utf-8")
    assert "\n".join(layers) in page


def test_methods_know_nothing_of_who_records_them():
    for path in (SOURCE / "methods").glob("*.py"):
        assert not re.search(r"\blab\b", path.read_text(encoding="utf-8")), path.name


def test_only_trace_touches_hooks():
    """`replay.check` sets one by hand on purpose: its whole forward must not share code with what it checks. An agent's runs are
    stopped by one of PyTorch's for all modules, which no model carries."""
    found = {
        str(p.relative_to(SOURCE))
        for p in SOURCE.rglob("*.py")
        if re.search(r"register_(module_)?(full_)?(forward|backward)_", p.read_text(encoding="utf-8"))
    }
    outside = {name for name in found if not name.startswith("trace")}
    assert outside <= {"replay/check.py", "agents/jobs.py"} | {
        n for n in outside if n.startswith("certificate")
    }


def test_no_path_of_a_workplace_is_in_the_project():
    words = re.compile("|".join(("/ro" + "ot/", "/wo" + "rk/", "/ho" + "me/[a-z]", "host" + "name=")))
    for path in files():
        text = path.read_text(encoding="utf-8", errors="replace")
        assert not words.search(text), f"{path.relative_to(ROOT)}: {words.search(text)}"


def test_every_target_of_the_makefile_says_what_it_does():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.+)$", text, re.M).group(1).split()
    explained = re.findall(r"^([a-z]+):.*## \S", text, re.M)
    assert sorted(phony) == sorted(explained) and {"dissect", "test", "long", "bench", "help"} <= set(phony)


def test_hooks_are_local():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [repo["repo"] for repo in hooks["repos"]] == ["local"]
    assert all(hook["language"] == "system" for hook in hooks["repos"][0]["hooks"])


def test_every_dependency_is_pinned_for_development():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    )
    for requirement in wanted:
        assert re.match(r"[\w.-]+", requirement).group().lower().replace("_", "-") in pinned, requirement
    assert pinned["torch"] == "2.13.0"


def test_skips_are_counted():
    found = [
        f"{path.name}: {line.strip()}"
        for path in Path(__file__).parent.rglob("*.py")
        if path != Path(__file__)
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"pytest\.(mark\.)?(skip|skipif|xfail|importorskip)\b", line)
    ]
    assert len(found) <= SKIPS, found
