"""What a test of "does this model do this task at all" needs; the test itself is in methods."""

from __future__ import annotations

from dataclasses import dataclass

from microtome.tasks.pairs import Continuations, PairTask, Side

__all__ = ["Behaviour", "behaviour"]


@dataclass(frozen=True)
class Behaviour:
    """One question per prompt: is the answer likelier than the wrong answer?

    prompts: the side asked; answers, wrong: sets of continuations, per prompt;
    chance: how often a model that knows nothing is right (two alternatives: 0.5);
    clusters: template labels, the units of the interval; metric: the task's own, whose sign decides.
    """

    prompts: Side
    answers: tuple[Continuations, ...]
    wrong: tuple[Continuations, ...]
    chance: float
    clusters: tuple[str, ...]
    metric: str


def behaviour(task: PairTask) -> tuple[Behaviour, Behaviour | None]:
    """(clean, corrupt): the corrupt one is None where the corrupt prompt's own answer is not the wrong answer.

    Both should be answered: a model that says the same on either side does not use what differs.
    """
    clusters = task.groups.get("template") or tuple(str(i) for i in range(task.n))
    clean, corrupt = task.clean, task.corrupt
    if task.provenance.get("swapped"):
        clean, corrupt = corrupt, clean
    asked = Behaviour(clean, task.answers, task.wrong, 0.5, clusters, task.metric)
    if task.provenance.get("flips") is not True:
        return asked, None
    return asked, Behaviour(corrupt, task.wrong, task.answers, 0.5, clusters, task.metric)
