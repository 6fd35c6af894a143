"""Generation with edits, equal to one teacher-forced forward with the resolved edits."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from microtome.errors import EditError, ModelError
from microtome.model.binding import Binding
from microtome.model.tokens import Tokens, check_ids, pack, tokens_of
from microtome.sites import At, Site, expand_all
from microtome.trace import seam
from microtome.trace.edits import BaseEdit, Edits, Patch, per_row
from microtome.trace.frame import Frame
from microtome.trace.place import Placer, moved
from microtome.trace.run import (
    attention_for,
    check_limits,
    check_runnable,
    device_of,
    inputs,
    numerics_of,
    run,
    unfired,
)
from microtome.trace.session import Receipt, Session, Tapping, Write
from microtome.trace.trace import Trace

When = Literal["prompt", "generated", "both"]


@dataclass(frozen=True)
class Generation:
    """What was generated.

    Shapes: `new` [prompt][token] ids without padding, ended before any stop token; `logits` [prompt, token, d_vocab],
    the logits each token was chosen from. `sequences` and `edits` replay it: model.run(sequences, edits=edits) gives
    the same logits, one position earlier.
    """

    sequences: tuple[tuple[int, ...], ...]
    new: tuple[tuple[int, ...], ...]
    text: tuple[str, ...]
    logits: Tensor
    edits: tuple[tuple[BaseEdit, ...], ...]
    receipts: tuple[Receipt, ...]


@dataclass(frozen=True)
class _Scoped:
    """One edit on one row, with the own positions at which it is in force."""

    edit: BaseEdit
    number: int
    row: int
    site: Site
    low: int
    high: int | None


def generate(
    binding: Binding,
    tokens: Tokens,
    *,
    edits: Edits = (),
    when: When | None = None,
    max_new_tokens: int = 20,
    temperature: float = 0.0,
    seed: int | None = None,
    cache: bool = True,
    stop: bool = True,
) -> Generation:
    """Continue prompts, greedily or by sampling.

    Parameters
    ----------
    when: where edits without a position act: "prompt", "generated" (the tokens produced, when they are read back in)
        or "both"; required with edits. A position such as @-1 is resolved on the prompt and stays in force.
    temperature: 0 is greedy; sampling needs a seed.
    cache: keep keys and values between steps; without it every step is a whole forward. Same result. A model whose own
        cache cannot be used (`binding.limits["cache"]`) runs without.
    stop: end a row at the model's end-of-sequence tokens.

    Raises
    ------
    EditError: edits without `when`, or a positioned edit with when="generated".
    ModelError: a prompt that passes the context, or a model whose tokens see later ones.
    """  # fmt: skip
    _refuse(edits, when, temperature, seed, max_new_tokens)
    if (reason := binding.limits.get("generation")) is not None:
        raise ModelError(
            "this model does not continue prompts", why=reason, instead="read the logits of a run"
        )
    check_runnable(binding)
    if tokens.padding != "left":
        tokens = pack(tokens.rows(), pad=int(tokens.ids[0, 0]), padding="left", spans=tokens.spans)
    check_limits(binding, tokens)
    check_ids(tokens, binding.facts.d_vocab, None)
    limit = binding.facts.n_ctx
    if limit is not None and max(tokens.lengths) + max_new_tokens > limit:
        raise ModelError(
            f"prompt and {max_new_tokens} new tokens pass the context of {limit}",
            why="positions end there",
            instead="ask for fewer tokens",
        )
    loop = _Loop(binding, tokens, edits, when, cache and "cache" not in binding.limits)
    generator = None if seed is None else torch.Generator(device="cpu").manual_seed(seed)
    ends = _ends(binding) if stop else set()
    done = [False] * len(tokens)
    new: list[list[int]] = [[] for _ in done]
    kept = []
    with torch.no_grad():
        for _ in range(max_new_tokens):
            logits = loop.step()
            kept.append(logits)
            chosen = _choose(logits, temperature, generator)
            for row, token in enumerate(chosen.tolist()):
                done[row] = done[row] or token in ends
                if not done[row]:
                    new[row].append(token)
            if all(done):
                break
            loop.append(chosen)
    loop.finish()
    return _result(binding, tokens, new, torch.stack(kept, 1), loop)


class _Loop:
    def __init__(
        self, binding: Binding, tokens: Tokens, edits: Edits, when: When | None, cache: bool
    ) -> None:
        self.binding, self.tokens = binding, tokens
        placed = per_row(edits, len(tokens))
        sites = [s for edit, _ in placed for s in expand_all(edit.site, binding.facts)]
        hows = {binding.tap(s.point, s.layer if isinstance(s.layer, int) else None).how for s in sites}
        self.attention = attention_for(binding, hows, None)
        self.numerics = numerics_of(binding, self.attention)
        self.scopes = _scopes(self._placer(), placed, when)
        self.receipts = {number: Receipt(str(edit)) for number, (edit, _) in enumerate(placed)}
        self.session = Session(binding, [], [], Frame(*tokens.ids.shape))
        self.kept = Tapping(self.session, keep=True) if cache else None
        self.read = 0
        self.placed: dict[int, list[Write]] = {}

    def step(self) -> Tensor:
        """Logits for the next token. Shapes: [prompt, d_vocab]."""
        width = self.tokens.ids.shape[1]
        if self.read == 0 and self.alike:
            return self._once(width)
        start = self.read if self.kept is not None else 0
        self.session = Session(
            self.binding, [], self._writes(width), Frame(len(self.tokens), width - start, start)
        )
        kwargs = inputs(self.tokens, device_of(self.binding))
        kwargs["attention_mask"] = self.tokens.mask.long().to(kwargs["input_ids"].device)
        if self.kept is not None:
            self.kept.session = self.session
            kwargs |= {
                "past_key_values": self.kept,
                "use_cache": True,
                "input_ids": kwargs["input_ids"][:, start:],
            }
            if "position_ids" in kwargs:
                kwargs["position_ids"] = kwargs["position_ids"][:, start:]
        elif self.session.needs_cache:
            kwargs |= {"past_key_values": Tapping(self.session, keep=False), "use_cache": True}
        with ExitStack() as stack:
            stack.enter_context(seam.implementation(self.binding.hf, self.attention))
            stack.enter_context(self.session)
            out: Tensor = self.binding.hf(**kwargs).logits
        self.read = width
        return out[:, -1]

    @property
    def alike(self) -> bool:
        """Whether one row can stand for all on the prompt: samples of one prompt, unedited, with a cache that can be copied."""
        ids = self.tokens.ids
        one = len(ids) > 1 and not self.scopes and not self.tokens.padded and bool((ids == ids[:1]).all())
        return one and self.kept is not None and not self.binding.mixes

    def _once(self, width: int) -> Tensor:
        """The prompt read by one row, its keys and values copied to the others. Shapes: [prompt, d_vocab]."""
        assert self.kept is not None
        n, device = len(self.tokens), device_of(self.binding)
        one = replace(
            self.tokens, ids=self.tokens.ids[:1], mask=self.tokens.mask[:1], spans=self.tokens.spans[:1]
        )
        self.session = self.kept.session = Session(self.binding, [], [], Frame(1, width))
        kwargs = inputs(one, device) | {"past_key_values": self.kept, "use_cache": True}
        kwargs["attention_mask"] = one.mask.long().to(device)
        with ExitStack() as stack:
            stack.enter_context(seam.implementation(self.binding.hf, self.attention))
            stack.enter_context(self.session)
            out: Tensor = self.binding.hf(**kwargs).logits
        self.kept.batch_repeat_interleave(n)
        self.read = width
        return out[:, -1].repeat(n, 1)

    def append(self, chosen: Tensor) -> None:
        ids = torch.cat([self.tokens.ids, chosen[:, None].to(self.tokens.ids)], 1)
        mask = torch.cat([self.tokens.mask, torch.ones(len(ids), 1, dtype=torch.bool)], 1)
        self.tokens = replace(self.tokens, ids=ids, mask=mask)

    def _writes(self, width: int) -> list[Write]:
        """Edits on the prompt are placed once; those on generated tokens grow with the sequence."""
        writes = []
        for key, scope in enumerate(self.scopes):
            closed = scope.high is not None
            if key in self.placed and closed:
                writes += self.placed[key]
                continue
            length = self.tokens.lengths[scope.row]
            high = scope.high if scope.high is not None else length
            if high <= scope.low:
                continue
            edit = scope.edit if closed else moved(scope.edit, replace(scope.site, at=At(scope.low, high)))
            placed = self._placer().place(edit, [scope.row], self.receipts[scope.number])
            device = device_of(self.binding)
            for write in placed:
                write.rows, write.cols = write.rows.to(device), write.cols.to(device)
                write.index = None if write.index is None else write.index.to(device)
            self.placed[key] = placed
            writes += placed
        return writes

    def _placer(self) -> Placer:
        def reference(prompts: Any, site: Site) -> Trace:
            tokens = tokens_of(prompts, self.binding.tokenizer)
            return run(
                self.binding, tokens, capture=[site], logits=None, attention=self.numerics["attention"]
            )

        # patches are looked up against the prompt: its sources know nothing of generated tokens
        return Placer(self.binding, self.tokens, self.numerics, reference)

    def finish(self) -> None:
        unfired(list(self.receipts.values()))


def _scopes(placer: Placer, placed: list[tuple[BaseEdit, list[int]]], when: When | None) -> list[_Scoped]:
    """Each edit per site and row with its own positions.

    What lies on the prompt is resolved now: a source is read at its own @-1, not where the prompt's last token is.
    """
    out = []
    tokens = placer.tokens
    for number, (edit, rows) in enumerate(placed):
        for site in expand_all(edit.site, placer.binding.facts):
            for place, row in enumerate(rows):
                if site.at is not None and when == "generated":
                    raise EditError(f"{edit} names a position of the prompt", why='when="generated" acts on generated tokens only',
                                    instead='when="prompt" or "both", or leave the position out')  # fmt: skip
                one = _row_of(edit, site, place)
                if site.at is not None or when == "prompt":
                    one, low, high = placer.resolve(one, site, row)
                    out.append(_Scoped(one, number, row, one.site, low, high))
                else:
                    low = 0 if when == "both" else tokens.lengths[row]
                    out.append(_Scoped(one, number, row, site, low, None))
    return out


def _row_of(edit: BaseEdit, site: Site, place: int) -> BaseEdit:
    """A tensor patch over several prompts, cut to one of them."""
    if isinstance(edit, Patch) and isinstance(edit.source, Tensor):
        return Patch(site, edit.source[place : place + 1])
    return edit


def _refuse(
    edits: Edits, when: When | None, temperature: float, seed: int | None, max_new_tokens: int
) -> None:
    if edits and when not in ("prompt", "generated", "both"):
        raise EditError("generation with edits needs when=", why="prompt and generated tokens are different places",
                        instead='when="prompt", "generated" or "both"')  # fmt: skip
    if temperature < 0 or max_new_tokens < 1:
        raise ModelError(
            "temperature must be >= 0 and max_new_tokens >= 1", instead="temperature=0 is greedy"
        )
    if temperature > 0 and seed is None:
        raise ModelError(
            "sampling needs a seed", why="the same call must give the same text", instead="seed=0"
        )


def _choose(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    if not bool(torch.isfinite(logits).all()):
        raise ModelError("NaN or infinity in the logits while generating", why="the model or an edit left the range of its dtype",
                         instead="use a smaller coefficient or dtype=torch.float32")  # fmt: skip
    if temperature == 0:
        return logits.argmax(-1).cpu()
    probabilities = (logits.float() / temperature).softmax(-1).cpu()
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]


def _ends(binding: Binding) -> set[int]:
    config = getattr(binding.hf, "generation_config", None)
    ends = getattr(config, "eos_token_id", None)
    if ends is None:
        ends = getattr(binding.tokenizer, "eos_token_id", None)
    return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)


def _result(
    binding: Binding, tokens: Tokens, new: list[list[int]], logits: Tensor, loop: _Loop
) -> Generation:
    sequences = tuple((*row, *more) for row, more in zip(tokens.rows(), new, strict=True))
    resolved: list[list[BaseEdit]] = [[] for _ in new]
    starts = tokens.starts
    for scope in loop.scopes:
        # the last token of a row that was cut off has never been read, so nothing acted there
        read = min(len(sequences[scope.row]), loop.read - starts[scope.row])
        high = scope.high if scope.high is not None else read
        if high > scope.low:
            grown = moved(scope.edit, replace(scope.site, at=At(scope.low, high)))
            resolved[scope.row].append(scope.edit if scope.high is not None else grown)
    decode = (
        binding.tokenizer.decode if binding.tokenizer is not None else lambda ids: " ".join(map(str, ids))
    )
    text = tuple(decode(list(row)) for row in new)
    return Generation(
        sequences,
        tuple(map(tuple, new)),
        text,
        logits,
        tuple(map(tuple, resolved)),
        tuple(loop.receipts.values()),
    )
