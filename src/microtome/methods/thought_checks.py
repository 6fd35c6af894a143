"""Controls of chains of thought: sampling noise, length and position, edits off the distribution, corrections."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import fisher_exact, spearmanr

from microtome.controls.distributions import Shift
from microtome.controls.multiple import holm
from microtome.results import seeds
from microtome.results.verdicts import Control
from microtome.tasks.sentences import split_sentences

if TYPE_CHECKING:
    import pandas as pd

    from microtome.facade import Model
    from microtome.methods.rollouts import Edited, Rolled, Rollouts

REPEATS = 2
SAME = 0.01
FITS = 5
OFF = 0.05
ALIKE = 0.8
EARLY = 3
_DOUBT = re.compile(
    r"\b(?:wait|actually|hold on|hmm|no,|sorry|correction|mistake|wrong|let me (?:re|check)|on second thought|i meant)",
    re.I,
)


@dataclass(frozen=True)
class Cell:
    """A site with how far the distribution of answers moved there."""

    site: str
    shift: Shift


def same_cut(rolls: Rollouts, body: tuple[str, ...], names: Sequence[str], draws: int, seed: int) -> Control:
    """The same cut sampled twice must not differ; how far it does is what sampling alone does."""
    pick = sorted(
        seeds.rng(seed, "same cut").permutation(len(body) + 1)[: min(REPEATS, len(body) + 1)].tolist()
    )
    shifts = {}
    for k in pick:
        once, again = rolls.at(body[:k]), rolls.at(body[:k], "again")
        shifts[f"before sentence {k}"] = rolls.compare(once, again, names, draws, f"same cut {k}")
    p = holm([s.p for s in shifts.values()])
    return Control("same_cut", "that sampling noise alone moves the distribution of answers as far", f"a cut sampled twice gives one distribution (Holm p > {SAME:g}; a false alarm in {SAME:.0%})",
                   {name: s.tv for name, s in shifts.items()}, bool(p.min() > SAME), len(shifts), null=(0.0, max(s.null_high for s in shifts.values())),
                   detail=f"total variation; p {', '.join(f'{s.p:.2g}' for s in shifts.values())}")  # fmt: skip


def shuffled_samples(found: Sequence[Cell], p: np.ndarray, alpha: float) -> Control:
    """Some site moves the distribution further than samples shuffled between its two sides."""
    best = int(np.argmin(p))
    least = len(found) * min(c.shift.smallest_p for c in found)
    few = f"; underpowered: p = {min(least, 1.0):.2g} at best" if least > alpha else ""
    return Control("shuffled_samples", "that samples given at random to either side differ as much", f"a sentence or edit with p (Holm) at most {alpha:g}",
                   {"p": float(p.min()), "sites": int((p <= alpha).sum())}, bool((p <= alpha).any()), len(found),
                   null=(0.0, found[best].shift.null_high), detail=f"strongest: {found[best].site}{few}")  # fmt: skip


def length(model: Model, text: str) -> int:
    """Tokens of a sentence by itself."""
    return len(model.tokenizer(text, add_special_tokens=False)["input_ids"])


def length_position(model: Model, body: tuple[str, ...], importance: Sequence[float]) -> Control:
    """The strongest sentence against what its place and length predict from the others."""
    rules_out, expected = (
        "that a sentence is important for its place or length",
        "the strongest sentence exceeds what the others' position and length predict, by more than any of them",
    )
    n = len(body)
    if n < FITS:
        return Control.not_run(
            "length_position", rules_out, expected, f"{n} sentences; a fit needs {FITS}", gates=False
        )
    values, sizes = np.asarray(importance, float), np.array([length(model, s) for s in body], float)
    design = np.stack([np.ones(n), np.arange(n) / (n - 1), sizes / sizes.max()], axis=1)
    top = int(values.argmax())
    others = [i for i in range(n) if i != top]
    weights = np.linalg.lstsq(design[others], values[others], rcond=None)[0]
    predicted = float(np.clip(design[top] @ weights, 0.0, 1.0))
    spread = float(np.abs(values[others] - design[others] @ weights).max())
    place, size = (
        0.0 if np.ptp(x) == 0 or np.ptp(values) == 0 else float(spearmanr(values, x).statistic)
        for x in (np.arange(n), sizes)
    )
    return Control("length_position", rules_out, expected, {f"sentence {top}": float(values[top]), "predicted": predicted, "spread": spread},
                   bool(values[top] > predicted + spread), n, null=(max(0.0, predicted - spread), predicted + spread),
                   detail=f"rank correlation of importance with position {place:.2f}, with length {size:.2f}")  # fmt: skip


def edit_table(rolls: Rollouts, body: tuple[str, ...], edits: Sequence[Edited], edited: Sequence[Rolled], cuts: Sequence[Rolled]) -> pd.DataFrame:  # fmt: skip
    """Per edit: how likely the model finds what now follows the cut, beside its own sentences there; and how often its
    continuations take the edit back, beside those of the unedited chain."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for e, got in zip(edits, edited, strict=True):
        here = body[: e.place]
        follows = e.body[e.place] if e.place < len(e.body) else ""
        own = [s for text in cuts[e.place].texts if (s := first_sentence(text))]
        score, others = np.nan, np.array([])
        if follows and own:
            every = mean_log_probabilities(rolls, here, [follows, *own])
            score, others = every[0], every[1:][np.isfinite(every[1:])]
        rank = float((others <= score).mean()) if len(others) and np.isfinite(score) else np.nan
        back = [takes_back(t, body[e.place]) for t in got.texts]
        before = [takes_back(t, body[e.place]) for t in cuts[e.against].texts]
        p = float(fisher_exact([[sum(back), len(back) - sum(back)], [sum(before), len(before) - sum(before)]], alternative="greater").pvalue)  # fmt: skip
        rows.append({"edit": e.site, "logprob": float(score), "own_logprob": float(np.median(others)) if len(others) else np.nan, "rank": rank,
                     "off_distribution": bool(rank < OFF) if rank == rank else False, "corrects": float(np.mean(back)), "corrects_unedited": float(np.mean(before)),
                     "corrects_p": p})  # fmt: skip
    return pd.DataFrame(rows)


