"""Steering (activation addition): add a direction to the stream, sweep its coefficient, and compare with everything else that
could do the same: directions without information, the opposite sign, a sibling concept, and simply asking (AxBench, Wu et al.
2025, where prompting beat every steering method).

Sources: Turner et al. 2023 (activation addition), Rimsky et al. 2024 (contrastive activation addition), Lee et al. 2024
(conditional steering).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from microtome.controls.directions import isotropic, likeness
from microtome.controls.intervals import mean_interval
from microtome.directions.contrast import Contrast
from microtome.directions.direction import Direction
from microtome.directions.estimate import Texts, as_direction, width_of
from microtome.errors import EditError, TaskError
from microtome.methods import steer_controls as check
from microtome.methods import steer_quality as quality
from microtome.methods.headlines import headlined
from microtome.methods.steer_measures import Floats, Measure, Reads, name_of, of_text
from microtome.methods.steer_runs import Condition, Push, Row, Stage, When, check_when
from microtome.results import seeds
from microtome.results.labelled import Labelled
from microtome.results.result import Result
from microtome.results.technique import progress, technique
from microtome.results.verdicts import verdict

if TYPE_CHECKING:
    import pandas as pd

    from microtome.facade import Model
    from microtome.sites import Site
    from microtome.tasks.pairs import PairTask

__all__ = ["Condition", "SteeringOptions", "steering"]

LEAST_PROMPTS = 4
BY_LOGPROB, BY_TEXT = 199, 19
WHERE = {"prompt": "prompt", "generated": "generated", "both": "prompt and generated"}
MANDATORY = ("zero", "receipts", "shuffled_labels", "isotropic", "natural_noise", "fluency", "off_task")


@dataclass(frozen=True)
class SteeringOptions:
    """What steering is compared with, and how much of it is run.

    data: the labelled text a given Direction was estimated on; its shuffled-label nulls come from it.
    sibling: another concept's direction, or its contrast. system_prompt, few_shot: texts that ask for the same by words.
    chat: prompts are put in the model's chat template. unit: "raw" (coefficient * direction), "direction_norm" (coefficient *
    unit direction) or "resid_norm" (coefficient * mean norm of the unsteered values there * unit direction).
    draws: null directions (None: 199 where the measure is a log-probability, 19 where it needs text); band: of these, how many
    are run at every coefficient for the band of the curve. tokens, temperature: of generated text. texts: prompts whose text is
    kept and judged for fluency. perplexity, loss, kl: largest tolerated ratio of perplexities, rise of
    the loss on neutral text, and KL there (nats per token).
    """

    data: Texts | None = None
    sibling: Direction | Texts | None = None
    system_prompt: str = ""
    few_shot: tuple[str, ...] = ()
    chat: bool = False
    unit: str = "raw"
    draws: int | None = None
    band: int | None = None
    tokens: int = 24
    temperature: float = 0.0
    texts: int = 8
    perplexity: float = 3.0
    loss: float = 0.5
    kl: float = 0.5
    alpha: float = 0.05


@technique("steering", "2", controls=("zero", "receipts", "first_token", "shuffled_labels", "shuffled_equal_norm", "isotropic", "natural_noise", "opposite_sign", "dose_response", "sibling",
                                      "prompting", "fluency", "off_task", "neutral_kl"),
           mandatory=MANDATORY, figure="microtome.figures.steering:draw", random=True)  # fmt: skip
def steering(
    model: Model,
    direction: Direction | Texts | Any,
    *,
    site: str | Site | None = None,
    coefficients: Sequence[float],
    prompts: Sequence[Any],
    measure: Measure,
    neutral: Sequence[Any] | PairTask | None,
    when: When = "generated",
    condition: Condition | None = None,
    options: SteeringOptions | None = None,
    seed: int = 0,
) -> Result:
    """Add a direction at a site with every coefficient, take the largest at which the text of half of the prompts stays fluent, and
    report it on the other half against null directions at the same coefficient.

    Parameters
    ----------
    direction: a Direction, labelled text of two classes or (positive texts, negative texts) whose mean difference is taken at
        `site`, or a bare [d] vector (which has no shuffled-label null, so its verdict stays unchecked).
    coefficients: signed doses, at least one of them not 0. One that adds the direction (or, without any, one that subtracts it) is
        reported; it is never chosen by the measure, which would make null directions look weak (docs/decisions/0018).
    measure: `Words`, `Continuations` (log-probabilities), `Lexicon`, `Reads` or a function from texts to numbers (generated text).
    neutral: plain texts, or an off-task PairTask, on which steering should change little.
    when: where the direction acts: the prompt's tokens, the generated ones as they are read back in, or both.
    condition: steer only where a probe's score passes a threshold.

    Effects: [site, prompt, metric], steered minus unsteered on the reported half, in the measure's unit. Tables: "dose" (one row
    per coefficient), "nulls", "baselines", "samples". The p is that of the same estimator on shuffled labels, each direction at its own
    length (a permutation test); noise of two kinds at the real one's length must do less as well.

    Raises
    ------
    EditError: a direction of another width or model, only the coefficient zero, an unknown `when` or unit.
    TaskError: fewer than four prompts, one class only, a measure that steering cannot reach.
    """
    o = options or SteeringOptions()
    doses = _doses(coefficients)
    check_when(measure, when, model)
    real, texts = as_direction(model, direction, site, o.data)
    at = texts.site if site is None and texts is not None else as_site(model, real, site)
    _own_judge(measure, real)
    rows = rows_of(model, prompts, o.chat)
    stage = Stage(model, at, when, condition, o.tokens, o.temperature, seeds.child(seed, "sampling"))
    s = Study(stage, measure, rows, stage.fires(rows), _scaled(stage, real, rows, o.unit), doses, o, seed)
    s.sweep()
    s.judge_texts()
    s.choose()
    nulls = _nulls(s, real, texts)
    s.compare(nulls)
    ran = [
        check.zero(s), check.receipts(s), check.first_token(real), *check.null_controls(s, nulls), check.opposite(s), check.dose_response(s),
        check.sibling(s, _sibling(model, at, o)), *_prompting(s, model, prompts), check.fluency(s),
        *quality.neutral(s, neutral, nulls),
    ]  # fmt: skip
    return headlined(_result(s, real, ran, nulls))


def as_site(model: Model, real: Direction, site: str | Site | None) -> Site:
    """The site that is steered: the one named, else the direction's own."""
    from microtome.directions.contrast import one_site

    return one_site(model, real.site if site is None else site)


