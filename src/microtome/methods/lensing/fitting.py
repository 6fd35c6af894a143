"""Fitting lenses: the tuned lens by descent on the divergence from the final distribution, the Jacobian lens by gradients.

Tuned lens: Belrose et al. 2023 (arXiv 2303.08112), one affine map per layer, KL to the final distribution. Jacobian lens: Gurnee
et al. 2026 (Verbalizable representations form a global workspace in language models): the mean over positions of the summed
derivatives of the final stream there and later with respect to the stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from microtome.errors import ModelError, TaskError
from microtome.methods.lensing.translators import Translators, block_digest, stream_sites
from microtome.methods.texts import Blocks, blocks_of
from microtome.results import seeds
from microtome.results.technique import progress
from microtome.trace.grad import frozen, rooted
from microtome.trace.run import forward, prepare
from microtome.trace.session import Read

if TYPE_CHECKING:
    from microtome.facade import Model

__all__ = [
    "FitOptions",
    "constant_lens",
    "fit_jacobian",
    "fit_tuned",
    "jacobian_lens",
    "streams",
    "tuned_lens",
]

BATCH = 8


@dataclass(frozen=True)
class FitOptions:
    """How lenses are fitted.

    context: tokens per block. blocks: of text, at most. skip: first positions of a block left out (attention sinks, whose
    streams are like no others). layers: that get a map (None: all); others are read as they are.
    start: "identity" (the logit lens, as Belrose et al.) or "ridge" (the least-squares map to the final stream, relative to its
    size). steps, tokens, rate: descent steps (Adam), tokens per step, learning rate, falling to 0. columns: tokens of the
    vocabulary per step, drawn anew beside the likeliest ones (0: all); both distributions are renormalised among them.
    probes: gradients per block for the Jacobian (None: d_model, exact); fewer are random orthogonal directions.
    """

    context: int = 64
    blocks: int = 64
    skip: int = 4
    layers: Sequence[int] | None = None
    start: str = "ridge"
    steps: int = 100
    tokens: int = 256
    rate: float = 1e-3
    columns: int = 2048
    probes: int | None = None

    def __post_init__(self) -> None:
        if self.start not in ("identity", "ridge"):
            raise TaskError(
                f"start={self.start!r}",
                why="a map starts as the identity or by least squares",
                instead='"identity" or "ridge"',
            )
        if self.skip < 0 or self.skip > self.context - 2:
            raise TaskError(
                f"skip={self.skip} of {self.context} positions",
                why="one position or more must be left, with a next one",
                instead="skip=4, context=64",
            )
        if (
            min(self.steps, self.columns) < 0
            or self.tokens < 1
            or not self.rate > 0
            or (self.probes is not None and self.probes < 1)
        ):
            raise TaskError(
                "steps, columns, tokens, rate or probes are not positive",
                why="nothing would be learned",
                instead="FitOptions()",
            )

    @property
    def told(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "layers": None if self.layers is None else list(self.layers)}


def tuned_lens(model: Model, texts: Any, *, options: FitOptions | None = None, seed: int = 0) -> Translators:
    """A tuned lens, fitted to the texts given; see `FitOptions`. Judge it on others (`lenses` does).

    `made` has the mean divergence per layer over the first and the last tenth of the steps.

    Raises
    ------
    TaskError: texts without a block of the context. ModelError: an unknown layer, or maps that are not finite.
    """
    o = options or FitOptions()
    return fit_tuned(model, blocks_of(model, texts, context=o.context, most=o.blocks, seed=seed), o, seed)


def jacobian_lens(
    model: Model, texts: Any, *, options: FitOptions | None = None, seed: int = 0
) -> Translators:
    """A Jacobian lens, fitted to the texts given; see `FitOptions`.

    J = mean over blocks and source positions t of sum over t' >= t of d final_resid[t'] / d resid[t]; lens(x) = unembed(norm(J x)).
    Exact for these texts unless `probes` says less. `made` has, per layer, the distance of the two halves of the blocks from
    each other over the size of their mean ("split_half"): what is left to the choice of text (and of probes).

    Raises as `tuned_lens`.
    """
    o = options or FitOptions(blocks=8)
    return fit_jacobian(model, blocks_of(model, texts, context=o.context, most=o.blocks, seed=seed), o, seed)


@torch.no_grad()
def streams(
    model: Model, blocks: Blocks, layers: Sequence[int], skip: int
) -> tuple[dict[int, Tensor], Tensor]:
    """The stream before layers and at the end, at positions from `skip` on. Shapes: layer -> [block, pos, d_model], same."""
    rows: dict[int, list[Tensor]] = {k: [] for k in layers}
    last: list[Tensor] = []
    sites = [*(f"L{k}.resid_pre" for k in layers), "final_resid"]
    for trace in model.stream([list(b) for b in blocks.ids], sites, batch=BATCH):
        for k in layers:
            rows[k].append(trace[f"L{k}.resid_pre"][:, skip:].detach())
        last.append(trace["final_resid"][:, skip:].detach())
    return {k: torch.cat(v) for k, v in rows.items()}, torch.cat(last)


def fit_tuned(model: Model, blocks: Blocks, o: FitOptions, seed: int) -> Translators:
    """See `tuned_lens`."""
    layers = stream_sites(model, o.layers)
    found, last = streams(model, blocks, layers, o.skip)
    last = last.flatten(0, 1)
    matrices, offsets, curves = {}, {}, {}
    for done, k in enumerate(layers, 1):
        x = found[k].flatten(0, 1)
        start = _ridge(x, last) if o.start == "ridge" else (torch.eye(x.shape[1]), torch.zeros(x.shape[1]))
        matrices[k], offsets[k], curve = _descend(
            model, x, last, start, o, seeds.child(seed, f"tuned lens, layer {k}")
        )
        curves[str(k)] = curve
        progress(done, len(layers), "layers", "tuning")
    made = {
        "options": o.told,
        "seed": seed,
        "blocks": [block_digest(b) for b in blocks.ids],
        "documents": len(set(blocks.documents)),
        "divergence": curves,
    }
    return Translators("tuned", matrices, offsets, model.hash, made)


def _ridge(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Least squares from x to y with each row over the size of y, in float64; the penalty draws towards the identity."""
    x, y = x.double().cpu(), y.double().cpu()
    weight = 1 / y.square().mean(-1, keepdim=True).clamp_min(1e-12)
    total = weight.sum()
    mean_x, mean_y = (weight * x).sum(0) / total, (weight * y).sum(0) / total
    centred = x - mean_x
    gram = centred.T @ (weight * centred)
    penalty = 0.1 * gram.diagonal().mean() * x.shape[1] / len(x) + 1e-9
    change = torch.linalg.solve(
        gram + penalty * torch.eye(x.shape[1], dtype=x.dtype), centred.T @ (weight * (y - mean_y - centred))
    )
    matrix = change + torch.eye(x.shape[1], dtype=x.dtype)
    return matrix.float(), (mean_y - mean_x @ matrix).float()


