"""What can be compared of two models whose layers or tokens differ: how well each predicts the same text, and what it writes.

Per character, because tokens of two tokenizers are not the same units (the "bits per byte" of Gao et al. 2021, The Pile).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from microtome.controls import checks
from microtome.controls.intervals import mean_interval
from microtome.controls.signflip import sign_flip
from microtome.errors import TaskError
from microtome.methods.diff_runs import divergence
from microtome.results import seeds
from microtome.results.labelled import Labelled
from microtome.results.result import Result
from microtome.results.verdicts import Control, verdict

if TYPE_CHECKING:
    import pandas as pd

    from microtome.facade import Model
    from microtome.methods.diff_data import Texts
    from microtome.methods.diff_tokens import Comparable, Level

NULLS = ("noise_size", "batching", "noise_models", "unrelated", "reading", "paired", "other_words")
ANSWER = 12


def text_level(a: Model, b: Model, texts: Texts, found: Comparable, alpha: float, seed: int) -> Result:
    """Loss per character of each text under both models, each with its own tokens, and what each writes after a few texts.

    Raises
    ------
    TaskError: token ids instead of texts.
    """
    if not all(texts.texts):
        raise TaskError("token ids cannot be compared as text", why="the ids of one tokenizer mean nothing to the other", instead="give texts")  # fmt: skip
    shared = _shared_text(a, b, texts)
    losses = np.array([[_loss(m, t) / len(t) for t in shared] for m in (a, b)])
    answers = _answers(a, b, texts, seed)
    return _result("text", a, b, texts, found, losses, "loss_per_character", alpha, seed, answers)


def outputs(a: Model, b: Model, texts: Texts, found: Comparable, alpha: float, seed: int) -> Result:
    """Loss per token and the KL of the outputs, token by token, for models with the same tokens and other layers."""
    losses, rows = np.zeros((2, len(texts))), []
    for i, ids in enumerate(texts.ids):
        if len(ids) < 2:
            raise TaskError(
                f"text {i} is one token", why="nothing in it is predicted", instead="leave it out"
            )
        logs = [m.run([list(ids)]).logits[0, :-1].float().log_softmax(-1) for m in (a, b)]
        target = torch.tensor(ids[1:], device=logs[0].device)[:, None]
        losses[:, i] = [-float(x.gather(1, target).double().mean()) for x in logs]
        kl = divergence(*logs).cpu()
        rows += [{"document": i, "at": k, "token": t, "kl": float(v)}
                 for k, (v, t) in enumerate(zip(kl, a.strings(ids[:-1]), strict=True))]  # fmt: skip
    answers = _answers(a, b, texts, seed)
    return _result("outputs", a, b, texts, found, losses, "loss_per_token", alpha, seed, answers, rows)


def _shared_text(a: Model, b: Model, texts: Texts) -> list[str]:
    """Texts cut to what both models can read whole."""
    out = []
    for text in texts.texts:
        kept = text
        while kept and any(m.facts.n_ctx is not None and len(m.tokens(kept).rows()[0]) > m.facts.n_ctx for m in (a, b)):  # fmt: skip
            kept = kept[: len(kept) * 3 // 4]
        if not kept:
            raise TaskError(f"{text[:40]!r} fits neither model", why="one of them reads fewer tokens", instead="shorter texts")  # fmt: skip
        out.append(kept)
    return out


@torch.no_grad()
def _loss(model: Model, text: str) -> float:
    """-log P of a text's tokens in nats, the first one given where nothing stands before it."""
    ids = model.tokens(text).rows()[0]
    if len(ids) < 2:
        raise TaskError(f"{text[:40]!r} is one token for {model.name}", why="nothing in it is predicted", instead="a longer text")  # fmt: skip
    logs = model.run([ids]).logits[0, :-1].float().log_softmax(-1)
    return -float(logs.gather(1, torch.tensor(ids[1:], device=logs.device)[:, None]).double().sum())