class Study:
    """One steering question while it is measured. Shapes: sweep, null arrays [coefficient, prompt]."""

    def __init__(self, stage: Stage, measure: Measure, rows: list[Row], fires: list[bool], vector: torch.Tensor, doses: list[float],
                 options: SteeringOptions, seed: int) -> None:  # fmt: skip
        self.stage, self.measure, self.rows, self.fires = stage, measure, rows, fires
        self.vector, self.doses, self.o, self.seed = vector, doses, options, seed
        order = seeds.rng(seed, "halves").permutation(len(rows))
        self.explore, self.report = (sorted(order[k::2].tolist()) for k in (0, 1))
        self.text_rows = sorted(
            seeds.rng(seed, "texts").permutation(self.explore)[: max(1, options.texts)].tolist()
        )
        self.base: Floats = np.zeros(0)
        self.effects: Floats = np.zeros((0, 0))
        self.dose_table: list[dict[str, Any]] = []
        self.samples: list[dict[str, Any]] = []
        self.baselines: list[dict[str, Any]] = []
        self.best = 0
        self.p: float | None = None
        self.least: float | None = None
        self.fluent: dict[str, Any] = {}
        self.alike, self.n_alike = 0.0, 0

    @property
    def draws(self) -> int:
        """Null directions of each family."""
        return self.o.draws or (BY_TEXT if of_text(self.measure) else BY_LOGPROB)

    @property
    def coefficient(self) -> float:
        """The chosen dose."""
        return self.doses[self.best]

    @property
    def effect(self) -> Floats:
        """Steered minus unsteered at the chosen dose on the reported half. Shapes: [prompt]."""
        return self.effects[self.best, self.report]

    def change(self, vectors: Sequence[torch.Tensor], coefficient: float, prompts: Sequence[int]) -> Floats:
        """The measure's change under some vectors. Shapes: [vector, prompt]."""
        jobs: list[tuple[Push | None, int]] = [(Push(v, coefficient), p) for v in vectors for p in prompts]
        values, _ = self.stage.measured(self.measure, self.rows, jobs, self.fires)
        return values.reshape(len(vectors), len(prompts)) - self.base[list(prompts)]

    def stands_beside(self, kind: str, name: str, change: Floats) -> None:
        """Keep what something else did to the measure on the reported half, with its interval. Shapes: [prompt].

        kind: "words" (asking for it) or "sibling" (another concept's direction).
        """
        interval = mean_interval(change, list(range(len(change))))
        self.baselines.append(
            {
                "kind": kind,
                "name": name,
                "value": float(change.mean()),
                "low": float(interval.low),
                "high": float(interval.high),
                "n": len(change),
            }
        )

    def sweep(self) -> None:
        """The real direction at every coefficient on every prompt."""
        everyone = range(len(self.rows))
        self.base, made = self.stage.measured(
            self.measure, self.rows, [(None, p) for p in everyone], self.fires
        )
        jobs: list[tuple[Push | None, int]] = [
            (Push(self.vector, c) if c else None, p) for c in self.doses for p in everyone
        ]
        values, texts = self.stage.measured(self.measure, self.rows, jobs, self.fires)
        self.effects = values.reshape(len(self.doses), -1) - self.base
        self.kept = None if texts is None or made is None else (made, texts)
        progress(1, 4, "stages", "steered at every coefficient")

    def judge_texts(self) -> None:
        """Perplexity under the unsteered model and repetition of some texts at every coefficient; all of them are kept."""
        quality.judge(self)
        progress(2, 4, "stages", "texts judged")

    def choose(self) -> None:
        """The largest dose whose text is still fluent, of those that add the direction (of the others, where there is none).

        The measure has no say. Chosen by it, with null directions at the real one's dose, directions without information were called
        in 10 % of cases where doses have both signs, and in 18 % where the response has a peak.
        """
        sign = 1 if max(self.doses) > 0 else -1
        added = [i for i, c in enumerate(self.doses) if sign * c > 0]
        fluent = [i for i in added if not self.dose_table[i]["collapsed"]]
        if fluent:
            self.best = max(fluent, key=lambda i: abs(self.doses[i]))
        else:
            self.best = min(added, key=lambda i: abs(self.doses[i]))

    def compare(self, nulls: dict[str, Floats]) -> None:
        """Null directions at the chosen dose on the reported half, and a few of them at every dose for the band."""
        band = self.o.band if self.o.band is not None else (5 if of_text(self.measure) else 19)
        family = next(iter(nulls))
        vectors = [torch.from_numpy(v).float() for v in nulls[family][:band]]
        for i, c in enumerate(self.doses):
            if c and vectors:
                found = self.change(vectors, c, range(len(self.rows))).mean(1)
                self.dose_table[i] |= {"null_low": float(found.min()), "null_high": float(found.max())}
        progress(3, 4, "stages", "null directions at every coefficient")
        self.null_effects = {
            name: self.change(
                [torch.from_numpy(v).float() for v in rows], self.coefficient, self.report
            ).mean(1)
            for name, rows in nulls.items()
        }
        if family == "shuffled_labels":
            self.alike, self.n_alike = likeness(nulls[family], self.vector.numpy()), len(nulls[family])
        first = self.null_effects[family]
        own = float(self.effect.mean())
        self.p = check.rank_p(own, first)
        self.least = 1 / (1 + len(first))
        progress(4, 4, "stages", "null directions at the chosen coefficient")


