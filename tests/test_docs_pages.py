"""Pages that cannot rot: generated ones are fresh, every fence parses, every name, command, target and link exists."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

import microtome

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)


def fences(language):
    return [
        pytest.param(text, id=f"{page.relative_to(ROOT)}-{i}")
        for page in PAGES
        for i, (kind, text) in enumerate(FENCE.findall(page.read_text(encoding="utf-8")))
        if kind == language
    ]


def generator():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_what_the_code_says():
    # in a process of its own: other tests register techniques
    command = [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_stale_page_is_noticed(tmp_path, monkeypatch, capsys):
    made = generator()
    monkeypatch.setattr(made, "FOLDER", tmp_path)
    assert made.main([]) == 0 and made.main(["--check"]) == 0
    (tmp_path / "points.md").write_text("old", encoding="utf-8")
    assert made.main(["--check"]) == 1 and "points.md" in capsys.readouterr().out


def test_the_page_of_points_has_every_point():
    from microtome.points import POINTS

    page = (ROOT / "docs" / "reference" / "points.md").read_text(encoding="utf-8")
    for point in POINTS.values():
        assert point.meaning.replace("|", "\\|") in page and point.name in page


@pytest.mark.parametrize("text", fences("python"))
def test_python_fences_parse_and_name_what_exists(text):
    tree = ast.parse(text)
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(module)) if module.startswith("microtome") and "toy" not in module:
                for alias in node.names:
                    assert hasattr(importlib.import_module(module), alias.name), f"{module}.{alias.name}"
            case ast.Attribute(value=ast.Name(id="mt"), attr=name):
                assert name in microtome.__all__, f"mt.{name}"
            case ast.Attribute(value=ast.Attribute(value=ast.Name(id="mt"), attr=module), attr=name):
                assert hasattr(getattr(microtome, module), name), f"mt.{module}.{name}"


def parse(words):
    """Let the command line parse without running anything; a usage error is raised."""
    from microtome.cli.main import app

    command, context = typer.main.get_command(app), None
    while True:
        try:
            context = command.make_context(words[0], list(words[1:]), parent=context)
        except typer.Exit:  # --help and --version
            return
        if not hasattr(command, "commands"):
            return
        name, command, rest = command.resolve_command(context, words[1:])
        words = [name, *rest]


@pytest.mark.parametrize("text", fences("bash"))
def test_bash_fences_are_commands_that_parse(text):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        program = words[0].removeprefix(".venv/bin/")
        assert program in ("make", "microtome", "pre-commit", "python"), line
        if program == "make":
            assert words[1] in targets, line
        elif program == "microtome":
            parse(words)


def test_a_command_that_does_not_parse_is_noticed():
    for line in ("microtome dissect ioi --paris 4", "microtome task list", "microtome tasks show"):
        with pytest.raises(Exception, match=r"(?i)no such|missing"):
            parse(shlex.split(line))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.M)
            slugs = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in heads}
            assert anchor in slugs, target


def test_decisions_are_numbered_listed_and_one_page_long():
    folder = ROOT / "docs" / "decisions"
    pages = sorted(p for p in folder.glob("*.md") if p.name != "README.md")
    assert [int(p.name[:4]) for p in pages] == list(range(1, len(pages) + 1))
    listed = (folder / "README.md").read_text(encoding="utf-8")
    for page in pages:
        text = page.read_text(encoding="utf-8")
        title = text.partition("\n")[0]
        assert title.startswith(f"# {page.name[:4]}: ")
        assert f"[{page.name[:4]}]({page.name}) | {title.split(': ', 1)[1]} |" in listed
        assert len(text.splitlines()) <= 65, page.name


def test_the_guide_explains_every_verdict_and_every_variable():
    from microtome.results import VERDICTS

    guide = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert all(f"| {word} |" in guide for word in VERDICTS)
    source = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "src").rglob("*.py"))
    used = set(re.findall(r'"(MICROTOME_[A-Z]+)"', source))
    assert used == set(re.findall(r"^\| `(MICROTOME_[A-Z]+)`", guide, re.M))


def test_citation_changelog_and_package_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == microtome.__version__ and citation["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").count("\n- ") >= 1


def test_the_guide_says_what_every_control_rules_out():
    from microtome.results import registry

    guide = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for name in registry.names("techniques"):
        found = registry.get("techniques", name)
        if found.__module__.startswith("microtome."):
            assert not [c for c in found.spec.controls if f"`{c}`" not in guide], name


def test_every_method_names_its_papers():
    """As CITATION.cff promises; whether a model does a task at all is nobody's method."""
    for name in microtome.methods.__all__:
        module = importlib.import_module(getattr(microtome.methods, name).__module__)
        assert name == "behaviour" or re.search(r"\b(19|20)\d\d\b", module.__doc__), name


def test_the_readme_is_short_and_shows_a_picture():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 120 and "](docs/images/ioi.png)" in text
    assert "make dissect" in text and "make test" in text
