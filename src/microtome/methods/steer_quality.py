"""What steering costs: fluency of the steered text, and what changes on text that has nothing to do with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from microtome.controls.intervals import mean_interval
from microtome.errors import TaskError
from microtome.methods.steer_measures import Floats
from microtome.methods.steer_runs import Push, Row, Stage, mean_log_probability
from microtome.results.verdicts import Control

if TYPE_CHECKING:
    from microtome.methods.steer import Study
    from microtome.tasks.pairs import PairTask

GRAM = 3
REPEATS = 0.25
KL_NULLS = 19


def judge(s: Study) -> None:
    """Text of some prompts at every dose and unsteered: perplexity under the unsteered model, repeated 3-grams, collapse."""
    doses = sorted({0.0, *s.doses})
    jobs = [(c, p) for c in doses for p in s.text_rows]
    made = s.stage.generate(
        [s.rows[p] for _, p in jobs],
        [Push(s.vector, c) if c else None for c, _ in jobs],
        [s.fires[p] for _, p in jobs],
    )
    losses = text_losses(s.stage, [s.rows[p] for _, p in jobs], made.new)
    repeats = np.array([repetition(row) for row in made.new])
    keys = np.array([c for c, _ in jobs])
    plain = (np.nanmean(losses[keys == 0]), repeats[keys == 0].mean())
    s.samples += [
        {"coefficient": f"{c:g}", "prompt": p, "text": t} for (c, p), t in zip(jobs, made.text, strict=True)
    ]
    s.fluent = {"perplexity": float(np.exp(plain[0])), "repetition": float(plain[1])}
    for i, c in enumerate(s.doses):
        found, again = losses[keys == c], repeats[keys == c]
        change = s.effects[i]
        interval = mean_interval(change, list(range(len(change))))
        known = found[np.isfinite(found)]
        perplexity = float(np.exp(known.mean())) if known.size else float("nan")
        collapsed = (
            not known.size
            or perplexity > s.o.perplexity * s.fluent["perplexity"]
            or float(again.mean()) > s.fluent["repetition"] + REPEATS
        )
        s.dose_table.append({
            "coefficient": c, "value": float(change.mean()), "low": float(interval.low), "high": float(interval.high), "n": len(change),
            "null_low": float("nan"), "null_high": float("nan"), "perplexity": perplexity, "repetition": float(again.mean()),
            "collapsed": bool(collapsed),
        })  # fmt: skip


def text_losses(stage: Stage, prompts: Sequence[Row], new: Sequence[Sequence[int]]) -> Floats:
    """Mean loss (nats per token) of generated tokens under the unsteered model; NaN where nothing was generated."""
    out = np.full(len(new), np.nan)
    have = [i for i, row in enumerate(new) if len(row)]
    rows = [[*prompts[i], *new[i]] for i in have]
    out[have] = [
        -v
        for v in stage.forced(rows, [len(prompts[i]) for i in have], [None] * len(have), mean_log_probability)
    ]
    return out


def repetition(row: Sequence[int]) -> float:
    """Share of a text's 3-grams that it had before, 0 for shorter texts."""
    grams = [tuple(row[i : i + GRAM]) for i in range(len(row) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def neutral(s: Study, texts: Sequence[Any] | PairTask | None, nulls: dict[str, Floats]) -> list[Control]:
    """Off-task damage and KL on neutral text at the chosen dose, beside those of null directions."""
    from microtome.tasks.pairs import PairTask

    harm = (
        "that steering makes the model worse at everything",
        f"the loss on neutral text rises by at most {s.o.loss:g} nats",
    )
    moved = (
        "that text which has nothing to do with it changes as well",
        f"a KL from the unsteered model on neutral text of at most {s.o.kl:g} nats per token",
    )
    if texts is None:
        why = "no neutral text was given (neutral=)"
        return [Control.not_run("off_task", *harm, why), Control.not_run("neutral_kl", *moved, why)]
    push = Push(s.vector, s.coefficient)
    if isinstance(texts, PairTask):
        rows = [list(r) for r in texts.clean.ids]
        prompts = [max(len(r) - 1, 1) for r in rows]
    else:
        rows = s.stage.model.tokens(list(texts)).rows()
        if short := [r for r in rows if len(r) < 4]:
            raise TaskError(f"a neutral text of {len(short[0])} tokens", why="its first half stands for a prompt and its second for what follows",
                            instead="texts of at least four tokens")  # fmt: skip
        prompts = [len(r) // 2 for r in rows]
    fires = s.stage.fires([r[:n] for r, n in zip(rows, prompts, strict=True)])
    base = s.stage.forced(rows, prompts, [None] * len(rows), _tail)
    real = _damage(s.stage, rows, prompts, push, fires, base)
    others = [_damage(s.stage, rows, prompts, Push(torch.from_numpy(v).float(), s.coefficient), fires, base)
              for v in nulls["isotropic"][:KL_NULLS]]  # fmt: skip
    off = _accuracy(s, texts, fires, harm[0]) if isinstance(texts, PairTask) else _loss(s, real[1], harm)
    kl, null = float(real[0].mean()), np.array([o[0].mean() for o in others])
    s.baselines.append(
        {
            "kind": "neutral text",
            "name": "KL on neutral text (nats)",
            "value": kl,
            "low": float(null.min()),
            "high": float(null.max()),
            "n": len(rows),
        }
    )
    passed = bool(kl <= s.o.kl)
    return [off, Control("neutral_kl", *moved, {"nats": kl, "null mean": float(null.mean())}, passed, len(null), null=(float(null.min()), float(null.max())),
                         detail=f"{sum(fires)} of {len(rows)} texts were steered")]  # fmt: skip


def _tail(logits: torch.Tensor, row: Row, prompt: int) -> tuple[torch.Tensor, list[int]]:
    """Log-probabilities from the prompt's last token on, and the tokens that followed."""
    return logits[prompt - 1 :].float().log_softmax(-1), row[prompt:]


def _damage(
    stage: Stage, rows: list[Row], prompts: list[int], push: Push, fires: list[bool], base: list[Any]
) -> tuple[Floats, Floats]:
    """(KL of steered from unsteered, rise of the loss) per text, in nats per token."""
    found = stage.forced(rows, prompts, [push] * len(rows), _tail, fires=fires)
    kl, rise = [], []
    for (old, tokens), (new, _) in zip(base, found, strict=True):
        kl.append(float((old.exp() * (old - new)).sum(-1).mean()))
        at = torch.arange(len(tokens))
        rise.append(float((old[at, tokens] - new[at, tokens]).mean()))
    return np.maximum(np.array(kl), 0.0), np.array(rise)


def _loss(s: Study, rise: Floats, words: tuple[str, str]) -> Control:
    return Control(
        "off_task", *words, {"rise in nats": float(rise.mean())}, bool(rise.mean() <= s.o.loss), len(rise)
    )


def _accuracy(s: Study, task: PairTask, fires: list[bool], rules_out: str) -> Control:
    """An unrelated task's accuracy, steered and not."""
    from microtome.metrics import metric, scoring

    plan = scoring(task.answers, task.wrong)
    if not plan.single:
        raise TaskError("the off-task pairs have answers of several tokens", why="their accuracy is read from one logit", instead="pairs with single-token answers, or plain texts")  # fmt: skip
    answers = torch.tensor([[a[0][0], w[0][0]] for a, w in zip(task.answers, task.wrong, strict=True)])
    assert metric("logit_diff") is not None
    rows = [list(r) for r in task.clean.ids]
    prompts = [max(len(r) - 1, 1) for r in rows]

    def right(logits: torch.Tensor, row: Row, prompt: int) -> torch.Tensor:
        return logits[-1]

    shares = []
    for push in (None, Push(s.vector, s.coefficient)):
        last = torch.stack(
            s.stage.forced(rows, prompts, [push] * len(rows), right, fires=fires, last=True)
        ).cpu()
        values = last.gather(1, answers)
        shares.append(float((values[:, 0] > values[:, 1]).double().mean()))
    return Control("off_task", rules_out, "accuracy on an unrelated task falls by at most 0.1", {"unsteered": shares[0], "steered": shares[1]},
                   shares[0] - shares[1] <= 0.1, len(rows))  # fmt: skip