def _doses(coefficients: Sequence[float]) -> list[float]:
    out = sorted({float(c) for c in coefficients})
    if not out or not np.isfinite(out).all():
        raise EditError(f"coefficients {list(coefficients)}", why="a sweep has finite doses", instead="for example [-4, -2, 2, 4, 8]")  # fmt: skip
    if out == [0.0]:
        raise EditError("coefficient zero alone", why="it changes nothing, so nothing can be seen", instead="doses of both signs: [-4, -2, 2, 4, 8]")  # fmt: skip
    return out


def _own_judge(measure: Measure, real: Direction) -> None:
    if (
        isinstance(measure, Reads)
        and measure.direction.vector.shape == real.vector.shape
        and abs(measure.direction.cosine(real)) > 0.99
    ):
        raise TaskError("the judging probe is the steering direction", why="its score rises because it is added, whatever the text says",
                        instead="a probe trained on other data, or another measure")  # fmt: skip


def rows_of(model: Model, prompts: Sequence[Any], chat: bool, *, least: int = LEAST_PROMPTS) -> list[Row]:
    """Token ids of prompts, under the model's chat template if asked.

    Raises
    ------
    TaskError: fewer than `least`.
    """
    if isinstance(prompts, str) or len(prompts) < least:
        n = 1 if isinstance(prompts, str) else len(prompts)
        why = (
            "the dose is chosen on one half of them and reported on the other"
            if least == LEAST_PROMPTS
            else "one prompt has no spread"
        )
        raise TaskError(f"{n} prompts", why=why, instead=f"at least {least} prompts")
    if chat:
        return [model.chat([{"role": "user", "content": p}]) for p in prompts]
    return model.tokens(list(prompts)).rows()


