"""Patchscopes: a hidden state decoded by the model itself, put into another prompt that asks it to say what it is.

Ghandeharioun et al. 2024 (arXiv 2401.06102). What comes out is text of a model that says something whatever it is given, so it
is measured against other prompts' states, random vectors of the same length, and no state at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from microtome.controls.directions import isotropic
from microtome.controls.intervals import mean_interval
from microtome.controls.signflip import sign_flip
from microtome.errors import SiteError, TaskError
from microtome.results import seeds
from microtome.results.labelled import Labelled
from microtome.results.result import Result
from microtome.results.technique import progress, technique
from microtome.results.verdicts import Control, verdict
from microtome.sites import Site, parse
from microtome.trace.edits import Patch

if TYPE_CHECKING:
    import pandas as pd

    from microtome.facade import Model

__all__ = ["IDENTITY", "patchscope"]

IDENTITY = "cat -> cat\n135 -> 135\nhello -> hello\n? ->"
"""The identity prompt: what stands for "?" is to be repeated."""
MANDATORY = ("identity", "receipts", "random_vectors", "no_patch")
METRIC = "log p of the answer over other states, nats"


@technique("patchscope", "1", controls=("identity", "receipts", "random_vectors", "no_patch", "hallucination"), mandatory=MANDATORY,
           figure="microtome.figures.patchscopes:draw", random=True)  # fmt: skip
def patchscope(
    model: Model,
    prompts: str | Sequence[str],
    site: str,
    *,
    answers: Sequence[str] | None = None,
    target_prompt: str = IDENTITY,
    target_layer: int | None = None,
    placeholder: str = "?",
    randoms: int = 8,
    seed: int = 0,
) -> Result:
    """Take the state at `site` from each prompt and let the model speak with it in place of `placeholder` in the target prompt.

    Parameters
    ----------
    site: a point of the stream, at the last token unless it says another position: "L10.resid_post", "L10.resid_post@3".
    answers: per prompt what its state is expected to make the model say, as it follows the target prompt (with its space in
        front). Without answers there is nothing to test: the texts are shown and the result is "unchecked".
    target_layer: where the state is put in, same point (None: the layer that it is from).
    randoms: random vectors per prompt, of the state's own length.

    Effects: [site, prompt, metric], mean log p per token of a prompt's answer under its own state, less the mean over the other
    prompts' states. Tables: "states" (kind of state: mean log p of the answers, interval), "generations" (the texts that the
    model goes on with, 8 tokens, greedily; `named`: the answer that it names, if any). The p: signs flipped by answer, at 0.001.

    Raises
    ------
    SiteError: not a point of the stream, or a layer that is not there. TaskError: no prompts, answers of another number or all
    alike, a placeholder that is not exactly one place of the target prompt.
    """
    s = _setup(model, prompts, site, answers, target_prompt, target_layer, placeholder, randoms, seed)
    kinds = _states(s, seed)
    with torch.no_grad():
        values = {name: _spoken(s, states) for name, states in kinds.items()} if s.answers else {}
    texts, fired = _texts(s, kinds)
    ran = [_identity(s), _receipts(fired, s), *_nulls(values, s.n), _hallucination(texts, s)]
    p, least, effect = None, None, None
    if s.answers:
        others = np.mean([values[k] for k in kinds if k.startswith("other")], axis=0)
        effect = values["own"] - others
        test = sign_flip(effect[None], list(s.answers), seed=seed)
        p, least = (test.min_p if effect.mean() > 0 else 1.0), test.smallest_p
    name = f"L{s.source.layer}.{s.source.point}"
    return Result(
        "patchscope",
        effects=None if effect is None else Labelled(effect[None, :, None], ("site", "prompt", "metric"), {"site": (name,), "prompt": tuple(range(s.n)), "metric": (METRIC,)}),
        tables={"generations": texts, **({"states": _table(values, s), "cells": _cells(name, effect, values, s)} if effect is not None else {})},
        controls=ran, verdict=verdict(ran, MANDATORY, p, 0.001, least), raw_examples=_examples(texts, s, seed),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Setup:
    """Shapes: states [prompt, d_model]. ids: of the target prompt; place: of the placeholder in it."""

    model: Model
    prompts: tuple[str, ...]
    source: Site
    states: Tensor
    answers: tuple[str, ...]
    ids: tuple[int, ...]
    place: int
    layer: int
    randoms: int

    @property
    def n(self) -> int:
        return len(self.prompts)

    @property
    def into(self) -> str:
        """Where states are put."""
        return f"L{self.layer}.{self.source.point}@{self.place}"


def _setup(model: Model, prompts: str | Sequence[str], site: str, answers: Sequence[str] | None, target: str,
           layer: int | None, placeholder: str, randoms: int, seed: int) -> _Setup:  # fmt: skip
    given = (prompts,) if isinstance(prompts, str) else tuple(prompts)
    source = parse(site)
    if source.point not in ("resid_pre", "resid_mid", "resid_post") or not isinstance(source.layer, int):
        raise SiteError(f"{site} is no single place of the stream", why="a state is put where a state of its kind was",
                        instead='"L10.resid_post@-1"')  # fmt: skip
    if not given or not all(isinstance(p, str) and p for p in given):
        raise TaskError(
            "no prompts, or an empty one",
            why="a state comes from a text",
            instead='["The Eiffel Tower is in"]',
        )
    wanted = tuple(answers or ())
    if wanted and (len(wanted) != len(given) or len(set(wanted)) < 2 or not all(wanted)):
        raise TaskError(f"{len(wanted)} answers ({len(set(wanted))} different) for {len(given)} prompts", why="each state is compared with the states of other answers",
                        instead="one answer per prompt, at least two different")  # fmt: skip
    if randoms < 1:
        raise TaskError(f"{randoms} random vectors", why="they are the null", instead="randoms=8")
    ids = tuple(model.tokens([target]).rows()[0])
    places = (
        [i for i, token in enumerate(model.strings(list(ids))) if placeholder in token] if placeholder else []
    )
    if len(places) != 1:
        raise TaskError(f"{placeholder!r} is at {len(places)} places of the target prompt", why="the state goes to one of its tokens",
                        instead='a target_prompt with one "?"')  # fmt: skip
    if layer is not None and not 0 <= layer < model.facts.n_layers:
        raise SiteError(
            f"target_layer={layer}",
            why=f"the model has {model.facts.n_layers} layers",
            instead="target_layer=None",
        )
    at = source if source.at is not None else parse(f"{source}@-1")
    states = torch.cat([model.run([p], str(at), logits=None)[str(at)].detach() for p in given])
    return _Setup(
        model,
        given,
        source,
        states.reshape(len(given), -1),
        wanted,
        ids,
        places[0],
        source.layer if layer is None else layer,
        randoms,
    )


def _states(s: _Setup, seed: int) -> dict[str, Tensor | None]:
    """Kind -> [prompt, d_model] (None: no patch): own, other prompts' with other answers, random ones of the own length."""
    found: dict[str, Tensor | None] = {"own": s.states, "none": None}
    shifts = range(1, s.n)
    for shift in (
        shifts
        if s.n <= 9
        else seeds.rng(seed, "other prompts").choice(list(shifts), 8, replace=False).tolist()
    ):
        found[f"other {shift}"] = s.states.roll(int(shift), 0)
    norms = s.states.norm(dim=1).double().cpu().numpy()
    for k in range(s.randoms):
        drawn = isotropic(s.states.shape[1], norms, seed=seeds.child(seed, f"random vector {k}"))
        found[f"random {k}"] = torch.as_tensor(drawn).to(s.states)
    return found


