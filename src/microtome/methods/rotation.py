"""Training a subspace whose exchange between prompts exchanges one variable.

Distributed alignment search (Geiger et al. 2023, arXiv 2303.02536): an orthonormal basis R of k directions at one site,
trained by gradient descent so that h_base + R R^T (h_source - h_base) makes the model say what the base prompt would say
with the source's value. Boundless DAS (Wu et al. 2023, arXiv 2305.08809): a soft boundary decides how many of the
directions are exchanged; it hardens while a temperature falls, and every direction inside costs something.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from microtome.errors import EditError
from microtome.replay.swap import Swaps
from microtome.results import seeds
from microtome.tasks.interchange import Rows

BATCH = 32
BOUNDARY_COST = 1.0
"""Nats that the whole starting width costs in boundless training (the weight of the published boundary loss)."""
HOT, COLD = 0.1, 0.002
"""Temperature of the boundary at the first and the last step, in widths; geometric between them."""


@dataclass(frozen=True)
class Recipe:
    """How a subspace is trained. k: directions, the most that boundless training may keep; lr: Adam's, falling to 0."""

    k: int
    boundless: bool
    steps: int
    lr: float
    seed: int


@dataclass(frozen=True)
class Data:
    """Recorded prompts, which candidate answers each has, and the interchanges to train or measure on.

    Shapes: allowed bool [prompt, column]; rows with labels as columns of `swaps` ([row], int64).
    """

    swaps: Swaps
    allowed: Tensor
    base: Tensor
    source: Tensor
    label: Tensor

    @property
    def n(self) -> int:
        """Interchanges."""
        return len(self.base)

    def relabelled(self, label: Tensor) -> Data:
        """The same interchanges with other labels, each a candidate of its base."""
        return Data(self.swaps, self.allowed, self.base, self.source, label)


@dataclass(frozen=True)
class Subspace:
    """A trained basis [d, k], orthonormal columns, and how it came about: one line per tenth of training or less."""

    basis: Tensor
    history: tuple[dict[str, float], ...]

    @property
    def k(self) -> int:
        """Directions."""
        return int(self.basis.shape[1])


def data_of(swaps: Swaps, rows: Rows, candidates: tuple[frozenset[int], ...]) -> Data:
    """Rows of an `Interchanges` for recorded prompts."""
    place = {int(t): i for i, t in enumerate(swaps.columns.tolist())}
    allowed = torch.zeros(len(candidates), len(place), dtype=torch.bool)
    for prompt, tokens in enumerate(candidates):
        allowed[prompt, [place[t] for t in tokens]] = True
    label = torch.tensor([place[int(t)] for t in rows.label], dtype=torch.long)
    device = swaps.values.device
    base, source = (torch.as_tensor(x, dtype=torch.long) for x in (rows.base, rows.source))
    return Data(swaps, allowed.to(device), base.to(device), source.to(device), label.to(device))


def exchanged(data: Data, which: Tensor, basis: Tensor | None, inside: Tensor | None = None) -> Tensor:
    """The site's values with the subspace of the source; all of the source's with basis None. Shapes: [row, pos, d].

    inside [k]: how much of each direction is exchanged (None: all of it).
    """
    mine, theirs = data.swaps.values[data.base[which]], data.swaps.values[data.source[which]]
    if basis is None:
        return theirs
    along = (theirs - mine) @ basis
    return mine + (along if inside is None else along * inside) @ basis.T


def scores(data: Data, which: Tensor, new: Tensor | None, *, live: bool = False) -> Tensor:
    """Log-probability of each candidate among the base's candidates. Shapes: [row, column]; -inf elsewhere."""
    base = data.base[which]
    raw = data.swaps.unpatched[base] if new is None else data.swaps.logits(base, new, live=live)
    return raw.masked_fill(~data.allowed[base], -torch.inf).log_softmax(-1)


