"""Which endpoint is asked, with which model and key: from the environment, or from a file; from nowhere else.

`OPENAI_API_KEY` and `OPENAI_BASE_URL` are not read: a key that was set for another program is not sent anywhere by this one.

A file is TOML: `url`, `model`, and if needed `key`, `timeout` (seconds), `allow_http` (true or false).
"""

from __future__ import annotations

import math
import os
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from microtome.errors import ChatError

__all__ = ["Secret", "Settings", "find", "is_loopback"]

PREFIX = "MICROTOME_LLM_"
NAMES = ("url", "model", "key", "timeout", "allow_http")
TIMEOUT = 300.0
SHORTEST_KEY = 8


class Secret:
    """A text that is never shown: not by repr, str or format, not in JSON, not in a pickle.

    Raises
    ------
    ChatError: shorter than 8 characters, or of other than printable ASCII without spaces. A key that short could not be
    told from ordinary words when answers and errors are searched for it.
    """

    __slots__ = ("__text",)

    def __init__(self, text: str) -> None:
        if len(text) < SHORTEST_KEY or not text.isascii() or any(c <= " " or c == "\x7f" for c in text):
            raise ChatError(
                "the key is not one",
                why=f"a key has at least {SHORTEST_KEY} characters, all of them printable ASCII, and no space",
                instead="leave the key out where the server needs none (Ollama, vLLM and others on your machine)",
            )
        self.__text = text

    def reveal(self) -> str:
        """The text itself: for the header of a request, and to search what comes back for it."""
        return self.__text

    def scrub(self, text: str) -> str:
        """The text with "[key]" wherever the key stood in it."""
        return text.replace(self.__text, "[key]")

    def __repr__(self) -> str:
        return "Secret(...)"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other.reveal() == self.__text

    def __hash__(self) -> int:
        return hash(Secret)

    def __deepcopy__(self, _: object) -> Secret:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not pickled")


@dataclass(frozen=True)
class Settings:
    """Where to ask.

    url: the base address, as a rule ending in "/v1". model: as the server names it; "" where it is still to be chosen.
    timeout: seconds of silence after which an answer is given up (a connection is given up after 10).
    source: where this was read, for people. allow_http: a key may travel unencrypted to another machine.

    Raises
    ------
    ChatError: an address that is no http(s) address, or holds a name, password, query or fragment; a key for another
    machine without encryption; a timeout that is no positive number of seconds.
    """

    url: str
    model: str = ""
    key: Secret | None = None
    timeout: float = TIMEOUT
    source: str = ""
    allow_http: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", self.url.strip().rstrip("/"))
        _check_url(self.url)
        if not (math.isfinite(self.timeout) and self.timeout > 0):
            raise ChatError(
                f"timeout {self.timeout}",
                why="a positive number of seconds is needed",
                instead="for example 300",
            )
        if self.key and not self.allow_http and self.url.startswith("http://") and not is_loopback(self.host):
            raise ChatError(
                f"the key would travel unencrypted to {self.host}",
                why="the address begins with http:// and is not this machine",
                instead=f"https://, or allow_http = true ({PREFIX}ALLOW_HTTP=1) on a network that you trust",
            )

    @property
    def host(self) -> str:
        """The machine's name, without the port."""
        return urlsplit(self.url).hostname or ""


def _check_url(url: str) -> None:
    wrong = ""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        parts, wrong = urlsplit(""), "it cannot be taken apart"
    if not wrong and (parts.username is not None or parts.password is not None):
        # not shown: it may hold a password
        raise ChatError(
            "the endpoint's address holds a name or a password",
            why="addresses are shown and recorded",
            instead="put the key into `key`",
        )
    if not wrong and (parts.scheme not in ("http", "https") or not parts.hostname):
        wrong = "it does not begin with http:// or https:// and a machine's name"
    if not wrong and (parts.query or parts.fragment):
        # not shown either: keys are put into queries
        raise ChatError(
            "the endpoint's address holds a ? or a #",
            why="addresses are shown and recorded",
            instead="only the base address, for example http://127.0.0.1:11434/v1",
        )
    if not wrong and not (url.isascii() and url.isprintable() and " " not in url):
        wrong = "it holds characters that no address has"
    if wrong:
        raise ChatError(
            f"{url!r} is no address of an endpoint",
            why=wrong,
            instead="for example http://127.0.0.1:11434/v1",
        )


