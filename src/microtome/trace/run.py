"""One forward of the untouched model, with captures, edits and receipts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from microtome.errors import EditError, ModelError
from microtome.model import taps as where
from microtome.model.binding import Binding
from microtome.model.tokens import Tokens, check_ids, tokens_of
from microtome.sites import Site, expand_all
from microtome.trace import seam
from microtome.trace.edits import Edits, per_row
from microtome.trace.frame import Frame
from microtome.trace.place import Placer, places
from microtome.trace.session import Read, Receipt, Session, StopRun, Tapping, Write
from microtome.trace.spill import Spill
from microtome.trace.trace import Key, Trace

Logits = Literal["all", "last"] | None
_NEEDS_EAGER = {where.SCORES, where.PATTERN}
_NEEDS_SEAM = {where.QUERY, where.KEY, where.VALUE}


def device_of(binding: Binding) -> torch.device:
    """Where token ids go: the embedding's device."""
    weight = binding.module(binding.stack_path("embed")).weight
    assert isinstance(weight, Tensor)
    return weight.device


def check_runnable(binding: Binding) -> None:
    """Refuse a module in training mode: dropout would make every run another number.

    Raises
    ------
    ModelError: the module is in training mode.
    """
    if any(m.training for m in binding.hf.modules()):
        raise ModelError(
            "the module, or a part of it, is in training mode",
            why="dropout would make every run random",
            instead="call module.eval() first",
        )


def check_limits(binding: Binding, tokens: Tokens) -> None:
    """Refuse a way of running that the certificate found wrong for this model.

    Raises
    ------
    ModelError: padding that leaks into the numbers.
    """
    reason = binding.limits.get(f"{tokens.padding} padding")
    if reason is not None and tokens.padded:
        raise ModelError(
            f"this model cannot run prompts of different lengths in one batch, padded {tokens.padding}",
            why=reason,
            instead="run prompts of one length together, or one at a time",
        )


def reads_for(binding: Binding, capture: Sequence[str | Site], tokens: Tokens) -> dict[Key, Read]:
    """The reads that serve some addresses: per point and layer the union of heads and positions asked for."""
    wanted: dict[Key, list[Site]] = {}
    for site in expand_all(capture, binding.facts) if len(capture) else []:
        layer = site.layer if isinstance(site.layer, int) else None
        wanted.setdefault((site.point, layer, site.before), []).append(site)
    device = device_of(binding)
    return {key: _read(key, sites, tokens, device) for key, sites in wanted.items()}


def _read(key: Key, sites: list[Site], tokens: Tokens, device: torch.device) -> Read:
    read = Read(*key)
    if all(isinstance(s.index, int) for s in sites):
        heads = sorted({s.index for s in sites if isinstance(s.index, int)})
        read.heads = torch.tensor(heads, device=device)
    if all(s.at is not None for s in sites):
        pairs: dict[tuple[int, int], None] = {}
        for site in sites:
            found = places(site, tokens, list(range(len(tokens))))
            pairs.update(dict.fromkeys(zip(found.rows.tolist(), found.cols.tolist(), strict=True)))
        read.rows, read.cols = (torch.tensor(side, device=device) for side in zip(*pairs, strict=True))
    return read


def attention_for(binding: Binding, hows: set[str], asked: str | None) -> str | None:
    """The attention implementation a run needs, or None to leave the model on its own.

    Raises
    ------
    ModelError: `asked` is not one that the seam can read, or that this family has.
    """
    own = seam.base_implementation(binding.hf)
    if asked == "sdpa" and own != "sdpa" and not getattr(binding.hf, "_supports_sdpa", False):
        raise ModelError(
            f"{type(binding.hf).__name__} has no sdpa attention",
            why="the kernel would leave out a part of this family's attention",
            instead='attention="eager", or leave attention out',
        )
    base = asked or own
    registry = any(s.registry for s in binding.slots)
    if hows & _NEEDS_EAGER:
        return seam.tapped("eager") if registry else "eager"
    if asked is not None or (hows & _NEEDS_SEAM and registry):
        return seam.tapped(base) if registry else base
    return None


def numerics_of(binding: Binding, attention: str | None) -> dict[str, str]:
    """Dtype, attention implementation and device, as recorded in every query."""
    name = (attention or seam.base_implementation(binding.hf)).removeprefix(seam.PREFIX)
    weight = next(binding.hf.parameters())
    return {
        "dtype": str(weight.dtype).removeprefix("torch."),
        "attention": name,
        "device": weight.device.type,
    }


