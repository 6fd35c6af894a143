"""What the zoo has, by name: one table for compiled and trained models, filled by the modules that make them."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from microtome.errors import ModelError
from microtome.zoo import programs

if TYPE_CHECKING:
    from microtome.zoo.specimen import Specimen
    from microtome.zoo.trained import Subject

__all__ = ["Entry", "build", "entries", "register", "subjects"]


@dataclass(frozen=True)
class Entry:
    """One model of the zoo. tier: "A" (true by construction) or "B" (trained, mechanism published).

    make: (seed=..., and options of its own) -> a specimen. decoys: whether it takes `decoys`.
    """

    name: str
    tier: str
    summary: str
    make: Callable[..., Any]
    decoys: bool = False


_TABLE: dict[str, Entry] = {}
WRITTEN = {
    "superposition": ("superposed", "B", "five sparse features in two dimensions of the stream, trained to a pentagon"),
    "subspace_illusion": ("illusion", "A", "a direction of neurons that seems to carry a word, and does not"),
    "planted_direction": ("planted", "A", "a direction of the stream decides the answer, good or bad (norms optional)"),
    "planted_backdoor": ("planted", "A", "a trigger word turns the answer round through one head and two neurons"),
    "interchange_shift": ("interchanged", "A", "shift in one head, trained so that nothing else matters"),
    "interchange_induction": ("interchanged", "A", "induction in two heads, trained so that nothing else matters"),
    "interchange_detect_abc": ("interchanged", "A", "detect_abc in two heads and two MLPs, trained so that nothing else matters"),
    "interchange_first_occurrence": ("interchanged", "A", "first_occurrence in a head and two MLPs, trained so that nothing else matters"),
}  # fmt: skip
"""Models whose weights are written down, or trained to a mechanism: module (whose function has the model's name), tier, summary."""
TRAINED: tuple[tuple[Any, ...], ...] = (
    ("symbolic_ioi", "SymbolicIOI"),
    ("induction_heads", "InductionHeads"),
    ("max_of_k", "MaxOfK"),
    ("balanced_brackets", "BalancedBrackets"),
    ("modular_addition", "ModularAddition", 59),
    ("modular_addition", "ModularAddition", 113),
)
"""(module, class, its arguments) of every trained model with a published mechanism."""


def register(entry: Entry) -> None:
    """Add a model to the table.

    Raises
    ------
    ModelError: the name is taken.
    """
    if entry.name in entries():
        raise ModelError(f"the zoo already has {entry.name!r}", instead="choose another name")
    _TABLE[entry.name] = entry


def entries() -> dict[str, Entry]:
    """Every model of the zoo by its name."""

    def compiled(name: str, **options: Any) -> Any:
        from microtome.zoo.specimen import compiled as make

        return make(name, **options)

    own = {
        name: Entry(name, "A", programs.program(name).summary, partial(compiled, name), decoys=True)
        for name in programs.NAMES
    }
    return own | _written() | _trained() | _TABLE


def _written() -> dict[str, Entry]:
    def make(name: str, **options: Any) -> Any:
        import importlib

        module = importlib.import_module(f"{__package__}.{WRITTEN[name][0]}")
        return getattr(module, name)(**options)

    return {
        name: Entry(name, tier, said, partial(make, name), decoys=module != "interchanged")
        for name, (module, tier, said) in WRITTEN.items()
    }


def subjects() -> tuple[Subject, ...]:
    """The trained models with a published mechanism, each from its module; read when asked for, since they need torch."""
    import importlib

    return tuple(getattr(importlib.import_module(f"{__package__}.{m}"), c)(*a) for m, c, *a in TRAINED)


@cache
def _trained() -> dict[str, Entry]:
    from microtome.zoo.trained import entry

    return {subject.name: entry(subject) for subject in subjects()}


def build(name: str, *, seed: int = 0, **options: Any) -> Specimen:
    """A model whose mechanism is known: `z.model`, `z.mechanism`, `z.task`.

    Parameters
    ----------
    name: see `entries()`; "x_proportion" is "frac_prevs".
    seed: of everything random: task pairs and decoys, or training.
    options: of a compiled program `decoys` (a `Decoys`, default none) and `n` (pairs of the task, default 32); of a trained
        model `n`, `train=True` (though its weights ship), `folder` (for checkpoints) and what its recipe takes.

    Raises
    ------
    ModelError: no such model, or one that does not do what it should.
    """
    known = entries()
    name = programs.ALIASES.get(name, name)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise ModelError(
            f"the zoo has no {name!r}",
            why=f"it has {', '.join(known)}",
            instead=f"did you mean {near[0]!r}?" if near else "choose one of them",
        )
    made: Specimen = known[name].make(seed=seed, **options)
    made.model.asked = {"kind": "zoo", "name": name, "seed": seed, "options": options}
    return made
