"""What the checks share: fixed random prompts, tolerances from measured noise, and a list of what was found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from microtome.certificate.record import Check, Noise
from microtome.errors import MicrotomeError
from microtome.model.binding import Binding
from microtome.model.tokens import Tokens, pack
from microtome.points import POINTS
from microtome.sites import expand
from microtome.trace import seam
from microtome.trace.run import Logits, run
from microtome.trace.trace import Trace

FACTOR = 8
"""An identity may be off by this many roundings (the larger of the dtype's eps and the measured noise, which counts up
to FACTOR eps, so that a noisy model does not loosen its own certificate). Seen: at most 4 eps, on every family tried
and in every dtype; a wrong tensor is off by about 1 / eps."""

NOISE_FACTOR = 8
"""Two forwards of other shape may differ by this many times the noise measured on a few shapes (noise above 64 eps of the
largest logit counts as 64)."""

RUNTIME = (
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    IndexError,
    NotImplementedError,
    MicrotomeError,
)
"""What a family that was resolved by structure may raise when a guess about it is wrong."""  # fmt: skip


@dataclass
class Found:
    """Errors of one named check, gathered over layers: the worst, where, and how many comparisons."""

    worst: float = 0.0
    where: str = ""
    n: int = 0
    bad: list[str] = field(default_factory=list)


@dataclass
class Bench:
    """A binding, prompts on it, and its rounding.

    `ids` is n prompts of one length; sizes are chosen so that prompt, position, head and width differ.
    """

    binding: Binding
    ids: list[list[int]]
    noise: tuple[Noise, ...] = ()
    unit: float = 0.0
    logit_tolerance: float = 0.0
    relative_noise: float = 0.0
    found: dict[str, Found] = field(default_factory=dict)
    failures: dict[tuple[str, int | None], str] = field(default_factory=dict)
    read_logits: list[tuple[str, Tensor]] = field(default_factory=list)

    @property
    def tolerance(self) -> float:
        """Relative tolerance of an identity."""
        return FACTOR * self.unit

    def run(
        self,
        rows: Sequence[Sequence[int]] | Tokens,
        capture: Sequence[str] = (),
        edits: Sequence[object] = (),
        logits: Logits = "all",
        attention: str | None = None,
    ) -> Trace:
        """One forward without the NaN check."""
        tokens = rows if isinstance(rows, Tokens) else pack(rows)
        return run(self.binding, tokens, capture=capture, edits=edits, logits=logits, attention=attention, check=False)  # type: ignore[arg-type]  # fmt: skip

    def note(self, name: str, error: float, where: str, tolerance: float | None = None) -> bool:
        """Add one comparison to a named check; True when it is within tolerance."""
        found = self.found.setdefault(name, Found())
        found.n += 1
        if not error <= found.worst:
            found.worst, found.where = error, where
        good = error <= (self.tolerance if tolerance is None else tolerance)
        if not good:
            found.bad.append(where)
        return good

    def fail(self, point: str, layer: int | None, reason: str) -> None:
        """A point that must be withdrawn."""
        self.failures.setdefault((point, layer), reason)


def make_bench(binding: Binding) -> Bench:
    """Prompts of a size that no other axis of this model has, from a fixed seed (the global state is not touched)."""
    facts = binding.facts
    taken = {facts.d_model}
    for layer in facts.layers:
        taken |= {layer.n_heads, layer.n_kv_heads, layer.d_head, layer.d_value}
    length = next(n for n in (7, 9, 11, 13, 10, 14) if n not in taken)
    n = next(n for n in (3, 2, 5, 6, 7) if n not in taken | {length})
    if facts.n_ctx is not None:
        length = min(length, max(facts.n_ctx - 4, 2))
    special = {0}
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "image_token_id"):
        value = getattr(binding.config, name, None)
        special |= {value} if isinstance(value, int) else set(value or ())
    gen = torch.Generator().manual_seed(20240229)
    rows: list[list[int]] = []
    while len(rows) < n:
        draw = torch.randint(facts.d_vocab, (4 * length,), generator=gen).tolist()
        rows.append([t for t in draw if t not in special][:length])
    return Bench(binding, rows)


def points_of(binding: Binding, layer: int | None) -> list[str]:
    """The points a layer (or the model's stream) has."""
    scope = "stream" if layer is None else "layer"
    return [p.name for p in POINTS.values() if p.scope == scope and binding.lacking(p.name, layer) is None]


def sites_of(points: Iterable[str], layer: int | None) -> list[str]:
    """Their addresses."""
    return [p if layer is None else f"L{layer}.{p}" for p in points]


def measure_noise(bench: Bench) -> None:
    """The same forward in other batch shapes, per attention implementation: in logits, and relative to them."""
    # transformers computes norms and softmax in float32 also where the model is float64
    rows, rounding = (
        bench.ids,
        max(torch.finfo(d).eps for d in (next(bench.binding.hf.parameters()).dtype, torch.float32)),
    )
    own = seam.base_implementation(bench.binding.hf)
    kernels: list[str | None] = [None]
    if own != seam.EAGER and any(s.registry for s in bench.binding.slots):
        kernels.append(seam.EAGER)
    out, wholes = [], []
    for kernel in kernels:
        base = bench.run(rows, attention=kernel)
        whole = base.logits
        shapes = {
            "1 prompt": torch.cat([bench.run([row], attention=kernel).logits for row in rows[:2]]),
            "twice as many prompts": bench.run([*rows, *rows], attention=kernel).logits[: len(rows)],
            "a longer prompt": bench.run([[*row, row[0], row[1]] for row in rows], attention=kernel).logits[:, : whole.shape[1]],
        }  # fmt: skip
        for shape, logits in shapes.items():
            off = _largest(logits - whole[: len(logits)])
            out.append(Noise(base.numerics["dtype"], base.numerics["attention"], f"{len(rows)} prompts of {len(rows[0])} against {shape}", off))  # fmt: skip
        wholes.append(whole)
    largest = _largest(wholes[0])
    if len(wholes) > 1:
        off = _largest(wholes[1] - wholes[0])
        out.append(Noise(base.numerics["dtype"], own, "against eager attention", off))
    bench.noise = tuple(out)
    noise = max(n.logits for n in out if n.attention == own) / max(largest, 1e-30)
    bench.unit = min(max(noise, rounding), FACTOR * rounding)
    bench.relative_noise = NOISE_FACTOR * min(max(noise, rounding), 64 * rounding)
    bench.logit_tolerance = bench.relative_noise * largest


def _largest(x: Tensor) -> float:
    return float(x.detach().abs().double().max().nan_to_num(nan=float("inf")))


def row(
    bench: Bench, name: str, rules_out: str, *, tolerance: float | None = None, unit: str = "relative"
) -> Check:
    """The row of a gathered check; passed is None when nothing could be compared."""
    found = bench.found.get(name)
    limit = bench.tolerance if tolerance is None else tolerance
    if found is None or not found.n:
        return Check(
            name, rules_out, None, None, limit, unit, 0, "nothing to compare: this model lacks the points"
        )
    detail = "" if not found.bad else f"fails at {', '.join(dict.fromkeys(found.bad))}"[:300]
    return Check(name, rules_out, not found.bad, found.worst, limit, unit, found.n, detail)


def listed(site: str, binding: Binding) -> list[str]:
    """Every single address of a starred one, none where no layer has it."""
    try:
        return [str(s) for s in expand(site, binding.facts)]
    except MicrotomeError:
        return []


def line(error: BaseException) -> str:
    """An error in one line."""
    text = (
        f"{error.what}: {error.why}"
        if isinstance(error, MicrotomeError)
        else f"{type(error).__name__}: {error}"
    )
    return text.strip().splitlines()[0][:200]