def is_loopback(host: str) -> bool:
    """Whether a name means this machine, told from the name alone: no name server is asked."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def find(start: Path | None = None, environ: Mapping[str, str] | None = None) -> Settings | None:
    """The settings, or None where no endpoint is configured (then prompts are copied and pasted).

    The first of these that names a url gives url and key, which are never mixed: a key belongs to the endpoint it was
    given for. `MICROTOME_LLM_URL`; `.microtome/llm.toml` of the project that `start` (default: the current folder) lies in;
    `~/.config/microtome/llm.toml`. `MICROTOME_LLM_MODEL` and `_TIMEOUT` overrule a file.

    Raises
    ------
    ChatError: a file that cannot be read or understood, a file with a key that other users can read, a key in the
    environment without a url there, or what Settings refuses. LabError: the project's own settings cannot be read.
    """
    environ = os.environ if environ is None else environ
    given = {name: environ[PREFIX + name.upper()] for name in NAMES if environ.get(PREFIX + name.upper())}
    if "url" in given:
        return _settings(given, "the environment")
    if "key" in given:
        raise ChatError(
            f"{PREFIX}KEY is set and {PREFIX}URL is not",
            why="a key is only sent to the endpoint that was named together with it",
            instead=f"set {PREFIX}URL too, or put the key into the file that names the url",
        )
    for path in _files(start, environ):
        if path.is_file():
            over = {name: given[name] for name in ("model", "timeout") if name in given}
            return _settings(_read(path) | over, str(path))
    return None


def _files(start: Path | None, environ: Mapping[str, str]) -> list[Path]:
    from microtome.lab import place

    around = place.find(start)
    home = Path(environ["HOME"]) if environ.get("HOME") else Path.home()
    own = [home / ".config" / "microtome" / "llm.toml"]
    return ([around.home / "llm.toml"] if around else []) + own


def _read(path: Path) -> dict[str, Any]:
    content, wrong = None, ""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = tomllib.loads(file.read().decode("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        wrong = type(error).__name__
    except tomllib.TOMLDecodeError as error:
        wrong = str(error)  # says the place, not the content
    # raised outside of `except`: the error would otherwise carry the file's text, and with it a key
    if content is None:
        raise ChatError(f"{path} cannot be read", why=wrong, instead='a line such as url = "http://127.0.0.1:11434/v1"')  # fmt: skip
    unknown = sorted(set(content) - set(NAMES))
    if unknown or not isinstance(content.get("url"), str):
        raise ChatError(
            f"{path}: {'unknown ' + ', '.join(unknown) if unknown else 'no url'}",
            why=f"it may hold {', '.join(NAMES)}, and must hold url",
            instead="correct it, or remove it to copy and paste instead",
        )
    if "key" in content and os.name == "posix" and stat.S_IMODE(mode) & 0o077:
        raise ChatError(
            f"{path} holds a key, and other users of this machine can read it",
            why=f"its mode is {stat.S_IMODE(mode):o}",
            instead=f"chmod 600 {path}",
        )
    return content


def _settings(given: Mapping[str, Any], source: str) -> Settings:
    for name in ("url", "model", "key"):
        if not isinstance(given.get(name, ""), str):
            raise ChatError(f"{name} in {source} is no text", why="TOML texts stand in quotes", instead=f'{name} = "..."')  # fmt: skip
    return Settings(
        given["url"],
        given.get("model", ""),
        Secret(given["key"]) if given.get("key") else None,
        _seconds(given.get("timeout", TIMEOUT), source),
        source,
        _yes(given.get("allow_http", False), source),
    )


def _seconds(value: object, source: str) -> float:
    seconds: float | None = None
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            seconds = float(value)
        except ValueError:
            seconds = None
    if seconds is None:
        raise ChatError(
            f"timeout {value!r} in {source}", why="it is no number of seconds", instead="for example 300"
        )
    return seconds


def _yes(value: object, source: str) -> bool:
    known = {"1": True, "true": True, "0": False, "false": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in known:
        return known[value.lower()]
    raise ChatError(f"allow_http {value!r} in {source}", why="it is neither true nor false", instead="allow_http = true")  # fmt: skip
