"""Metrics: pure functions from logits at scored positions to one number per prompt.

An answer is a set of continuations, each a sequence of tokens. log P(set) walks their prefix tree: every prefix that
has a child becomes a teacher-forced row, so a single-token answer costs one row and the general case as few as its
longest prefixes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from microtome.errors import TaskError
from microtome.results import registry

if TYPE_CHECKING:
    from torch import Tensor

Continuations = tuple[tuple[int, ...], ...]
Term = tuple[tuple[int, int, int], ...]
"""One continuation: (row, step, token) triples whose log-probabilities add up; step 0 reads the prompt's last token."""


@dataclass(frozen=True)
class Scoring:
    """Which rows to run and which logits to read for n prompts.

    prompt[r] is row r's prompt and tail[r] the tokens appended to it. `answers[i]` and `wrong[i]` are the terms of
    prompt i. `steps` is the largest number of scored positions of a row: positions P-1 .. P-1+len(tail).
    """

    prompt: tuple[int, ...]
    tails: tuple[tuple[int, ...], ...]
    answers: tuple[tuple[Term, ...], ...]
    wrong: tuple[tuple[Term, ...], ...]

    @property
    def steps(self) -> int:
        """Scored positions per row."""
        return 1 + max(len(t) for t in self.tails)

    @property
    def single(self) -> bool:
        """True when every prompt has one row, one answer token and one wrong token."""
        return self.steps == 1 and all(
            len(a) == 1 and len(w) == 1 for a, w in zip(self.answers, self.wrong, strict=True)
        )

    def select(self, prompts: Sequence[int]) -> Scoring:
        """The scoring of some prompts, in that order (a prompt may come more than once)."""
        rows_of: dict[int, list[int]] = {}
        for row, prompt in enumerate(self.prompt):
            rows_of.setdefault(prompt, []).append(row)
        owner: list[int] = []
        tails: list[tuple[int, ...]] = []
        sides: tuple[list[tuple[Term, ...]], list[tuple[Term, ...]]] = ([], [])
        for place, prompt in enumerate(prompts):
            shift = {old: len(tails) + k for k, old in enumerate(rows_of[prompt])}
            owner += [place] * len(shift)
            tails += [self.tails[row] for row in rows_of[prompt]]
            for kept, terms in zip(sides, (self.answers[prompt], self.wrong[prompt]), strict=True):
                kept.append(tuple(tuple((shift[r], s, t) for r, s, t in term) for term in terms))
        return Scoring(tuple(owner), tuple(tails), tuple(sides[0]), tuple(sides[1]))

    def columns(self) -> Tensor:
        """The vocabulary ids that a logit difference reads, sorted, each once."""
        import torch

        ids = {
            token
            for side in (self.answers, self.wrong)
            for terms in side
            for term in terms
            for _, _, token in term
        }
        return torch.tensor(sorted(ids), dtype=torch.long)


def scoring(answers: Sequence[Continuations], wrong: Sequence[Continuations]) -> Scoring:
    """Plan the rows for per-prompt sets of accepted and rejected continuations.

    Raises
    ------
    TaskError: an empty set, an empty continuation, or one that is both accepted and rejected or extends another.
    """
    prompts: list[int] = []
    tails: list[tuple[int, ...]] = []
    out: tuple[list[tuple[Term, ...]], list[tuple[Term, ...]]] = ([], [])
    for i, pair in enumerate(zip(answers, wrong, strict=True)):
        _check(i, *pair)
        prefixes = {c[:k] for side in pair for c in side for k in range(len(c))}
        longest = sorted(p for p in prefixes if not any(q[: len(p)] == p and q != p for q in prefixes))
        row_of = {
            p: len(tails) + next(j for j, tail in enumerate(longest) if tail[: len(p)] == p) for p in prefixes
        }
        prompts += [i] * len(longest)
        tails += longest
        for kept, side in zip(out, pair, strict=True):
            kept.append(tuple(tuple((row_of[c[:k]], k, token) for k, token in enumerate(c)) for c in side))
    return Scoring(tuple(prompts), tuple(tails), tuple(out[0]), tuple(out[1]))


def _check(prompt: int, answers: Continuations, wrong: Continuations) -> None:
    every = [*answers, *wrong]
    if not answers or not wrong or any(not c for c in every):
        raise TaskError(
            f"prompt {prompt} has an empty answer or wrong set",
            why="log P of nothing is -infinity",
            instead="give at least one token each",
        )
    for a in every:
        if sum(b[: len(a)] == a for b in every) > 1:
            raise TaskError(f"prompt {prompt}: the continuation {a} is contained in another", why="its probability would be counted twice",
                            instead="make answer and wrong disjoint, and no one a prefix of another")  # fmt: skip


@dataclass(frozen=True)
class Metric:
    """A metric by name.

    needs: "columns" (raw logits of the answers' columns suffice) or "vocabulary" (all logits). `higher` says what a
    larger number means. fn: (logits [row, step, column], scoring, columns or None, base logits or None) -> [prompt].
    """

    name: str
    unit: str
    needs: str
    higher: str
    fn: Callable[..., Tensor]

    def __call__(
        self, logits: Tensor, plan: Scoring, columns: Tensor | None = None, base: Tensor | None = None
    ) -> Tensor:
        """One number per prompt. Shapes: logits [row, step, d_vocab or len(columns)] -> [prompt]."""
        return self.fn(logits, plan, columns, base)


