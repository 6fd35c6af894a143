"""Base prompts with their question, and the recorded runs of a group of them: what sweeps and edge-patched runs share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from microtome.errors import ModelError, ResourceError
from microtome.metrics import Metric, Scoring
from microtome.model.binding import BOTH_WAYS, Binding
from microtome.model.tokens import check_ids, pack
from microtome.replay.base import Base, make_base
from microtome.replay.check import mode_of
from microtome.replay.memo import Memo
from microtome.replay.plan import Group
from microtome.trace.run import not_finite
from microtome.trace.session import Read

Spans = Mapping[str, tuple[int, int] | None]


@dataclass(frozen=True)
class Bench:
    """Base prompts with their scoring: everything a sweep needs besides its cells.

    ids: token ids per prompt; spans: named spans per prompt (empty mappings where there are none); memo: recorded runs,
    shared by the benches of one method call; at: the columns whose logits are read, per prompt and equally many, where
    they are not those of the scoring (the last token and its continuations).
    """

    binding: Binding
    ids: Sequence[Sequence[int]]
    scoring: Scoring
    metrics: tuple[Metric, ...]
    spans: Sequence[Spans] = ()
    memo: Memo = field(default_factory=Memo, compare=False, repr=False)
    at: Sequence[Sequence[int]] = ()


def groups_of(bench: Bench, memory: int, *, eager: bool = False, more: Sequence[int] = ()) -> list[Group]:
    """Prompts that are recorded together: as many as fit the memory, in order of length.

    Shorter prompts are padded behind their end, which changes nothing before it in a causal model; where the model is
    not certified so, or where its rotary angles depend on the length of the whole, lengths are kept apart.

    more: bytes that a caller keeps per prompt beside its recorded run.

    Raises
    ------
    ResourceError: one prompt alone does not fit.
    ModelError: answers of several tokens on a model whose tokens see later ones.
    """
    facts = bench.binding.facts
    if bench.scoring.steps > 1 and not bench.binding.causal:
        raise ModelError("answers of several tokens cannot be scored on this model", why=BOTH_WAYS,
                         instead="use answers of one token")  # fmt: skip
    check_ids(pack(bench.ids), facts.d_vocab, facts.n_ctx)
    rows_of: dict[int, list[int]] = defaultdict(list)
    for number, prompt in enumerate(bench.scoring.prompt):
        rows_of[prompt].append(number)
    apart = _lengths_apart(bench, eager)
    kv = max(s.n_kv_heads * (s.d_head + s.d_value) for s in facts.layers)
    per_token = facts.n_layers * 4 * 3 * (facts.d_model + kv)
    out: list[Group] = []
    held: list[int] = []
    most = 0  # bytes of the largest row of the group
    for prompt in sorted(range(len(bench.ids)), key=lambda i: (len(bench.ids[i]), i)):
        length = len(bench.ids[prompt])
        bytes_each = (length + bench.scoring.steps) * per_token + (more[prompt] if more else 0)
        if len(rows_of[prompt]) * bytes_each > memory:
            raise ResourceError(f"one prompt of {length} tokens needs {len(rows_of[prompt]) * bytes_each / 1e9:.1f} GB of recorded activations",
                                why=f"the budget is {memory / 1e9:.1f} GB", instead="raise the memory budget or shorten the prompt")  # fmt: skip
        shortest = len(bench.ids[held[0]]) if held else length
        rows = sum(len(rows_of[p]) for p in (*held, prompt))
        most = max(most, bytes_each)
        if held and (rows * most > memory or length > (shortest if apart else 2 * shortest)):
            out.append(_group(bench, held, rows_of))
            held, most = [], bytes_each
        held.append(prompt)
    return [*out, _group(bench, held, rows_of)]


def _lengths_apart(bench: Bench, eager: bool) -> bool:
    """Whether padding could change numbers: not a causal replay, or rotary angles that depend on the length."""
    rope = getattr(bench.binding.config, "rope_parameters", None) or {}
    kinds = {rope.get("rope_type"), *(v.get("rope_type") for v in rope.values() if isinstance(v, dict))}
    if kinds & {"dynamic", "longrope"}:
        return True
    ids = pack([bench.ids[0], bench.ids[-1]]).ids
    return mode_of(bench.binding, ids, eager=eager) == "layers"


def _group(bench: Bench, prompts: list[int], rows_of: Mapping[int, list[int]]) -> Group:
    numbers: list[tuple[int, ...]] = []
    scored: list[list[int]] = []
    for prompt in prompts:
        length = len(bench.ids[prompt])
        numbers.append(tuple(range(len(scored), len(scored) + len(rows_of[prompt]))))
        for row in rows_of[prompt]:
            if bench.at:
                scored.append(list(bench.at[prompt]))
                continue
            last = length - 1 + len(bench.scoring.tails[row])
            scored.append([min(length - 1 + step, last) for step in range(bench.scoring.steps)])
    table = torch.tensor(scored)
    spans = tuple(bench.spans[p] if bench.spans else {} for p in prompts)
    lengths = tuple(len(bench.ids[p]) for p in prompts)
    last_scored = tuple(max(int(table[r].max()) for r in rows) for rows in numbers)
    return Group(tuple(prompts), lengths, tuple(numbers), table, last_scored, spans)


def rows_of_group(bench: Bench, group: Group, ids: Sequence[Sequence[int]] | None = None) -> list[list[int]]:
    """The token rows of a group, teacher-forced tails included; with `ids`, the same rows of other prompts."""
    prompts = bench.ids if ids is None else ids
    return [
        [*prompts[p], *bench.scoring.tails[r]]
        for p in group.prompts
        for r, owner in enumerate(bench.scoring.prompt)
        if owner == p
    ]


def record_group(bench: Bench, group: Group, memory: int, *, eager: bool, reads: Sequence[Read] = ()) -> Base:
    """The recorded run of a group: from the memo, unless there are reads, which are filled on the way."""
    rows = rows_of_group(bench, group)
    ids = pack(rows).ids

    def made() -> Base:
        mode = mode_of(bench.binding, ids, eager=eager)
        return make_base(bench.binding, ids, list(reads), mode=mode, eager=eager)

    return made() if reads else bench.memo.base((tuple(map(tuple, rows)), eager), made, memory)


@torch.no_grad()
def base_metrics(bench: Bench, group: Group, base: Base) -> tuple[Tensor, Tensor]:
    """(metrics [prompt, metric], logits [base row, step, column]) of the unedited rows; ModelError if these are not finite."""
    final = base.resid[-1]
    cols = group.scored.to(final.device)
    hidden = final[torch.arange(base.n, device=final.device)[:, None], cols]
    logits = logits_of(bench, hidden)
    if not bool(torch.isfinite(logits).all()):
        raise _not_finite(base)
    plan = bench.scoring.select(group.prompts)
    columns = columns_of(bench)
    return torch.stack([m(logits, plan, columns, logits) for m in bench.metrics], -1).double().cpu(), logits


def _not_finite(base: Base) -> ModelError:
    """An error that names the first site of the recorded stream that is NaN or infinite."""
    layer = next((i for i, x in enumerate(base.resid) if not bool(torch.isfinite(x).all())), None)
    found = "logits" if layer is None else f"L{layer - 1}.resid_post" if layer else "embed"
    return not_finite(found)


def logits_of(bench: Bench, hidden: Tensor) -> Tensor:
    """Logits, only the columns that the metrics read. Shapes: [..., d_model] -> [..., column]."""
    return bench.binding.unembed(hidden, columns_of(bench))


def columns_of(bench: Bench) -> Tensor | None:
    """The vocabulary ids that the metrics read, or None for all."""
    return bench.scoring.columns() if all(m.needs == "columns" for m in bench.metrics) else None
