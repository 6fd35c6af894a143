"""Where the endpoint's address and key come from, and where the key does not go."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import subprocess
import traceback

import pytest

from microtome.cli.output import plain
from microtome.errors import ChatError, LabError
from microtome.lab.place import init
from microtome.llm.settings import Secret, Settings, find, is_loopback

KEY = "sk-planted-0123456789abcdef"
URL = "http://127.0.0.1:11434/v1"


@pytest.fixture
def home(tmp_path):
    """An empty home, and a project folder in it."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "project").mkdir(parents=True)
    init(tmp_path / "home" / "project")
    return tmp_path / "home"


def write(path, text, mode=0o600):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return path


def looked(home, **environ):
    return find(home / "project", {"HOME": str(home), **environ})


def test_nothing_configured_is_none(home):
    assert looked(home) is None
    assert looked(home, OPENAI_API_KEY=KEY, OPENAI_BASE_URL=URL) is None
    assert looked(home, MICROTOME_LLM_MODEL="small") is None


def test_the_environment_comes_first_then_the_project_then_home(home):
    own = write(home / ".config" / "microtome" / "llm.toml", f'url = "{URL}/home"\nmodel = "h"')
    assert looked(home).url == URL + "/home" and looked(home).source == str(own)
    (home / "project" / "deep" / "er").mkdir(parents=True)
    project = write(
        home / "project" / ".microtome" / "llm.toml", f'url = "{URL}/project/"\nmodel = "p"\ntimeout = 5'
    )
    found = find(home / "project" / "deep" / "er", {"HOME": str(home)})
    assert (found.url, found.model, found.timeout, found.source) == (URL + "/project", "p", 5.0, str(project))
    found = looked(
        home, MICROTOME_LLM_URL=URL, MICROTOME_LLM_MODEL="e", MICROTOME_LLM_KEY=KEY, MICROTOME_LLM_TIMEOUT="9"
    )
    assert (found.url, found.model, found.key, found.timeout) == (URL, "e", Secret(KEY), 9.0)


def test_a_project_is_what_the_lab_calls_one(home, monkeypatch):
    write(home / "other" / ".microtome" / "llm.toml", f'url = "{URL}"')
    assert find(home / "other", {"HOME": str(home)}) is None, "a folder of that name alone is no project"
    write(home / "project" / ".microtome" / "llm.toml", f'url = "{URL}"')
    monkeypatch.setenv("MICROTOME_CEILING", str(home / "project"))
    assert looked(home) is None
    monkeypatch.delenv("MICROTOME_CEILING")
    write(home / "project" / ".microtome" / "lab.toml", "nonsense")
    with pytest.raises(LabError, match="cannot be read"):
        looked(home)


def test_the_file_of_a_project_is_not_versioned(home):
    write(home / "project" / ".microtome" / "llm.toml", f'url = "{URL}"\nkey = "{KEY}"')
    git = ["git", "-C", str(home / "project")]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "-A"], check=True)
    added = subprocess.run([*git, "ls-files"], capture_output=True, text=True, check=True).stdout
    assert "llm.toml" not in added
    subprocess.run([*git, "check-ignore", "-q", ".microtome/llm.toml"], check=True)


def test_model_and_timeout_of_the_environment_overrule_a_file(home):
    write(home / ".config" / "microtome" / "llm.toml", f'url = "{URL}"\nmodel = "h"\nkey = "{KEY}"')
    found = looked(home, MICROTOME_LLM_MODEL="e", MICROTOME_LLM_TIMEOUT="2")
    assert (found.model, found.timeout, found.key) == ("e", 2.0, Secret(KEY))


def test_a_key_goes_only_to_the_endpoint_it_was_named_with(home):
    write(home / "project" / ".microtome" / "llm.toml", 'url = "https://a-project-from-elsewhere.test/v1"')
    with pytest.raises(ChatError, match="KEY is set and MICROTOME_LLM_URL is not"):
        looked(home, MICROTOME_LLM_KEY=KEY)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o620])
