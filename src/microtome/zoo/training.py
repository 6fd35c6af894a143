"""Training of the zoo's models: from a recipe and a seed to weights, a curve and checkpoints, or to an error with the curve.

A model is only returned when it reached the accuracy that its recipe demands. The bits follow from the seed: batches are
drawn by step, not by call order, and one thread computes, so that sums have one order on every machine of a kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from microtome.errors import ModelError, TrainingError
from microtome.results.events import progress
from microtome.results.seeds import child

__all__ = ["Interrupted", "Loss", "Measure", "Optimiser", "Recipe", "Trained", "train"]

Loss = Callable[[Any, torch.Generator], Tensor]
"""(module, generator of this step) -> the scalar to be made small."""
Measure = Callable[[Any], Mapping[str, float]]
"""(module) -> numbers by name, "accuracy" (0 to 1) among them; called without gradients."""
State = Mapping[str, Tensor]
SCHEDULES = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class Optimiser:
    """AdamW on all parameters. warmup: steps in which the rate rises from 0; schedule: how it then falls to 0 at the end
    ("constant": not at all). clip: largest norm of the gradient, None for any.
    """

    lr: float = 1e-3
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    warmup: int = 0
    schedule: str = "constant"
    clip: float | None = None

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of step 0 .. steps - 1."""
        if step < self.warmup:
            return self.lr * (step + 1) / (self.warmup + 1)
        left = 1 - (step - self.warmup) / max(1, steps - self.warmup)
        shape = {"constant": 1.0, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2}
        return self.lr * shape[self.schedule]


@dataclass(frozen=True)
class Recipe:
    """All that a training follows from.

    Attributes
    ----------
    name: of the model. config: fields of `ZooConfig` (or whatever makes the module). seed: of weights and data.
    steps: of the optimiser. target: accuracy (0 to 1) that the last weights must have.
    batch: examples of a step; 0: all of them. every: steps between two measurements.
    checkpoints: steps whose weights are kept (0: before the first step); the last ones always are.
    stop_at: accuracy at which training ends before its last step. data: what the task needs to make its data.
    """

    name: str
    config: Mapping[str, Any]
    seed: int
    steps: int
    target: float
    batch: int = 0
    every: int = 100
    optimiser: Optimiser = field(default_factory=Optimiser)
    checkpoints: tuple[int, ...] = ()
    stop_at: float | None = None
    data: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        bad = [
            what
            for what, fine in (
                (f"steps={self.steps}", self.steps > 0),
                (f"every={self.every}", self.every > 0),
                (f"batch={self.batch}", self.batch >= 0),
                (f"target={self.target}", 0 < self.target <= 1),
                (f"checkpoints={self.checkpoints}", all(0 <= c <= self.steps for c in self.checkpoints)),
                (f"schedule={self.optimiser.schedule!r}", self.optimiser.schedule in SCHEDULES),
            )
            if not fine
        ]
        if bad:
            raise ModelError(
                f"the recipe of {self.name} cannot be followed: {', '.join(bad)}",
                why="steps and every are positive, target lies in (0, 1], checkpoints within the steps",
                instead=f"schedules are {', '.join(SCHEDULES)}",
            )

    def seed_of(self, what: str) -> int:
        """The seed of one part of this training."""
        return child(self.seed, f"zoo/{self.name}/{what}")

    def to_dict(self) -> dict[str, Any]:
        """As plain data (JSON)."""
        return {**asdict(self), "config": dict(self.config), "data": dict(self.data)}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Recipe:
        """What `to_dict` gave, also after a way through JSON."""
        optimiser = {**raw["optimiser"], "betas": tuple(raw["optimiser"]["betas"])}
        return cls(**{**raw, "optimiser": Optimiser(**optimiser), "checkpoints": tuple(raw["checkpoints"])})


@dataclass(frozen=True, repr=False)
class Trained:
    """What a training gave: the module (eval mode, no gradients) with the weights of the last step.

    curve: one mapping per measurement, "step" (0: before the first), "loss" (of the batch before it) and what was measured.
    checkpoints: step -> the weights then, the last step included.
    """

    recipe: Recipe
    module: Any
    curve: tuple[Mapping[str, float], ...]
    checkpoints: Mapping[int, State]

    @property
    def accuracy(self) -> float:
        """Of the last weights."""
        return self.curve[-1]["accuracy"]

    @property
    def step(self) -> int:
        """The last step."""
        return int(self.curve[-1]["step"])

    def __repr__(self) -> str:
        return f"<Trained {self.recipe.name}, seed {self.recipe.seed}: accuracy {self.accuracy:.4f} at step {self.step}>"


