"""The main job: from a behaviour to a dissection that a researcher can believe, in one call.

Behaviour check -> a first screen (attribution of every head and MLP, its error certified) -> where (residual, attention, MLP
sweeps) -> which heads, exactly -> what they write and attend to -> the smallest set found that carries the effect, on held-out
prompts beside its nulls -> which edges between them -> a circuit of edges and its tests -> what was checked, what failed, and
what this does not show.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from microtome.errors import MicrotomeError, TaskError
from microtome.results import seeds
from microtome.results.technique import progress, technique
from microtome.results.verdicts import Control, verdict

if TYPE_CHECKING:
    import pandas as pd

    from microtome.facade import Model
    from microtome.results.result import Result
    from microtome.tasks.pairs import PairTask

PAIRS = 15
SLACKS = (1.25, 3.0, 8.0)
"""How many times the wanted pairs are drawn: entities fall to one side of a split whole, so that one side may be short of
pairs or of templates."""
HELD_OUT = 3
"""Held-out pairs for each pair of the sweeps."""
FEWEST = 6
"""Pairs that can be split into some to explore and some to test."""
SLACK = 1.3
"""What small calls, planning and statistics add to the measured rate of large calls."""
STREAM = ("L*.resid_pre", "final_resid")
SCREENED = 64
"""Edges beside the strongest that are verified exactly, on average. Parts: as many as attribution patching does by itself."""
EDGES, CIRCUIT, TESTING = 42.0, 68.0, 170.0
"""Forwards of the explored pairs that the stages of edges take in time, as measured on SmolLM2 and IOI."""
TESTS: dict[str, Any] = {"draws": 25, "inflated": 19, "most": 16, "subsets": 5, "prompts": 8}
"""Fewer draws and prompts than an evaluation of its own has: enough for its level of .05."""
RESTS_ON = ("behaviour", "residual stream", "components", "component set")
"""The stages that the conclusion (this set of components carries this behaviour) stands on; the others are read beside it."""


class Stage(NamedTuple):
    """One stage of a dissection: what it is, on how many pairs, how long it should take (seconds)."""

    name: str
    n: int
    seconds: float


def draw(
    model: Model, task: str | PairTask, pairs: int = PAIRS, seed: int = 0
) -> tuple[PairTask, PairTask | None]:
    """(pairs to explore, held-out pairs).

    A task by name gives `pairs` pairs spread over its templates, and three times as many with other names or entities
    (fewer only where its entities are used up). Pairs of the user's are split by template, entity or pair, a quarter to
    explore and the rest to test; fewer than six cannot be split, and what needs held-out prompts is then reported as not run.

    Raises
    ------
    TaskError: an unknown task, or fewer than one pair.
    """
    from microtome.tasks.checks import count
    from microtome.tasks.registry import task as named

    count(pairs, "pairs")
    if isinstance(task, str):
        drawn = None
        for slack in SLACKS:
            n = max(FEWEST, math.ceil(pairs * (1 + HELD_OUT) * slack))
            try:
                every = named(task, model, n=n, seed=seed)
            except TaskError:
                if drawn is None:
                    raise
                break  # the pools are used up
            drawn = _split(every, pairs, seed, ("entity", "template"))
            if _full(drawn, every, pairs):
                break
        assert drawn is not None
        return drawn
    return _split(task, pairs, seed, ("template", "entity"))


def _full(drawn: tuple[PairTask, PairTask | None], every: PairTask, pairs: int) -> bool:
    """As many pairs on either side as were asked for, and the explored ones over as many templates as they can."""
    explored, tested = drawn
    if explored.n != pairs or tested is None or tested.n != pairs * HELD_OUT:
        return False
    templates = [set(part.groups.get("template", ())) for part in (explored, every)]
    return len(templates[0]) >= min(pairs, len(templates[1]))


def _split(task: PairTask, pairs: int, seed: int, order: tuple[str, ...]) -> tuple[PairTask, PairTask | None]:
    """Pairs to explore and to test, by the first grouping that has clusters enough."""
    if task.n < FEWEST:
        return _spread(task, pairs), None
    for by in order:
        if len(set(task.groups.get(by, ()))) > 2:
            kept, away = task.split(by, HELD_OUT / (1 + HELD_OUT), seed=seed)
            return _spread(kept, pairs), _spread(away, pairs * HELD_OUT)
    turn = seeds.rng(seed, "split by pair").permutation(task.n).tolist()
    few = max(2, min(pairs, task.n // (1 + HELD_OUT)))
    return task.subset(sorted(turn[:few])), task.subset(sorted(turn[few : few * (1 + HELD_OUT)]))


def _asked(explored: PairTask, held_out: PairTask | None) -> PairTask:
    """The pairs of which it is asked whether the model does the task at all: that selects nothing, so the held-out ones too.

    Held-out pairs of the user's that declare other variables, or are scored by another metric, are no pairs of this task.
    """

    def kind(task: PairTask) -> tuple[object, ...]:
        return task.metric, task.differs, bool(task.clean.variables), bool(task.corrupt.variables)

    if held_out is None or kind(held_out) != kind(explored):
        return explored
    return explored.union(held_out)


def _spread(task: PairTask, n: int) -> PairTask:
    """At most n pairs, one template after the other."""
    if task.n <= n:
        return task
    labels = task.groups.get("template", tuple("" for _ in range(task.n)))
    seen: dict[str, int] = {}
    turn = []
    for i, label in enumerate(labels):
        seen[label] = seen.get(label, 0) + 1
        turn.append((seen[label], i))
    return task.subset(sorted(i for _, i in sorted(turn)[:n]))


def plan(model: Model, task: str | PairTask, pairs: int = PAIRS, seed: int = 0) -> list[Stage]:
    """What a dissection will do and how long, from this machine's measured rate; controls included."""
    from microtome.methods.gradient_attribution import TOP, VERIFIED
    from microtome.methods.sets import NULLS, SIZES
    from microtome.methods.setting import cell, columns, setting, sites_of
    from microtome.replay.plan import Cell
    from microtome.replay.sources import Prompts
    from microtome.replay.sweep import estimate
    from microtome.sites import Site

    chosen, held_out = draw(model, task, pairs, seed)
    s = setting(model, chosen)
    found, wide = columns(s, None)
    n, forward = chosen.n, estimate(s.bench, [])
    donor = {"donor": Prompts(s.donor.ids)}
    every = _asked(chosen, held_out).n
    out = [Stage("behaviour", every, 2 * forward * every / n)]

    def sweep(cells: list[Cell]) -> float:
        return _with_controls(estimate(wide.bench, cells, donor), len(cells), forward)

    for name, sites in _sweeps(model).items():
        out.append(Stage(name, n, sweep([cell(x, c) for x in sites_of(model, sites) for c in found])))
    out.append(Stage("components", n, sweep([cell(x, None) for x in sites_of(model, _components(model))])))
    verified = (VERIFIED["nodes"] + TOP["nodes"]) / len(sites_of(model, _components(model)))
    out.insert(1, Stage("attribution", n, 6 * forward + min(1.0, verified) * out[-1].seconds))
    out += [
        Stage("direct logit attribution", n, 3 * forward),
        Stage("attention patterns", n, 12 * forward),
    ]
    tested = (held_out or chosen).n
    whole = estimate(s.bench, [cell(Site("embed"), None)], donor) - forward
    sets = whole * (len(SIZES) + (1 + 2 * NULLS) * tested / n)
    out.append(Stage("component set", tested, SLACK * (sets + forward * (2 + 2 * tested / n))))
    return out + _circuit_stages(model, (n, 0 if held_out is None else held_out.n), forward)


