"""One base error for everything a user can cause: what happened, why, and what to do instead.

The command line prints the three lines without a traceback; Python shows them as the message.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class MicrotomeError(Exception):
    """What happened, why, and what to do instead.

    Parameters
    ----------
    what: one sentence: what happened, with the offending value.
    why: one sentence: the mechanical reason.
    instead: one sentence: the call, command or change that works.
    """

    def __init__(self, what: str, *, why: str = "", instead: str = "") -> None:
        self.what, self.why, self.instead = what, why, instead
        lines = [what]
        if why:
            lines.append(f"  why:     {why}")
        if instead:
            lines.append(f"  instead: {instead}")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, self.why, self.instead)


def _rebuild(kind: type[MicrotomeError], what: str, why: str, instead: str) -> MicrotomeError:
    return kind(what, why=why, instead=instead)


class SiteError(MicrotomeError):
    """An address that cannot be parsed, or that this model does not have."""


class ModelError(MicrotomeError):
    """A model that cannot be loaded, read or trusted."""


class TrainingError(ModelError):
    """A training that did not reach its accuracy.

    curve: what was measured while it ran, one mapping per evaluation, "step" and "accuracy" among its keys.
    """

    def __init__(
        self, what: str, *, why: str = "", instead: str = "", curve: Iterable[Mapping[str, float]] = ()
    ) -> None:
        super().__init__(what, why=why, instead=instead)
        self.curve = tuple(dict(point) for point in curve)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, self.why, self.instead), {"curve": self.curve}


class TaskError(MicrotomeError):
    """Prompts, pairs or labels that break an invariant."""


class EditError(MicrotomeError):
    """An edit that cannot be applied, or that did not happen."""


class ResultError(MicrotomeError):
    """A result that cannot be built, saved, opened or drawn."""


class ControlError(MicrotomeError):
    """A statistic or control that cannot be computed from what it was given."""


class ResourceError(MicrotomeError):
    """Not enough memory, disk, time or network."""


class LabError(MicrotomeError):
    """A record that cannot be read or written, or a statement in it that its evidence does not carry."""


class ChatError(MicrotomeError):
    """A language model that cannot be reached, or an answer of one that cannot be used."""