def _at(values: Tensor, terms: tuple[tuple[Term, ...], ...], columns: Tensor | None) -> Tensor:
    """Sum each term's entries, logsumexp over a prompt's terms. Shapes: [row, step, column] -> [prompt]."""
    import torch

    place = {int(c): i for i, c in enumerate(columns.tolist())} if columns is not None else None
    flat = [(prompt, which, r, s, t if place is None else place[t]) for prompt, several in enumerate(terms)
            for which, term in enumerate(several) for r, s, t in term]  # fmt: skip
    prompt, which, r, s, t = (torch.tensor(side, device=values.device) for side in zip(*flat, strict=True))
    width = int(which.max()) + 1
    summed = values.new_zeros(len(terms) * width).index_put(
        (prompt * width + which,), values[r, s, t], accumulate=True
    )
    used = torch.zeros(len(terms) * width, dtype=torch.bool, device=values.device)
    used[prompt * width + which] = True
    return summed.masked_fill(~used, float("-inf")).view(len(terms), width).logsumexp(-1)


def _log_probs(logits: Tensor) -> Tensor:
    import torch

    return torch.log_softmax(logits.float() if logits.dtype != torch.float64 else logits, -1)


def _logit_diff(logits: Tensor, plan: Scoring, columns: Tensor | None, base: Tensor | None) -> Tensor:
    if not plan.single:
        raise TaskError("logit_diff needs a single-token answer and a single-token wrong", why="logits of different positions do not compare",
                        instead='metric="logprob_diff"')  # fmt: skip
    return _at(logits, plan.answers, columns) - _at(logits, plan.wrong, columns)


def _logprob_diff(logits: Tensor, plan: Scoring, columns: Tensor | None, base: Tensor | None) -> Tensor:
    log_probs = _log_probs(logits)
    return _at(log_probs, plan.answers, None) - _at(log_probs, plan.wrong, None)


def _logprob(logits: Tensor, plan: Scoring, columns: Tensor | None, base: Tensor | None) -> Tensor:
    return _at(_log_probs(logits), plan.answers, None)


def _prob_diff(logits: Tensor, plan: Scoring, columns: Tensor | None, base: Tensor | None) -> Tensor:
    log_probs = _log_probs(logits)
    return _at(log_probs, plan.answers, None).exp() - _at(log_probs, plan.wrong, None).exp()


def _kl(logits: Tensor, plan: Scoring, columns: Tensor | None, base: Tensor | None) -> Tensor:
    if base is None:
        raise TaskError(
            "kl needs the unedited logits", why="it measures the distance from them", instead="pass base="
        )
    p, q = _log_probs(base), _log_probs(logits)
    per_step = (p.exp() * (p - q)).sum(-1)
    return _mean_per_prompt(per_step, plan)


def _l2(logits: Tensor, plan: Scoring, columns: Tensor | None, base: Tensor | None) -> Tensor:
    if base is None:
        raise TaskError(
            "l2 needs the unedited logits", why="it measures the distance from them", instead="pass base="
        )
    return _mean_per_prompt((logits.float() - base.float()).square().sum(-1), plan)


def _mean_per_prompt(per_step: Tensor, plan: Scoring) -> Tensor:
    """Mean over a row's scored positions, then over a prompt's rows. Shapes: [row, step] -> [prompt]."""
    import torch

    if per_step.shape[1] == plan.steps:
        scored = torch.tensor(
            [[s <= len(t) for s in range(plan.steps)] for t in plan.tails], device=per_step.device
        )
    else:  # positions that somebody chose, all of them scored
        scored = torch.ones_like(per_step, dtype=torch.bool)
    per_row = (per_step * scored).sum(-1) / scored.sum(-1)
    rows = torch.tensor(plan.prompt, device=per_step.device)
    n = len(plan.answers)
    return per_row.new_zeros(n).index_add(0, rows, per_row) / torch.bincount(rows, minlength=n)


for _metric in (
    Metric("logit_diff", "logits", "columns", "the answer is more likely than the wrong one", _logit_diff),
    Metric(
        "logprob_diff", "nats", "vocabulary", "the answers are more likely than the wrong ones", _logprob_diff
    ),
    Metric("logprob", "nats", "vocabulary", "the answers are more likely", _logprob),
    Metric(
        "prob_diff",
        "probability",
        "vocabulary",
        "the answers hold more of the mass than the wrong ones",
        _prob_diff,
    ),
    Metric("kl", "nats", "vocabulary", "the distribution moved further from the unedited one", _kl),
    Metric("l2", "logits squared", "vocabulary", "the logits moved further from the unedited ones", _l2),
):
    registry.register("metrics", _metric.name, _metric)


def metric(name: str) -> Metric:
    """A metric by name; packages add theirs under the entry point `microtome.metrics`."""
    found: Metric = registry.get("metrics", name)
    return found