def train(data: Data, recipe: Recipe, note: Callable[[int, int], None] | None = None) -> Subspace:
    """Find the subspace whose exchange gives the labels. The model stays as it is; only the basis is trained.

    Raises
    ------
    EditError: the answers do not depend on the site, or a loss that is not finite.
    """
    rng = seeds.rng(recipe.seed, "das/batches")
    d, device = data.swaps.d, data.swaps.values.device
    start = seeds.rng(recipe.seed, "das/start").standard_normal((d, recipe.k))
    with torch.inference_mode(False), torch.enable_grad():
        first = torch.linalg.qr(torch.tensor(start, dtype=data.swaps.values.dtype))[0].to(device)
        weight = first.clone().requires_grad_()
        edge = torch.tensor(float(recipe.k) / 2, device=device, requires_grad=True)
        groups = [{"params": [weight], "lr": recipe.lr}]
        if recipe.boundless:
            groups.append({"params": [edge], "lr": recipe.lr * recipe.k})
        optimiser = torch.optim.Adam(groups)
        fall = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / recipe.steps)
        history = []
        for step in range(recipe.steps):
            which = torch.as_tensor(rng.integers(data.n, size=min(BATCH, data.n)), device=device)
            heat = recipe.k * HOT * (COLD / HOT) ** (step / max(recipe.steps - 1, 1))
            loss = _loss(data, which, weight, edge if recipe.boundless else None, heat)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            fall.step()
            with torch.no_grad():
                edge.clamp_(0.0, float(recipe.k))
            if step % max(recipe.steps // 10, 1) == 0 or step == recipe.steps - 1:
                history.append(
                    {
                        "step": step,
                        "loss": float(loss.detach()),
                        "k": float(edge.detach()) if recipe.boundless else float(recipe.k),
                    }
                )
            if note is not None:
                note(step + 1, recipe.steps)
        basis = torch.linalg.qr(weight.detach())[0]
    kept = int(round(float(edge.detach()))) if recipe.boundless else recipe.k
    return Subspace(basis[:, :kept].contiguous(), tuple(history))


def _loss(data: Data, which: Tensor, weight: Tensor, edge: Tensor | None, heat: float) -> Tensor:
    basis = torch.linalg.qr(weight)[0]
    cost: Tensor | float = 0.0
    inside: Tensor | None = None
    if edge is not None:
        k = weight.shape[1]
        inside = torch.sigmoid((edge - torch.arange(k, device=weight.device) - 0.5) / heat)
        cost = BOUNDARY_COST * edge / k
    found = scores(data, which, exchanged(data, which, basis, inside), live=True)
    loss = -found.gather(1, data.label[which, None]).mean()
    if not loss.requires_grad or not bool(torch.isfinite(loss)):
        raise EditError(
            f"training a subspace of {data.swaps.site} has the loss {float(loss.detach())}",
            why="the answer does not depend on the site, or its logits are not finite",
            instead="choose a site from which a path leads to the last position",
        )
    return loss + cost


@dataclass(frozen=True)
class Measured:
    """What an exchange did on each interchange: hit [row] (the label is the likeliest candidate), logprob [row], nats."""

    hit: np.ndarray
    logprob: np.ndarray


def measure(data: Data, basis: Tensor | None | str) -> Measured:
    """Interchange accuracy and log-probability of the label, row by row.

    basis: the subspace [d, k]; None swaps the whole site; "nothing" leaves the base prompt as it is.
    """
    hits, values = [], []
    with torch.no_grad():
        for which in torch.arange(data.n, device=data.base.device).split(64):
            new = None if isinstance(basis, str) else exchanged(data, which, basis)
            found = scores(data, which, new)
            label = data.label[which]
            hits.append(found.argmax(-1) == label)
            values.append(found.gather(1, label[:, None])[:, 0])
    hit, value = torch.cat(hits).cpu().numpy(), torch.cat(values).double().cpu().numpy()
    return Measured(hit.astype(np.float64), value)