def _answers(a: Model, b: Model, texts: Texts, seed: int, k: int = 4) -> list[dict[str, object]]:
    """What each model writes after random texts (greedy)."""
    pick = sorted(seeds.rng(seed, "raw_examples").permutation(len(texts))[:k].tolist())
    out: list[dict[str, object]] = []
    for i in pick:
        text = texts.texts[i]
        row: dict[str, object] = {"prompt": text or " ".join(map(str, texts.ids[i]))}
        for name, model in (("first", a), ("second", b)):
            room = None if model.facts.n_ctx is None else model.facts.n_ctx - len(texts.ids[i])
            if text and model.tokenizer is not None and (room is None or room > ANSWER):
                made = model.generate([text], max_new_tokens=ANSWER)
                row[name] = made.text[0]
        out.append(row)
    return out


def _result(
    level: Level, a: Model, b: Model, texts: Texts, found: Comparable, losses: np.ndarray, metric: str, alpha: float, seed: int,
    answers: list[dict[str, object]], kl: list[dict[str, object]] | None = None,
) -> Result:  # fmt: skip
    """Second minus first loss per document, tested by sign-flip over documents."""
    import pandas as pd

    clusters = list(texts.clusters)
    gap = (losses[1] - losses[0])[None]
    test = sign_flip(gap, clusters, seed=seed, alpha=alpha) if len(set(clusters)) > 1 and gap.any() else None
    why = f"models are compared at level {level!r}: {found.why or 'as asked'}"
    ran = [
        same_run(a, texts),
        *not_here(why, "paired"),
        _paired(test, alpha),
    ]
    interval = mean_interval(gap, clusters)
    cells = pd.DataFrame({"site": ["logits"], "metric": [metric], "low": interval.low, "high": interval.high,
                          **({} if test is None else {"null_low": test.null_low, "null_high": test.null_high, "p": test.p})})  # fmt: skip
    documents = pd.DataFrame({"document": range(len(texts)), "first": losses[0], "second": losses[1]})
    return Result(
        "model_diff",
        effects=Labelled(gap[..., None], ("site", "prompt", "metric"),
                         {"site": ("logits",), "prompt": tuple(range(len(texts))), "metric": (metric,)}),
        tables={"cells": cells, "documents": documents, "about": about(a, b, found, why), **({"kl": pd.DataFrame(kl)} if kl else {})},
        controls=ran, verdict=verdict(ran, ("same_model", "paired"), *((test.min_p, alpha, test.smallest_p) if test is not None else (1.0, alpha, 0.0))),
        raw_examples=answers,
    )  # fmt: skip


def not_here(why: str, but: str = "") -> list[Control]:
    """The controls of other levels, which did not run, and why."""
    said = "a comparison at another level"
    return [
        Control.not_run(name, f"what {name} rules out in {said}", f"see {said}", why)
        for name in NULLS
        if name != but
    ]


def about(a: Model, b: Model, found: Comparable, why: str) -> pd.DataFrame:
    """What was compared, in words."""
    import pandas as pd

    rows = [("first model", f"{a.name} ({a.hash})"), ("second model", f"{b.name} ({b.hash})"), ("compared", why),
            ("tokenizers", found.tokenizers.sentence), ("configs", "; ".join(found.configs) or "the same")]  # fmt: skip
    return pd.DataFrame(rows, columns=["name", "value"])


def same_run(a: Model, texts: Texts) -> Control:
    """The first model against itself on a text: exactly 0. Gates."""
    ids = [list(texts.ids[0])]
    worst = float((a.run(ids).logits - a.run(ids).logits).abs().max())
    return Control("same_model", "that the comparison itself makes a difference", "the first model against itself differs by exactly 0",
                   worst, worst == 0.0, 1, gates=True)  # fmt: skip


def _paired(test: object, alpha: float) -> Control:
    from dataclasses import replace

    from microtome.controls.signflip import FamilyTest

    rules_out, expected = "that one model is no better a predictor of these texts than the other", f"a difference of the loss over documents, p at most {alpha:g}"  # fmt: skip
    if not isinstance(test, FamilyTest):
        return Control("paired", rules_out, expected, "no difference, or one document", False, 1)
    return replace(checks.sign_flip_control(test), name="paired", rules_out=rules_out, expected=expected)