def _scaled(stage: Stage, real: Direction, rows: list[Row], unit: str) -> torch.Tensor:
    """The vector that a coefficient of 1 adds."""
    if unit == "raw":
        return real.vector
    if unit == "direction_norm":
        return real.unit
    if unit != "resid_norm":
        raise EditError(f"unit={unit!r} is not a unit", why="a coefficient needs one", instead='"raw", "direction_norm" or "resid_norm"')  # fmt: skip
    trace = stage.model.run(rows, stage.site, logits=None)
    norms = [
        v[m.to(v.device)][1:].float().norm(dim=-1) for v, m in zip(trace[stage.site], trace.mask, strict=True)
    ]
    return real.unit * float(torch.cat(norms).mean())


def _nulls(s: Study, real: Direction, texts: Contrast | None) -> dict[str, Floats]:
    """Null directions by family, the one that gives p first: shuffled labels and natural noise where there are texts."""
    size = float(s.vector.norm())
    out: dict[str, Floats] = {}
    if texts is not None:
        out |= check.families(texts, real, size, s.draws, s.seed)
    out["isotropic"] = isotropic(len(s.vector), np.full(s.draws, size), seed=s.seed, name="steering")
    return out


def _sibling(model: Model, at: Site, o: SteeringOptions) -> Direction | None:
    if o.sibling is None:
        return None
    found, _ = as_direction(model, o.sibling, at)
    found.check(model.hash, width_of(model, at))
    return found


def _prompting(s: Study, model: Model, prompts: Sequence[Any]) -> list[Any]:
    """Asking by words, measured as steering is: a system prompt (in front of the text where there is no template), examples."""
    ways: dict[str, list[Row]] = {}
    if s.o.system_prompt:
        ways["system prompt"] = _rows_with(model, prompts, s.o.system_prompt, (), s.o.chat)
    if s.o.few_shot:
        ways["few-shot"] = _rows_with(model, prompts, "", s.o.few_shot, s.o.chat)
    for name, rows in ways.items():
        values, made = s.stage.measured(s.measure, rows, [(None, p) for p in s.report], [True] * len(rows))
        s.stands_beside("words", name, values - s.base[s.report])
        made = made or s.stage.generate([rows[p] for p in s.text_rows], [None] * len(s.text_rows))
        s.samples += [
            {"coefficient": name, "prompt": i, "text": t}
            for i, t in zip(s.text_rows, made.text, strict=False)
        ]
    return [check.prompting(s)]