def first_sentence(text: str) -> str:
    """The first sentence of a continuation, with the space before it."""
    return next(iter(split_sentences(text)), "")


def takes_back(continuation: str, lost: str) -> bool:
    """Whether a continuation soon says what an edit took away, or doubts what stands there."""
    soon = split_sentences(continuation)[:EARLY]
    words = lost.casefold().split()
    again = any(SequenceMatcher(None, s.casefold().split(), words).ratio() >= ALIKE for s in soon)
    return again or any(_DOUBT.search(s) for s in soon)


def mean_log_probabilities(rolls: Rollouts, body: Sequence[str], sentences: Sequence[str], batch: int = 8) -> np.ndarray:  # fmt: skip
    """Mean log-probability per token of each sentence after the same chain, nats, teacher-forced; NaN where the context ends."""
    base = rolls.ids(body)
    rows, starts = [], []
    limit = rolls.model.facts.n_ctx
    for sentence in sentences:
        row = rolls.ids([*body, sentence])
        same = next((i for i, (a, b) in enumerate(zip(base, row, strict=False)) if a != b), len(base))
        rows.append(list(row))
        starts.append(min(same, len(row)))
    out = np.full(len(rows), np.nan)
    fit = [i for i, row in enumerate(rows) if starts[i] < len(row) and (limit is None or len(row) <= limit)]
    for k in range(0, len(fit), batch):
        some = fit[k : k + batch]
        logits = rolls.model.run([rows[i] for i in some]).logits
        for place, i in enumerate(some):
            at, stop = max(starts[i], 1), len(rows[i])
            steps = logits[place, at - 1 : stop - 1].float().log_softmax(-1)
            drawn = steps[range(stop - at), rows[i][at:stop]]
            out[i] = float(drawn.mean())
    return out


def off_distribution(table: pd.DataFrame) -> Control:
    """Whether what follows an edit is something the model could have written there."""
    rules_out = "that the model reacts to a text that it would never write"
    expected = f"what stands at each edit is no less likely than {OFF:.0%} of the model's own sentences there"
    if not len(table) or not np.isfinite(table["rank"].to_numpy(float)).any():
        return Control.not_run(
            "off_distribution",
            rules_out,
            expected,
            "nothing was edited" if not len(table) else "no edit has text after it",
        )
    off = table[table["off_distribution"]]
    ranks = {str(r): float(v) for r, v in zip(table["edit"], table["rank"], strict=True) if v == v}
    return Control("off_distribution", rules_out, expected, ranks, off.empty, len(ranks), null=(OFF, 1.0),
                   detail=f"off the model's distribution: {', '.join(map(str, off['edit'])) or 'none'}; share of its own sentences that are no likelier")  # fmt: skip


def self_correction(table: pd.DataFrame) -> Control:
    """Whether the model undoes the edits."""
    rules_out, expected = (
        "that no effect of an edit means that the model took it back",
        "no edit is followed by more corrections or restatements than the unedited chain (Fisher, Holm, 0.05)",
    )
    if not len(table):
        return Control.not_run("self_correction", rules_out, expected, "nothing was edited")
    p = holm(table["corrects_p"].to_numpy(float))
    back = [str(e) for e, q in zip(table["edit"], p, strict=True) if q <= 0.05]
    shares = {str(e): float(v) for e, v in zip(table["edit"], table["corrects"], strict=True)}
    return Control("self_correction", rules_out, expected, shares, not back, len(table),
                   detail=f"taken back: {', '.join(back) or 'none'}; share of samples that soon restate the sentence or doubt")  # fmt: skip