def _circuit_stages(model: Model, pairs: tuple[int, int], forward: float) -> list[Stage]:
    """The stages of edges, where this model has a graph. pairs: explored and held out; forward: seconds of one of the explored."""
    from microtome.graph.nodes import graph_of

    try:
        graph_of(model.binding)
    except MicrotomeError:
        return []  # the stage says why
    n, tested = pairs
    return [
        Stage("edges", n, EDGES * forward),
        Stage("circuit", n, CIRCUIT * forward),
        Stage("circuit tests", n + tested, TESTING * forward),
    ]


def _with_controls(sweep: float, cells: int, forward: float) -> float:
    """Seconds of a sweep with its forward-based controls, donors' and held-out prompts' runs included."""
    from microtome.methods.patching import CHOSEN, SHARE

    held_out = CHOSEN * HELD_OUT * sweep / max(cells, 1)
    return SLACK * ((1 + SHARE) * sweep + held_out + (5 + HELD_OUT) * forward)


def _sweeps(model: Model) -> dict[str, tuple[str, ...]]:
    have = {
        name
        for name in ("attn_out", "mlp_out")
        if any(name not in layer.lacks for layer in model.facts.layers)
    }
    out: dict[str, tuple[str, ...]] = {"residual stream": STREAM}
    if "attn_out" in have:
        out["attention outputs"] = ("L*.attn_out",)
    if "mlp_out" in have:
        out["MLP outputs"] = ("L*.mlp_out",)
    return out


