"""Directional ablation at run time: take a direction out of the stream everywhere, and add it where it was not (Arditi et al. 2024).

Both directions of the claim are measured: without it the behaviour goes, with it the behaviour comes. The same as a weight edit:
`microtome.directions.weight_edit.orthogonalise`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from microtome.controls import checks
from microtome.controls.directions import isotropic, likeness
from microtome.controls.intervals import mean_interval
from microtome.directions.estimate import Texts, as_direction, as_labelled, width_of
from microtome.directions.weight_edit import stream_sites
from microtome.errors import EditError, TaskError
from microtome.methods.headlines import headlined
from microtome.methods.steer import BY_LOGPROB, BY_TEXT, rows_of
from microtome.methods.steer_controls import against, alike_text, families, rank_p
from microtome.methods.steer_measures import Floats, Measure, Reads, Words, name_of, of_text, read_words
from microtome.methods.steer_runs import Push, Row, Stage
from microtome.results import seeds
from microtome.results.labelled import Labelled
from microtome.results.result import Result
from microtome.results.technique import progress, technique
from microtome.results.verdicts import Control, verdict
from microtome.sites import Site, parse
from microtome.tasks.labelled import LabelledText
from microtome.trace.edits import BaseEdit, Remove

if TYPE_CHECKING:
    from microtome.directions.direction import Direction
    from microtome.facade import Model

__all__ = ["RemovalOptions", "directional_ablation"]

MANDATORY = ("gone", "receipts", "shuffled_labels", "random_directions", "natural_noise", "harmless_kl")
NULL_KL = 19


@dataclass(frozen=True)
class RemovalOptions:
    """How much is run. data: the labelled text a given Direction came from (shuffled-label nulls, and whether prompts are held out).

    coefficient: dose when the direction is added to harmless prompts (1: the difference of means itself). draws: null directions
    (None: 199 for log-probabilities, 19 for text). kl: largest tolerated KL on harmless prompts (nats per token). chat, tokens,
    temperature: as in steering.
    """

    data: Texts | None = None
    coefficient: float = 1.0
    draws: int | None = None
    kl: float = 0.1
    chat: bool = False
    tokens: int = 24
    temperature: float = 0.0
    alpha: float = 0.05


@dataclass
class Removing(Stage):
    """A stage whose push is taken out of every site of the stream, at every position, instead of added at one."""

    sites: tuple[Site, ...] = ()
    one: bool = False

    def edits(self, push: Push | None, low: int, high: int, *, fires: bool = True) -> list[BaseEdit]:
        """The removals of one row."""
        return self.free(push)

    def forced(self, rows: Sequence[Row], prompts: Sequence[int], pushes: Sequence[Push | None], read: Callable[[Tensor, Row, int], Any],
               *, fires: Sequence[bool] | None = None, last: bool = False) -> list[Any]:  # fmt: skip
        """As of any stage; whether all rows have one direction removed is noted."""
        self.one = len({id(p.vector) if p else None for p in pushes}) == 1
        return super().forced(rows, prompts, pushes, read, fires=fires, last=last)

    def _replayed(
        self,
        measure: Words,
        prompts: Sequence[Row],
        jobs: Sequence[tuple[Push | None, int]],
        fires: Sequence[bool],
    ) -> Floats:
        """By whole runs: the embedding is edited too, so that there is nothing to share."""
        up, down = measure.ids(self.model)
        rows = [prompts[p] for _, p in jobs]
        return np.array(
            self.forced(
                rows,
                [len(r) for r in rows],
                [push for push, _ in jobs],
                lambda logits, row, n: read_words(logits[-1:], up, down)[0],
                last=True,
            )
        )

    def free(self, push: Push | None, *, fires: bool = True) -> list[BaseEdit]:
        """The same while it generates."""
        return [] if push is None else [Remove(site, push.vector) for site in self.sites]

    def places(self, edits: Sequence[BaseEdit], length: int) -> int:
        """Every position at every site."""
        return len(edits) * length

    def together(self, edits: list[list[BaseEdit]]) -> Any:
        """Once for all rows: a batch has one direction removed."""
        return (edits[0] if self.one else edits) if any(edits) else ()

    def span(self, prompt: int, whole: int) -> tuple[int, int]:
        """Everything."""
        return 0, whole


@technique("directional_ablation", "2", controls=("gone", "receipts", "random_directions", "shuffled_labels", "shuffled_equal_norm", "natural_noise", "harmless_kl", "induces", "held_out"),
           mandatory=MANDATORY, figure="microtome.figures.removing:draw", random=True)  # fmt: skip
def directional_ablation(
    model: Model,
    direction: Direction | Texts | Any,
    *,
    site: str | Site | None = None,
    prompts: Sequence[Any],
    harmless: Sequence[Any],
    measure: Measure,
    options: RemovalOptions | None = None,
    seed: int = 0,
) -> Result:
    """Remove a direction at every site of the stream and see how far the measure falls on `prompts`; add it at its own site and
    see how far the measure rises on `harmless` prompts, whose next-token distribution should otherwise stay as it is.

    Parameters
    ----------
    direction: as in `steering`; prompts should not be among the texts that it was estimated on (control held_out).
    harmless: prompts that do not show the behaviour.

    Effects: [site, prompt, metric], ablated minus whole on `prompts`. Tables: "both" (removed and added, with their nulls), "nulls",
    "samples". The p is that of the same estimator on shuffled labels. A removal does not depend on a direction's length, so each fall
    counts in proportion to it (a permutation test of fall x length, docs/decisions/0018); noise of two kinds must fall less as it is.

    Raises
    ------
    EditError: a direction of another width or model. TaskError: fewer than two prompts of either kind, one class only.
    """
    o = options or RemovalOptions()
    real, texts = as_direction(model, direction, site, o.data)
    if width_of(model, real.site) != model.facts.d_model:
        raise EditError(f"{real.site} is no site of the stream", why="the direction is removed at every site of the stream", instead="a direction at resid_post, attn_out or mlp_out")  # fmt: skip
    if isinstance(measure, Reads):
        raise TaskError("a probe on the stream cannot judge its own removal", why="what it reads is what is removed", instead="words, continuations or a function of the text")  # fmt: skip
    on, off = (rows_of(model, p, o.chat, least=2) for p in (prompts, harmless))
    s = _Study(model, real.vector, real.site, measure, on, off, o, seed)
    draws = o.draws or (BY_TEXT if of_text(measure) else BY_LOGPROB)
    nulls = {
        "isotropic": isotropic(
            model.facts.d_model, np.full(draws, real.norm), seed=seed, name="directional_ablation"
        )
    }
    if texts is not None:
        nulls |= families(texts, real, real.norm, draws, seed)
    s.run(nulls)
    ran = [
        s.gone(),
        s.receipts(),
        *s.against_nulls(draws),
        s.harmless(nulls),
        s.induces(),
        _held_out(prompts, direction, o),
    ]
    return headlined(s.result(ran, real))


class _Study:
    """The measurement under way."""

    def __init__(self, model: Model, vector: Tensor, site: Site, measure: Measure, on: list[Row], off: list[Row], o: RemovalOptions, seed: int) -> None:  # fmt: skip
        sites = tuple(parse(x) for x in stream_sites(model))
        self.model, self.vector, self.measure, self.on, self.off, self.o, self.seed = (
            model,
            vector,
            measure,
            on,
            off,
            o,
            seed,
        )
        self.out = Removing(
            model, site, "both", None, o.tokens, o.temperature, seeds.child(seed, "sampling"), sites=sites
        )
        self.into = Stage(model, site, "both", None, o.tokens, o.temperature, seeds.child(seed, "sampling"))
        self.samples: list[dict[str, Any]] = []
        self.nulls: dict[str, tuple[Floats, Floats]] = {}
        self.alike = (0.0, 0)

    def run(self, families: dict[str, Floats]) -> None:
        """The real direction taken out and put in, then every null direction."""
        n, m = len(self.on), len(self.off)
        self.base, plain = self.out.measured(self.measure, self.on, [(None, i) for i in range(n)], [True] * n)
        self.quiet, _ = self.into.measured(self.measure, self.off, [(None, i) for i in range(m)], [True] * m)
        self.removed, without = self._removed(self.vector)
        self.added, _ = self._added(self.vector)
        self._keep(plain, without)
        total, done = sum(len(v) for v in families.values()), 0
        falls: dict[bytes, float] = {}
        for name, vectors in families.items():
            found = []
            for v in vectors:
                size = float(np.linalg.norm(v))
                # two families hold the same directions at two lengths: removed once, added twice
                key = np.round(v / size, 9).tobytes() if size else b""
                t = torch.from_numpy(v).float()
                if size and key not in falls:
                    falls[key] = float(self._removed(t)[0].mean())
                weight = size / float(self.vector.norm()) if name == "shuffled_labels" else 1.0
                found.append((weight * falls.get(key, 0.0), float(self._added(t)[0].mean()) if size else 0.0))
                progress(done := done + 1, total, "null directions", "removed and added")
            self.nulls[name] = (np.array([a for a, _ in found]), np.array([b for _, b in found]))
        if "shuffled_labels" in families:
            rows = families["shuffled_labels"]
            self.alike = (likeness(rows, self.vector.numpy()), len(rows))

    def _removed(self, vector: Tensor) -> tuple[Floats, Any]:
        jobs: list[tuple[Push | None, int]] = [(Push(vector, 1.0), i) for i in range(len(self.on))]
        values, made = self.out.measured(self.measure, self.on, jobs, [True] * len(jobs))
        return values - self.base, made

    def _added(self, vector: Tensor) -> tuple[Floats, Any]:
        jobs: list[tuple[Push | None, int]] = [
            (Push(vector, self.o.coefficient), i) for i in range(len(self.off))
        ]
        values, made = self.into.measured(self.measure, self.off, jobs, [True] * len(jobs))
        return values - self.quiet, made

    def _keep(self, plain: Any, without: Any) -> None:
        """Texts of some prompts, whole, with the direction removed, and of harmless ones with it added."""
        pick = sorted(seeds.rng(self.seed, "raw_examples").permutation(len(self.on))[:4].tolist())
        rows = [self.on[i] for i in pick]
        push = [Push(self.vector, 1.0)] * len(rows)
        for name, made in (
            ("whole", self.out.generate(rows, [None] * len(rows))),
            ("removed", self.out.generate(rows, push)),
        ):
            self.samples += [
                {"coefficient": name, "prompt": i, "text": t} for i, t in zip(pick, made.text, strict=True)
            ]
        other = sorted(seeds.rng(self.seed, "harmless examples").permutation(len(self.off))[:4].tolist())
        pushes = [Push(self.vector, self.o.coefficient)] * len(other)
        made = self.into.generate([self.off[i] for i in other], pushes)
        self.samples += [
            {"coefficient": "added", "prompt": len(self.on) + i, "text": t}
            for i, t in zip(other, made.text, strict=True)
        ]

    def gone(self) -> Control:
        """Nothing of the stream may be left along the direction."""
        rows = self.on[: min(4, len(self.on))]
        sites = [str(x) for x in self.out.sites]
        trace = self.model.run(rows, sites, [Remove(x, self.vector) for x in self.out.sites], None)
        unit, worst = (self.vector / self.vector.norm()).double(), 0.0
        for x in sites:
            values = trace[x].double().cpu()[trace.mask]
            worst = max(worst, float(((values @ unit).abs() / values.norm(dim=-1).clamp_min(1e-30)).max()))
        return Control("gone", "that the direction is still there after its removal", "at most 1e-3 of the stream lies along it at any site", worst,
                       worst <= 1e-3, len(rows) * len(sites), gates=True)  # fmt: skip

    def receipts(self) -> Control:
        """Every removal and addition fired at every position."""
        return checks.receipts(
            {"removed": self.out.fired, "added": self.into.fired},
            {"removed": self.out.planned, "added": self.into.planned},
        )

    def against_nulls(self, draws: int) -> list[Control]:
        """The fall against that of null directions of every family."""
        own = float(self.removed.mean())
        out = []
        for family in ("isotropic", "shuffled_labels", "shuffled_equal_norm", "natural_noise"):
            pair = self.nulls.get(family)
            found = against(
                family,
                -own,
                None if pair is None else -pair[0],
                draws if pair is None else len(pair[0]),
                self.o.alpha,
                alike_text(*self.alike) if family == "shuffled_equal_norm" else "",
            )
            seen = found.observed
            if isinstance(seen, Mapping) and pair is not None:
                seen = {"fall": own, "null mean": float(pair[0].mean()), "p": seen["p"]}
            name = "random_directions" if family == "isotropic" else family
            null = None if pair is None else (float(pair[0].min()), float(pair[0].max()))
            out.append(replace(found, name=name, observed=seen, null=null))
        return out

    def harmless(self, families: dict[str, Floats]) -> Control:
        """KL of the ablated from the whole model at the last tokens of harmless prompts."""
        kl = self._kl(self.vector)
        null = np.array(
            [self._kl(torch.from_numpy(v).float()).mean() for v in families["isotropic"][:NULL_KL]]
        )
        self.kl = (float(kl.mean()), float(null.min()), float(null.max()))
        return Control("harmless_kl", "that the model is broken rather than changed", f"a KL on harmless prompts of at most {self.o.kl:g} nats",
                       {"nats": self.kl[0], "random directions": float(null.mean())}, self.kl[0] <= self.o.kl, len(kl), null=self.kl[1:])  # fmt: skip

    def _kl(self, vector: Tensor) -> Floats:
        def last(logits: Tensor, row: Row, prompt: int) -> Tensor:
            return logits[-1].double().log_softmax(-1)

        lengths = [len(r) for r in self.off]
        whole, without = (torch.stack(self.out.forced(self.off, lengths, [push] * len(self.off), last, last=True))
                          for push in (None, Push(vector, 1.0)))  # fmt: skip
        return np.maximum((whole.exp() * (whole - without)).sum(-1).cpu().numpy(), 0.0)

    def induces(self) -> Control:
        """Adding the direction to harmless prompts."""
        own = float(self.added.mean())
        compared = [name for name in ("shuffled_labels", "natural_noise", "isotropic") if name in self.nulls]
        p = max(rank_p(own, self.nulls[name][1]) for name in compared)
        null = self.nulls[compared[0]][1]
        return Control("induces", "that the direction is needed for the behaviour and does not bring it about",
                       f"added to harmless prompts it raises the measure more than {len(null)} null directions of each family ({', '.join(compared).replace('_', ' ')})",
                       {"rise": own, "null mean": float(null.mean()), "largest p": p}, own > 0 and p <= max(self.o.alpha, 1 / (1 + len(null))), len(null),
                       null=(float(null.min()), float(null.max())))  # fmt: skip

    def result(self, ran: list[Control], real: Direction) -> Result:
        """Everything as a value."""
        import pandas as pd

        name, where = name_of(self.measure), str(real.site)
        first = "shuffled_labels" if "shuffled_labels" in self.nulls else "isotropic"
        own, null = float(self.removed.mean()), self.nulls[first][0]
        p, least = rank_p(-own, -null), 1 / (1 + len(null))
        both = pd.DataFrame(
            [
                _row(what, change, self.nulls[first][k])
                for k, (what, change) in enumerate((("removed", self.removed), ("added", self.added)))
            ]
        )
        cells = pd.DataFrame([{"site": where, "metric": name, **{k: v for k, v in _row("removed", self.removed, null).items() if k not in ("change", "value", "n")}, "p": p}])  # fmt: skip
        rows = [{"family": f"{family}, {what}", "value": float(v)} for family, pair in self.nulls.items() for what, values in zip(("removed", "added"), pair, strict=True) for v in values]  # fmt: skip
        about = {
            "measure": name, "direction": f"{real.name} at {where} ({real.made.get('estimator', 'given')})", "removed at": f"{len(self.out.sites)} sites of the stream, every token",
            "added at": f"{where}, coefficient {self.o.coefficient:g}", "KL on harmless prompts": f"{self.kl[0]:.3g} nats", "smallest p within reach": f"{least:.3g}",
        }  # fmt: skip
        labels: dict[str, tuple[str | int, ...]] = {
            "site": (where,),
            "prompt": tuple(range(len(self.on))),
            "metric": (name,),
        }
        return Result(
            "directional_ablation", effects=Labelled(self.removed[None, :, None], ("site", "prompt", "metric"), labels),
            tables={"cells": cells, "both": both, "nulls": pd.DataFrame(rows), "samples": pd.DataFrame(self.samples), "about": pd.DataFrame({"name": list(about), "value": list(about.values())})},
            tensors={"base": self.base, "added": self.added, "direction": real.vector.numpy()},
            controls=ran, verdict=verdict(ran, MANDATORY, p, self.o.alpha, least), raw_examples=self._examples(),
        )  # fmt: skip

    def _examples(self) -> list[dict[str, Any]]:
        out = []
        for i in dict.fromkeys(r["prompt"] for r in self.samples):
            row = self.on[i] if i < len(self.on) else self.off[i - len(self.on)]
            tokens = list(self.model.strings(row))
            out.append(
                {
                    "prompt": "".join(tokens),
                    "tokens": tokens,
                    **{r["coefficient"]: r["text"] for r in self.samples if r["prompt"] == i},
                }
            )
        return out


def _row(what: str, change: Floats, null: Floats) -> dict[str, Any]:
    interval = mean_interval(change, list(range(len(change))))
    return {"change": what, "value": float(change.mean()), "low": float(interval.low), "high": float(interval.high),
            "null_low": float(null.min()), "null_high": float(null.max()), "n": len(change)}  # fmt: skip


def _held_out(prompts: Sequence[Any], direction: Any, o: RemovalOptions) -> Control:
    """Whether a prompt is among the texts that the direction came from."""
    rules_out, expected = (
        "that the direction fits the texts it was estimated on only",
        "no prompt is among those texts",
    )
    data = o.data if o.data is not None else direction
    if not isinstance(data, LabelledText | tuple) or not all(isinstance(p, str) for p in prompts):
        return Control.not_run(
            "held_out", rules_out, expected, "the direction came without its texts (options.data)"
        )
    known = {t.strip() for t in as_labelled(data).texts}
    again = sum(str(p).strip() in known for p in prompts)
    return Control("held_out", rules_out, expected, float(again), again == 0, len(prompts))