def test_a_key_that_others_can_read_is_refused(home, mode):
    path = write(home / ".config" / "microtome" / "llm.toml", f'url = "{URL}"\nkey = "{KEY}"', mode)
    with pytest.raises(ChatError, match="other users") as caught:
        looked(home)
    assert caught.value.instead == f"chmod 600 {path}" and KEY not in str(caught.value)
    write(path, f'url = "{URL}"', mode)
    assert looked(home).key is None, "without a key anybody may read it"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("url = ", "cannot be read"),
        (f'key = "{KEY}"', "no url"),
        (f'url = "{URL}"\nkey = "{KEY}"\nmodle = "x"', "unknown modle"),
        (f'url = "{URL}"\nkey = ["{KEY}"]', "key in .* is no text"),
        (f'url = "{URL}"\nkey = "{KEY}"\nkey = "{KEY}"', "cannot be read"),
        (f'url = "{URL}"\nkey = "{KEY}\n', "cannot be read"),
        (f'url = "{URL}"\nkey = "{KEY} {KEY}"', "the key is not one"),
        (f'url = "{URL}"\nkey = "EMPTY"', "the key is not one"),
        (f'url = "{URL}"\nkey = "{KEY}"\ntimeout = "soon"', "timeout 'soon'"),
        (f'url = "{URL}"\nkey = "{KEY}"\ntimeout = true', "timeout True"),
        (f'url = "{URL}"\nkey = "{KEY}"\ntimeout = 0', "timeout 0"),
        (f'url = "{URL}"\nkey = "{KEY}"\ntimeout = nan', "timeout nan"),
        (f'url = "{URL}"\nallow_http = "perhaps"', "allow_http 'perhaps'"),
        (f'url = "https://me:{KEY}@host.test/v1"', "name or a password"),
        (f'url = "https://host.test/v1?key={KEY}"', r"holds a \? or a #"),
        (f'url = "https://host.test/v1#{KEY}"', r"holds a \? or a #"),
        ('url = "host.test"', "no address"),
        ('url = "file:///etc/passwd"', "no address"),
        ('url = "http://[::1"', "no address"),
        ('url = "http://host.test:99999/v1"', "no address"),
        ('url = "https://host.test/v 1"', "no address"),
        (f'url = "http://host.test/v1"\nkey = "{KEY}"', "unencrypted to host.test"),
        (f'url = "http://127.0.0.1.evil.test/v1"\nkey = "{KEY}"', "unencrypted"),
    ],
)  # fmt: skip
def test_what_a_file_must_not_hold(home, text, match):
    write(home / ".config" / "microtome" / "llm.toml", text)
    with pytest.raises(ChatError, match=match) as caught:
        looked(home)
    error = caught.value
    assert KEY not in "".join(traceback.format_exception(error)) + repr(error.args) + repr(vars(error))
    assert error.__context__ is None or KEY not in repr(vars(error.__context__)) + repr(
        error.__context__.args
    )
    assert error.why and error.instead


def test_bytes_that_are_no_text_are_refused(home):
    path = home / ".config" / "microtome" / "llm.toml"
    path.parent.mkdir(parents=True)
    path.write_bytes(b'url = "\xff"')
    with pytest.raises(ChatError, match="cannot be read"):
        looked(home)


def test_a_key_may_travel_unencrypted_where_that_was_asked_for(home):
    for url in (URL, "http://localhost:1/v1", "http://[::1]:1/v1", "https://host.test/v1"):
        assert Settings(url, key=Secret(KEY)).key == Secret(KEY)
    assert Settings("http://host.test/v1").key is None, "no key, nothing to lose"
    assert Settings("http://host.test/v1", key=Secret(KEY), allow_http=True).host == "host.test"
    given = {"MICROTOME_LLM_URL": "http://host.test/v1", "MICROTOME_LLM_KEY": KEY}
    assert looked(home, **given, MICROTOME_LLM_ALLOW_HTTP="1").allow_http
    with pytest.raises(ChatError, match="unencrypted"):
        looked(home, **given)


def test_a_name_is_this_machine_only_if_it_must_be():
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost", "LOCALHOST")))
    assert not any(
        map(is_loopback, ("127.0.0.1.test", "localhost.test", "0.0.0.0", "10.0.0.1", "", "2130706433"))
    )


def test_a_secret_is_not_shown_by_anything():
    secret, settings = Secret(KEY), Settings(URL, key=Secret(KEY))
    shown = [repr(secret), str(secret), f"{secret}", f"{secret!r}", repr(settings), repr([secret]),
             str(dataclasses.asdict(settings)), json.dumps(plain(settings)), json.dumps(plain({"k": secret})),
             repr(copy.deepcopy(settings))]  # fmt: skip
    assert all(KEY not in text for text in shown)
    with pytest.raises(TypeError):
        json.dumps(secret)
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(settings)
    assert secret.reveal() == KEY and secret == Secret(KEY) != Secret(KEY + "x") and secret != KEY
    assert secret.scrub(f"a {KEY} b") == "a [key] b"
