"""Coloured objects: three are listed, one is asked for (after BIG-bench and Merullo et al. 2024, arXiv 2310.08744)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from microtome.tasks.encode import Prompt, render
from microtome.tasks.generator import Answers, Draw, Generator, Values, blocks
from microtome.tasks.rng import choose, spread

if TYPE_CHECKING:
    import numpy as np

__all__ = ["ColoredObjects"]

_TEMPLATES = (
    "Near the {place} there is a {thing1}, a {thing2}, and a {thing3}. The color of the {query} is",
    "Under the {place} I see a {thing1}, a {thing2}, and a {thing3}. The color of the {query} is",
    "By the {place} we found a {thing1}, a {thing2}, and a {thing3}. The color of the {query} is",
    "By the {place} he left a {thing1}, a {thing2}, and a {thing3}. We know that the {query} is",
    "Near the {place} they keep a {thing1}, a {thing2}, and a {thing3}. I see that the {query} is",
    "By the {place} there stood a {thing1}, a {thing2}, and a {thing3}. You see that the {query} is",
    "Under the {place} there lay a {thing1}, a {thing2}, and a {thing3}. She says that the {query} is",
    "Near the {place} there was a {thing1}, a {thing2}, and a {thing3}. They say that the {query} is",
    "Near the {place} she kept a {thing1}, a {thing2}, and a {thing3}. He knows that the {query} is",
    "Under the {place} we hid a {thing1}, a {thing2}, and a {thing3}. They know that the {query} is",
    "By the {place} you left a {thing1}, a {thing2}, and a {thing3}. I think that the {query} is",
    "Near the {place} someone put a {thing1}, a {thing2}, and a {thing3}. We see that the {query} is",
)
_COLORS = ["red", "blue", "green", "yellow", "black", "white", "brown", "purple", "pink", "gray"]
_OBJECTS = [
    "pen",
    "cup",
    "book",
    "ball",
    "hat",
    "box",
    "key",
    "bag",
    "plate",
    "bottle",
    "chair",
    "lamp",
    "phone",
    "shirt",
    "bowl",
    "pencil",
    "spoon",
    "candle",
    "ring",
    "coin",
    "card",
    "toy",
    "towel",
    "pillow",
]
_PLACES = ["table", "desk", "shelf", "bed", "window", "door", "wall"]


class ColoredObjects(Generator):
    """Pairs of the coloured-objects task.

    "other_query" asks for another of the three objects; "other_color" repaints the object that is asked for.
    """

    name = "colored_objects"
    summary = (
        "Near the table there is a red pen, a blue cup, and a green book. The color of the cup is -> blue"
    )
    source = "in the style of BIG-bench's reasoning about colored objects and Merullo et al. 2024, arXiv 2310.08744"
    version = "2"
    variables = ("query", "color", "objects", "colors", "template")
    counterfactuals: ClassVar[Mapping[str, frozenset[str]]] = {
        "other_query": frozenset({"query", "color"}),
        "other_color": frozenset({"color", "colors"}),
    }

    def __init__(self, model: Any, counterfactual: str | None = None) -> None:
        super().__init__(model, counterfactual)
        self.colors = self.encoder.words(_COLORS, "colors", least=5)
        self.objects = self.encoder.words(_OBJECTS, "objects", least=3)
        self.places = self.encoder.words(_PLACES, "places", least=3)
        self.blocks = blocks(self.objects, 3, "objects")

    def details(self) -> Mapping[str, object]:
        """Pool sizes after checking them against the tokenizer."""
        pools = {"colors": self.colors, "objects": self.objects, "places": self.places}
        return {f"n_{what}": len(pool) for what, pool in pools.items()}

    def draw(self, i: int, seed: int, random: np.random.Generator) -> Draw:
        """Pair i: the object asked for is the first, second and third of the list in turn."""
        index = spread(range(len(_TEMPLATES)), i, seed, "template")
        entity, pool = spread(self.blocks, i, seed, "entity")
        asked = spread(range(3), i, seed, "asked")
        objects = [pool[int(k)] for k in random.permutation(len(pool))[:3]]
        colors = [self.colors[int(k)] for k in random.permutation(len(self.colors))[:4]]
        clean = _values(objects, colors[:3], asked, f"colored-{index:02d}", choose(self.places, random))
        if self.counterfactual == "other_query":
            asked = (asked + 1 + int(random.integers(2))) % 3
        else:
            colors[asked] = colors[3]
        corrupt = _values(objects, colors[:3], asked, clean["template"], clean["place"])
        right, wrong = ((" " + side["color"],) for side in (clean, corrupt))
        return Draw(clean, corrupt, right, wrong, clean["template"], entity)

    def render(self, values: Values) -> Prompt:
        """The list and the question, up to the colour."""
        template = _TEMPLATES[int(values["template"].removeprefix("colored-"))]
        listed = list(zip(values["colors"].split(), values["objects"].split(), strict=True))
        things = {f"thing{k}": f"{color} {thing}" for k, (color, thing) in enumerate(listed, 1)}
        made = render(template, {**things, "query": values["query"], "place": values["place"]})
        slots = dict(made.slots)
        for k, (color, _) in enumerate(listed, 1):
            start, stop = slots.pop(f"thing{k}")
            slots[f"color{k}"] = (start, start + len(color))
            slots[f"object{k}"] = (start + len(color) + 1, stop)
        return Prompt(made.text, slots)

    def roles(self, clean: Values) -> Mapping[str, str]:
        """color and object: those asked for; color1..object3: by place; query; place."""
        at = clean["objects"].split().index(clean["query"]) + 1
        every = {f"{what}{k}": f"{what}{k}" for k in (1, 2, 3) if k != at for what in ("color", "object")}
        return {"color": f"color{at}", "object": f"object{at}", **every, "query": "query", "place": "place"}

    def resurface(self, values: Values, random: np.random.Generator) -> Values:
        """Another place; objects and colours are variables."""
        return {**values, "place": choose([p for p in self.places if p != values["place"]], random)}

    def revalue(
        self, clean: Values, corrupt: Values, random: np.random.Generator
    ) -> tuple[Values, Answers, Answers]:
        """The object asked for in neither prompt; where the prompts differ in the colour only, a third colour."""
        objects, colors = clean["objects"].split(), clean["colors"].split()
        if self.counterfactual == "other_color":
            asked = objects.index(clean["query"])
            colors[asked] = choose(
                [x for x in self.colors if x not in colors and x != corrupt["color"]], random
            )
            values = _values(objects, colors, asked, clean["template"], clean["place"])
            return values, (" " + values["color"],), (" " + corrupt["color"],)
        free = [k for k, o in enumerate(objects) if o not in (clean["query"], corrupt["query"])]
        asked = free[int(random.integers(len(free)))]
        values = _values(objects, colors, asked, clean["template"], clean["place"])
        return values, (" " + values["color"],), (" " + corrupt["color"],)

    def interchange(self, values: Values, variable: str, value: str) -> Answers:
        """The colour itself; or that of the object asked for, where it is among the objects."""
        new = {**values, variable: value}
        if variable == "color":
            return (" " + new["color"],)
        painted = dict(zip(new["objects"].split(), new["colors"].split(), strict=True))
        return (" " + painted[new["query"]],) if new["query"] in painted else ()

    def redraw(self, values: Values, random: np.random.Generator) -> Values:
        """Any objects, colours, question and place."""
        objects = [self.objects[int(k)] for k in random.permutation(len(self.objects))[:3]]
        colors = [self.colors[int(k)] for k in random.permutation(len(self.colors))[:3]]
        return _values(
            objects, colors, int(random.integers(3)), values["template"], choose(self.places, random)
        )


def _values(objects: list[str], colors: list[str], asked: int, template: str, place: str) -> dict[str, str]:
    return {
        "query": objects[asked],
        "color": colors[asked],
        "objects": " ".join(objects),
        "colors": " ".join(colors),
        "template": template,
        "place": place,
    }
