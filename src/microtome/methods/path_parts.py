"""From addresses to the parts of a path: senders, mediators and receivers, each refused with its reason where it is none."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from microtome.errors import SiteError
from microtome.graph.nodes import Graph
from microtome.graph.paths import Paths
from microtome.model.facts import Facts
from microtome.sites import Site, expand, parse

Part = Literal["norms", "patterns", "mlps"]
PARTS: tuple[Part, ...] = ("norms", "patterns", "mlps")
_HEAD = re.compile(r"L[^.@]+H[^.@]+")
_MLP = re.compile(r"(L[^.@]+)\.mlp")
_REFUSED = "path patching cannot ask this"


def senders_of(graph: Graph, facts: Facts, named: str | Sequence[str], reach: int) -> tuple[int, ...]:
    """Numbers of the writers that addresses name, in model order. Wildcards leave out what no receiver sees.

    reach: how many writers the receivers see.

    Raises
    ------
    SiteError: a part that does not write to the stream, a position, or a named sender that writes after every receiver has read.
    """
    found: set[int] = set()
    for address in _many(named, "sender"):
        written = _writers(graph, facts, address, "sender")
        seen = {w for w in written if w < reach}
        if not seen or (seen != set(written) and not _wild(address)):
            late = graph.writers[max(written)].name
            raise SiteError(f"no receiver sees {late}", why="it writes to the stream after they have read it",
                            instead="a sender in an earlier layer, or a receiver in a later one")  # fmt: skip
        found |= seen
    return tuple(sorted(found))


def receivers_of(graph: Graph, facts: Facts, named: str | Sequence[str]) -> tuple[int, ...]:
    """Numbers of the readers that addresses name.

    Raises
    ------
    SiteError: a part that is no reader; a key or value of a query head where heads share it (named with those that do).
    """
    found: set[int] = set()
    for address in _many(named, "receiver"):
        long = _MLP.fullmatch(address)
        for site in expand(f"{long[1]}.ln2_out" if long else address, facts):
            name = str(_bare(site))
            other = name.replace("KV", "H")  # a model without groups accepts both letters
            name = name if name in graph.reader_number else other
            if name not in graph.reader_number:
                raise SiteError(f"{site} is no receiver", why="receivers read the stream: queries, keys and values of heads, MLPs, logits",
                                instead=f"for example {', '.join(_examples(graph))}")  # fmt: skip
            found.add(graph.reader_number[name])
    logits = graph.reader_number["logits"]
    if logits in found and len(found) > 1:
        raise SiteError("logits are no receiver beside others", why="whatever other receivers pass on ends in the logits",
                        instead="ask for the two apart")  # fmt: skip
    return tuple(sorted(found))


def mediators_of(
    graph: Graph, facts: Facts, through: str | Sequence[str], freeze: Sequence[str]
) -> tuple[int, ...]:
    """Numbers of the heads and MLPs that pass a change on: "all", "mlps", or addresses; with "mlps" frozen, heads only.

    Raises
    ------
    SiteError: a part that is neither head nor MLP, or MLPs that are to be frozen as well.
    """
    if through in ("all", "mlps"):
        kinds = {"mlp"} if through == "mlps" else {"head", "mlp"}
        found = {i for i, w in enumerate(graph.writers) if w.kind in kinds}
        named = through == "mlps"
    else:
        many = [through] if isinstance(through, str) else list(through)
        found = {w for address in many for w in _writers(graph, facts, address, "mediator")}
        named = True
        if 0 in found:
            raise SiteError("embed is no mediator", why="nothing comes before it", instead='sender="embed"')
    mlps = {w for w in found if graph.writers[w].kind == "mlp"}
    if "mlps" in freeze and mlps and named:
        raise SiteError(_REFUSED, why=f"{graph.writers[min(mlps)].name} is to pass the change on and to be frozen",
                        instead='leave "mlps" out of freeze=, or MLPs out of through=')  # fmt: skip
    return tuple(sorted(found - mlps if "mlps" in freeze else found))


@dataclass(frozen=True)
class Asked:
    """The arguments that name paths, as given."""

    sender: str | Sequence[str]
    receiver: str | Sequence[str]
    through: str | Sequence[str]
    freeze: Sequence[str]
    downstream: str


def resolve(graph: Graph, facts: Facts, asked: Asked) -> tuple[tuple[int, ...], Paths]:
    """(senders, paths) that arguments name; mediators that no path from these senders can take are left out.

    Raises
    ------
    SiteError: as for the parts; an unknown part to freeze or kind of downstream; a named mediator on no path.
    """
    _check_words(asked)
    receivers = receivers_of(graph, facts, asked.receiver)
    reach = max(graph.readers[r].reach for r in receivers)
    senders = senders_of(graph, facts, asked.sender, reach)
    useful = {w for w in mediators_of(graph, facts, asked.through, asked.freeze)
              if w < reach and _reads_after(graph, w, min(senders))}  # fmt: skip
    if asked.through not in ("all", "mlps"):
        for address in [asked.through] if isinstance(asked.through, str) else asked.through:
            written = _writers(graph, facts, address, "mediator")
            if not useful & set(written):
                late = min(written) >= reach
                raise SiteError(f"no path leads through {address}", why="it writes to the stream after the receivers have read it" if late else "it reads the stream before a sender has written to it",
                                instead="mediators lie between senders and receivers")  # fmt: skip
    held = "norms" in asked.freeze, "patterns" in asked.freeze
    return senders, Paths(receivers, tuple(sorted(useful)), *held, asked.downstream == "free")


def _check_words(asked: Asked) -> None:
    single = isinstance(asked.freeze, str)
    unknown = [asked.freeze] if single else [x for x in asked.freeze if x not in PARTS]
    if unknown:
        raise SiteError(f"freeze={asked.freeze!r}: {unknown[0]!r} is not a choice", why="what can be frozen on a path are norms, patterns and mlps",
                        instead=f"freeze=({', '.join(map(repr, PARTS))}) or some of them")  # fmt: skip
    if asked.downstream not in ("free", "frozen"):
        raise SiteError(f"downstream={asked.downstream!r} is not a choice", why="what is behind the receivers runs freely or not at all",
                        instead='"free" or "frozen"')  # fmt: skip


def _reads_after(graph: Graph, mediator: int, sender: int) -> bool:
    """Whether a mediator sees what a sender writes."""
    w = graph.writers[mediator]
    begin = graph.written_before(w.layer)
    return sender < (begin if w.kind == "head" or graph.shape[w.layer][3] else mediator)


def _many(named: str | Sequence[str], what: str) -> list[str]:
    many = [named] if isinstance(named, str) else list(named)
    if not many:
        raise SiteError(f"there is no {what}", why="the list is empty", instead=f'{what}="{"L5H3.z" if what == "sender" else "L9H6.q"}"')  # fmt: skip
    return many


def _writers(graph: Graph, facts: Facts, address: str, what: str) -> list[int]:
    """Numbers of the writers that an address names; heads and MLPs also without their point (L7H2, L8.mlp)."""
    out = []
    for site in expand(_long(address), facts):
        name = str(_bare(site))
        if name not in graph.writer_number:
            raise SiteError(f"{site} is no {what}", why="what writes to the stream are embed, heads (L5H3.z) and MLPs (L5.mlp_out)",
                            instead="one of these, or many: L*H*.z")  # fmt: skip
        out.append(graph.writer_number[name])
    return out


def _bare(site: Site) -> Site:
    if site.at is not None or site.before:
        raise SiteError(f"{site} names a position", why="paths carry a change at all positions together",
                        instead=f"say {site.bare}; activation_patching has positions")  # fmt: skip
    return site


def _wild(address: str) -> bool:
    return not parse(_long(address)).single


def _long(address: str) -> str:
    """L7H2 as L7H2.z, L8.mlp as L8.mlp_out."""
    if _HEAD.fullmatch(address):
        return f"{address}.z"
    found = _MLP.fullmatch(address)
    return f"{found[1]}.mlp_out" if found else address


def _examples(graph: Graph) -> list[str]:
    last = len(graph.shape) - 1
    kinds = [graph.readers_at(last, kind).start for kind in "qkv"]
    return [*(graph.readers[r].name for r in kinds), f"L{last}.ln2_out", "logits"]
