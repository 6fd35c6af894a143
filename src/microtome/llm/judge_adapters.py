"""A calibrated judge where a technique takes a measure or a judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from microtome.errors import ChatError
from microtome.llm.chat import Chat, Sampling
from microtome.llm.judging import Judge, Scale, not_the_generator
from microtome.llm.reading import GREEDY

if TYPE_CHECKING:
    from microtome.llm.judge_report import JudgeReport

__all__ = ["DescriptionJudge", "JudgeMeasure", "as_measure"]


@dataclass(frozen=True)
class JudgeMeasure:
    """A judge as `measure=` of `mt.methods.steering` and `directional_ablation`: texts to one score each.

    Its raw scores: controls of the technique are in the same unit. For a share or mean to report, put the scores through
    `judged_interval`.
    """

    judge: Judge
    name: str

    def __query__(self) -> dict[str, Any]:
        """What a record says of it."""
        return {"measure": self.name, **self.judge.__query__()}

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """One score per text. Raises ChatError where an answer cannot be read: a measure has no place for a missing score."""
        return _all_read(self.judge, texts)


def as_measure(report: JudgeReport, *, generator: str) -> JudgeMeasure:
    """A judge as a measure, from its report. generator: the model that is steered.

    Raises ChatError for a judge that is the generator, is invalid, or moves with the length of a text, which steering changes.
    """
    not_the_generator(report.judge, generator, report.models)
    report.require_valid()
    if "length" in report.found():
        raise ChatError(f"the judge {report.judge.name} scores longer texts differently", why="steering changes how long texts are, and the score would follow",
                        instead="another rubric or judge, or texts of one length")  # fmt: skip
    unit = "share judged to fit" if report.judge.scale.kind == "binary" else "judge's score"
    return JudgeMeasure(
        report.judge, f"{unit} ({report.judge.name}; raw, kappa {report.agreement.kappa:.2f})"
    )


@dataclass(frozen=True)
class DescriptionJudge:
    """A chat as `judge=` of `mt.methods.score_description`, whose shuffled descriptions and random directions are its null.

    Each context is asked alone, 0 to 10: how active is a unit so described at the token between « and »?
    """

    chat: Chat = field(repr=False)
    sampling: Sampling = GREEDY

    def __query__(self) -> dict[str, Any]:
        """What a record says of it."""
        return self._judge("the description").__query__()

    def __call__(self, description: str, contexts: list[str]) -> list[float]:
        """One score per context. Raises ChatError where an answer cannot be read."""
        return _all_read(self._judge(description), contexts)

    def _judge(self, description: str) -> Judge:
        rubric = (
            "A unit of a language model is described as follows. Score how active it is at the one token that stands between « and "
            f"» in the text, from what stands up to there. Description: {description}"
        )
        return Judge(self.chat, rubric, Scale("numeric", 0, 10), self.sampling)


def _all_read(judge: Judge, texts: Sequence[str]) -> list[float]:
    if not len(texts):
        return []
    scores = judge.score(list(texts))
    missing = len(texts) - len(scores.read())
    if missing:
        raise ChatError(f"{missing} of {len(texts)} answers of {judge.name} are no score ({scores.n_refused} refusals)",
                        why="a score that is missing is not filled in", instead="judge.score(texts) and judged_interval, which count them, or another judge")  # fmt: skip
    return list(scores.values)