def _rows_with(
    model: Model, prompts: Sequence[Any], system: str, shots: Sequence[str], chat: bool
) -> list[Row]:
    if not all(isinstance(p, str) for p in prompts):
        raise TaskError("prompts are token ids", why="a prompting baseline puts words in front of them", instead="prompts as text, or no system_prompt and few_shot")  # fmt: skip
    if chat:
        talk = [{"role": "system", "content": system}] if system else []
        before = "".join(f"{shot}\n\n" for shot in shots)
        return [model.chat([*talk, {"role": "user", "content": before + p}]) for p in prompts]
    front = (f"{system}\n\n" if system else "") + "".join(f"{shot}\n\n" for shot in shots)
    return model.tokens([front + p for p in prompts]).rows()


def _result(s: Study, real: Direction, ran: list[Any], nulls: dict[str, Floats]) -> Result:
    import pandas as pd

    site, name = str(s.stage.site), name_of(s.measure)
    effect = s.effect
    interval = mean_interval(effect, list(range(len(effect))))
    null = s.null_effects[next(iter(nulls))]
    cells = pd.DataFrame([{"site": site, "metric": name, "low": float(interval.low), "high": float(interval.high),
                           "null_low": float(null.min()), "null_high": float(null.max()), "p": s.p}])  # fmt: skip
    labels = {"site": (site,), "prompt": tuple(s.report), "metric": (name,)}
    return Result(
        "steering",
        effects=Labelled(effect[None, :, None], ("site", "prompt", "metric"), labels),
        tables={"cells": cells, "dose": pd.DataFrame([{**row, "reported": i == s.best} for i, row in enumerate(s.dose_table)]), "nulls": _null_table(s), "samples": pd.DataFrame(s.samples), "about": _about(s, real),
                **({"baselines": pd.DataFrame(s.baselines)} if s.baselines else {})},
        tensors={"sweep": s.effects, "base": s.base, "direction": s.vector.numpy()},
        controls=ran, verdict=verdict(ran, MANDATORY, s.p, s.o.alpha, s.least), raw_examples=_examples(s),
    )  # fmt: skip


def _null_table(s: Study) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(
        [{"family": f, "value": float(v)} for f, values in s.null_effects.items() for v in values]
    )


def _about(s: Study, real: Direction) -> pd.DataFrame:
    import pandas as pd

    collapse = [c for c, row in zip(s.doses, s.dose_table, strict=True) if row["collapsed"]]
    lengths = f"{s.alike:.2g} (median |cosine| of {s.n_alike})" if s.n_alike else "no labelled text"
    rows = {
        "measure": name_of(s.measure), "steered at": f"{s.stage.site}, {WHERE[s.stage.when]} tokens", "direction": f"{real.name} ({real.made.get('estimator', 'given')})",
        "norm added at coefficient 1": f"{float(s.vector.norm()):.4g}", "largest coefficient with fluent text, on half of the prompts": f"{s.coefficient:g}",
        "smallest dose at which fluency collapses": f"{min(collapse, key=abs):g}" if collapse else "none of those tried",
        "shuffled-label directions are like the real one": lengths, "smallest p within reach": f"{s.least:.3g} ({round(1 / s.least) - 1 if s.least else 0} null directions)", "prompts that the condition lets through": f"{sum(s.fires)} of {len(s.fires)}",
    }  # fmt: skip
    return pd.DataFrame({"name": list(rows), "value": list(rows.values())})


def _examples(s: Study) -> list[dict[str, Any]]:
    """Random prompts with their text unsteered, at the chosen dose, at the outermost ones, and as the baselines gave it."""
    outer = {f"{c:g}" for c in (0.0, s.coefficient, max(s.doses), min(s.doses))}
    doses = {f"{c:g}" for c in (0.0, *s.doses)}
    pick = sorted(seeds.rng(s.seed, "raw_examples").permutation(s.text_rows)[:4].tolist())
    out = []
    for i in pick:
        tokens = list(s.stage.model.strings(s.rows[i]))
        texts = {r["coefficient"]: r["text"] for r in s.samples if r["prompt"] == i}
        kept = {
            f"coefficient {k}" if k in doses else k: t
            for k, t in texts.items()
            if k in outer or k not in doses
        }
        out.append({"prompt": "".join(tokens), "tokens": tokens, **kept})
    return out
