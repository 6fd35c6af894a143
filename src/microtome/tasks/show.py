"""A task as plain rows, for `microtome tasks show` and for pages: nothing is printed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from microtome.tasks import checks
from microtome.tasks.pairs import Continuations, PairTask, Side

__all__ = ["show"]


def show(task: PairTask, model: Any = None, k: int = 3) -> list[dict[str, Any]]:
    """The first k pairs as JSON-able rows.

    Each row: pair, first_difference, groups, answers and wrong (strings, at most 6, with the number of all),
    clean and corrupt: text, variables, surface, tokens: [{position, id, token, spans, differs}].
    Token strings are those the task was made with; without them, and without a model, they are the ids.

    Raises
    ------
    TaskError: k is not a positive whole number.
    """
    checks.count(k, "k")
    rows = []
    for i in range(min(k, task.n)):
        at = checks.difference(task.clean.ids[i], task.corrupt.ids[i])
        rows.append(
            {
                "pair": i,
                "first_difference": at,
                "groups": {by: labels[i] for by, labels in task.groups.items()},
                "answers": _few(task.answers[i], model),
                "n_answers": len(task.answers[i]),
                "wrong": _few(task.wrong[i], model),
                "n_wrong": len(task.wrong[i]),
                "clean": _side(task.clean, task.corrupt, i, model),
                "corrupt": _side(task.corrupt, task.clean, i, model),
            }
        )
    return rows


def _few(options: Continuations, model: Any, most: int = 6) -> list[str]:
    return ["".join(_strings(one, model)) for one in options[:most]]


def _strings(ids: Sequence[int], model: Any) -> Sequence[str]:
    if model is None:
        return [f"<{i}>" for i in ids]
    from microtome.model.tokens import token_strings

    return token_strings(model.tokenizer, ids)


def _side(side: Side, other: Side, i: int, model: Any) -> Mapping[str, Any]:
    strings = side.strings[i] if side.strings else _strings(side.ids[i], model)
    spans = side.spans_of(i)
    tokens = [
        {
            "position": p,
            "id": side.ids[i][p],
            "token": strings[p],
            "spans": [name for name, (a, b) in spans.items() if a <= p < b],
            "differs": side.ids[i][p] != other.ids[i][p],
        }
        for p in range(len(side.ids[i]))
    ]
    return {
        "text": side.texts[i],
        "variables": side.variables[i],
        "surface": side.surface[i],
        "tokens": tokens,
    }
