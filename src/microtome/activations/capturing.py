"""One pass of a model over a dataset that keeps what was asked for at every site."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from microtome.activations import files, layout
from microtome.activations.items import Items, Long, items_of
from microtome.activations.layout import DTYPES, Column, batches, windows
from microtome.activations.reading import Store
from microtome.activations.writing import InFolder, InMemory, Writer, clear
from microtome.errors import ModelError, ResourceError, SiteError, TaskError
from microtome.model import paths
from microtome.model.checkpoint import available_memory
from microtome.model.tokens import pack
from microtome.results.events import emit_look
from microtome.results.technique import progress
from microtome.sites import Site, expand_all
from microtome.trace.frame import Frame
from microtome.trace.run import Plan, forward, prepare
from microtome.trace.session import Read

if TYPE_CHECKING:
    from microtome.facade import Model

__all__ = ["capture", "same", "tokenizer_hash"]

BATCH = 2048
IN_MEMORY = 0.25
"""Part of the free memory up to which a store without a folder stays in memory; a larger one goes to a temporary folder."""
_PROBE = 4
_NAMES = {torch_dtype: name for name, (torch_dtype, _) in DTYPES.items()}


def capture(
    model: Model,
    data: Any,
    sites: str | Site | Sequence[str | Site],
    folder: str | Path | None = None,
    *,
    batch: int = BATCH,
    long: Long = "refuse",
    attention: str | None = None,
) -> Store:
    """Capture a dataset at all sites asked for, in one pass that stops after the last layer needed.

    Parameters
    ----------
    data: texts, lists of token ids, labelled text, a side of a task, a corpus or its blocks.
    sites: addresses as in `model.run`: "L*.resid_post@-1", "L5.neurons" (all positions), "L3.z@subject".
    folder: where to keep it; a capture that was interrupted there is gone on with, a finished one of the same model, data
        and sites is opened. None keeps it in memory, or if it is large in a temporary folder that goes with the object.
    batch: tokens of one forward, padding included. It changes rounding, not the order of rows.
    long: "refuse" or "cut" items that exceed the context; `store.manifest["cut"]` says which and where.
    attention: "eager" or "sdpa" for this capture; None leaves the model's own.

    Raises
    ------
    TaskError, SiteError, ModelError: data, sites or a model that cannot be run; activations that are not finite (which
    site, item and position). ResourceError: too little disk, or a folder that holds something else.
    """  # fmt: skip
    if long == "whole":
        raise TaskError('long="whole"', why="what exceeds the context cannot be run", instead='long="cut"')
    wanted = expand_all(sites, model.facts)
    items = items_of(model, data, wanted, long)
    job = _prepared(model, items, wanted, batch, long, attention)
    emit_look(model, data, [str(s) for s in wanted])
    if folder is not None:
        return _in_folder(job, Path(folder).expanduser().absolute())
    free = available_memory()
    if free is None or sum(c.size for c in job.columns) <= IN_MEMORY * free:
        memory = InMemory(job.columns)
        _fill(job, memory)
        return Store(job.request, items, job.columns, arrays=memory.arrays)
    return _in_folder(job, Path(tempfile.mkdtemp(prefix="microtome-store-")), temporary=True)


@dataclass
class Sink(Read):
    """A read that puts its rows where they are kept, without a copy between.

    target: [row, ...]; for each prompt of the batch `low` to `high` are the positions, `to` the first row.
    """

    unit: int | None = None
    target: Tensor | None = None
    shape: tuple[int, ...] = ()
    dtype: torch.dtype | None = None
    low: list[int] = field(default_factory=list)
    high: list[int] = field(default_factory=list)
    to: list[int] = field(default_factory=list)

    def take(self, view: Tensor, frame: Frame) -> None:
        """Copy the rows asked for. Shapes: view [batch, pos, ...]."""
        if self.unit is not None:
            view = view[:, :, self.unit]
        if self.target is None:
            self.shape, self.dtype = tuple(view.shape[2:]), view.dtype
            return
        if view.shape[0] != frame.batch:
            view = view.expand(frame.batch, *view.shape[1:])
        if all(b - a == 1 for a, b in zip(self.low, self.high, strict=True)):
            rows = view[torch.arange(len(self.low), device=view.device), torch.tensor(self.low, device=view.device)]  # fmt: skip
            self.target[torch.tensor(self.to)] = rows.to(self.target.device)
            return
        for prompt, (low, high, to) in enumerate(zip(self.low, self.high, self.to, strict=True)):
            self.target[to : to + high - low] = view[prompt, low:high]


@dataclass
class Job:
    """A capture that is decided down to its last batch."""

    model: Model
    items: Items
    sites: list[Site]
    columns: list[Column]
    plan: Plan
    windows: list[tuple[int, int]]
    batch: int
    request: dict[str, Any]


def _prepared(
    model: Model, items: Items, sites: list[Site], batch: int, long: Long, attention: str | None
) -> Job:
    for site in sites:
        if site.row is not None and site.row.square:
            raise SiteError(f"{site} has a number for every pair of positions", why="a store keeps one vector per position",
                            instead="model.stream(...) for patterns and scores")  # fmt: skip
    if batch < 1:
        raise ResourceError(f"batch={batch}", why="a forward has at least one token", instead=f"for example {BATCH}")  # fmt: skip
    most = int(items.ids.max())
    if most >= model.facts.d_vocab:
        raise ModelError(f"token id {most} is not in the vocabulary", why=f"ids go from 0 to {model.facts.d_vocab - 1}",
                         instead="tokenise with this model's own tokenizer")  # fmt: skip
    plan = prepare(model.binding, pack([items[0][:_PROBE]]), capture=[s.bare for s in sites], edits=(), attention=attention)  # fmt: skip
    columns = _columns(model, items, sites, plan)
    cuts = windows(items, columns, layout.WINDOW_BYTES, layout.WINDOW_TOKENS)
    request = {
        "written_by": f"microtome {version('microtome')}",
        "model": model.hash,
        "model_name": model.name,
        "tokenizer": tokenizer_hash(model.tokenizer),
        "data": items.hash,
        "about": dict(items.about),
        "items": len(items),
        "tokens": len(items.ids),
        "documents": [d if isinstance(d, int | str) else str(d) for d in items.documents],
        "spans": {name: [None if s is None else list(s) for s in where] for name, where in items.spans.items()},
        "columns": [{"site": c.site, "shape": list(c.shape), "dtype": c.dtype, "rows": c.rows} for c in columns],
        "numerics": dict(plan.numerics),
        "made_with": {"torch": torch.__version__, "transformers": version("transformers"), "threads": torch.get_num_threads()},
        "batch": batch,
        "long": long,
        "cut": [list(c) for c in items.cut],
        "windows": [list(w) for w in cuts],
        "shards": layout.grouped(columns),
    }  # fmt: skip
    return Job(model, items, sites, columns, plan, cuts, batch, request)


def _columns(model: Model, items: Items, sites: list[Site], plan: Plan) -> list[Column]:
    """Shapes and dtypes as one small forward shows them; rows by the positions asked for."""
    sinks = [_sink(site) for site in sites]
    forward(model.binding, pack([items[0][:_PROBE]]), list(sinks), [], logits=None, attention=plan.attention)
    found = []
    for site, sink in zip(sites, sinks, strict=True):
        assert sink.dtype is not None
        if sink.dtype not in _NAMES:
            raise ModelError(f"{site} is {sink.dtype}", why=f"a store keeps {', '.join(sorted(_NAMES.values()))}", instead="another dtype")  # fmt: skip
        found.append(Column.of(str(site), sink.shape, _NAMES[sink.dtype], *items.ranges(site)))
    return found


def _sink(site: Site) -> Sink:
    layer = site.layer if isinstance(site.layer, int) else None
    return Sink(site.point, layer, site.before, unit=site.index if isinstance(site.index, int) else None)


def _fill(job: Job, writer: Writer) -> None:
    """Run what is not done yet, window by window; while one is written the next is run."""
    sinks = [_sink(site) for site in job.sites]
    alike = "right padding" in job.model.binding.limits
    with ThreadPoolExecutor(1, thread_name_prefix="microtome-store") as pool:
        writing: Future[None] | None = None
        spare: tuple[dict[str, Tensor], dict[str, Tensor]] = (
            {},
            {},
        )  # in turn: fresh memory costs more than the copy
        for turn, window in enumerate(job.windows[writer.done :]):
            buffers = _run(job, window, sinks, alike, spare[turn % 2])
            if writing is not None:
                writing.result()  # at most two windows are held, and they are counted in their order
            writing = pool.submit(writer.put, window, buffers)
            progress(window[1], len(job.items), "items", "capturing activations")
        if writing is not None:
            writing.result()


def _run(
    job: Job, window: tuple[int, int], sinks: list[Sink], alike: bool, spare: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Activations of one window, site -> [row, ...]. spare: memory to use again, replaced where it is too small.

    Raises
    ------
    ModelError: an activation is not finite.
    """
    buffers = {}
    for sink, column in zip(sinks, job.columns, strict=True):
        rows = int(column.first[window[1]] - column.first[window[0]])
        if column.site not in spare or len(spare[column.site]) < rows:
            spare[column.site] = torch.empty((rows, *column.shape), dtype=DTYPES[column.dtype][0])
        sink.target = buffers[column.site] = spare[column.site][:rows]
    for members in batches(job.items, window, job.batch, alike=alike):
        for sink, column in zip(sinks, job.columns, strict=True):
            sink.low, sink.high = column.low[members].tolist(), column.high[members].tolist()
            sink.to = (column.first[members] - column.first[window[0]]).tolist()
        tokens = pack([job.items[i] for i in members])
        forward(job.model.binding, tokens, list(sinks), [], logits=None, attention=job.plan.attention)
    _refuse_not_finite(job, window, buffers)
    for sink in sinks:
        sink.target = None
    return buffers