def _spoken(s: _Setup, states: Tensor | None) -> np.ndarray:
    """Mean log p per token of each prompt's answer after the target prompt with its state in place. Shapes: [prompt]."""
    rows = [[*s.ids, *_answer_ids(s.model, a)] for a in s.answers]
    edits = [] if states is None else [[Patch(s.into, states[i : i + 1])] for i in range(s.n)]
    logits = s.model.run(rows, edits=edits).logits
    out = np.zeros(s.n)
    for i, row in enumerate(rows):
        said = logits[i, len(s.ids) - 1 : len(row) - 1].float().log_softmax(-1)
        following = torch.tensor(row[len(s.ids) :], device=said.device)
        out[i] = float(said.gather(1, following[:, None]).mean())
    return out


def _answer_ids(model: Model, answer: str) -> list[int]:
    if model.tokenizer is None:
        raise TaskError(
            "this model has no tokenizer", why="answers are text", instead="mt.load(module, tokenizer=...)"
        )
    return [int(i) for i in model.tokenizer(answer, add_special_tokens=False).input_ids]


def _texts(s: _Setup, kinds: Mapping[str, Tensor | None]) -> tuple[pd.DataFrame, list[int]]:
    """What the model goes on with, for every prompt and state, and how often each edit fired."""
    import pandas as pd

    rows, fired = [], []
    for done, (kind, states) in enumerate(kinds.items(), 1):
        count = 1 if states is None else s.n
        edits = [] if states is None else [[Patch(s.into, states[i : i + 1])] for i in range(count)]
        out = s.model.generate(
            [list(s.ids)] * count, edits, when="prompt" if edits else None, max_new_tokens=8
        )
        fired += [r.times for r in out.receipts]
        for i in range(s.n):
            text = out.text[i if count > 1 else 0]
            named = next((a for a in s.answers if a.strip().lower() in text.lower()), "")
            rows.append(
                {
                    "prompt": i,
                    "state": kind,
                    "text": text,
                    "named": named,
                    "right": bool(s.answers and s.answers[i].strip().lower() in text.lower()),
                }
            )
        progress(done, len(kinds), "kinds of states", "speaking")
    return pd.DataFrame(rows), fired


