"""Where a record is: found by walking up, settings that can be read, and no password in a file or on a screen."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lab_tools import leaf, opened
from measured import Model
from microtome.errors import LabError
from microtome.lab import place as places
from microtome.lab.place import CEILING, PERSON, URL, find, here, hidden, init, person


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in (URL, PERSON):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def top(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    return tmp_path


def test_a_project_is_found_from_below_and_the_nearest_one(top, monkeypatch):
    assert find(top / "a" / "b") is None
    init(top)
    assert find(top / "a" / "b").folder == top == here(top / "a").folder
    init(top / "a")
    monkeypatch.chdir(top / "a" / "b")
    assert find().folder == here().folder == top / "a"
    assert find(top / "a" / "b" / ".." / ".." / "not there").folder == top
    assert find(top / "a" / ".microtome").folder == top / "a"
    (top / "a" / "a file").write_text("", encoding="utf-8")
    assert find(top / "a" / "a file").folder == top / "a"


def test_a_ceiling_is_not_looked_into(top, monkeypatch):
    init(top)
    for ceiling in (
        f"{top}",
        f"{top}{os.sep}",
        f"/nowhere{os.pathsep}{top / 'a' / '..'}",
        f"{os.pathsep}{top}",
    ):
        monkeypatch.setenv(CEILING, ceiling)
        assert find(top) is None and find(top / "a" / "b") is None and find(top / "a" / "..") is None
    monkeypatch.setenv(CEILING, f"{top / 'a'}")
    assert find(top / "a") is None and find(top / "a" / "b") is None and find(top).folder == top
    monkeypatch.setenv(CEILING, "")
    assert find(top / "a").folder == top


def test_outside_a_project_the_way_in_is_said(top, monkeypatch):
    monkeypatch.setenv(CEILING, str(top))
    with pytest.raises(LabError, match=r"no project in .*\n.*\n.*microtome lab init"):
        here(top / "a")
    with pytest.raises(LabError, match="is no folder"):
        find("~nobody-has-this-name/x")


def test_init_again_changes_nothing_and_another_database_is_refused(top):
    made = init(top, name="names")
    before = {p: p.read_bytes() for p in made.home.iterdir()}
    assert init(top, name="other") == made and made.name == "names"
    assert {p: p.read_bytes() for p in made.home.iterdir()} == before
    with pytest.raises(LabError, match="is a project already"):
        init(top, url="postgresql://ada@localhost/lab")
    with pytest.raises(LabError, match="cannot become a project"):
        (top / "file").write_text("", encoding="utf-8")
        init(top / "file" / "inner")


@pytest.mark.parametrize(
    "name",
    ["names \U0001f642", "é\x7f\x00\x1b[31m\n\t", 'a "quoted" \\ name', "half \udc80", "</script>"],
    ids=ascii,
)
def test_any_name_can_be_read_back(top, name):
    made = init(top / "x", name=name)
    assert made.name == name.replace("\udc80", "?") and here(top / "x") == made


def test_a_folder_with_any_name_can_be_a_project(top):
    folder = top / "n\U0001f642 \x1b[31m"
    folder.mkdir()
    assert init(folder).name == folder.name and find(folder).folder == folder


@pytest.mark.parametrize(
    ("text", "said"),
    [("name = ", "cannot be read"), (b"name = '\xff'", "cannot be read"), ("nme = 'x'", "nme = 'x'\n.*known are"), ("name = 5", "name = 5"),
     ("[url]\na = 1", "all of them text"), ("url = 'mysql://x/y'", "no database"), ("url = 'postgresql://a:b@h/c'", "carries a password")],
)  # fmt: skip
def test_settings_that_cannot_be_read_are_refused_by_name(top, text, said):
    init(top)
    settings = top / ".microtome" / "lab.toml"
    settings.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(LabError, match=said) as caught:
        find(top / "a")
    assert "a:b@" not in str(caught.value)
    with pytest.raises(LabError, match=said):
        init(top)


def test_settings_with_a_mark_at_their_beginning_are_read(top):
    init(top)
    (top / ".microtome" / "lab.toml").write_bytes(
        b"\xef\xbb\xbfname = 'x'\nperson = ' eve '\nfiles = 'big'\n"
    )
    found = here(top)
    assert (found.name, found.who, found.files) == ("x", "eve", top / "big")
    assert person(found) == "eve"


SECRETS = [
    "postgresql://ada:secret@h/lab", "postgresql+psycopg://ada:se/secret@h/lab", "postgresql://ada:s@secret@h:5/lab", "postgresql://:secret@h/lab",
    "postgresql://ada@h/lab?password=secret", "postgresql://h/lab?user=ada&PASSWORD=secret&x=1", "postgresql://h/lab?sslpassword=secret",
    "postgresql://ada:sec:secret@h/lab",
]  # fmt: skip


@pytest.mark.parametrize("url", SECRETS)
def test_a_password_is_refused_where_it_would_be_kept_and_never_shown(top, url, monkeypatch):
    with pytest.raises(LabError, match="carries a password") as caught:
        init(top, url=url)
    assert "secret" not in str(caught.value) and find(top) is None
    assert "secret" not in hidden(url)
    init(top)
    monkeypatch.setenv(URL, url)
    assert here(top).url == url and "secret" not in here(top).shown


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ada@h:5432/lab",
        "postgresql:///lab",
        "sqlite:///a:b.db",
        "postgresql://h/lab?options=-c%20x",
    ],
)
def test_a_url_without_a_password_stays_as_it_is(url):
    assert hidden(url) == url


def test_the_environment_names_the_database_before_the_settings(top, monkeypatch):
    init(top, url="postgresql://ada@localhost/lab")
    monkeypatch.setenv(URL, f"sqlite:///{top / 'mine.db'}")
    with opened(here(top)):
        leaf(Model())
    assert (top / "mine.db").exists() and not here(top).database.exists()
    monkeypatch.setenv(URL, "mysql://ada:secret@h/lab")
    with pytest.raises(LabError, match="no database that a record can be in") as caught:
        here(top)
    assert "secret" not in str(caught.value)


def test_who_works(top, monkeypatch):
    made = init(top)
    monkeypatch.setenv(PERSON, " eve ")
    assert person(made) == "eve"
    monkeypatch.setenv(PERSON, " ")
    monkeypatch.setattr(places.getpass, "getuser", lambda: "account")
    assert person(made) == "account"

    def nobody():
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr(places.getpass, "getuser", nobody)
    assert person(made) == f"user {os.getuid()}"


def test_two_processes_that_begin_at_once_make_one_project(top):
    code = "import sys; from microtome.lab.place import init; print(init(sys.argv[1], name='n').name)"
    ran = [subprocess.Popen([sys.executable, "-c", code, str(top / "x")], stdout=subprocess.PIPE, text=True) for _ in range(4)]  # fmt: skip
    assert [p.communicate()[0] for p in ran] == ["n\n"] * 4
    assert sorted(p.name for p in (top / "x" / ".microtome").iterdir()) == [".gitignore", "lab.toml"]
