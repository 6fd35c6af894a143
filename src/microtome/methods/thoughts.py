"""Which sentences of a chain of thought the answer rests on: resample, delete, force (thought anchors: Bogdan et al. 2025).

At every cut between sentences the chain is continued many times; a sentence's importance is how far the distribution of
answers moves when it is there. Moves come from sampling alone, too: the same cut sampled twice shows how far, and samples
shuffled between two cuts give the test. A chain that the answer does not rest on is a finding as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.controls.multiple import holm
from microtome.errors import TaskError
from microtome.methods import prompting, thought_checks
from microtome.methods.headlines import headlined
from microtome.methods.prompting import OTHER, UNPARSED, Sampling
from microtome.methods.rollouts import Edited, Rollouts, body_of, deletions, forcings, kinds_of, shown
from microtome.results import seeds
from microtome.results.labelled import Labelled
from microtome.results.result import Result
from microtome.results.technique import technique
from microtome.results.verdicts import verdict
from microtome.tasks.thought import Thought

if TYPE_CHECKING:
    import pandas as pd

    from microtome.facade import Model

NEEDED = ("alone", "same_cut", "readable")
METRICS = ("total_variation", "kl")


@technique("chain_of_thought", "1", controls=("alone", "same_cut", "shuffled_samples", "readable", "length_position", "off_distribution", "self_correction"),
           mandatory=NEEDED, figure="microtome.figures.thoughts:draw", random=True)  # fmt: skip
def chain_of_thought(
    model: Model,
    prompts: Thought,
    *,
    sampling: Sampling | None = None,
    delete: bool = True,
    kinds: Mapping[str, str] | None = None,
    force: Sequence[tuple[int, str]] = (),
    alpha: float = 0.001,
    seed: int = 0,
) -> Result:
    """The importance of each sentence before the answer, by resampling; and what deleting or replacing sentences does.

    Parameters
    ----------
    prompts: a question with its chain (`microtome.tasks.thought.thought`); a chain of "" is written by the model, greedily.
    sampling: samples per cut, temperature, length, and how the answer is read (extract=; a regular expression such as
        r"answer is (\\w+)" is safer than the first mention, which is the default).
    delete: also leave out each sentence, keeping those after it. kinds: name -> regular expression: leave out every sentence that it
        finds. force: (number of a sentence from 0, text to put in its place), each by itself; the chain is regenerated after it.

    Returns a Result: effects [site, prompt, metric] with one prompt; sites are "resample k: ..." (the distribution of answers with
    the sentence against that without it, everything after regenerated), "delete ...", "force ..." (against the unedited chain);
    metrics total variation (0 to 1) and KL (nats, smoothed). Sentences from the one in which the answer is first said are no part
    of the chain. p: samples shuffled between the two, Holm over all sites.

    Raises
    ------
    TaskError: no Thought, no sentence before the answer, a sentence number out of range, a forced text that is empty, the same or
    says an answer, a kind that finds nothing, a chain over the context.
    """
    if not isinstance(prompts, Thought):
        raise TaskError(f"prompts is a {type(prompts).__name__}", why="a question with its reasoning is asked for",
                        instead="microtome.tasks.thought.thought(prompt, answers, chain)")  # fmt: skip
    how = sampling or Sampling(max_new_tokens=96)
    rolls = Rollouts(model, prompts, how, seed)
    chain = prompts if prompts.chain.strip() else prompts.with_chain(rolls.written())
    body = body_of(chain, rolls.read)
    edits = [*(deletions(body) if delete else ()), *kinds_of(body, kinds or {}), *forcings(body, force, rolls.read)]  # fmt: skip
    names = (*prompts.answers, OTHER, UNPARSED)
    total = len(body) + len(edits)
    draws = max(9_999, int(np.ceil(2 * total / alpha)))
    rolls.plan(total + 2)
    cuts = [rolls.at(body[:k]) for k in range(len(body) + 1)]
    edited = [rolls.at(e.body) for e in edits]
    found = [_Cell(f"resample {k}: {shown(body[k])}", rolls.compare(cuts[k], cuts[k + 1], names, draws, f"resample {k}")) for k in range(len(body))]  # fmt: skip
    found += [_Cell(e.site, rolls.compare(cuts[e.against], got, names, draws, e.site)) for e, got in zip(edits, edited, strict=True)]  # fmt: skip
    p = holm([c.shift.p for c in found])
    table = _cells(found, p)
    told = thought_checks.edit_table(rolls, body, edits, edited, cuts)
    ran = [
        prompting.drawn_alone(model, [rolls.ids(())], how, seed),
        thought_checks.same_cut(rolls, body, names, draws, seed),
        thought_checks.shuffled_samples(found, p, alpha),
        prompting.parsed(rolls.all()),
        thought_checks.length_position(model, body, [c.shift.tv for c in found[: len(body)]]),
        thought_checks.off_distribution(told),
        thought_checks.self_correction(told),
    ]
    tables = {"cells": table, "sentences": _sentences(model, chain, body, found, p), "answers": _answers(rolls, body, edits, cuts, edited, names)}  # fmt: skip
    if len(told):
        tables["edits"] = told
    least = min(1.0, len(found) * min(c.shift.smallest_p for c in found))
    return headlined(Result(
        "chain_of_thought", effects=_effects(found), tables=tables, controls=ran,
        verdict=verdict(ran, NEEDED, max(float(p.min()), least), alpha, least), raw_examples=_examples(rolls, body, cuts, chain, seed),
    ))  # fmt: skip


_Cell = thought_checks.Cell


def _effects(found: list[_Cell]) -> Labelled:
    values = np.array([[[c.shift.tv, c.shift.kl]] for c in found])
    return Labelled(values, ("site", "prompt", "metric"), {"site": tuple(c.site for c in found), "prompt": (0,), "metric": METRICS})  # fmt: skip


def _cells(found: list[_Cell], p: np.ndarray) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame([
        {"site": c.site, "metric": "total_variation", "low": c.shift.low, "high": c.shift.high, "null_low": 0.0, "null_high": c.shift.null_high, "p": float(q)}
        for c, q in zip(found, p, strict=True)
    ])  # fmt: skip


def _sentences(model: Model, chain: Thought, body: tuple[str, ...], found: list[_Cell], p: np.ndarray) -> pd.DataFrame:  # fmt: skip
    """Every sentence of the chain; from the answer on without numbers."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for k, text in enumerate(chain.sentences):
        inside = k < len(body)
        shift = found[k].shift if inside else None
        rows.append({"sentence": k, "text": text.strip(), "tokens": thought_checks.length(model, text), "value": np.nan if shift is None else shift.tv,
                     "kl": np.nan if shift is None else shift.kl, "p": float(p[k]) if inside else np.nan, "before_answer": inside})  # fmt: skip
    return pd.DataFrame(rows)