def _identity(s: _Setup) -> Control:
    """The target prompt's own state, put back where it was, changes nothing."""
    trace = s.model.run([list(s.ids)], s.into)
    again = s.model.run([list(s.ids)], edits=[Patch(s.into, trace[s.into].detach())])
    gap = float((again.logits - trace.logits).abs().max())
    limit = 1e-4 * max(1.0, float(trace.logits.abs().max()))
    return Control("identity", "that putting a state in changes the answer by itself", f"the target prompt's own state, put back, moves no logit by more than {limit:.2g}",
                   gap, gap <= limit, trace.logits.numel(), gates=True)  # fmt: skip


def _receipts(fired: Sequence[int], s: _Setup) -> Control:
    return Control("receipts", "that a state was not put in, or more than once", "each state is put in once", {"edits": len(fired), "least": min(fired), "most": max(fired)},
                   min(fired) == max(fired) == 1, len(fired), gates=True)  # fmt: skip


def _nulls(values: Mapping[str, np.ndarray], n: int) -> list[Control]:
    """Random vectors, and no state, must make the answers less likely than the own states do."""
    rules = {"random_vectors": ("that any vector of this length makes the model say so", "the answers are likelier with their own states than with every draw of random vectors of the same length"),
             "no_patch": ("that the target prompt alone makes the model say so", "the answers are likelier with their own states than without any")}  # fmt: skip
    if not values:
        return [Control.not_run(name, *words, "no answers were given") for name, words in rules.items()]
    own = float(values["own"].mean())
    random = [float(v.mean()) for k, v in values.items() if k.startswith("random")]
    none = float(values["none"].mean())
    return [Control("random_vectors", *rules["random_vectors"], {"own": own, "largest_random": max(random)}, own > max(random), n * len(random), null=(min(random), max(random))),
            Control("no_patch", *rules["no_patch"], {"own": own, "without": none}, own > none, n)]  # fmt: skip


def _hallucination(texts: pd.DataFrame, s: _Setup) -> Control:
    """How often the model names an answer that its state does not hold."""
    rules_out, expected = (
        "that the model names answers whatever it is given",
        "random vectors name an answer at most half as often as own states name the right one",
    )
    if not s.answers:
        return Control.not_run("hallucination", rules_out, expected, "no answers were given")
    own, random = texts[texts["state"] == "own"], texts[texts["state"].astype(str).str.startswith("random")]
    right, wrong = float(own["right"].mean()), float(((own["named"] != "") & ~own["right"]).mean())
    invented = float((random["named"] != "").mean())
    return Control("hallucination", rules_out, expected, {"right": right, "own state, wrong answer": wrong, "random vector, any answer": invented},
                   invented <= 0.5 * right, len(random))  # fmt: skip


def _table(values: Mapping[str, np.ndarray], s: _Setup) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for kind in ("own", "other", "random", "none"):
        some = np.mean([v for k, v in values.items() if k.split(" ")[0] == kind], axis=0)
        interval = mean_interval(some, list(s.answers), of="answers")
        rows.append(
            {
                "state": kind,
                "value": float(some.mean()),
                "low": float(interval.low),
                "high": float(interval.high),
                "n": s.n,
            }
        )
    return pd.DataFrame(rows)


def _cells(name: str, effect: np.ndarray, values: Mapping[str, np.ndarray], s: _Setup) -> pd.DataFrame:
    """The null: random vectors in place of the own states."""
    import pandas as pd

    interval = mean_interval(effect, list(s.answers), of="answers")
    others = np.mean([v for k, v in values.items() if k.startswith("other")], axis=0)
    null = [float((v - others).mean()) for k, v in values.items() if k.startswith("random")]
    return pd.DataFrame(
        [
            {
                "site": name,
                "metric": METRIC,
                "low": float(interval.low),
                "high": float(interval.high),
                "null_low": min(null),
                "null_high": max(null),
            }
        ]
    )


def _examples(texts: pd.DataFrame, s: _Setup, seed: int) -> list[dict[str, object]]:
    """Random prompts, and what the model says with their state and with others."""
    pick = seeds.rng(seed, "raw_examples").permutation(s.n)[:4].tolist()
    shown = ("own", "other 1", "random 0", "none")
    return [{"prompt": s.prompts[i], **({"answer": s.answers[i]} if s.answers else {}),
             **{str(r["state"]): str(r["text"]) for r in texts[texts["prompt"] == i].to_dict("records") if r["state"] in shown}} for i in pick]  # fmt: skip
