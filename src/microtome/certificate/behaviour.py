"""Checks of the whole: parity with the raw module, causality, independence of rows, caches, replay."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from microtome.certificate.bench import RUNTIME, Bench, line, listed
from microtome.certificate.record import Check
from microtome.errors import ModelError
from microtome.model.tokens import pack
from microtome.trace import seam
from microtome.trace.generate import generate
from microtome.trace.run import device_of

_NEW = 3


def _raw(bench: Bench, attention: str | None) -> Tensor:
    binding = bench.binding
    ids = torch.tensor(bench.ids, device=device_of(binding))
    with torch.no_grad(), seam.implementation(binding.hf, attention):
        out: Tensor = binding.hf(input_ids=ids, use_cache=False).logits
    return out


def check_parity(bench: Bench) -> Check:
    """Logits equal the raw module's: with nothing read, and with everything read."""
    binding = bench.binding
    raw = {seam.base_implementation(binding.hf): _raw(bench, None)}
    worst = _off(bench.run(bench.ids).logits, next(iter(raw.values())))
    for attention, logits in bench.read_logits:
        if attention not in raw:
            raw[attention] = _raw(bench, attention)
        worst = max(worst, _off(logits, raw[attention]))
    return _row(
        bench, "parity", "a forward that is not the user's own model's", worst, 1 + len(bench.read_logits)
    )


def check_causal(bench: Bench) -> Check:
    """Changing the tokens from the middle on leaves every earlier position alone, in the logits and in every layer."""
    middle = len(bench.ids[0]) // 2
    other = [row[:middle] + row[middle:][::-1][1:] + [row[0]] for row in bench.ids]
    streams = listed("L*.resid_post", bench.binding)
    a, b = bench.run(bench.ids, streams), bench.run(other, streams)
    worst = max(
        _off(a[s][:, :middle], b[s][:, :middle]) / max(float(a[s].abs().max()), 1e-30) for s in streams
    )
    logits = _off(a.logits[:, :middle], b.logits[:, :middle])
    moved = _off(a.logits[:, -1], b.logits[:, -1])
    if not bench.binding.causal:
        return _both_ways(bench, logits)
    good = logits <= bench.logit_tolerance and worst <= bench.tolerance and moved > bench.logit_tolerance
    detail = (
        ""
        if good
        else f"earlier positions move by {worst:.1g} of the stream's size; the last one by {moved:.1g} logits"
    )
    return Check("causal", "a later token reaching an earlier position, which would break skipping and replay",
                 good, logits, bench.logit_tolerance, "logits", len(bench.ids), detail)  # fmt: skip


def _both_ways(bench: Bench, moved: float) -> Check:
    """A model that says that it sees both ways must do so, or else its sweeps recompute for nothing."""
    good = moved > bench.logit_tolerance
    found = (
        f"later tokens move earlier positions by {moved:.1g} logits: nothing is skipped, cached or continued"
    )
    return Check("causal", "skipping and replay that a model which sees both ways does not allow", good, moved,
                 bench.logit_tolerance, "logits", len(bench.ids), found)  # fmt: skip


def check_rows(bench: Bench, withdraw: bool) -> list[Check]:
    """A prompt alone, batched with longer ones and padded on either side gives the same logits."""
    full = len(bench.ids[0])
    rows = [row[: max(1, full - 2 * i)] for i, row in enumerate(bench.ids[:3])]
    alone = [bench.run([row]).logits[0] for row in rows]
    out = []
    for padding in ("right", "left"):
        name, rules_out = f"rows, padded {padding}", "pads or other prompts leaking into a prompt"
        tokens = pack(rows, padding=padding)
        try:
            logits = bench.run(tokens).logits
        except RUNTIME as error:
            check = Check(
                name, rules_out, False, None, bench.logit_tolerance, "logits", len(rows), line(error)
            )
        else:
            worst = max(_off(logits[i][tokens.mask[i]], one) for i, one in enumerate(alone))
            check = _row(bench, name, rules_out, worst, len(rows))
        if withdraw and check.passed is False:
            reason = check.detail or f"logits move by up to {check.observed:.2g} when prompts are padded"
            bench.binding.limit(f"{padding} padding", reason)
            check = replace(check, passed=None, detail=f"refused for this model: {reason}")
        out.append(check)
    return out


def check_generation(bench: Bench, withdraw: bool) -> Check:
    """Logits of a continuation with cached keys and values equal those of one forward over the result."""
    if (reason := bench.binding.limits.get("generation")) is not None:
        return Check(
            "generation", "a cache that forgets, shifts or doubles", None, detail=f"refused: {reason}"
        )
    check = _generation(bench)
    if not withdraw or check.passed:
        return check
    reason = check.detail or f"cached steps differ from whole forwards by {check.observed:.2g} logits"
    bench.binding.limit("cache", reason)
    return replace(_generation(bench), detail=f"runs without a cache: {reason}")


def _generation(bench: Bench) -> Check:
    name, rules_out = "generation", "a cache that forgets, shifts or doubles"
    ragged = "left padding" not in bench.binding.limits
    rows = [row[: len(row) - (i if ragged else 0)] for i, row in enumerate(bench.ids[:2])]
    try:
        made = generate(bench.binding, pack(rows), max_new_tokens=_NEW, stop=False)
    except RUNTIME as error:
        return Check(name, rules_out, False, None, bench.logit_tolerance, "logits", 0, line(error))
    worst = 0.0
    for i, row in enumerate(rows):
        whole = bench.run([made.sequences[i]]).logits[0]
        worst = max(worst, _off(made.logits[i], whole[len(row) - 1 : len(row) - 1 + _NEW]))
    return _row(bench, name, rules_out, worst, len(rows))


def check_replay(bench: Bench) -> Check:
    """Replay of the upper layers and later positions equals a full forward, at two lengths."""
    name, rules_out = "replay", "partial recomputation that is not exact"
    limit = bench.relative_noise
    try:
        from microtome.replay.check import replay_error
    except ImportError:
        return Check(name, rules_out, None, None, None, "relative", 0, "there is no replay engine")
    worst = 0.0
    for rows in (bench.ids, [row[: len(row) // 2 + 1] for row in bench.ids]):
        try:
            worst = max(worst, float(replay_error(bench.binding, torch.tensor(rows))))
        except ModelError as refusal:
            return Check(
                name, rules_out, None, None, limit, "relative", 0, f"refused for this model: {line(refusal)}"
            )
        except RUNTIME as error:
            return Check(name, rules_out, False, None, limit, "relative", 0, line(error))
    return Check(name, rules_out, worst <= limit, worst, limit, "relative", 2 * len(bench.ids))


def _off(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double().to(a.device)).abs().max().nan_to_num(nan=float("inf")))


def _row(bench: Bench, name: str, rules_out: str, worst: float, n: int) -> Check:
    return Check(name, rules_out, worst <= bench.logit_tolerance, worst, bench.logit_tolerance, "logits", n)
