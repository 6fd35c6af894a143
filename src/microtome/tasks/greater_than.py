"""Greater-than: an end year must come after the start year (Hanna et al. 2023, arXiv 2305.00586).

The score is the probability of all later two-digit endings against all others, each as this tokenizer's own
sequence of tokens: one token where it has two-digit tokens (GPT-2), two where digits stand alone (SmolLM2). There
the prefix tree is cut where it is decided: a first digit after which every ending is later counts by its own
probability, and only the start year's own first digit is followed further. That is one teacher-forced row for a
prompt instead of ten; it differs from the sum over all endings by what the model puts on a first digit and no digit
after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from microtome.tasks.encode import Prompt, render
from microtome.tasks.generator import Answers, Draw, Generator, Values
from microtome.tasks.pairs import Continuations
from microtome.tasks.rng import choose, spread

if TYPE_CHECKING:
    import numpy as np

__all__ = ["GreaterThan"]

_TEMPLATES = (
    "The {noun} lasted from the year {century}{year} to the year {again}",
    "The {noun} continued from the year {century}{year} to the year {again}",
    "The {noun} extended from the year {century}{year} to the year {again}",
    "The {noun} ran from the year {century}{year} to the year {again}",
    "The {noun} began in {century}{year} and ended in {again}",
    "The {noun} started in {century}{year} and finished in {again}",
    "The {noun} opened in {century}{year} and closed in {again}",
    "The {noun} resumed in {century}{year} and stopped in {again}",
    "The {noun} took place between {century}{year} and {again}",
    "The {noun} was held between {century}{year} and {again}",
    "The {noun} went on between {century}{year} and {again}",
    "The {noun} played out between {century}{year} and {again}",
)
_NOUNS = [
    "war",
    "siege",
    "plague",
    "drought",
    "famine",
    "trial",
    "expedition",
    "voyage",
    "campaign",
    "rebellion",
    "project",
    "strike",
    "dispute",
    "alliance",
    "conflict",
    "journey",
    "reign",
    "mission",
    "crisis",
    "battle",
    "festival",
    "construction",
]
_CENTURIES = ("14", "15", "16", "17", "18")
_YEARS = tuple(f"{year:02d}" for year in range(2, 99))


class GreaterThan(Generator):
    """Pairs of the greater-than task; the corrupt start year ends in 01, after which every ending is later."""

    name = "greater_than"
    summary = "The war lasted from the year 1743 to the year 17 -> 44 .. 99"
    source = "in the style of Hanna et al. 2023, arXiv 2305.00586"
    variables = ("century", "year", "template")
    counterfactuals: ClassVar[Mapping[str, frozenset[str]]] = {"year_01": frozenset({"year"})}
    metric = "logprob_diff"
    version = "2"
    flips = False

    def __init__(self, model: Any, counterfactual: str | None = None) -> None:
        super().__init__(model, counterfactual)
        self.nouns = self.encoder.words(_NOUNS, "nouns", least=3)

    def details(self) -> Mapping[str, object]:
        """Pool sizes after checking them against the tokenizer."""
        return {"n_nouns": len(self.nouns), "centuries": list(_CENTURIES), "years": [_YEARS[0], _YEARS[-1]]}

    def draw(self, i: int, seed: int, random: np.random.Generator) -> Draw:
        """Pair i: years 02 to 98 in turn; the century is drawn again where the tokenizer joins its digits."""
        index = spread(range(len(_TEMPLATES)), i, seed, "template")
        clean = {
            "century": choose(_CENTURIES, random),
            "year": spread(_YEARS, i, seed, "entity"),
            "template": f"greater-than-{index:02d}",
            "noun": choose(self.nouns, random),
        }
        entity = f"year-{clean['year']}"
        return Draw(clean, {**clean, "year": "01"}, *_endings(clean["year"]), clean["template"], entity)

    def settle(self, answers: Continuations, wrong: Continuations) -> tuple[Continuations, Continuations]:
        """Both sets with decided subtrees cut to their first token; together they hold all hundred endings."""
        return _cut(answers, wrong), _cut(wrong, answers)

    def render(self, values: Values) -> Prompt:
        """The sentence up to the last two digits."""
        template = _TEMPLATES[int(values["template"].removeprefix("greater-than-"))]
        return render(template, {**values, "again": values["century"]})

    def roles(self, clean: Values) -> Mapping[str, str]:
        """noun; year: the two digits that decide."""
        return {"noun": "noun", "year": "year"}

    def resurface(self, values: Values, random: np.random.Generator) -> Values:
        """Another event."""
        return {**values, "noun": choose([n for n in self.nouns if n != values["noun"]], random)}

    def revalue(
        self, clean: Values, corrupt: Values, random: np.random.Generator
    ) -> tuple[Values, Answers, Answers]:
        """A year at least ten away from both."""
        used = [int(clean["year"]), int(corrupt["year"])]
        free = [y for y in _YEARS if min(abs(int(y) - u) for u in used) >= 10]
        year = choose(free, random)
        return {**clean, "year": year}, *_endings(year)

    def interchange(self, values: Values, variable: str, value: str) -> Answers:
        """The endings later than the year, whatever the century."""
        return tuple(_endings(value if variable == "year" else values["year"])[0])

    def redraw(self, values: Values, random: np.random.Generator) -> Values:
        """Any event in any year of the same century digits' length."""
        drawn = {"year": choose(_YEARS, random), "century": choose(_CENTURIES, random)}
        return {**values, **drawn, "noun": choose(self.nouns, random)}


def _cut(side: Continuations, other: Continuations) -> Continuations:
    undecided = {c[0] for c in other}
    return tuple(dict.fromkeys(c if c[0] in undecided else c[:1] for c in side))


def _endings(year: str) -> tuple[list[str], list[str]]:
    every = [f"{y:02d}" for y in range(100)]
    return [y for y in every if y > year], [y for y in every if y <= year]