def _answers(rolls: Rollouts, body: tuple[str, ...], edits: list[Edited], cuts: list[Any], edited: list[Any], names: tuple[str, ...]) -> pd.DataFrame:  # fmt: skip
    """The distribution of answers at every cut and after every edit."""
    import pandas as pd

    where = [f"before sentence {k}" for k in range(len(body))] + ["before the answer"] + [e.site for e in edits]  # fmt: skip
    rows = []
    for label, got in zip(where, [*cuts, *edited], strict=True):
        row: dict[str, Any] = {"where": label, "samples": len(got.names)}
        rows.append(row | {f"share_{n}": float(np.mean([x == n for x in got.names])) for n in names})
    return pd.DataFrame(rows)


def _examples(
    rolls: Rollouts, body: tuple[str, ...], cuts: list[Any], chain: Thought, seed: int
) -> list[dict[str, Any]]:
    """The chain, and random samples at random cuts."""
    rng = seeds.rng(seed, "raw_examples")
    out: list[dict[str, Any]] = [
        {"prompt": chain.prompt, "chain": chain.chain, "sentences before the answer": len(body)}
    ]
    for k in sorted(rng.permutation(len(cuts))[:4].tolist()):
        some = sorted(rng.permutation(len(cuts[k].texts))[:2].tolist())
        out.append({"prompt": chain.prompt, "before sentence": k, "so far": "".join(body[:k])[-200:],
                    "samples": [{"text": cuts[k].texts[s], "read": cuts[k].names[s]} for s in some]})  # fmt: skip
    return out
