"""Two models' weights, tensor by tensor: which are the same to the bit, how far the others moved, and in how many directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from microtome.errors import ModelError
from microtome.model.copies import tensors_of

if TYPE_CHECKING:
    import pandas as pd

    from microtome.facade import Model

LARGEST = 4096
"""Longest short side of a matrix whose singular values are computed."""


@dataclass(frozen=True)
class WeightDiff:
    """changed: name -> other minus first model, only tensors that differ; table: a row per tensor; start: the first layer that
    differs (the number of layers: only what follows them; None: what comes before them); same: how many do not differ;
    behind: a changed tensor that reads the stream after the last layer (final norm, unembedding), "" if none does.
    """

    changed: dict[str, Tensor]
    table: pd.DataFrame
    start: int | None
    same: int
    behind: str = ""

    @property
    def ranks(self) -> tuple[float, float]:
        """(rank of the difference, what it could be), summed over the matrices that differ; a rank that was not computed is full."""
        moved = self.table[self.table["changed"] & (self.table["full"] > 1)]
        return float(moved["rank"].fillna(moved["full"]).sum()), float(moved["full"].sum())

    @property
    def sentence(self) -> str:
        """What is the same, and what is therefore not run twice."""
        total = self.same + len(self.changed)
        if not self.changed:
            return f"all {total} tensors are equal to the bit"
        if self.start is None:
            return (
                f"{len(self.changed)} of {total} tensors differ, the embedding among them: nothing is shared"
            )
        below = (
            f"layers below {self.start} were run once for both"
            if self.start
            else "only the embedding is shared"
        )
        return f"{len(self.changed)} of {total} tensors differ; {below}"


def weight_diff(a: Model, b: Model) -> WeightDiff:
    """Compare all tensors of two models of one architecture.

    The table: tensor, layer, changed, relative (norm of the difference over the norm of the first model's), largest (largest
    |difference|), rank (singular values above what rounding alone gives) and effective_rank (exp of the entropy of the singular values' shares:
    Roy & Vetterli 2007) of the difference; a merged LoRA shows as a rank far below `full`.

    Raises
    ------
    ModelError: tensors of other names or shapes, or values that are not finite.
    """
    import pandas as pd

    one, other = tensors_of(a.hf), tensors_of(b.hf)
    if [(n, t.shape) for n, t in one.items()] != [(n, t.shape) for n, t in other.items()]:
        raise ModelError("these models have other tensors", why=different_tensors(one, other), instead='level="outputs" or "text"')  # fmt: skip
    places = _places(a)
    changed: dict[str, Tensor] = {}
    rows = []
    for name, old in one.items():
        new = other[name].to(old.device)
        layer = _place(name, places)
        row: dict[str, object] = {"tensor": name, "layer": "" if layer is None else str(layer), "changed": False, "relative": 0.0,
                                  "largest": 0.0, "rank": 0.0, "effective_rank": 0.0, "full": float(min(old.shape) if old.dim() > 1 else 1)}  # fmt: skip
        if not torch.equal(old, new):
            delta = new.double() - old.double()
            if not bool(torch.isfinite(delta).all()):
                raise ModelError(f"{name} is not finite in one of the models", why="a difference of it has no size", instead="check how it was trained or saved")  # fmt: skip
            changed[name] = delta.to(torch.float32)
            size = float(torch.linalg.vector_norm(old.double()))
            rank, effective = _ranks(delta, old)
            row |= {"changed": True, "relative": float(torch.linalg.vector_norm(delta)) / size if size else float("inf"),
                    "largest": float(delta.abs().max()), "rank": rank, "effective_rank": effective}  # fmt: skip
        rows.append(row)
    behind = next((n for n in changed if _place(n, places) == len(a.binding.slots)), "")
    if not behind and a.facts.tied:
        behind = next((n for n in changed if n == f"{a.binding.stack_path('embed')}.weight"), "")
    return WeightDiff(
        changed, pd.DataFrame(rows), _start(a, changed, places), len(one) - len(changed), behind
    )


def different_tensors(one: dict[str, Tensor], other: dict[str, Tensor]) -> str:
    """How two modules' tensors differ, in words; "" where they do not."""
    lost, new = [n for n in one if n not in other], [n for n in other if n not in one]
    moved = [n for n in one if n in other and one[n].shape != other[n].shape]
    said = []
    if moved:
        said.append(f"{moved[0]} is {list(one[moved[0]].shape)} against {list(other[moved[0]].shape)}" + (f", and {len(moved) - 1} more shapes" if len(moved) > 1 else ""))  # fmt: skip
    for names, where in ((lost, "first"), (new, "second")):
        if names:
            said.append(f"{len(names)} tensors are in the {where} model only ({names[0]}{', ...' if len(names) > 1 else ''})")  # fmt: skip
    return "; ".join(said)


def _places(a: Model) -> list[tuple[str, int]]:
    """(prefix of a tensor's name, layer); what follows the layers counts as the layer behind the last."""
    n = len(a.binding.slots)
    out = [(f"{slot.path}.", k) for k, slot in enumerate(a.binding.slots)]
    stack = a.binding.stack
    tied = {t.data_ptr() for t in (a.weights.W_E,)}
    for part in ("final_norm", "project_out", "head"):
        path = stack.get(part)
        if path is None:
            continue
        weight = getattr(a.binding.module(path), "weight", None)
        if not (isinstance(weight, Tensor) and weight.data_ptr() in tied):
            out.append((f"{path}.", n))
    return out


def _place(name: str, places: list[tuple[str, int]]) -> int | None:
    """The layer of a tensor; None before the layers."""
    return next((k for path, k in places if name.startswith(path)), None)


def _start(a: Model, changed: dict[str, Tensor], places: list[tuple[str, int]]) -> int | None:
    found = [_place(name, places) for name in changed]
    if any(k is None for k in found):
        return None
    return min([k for k in found if k is not None], default=len(a.binding.slots))


def _ranks(delta: Tensor, old: Tensor) -> tuple[float, float]:
    """(rank above rounding, effective rank) of a difference; 1 for a vector, NaN for a matrix too large."""
    if delta.dim() != 2:
        return 1.0, 1.0
    if min(delta.shape) > LARGEST:
        return float("nan"), float("nan")
    gram = delta @ delta.T if delta.shape[0] <= delta.shape[1] else delta.T @ delta
    values = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    # a sum rounded to the stored type is off by up to half a step per entry: noise of this largest singular value
    step = torch.finfo(old.dtype).eps * float(old.double().pow(2).mean().sqrt())
    floor = step * (delta.shape[0] ** 0.5 + delta.shape[1] ** 0.5)
    floor = max(floor, 1e-7 * float(values.max()))
    share = values / values.sum()
    share = share[share > 0]
    return float((values > floor).sum()), float(torch.exp(-(share * share.log()).sum()))
