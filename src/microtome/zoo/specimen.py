"""One call from a name and a seed to a model whose mechanism is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from microtome.errors import ModelError
from microtome.zoo.decoys import Decoys, with_decoys
from microtome.zoo.mechanism import CHANGES, CHANGES_TRAINED, Mechanism, Variable
from microtome.zoo.programs import NUMBER, Program, program
from microtome.zoo.rasp import Value, evaluate

if TYPE_CHECKING:
    from microtome.facade import Model
    from microtome.tasks.pairs import PairTask
    from microtome.zoo.compile import Compiled, Placed
    from microtome.zoo.spec import Array, Spec
    from microtome.zoo.training import Recipe

__all__ = ["TOLERANCE", "Domain", "Specimen", "Training", "compiled"]

TOLERANCE = 1e-4
"""Largest error of a logit that a compiled model may have against its program. Seen on all programs: at most 5e-7 without
decoys; 1.2e-5 with them, where float32 rounds the rotated weights and scores are as large as SHARP."""
SAMPLE = 128
"""Inputs on which every true edge is cut first; edges that change nothing there are cut on the whole domain."""


class Training(Protocol):
    """How a trained model was made, in this process or before it shipped."""

    @property
    def recipe(self) -> Recipe:
        """Sizes, seed and settings."""

    @property
    def curve(self) -> tuple[Mapping[str, float], ...]:
        """What was measured while it trained."""

    @property
    def accuracy(self) -> float:
        """Of the weights."""

    @property
    def checkpoints(self) -> Mapping[int, Mapping[str, Tensor]]:
        """step -> weights."""


@dataclass(frozen=True)
class Domain:
    """Every input of a program.

    Shapes: ids [input, pos], BOS first; logits [input, pos, d_vocab], what the program puts out (NaN at BOS). outputs: the
    same as values, [input][pos], BOS left out.
    """

    ids: Tensor
    outputs: tuple[tuple[Value, ...], ...]
    logits: Tensor

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, repr=False)
class Specimen:
    """A model of the zoo.

    Attributes
    ----------
    name, seed, tier: tier "A" is true by construction, "B" trained with a published mechanism.
    model: a Microtome model; mechanism: what is true of it; task: prompt pairs on it.
    words: its vocabulary by id. decoys: what was added to it.
    training: of a trained model how it was made: `recipe`, `curve`, `accuracy`, `checkpoints` (step -> weights).
    """

    name: str
    seed: int
    tier: str
    model: Model
    mechanism: Mechanism
    task: PairTask
    words: tuple[str, ...] = ()
    decoys: Decoys | None = None
    program: Program | None = field(default=None, repr=False)
    _placed: tuple[Placed, ...] = field(default=(), repr=False)
    _spec: Spec | None = field(default=None, repr=False)
    _directions: Mapping[str, Array] = field(default_factory=dict, repr=False)
    training: Training | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        m = self.mechanism
        return f"<Specimen {self.name}, tier {self.tier}, seed {self.seed}: {len(m.edges)} of {len(m.all_edges)} edges>"

    def checkpoints(self) -> list[tuple[int, Model]]:
        """(step, model) for every kept step of its training, the last one included.

        Raises
        ------
        ModelError: a model that was not trained.
        """
        from microtome.facade import Model
        from microtome.model.load import load_module
        from microtome.zoo.shipped import filled

        if self.training is None:
            raise ModelError(f"{self.name} was compiled, not trained", instead="read its mechanism")
        recipe, out = self.training.recipe, []
        for step, state in sorted(self.training.checkpoints.items()):
            module = filled(recipe, state)
            module.config.name_or_path = f"zoo/{self.name}/{step}"
            model = Model(load_module(module, tokenizer=self.model.tokenizer))
            model.asked = {**self.model.asked, "step": step} if self.model.asked else None
            out.append((step, model))
        return out

    def domain(self) -> Domain:
        """Every input with the true outputs at every position.

        Raises
        ------
        ModelError: a model that is not compiled.
        """
        return _domain(self._compiled_from(), self.words)

    def value(self, variable: str, tokens: str | tuple[str, ...]) -> tuple[Value, ...]:
        """What a variable is at each position of one input (BOS left out), by the interpreter.

        Raises
        ------
        ModelError: no such variable, or a model that is not compiled.
        """
        self.mechanism.variable(variable)
        source = self._compiled_from()
        words = tuple(tokens.split()) if isinstance(tokens, str) else tuple(tokens)
        found = evaluate(source.output, words, causal=source.causal)
        if variable in found:
            return found[variable]
        from fractions import Fraction

        return tuple(Fraction(1, 1 + n) for n in found[variable.removesuffix(".share")])

    def counterfactual(self, variable: str, tokens: str, source: str) -> tuple[Value, ...]:
        """What the program puts out on `tokens` if a variable had, at every position, the values that it has on `source`.

        What an interchange intervention on that variable must give (Geiger et al. 2021, arXiv 2106.02997).

        Raises
        ------
        ModelError: no such variable, a model that is not compiled, or values that the program has no answer for.
        """
        program_ = self._compiled_from()
        name = variable.removesuffix(".share")  # who changes the share changes the count
        given = {name: self.value(name, source)}
        words = tuple(tokens.split())
        return evaluate(program_.output, words, causal=program_.causal, given=given)[program_.output.name]

    def true_edges(self, by: str = "zero") -> tuple[str, ...]:
        """Edges of the mechanism that change a logit at the last position of the task's clean prompts, patched one at a time.

        by: "zero"; "resample": what the source writes on the corrupt prompt; "mean": what it writes at each position on
        average over the task's clean and corrupt prompts. Which edges an exact method can find depends on it: one that
        carries the same on every input is found by zeros only.

        Raises
        ------
        ModelError: another word, or a model with norms.
        """
        from microtome.zoo.oracle import changes

        if by not in ("zero", "mean", "resample"):
            raise ModelError(f"edges cannot be confirmed by {by!r}", instead='"zero", "mean" or "resample"')
        ids, other = (torch.tensor(side.ids) for side in (self.task.clean, self.task.corrupt))
        hf: Any = self.model.hf
        donors = {"zero": None, "mean": torch.cat([ids, other]), "resample": other}[by]
        found = changes(hf, ids, self.mechanism.edges, donors=donors, average=by == "mean")
        least = CHANGES if self.training is None else CHANGES_TRAINED
        return tuple(edge for edge in self.mechanism.edges if found[edge][1] > least)

    def directions(self, variable: str) -> Tensor:
        """The directions of the stream in which a variable is written: one per value, or one for a number. [value, d_model].

        Raises
        ------
        ModelError: no such variable, or a trained model.
        """
        name = self.mechanism.variable(variable).name
        if self._spec is None:
            raise ModelError(
                f"{self.name} was trained: nobody wrote its directions", instead="search for them"
            )
        basis = torch.eye(self._spec.d_model, dtype=torch.float64)
        if self._spec.rotation is not None:
            basis = torch.from_numpy(self._spec.rotation)
        if name in self._directions:
            written = torch.from_numpy(self._directions[name])
            found = written @ basis[: written.shape[1]]
        else:
            found = basis[list(next(p for p in self._placed if p.name == name).coordinates)]
        return found.to(next(self.model.hf.parameters()))

    def _compiled_from(self) -> Program:
        if self.program is None:
            raise ModelError(f"{self.name} is no compiled program", instead="read its task")
        return self.program


def _domain(source: Program, words: tuple[str, ...]) -> Domain:
    ids = torch.tensor([[0, *(words.index(w) for w in t)] for t in source.domain])
    outputs = tuple(run[source.output.name] for run in source.runs)
    logits = torch.zeros(*ids.shape, len(words))
    if source.output.kind == "numerical":
        logits[:, 1:, words.index(NUMBER)] = torch.tensor([[float(v) for v in row] for row in outputs])
    else:
        place = torch.tensor([[words.index(str(v)) for v in row] for row in outputs])
        logits[:, 1:] = torch.nn.functional.one_hot(place, len(words)).to(logits)
    logits[:, 0] = torch.nan
    return Domain(ids, outputs, logits)


def worst_error(module: Callable[..., Any], domain: Domain, *, batch: int = 1024) -> float:
    """The largest difference between a module's logits and the program's, over all inputs and positions but BOS."""
    worst = 0.0
    with torch.no_grad():
        for start in range(0, len(domain), batch):
            rows = slice(start, start + batch)
            logits = module(domain.ids[rows]).logits
            off = (logits - domain.logits[rows].to(logits))[:, 1:].abs().max()
            worst = max(worst, float(off.nan_to_num(nan=float("inf"))))
    return worst


def compiled(name: str, *, seed: int, decoys: Decoys | None = None, n: int = 32) -> Specimen:
    """Compile a program, check it on its whole domain, and confirm its edges by cutting them one at a time.

    Parameters
    ----------
    seed: of the task's pairs; with decoys also of these, of the rotation and of the order of heads.
    decoys: what is added (None: nothing). n: pairs of the task.

    Raises
    ------
    ModelError: no such program, or a model that does not do what the program says.
    TaskError: fewer than n different pairs.
    """
    from microtome.facade import Model
    from microtome.model.load import load_module
    from microtome.zoo.compile import compile_program
    from microtome.zoo.pairs import pair_task
    from microtome.zoo.spec import assemble
    from microtome.zoo.words import word_tokenizer

    source = program(name)
    made = compile_program(source)
    spec, moved = (made.spec, None) if decoys is None else with_decoys(made.spec, decoys, seed=seed)
    module = assemble(spec)
    module.config.name_or_path = f"zoo/{source.name}"
    domain = _domain(source, made.words)
    error = worst_error(module, domain)
    if not error <= TOLERANCE:
        raise ModelError(
            f"the compiled {source.name} is off by {error:.2g} logits",
            why=f"its program and its weights must agree to {TOLERANCE:g} on all {len(domain)} inputs",
            instead="this is a defect of the compiler: report it",
        )
    model = Model(load_module(module, tokenizer=word_tokenizer(made.words[1:])))
    mechanism = _mechanism(made, spec, moved, module, domain)
    task = pair_task(model, source, made.words, n=n, seed=seed)
    return Specimen(
        source.name, seed, "A", model, mechanism, task, made.words, decoys, source, made.variables, spec
    )


def _mechanism(
    made: Compiled, spec: Spec, moved: dict[str, str] | None, module: Any, domain: Domain
) -> Mechanism:
    from microtome.zoo.oracle import changes
    from microtome.zoo.spec import sources, true_edges

    edges = true_edges(spec)
    found = changes(module, domain.ids[:: max(1, len(domain) // SAMPLE)], edges)
    open_ = [edge for edge in edges if min(found[edge]) <= CHANGES]
    found |= changes(module, domain.ids, open_) if open_ else {}
    true = {node for edge in edges for node in (edge.split("->")[0],)}
    busy = [node for node, written in sources(spec) if node not in true and written.any()]
    variables = [
        Variable(
            v.name, v.site if moved is None else moved[v.site], v.meaning, v.kind, tuple(map(str, v.values))
        )
        for v in made.variables
    ]
    return Mechanism(
        name=made.program.name,
        n_layers=len(spec.blocks),
        n_heads=spec.n_heads,
        mlp=module.config.intermediate_size > 0,
        nodes=tuple(node for node, _ in sources(spec) if node in true),
        edges=tuple(edges),
        confirmed=tuple(e for e in edges if found[e][0] > CHANGES),
        confirmed_last=tuple(e for e in edges if found[e][1] > CHANGES),
        decoys=tuple(busy),
        variables=tuple(variables),
    )