def run(
    binding: Binding,
    tokens: Tokens,
    *,
    capture: Sequence[str | Site] = (),
    edits: Edits = (),
    logits: Logits = "all",
    attention: str | None = None,
    check: bool = True,
    spill: Spill | None = None,
) -> Trace:
    """One forward.

    Parameters
    ----------
    capture: addresses to copy; only these are copied, at the positions and heads named.
    edits: one list for all prompts, or one list per prompt; applied in order at a site.
    logits: "all", "last" (each prompt's last own token only) or None (the run stops after the last capture).
    attention: "eager" or "sdpa" to set the implementation for this run; None leaves the model's own, except that
        scores and pattern need eager.
    check: refuse NaN in logits and captures, naming the first site.
    spill: where captures go that exceed a memory budget; None keeps all in memory.

    Raises
    ------
    SiteError, EditError, ModelError: see the parts; an edit that never fired is an EditError.
    """  # fmt: skip
    plan = prepare(binding, tokens, capture=capture, edits=edits, attention=attention)
    for read in plan.reads.values():
        read.spill = spill
    raw = forward(
        binding, tokens, list(plan.reads.values()), plan.writes, logits=logits, attention=plan.attention
    )
    unfired(plan.receipts)
    trace = Trace(tokens, binding.facts, plan.numerics, tuple(plan.receipts), plan.reads, raw)
    if check:
        refuse_nan(trace, binding)
    return trace


@dataclass
class Plan:
    """A run resolved: what to read, what to write, under which numerics."""

    reads: dict[Key, Read]
    writes: list[Write]
    receipts: list[Receipt]
    attention: str | None
    numerics: dict[str, str]


def prepare(
    binding: Binding, tokens: Tokens, *, capture: Sequence[str | Site], edits: Edits, attention: str | None
) -> Plan:
    """Resolve addresses and edits against these prompts, before anything runs."""
    check_runnable(binding)
    check_limits(binding, tokens)
    check_ids(tokens, binding.facts.d_vocab, binding.facts.n_ctx)
    reads = reads_for(binding, capture, tokens)
    placed = per_row(edits, len(tokens))
    points = {(key[0], key[1]) for key in reads}
    for edit, _ in placed:
        points |= {
            (s.point, s.layer if isinstance(s.layer, int) else None)
            for s in expand_all(edit.site, binding.facts)
        }
    hows = {binding.tap(*point).how for point in points}
    name = attention_for(binding, hows, attention)
    numerics = numerics_of(binding, name)

    def reference(prompts: Any, site: Site) -> Trace:
        return run(
            binding,
            tokens_of(prompts, binding.tokenizer),
            capture=[site],
            logits=None,
            attention=numerics["attention"],
        )

    placer = Placer(binding, tokens, numerics, reference)
    receipts = [Receipt(str(edit)) for edit, _ in placed]
    writes = [
        w
        for (edit, rows), receipt in zip(placed, receipts, strict=True)
        for w in placer.place(edit, rows, receipt)
    ]
    return Plan(reads, writes, receipts, name, numerics)


def unfired(receipts: Sequence[Receipt]) -> None:
    """Refuse an edit that touched nothing.

    Raises
    ------
    EditError: names the edit.
    """
    for receipt in receipts:
        if not receipt.places:
            raise EditError(f"{receipt.edit} never fired", why="no position of any prompt that it applies to was computed",
                            instead="check its position, the prompts, and `when` in generation")  # fmt: skip


def forward(
    binding: Binding,
    tokens: Tokens,
    reads: list[Read],
    writes: list[Write],
    *,
    logits: Logits,
    attention: str | None,
) -> Tensor | None:
    """The model's own forward under a session. Returns logits [prompt, pos, d_vocab], [prompt, 1, d_vocab] or None."""
    device = device_of(binding)
    for write in writes:
        write.rows, write.cols = write.rows.to(device), write.cols.to(device)
        write.index = None if write.index is None else write.index.to(device)
    frame = Frame(*tokens.ids.shape)
    stop = _stop_at(binding, [(r.point, r.layer) for r in reads]) if logits is None else None
    session = Session(binding, reads, writes, frame, stop_at=stop)
    kwargs = inputs(tokens, device)
    if session.needs_cache:
        kwargs |= {"past_key_values": Tapping(session, keep=False), "use_cache": True}
    with ExitStack() as stack:
        stack.enter_context(torch.set_grad_enabled(torch.is_grad_enabled() and any(r.live for r in reads)))
        stack.enter_context(seam.implementation(binding.hf, attention))
        stack.enter_context(session)
        if logits == "last":
            stack.enter_context(_last_only(binding, tokens, session))
        try:
            out: Tensor = binding.hf(**kwargs).logits
        except StopRun:
            return None
    return out


