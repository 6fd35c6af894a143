"""Path-patched runs of one task: base and donor recorded once, then any number of senders along the same paths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from microtome.errors import SiteError
from microtome.graph.donors import Donor
from microtome.graph.nodes import Graph
from microtome.graph.patched import EdgeRuns, Progress, Recorded
from microtome.graph.paths import Count, Paths, Way, behind, carried
from microtome.graph.reading import Reading
from microtome.graph.runs import taken
from microtome.model.tokens import Tokens, pack
from microtome.replay.base import replay_attention
from microtome.replay.bench import Bench, columns_of, logits_of, rows_of_group
from microtome.trace import seam
from microtome.trace.run import forward
from microtome.trace.session import Read


@dataclass
class PathRuns:
    """Path-patched runs of some base prompts: base and donor are recorded once for all senders.

    bench, donor, memory, progress: as in `EdgeRuns`; `forwards` counts patched runs (path x prompt rows), `count` these
    and the writes in layer calls, planned and done.
    """

    bench: Bench
    donor: Donor
    paths: Paths
    memory: int = 1 << 30
    progress: Progress | None = None
    forwards: int = 0
    count: Count = field(default_factory=Count)

    def __post_init__(self) -> None:
        self.edges = EdgeRuns(self.bench, self.donor, self.memory)
        self.graph = self.edges.graph
        _check(self.edges.reading, self.graph, self.paths)

    @torch.no_grad()
    def measure(self, senders: Tensor) -> tuple[Tensor, Tensor]:
        """Metrics with every row's senders patched along the paths, and those of the base runs.

        Shapes: senders [path, writer] bool -> [path, prompt, metric], [prompt, metric].

        Raises
        ------
        SiteError: rows of another size than the graph's writers, a row without a sender, a sender that no receiver sees.
        """
        self._check_senders(senders)
        self.count.planned += len(senders) * len(self.bench.scoring.prompt)
        order = senders.int().argmax(1).argsort(stable=True)
        n = len(self.bench.ids)
        out = torch.zeros(len(senders), n, len(self.bench.metrics), dtype=torch.float64)
        base = torch.zeros(n, len(self.bench.metrics), dtype=torch.float64)
        for done, recorded in enumerate(self.edges.recorded()):
            prompts = torch.tensor(recorded.group.prompts)
            base[prompts] = recorded.metrics
            way = Way(recorded.ground, self.paths, self.count)
            for which in self._batches(recorded, order):
                out[which[:, None], prompts[None]] = _measured(self.bench, recorded, way, senders[which])
                self.forwards += len(which) * recorded.ground.rows
                self.count.fired += len(which) * recorded.ground.rows
                if self.progress is not None:
                    finished = int((order == which[-1]).nonzero()[0]) + 1
                    self.progress(done + finished / len(order), len(self.edges.groups))
        return out, base

    def _batches(self, recorded: Recorded, order: Tensor) -> Iterator[Tensor]:
        """Paths that go together: as many as the memory for runs under way holds."""
        ground = recorded.ground
        each = ground.rows * ground.columns * 96 * ground.clean.shape[-1] * ground.clean.element_size()
        size = max(1, min(len(order), (self.memory // 3) // max(each, 1)))
        yield from order.split(size)

    def _check_senders(self, senders: Tensor) -> None:
        graph, reach = self.graph, self.paths.reach(self.graph)
        if senders.dim() != 2 or senders.shape[1] != len(graph.writers) or not len(senders):
            raise SiteError(f"senders of shape {tuple(senders.shape)} do not fit", why=f"this graph has {len(graph.writers)} writers",
                            instead="make rows of shape [path, writer]")  # fmt: skip
        if not bool(senders.any(1).all()) or bool(senders[:, reach:].any()):
            raise SiteError("a path has no sender, or one that no receiver sees", why="it would change nothing",
                            instead=f"choose among the first {reach} writers")  # fmt: skip


def _check(reading: Reading, graph: Graph, paths: Paths) -> None:
    """Refuse receivers that cannot be set together, and divisors that cannot be held."""
    kinds = {graph.readers[r].kind for r in paths.receivers}
    if not paths.receivers or "logits" in kinds and len(paths.receivers) > 1:
        raise SiteError("logits are no receiver beside others" if kinds else "there is no receiver", why="whatever other receivers pass on ends in the logits",
                        instead="ask for the two apart")  # fmt: skip
    if not paths.norms:
        return
    layers = {graph.writers[w].layer for w in paths.between(graph)}
    layers |= set() if paths.onwards else {graph.readers[r].layer for r in paths.receivers if graph.readers[r].kind != "logits"}  # fmt: skip
    for layer in sorted(layers):
        for norm in ("ln1", "ln1_post", "ln2_post"):
            reason = reading.binding.lacking(f"{norm}_scale", layer)
            if reason is not None and reading.binding.slots[layer].at(norm) is not None:
                raise SiteError(f"the divisor of {norm} in layer {layer} cannot be held", why=reason, instead="leave norms free")  # fmt: skip


def _measured(bench: Bench, recorded: Recorded, way: Way, senders: Tensor) -> Tensor:
    """Metrics of one group. Shapes: senders [path, writer] -> [path, prompt, metric]."""
    group, n = recorded.group, len(senders)
    with seam.implementation(bench.binding.hf, recorded.ground.base.attention):
        arrived = carried(way, senders.to(way.ground.clean.device))
        final, change = behind(way, arrived, n)
    at = (group.scored.to(final.device) - way.ground.start)[None, :, :, None].expand(n, -1, -1, final.shape[-1])  # fmt: skip
    hidden = final.gather(2, at)
    logits = logits_read(way, bench, hidden, None if change is None else change.gather(2, at))
    part = bench.scoring.select([p for _ in range(n) for p in group.prompts])
    reference = recorded.logits.repeat(n, 1, 1)
    values = torch.stack([m(logits, part, columns_of(bench), reference) for m in bench.metrics], -1)
    return values.double().cpu().view(n, len(group.prompts), -1)


def logits_read(way: Way, bench: Bench, hidden: Tensor, change: Tensor | None) -> Tensor:
    """Logits of base streams with a change; where norms are frozen, at the base stream's divisor.

    Shapes: [path, row, step, d_model] -> [path * row, step, column].
    """
    hidden = hidden.flatten(0, 1)
    if change is None:
        return logits_of(bench, hidden)
    change, binding = change.flatten(0, 1), bench.binding
    path = binding.stack.get("final_norm")
    if not way.paths.norms or path is None:
        return logits_of(bench, hidden + change)
    norm = binding.final_norm
    normed: Tensor = binding.module(path)(hidden) + norm.linear(change, norm.scale(hidden)).to(hidden.dtype)
    return binding.readout(normed, columns_of(bench))


@torch.no_grad()
def stream_sums(runs: PathRuns, ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """What all writers that a receiver sees change, added up, against the change of the stream that it reads.

    ids: the prompts whose runs are the donor. Shapes: (norm of sum minus whole, sum of the pieces' norms), both
    [receiver layer and kind, prompt row], flat.
    """
    gaps, sizes = [], []
    for recorded in runs.edges.recorded():
        way = Way(recorded.ground, runs.paths, runs.count)
        ground, graph = recorded.ground, runs.graph
        groups = list(runs.paths.groups(graph))
        reads = [
            Read(_read_at(graph, layer, kind), layer if kind != "logits" else None) for layer, kind in groups
        ]
        packed = pack(rows_of_group(runs.bench, recorded.group, ids))
        tokens = Tokens(packed.ids, torch.ones_like(packed.mask), packed.padding)
        forward(
            runs.bench.binding, tokens, reads, [], logits=None, attention=replay_attention(runs.bench.binding)
        )
        with seam.implementation(runs.bench.binding.hf, ground.base.attention):
            own = [
                way.stream(layer) if kind == "logits" else way.read_by(layer, kind) for layer, kind in groups
            ]
        for (layer, kind), read, base in zip(groups, reads, own, strict=True):
            reach = graph.readers[graph.readers_at(layer, kind).start].reach
            pieces = ground.donor[:, :, :reach] - ground.clean[:, :, :reach]
            whole = taken(read, (ground.rows, ground.base.width))[:, ground.start :] - base
            gaps.append((pieces.sum(2) - whole).flatten(1).norm(dim=1).double().cpu())
            sizes.append(pieces.transpose(1, 2).flatten(2).norm(dim=2).sum(1).double().cpu())
    return torch.cat(gaps), torch.cat(sizes)


def _read_at(graph: Graph, layer: int, kind: str) -> str:
    if kind == "logits":
        return "final_resid"
    return "resid_mid" if kind == "mlp" and not graph.shape[layer][3] else "resid_pre"


def sender_rows(graph: Graph, writers: Sequence[int]) -> Tensor:
    """One path per writer. Shapes: [path, writer] bool."""
    out = torch.zeros(len(writers), len(graph.writers), dtype=torch.bool)
    out[torch.arange(len(writers)), list(writers)] = True
    return out
