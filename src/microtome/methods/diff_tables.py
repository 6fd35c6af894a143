"""What a model diff shows: cells, tokens in their context, the drift of an unrelated fine-tune, and what was compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.controls.draws import DrawTest
from microtome.controls.intervals import mean_interval
from microtome.methods.diff_data import Texts
from microtome.methods.diff_runs import Compared
from microtome.model.noise import WORDS, Noise
from microtome.results import seeds
from microtome.sites import Site

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from microtome.facade import Model
    from microtome.methods.diff_tokens import Comparable
    from microtome.methods.diff_weights import WeightDiff

MOST_TOKENS = 24
CONTEXT = 8
Floats = np.ndarray


@dataclass(frozen=True)
class View:
    """From values per token to cells: a mean over each text, or a cell per position.

    streams: the sites whose mean difference was kept; each: a cell per position; the first `leave_out` positions are in neither.
    """

    sites: Sequence[Site]
    streams: Sequence[Site]
    texts: Texts
    leave_out: int
    each: bool

    @property
    def labels(self) -> tuple[int, ...]:
        """Positions that are cells; one entry where texts are averaged."""
        return tuple(range(self.leave_out, len(self.texts.ids[0]))) if self.each else (0,)

    def means(self, values: Tensor) -> Floats:
        """Shapes: [site, doc, pos] -> [site, column, doc]."""
        kept = values[..., self.leave_out :].double().numpy()
        if self.each:
            return np.asarray(kept.transpose(0, 2, 1))
        return np.asarray(np.nanmean(kept, axis=-1)[:, None])

    def cells(self, one: Compared) -> Floats:
        """relative_norm of each site, then the KL of the outputs. Shapes: [site + 1, column, doc]."""
        return np.concatenate([self.means(one.relative), self.means(one.kl[None])])

    def kept(self, kl: Tensor) -> tuple[Floats, Floats]:
        """(values [token], places [token, (doc, pos)]) of the tokens that enter averages."""
        part = kl.double().numpy().copy()
        part[:, : self.leave_out] = np.nan
        places = np.argwhere(np.isfinite(part))
        return part[places[:, 0], places[:, 1]], places

    def focus(self, one: Compared) -> Floats:
        """How few tokens the difference of each site, and the outputs' KL, sits on: tokens over their effective number
        (sum^2 / sum of squares); 1 if it is spread evenly. Shapes: -> [site + 1].
        """
        out = []
        for values in (*one.relative, one.kl):
            x = self.kept(values)[0]
            total = float(x.sum())
            out.append(len(x) * float((x**2).sum()) / total**2 if total > 0 else 1.0)
        return np.array(out)

    def shares(self, one: Compared) -> Floats:
        """Each token's KL over the mean of all tokens'; 0 where outputs are the same. Shapes: -> [token]."""
        x = self.kept(one.kl)[0]
        mean = x.mean()
        return np.asarray(x / mean if mean > 0 else np.zeros_like(x))

    def zero(self, real: Compared, draws: Sequence[Compared]) -> Floats:
        """Cells that are exactly 0 in every model: what no changed weight reaches. Shapes: [site, (column)]."""
        found = np.all([(self.means(c.relative) == 0).all(-1) for c in (real, *draws)], axis=0)
        return np.asarray(found if self.each else found[:, 0])

    def names(self) -> list[tuple[str, int]]:
        """(site, position) of each cell of `cells`, in its order."""
        return [(s, p) for s in (*map(str, self.sites), "logits") for p in self.labels]


def cells(
    view: View, real: Compared, draws: Sequence[Compared], tests: Mapping[str, DrawTest]
) -> pd.DataFrame:
    """Interval over documents, null band and p of every cell; the outputs' KL as cells of "logits"."""
    import pandas as pd

    clusters = list(view.texts.clusters)
    rows: list[dict[str, object]] = []
    values = view.cells(real)
    flat = values.reshape(-1, values.shape[-1])
    interval, test = mean_interval(flat, clusters), tests.get("sites")
    for i, (site, position) in enumerate(view.names()):
        row: dict[str, object] = {"site": site, "metric": "kl" if site == "logits" else "relative_norm", "value": float(flat[i].mean()), "n": flat.shape[1],
                                  "low": max(0.0, float(interval.low[i])), "high": float(interval.high[i])}  # fmt: skip
        if test is not None:
            row |= {"null_low": float(np.exp(test.null_low[i])), "null_high": float(np.exp(test.null_high[i])), "p": float(test.p[i])}  # fmt: skip
        rows.append(row | ({"position": position} if view.each else {}))
    if "focus" in tests:
        test, focus = tests["focus"], view.focus(real)
        n = len(view.kept(real.kl)[0])
        # the band of logarithms can pass what a focus can be: between 1 (spread evenly) and n (one token alone)
        low, high = (np.clip(np.exp(b), 1.0, n) for b in (test.null_low, test.null_high))
        rows += [{"site": s, "metric": "focus", "value": float(focus[i]), "n": n, "low": float("nan"), "high": float("nan"), "null_low": float(low[i]),
                  "null_high": float(high[i]), "p": float(test.p[i])} for i, (s, _) in enumerate(view.names())]  # fmt: skip
    cosine = view.means(1 - real.cosine)
    flat = cosine.reshape(-1, cosine.shape[-1])
    interval = mean_interval(flat, clusters)
    null = np.array([view.means(1 - d.cosine).mean(-1).ravel() for d in draws])
    for i, (site, position) in enumerate(view.names()[: len(flat)]):
        row = {"site": site, "metric": "cosine_distance", "value": float(flat[i].mean()), "n": flat.shape[1],
               "low": float(interval.low[i]), "high": float(interval.high[i])}  # fmt: skip
        if len(null):
            row |= {
                "null_low": float(null[:, i].min()),
                "null_high": float(null[:, i].max()),
                "p": float("nan"),
            }
        rows.append(row | ({"position": position} if view.each else {}))
    return pd.DataFrame(rows)


