"""A product of two thin matrices, kept as its factors: what a head does to the vocabulary, without d_vocab x d_vocab numbers.

Everything that is asked of the product (norm, singular values, eigenvalues, entries) is computed from matrices of the
inner width. Elhage et al. 2021 (A mathematical framework for transformer circuits) define the products;
TransformerLens's FactoredMatrix is the class that the field knows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from microtome.errors import ModelError

__all__ = ["FactoredMatrix", "Svd", "Top"]

DENSE_LIMIT = 1 << 26
"""Most entries that `dense` makes: 64 M, half a gigabyte of float64."""
CHUNK = 1 << 22
"""Entries that a scan holds at a time."""


class Svd(NamedTuple):
    """U [..., m, k], S [..., k] from the largest, V [..., n, k]: the product is U diag(S) V^T."""

    U: Tensor
    S: Tensor
    V: Tensor


class Top(NamedTuple):
    """The largest entries, from the largest: rows, columns, values, each [k]."""

    rows: Tensor
    columns: Tensor
    values: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class FactoredMatrix:
    """The product left @ right, of shape [..., m, n], kept as left [..., m, k] and right [..., k, n].

    Leading axes are batches (heads, say) and broadcast. Factors keep their dtype and device; statistics of the product
    (norm, singular values, eigenvalues, trace) are computed and returned in float64.

    Raises
    ------
    ModelError: factors that do not multiply, are no real matrices, or differ in device.
    """

    left: Tensor
    right: Tensor

    def __post_init__(self) -> None:
        a, b = self.left, self.right
        if not (isinstance(a, Tensor) and isinstance(b, Tensor)) or min(a.dim(), b.dim()) < 2:
            raise ModelError("a factored matrix needs two matrices", why=f"given {_told(a)} and {_told(b)}",
                             instead="FactoredMatrix(left [..., m, k], right [..., k, n])")  # fmt: skip
        if a.shape[-1] != b.shape[-2] or not _broadcasts(a.shape[:-2], b.shape[:-2]):
            raise ModelError(f"{tuple(a.shape)} and {tuple(b.shape)} do not multiply", why="the inner widths or the leading axes differ",
                             instead="transpose one of them: weights are [in, out]")  # fmt: skip
        if not (a.is_floating_point() and b.is_floating_point()) or a.device != b.device:
            raise ModelError(f"factors of {a.dtype} on {a.device} and {b.dtype} on {b.device}", why="both must be real numbers in one place",
                             instead="convert them first")  # fmt: skip

    def __repr__(self) -> str:
        return f"<FactoredMatrix {' x '.join(map(str, self.shape))} through {self.rank}>"

    @property
    def shape(self) -> torch.Size:
        """Of the product: [..., m, n]."""
        lead = torch.broadcast_shapes(self.left.shape[:-2], self.right.shape[:-2])
        return torch.Size((*lead, self.left.shape[-2], self.right.shape[-1]))

    @property
    def rank(self) -> int:
        """The inner width k: the product's rank is at most this, and at most m and n."""
        return int(self.left.shape[-1])

    @property
    def T(self) -> FactoredMatrix:
        """The transposed product."""
        return FactoredMatrix(self.right.mT, self.left.mT)

    def __matmul__(self, other: Tensor | FactoredMatrix) -> FactoredMatrix:
        """The product with another matrix on the right, kept through the smaller inner width."""
        if not isinstance(other, FactoredMatrix):
            return FactoredMatrix(self.left, self.right @ other.to(self.right.dtype))
        middle = self.right @ other.left.to(self.right.dtype)
        if self.rank <= other.rank:
            return FactoredMatrix(self.left, middle @ other.right.to(middle.dtype))
        return FactoredMatrix(self.left @ middle, other.right.to(middle.dtype))

    def __rmatmul__(self, other: Tensor) -> FactoredMatrix:
        """The product with a matrix on the left."""
        return FactoredMatrix(other.to(self.left.dtype) @ self.left, self.right)

    def batch(self, index: Any) -> FactoredMatrix:
        """One or several of the batch (over the leading axes)."""
        lead = self.shape[:-2]
        left = self.left.expand(*lead, *self.left.shape[-2:])[index]
        return FactoredMatrix(left, self.right.expand(*lead, *self.right.shape[-2:])[index])

    def rows(self, index: Any) -> Tensor:
        """These rows of the product: [..., rows, n] (one row: [..., n])."""
        return self.left[..., index, :][..., None, :].matmul(self.right)[..., 0, :] if isinstance(index, int) else (
            self.left[..., index, :] @ self.right
        )  # fmt: skip

    def columns(self, index: Any) -> Tensor:
        """These columns of the product: [..., m, columns] (one column: [..., m])."""
        return (
            self.left @ self.right[..., index]
            if not isinstance(index, int)
            else (self.left @ self.right[..., index : index + 1])[..., 0]
        )

    def block(self, rows: Any, columns: Any) -> FactoredMatrix:
        """These rows and columns, still factored. Shapes: slices or index lists -> [..., rows, columns]."""
        return FactoredMatrix(self.left[..., rows, :], self.right[..., columns])

    def entries(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Single entries. Shapes: [i], [i] -> [..., i]."""
        return (self.left[..., rows, :] * self.right[..., columns].mT).sum(-1)

    @property
    def diagonal(self) -> Tensor:
        """The diagonal: [..., min(m, n)]."""
        n = min(self.shape[-2:])
        return (self.left[..., :n, :] * self.right[..., :n].mT).sum(-1)

    def dense(self) -> Tensor:
        """The product itself, for small ones.

        Raises
        ------
        ModelError: more entries than 64 M, which is what this class is there to avoid.
        """
        if self.shape.numel() > DENSE_LIMIT:
            raise ModelError(f"a product of {' x '.join(map(str, self.shape))} is not made", why="it has more than 64 M entries",
                             instead="rows, columns, entries, top or scan")  # fmt: skip
        return self.left @ self.right

    @cached_property
    def norm(self) -> Tensor:
        """Frobenius norm: [...], float64, from two Gram matrices of the inner width."""
        a, b = self.left.double(), self.right.double()
        return ((a.mT @ a) * (b @ b.mT)).sum((-2, -1)).clamp_min(0).sqrt()

    @cached_property
    def trace(self) -> Tensor:
        """Sum of the diagonal: [...], float64. Raises ModelError unless square."""
        self._need_square("trace")
        return self.inner.diagonal(dim1=-2, dim2=-1).sum(-1)

    @cached_property
    def inner(self) -> Tensor:
        """right @ left, [..., k, k], float64: it has the product's eigenvalues, except zeros. Raises ModelError unless square."""
        self._need_square("eigenvalues")
        return self.right.double() @ self.left.double()

    @cached_property
    def eigenvalues(self) -> Tensor:
        """The eigenvalues that can differ from 0: [..., min(k, n)], complex128, from the largest absolute value.

        Raises
        ------
        ModelError: the product is not square.
        """
        self._need_square("eigenvalues")
        inner = self.inner if self.rank <= self.shape[-1] else self.left.double() @ self.right.double()
        found = torch.linalg.eigvals(inner)
        return found.gather(-1, found.abs().argsort(-1, descending=True))

    @cached_property
    def svd(self) -> Svd:
        """Singular value decomposition through the inner width, float64: two QR decompositions and a small SVD."""
        q_left, r_left = torch.linalg.qr(self.left.double())
        q_right, r_right = torch.linalg.qr(self.right.mT.double())
        u, s, vh = torch.linalg.svd(r_left @ r_right.mT, full_matrices=False)
        return Svd(q_left @ u, s, q_right @ vh.mT)

    @property
    def singular_values(self) -> Tensor:
        """[..., min(k, m, n)], float64, from the largest."""
        return self.svd.S

    def scan(self, visit: Callable[[int, Tensor], None], chunk: int = CHUNK) -> None:
        """Call visit(first row, rows [r, n]) over all rows, a few at a time. For products without a batch.

        Raises
        ------
        ModelError: a batch of products.
        """
        if len(self.shape) != 2:
            raise ModelError("a batch is not scanned", why=f"its shape is {tuple(self.shape)}", instead="choose one: .batch(index)")  # fmt: skip
        step = max(1, chunk // self.shape[-1])
        for start in range(0, self.shape[0], step):
            visit(start, self.left[start : start + step] @ self.right)

    def top(self, k: int, *, largest: bool = True, absolute: bool = False, chunk: int = CHUNK) -> Top:
        """The k largest entries (smallest with largest=False, or by size with absolute=True), scanned in pieces.

        Raises
        ------
        ModelError: as `scan`, or a k that is not between 1 and the number of entries.
        """
        if not 0 < k <= self.shape.numel():
            raise ModelError(f"the top {k} of {self.shape.numel()} entries", why="there are not so many, or none was asked for",
                             instead="a smaller k")  # fmt: skip
        best = torch.empty(0, dtype=self.left.dtype, device=self.left.device)
        at = torch.empty(0, dtype=torch.long, device=self.left.device)
        width = self.shape[-1]

        def visit(start: int, rows: Tensor) -> None:
            nonlocal best, at
            flat = rows.reshape(-1)
            key = flat.abs() if absolute else flat if largest else -flat
            place = key.topk(min(k, flat.numel())).indices
            best, at = torch.cat([best, flat[place]]), torch.cat([at, place + start * width])
            key = best.abs() if absolute else best if largest else -best
            keep = key.topk(min(k, best.numel())).indices
            best, at = best[keep], at[keep]

        self.scan(visit, chunk)
        return Top(at // width, at % width, best)

    def _need_square(self, what: str) -> None:
        m, n = self.shape[-2:]
        if m != n:
            raise ModelError(f"{what} of a product of {m} x {n}", why="only square matrices have them", instead="svd, norm")  # fmt: skip


def _told(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def _broadcasts(first: torch.Size, second: torch.Size) -> bool:
    pairs = zip(reversed(first), reversed(second), strict=False)
    return all(a == b or 1 in (a, b) for a, b in pairs)
