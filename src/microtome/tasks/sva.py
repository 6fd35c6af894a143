"""Subject-verb agreement over a distractor: a noun between subject and verb that may disagree in number.

After Linzen et al. 2016 (arXiv 1611.01368) and Marvin & Linzen 2018 (arXiv 1808.09031); nouns and verbs are
inflected by lemminflect.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from microtome.errors import TaskError
from microtome.tasks.encode import Prompt, render
from microtome.tasks.generator import Answers, Draw, Generator, Values, blocks
from microtome.tasks.rng import choose, spread

if TYPE_CHECKING:
    import numpy as np

__all__ = ["SVA"]

_TEMPLATES = (
    "The {noun} near the {distractor}",
    "The {noun} behind the {distractor}",
    "The {noun} with the {distractor}",
    "The {noun} that the {distractor} liked",
    "The {noun} that the {distractor} saw",
    "The {noun} that the {distractor} knew",
    "The {noun} who helped the {distractor}",
    "The {noun} who called the {distractor}",
    "The {noun} who followed the {distractor}",
    "Today, the {noun} next to the {distractor}",
    "Today, the {noun} close to the {distractor}",
    "Today, the {noun} far from the {distractor}",
)
_NOUNS = [
    "boy",
    "girl",
    "teacher",
    "doctor",
    "friend",
    "student",
    "author",
    "farmer",
    "lawyer",
    "driver",
    "player",
    "singer",
    "actor",
    "king",
    "queen",
    "soldier",
    "guard",
    "manager",
    "artist",
    "writer",
    "parent",
    "brother",
    "sister",
    "child",
    "woman",
    "man",
    "officer",
    "nurse",
    "worker",
    "leader",
]
_VERBS = (("be", "VBZ", "VBP"), ("be", "VBD", "VBD"), ("have", "VBZ", "VBP"))


class SVA(Generator):
    """Pairs of the agreement task."""

    name = "sva"
    summary = "The keys near the cabinet -> are, not is"
    source = "in the style of Linzen et al. 2016, arXiv 1611.01368; inflected by lemminflect"
    variables = ("number", "distractor_number", "verb", "template")
    counterfactuals: ClassVar[Mapping[str, frozenset[str]]] = {"other_number": frozenset({"number"})}

    def __init__(self, model: Any, counterfactual: str | None = None) -> None:
        super().__init__(model, counterfactual)
        forms = {noun: {"singular": noun, "plural": _plural(noun)} for noun in _NOUNS}
        single = set(
            self.encoder.words([f for both in forms.values() for f in both.values()], "nouns", least=8)
        )
        self.nouns = {noun: both for noun, both in forms.items() if single.issuperset(both.values())}
        if len(self.nouns) < 4:
            raise TaskError(
                f"{len(self.nouns)} nouns are one token in both numbers for this tokenizer, 4 are needed",
                why="the counterfactual changes the number only, so both forms must be equally long",
                instead="use another task, or give pairs of your own (mt.pairs)",
            )
        self.blocks = blocks(list(self.nouns), 4, "nouns")
        self.verbs = {f"{singular}/{plural}": (singular, plural) for singular, plural in _verb_forms()}

    def details(self) -> Mapping[str, object]:
        """Pool sizes after checking them against the tokenizer."""
        return {"n_nouns": len(self.nouns), "verbs": list(self.verbs)}

    def draw(self, i: int, seed: int, random: np.random.Generator) -> Draw:
        """Pair i: subject number and distractor number balanced, each independent of the other."""
        index = spread(range(len(_TEMPLATES)), i, seed, "template")
        entity, pool = spread(self.blocks, i, seed, "entity")
        number, distractor_number = spread([(a, b) for a in _NUMBERS for b in _NUMBERS], i, seed, "numbers")
        noun, distractor = (pool[int(k)] for k in random.permutation(len(pool))[:2])
        clean = {
            "number": number,
            "distractor_number": distractor_number,
            "verb": spread(list(self.verbs), i, seed, "verb"),
            "template": f"sva-{index:02d}",
            "noun": noun,
            "distractor": distractor,
        }
        right, wrong = self._answers(clean)
        return Draw(clean, {**clean, "number": _other(number)}, (right,), (wrong,), clean["template"], entity)

    def _answers(self, values: Values) -> tuple[str, str]:
        singular, plural = (" " + form for form in self.verbs[values["verb"]])
        return (singular, plural) if values["number"] == "singular" else (plural, singular)

    def render(self, values: Values) -> Prompt:
        """The noun phrase up to where the verb comes."""
        template = _TEMPLATES[int(values["template"].removeprefix("sva-"))]
        noun = self.nouns[values["noun"]][values["number"]]
        return render(
            template,
            {"noun": noun, "distractor": self.nouns[values["distractor"]][values["distractor_number"]]},
        )

    def roles(self, clean: Values) -> Mapping[str, str]:
        """subject and distractor."""
        return {"subject": "noun", "distractor": "distractor"}

    def resurface(self, values: Values, random: np.random.Generator) -> Values:
        """Other nouns in the same numbers."""
        free = [n for n in self.nouns if n not in (values["noun"], values["distractor"])]
        noun, distractor = (free[int(k)] for k in random.permutation(len(free))[:2])
        return {**values, "noun": noun, "distractor": distractor}

    def revalue(
        self, clean: Values, corrupt: Values, random: np.random.Generator
    ) -> tuple[Values, Answers, Answers]:
        """Refused: number has two values, and both are taken by the pair."""
        raise two_valued(self.name, "number")

    def interchange(self, values: Values, variable: str, value: str) -> Answers:
        """The form of the verb that the subject's number takes, whatever the distractor's; no prompt holds the verb."""
        if variable == "verb" and value != values["verb"]:
            return ()
        return (self._answers({**values, variable: value})[0],)

    def redraw(self, values: Values, random: np.random.Generator) -> Values:
        """Any nouns in any numbers; the verb plays no part in the prompt."""
        numbers = {"number": choose(_NUMBERS, random), "distractor_number": choose(_NUMBERS, random)}
        noun, distractor = (list(self.nouns)[int(k)] for k in random.permutation(len(self.nouns))[:2])
        return {**values, **numbers, "noun": noun, "distractor": distractor}


_NUMBERS = ("singular", "plural")


def two_valued(name: str, variable: str) -> TaskError:
    """Why a task whose answer has two values cannot give wrong-value donors."""
    return TaskError(
        f'"{name}" has no wrong_value donors',
        why=f"{variable} has two values and the two sides of a pair have one each: a third answer does not exist",
        instead="report this control as not run; same_value and irrelevant donors exist",
    )


def _other(number: str) -> str:
    return _NUMBERS[1 - _NUMBERS.index(number)]


def _plural(noun: str) -> str:
    from lemminflect import getInflection

    return str(getInflection(noun, tag="NNS")[0])


def _verb_forms() -> list[tuple[str, str]]:
    from lemminflect import getInflection

    # "be" has two forms per tense: third person singular first under VBD, last under VBP ("am", "are")
    return [
        (str(getInflection(v, tag=one)[0]), str(getInflection(v, tag=many)[-1])) for v, one, many in _VERBS
    ]
