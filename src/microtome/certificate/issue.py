"""Run every check on a loaded model; for a family nobody registered, withdraw what fails."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from microtome.certificate import behaviour, internals
from microtome.certificate.bench import Bench, make_bench, measure_noise, row
from microtome.certificate.identities import WHY
from microtome.certificate.record import Certificate, Check, Lack
from microtome.errors import ModelError
from microtome.model.binding import Binding
from microtome.model.tokens import pack
from microtome.trace import seam
from microtome.trace.run import check_runnable, numerics_of, run

if TYPE_CHECKING:
    from microtome.facade import Model

_ROUNDS = 4


def certify(model: Model | Binding, withdraw: bool = False) -> Certificate:
    """Check that every name of this model means what the table of points says (design 5.4).

    A few short random prompts (fixed seed, global random state untouched); identities recomputed in at least float32.
    Tolerances are FACTOR roundings of the dtype or of the measured noise (see `bench`), the same for every family.

    Parameters
    ----------
    withdraw: refuse each point whose identity fails, layer by layer, with the identity as the reason, and check again
        until what is left passes. For families resolved by structure only: a registered family that fails is a defect.

    Raises
    ------
    ModelError: the module is in training mode; its activations hold NaN or infinity; or (withdraw) its residual stream is not what the names say.
    """  # fmt: skip
    binding = model if isinstance(model, Binding) else model.binding
    check_runnable(binding)
    with torch.no_grad(), seam.exclusive(binding.hf):
        # NaN agrees with nothing: it is refused with its site, not checked
        run(binding, pack(make_bench(binding).ids))
        bench = inside(binding)
        for _ in range(_ROUNDS):
            if not withdraw or not bench.failures:
                break
            _withdraw(bench)
            bench = inside(binding)
        checks = _rows(bench, withdraw)
    return Certificate(
        family=binding.family.name,
        model_type=str(binding.config.model_type),
        known=binding.known,
        numerics=numerics_of(binding, None),
        checks=tuple(checks),
        lacks=tuple(_lacks(binding)),
        noise=bench.noise,
    )


def inside(binding: Binding) -> Bench:
    """The checks of points. Later ones need the earlier ones to hold."""
    bench = make_bench(binding)
    for step in (internals.check_calls, internals.check_captures):
        step(bench)
        if bench.failures:
            return bench
    measure_noise(bench)
    for step in (internals.check_reads, internals.check_writes):
        step(bench)
        if bench.failures:
            return bench
    return bench


def _withdraw(bench: Bench) -> None:
    binding = bench.binding
    for (point, layer), reason in bench.failures.items():
        if point in ("resid_pre", "resid_post", "embed", "logits"):
            raise ModelError(
                f"the residual stream of {type(binding.hf).__name__} was not found",
                why=f"{point if layer is None else f'L{layer}.{point}'}: {reason}",
                instead="register the family (CONTRIBUTING.md), or use a model of a family that `microtome models check` certifies",
            )
        binding.refuse(point, layer, f"withdrawn by the certificate: {reason}")


def _rows(bench: Bench, withdraw: bool) -> list[Check]:
    rows = []
    if not bench.noise:
        measure_noise(bench)
    if not bench.failures or bench.unit:
        rows.append(behaviour.check_parity(bench))
    rows.append(
        row(
            bench,
            "calls",
            "a module that runs more than once, of which a capture keeps the last",
            tolerance=0,
            unit="calls",
        )
    )
    rows.append(
        row(
            bench,
            "captures",
            "a point that never fires, or has other axes than the table says",
            tolerance=0,
            unit="points",
        )
    )
    for name, why in WHY.items():
        rows.append(row(bench, name, why))
    rows.append(row(bench, "total", "parts of the stream that no name covers"))
    rows.append(
        row(bench, "writes", "an edit that is accepted and changes nothing", tolerance=0, unit="points")
    )
    rows.append(row(bench, "edits land", "an edit that lands in another tensor than the one read"))
    rows.append(behaviour.check_causal(bench))
    rows.extend(behaviour.check_rows(bench, withdraw))
    rows.append(behaviour.check_generation(bench, withdraw))
    rows.append(behaviour.check_replay(bench))
    return rows


def _lacks(binding: Binding) -> list[Lack]:
    facts = binding.facts
    out = [Lack(point, None, reason) for point, reason in facts.lacks.items()]
    grouped: dict[tuple[str, str], list[int]] = {}
    for layer in facts.layers:
        for point, reason in layer.lacks.items():
            grouped.setdefault((point, reason), []).append(layer.index)
    return out + [Lack(point, tuple(layers), reason) for (point, reason), layers in grouped.items()]
