"""Two models in lock-step on the same tokens: what both compute is computed once.

Layers below the first weight in which the models differ receive and give the same, so they are run on the first model only;
the other continues from there, with the first one's recorded calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from microtome.errors import SiteError
from microtome.model.binding import Binding
from microtome.model.tokens import check_ids, pack
from microtome.replay.base import Base, replay_attention
from microtome.replay.call import Segment, call_layer
from microtome.sites import Site
from microtome.trace import seam
from microtome.trace.layers import record
from microtome.trace.run import check_runnable, device_of
from microtome.trace.session import Read

FIRST_TOKENS = 5
"""Positions whose mean difference is read: the first tokens of a text say least about it (Minder et al. 2025)."""
STREAM = ("resid_pre", "resid_post")


@dataclass(frozen=True)
class Batch:
    """Texts that are run together. docs: their numbers; ids [row, pos], padded behind their end; lengths: own tokens."""

    docs: tuple[int, ...]
    ids: Tensor
    lengths: tuple[int, ...]

    @property
    def own(self) -> Tensor:
        """True at a text's own tokens, [row, pos]."""
        return torch.arange(self.ids.shape[1])[None] < torch.tensor(self.lengths)[:, None]


@dataclass
class Seen:
    """What one model computed on one batch.

    Shapes: values[site] [row, pos, d]; final [row, pos, d_model]; log_probs [row, pos, d_vocab].
    """

    values: dict[Site, Tensor]
    final: Tensor
    log_probs: Tensor
    base: Base | None = None


@dataclass
class Compared:
    """Two models on all texts.

    Shapes: relative, cosine [site, doc, pos] (NaN behind a text's end); kl [doc, pos], nats, from the first model's
    distribution to the other's; first [stream site, position, d_model]: mean of other - first model at the first positions.
    """

    relative: Tensor
    cosine: Tensor
    kl: Tensor
    first: Tensor


@dataclass
class Lockstep:
    """A model on some texts, and what others differ from it there.

    start: the first layer that others compute themselves; None: all of it, the embedding too. keep: bytes of recorded runs held.
    """

    binding: Binding
    ids: Sequence[Sequence[int]]
    sites: Sequence[Site]
    start: int | None
    batch_tokens: int = 512
    keep: int = 1 << 30
    _held: dict[int, Seen] = field(default_factory=dict, repr=False)
    _bytes: int = 0

    def __post_init__(self) -> None:
        check_runnable(self.binding)
        check_ids(pack(self.ids), self.binding.facts.d_vocab, self.binding.facts.n_ctx)
        for site in self.sites:
            row = site.row
            if (
                not isinstance(site.layer, int)
                or row is None
                or row.square
                or row.axes[:2] != ("prompt", "pos")
            ):
                raise SiteError(f"{site} cannot be compared", why="models are compared at points of a layer that have a value per token",
                                instead='for example "L*.resid_post", "L*.attn_out", "L*.mlp_out", "L*H*.z"')  # fmt: skip

    @property
    def layers(self) -> int:
        """Layers of the model."""
        return len(self.binding.slots)

    def batches(self, only: Sequence[int] | None = None) -> list[Batch]:
        """Texts of similar length together, at most `batch_tokens` with their pads."""
        order = sorted(range(len(self.ids)) if only is None else only, key=lambda i: (len(self.ids[i]), i))
        out: list[list[int]] = []
        for i in order:
            if out and (len(out[-1]) + 1) * len(self.ids[i]) <= self.batch_tokens:
                out[-1].append(i)
            else:
                out.append([i])
        return [self.batch(docs) for docs in out]

    def batch(self, docs: Sequence[int]) -> Batch:
        """These texts in one rectangle."""
        packed = pack([self.ids[i] for i in docs])
        return Batch(tuple(docs), packed.ids, tuple(len(self.ids[i]) for i in docs))

    def base(self, number: int, batch: Batch) -> Seen:
        """The first model's run, kept where it fits."""
        if number in self._held:
            return self._held[number]
        seen = self.whole(self.binding, batch)
        size = sum(t.numel() * t.element_size() for t in (*seen.values.values(), seen.log_probs, seen.final))
        size += seen.base.nbytes() if seen.base is not None else 0
        if self._bytes + size <= self.keep:
            self._held[number], self._bytes = seen, self._bytes + size
        return seen

    @torch.no_grad()
    def whole(self, binding: Binding, batch: Batch) -> Seen:
        """A model from its first token to its logits."""
        attention = replay_attention(binding)
        reads = {site: Read(*_key(site)) for site in self.sites if site.point not in STREAM}
        ids = batch.ids.to(device_of(binding))
        calls, final = record(binding, ids, _distinct(reads), attention, cache=False)
        stream = [*(c.hidden for c in calls), final]
        base = Base(binding, ids, attention, "layers", tuple(calls), tuple(stream))
        return self._seen(binding, reads, stream, final, base)

    @torch.no_grad()
    def other(self, binding: Binding, batch: Batch, base: Seen) -> Seen:
        """Another model of the same shape, from the first layer that may differ; below it, what the first one computed."""
        if self.start is None or base.base is None:
            return self.whole(binding, batch)
        mine = Base(binding, base.base.ids, base.base.attention, "layers", base.base.calls, base.base.resid)
        reads = {s: Read(*_key(s)) for s in self.sites if s.point not in STREAM and _layer(s) >= self.start}
        stream = list(base.base.resid[: self.start + 1])
        rows = torch.arange(mine.n, device=stream[-1].device)
        with seam.implementation(binding.hf, mine.attention):
            for layer in range(self.start, self.layers):
                segment = Segment(0, mine.width, rows, rows, stream[-1], mine.width)
                here = _distinct({s: r for s, r in reads.items() if _layer(s) == layer})
                stream += call_layer(mine, layer, [segment], [], mine.n, here)
        seen = self._seen(binding, reads, stream, stream[-1], None)
        return Seen({**base.values, **seen.values}, seen.final, seen.log_probs)

    def _seen(
        self, binding: Binding, reads: dict[Site, Read], stream: Sequence[Tensor], final: Tensor, base: Base | None
    ) -> Seen:  # fmt: skip
        values = {}
        by_point = {_key(s): r.value for s, r in reads.items() if r.value is not None}
        for site in self.sites:
            if site.point in STREAM:
                value: Tensor | None = stream[_layer(site) + (site.point == "resid_post")]
            else:
                value = by_point.get(_key(site))
            if value is None:
                continue
            if isinstance(site.index, int):
                value = value[:, :, site.index]
            values[site] = value.reshape(*final.shape[:2], -1)
        log_probs = binding.unembed(final).float().log_softmax(-1)
        return Seen(values, final, log_probs, base)

    @torch.no_grad()
    def compare(self, binding: Binding, streams: Sequence[Site] = (), *, only: int | None = None) -> Compared:
        """Another model against the first, on all texts or the first `only` batches.

        streams: the sites whose mean difference at the first positions is wanted.
        """
        batches = self.batches()[:only]
        docs, width = len(self.ids), max(b.ids.shape[1] for b in batches)
        out = _empty(len(self.sites), docs, width, (len(streams), self.binding.facts.d_model))
        count = torch.zeros(FIRST_TOKENS, dtype=torch.float64)
        for number, batch in enumerate(batches):
            base = self.base(number, batch)
            theirs = self.other(binding, batch, base)
            put(out, self.sites, batch, base, theirs)
            first = min(FIRST_TOKENS, batch.ids.shape[1])
            own = batch.own[:, :first].double()
            count[:first] += own.sum(0)
            for k, site in enumerate(streams):
                gap = (theirs.values[site][:, :first].double() - base.values[site][:, :first].double()).cpu()
                out.first[k, :first] += (gap * own[..., None]).sum(0)
        out.first /= count.clamp_min(1)[None, :, None]
        return out


