"""Ordinary sentences for the damage that an ablation does elsewhere: from Python's own documentation, offline."""

from __future__ import annotations

import platform
import re
from functools import lru_cache
from typing import Any

from microtome.errors import TaskError
from microtome.tasks import checks
from microtome.tasks.encode import Encoder, Prompt, to_side
from microtome.tasks.pairs import Side
from microtome.tasks.rng import rng

__all__ = ["offtask", "sentences"]

_WORDS = (10, 28)
_ORDINARY = re.compile(r"[A-Z][A-Za-z]*(?:[ ,;]+[A-Za-z][A-Za-z'’-]*)+\.")


@lru_cache(maxsize=1)
def sentences() -> tuple[str, ...]:
    """Plain English sentences of 10 to 28 words in the reference that `help()` shows, sorted, each once.

    They have no markup, numbers or code in them; which there are depends on the Python version.
    """
    from pydoc_data.topics import topics

    found = set()
    for text in topics.values():
        for paragraph in re.split(r"\n\s*\n", text):
            lines = paragraph.splitlines()
            if "**" in paragraph or "::" in paragraph or any(line.startswith(" ") for line in lines):
                continue  # code, grammar, signatures, lists
            flat = " ".join(paragraph.split())
            for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", flat):
                if _ORDINARY.fullmatch(sentence) and _WORDS[0] <= len(sentence.split()) <= _WORDS[1]:
                    found.add(sentence)
    return tuple(sorted(found))


def corpus() -> dict[str, object]:
    """Where the sentences are from, for a result's record."""
    return {
        "source": "pydoc_data.topics",
        "python": platform.python_version(),
        "n_sentences": len(sentences()),
    }


def offtask(model: Any, n: int, seed: int) -> Side:
    """n different ordinary sentences as a side without variables; its only span is "end".

    Raises
    ------
    TaskError: n is not positive, or there are fewer sentences; a model without a tokenizer.
    """
    checks.count(n, "n")
    every = sentences()
    if n > len(every):
        raise TaskError(
            f"{n} off-task sentences were asked for and there are {len(every)}",
            why="they are taken, each once, from the documentation that comes with Python",
            instead=f"ask for n <= {len(every)}",
        )
    pick = rng(seed, "offtask").permutation(len(every))[:n]
    prompts = [Prompt(every[int(k)]) for k in pick]
    return to_side(Encoder(model), prompts, [{} for _ in prompts])