def _components(model: Model) -> tuple[str, ...]:
    layers = model.facts.layers
    heads = ("L*H*.z",) if any("z" not in layer.lacks for layer in layers) else ()
    mlps = ("L*.mlp_out",) if any("mlp_out" not in layer.lacks for layer in layers) else ()
    return (*heads, *mlps)


@technique(
    "dissect",
    "3",
    controls=("stages", "all_ruled_out"),
    mandatory=("stages",),
    figure="microtome.figures.overview:draw",
    random=True,
)
def dissect(
    model: Model,
    task: str | PairTask,
    *,
    pairs: int = PAIRS,
    held_out: PairTask | None = None,
    alpha: float = 0.001,
    seed: int = 0,
) -> Result:
    """Dissect a behaviour.

    Parameters
    ----------
    task: a task by name, or pairs.
    pairs: pairs that the sweeps see; three times as many test what they select. Every stage scales with it. Whether
        the model does the task at all is asked of both together.
    held_out: pairs of your own for that test; then `task` must be pairs too, and is taken whole.

    Returns a Result whose children are the stages' results. It stops after the behaviour check when the model does not
    do the task. Tables: about, stages (n, seconds), agreement (attribution against exact), checks (everything that ran).

    Raises
    ------
    TaskError: an unknown task or bad pairs, or held-out pairs for a task by name. Interrupted: on Ctrl-C; observers have kept the finished stages.
    """
    from microtome import methods

    if held_out is None:
        chosen, other = draw(model, task, pairs, seed)
    elif isinstance(task, str):
        raise TaskError(f"held-out pairs were given with the task {task!r} by name", why="a task by name draws its own",
                        instead="leave held_out= out, or give both as pairs: mt.task(...).split(...)")  # fmt: skip
    else:
        chosen, other = task, held_out
    run = _Stages(_about(model, chosen, other))
    shared: dict[str, Any] = {"alpha": alpha, "seed": seed}
    every = _asked(chosen, other)
    behaviour = run.needed("behaviour", every.n, partial(methods.behaviour, model, every, **shared))
    if not _does_it(behaviour, alpha):
        return run.result(
            stopped="the model does not do this task better than chance on both sides, so there is nothing to dissect",
            alpha=alpha,
        )
    parts = list(_components(model))
    run(
        "attribution",
        chosen.n,
        partial(methods.attribution_patching, model, chosen, sites=parts, **shared),
    )
    for name, sites in _sweeps(model).items():
        run(
            name,
            chosen.n,
            partial(methods.activation_patching, model, chosen, sites=list(sites), held_out=other, **shared),
        )
    single = run.needed(
        "components",
        chosen.n,
        partial(
            methods.activation_patching, model, chosen, sites=parts, positions="all", held_out=other, **shared
        ),
    )
    run(
        "direct logit attribution",
        chosen.n,
        partial(methods.direct_logit_attribution, model, chosen, **shared),
    )
    run("attention patterns", chosen.n, partial(_patterns, methods, model, chosen, single, seed, alpha))
    run(
        "component set",
        (other or chosen).n,
        partial(methods.component_set, model, chosen, ranking=single, held_out=other, **shared),
    )
    _circuit(run, model, chosen, other, shared)
    return run.result(stopped="", alpha=alpha)