def put(out: Compared, sites: Sequence[Site], batch: Batch, base: Seen, theirs: Seen) -> None:
    """Write one batch's differences into the whole."""
    rows, width, hide = list(batch.docs), batch.ids.shape[1], ~batch.own
    for k, site in enumerate(sites):
        relative, cosine = distance(base.values[site], theirs.values[site])
        out.relative[k, rows, :width] = relative.cpu().masked_fill(hide, torch.nan)
        out.cosine[k, rows, :width] = cosine.cpu().masked_fill(hide, torch.nan)
    kl = divergence(base.log_probs, theirs.log_probs).cpu()
    out.kl[rows, :width] = kl.masked_fill(hide, torch.nan)


def distance(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """(relative norm of the difference, cosine) per token. Shapes: [..., d] -> [...], float32.

    Relative to the mean of the two norms, so that it lies between 0 and 2 and the order of the models does not matter; two
    zero vectors have distance 0 and cosine 1.
    """
    one, other = one.float(), other.float()
    a, b = one.norm(dim=-1), other.norm(dim=-1)
    gap, size = (other - one).norm(dim=-1), (a + b) / 2
    relative = torch.where(size > 0, gap / size, torch.zeros_like(gap))
    cosine = torch.where(a * b > 0, (one * other).sum(-1) / (a * b), torch.zeros_like(gap))
    return relative, torch.where(gap == 0, torch.ones_like(gap), cosine.clamp(-1, 1))


def divergence(one: Tensor, other: Tensor) -> Tensor:
    """KL of two distributions in nats, 0 at least. Shapes: log-probabilities [..., d_vocab] -> [...]."""
    return (one.exp() * (one - other)).sum(-1).clamp_min(0)


def _empty(sites: int, docs: int, width: int, first: tuple[int, int]) -> Compared:
    nan = torch.full((sites, docs, width), torch.nan)
    return Compared(nan, nan.clone(), torch.full((docs, width), torch.nan),
                    torch.zeros(first[0], FIRST_TOKENS, first[1], dtype=torch.float64))  # fmt: skip


def _layer(site: Site) -> int:
    assert isinstance(site.layer, int)
    return site.layer


def _key(site: Site) -> tuple[str, int | None]:
    return site.point, site.layer if isinstance(site.layer, int) else None


def _distinct(reads: dict[Site, Read]) -> list[Read]:
    """Heads of one point share one read."""
    out: dict[tuple[str, int | None], Read] = {}
    for site, read in reads.items():
        out.setdefault(_key(site), read)
    return list(out.values())