def inputs(tokens: Tokens, device: torch.device) -> dict[str, Any]:
    """Arguments of the model's forward. Padding brings a mask, left padding its own positions too."""
    # whatever the pad's id is and its embedding holds: the model has the prompt's own first token, as finite as the prompt
    first = tokens.ids.gather(1, tokens.mask.long().argmax(1, keepdim=True))
    ids = torch.where(tokens.mask, tokens.ids, first)
    kwargs: dict[str, Any] = {"input_ids": ids.to(device), "use_cache": False}
    if tokens.padded:
        kwargs["attention_mask"] = tokens.mask.long().to(device)
        if tokens.padding == "left":
            kwargs["position_ids"] = (tokens.mask.long().cumsum(-1) - 1).clamp_min(0).to(device)
    return kwargs


def _last_only(binding: Binding, tokens: Tokens, session: Session) -> Any:
    """Unembed only each prompt's last own token."""
    cols = torch.tensor([tokens.column(i, n - 1) for i, n in enumerate(tokens.lengths)])

    def cut(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if not session.acts:
            return args
        hidden = args[0]
        return (hidden[torch.arange(len(cols)), cols.to(hidden.device)][:, None], *args[1:])

    @contextmanager
    def hooked() -> Iterator[None]:
        handle = binding.module(binding.stack_path("head")).register_forward_pre_hook(cut)
        try:
            yield
        finally:
            handle.remove()

    return hooked()


def _stop_at(binding: Binding, points: list[tuple[str, int | None]]) -> str | None:
    """The module at whose input a run without logits may stop."""
    last = -1
    for point, layer in points:
        if layer is None and point not in ("tok_embed", "pos_embed", "embed"):
            return None
        if layer is not None:
            last = max(last, layer - 1 if point == "resid_pre" else layer)
    following = last + 1
    return binding.slots[following].path if following < len(binding.slots) else binding.end


def refuse_nan(trace: Trace, binding: Binding) -> None:
    """Refuse NaN or infinity at real positions, naming the first site in model order that has it.

    Raises
    ------
    ModelError: names the site.
    """
    bad = trace.raw_logits is not None and not _finite(trace.raw_logits, trace)
    for key, read in trace.reads.items():
        if read.value is not None and key[0] != "scores":
            bad = bad or not _finite(read.value, trace if read.rows is None else None)
    if not bad:
        return
    layers = [f"L{i}.resid_post" for i in range(len(binding.slots))]
    found = "logits"
    if not trace.receipts:
        again = run(binding, trace.tokens, capture=["embed", *layers], logits=None, check=False)
        found = next(
            (s for s in ("embed", *layers) if not bool(torch.isfinite(again[s][trace.mask]).all())), "logits"
        )
    else:
        found += " (with edits in force: " + ", ".join(r.edit for r in trace.receipts[:3]) + ")"
    raise not_finite(found)


def not_finite(site: str) -> ModelError:
    """The error that names the first site, in model order, whose numbers are not finite."""
    return ModelError(
        f"NaN or infinity in the activations, first at {site}",
        why="the model's numbers left the range of its dtype",
        instead="load it with dtype=torch.float32, or check the weights and the edits",
    )


def _finite(value: Tensor, trace: Trace | None) -> bool:
    """Whether all numbers, or with a trace all at its own tokens, are finite.

    A sum is finite only if every number in it is; it reads the tensor once and makes no copy of it. One that is not
    (an overflow of the sum, or what stands at pads) is looked at number by number.
    """
    if bool(
        torch.isfinite(value.sum(dtype=torch.float64 if value.dtype == torch.float64 else torch.float32))
    ):
        return True
    if trace is not None:
        mask = trace.mask.to(value.device)
        value = value[mask] if value.shape[:2] == mask.shape else value
    return bool(torch.isfinite(value).all())
