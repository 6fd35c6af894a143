"""What a server was started with, and the names of those who use it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from microtome.errors import LabError

if TYPE_CHECKING:
    from microtome.lab.place import Place

__all__ = ["Settings", "agent_name"]

NAME = 80  # characters of an agent's name


@dataclass(frozen=True)
class Settings:
    """How a server serves one project.

    Parameters
    ----------
    place: the project. study: the title under which runs are recorded.
    name: what the agent is called in the record; "": what its client says it is.
    predictions: whether a technique runs only when a prediction about it is open.
    download: whether models may be fetched from the package registry and the hub.
    pictures: whether figures are made into PNG where a program that can is installed (else they are SVG).

    Raises LabError for a name or a title that no record keeps.
    """

    place: Place
    study: str = "agents"
    name: str = ""
    predictions: bool = False
    download: bool = False
    pictures: bool = True

    def __post_init__(self) -> None:
        if _clean(self.name) != self.name:
            raise LabError(
                f"an agent called {self.name!r}",
                why=f"a name has at most {NAME} printable characters and no spaces around it",
                instead="--name",
            )
        if not self.study.strip() or not self.study.isprintable():
            raise LabError(f"a study called {self.study!r}", why="studies are found by their title", instead="a few words")  # fmt: skip


def agent_name(settings: Settings, client: str) -> str:
    """The name under which an agent's work is recorded: the server's setting, else what its client says it is."""
    return settings.name or _clean(client) or "agent"


def _clean(text: str) -> str:
    return "".join(c for c in text if c.isprintable())[:NAME].strip()
