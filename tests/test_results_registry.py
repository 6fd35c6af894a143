"""Registries and plug-ins, with toy distributions installed as folders on the path."""

from __future__ import annotations

import sys
import textwrap

import pytest

from microtome.errors import MicrotomeError
from microtome.results import registry
from microtome.results.registry import KINDS, Lazy, RegistryError


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """Registries of this test's own."""
    monkeypatch.setattr(registry, "_objects", {kind: {} for kind in KINDS})
    monkeypatch.setattr(registry, "_HOMES", dict.fromkeys(KINDS, ()))
    monkeypatch.setattr(registry, "_plugins", {})


@pytest.fixture
def install(tmp_path, monkeypatch):
    """install(name, entry_points, modules): a distribution as pip would leave it."""
    count = [0]

    def put(name, points, **modules):
        count[0] += 1
        folder = tmp_path / f"site{count[0]}"
        info = folder / f"{name.replace('-', '_')}-1.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        lines = []
        for group, entries in points.items():
            lines += [f"[microtome.{group}]", *(f"{k} = {v}" for k, v in entries.items())]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        for module, text in modules.items():
            (folder / f"{module}.py").write_text(textwrap.dedent(text))
            monkeypatch.delitem(sys.modules, module, raising=False)
        monkeypatch.syspath_prepend(folder)
        registry.refresh()

    return put


def here(x):
    return x


def test_register_and_get_and_nearest_names():
    assert registry.register("metrics", "logit_diff", here) is here
    assert registry.get("metrics", "logit_diff") is here and registry.names("metrics") == ("logit_diff",)
    assert registry.names("tasks") == ()
    with pytest.raises(RegistryError, match="did you mean 'logit_diff'") as caught:
        registry.get("metrics", "logitdiff")
    assert isinstance(caught.value, MicrotomeError) and isinstance(caught.value, LookupError)
    with pytest.raises(RegistryError, match="known: none"):
        registry.get("tasks", "ioi")
    with pytest.raises(RegistryError, match="did you mean 'metrics'"):
        registry.names("metric")
    with pytest.raises(RegistryError, match="no name"):
        registry.register("metrics", "", here)


def test_another_object_under_a_taken_name_is_refused_the_same_one_is_not():
    registry.register("metrics", "m", here)
    registry.register("metrics", "m", here)
    with pytest.raises(RegistryError, match="registered already"):
        registry.register("metrics", "m", lambda x: x)
    with pytest.raises(RegistryError, match="test_results_registry:here"):
        registry.register("metrics", "m", install)
    assert registry.get("metrics", "m") is here
    local_one, local_two = (lambda x: x for _ in range(2))  # same qualified name, not importable by it
    registry.register("metrics", "local", local_one)
    with pytest.raises(RegistryError):
        registry.register("metrics", "local", local_two)
    registry.register("tasks", "m", local_one)  # another kind: another list


def test_lazy_objects_are_imported_when_asked_for_and_give_way_to_themselves(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "toy_lazy.py").write_text("class Family:\n    pass\n")
    registry.register("families", "toy", Lazy("toy_lazy:Family"))
    assert registry.names("families") == ("toy",) and "toy_lazy" not in sys.modules
    family = registry.get("families", "toy")
    assert family is sys.modules["toy_lazy"].Family
    registry.register("families", "toy", family)  # as a decorator in that module would
    assert registry.get("families", "toy") is family
    with pytest.raises(RegistryError):
        registry.register("families", "toy", Lazy("toy_lazy:Other"))


def test_homes_are_imported_at_the_first_question_they_can_answer(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    text = "from microtome.results import registry\nregistry.register('tasks', 'ioi', registry.Lazy('x:y'))\nregistry.names('tasks')\n"
    (tmp_path / "toy_home.py").write_text(text)
    monkeypatch.setattr(registry, "_HOMES", {**registry._HOMES, "tasks": ("toy_home", "toy_home_of_later")})
    registry.register("tasks", "near", here)
    assert registry.get("tasks", "near") is here and "toy_home" not in sys.modules
    assert registry.names("tasks") == ("ioi", "near")


def test_a_broken_home_is_not_hidden_on_the_second_question(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "toy_bad_home.py").write_text("import toy_absent_module\n")
    monkeypatch.setattr(registry, "_HOMES", {**registry._HOMES, "tasks": ("toy_bad_home",)})
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="toy_absent_module"):
            registry.names("tasks")