def _refuse_not_finite(job: Job, window: tuple[int, int], buffers: Mapping[str, Tensor]) -> None:
    for column in job.columns:
        values = buffers[column.site]
        if not values.numel() or all(bool(torch.isfinite(end)) for end in torch.aminmax(values)):
            continue  # NaN is both the least and the largest; this reads the numbers once and copies none
        bad = (~torch.isfinite(values.flatten(1))).any(1).nonzero()
        row = int(bad[0]) + int(column.first[window[0]])
        item = int(column.first.searchsorted(row, side="right")) - 1
        position = row - int(column.first[item]) + int(column.low[item])
        raise ModelError(f"{column.site}, item {item}, position {position}: the activation is not finite", why="NaN or infinity would be in everything made of this store",
                         instead="load the model with dtype=torch.float32, check its weights, or leave the item out")  # fmt: skip


def _in_folder(job: Job, folder: Path, *, temporary: bool = False) -> Store:
    with files.full(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with paths.lock(folder / files.LOCK):
            if (folder / files.MANIFEST).exists():
                found = Store.open(folder)
                same(job.request, found.manifest, folder, resume=False)
                clear(folder)
                return found
            if (folder / files.CURSOR).exists():
                same(job.request, files.read_json(folder / files.CURSOR), folder, resume=True)
            elif foreign := sorted(p.name for p in folder.iterdir() if p.name != files.LOCK and not p.name.endswith(files.PARTIAL)):  # fmt: skip
                raise ResourceError(f"{folder} is not empty: {', '.join(foreign[:3])}", why="a store has a folder of its own",
                                    instead="choose a new folder")  # fmt: skip
            writer = InFolder(folder, job.request, job.columns, job.items)
            writer.check(job.windows)
            _fill(job, writer)
            manifest = writer.finish()
    return Store(manifest, job.items, job.columns, folder=folder, temporary=temporary)


_MUST_AGREE = {"model": "another model", "tokenizer": "another tokenizer", "data": "other data", "long": "another rule for long text",
               "numerics": "another dtype, attention implementation or device", "columns": "other sites"}  # fmt: skip
_TO_RESUME = {"batch": "another batch size", "windows": "other parts", "shards": "other files", "made_with": "another torch, transformers or number of threads"}  # fmt: skip


def same(asked: Mapping[str, Any], found: Mapping[str, Any], folder: Path | None, *, resume: bool = False) -> None:  # fmt: skip
    """Refuse a store that was made of something else.

    resume: also what would give other bits in the part that is still to come.

    Raises
    ------
    ResourceError: says what differs.
    """
    for key, what in {**_MUST_AGREE, **(_TO_RESUME if resume else {})}.items():
        if key in asked and _plain(asked[key]) != _plain(found.get(key)):
            here, there = (json.dumps(v, default=str)[:60] for v in (_plain(asked[key]), _plain(found.get(key))))  # fmt: skip
            state = "begun" if resume else "made"
            raise ResourceError(f"the store in {folder or 'memory'} was {state} with {what}", why=f"{key} is {there} there, {here} here",
                                instead="a new folder, or the arguments that it was made with")  # fmt: skip


def _plain(value: Any) -> Any:
    """Values as JSON would give them back, so that lists and tuples compare equal."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def tokenizer_hash(tokenizer: Any) -> str:
    """Hex digest of what a tokenizer does: its whole definition where it is a fast one, else its vocabulary. "" for none."""
    if tokenizer is None:
        return ""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
