"""`microtome redteam`: the dumbest ways in which a claim could be wrong, as checks to run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from microtome.cli import answering, output
from microtome.cli.answering import AnswerFrom, Asking, MaxTokens, PromptTo
from microtome.cli.inputs import Json
from microtome.errors import ChatError

if TYPE_CHECKING:
    from microtome.llm.chat import Chat
    from microtome.llm.claim_text import ClaimText
    from microtome.llm.redteam import Item, Proposal, RedTeam

__all__ = ["command", "redteam"]

LARGEST = 1_000_000
"""Bytes of a claim's file."""
SHOWN = 4
"""Ways with their checks that fit on a screen."""
_HEADS = {
    "seen": "a control that would rule it out ran and failed",
    "open": "nothing has ruled it out",
    "covered": "controls that ran and passed rule it out",
}


def command(
    claim_of: Callable[[int], ClaimText] | None = None, chat_of: Callable[[], Chat | None] | None = None
) -> Callable[..., None]:
    """The command. claim_of: a recorded claim by its number. chat_of: the model that is set up, or None."""

    def redteam(
        claim: Annotated[
            str,
            typer.Argument(
                metavar="TEXT|FILE",
                help="A claim in words, a .yaml file (statement, alternatives, falsifiers, evidence), or the number of a recorded claim.",
                show_default=False,
            ),
        ],
        method: Annotated[
            list[str] | None,
            typer.Option(
                help="For a claim in words: the technique that it rests on; repeat.", show_default=False
            ),
        ] = None,
        task: Annotated[
            str, typer.Option(help="Its task or dataset, for the checks to name.", show_default=False)
        ] = "",
        site: Annotated[str, typer.Option(help="Its site.", show_default=False)] = "",
        model: Annotated[str, typer.Option("--model", "-m", help="Its model.", show_default=False)] = "",
        offline: Annotated[
            bool, typer.Option("--offline", help="The built-in battery alone: ask no language model.")
        ] = False,
        n: Annotated[
            int,
            typer.Option("-n", min=0, help="How many ways are shown with their check, the others by name."),
        ] = SHOWN,
        way: Annotated[
            list[str] | None,
            typer.Option(help="Show only this way of the battery, by its name; repeat.", show_default=False),
        ] = None,
        prompt_to: PromptTo = None,
        answer_from: AnswerFrom = None,
        max_tokens: MaxTokens = None,
        json: Json = False,
    ) -> None:
        """List the dumbest ways in which a claim could be wrong, each with a check that can be run. Runs none of them.

        The built-in battery, and what the configured endpoint proposes beyond it (or a model of your own, over two files).
        """
        from microtome.llm.redteam import red_team

        asking = Asking(prompt_to, answer_from, max_tokens)
        if (offline or way) and (prompt_to or answer_from or max_tokens):
            raise typer.BadParameter(
                "--offline and --way ask no language model, and take nothing that is for one"
            )
        read = _claim(claim, claim_of, method or [], {"task": task, "model": model, "sites": (site,) if site else ()})  # fmt: skip
        if prompt_to or answer_from:
            chat: Chat | None = asking.chat()
        else:
            chat = None if offline or way or chat_of is None else chat_of()
        if not (offline or way) and chat is None:
            answering.aside("no language model is set up: the built-in battery alone (--offline says so beforehand)")  # fmt: skip
        told = red_team(read, chat=chat, commands=_commands(), sampling=asking.sampling())
        _named(way or [], told)
        if json:
            output.print_json(_json(told, way or []))
        else:
            _show(told, n, way or [])

    return redteam


def _claim(text: str, claim_of: Callable[[int], ClaimText] | None, methods: list[str], about: dict[str, Any]) -> ClaimText:  # fmt: skip
    from microtome.llm.claim_text import ClaimText, EvidenceText, claim_from

    in_words = not text.isdecimal() and not text.lower().endswith((".yaml", ".yml", ".json"))
    if not in_words and (methods or any(about.values())):
        raise ChatError(f"{text!r} brings its own evidence", why="--method, --task, --site and --model describe a claim in words", instead="leave them out")  # fmt: skip
    if text.isdecimal():
        if claim_of is None:
            raise ChatError(f"no claim {text}: there is no record here", why="numbers are those of recorded claims", instead="the claim in words, or a .yaml file")  # fmt: skip
        return claim_of(int(text))
    if not in_words:
        return claim_from(_load(Path(text)))
    _known(methods)
    given = methods or ([""] if any(about.values()) else [])
    return ClaimText(text, evidence=tuple(EvidenceText(method=name, **about) for name in given))


def _known(methods: list[str]) -> None:
    from microtome.results import registry

    names = registry.names("techniques")
    for name in methods:
        if name not in names:
            raise ChatError(f"no technique is called {name!r}", why="a claim rests on one that is registered", instead=", ".join(names))  # fmt: skip