def _descend(
    model: Model, x: Tensor, last: Tensor, start: tuple[Tensor, Tensor], o: FitOptions, seed: int
) -> tuple[Tensor, Tensor, list[float]]:
    """Adam on the divergence from the final distribution. Returns the map and the divergence at first and at last."""
    generator = torch.Generator().manual_seed(seed)
    d_vocab = model.facts.d_vocab
    losses: list[float] = []
    with frozen(model.hf):
        matrix, offset = (t.clone().to(x.device, torch.float32).requires_grad_() for t in start)
        optimiser = torch.optim.Adam([matrix, offset], lr=o.rate)
        for step in range(o.steps):
            rows = torch.randint(0, len(x), (min(o.tokens, len(x)),), generator=generator)
            with torch.no_grad():
                target = model.binding.unembed(last[rows][None])[0].float()
                columns = _columns(target, o.columns, d_vocab, generator)
                wanted = (target if columns is None else target[:, columns]).log_softmax(-1)
            carried = x[rows].float() @ matrix + offset
            said = model.binding.unembed(carried.to(x.dtype)[None], columns)[0].float().log_softmax(-1)
            loss = (wanted.exp() * (wanted - said)).sum(-1).mean()
            gradients = torch.autograd.grad(loss, [matrix, offset])
            for parameter, gradient in zip((matrix, offset), gradients, strict=True):
                parameter.grad = gradient
            optimiser.param_groups[0]["lr"] = o.rate * (1 - step / o.steps)
            optimiser.step()
            losses.append(float(loss.detach()))
    tenth = max(len(losses) // 10, 1)
    curve = [sum(part) / len(part) for part in (losses[:tenth], losses[-tenth:]) if part]
    return matrix.detach().cpu(), offset.detach().cpu(), curve


def _columns(target: Tensor, most: int, d_vocab: int, generator: torch.Generator) -> Tensor | None:
    """The likeliest token of each row, and others at random; None for all of the vocabulary."""
    if most == 0 or most >= d_vocab:
        return None
    likely = target.topk(8, -1).indices.unique() if d_vocab > 8 else torch.arange(d_vocab)
    others = torch.randperm(d_vocab, generator=generator)[:most].to(likely.device)
    return torch.cat([likely, others]).unique()


def fit_jacobian(model: Model, blocks: Blocks, o: FitOptions, seed: int) -> Translators:
    """See `jacobian_lens`."""
    layers = stream_sites(model, o.layers)
    if len(blocks) < 2:
        raise TaskError(
            "one block of text has no halves",
            why="the error of a Jacobian is measured between two halves",
            instead="two blocks or more",
        )
    halves = torch.zeros(2, len(layers), model.facts.d_model, model.facts.d_model, dtype=torch.float64)
    groups = [list(range(k, min(k + BATCH, len(blocks)))) for k in range(0, len(blocks), BATCH)]
    for done, group in enumerate(groups):
        half = torch.tensor(group) % 2
        told = (done, len(groups))
        halves += _jacobians(
            model, blocks.part(group), half, layers, o, seeds.child(seed, f"probes {done}"), told
        )
    first, second = halves[0] / ((len(blocks) + 1) // 2), halves[1] / (len(blocks) // 2)
    whole = (halves[0] + halves[1]) / len(blocks)
    gap = (
        (first - second).flatten(1).norm(dim=1) / (2 * whole.flatten(1).norm(dim=1)).clamp_min(1e-30)
    ).tolist()
    made = {"options": o.told, "seed": seed, "blocks": [block_digest(b) for b in blocks.ids], "documents": len(set(blocks.documents)),
            "split_half": {str(k): v for k, v in zip(layers, gap, strict=True)}}  # fmt: skip
    # rows of streams are multiplied from the right: x @ J^T
    return Translators(
        "jacobian", {k: whole[i].T.float() for i, k in enumerate(layers)}, {}, model.hash, made
    )


def _jacobians(
    model: Model,
    blocks: Blocks,
    half: Tensor,
    layers: Sequence[int],
    o: FitOptions,
    seed: int,
    told: tuple[int, int],
) -> Tensor:
    """Sums over the blocks of each half of means over positions; each half has probes of its own.

    Shapes: half [block], 0 or 1 -> [half, layer, out, in], float64.
    """
    binding, d = model.binding, model.facts.d_model
    tokens = model.tokens([list(b) for b in blocks.ids])
    valid = slice(o.skip, blocks_length(blocks) - 1)
    count = valid.stop - valid.start
    n_probes = d if o.probes is None else min(o.probes, d)
    whole = torch.eye(d, dtype=torch.float64)
    probes = torch.stack(
        [whole if n_probes == d else _orthogonal(d, n_probes, seeds.child(seed, f"half {h}")) for h in (0, 1)]
    )
    total = torch.zeros(2, len(layers), d, d, dtype=torch.float64)
    sizes = [int((half == h).sum()) for h in (0, 1)]
    plan = prepare(
        binding,
        tokens,
        capture=[*(f"L{k}.resid_pre" for k in layers), "final_resid"],
        edits=(),
        attention=None,
    )
    live = {key: Read(*key, live=True) for key in plan.reads}
    with rooted(binding):
        # the last logits are asked for so that the run is whole; nothing is pulled through them
        forward(binding, tokens, list(live.values()), plan.writes, logits="last", attention=plan.attention)
        by = {(read.point, read.layer): read.value for read in live.values()}
        end = by["final_resid", None]
        at = [value for k in layers if (value := by["resid_pre", k]) is not None]
        if end is None or len(at) < len(layers):
            raise ModelError(
                "the stream of this model was not reached",
                why="a layer's stream was not read",
                instead="see `model.facts`",
            )
        for n in range(n_probes):
            pair = probes[:, n]
            cotangent = torch.zeros_like(end).reshape(len(blocks), -1, d)
            cotangent[:, valid] = pair[half].to(end)[:, None]
            pulled = torch.autograd.grad(end, at, cotangent.reshape(end.shape), retain_graph=n + 1 < n_probes)
            for i, gradient in enumerate(pulled):
                mean = gradient.detach().reshape(len(blocks), -1, d)[:, valid].sum(1).double().cpu() / count
                for h in (0, 1):  # what is probed is the Jacobian less the identity, which is known
                    total[h, i] += torch.outer(pair[h], mean[half == h].sum(0) - sizes[h] * pair[h])
            progress(told[0] * n_probes + n + 1, told[1] * n_probes, "gradients", "pulling back")
    known = torch.tensor(sizes, dtype=torch.float64)[:, None, None, None] * whole
    return total * (d / n_probes) + known


def blocks_length(blocks: Blocks) -> int:
    """Tokens of every block."""
    return len(blocks.ids[0])


def _orthogonal(d: int, n: int, seed: int) -> Tensor:
    """n random orthonormal directions: [n, d]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, n, generator=generator, dtype=torch.float64))[0].T


def constant_lens(model: Model, blocks: Blocks, layers: Sequence[int], skip: int) -> Translators:
    """A lens that reads nothing: every layer gives the mean final stream (over its size), whatever the text. A null."""
    _, last = streams(model, blocks, [], skip)
    rows = last.flatten(0, 1).double().cpu()
    size = rows.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-12)
    mean = ((rows / size).mean(0) * size.mean()).float()
    zero = torch.zeros(len(mean), len(mean))
    return Translators("constant", dict.fromkeys(layers, zero), dict.fromkeys(layers, mean), model.hash)