class Interrupted(KeyboardInterrupt):
    """Stopped by the user. curve and checkpoints hold what was done; there is no model."""

    def __init__(self, curve: tuple[Mapping[str, float], ...], checkpoints: Mapping[int, State]) -> None:
        super().__init__(
            f"stopped with checkpoints at the steps {', '.join(map(str, checkpoints)) or 'none'}"
        )
        self.curve, self.checkpoints = curve, checkpoints


def train(
    recipe: Recipe,
    loss: Loss,
    measure: Measure,
    *,
    module: nn.Module | None = None,
    folder: str | Path | None = None,
) -> Trained:
    """Follow a recipe. The same recipe gives the same bits on machines of one kind.

    Parameters
    ----------
    loss: (module, generator of this step) -> scalar; measure: (module) -> numbers, "accuracy" among them.
    module: a fresh module whose parameters are then trained in place (default: a `ZooForCausalLM` from recipe.config and
        the recipe's seed). folder: where each checkpoint is written when it is reached ("step-000100.safetensors").

    Raises
    ------
    TrainingError: the target was not reached, or the loss is not finite; with the curve. No model is returned.
    Interrupted: by Ctrl-C, with the curve and the checkpoints so far.
    """
    module = fresh(recipe) if module is None else module
    curve: list[Mapping[str, float]] = []
    kept: dict[int, State] = {}
    try:
        with one_thread():
            _run(recipe, module, loss, measure, curve, kept, None if folder is None else Path(folder))
    except KeyboardInterrupt:
        raise Interrupted(tuple(curve), kept) from None
    finally:
        module.eval().requires_grad_(False)
    if not curve[-1]["accuracy"] >= recipe.target:
        raise TrainingError(
            f"{recipe.name} did not reach its accuracy: {curve[-1]['accuracy']:.4f} of {recipe.target:g} "
            f"after {int(curve[-1]['step'])} steps",
            why=f"accuracy by step: {told(curve)}",
            instead="another seed or more steps; what failed is no ground truth and is not returned",
            curve=curve,
        )
    return Trained(recipe, module, tuple(curve), kept)


def fresh(recipe: Recipe) -> Any:
    """The module before the first step, from the recipe's config and seed."""
    from microtome.zoo.module import ZooConfig, make

    return make(ZooConfig(**recipe.config), seed=recipe.seed_of("weights"))


def told(curve: list[Mapping[str, float]] | tuple[Mapping[str, float], ...], most: int = 12) -> str:
    """A curve in one line: step and accuracy at evenly spaced measurements, first and last included."""
    last = len(curve) - 1
    picked = dict.fromkeys(round(i * last / max(1, most - 1)) for i in range(most)) if last > 0 else {0: None}
    return ", ".join(f"{int(curve[i]['step'])}: {curve[i]['accuracy']:.3f}" for i in picked if i <= last)


def _run(
    recipe: Recipe,
    module: nn.Module,
    loss: Loss,
    measure: Measure,
    curve: list[Mapping[str, float]],
    kept: dict[int, State],
    folder: Path | None,
) -> None:
    module.train().requires_grad_(True)
    settings = recipe.optimiser
    adam = torch.optim.AdamW(
        module.parameters(), lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay
    )
    value = math.nan
    for step in range(recipe.steps + 1):
        last = step == recipe.steps
        if last or step % recipe.every == 0:
            curve.append({"step": float(step), "loss": value, **_measured(module, measure)})
            progress(step, recipe.steps, "steps", f"accuracy {curve[-1]['accuracy']:.3f}")
            last |= recipe.stop_at is not None and curve[-1]["accuracy"] >= recipe.stop_at
        if last or step in recipe.checkpoints:
            kept[step] = {name: t.detach().clone() for name, t in module.state_dict().items()}
            _write(kept[step], folder, step)
        if last:
            return
        for group in adam.param_groups:
            group["lr"] = settings.rate(step, recipe.steps)
        generator = torch.Generator().manual_seed(recipe.seed_of(f"step/{step}"))
        adam.zero_grad(set_to_none=True)
        out = loss(module, generator)
        value = float(out.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss of {recipe.name} is {value} at step {step}",
                why=f"accuracy by step: {told(curve)}",
                instead="a smaller learning rate",
                curve=curve,
            )
        out.backward()
        if settings.clip is not None:
            nn.utils.clip_grad_norm_(module.parameters(), settings.clip)
        adam.step()


def _measured(module: nn.Module, measure: Measure) -> dict[str, float]:
    module.eval()
    with torch.no_grad():
        found = {name: float(v) for name, v in measure(module).items()}
    module.train()
    return found


def _write(state: State, folder: Path | None, step: int) -> None:
    if folder is None:
        return
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:06d}.safetensors"
    half = path.with_suffix(".part")
    save_file({name: t.contiguous() for name, t in state.items()}, half, metadata={"step": str(step)})
    half.replace(path)  # a file with its last name is a whole one


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread, as before afterwards: sums come out the same whatever the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
