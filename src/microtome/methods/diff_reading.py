"""What the mean difference of two models at the first tokens of unrelated text promotes in the vocabulary.

Narrow fine-tuning leaves traces that can be read there, whatever the text is about (Minder et al. 2025, arXiv 2510.13900). What
noise of the same size and an unrelated fine-tune promote stands beside it: some words always come out on top.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from microtome.controls.draws import DrawTest, against_draws
from microtome.directions.direction import Direction
from microtome.errors import ResultError, TaskError
from microtome.model.tokens import where_it_stands
from microtome.results.verdicts import Control
from microtome.sites import parse

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from microtome.facade import Model
    from microtome.methods.diff_runs import Compared
    from microtome.methods.diff_tables import View
    from microtome.results.result import Result

TOP = 8
DEPTHS = (0.25, 0.5, 0.75, 1.0)
_WHY = (
    "that these words are promoted by any change of this size",
    "the difference promotes the words named more than every noise model's does",
)


@dataclass(frozen=True)
class Reading:
    """The reading and its nulls.

    sources: name -> mean difference [site, position, d_model]; sites: as named; positions: their numbers; scores: with words, how far
    the difference promotes them [site, position], in standard deviations of all logits; test: against the noise models.
    """

    model: Model
    sources: dict[str, Tensor]
    sites: tuple[str, ...]
    positions: tuple[int, ...]
    words: tuple[str, ...]
    scores: np.ndarray
    test: DrawTest | None
    unrelated: float | None = None

    @classmethod
    def of(
        cls, model: Model, view: View, real: Compared, draws: Sequence[Compared], third: Compared | None, words: tuple[str, ...],
        alpha: float,
    ) -> Reading:  # fmt: skip
        """Read the difference, the first noise model's and the unrelated fine-tune's."""
        shortest = min(map(len, view.texts.ids))
        positions = tuple(range(view.leave_out, min(real.first.shape[1], shortest)))
        sources = {"difference": real.first}
        sources |= {"noise model": draws[0].first} if draws else {}
        sources |= {"unrelated": third.first} if third is not None else {}
        ids = _ids(model, words)
        where = [(k, p) for k in range(len(view.streams)) for p in positions]
        scores, test, other = np.zeros(0), None, None
        if ids and where:
            scores = _score(model, real.first, where, ids)
            moved = [
                bool(real.first[k, p].any()) or any(bool(d.first[k, p].any()) for d in draws)
                for k, p in where
            ]
            if draws and any(moved):
                null = np.stack([_score(model, d.first, where, ids) for d in draws])
                test = against_draws(scores, null, alpha=alpha, outside=~np.array(moved))
            if third is not None:
                other = float(_score(model, third.first, where, ids).max())
        return cls(model, sources, tuple(map(str, view.streams)), positions, words, scores, test, other)

    def control(self, alpha: float) -> Control:
        """Whether the words named are promoted more than by noise."""
        if self.test is None:
            why = "no words were named (words=)" if not self.words else "no site L*.resid_post was compared, or nothing differs there"  # fmt: skip
            return Control.not_run("reading", *_WHY, why)
        best = int(np.nanargmax(self.test.statistic))
        k, p = divmod(best, len(self.positions))
        observed: dict[str, object] = {"p": self.test.min_p, "score": float(self.scores[best]), "noise at most": float(self.test.null_high[best])}  # fmt: skip
        observed |= {"unrelated at most": self.unrelated} if self.unrelated is not None else {}
        return Control("reading", *_WHY, observed, self.test.min_p <= alpha, self.test.n_draws,
                       detail=f"at {self.sites[k]}, position {self.positions[p]}; score: mean logit of the words in standard deviations of all logits")  # fmt: skip

    def table(self) -> pd.DataFrame:
        """The tokens promoted most: source, site, position, rank, token, score."""
        import pandas as pd

        rows = []
        n = len(self.sites)
        chosen = sorted({min(n - 1, max(0, round(d * n) - 1)) for d in DEPTHS}) if n else []
        for name, first in self.sources.items():
            for k in chosen:
                for p in self.positions:
                    if not bool(first[k, p].any()):
                        continue
                    z = _logits(self.model, first[k, p])
                    top = z.topk(min(TOP, len(z)))
                    rows += [
                        {"source": name, "site": self.sites[k], "position": p, "rank": r, "token": self.model.strings([int(i)])[0], "score": float(v)}
                        for r, (v, i) in enumerate(zip(top.values, top.indices, strict=True))
                    ]  # fmt: skip
        return pd.DataFrame(rows)


def difference_direction(result: Result, site: str, position: int | None = None) -> Direction:
    """The mean difference of a model diff at one site as a direction, to steer the first model with (or the second, negated).

    position: of the first tokens; None averages those that were read. In the units of the site: a coefficient of 1 adds what the
    second model adds.

    Raises
    ------
    ResultError: no model diff, or a site or position whose difference was not kept.
    EditError: both models are the same there.
    """
    kept = result.tensors.get("first_difference")
    names = [] if result.effects is None else [str(s) for s in result.effects.coords["site"] if str(s).endswith(".resid_post")]  # fmt: skip
    if result.kind != "model_diff" or kept is None or site not in names:
        raise ResultError(f"this {result.kind} kept no difference at {site}", why=f"kept are {', '.join(names) or 'none'}",
                          instead="model_diff(a, b, data, sites=[..., site]) with a site L*.resid_post")  # fmt: skip
    rows = torch.from_numpy(np.array(kept[names.index(site)], dtype=np.float32))
    if position is not None and not 0 <= position < len(rows):
        raise ResultError(f"position {position} was not kept", why=f"the first {len(rows)} were", instead="position=None averages them")  # fmt: skip
    query = result.query
    left_out = 1 if query is None else _left_out(query.parameters.get("options"))
    vector = rows[left_out:].mean(0) if position is None else rows[position]
    made = {"estimator": "mean difference of two models", "second": "" if query is None else query.parameters.get("b", {}).get("hash", ""),
            "position": "first tokens" if position is None else position}  # fmt: skip
    return Direction(vector, parse(site), "" if query is None else query.model, f"model difference at {site}", made)  # fmt: skip


def _left_out(options: object) -> int:
    """`leave_out` as a query records it; the default where no options were given."""
    if isinstance(options, Mapping) and isinstance(options.get("fields"), Mapping):
        return int(options["fields"]["leave_out"])
    return 1


def _ids(model: Model, words: Sequence[str]) -> list[list[int]]:
    """Per word the first tokens of its forms, with and without the space before it.

    Raises
    ------
    TaskError: words for a model without a tokenizer, or one without tokens.
    """
    if words and model.tokenizer is None:
        raise TaskError("words need a tokenizer", why="this model was given as a module", instead="mt.load(module, tokenizer=...)")  # fmt: skip
    out = []
    for word in words:
        forms = [where_it_stands(model.tokenizer, form) for form in (" " + word.strip(), word.strip())]
        found = sorted({ids[0] for ids in forms if ids and ids[0] < model.facts.d_vocab})
        if not found:
            raise TaskError(f"{word!r} has no token in this vocabulary", why="it cannot be read", instead="another word")  # fmt: skip
        out.append(found)
    return out


@torch.no_grad()
def _logits(model: Model, direction: Tensor) -> Tensor:
    """Logits of a direction through the final norm and the unembedding, standardised over the vocabulary. [d_model] -> [d_vocab]."""
    weight = next(model.hf.parameters())
    logits = model.binding.unembed(direction.to(weight)).double().cpu()
    spread = logits.std()
    return (logits - logits.mean()) / (spread if float(spread) else 1.0)


def _score(model: Model, first: Tensor, where: Sequence[tuple[int, int]], ids: list[list[int]]) -> np.ndarray:
    out = []
    for k, p in where:
        z = _logits(model, first[k, p]) if bool(first[k, p].any()) else torch.zeros(model.facts.d_vocab)
        out.append(float(np.mean([max(float(z[i]) for i in forms) for forms in ids])))
    return np.array(out)