def _circuit(
    run: _Stages, model: Model, chosen: PairTask, other: PairTask | None, shared: dict[str, Any]
) -> None:
    """Edges one by one; the circuit that they make; its tests, where one was found."""
    from microtome import circuits, methods

    screen = partial(methods.attribution_patching, model, chosen, of="edges", how="ig-inputs", mode="noise")
    run("edges", chosen.n, partial(screen, verify=SCREENED, **shared))
    seed = shared["seed"]
    choices = circuits.Choices(positions=_positions(chosen, other), seed=seed)
    search = partial(circuits.circuit_discovery, model, chosen, choices=choices, seed=seed)
    found = run("circuit", chosen.n, search)
    if found is None:
        return
    circuit = circuits.circuit_of(found, model)
    tests = partial(
        circuits.circuit_evaluation, model, circuit, chosen, held_out=other, options=TESTS, seed=seed
    )
    run("circuit tests", chosen.n + (0 if other is None else other.n), tests)


def _positions(chosen: PairTask, other: PairTask | None) -> str:
    """A mask of edges per span, where all prompts have the same ones."""
    from microtome.methods.setting import common

    here = common(chosen.clean)
    return "spans" if here and (other is None or {*common(other.clean)} == {*here}) else "all"


def _about(model: Model, task: PairTask, other: PairTask | None) -> dict[str, str]:
    """What was dissected, in words, with the hashes of the very prompts."""
    held = "no held-out pairs" if other is None else f"{other.n} held-out pairs"
    return {
        "question": f"Which parts of {model.name} carry {task.name}?",
        "model": f"{model.name} ({model.facts.family})",
        "task": f"{task.name}, {task.n} pairs, {held}",
        "source of the model": model.source,
        "hash of the pairs": task.hash,
        "hash of the held-out pairs": "" if other is None else other.hash,
    }


def _does_it(behaviour: Result, alpha: float) -> bool:
    """Better than chance; with too few pairs to say, right on all of them, on either side."""
    if behaviour.control("both_sides").passed is False:
        return False
    if behaviour.control("above_chance").passed:
        return True
    least = behaviour.verdict.smallest_p
    too_few = least is not None and least > alpha
    return too_few and bool((behaviour.tables["sides"]["accuracy"] == 1.0).all())


def _patterns(methods: Any, model: Model, task: PairTask, single: Result, seed: int, alpha: float) -> Result:
    """Detectors on all heads; the patterns of the strongest heads on one random prompt."""
    from microtome.tasks.offtask import offtask

    frame = single.frame()
    heads = frame[frame["site"].str.endswith(".z")]
    strongest = heads.reindex(heads["value"].abs().sort_values(ascending=False).index)["site"].head(4)
    texts = {"ordinary text": offtask(model, 16, seed)} if model.tokenizer is not None else {}
    return methods.attention_patterns(
        model, task, texts=texts, show=[s.removesuffix(".z") for s in strongest], seed=seed, alpha=alpha
    )