def _load(path: Path) -> Any:
    """Plain data from a YAML (or JSON) file: no tags, no aliases, no name twice."""
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("aliases are not read")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            names = [key.value for key, _ in node.value]
            if len(set(map(str, names))) < len(names):
                raise yaml.YAMLError(f"a name stands twice before line {node.end_mark.line + 1}")
            return super().construct_mapping(node, deep)

    try:
        if path.stat().st_size > LARGEST:
            raise ChatError(f"{path} is larger than {LARGEST:,} bytes", why="a claim is a page at most", instead="the claim's own file")  # fmt: skip
        return yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
        raise ChatError(f"{path} cannot be read", why=why or type(error).__name__, instead="a UTF-8 file with statement: ...") from error  # fmt: skip
    except (yaml.YAMLError, RecursionError) as error:
        raise ChatError(f"{path} is not YAML", why=" ".join(str(error).split())[:200], instead="quote texts that hold colons") from error  # fmt: skip


def _commands() -> dict[str, frozenset[str]]:
    """The commands that there are, with their options."""
    from typer.main import get_command

    from microtome.cli.main import app

    out: dict[str, frozenset[str]] = {}
    for name, made in getattr(get_command(app), "commands", {}).items():
        inner = getattr(made, "commands", None)
        for words, one in {f"{name} {k}": v for k, v in inner.items()}.items() if inner else ((name, made),):
            out[words] = frozenset(o for p in one.params for o in p.opts if o.startswith("-"))
    return out


# ------------------------------------------------------------------------------ what is shown


def _named(ways: list[str], told: RedTeam) -> None:
    """Refuse a way that is not among those that apply."""
    names = [item.hypothesis.name for item in told.items]
    for name in ways:
        if name not in names:
            raise ChatError(f"no way {name!r} in which this claim could be wrong", why="it is not in the battery, or explains none of this evidence", instead=", ".join(names))  # fmt: skip


def _show(told: RedTeam, n: int, ways: list[str]) -> None:
    """Lines; every character that a terminal would obey is shown as an escape. n: ways in full; ways: these ones instead."""
    output.say(f"claim: {told.claim.statement}", style="bold")
    if not told.claim.evidence:
        output.say("on no evidence that is known here: the whole battery applies (--method NAME cuts it)")
    pending = [item for item in told.items if item.status != "covered"]
    full = [item for item in told.items if item.hypothesis.name in ways] if ways else pending[:n]
    for status in ("seen", "open", "covered"):
        items = [item for item in told.of(status) if not ways or item in full]
        if items:
            output.say(f"{status}: {_HEADS[status]} ({len(items)})", style="bold")
        for item in items:
            if item in full:
                _item(item)
        rest = [item.hypothesis.name for item in items if item not in full]
        if rest:
            output.say(f"  {'also: ' if len(rest) < len(items) else ''}{', '.join(rest)}")
    if ways:
        return
    for proposal in told.proposed:
        _proposal(proposal, told.model)
    if told.broken:
        output.say(f"{told.broken} pieces of the answer of {told.model} could not be read and count as nothing")  # fmt: skip
    elif told.model and not told.proposed:
        output.say(f"{told.model} proposed nothing that could be read")
    hidden = " (-n 99 shows all, --way NAME one)" if len(full) < len(pending) else ""
    output.say(f"{len(told.checks())} checks to run; none was run here{hidden}")


def _item(item: Item) -> None:
    output.say(f"  {item.hypothesis.name}: {item.hypothesis.statement}")
    if item.by:
        output.say(f"      {'; '.join(item.by)}")
    _check(item.check)


def _check(check: Any) -> None:
    output.say(f"      run:      {check.line()}")
    if check.given:
        output.say(f"      with:     {check.given}")
    output.say(f"      if right: {check.if_right}")
    output.say(f"      if wrong: {check.if_wrong}   ({check.cost})")


def _proposal(proposal: Proposal, model: str) -> None:
    output.say(f"  proposed by {model}: {proposal.wrong}")
    if proposal.check is not None:
        _check(proposal.check)
        return
    output.say(f"      {proposal.problem}")
    if proposal.suggestion:
        output.say(f"      suggestion, to be read and not run: {proposal.suggestion}")


def _json(told: RedTeam, ways: list[str]) -> dict[str, Any]:
    def check(c: Any) -> dict[str, Any]:
        return {"rules_out": c.rules_out, "run": c.line(), "if_right": c.if_right, "if_wrong": c.if_wrong, "cost": c.cost, "given": c.given}  # fmt: skip

    items = [{"name": i.hypothesis.name, "statement": i.hypothesis.statement, "status": i.status, "by": i.by, "check": check(i.check)}
             for i in told.items if not ways or i.hypothesis.name in ways]  # fmt: skip
    proposed = [{"wrong": p.wrong, "check": check(p.check) if p.check else None, "problem": p.problem, "suggestion": p.suggestion} for p in told.proposed]  # fmt: skip
    return {"claim": told.claim, "items": items, "model": told.model, "proposed": proposed, "broken": told.broken,
            "checks": [c.line() for c in told.checks()]}  # fmt: skip


redteam = command()
"""Without a record and without a language model."""
