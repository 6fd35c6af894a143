"""Indirect object identification: who receives, when two people are named and one of them gives.

The task is that of Wang et al. 2022 (arXiv 2211.00593): fifteen templates, either name first (ABBA, BABA),
and a distribution ABC of three unrelated names. The wording here is Microtome's own. Templates come in three
layouts of five; within a layout every token stands at the same place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from microtome.tasks.encode import Prompt, render
from microtome.tasks.first_names import first_names
from microtome.tasks.generator import Answers, Draw, Generator, Values, blocks
from microtome.tasks.rng import choose, spread

if TYPE_CHECKING:
    import numpy as np

__all__ = ["IOI"]

_TEMPLATES = (
    "When {first} and {second} went to the {place}, {third} gave a {object} to",
    "After {first} and {second} arrived at the {place}, {third} handed a {object} to",
    "While {first} and {second} waited at the {place}, {third} passed a {object} to",
    "Once {first} and {second} got to the {place}, {third} offered a {object} to",
    "As {first} and {second} sat in the {place}, {third} showed a {object} to",
    "Then, {first} and {second} had a long talk at the {place}. {third} gave a {object} to",
    "Today, {first} and {second} spent the whole day at the {place}. {third} brought a {object} to",
    "Meanwhile, {first} and {second} had a great time at the {place}. {third} sold a {object} to",
    "Later, {first} and {second} met some old friends at the {place}. {third} returned a {object} to",
    "Finally, {first} and {second} took a short walk to the {place}. {third} sent a {object} to",
    "At the {place}, {first} and {second} talked for a while, and then {third} gave a {object} to",
    "Near the {place}, {first} and {second} stopped for a moment, and then {third} handed a {object} to",
    "In the {place}, {first} and {second} worked for an hour, and then {third} showed a {object} to",
    "Outside the {place}, {first} and {second} stood for a while, and soon {third} passed a {object} to",
    "By the {place}, {first} and {second} rested for a bit, and later {third} offered a {object} to",
)
_PLACES = [
    "store",
    "school",
    "hospital",
    "station",
    "restaurant",
    "park",
    "office",
    "library",
    "museum",
    "hotel",
    "house",
    "garden",
    "market",
    "church",
]
_OBJECTS = [
    "drink",
    "book",
    "ring",
    "ball",
    "letter",
    "card",
    "key",
    "map",
    "gift",
    "bottle",
    "cup",
    "hat",
    "basket",
    "box",
    "camera",
    "pen",
    "coin",
    "flower",
]
_ORDERS = ("ABBA", "BABA")


class IOI(Generator):
    """Pairs of the indirect object task."""

    name = "ioi"
    summary = "When Mary and John went to the store, John gave a drink to -> Mary"
    source = "in the style of Wang et al. 2022, arXiv 2211.00593; first names from Faker"
    version = "3"
    variables = ("io", "subject", "order", "template")
    counterfactuals: ClassVar[Mapping[str, frozenset[str]]] = {
        "swapped_subject": frozenset({"io", "subject", "order"}),
        "three_names": frozenset({"io", "subject", "order"}),
    }

    def __init__(self, model: Any, counterfactual: str | None = None) -> None:
        super().__init__(model, counterfactual)
        self.flips = self.counterfactual == "swapped_subject"
        self.names = [name.text for name in first_names(self.encoder, least=6)]
        self.blocks = blocks(self.names, 6, "names")
        self.places = self.encoder.words(_PLACES, "places", least=3)
        self.objects = self.encoder.words(_OBJECTS, "objects", least=3)

    def details(self) -> Mapping[str, object]:
        """Pool sizes after checking them against the tokenizer."""
        pools = {"names": self.names, "places": self.places, "objects": self.objects}
        return {f"n_{what}": len(pool) for what, pool in pools.items()}

    def draw(self, i: int, seed: int, random: np.random.Generator) -> Draw:
        """Pair i: templates and name blocks in turn; a template's order alternates from round to round."""
        index = spread(range(len(_TEMPLATES)), i, seed, "template")
        entity, pool = spread(self.blocks, i, seed, "entity")
        a, b, *others = (pool[int(k)] for k in random.permutation(len(pool)))
        clean = {
            "io": a,
            "subject": b,
            "order": _ORDERS[(index + i // len(_TEMPLATES)) % 2],
            "template": f"ioi-{index:02d}",
            "place": choose(self.places, random),
            "object": choose(self.objects, random),
        }
        if self.counterfactual == "swapped_subject":
            other = {"io": b, "subject": a, "order": _ORDERS[1 - _ORDERS.index(clean["order"])]}
        else:
            other = {"io": f"{others[0]}|{others[1]}", "subject": others[2], "order": "ABC"}
        return Draw(clean, {**clean, **other}, (" " + a,), (" " + b,), clean["template"], entity)

    def render(self, values: Values) -> Prompt:
        """The prompt; with the order ABC no name repeats, `io` holds both first names and the answer is open."""
        if values["order"] == "ABC":
            first, second = values["io"].split("|")
        else:
            first, second = values["io"], values["subject"]
            if values["order"] == "BABA":
                first, second = second, first
        slots = {"first": first, "second": second, "third": values["subject"]}
        template = _TEMPLATES[int(values["template"].removeprefix("ioi-"))]
        return render(template, {**slots, "place": values["place"], "object": values["object"]})

    def roles(self, clean: Values) -> Mapping[str, str]:
        """io, s1 and s2 as in Wang et al.; place and object."""
        io, s1 = ("first", "second") if clean["order"] == "ABBA" else ("second", "first")
        return {"io": io, "s1": s1, "s2": "third", "place": "place", "object": "object"}

    def resurface(self, values: Values, random: np.random.Generator) -> Values:
        """Another place and another object."""
        places = [p for p in self.places if p != values["place"]]
        objects = [o for o in self.objects if o != values["object"]]
        return {**values, "place": choose(places, random), "object": choose(objects, random)}

    def revalue(
        self, clean: Values, corrupt: Values, random: np.random.Generator
    ) -> tuple[Values, Answers, Answers]:
        """Two other names, the roles in the order that clean does not have: no variable has clean's value.

        With clean's order a donor would still say which of the base's two names is the answer.
        """
        used = {*clean["io"].split("|"), clean["subject"], *corrupt["io"].split("|"), corrupt["subject"]}
        free = [name for name in self.names if name not in used]
        io, subject = (free[int(k)] for k in random.permutation(len(free))[:2])
        known = clean["order"] if clean["order"] != "ABC" else _ORDERS[0]
        order = corrupt["order"] if corrupt["order"] != "ABC" else _ORDERS[1 - _ORDERS.index(known)]
        own = subject if corrupt["order"] == "ABC" else corrupt["io"]
        return {**clean, "io": io, "subject": subject, "order": order}, (" " + io,), (" " + own,)

    def interchange(self, values: Values, variable: str, value: str) -> Answers:
        """The indirect object, whatever the order and the subject; nobody is both, and ABC has no answer."""
        new = {**values, variable: value}
        if "ABC" in (values["order"], new["order"]) or "|" in new["io"] or new["io"] == new["subject"]:
            return ()
        return (" " + new["io"],)

    def redraw(self, values: Values, random: np.random.Generator) -> Values:
        """Any two names in either order, any place and object."""
        io, subject = (self.names[int(k)] for k in random.permutation(len(self.names))[:2])
        surface = {"place": choose(self.places, random), "object": choose(self.objects, random)}
        return {**values, "io": io, "subject": subject, "order": choose(_ORDERS, random), **surface}