def tokens(model: Model, view: View, real: Compared, tests: Mapping[str, DrawTest]) -> pd.DataFrame:
    """The tokens after which the outputs differ most, in their context.

    share: the token's KL over the mean of all tokens', which does not depend on how large the difference is as a whole; p is of that.
    """
    import pandas as pd

    values, places = view.kept(real.kl)
    test = tests.get("tokens")
    rows = []
    for i in np.argsort(-values, kind="stable")[:MOST_TOKENS].tolist():
        doc, pos = (int(x) for x in places[i])
        strings = model.strings(view.texts.ids[doc][max(0, pos - CONTEXT) : pos + 1])
        row: dict[str, object] = {"document": doc, "at": pos, "context": "".join(strings[:-1]), "token": strings[-1], "kl": float(values[i]),
                                  "share": float(values[i] / values.mean()) if values.mean() else 0.0}  # fmt: skip
        if test is not None:
            row |= {"null_high": float(test.null_high[i]), "p": float(test.p[i])}
        rows.append(row)
    return pd.DataFrame(rows)


def token_map(model: Model, view: View, real: Compared, seed: int) -> tuple[pd.DataFrame, dict[str, Floats]]:
    """The stream's difference token by token in a random text and in the one whose outputs differ most: its tokens, and
    relative_norm [text, stream site, pos].
    """
    import pandas as pd

    if not view.streams:
        return pd.DataFrame(), {}
    most = int(np.nan_to_num(np.nanmax(real.kl.numpy(), axis=1)).argmax())
    drawn = int(seeds.rng(seed, "token_map").integers(len(view.texts)))
    docs = list(dict.fromkeys([most, drawn]))
    at = [list(view.sites).index(s) for s in view.streams]
    width = max(len(view.texts.ids[d]) for d in docs)
    values = real.relative[at][:, docs, :width].permute(1, 0, 2).numpy().astype(np.float32)
    rows = [
        {"document": d, "at": i, "token": t}
        for d in docs
        for i, t in enumerate(model.strings(view.texts.ids[d]))
    ]
    return pd.DataFrame(rows), {"token_map": values}


def drift(view: View, real: Compared, third: Compared | None) -> pd.DataFrame:
    """Each cell beside the unrelated fine-tune's: value, unrelated, and the interval of their difference."""
    import pandas as pd

    if third is None:
        return pd.DataFrame()
    mine, other = (x.reshape(-1, x.shape[-1]) for x in (view.cells(real), view.cells(third)))
    interval = mean_interval(mine - other, list(view.texts.clusters))
    table = pd.DataFrame({"site": [s for s, _ in view.names()], "value": mine.mean(1), "unrelated": other.mean(1),
                          "low": interval.low, "high": interval.high})  # fmt: skip
    if view.each:
        table.insert(1, "position", [p for _, p in view.names()])
    return table


def about(a: Model, b: Model, weights: WeightDiff, found: Comparable, texts: Texts, draws: int, noise: Noise) -> pd.DataFrame:  # fmt: skip
    """What was compared, in words."""
    import pandas as pd

    rows = [
        ("first model", f"{a.name} ({a.hash})"),
        ("second model", f"{b.name} ({b.hash})"),
        ("weights", weights.sentence),
        ("tokenizers", found.tokenizers.sentence),
        ("configs", "; ".join(found.configs) or "the same"),
        ("texts", f"{len(texts)} in {len(set(texts.clusters))} documents" + (f", {texts.cut} of them cut" if texts.cut else "")),
        ("noise models", f"{draws}, {WORDS[noise]}, each tensor moved as far as it really was"),
        *((f"made: {k}", m.reasons["weights"]) for k, m in (("first", a), ("second", b)) if "weights" in m.reasons),
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["name", "value"])


def examples(model: Model, view: View, real: Compared, seed: int, k: int = 4) -> list[dict[str, Any]]:
    """Random (not chosen) texts with the outputs' KL at each token."""
    pick = sorted(seeds.rng(seed, "raw_examples").permutation(len(view.texts))[:k].tolist())
    out = []
    for i in pick:
        ids = view.texts.ids[i]
        kl = real.kl[i, : len(ids)].double().tolist()
        strings = list(model.strings(ids))
        out.append({"prompt": view.texts.texts[i] or "".join(strings), "tokens": strings, "kl": kl})
    return out