GOOD = """
    from microtome.results import Result, technique

    @technique("toy_lens", "1")
    def toy_lens(model):
        return Result("toy_lens")

    def toy_task(model, n, seed):
        return None

    class ToyFamily:
        pass

    def toy_metric(logits):
        return logits
"""


def test_a_distribution_adds_to_every_kind(install):
    points = {
        "techniques": {"toy_lens": "toy_plugin:toy_lens"},
        "tasks": {"toy_task": "toy_plugin:toy_task"},
        "datasets": {"toy_set": "toy_plugin:toy_set"},
        "metrics": {"toy_metric": "toy_plugin:toy_metric"},
        "families": {"toy_family": "toy_plugin:ToyFamily"},
    }
    install("toy-plugin", points, toy_plugin=GOOD)
    for kind in KINDS:
        assert registry.names(kind) == tuple(points[kind])
    assert "toy_plugin" not in sys.modules  # listing imports nothing
    lens = registry.get("techniques", "toy_lens")
    assert lens.spec.name == "toy_lens" and lens is sys.modules["toy_plugin"].toy_lens
    assert registry.get("families", "toy_family") is sys.modules["toy_plugin"].ToyFamily
    assert registry.get("techniques", "toy_lens") is lens
    assert lens(object.__new__(type("M", (), {"hash": "ab"}))).query.model == "ab"


@pytest.mark.parametrize(
    ("text", "value", "says"),
    [
        (
            "import toy_absent_module",
            "toy_broken:thing",
            "ModuleNotFoundError: No module named 'toy_absent_module'",
        ),
        ("1 / 0", "toy_broken:thing", "ZeroDivisionError"),
        ("def broken(:", "toy_broken:thing", "SyntaxError"),
        ("other = 1", "toy_broken:thing", "AttributeError"),
    ],
)
def test_a_broken_plugin_is_reported_with_its_distribution(install, text, value, says):
    install("broken-plugin", {"tasks": {"broken": value}}, toy_broken=text)
    assert registry.names("tasks") == ("broken",)  # a list is not broken by one that does not load
    with pytest.raises(RegistryError, match=r"broken-plugin 1\.2") as caught:
        registry.get("tasks", "broken")
    assert says in str(caught.value) and caught.value.__cause__ is not None


def test_an_interrupt_while_a_plugin_loads_is_not_taken_for_a_fault(install):
    install("slow-plugin", {"tasks": {"slow": "toy_slow:thing"}}, toy_slow="raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        registry.get("tasks", "slow")


def test_plugins_that_claim_one_name_are_named(install):
    registry.register("metrics", "logit_diff", here)
    install("greedy-plugin", {"metrics": {"logit_diff": "toy_greedy:x"}}, toy_greedy="x = 1")
    with pytest.raises(RegistryError, match=r"greedy-plugin 1\.2 claims the name 'logit_diff'"):
        registry.names("metrics")
    assert registry.get("metrics", "logit_diff") is here

    install("one-plugin", {"tasks": {"t": "toy_one:x"}}, toy_one="x = 1")
    install("two-plugin", {"tasks": {"t": "toy_two:x"}}, toy_two="x = 1")
    with pytest.raises(RegistryError, match="two-plugin.*one-plugin|one-plugin.*two-plugin"):
        registry.names("tasks")


@pytest.mark.parametrize("made", ["def x(): ...", "x = object()"])
def test_a_plugin_may_register_what_its_entry_point_names(install, made):
    text = f"from microtome.results import registry\n{made}\nregistry.register('tasks', 't', x)\n"
    install("self-plugin", {"tasks": {"t": "toy_self:x"}}, toy_self=text)
    __import__("toy_self")  # before anybody looked for entry points
    found = registry.get("tasks", "t")
    assert registry.names("tasks") == ("t",)
    registry.refresh()
    assert registry.get("tasks", "t") is found and registry.names("tasks") == ("t",)


def test_a_technique_is_listed_under_its_own_name(install):
    install("alias-plugin", {"techniques": {"alias": "toy_alias:toy_lens"}}, toy_alias=GOOD)
    with pytest.raises(RegistryError, match="the technique is called 'toy_lens'"):
        registry.get("techniques", "alias")


def test_a_plugin_installed_later_is_seen_after_refresh(install):
    assert registry.names("tasks") == ()
    install("late-plugin", {"tasks": {"late": "toy_late:x"}}, toy_late="x = 1")
    assert registry.names("tasks") == ("late",)
    assert registry.get("tasks", "late") == 1