class _Stages:
    """Runs stages one after the other; one that this model lacks is reported, not hidden."""

    def __init__(self, about: dict[str, str]) -> None:
        self.about = about
        self.done: list[Result] = []
        self.rows: list[dict[str, object]] = []

    def needed(self, name: str, n: int, work: Callable[[], Result]) -> Result:
        """A stage without which there is nothing to go on with: what refuses it ends the dissection."""
        result = self(name, n, work, needed=True)
        assert result is not None
        return result

    def __call__(
        self, name: str, n: int, work: Callable[[], Result], *, needed: bool = False
    ) -> Result | None:
        """Run a stage; None where it was refused."""
        begun = time.perf_counter()
        progress(len(self.rows), None, "stages", name)
        try:
            result = work()
        except MicrotomeError as error:
            if needed:
                raise
            self.rows.append(
                {
                    "stage": name,
                    "n": n,
                    "seconds": time.perf_counter() - begun,
                    "verdict": "refused",
                    "note": ": ".join(part.rstrip(".") for part in (error.what, error.why) if part),
                }
            )
            return None
        self.done.append(result)
        self.rows.append(
            {
                "stage": name,
                "n": n,
                "seconds": time.perf_counter() - begun,
                "verdict": str(result.verdict),
                "note": "",  # the child says why its verdict is what it is
            }
        )
        return result

    def result(self, *, stopped: str, alpha: float) -> Result:
        import pandas as pd

        from microtome.results.result import Result

        controls = [self._stages(stopped), self._all_ruled_out()]
        about = pd.DataFrame({"name": list(self.about), "value": list(self.about.values())})
        tables = {"about": about, "stages": pd.DataFrame(self.rows), "checks": self._checks()}
        for child in self.done:
            if "agreement" in child.tables:
                tables["agreement"] = child.tables["agreement"]
        p, least = self._p()
        return Result(
            "dissect",
            tables=tables,
            controls=controls,
            children=self.done,
            verdict=verdict(controls, ("stages",), p, alpha, least),
        )

    def _p(self) -> tuple[float | None, float | None]:
        """The weakest link of the stages that the conclusion stands on, but for the set, whose level is its own."""
        found = [
            c.verdict
            for name, c in self._named()
            if name in RESTS_ON and name != "component set" and c.verdict.p is not None
        ]
        return (
            (max(v.p for v in found if v.p is not None), max(v.smallest_p or 0.0 for v in found))
            if found
            else (None, None)
        )

    def _stages(self, stopped: str) -> Control:
        rules_out = "that the conclusion stands on a stage that failed"
        expected = f"supported: {', '.join(RESTS_ON)} (the set at its own level, that of its null sets)"
        if stopped:
            return Control("stages", rules_out, expected, stopped, False, max(len(self.rows), 1))
        weak = [str(r["stage"]) for r in self.rows if r["verdict"] != "supported"]
        missing = [name for name in RESTS_ON if name in weak or name not in {r["stage"] for r in self.rows}]
        return Control(
            "stages",
            rules_out,
            expected,
            {"supported": len(self.rows) - len(weak), "of": len(self.rows)},
            not missing,
            len(self.rows),
            detail="; ".join(f"{r['stage']}: {r['verdict']}" for r in self.rows if r["stage"] in weak),
        )

    def _all_ruled_out(self) -> Control:
        """Not mandatory, so that a failure stands among the reasons of any verdict instead of changing it."""
        every = [(name, c) for name, child in self._named() for c in child.controls]
        failed: dict[str, list[str]] = {}
        for name, control in every:
            if control.passed is False:
                failed.setdefault(name, []).append(control.name)
        rules_out, expected = (
            "that an explanation which a stage did not rule out holds",
            "every control that ran in any stage passed",
        )
        ran = sum(control.passed is not None for _, control in every)
        if not ran:
            return Control.not_run("all_ruled_out", rules_out, expected, "no control ran")
        observed = {name: ", ".join(names) for name, names in failed.items()} or "all passed"
        return Control("all_ruled_out", rules_out, expected, observed, not failed, ran)

    def _named(self) -> list[tuple[str, Result]]:
        """Stages that came to a result, by name."""
        names = [str(row["stage"]) for row in self.rows if row["verdict"] != "refused"]
        return list(zip(names, self.done, strict=True))

    def _checks(self) -> pd.DataFrame:
        import pandas as pd

        rows = [{"stage": name, "check": c.name, "outcome": c.outcome, "rules_out": c.rules_out, "expected": c.expected, "observed": str(c.observed), "detail": c.detail}
                for name, child in self._named() for c in child.controls]  # fmt: skip
        return pd.DataFrame(rows)
