"""Gendered pronouns: he or she after a first name (after Mathwin et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from microtome.tasks.encode import Prompt, render
from microtome.tasks.first_names import first_names
from microtome.tasks.generator import Answers, Draw, Generator, Values, blocks
from microtome.tasks.rng import choose, spread
from microtome.tasks.sva import two_valued

if TYPE_CHECKING:
    import numpy as np

__all__ = ["GenderedPronoun"]

_TEMPLATES = (
    "So {name} is a really good {role}, isn't",
    "Clearly {name} was a very nice {role}, wasn't",
    "Today {name} is a much better {role}, isn't",
    "Maybe {name} was a rather bad {role}, wasn't",
    "The {role} met {name} yesterday and said that",
    "The {role} thanked {name} for the help that",
    "The {role} asked {name} a question, but",
    "Our {role} called {name} this morning, when",
    "As a {role}, {name} has to work hard, and",
    "Being a {role}, {name} got up very early, and",
    "Like every {role}, {name} likes to sleep late, but",
    "For a {role}, {name} is doing quite well, since",
)
_ROLES = [
    "friend",
    "student",
    "teacher",
    "singer",
    "writer",
    "player",
    "driver",
    "doctor",
    "artist",
    "worker",
    "neighbor",
    "leader",
]
_PRONOUNS = {"female": " she", "male": " he"}


class GenderedPronoun(Generator):
    """Pairs of the pronoun task; the name is surface, its gender the variable."""

    name = "gendered_pronoun"
    summary = "So Mary is a really good friend, isn't -> she"
    source = "in the style of Mathwin et al. 2023 (identifying a circuit for gendered pronouns in GPT-2); first names from Faker"
    version = "2"
    variables = ("gender", "template")
    counterfactuals: ClassVar[Mapping[str, frozenset[str]]] = {"other_gender": frozenset({"gender"})}

    def __init__(self, model: Any, counterfactual: str | None = None) -> None:
        super().__init__(model, counterfactual)
        names = first_names(self.encoder, least=4)
        self.names = {g: [name.text for name in names if name.gender == g] for g in _PRONOUNS}
        halves = [blocks(self.names[g], 3, "names") for g in _PRONOUNS]
        self.blocks = [(label, women, men) for (label, women), (_, men) in zip(*halves, strict=False)]
        self.roles_words = self.encoder.words(_ROLES, "roles", least=3)

    def details(self) -> Mapping[str, object]:
        """Pool sizes after checking them against the tokenizer."""
        return {"n_names": {g: len(pool) for g, pool in self.names.items()}, "n_roles": len(self.roles_words)}

    def draw(self, i: int, seed: int, random: np.random.Generator) -> Draw:
        """Pair i: a woman's and a man's name of one block, either of them clean."""
        index = spread(range(len(_TEMPLATES)), i, seed, "template")
        entity, *pools = spread(self.blocks, i, seed, "entity")
        named = {g: choose(pool, random) for g, pool in zip(_PRONOUNS, pools, strict=True)}
        gender, other = spread([("female", "male"), ("male", "female")], i, seed, "gender")
        shared = {"template": f"pronoun-{index:02d}", "role": choose(self.roles_words, random)}
        clean, corrupt = ({**shared, "gender": g, "name": named[g]} for g in (gender, other))
        return Draw(clean, corrupt, (_PRONOUNS[gender],), (_PRONOUNS[other],), shared["template"], entity)

    def render(self, values: Values) -> Prompt:
        """The sentence up to the pronoun."""
        template = _TEMPLATES[int(values["template"].removeprefix("pronoun-"))]
        return render(template, {"name": values["name"], "role": values["role"]})

    def roles(self, clean: Values) -> Mapping[str, str]:
        """name and role."""
        return {"name": "name", "role": "role"}

    def resurface(self, values: Values, random: np.random.Generator) -> Values:
        """Another name of the same gender, another role."""
        names = [n for n in self.names[values["gender"]] if n != values["name"]]
        roles = [r for r in self.roles_words if r != values["role"]]
        return {**values, "name": choose(names, random), "role": choose(roles, random)}

    def revalue(
        self, clean: Values, corrupt: Values, random: np.random.Generator
    ) -> tuple[Values, Answers, Answers]:
        """Refused: there are two pronouns, and both are taken by the pair."""
        raise two_valued(self.name, "gender")

    def interchange(self, values: Values, variable: str, value: str) -> Answers:
        """The pronoun of the gender; the name is surface, and another name with it."""
        return (_PRONOUNS[value if variable == "gender" else values["gender"]],)

    def redraw(self, values: Values, random: np.random.Generator) -> Values:
        """Any name, any role."""
        gender = choose(tuple(_PRONOUNS), random)
        drawn = {"gender": gender, "name": choose(self.names[gender], random)}
        return {**values, **drawn, "role": choose(self.roles_words, random)}
