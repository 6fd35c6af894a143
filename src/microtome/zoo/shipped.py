"""Trained weights that ship with the package: one safetensors file and one JSON file of how they were made, per model.

The JSON holds the recipe, the curve, what the stored weights (after rounding) measure, the hash of the file and the versions
that made it. Trainings that are expected to fail are kept as a JSON file alone: the curve is the finding.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from microtome.errors import ModelError, TrainingError
from microtome.zoo.training import Measure, Recipe, Trained, fresh

__all__ = ["FOLDER", "Shipped", "names", "read", "record_failure", "write"]

FOLDER = Path(__file__).parent / "weights"
DTYPES = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True, repr=False)
class Shipped:
    """What is known of one training that ships.

    Attributes
    ----------
    outcome: "reached", or "failed" (then there are no weights). recipe, curve: of the training.
    measured: of the stored weights, as float32 after rounding; "accuracy" among them.
    mechanism: as `Mechanism.to_json` tells it of the stored weights; empty where there are none. dtype: in which the weights are stored. seconds: that it took. versions: of what made it.
    """

    name: str
    outcome: str
    recipe: Recipe
    curve: tuple[Mapping[str, float], ...]
    measured: Mapping[str, float]
    dtype: str
    seconds: float
    versions: Mapping[str, str]
    files: Mapping[str, Mapping[str, Any]]
    mechanism: Mapping[str, Any]
    folder: Path

    def __repr__(self) -> str:
        return f"<Shipped {self.name}: {self.outcome}, accuracy {self.measured['accuracy']:.4f}>"

    @property
    def accuracy(self) -> float:
        """Of the stored weights; of a failed training, of its last step."""
        return self.measured["accuracy"]

    def weights(self) -> dict[str, Tensor]:
        """The stored weights as float32.

        Raises
        ------
        ModelError: no weights, a missing file or one that is not what was shipped.
        """
        return {name: t.float() for name, t in self._tensors("weights").items()}

    @property
    def checkpoints(self) -> Mapping[int, Mapping[str, Tensor]]:
        """step -> the stored weights at that step as float32; the last step are the shipped ones.

        Raises as `weights`.
        """
        found: dict[int, dict[str, Tensor]] = {}
        if "checkpoints" in self.files:
            for key, t in self._tensors("checkpoints").items():
                step, name = key.split("/", 1)
                found.setdefault(int(step), {})[name] = t.float()
        found[int(self.curve[-1]["step"])] = self.weights()
        return dict(sorted(found.items()))

    def module(self) -> Any:
        """A `ZooForCausalLM` with the stored weights, in eval mode and without gradients. Raises as `weights`."""
        return filled(self.recipe, self.weights())

    def _tensors(self, what: str) -> dict[str, Tensor]:
        from safetensors.torch import load

        if what not in self.files:
            raise ModelError(
                f"{self.name} ships without {what}",
                why="this training did not reach its accuracy"
                if self.outcome == "failed"
                else "none were kept",
                instead="train it: zoo.build(..., train=True)",
            )
        told = self.files[what]
        path = self.folder / told["file"]
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ModelError(
                f"the weights of {self.name} are missing: {told['file']}",
                why=f"{type(error).__name__}: {error.strerror}",
                instead="install microtome again, or build with train=True",
            ) from error
        digest = hashlib.sha256(content).hexdigest()
        if digest != told["sha256"]:
            raise ModelError(
                f"{told['file']} is not the file that was shipped",
                why=f"its sha256 is {digest[:16]}, of the shipped one {told['sha256'][:16]}",
                instead="install microtome again, or build with train=True",
            )
        return dict(load(content))


def filled(recipe: Recipe, state: Mapping[str, Tensor]) -> Any:
    """The recipe's module with these weights, in eval mode and without gradients."""
    module = fresh(recipe)
    module.load_state_dict(dict(state))
    return module.eval().requires_grad_(False)


def names(folder: Path = FOLDER) -> tuple[str, ...]:
    """Every training that ships, failed ones included."""
    return tuple(sorted(p.name.removesuffix(".json") for p in folder.glob("*.json")))


def read(name: str, folder: Path = FOLDER) -> Shipped:
    """What ships under a name; the weights are read and their hash checked when they are asked for.

    Raises
    ------
    ModelError: nothing of that name, or a file that cannot be read.
    """
    path = folder / f"{name}.json"
    if not path.is_file():
        raise ModelError(
            f"no training called {name!r} ships",
            why=f"there are {', '.join(names(folder)) or 'none'}",
            instead="build it with train=True",
        )
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        recipe = Recipe.from_dict(raw.pop("recipe"))
        return Shipped(**{**raw, "recipe": recipe, "curve": tuple(raw["curve"]), "folder": folder})
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path.name} cannot be read",
            why=f"{type(error).__name__}: {error}",
            instead="install microtome again",
        ) from error


def write(
    trained: Trained,
    measure: Measure,
    *,
    seconds: float,
    dtype: str = "float32",
    keep: tuple[int, ...] = (),
    mechanism: Callable[[Any], Mapping[str, Any]] | None = None,
    folder: Path = FOLDER,
) -> Shipped:
    """Store weights, the checkpoints of the steps `keep` (as float16), how they were made and what `mechanism` says of them.

    The weights are measured again as stored: rounding must not cost the accuracy that is stated. trained.module is given
    the stored weights for it and keeps them.

    Raises
    ------
    TrainingError: the stored weights do not reach the recipe's target.
    """
    recipe, name = trained.recipe, trained.recipe.name
    stored = {k: t.detach().to(DTYPES[dtype]) for k, t in trained.checkpoints[trained.step].items()}
    trained.module.load_state_dict({k: t.float() for k, t in stored.items()})
    with torch.no_grad():
        measured = {k: float(v) for k, v in measure(trained.module).items()}
    if not measured["accuracy"] >= recipe.target:
        raise TrainingError(
            f"{name} stored as {dtype} has accuracy {measured['accuracy']:.4f}, not {recipe.target:g}",
            why="rounding its weights costs more than its target allows",
            instead="store it as float32",
            curve=trained.curve,
        )
    folder.mkdir(parents=True, exist_ok=True)
    files = {"weights": _store(stored, folder / f"{name}.safetensors")}
    early = {
        f"{step}/{k}": t.half()
        for step in keep
        if step != trained.step
        for k, t in trained.checkpoints[step].items()
    }
    if early:
        files["checkpoints"] = _store(early, folder / f"{name}.steps.safetensors")
    told = {} if mechanism is None else mechanism(trained.module)
    more = {"dtype": dtype, "files": files, "mechanism": dict(told)}
    _note(recipe, "reached", trained.curve, measured, seconds, folder, more)
    return read(name, folder)


def record_failure(recipe: Recipe, error: TrainingError, *, seconds: float, folder: Path = FOLDER) -> Shipped:
    """Store the curve of a training that did not reach its accuracy; no weights."""
    measured = {k: v for k, v in error.curve[-1].items() if k not in ("step", "loss")}
    folder.mkdir(parents=True, exist_ok=True)
    more: dict[str, Any] = {"dtype": "", "files": {}, "mechanism": {}}
    _note(recipe, "failed", error.curve, measured, seconds, folder, more)
    return read(recipe.name, folder)


def _store(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    from safetensors.torch import save

    content = save({k: t.cpu().contiguous() for k, t in tensors.items()}, metadata={"format": "pt"})
    path.write_bytes(content)
    return {"file": path.name, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def _note(
    recipe: Recipe,
    outcome: str,
    curve: tuple[Mapping[str, float], ...],
    measured: Mapping[str, float],
    seconds: float,
    folder: Path,
    more: Mapping[str, Any],
) -> None:
    # the first loss is that of no step: left out, since JSON has no NaN
    points = [{k: _number(v) for k, v in point.items() if v == v} for point in curve]
    told = {
        "name": recipe.name,
        "outcome": outcome,
        "recipe": recipe.to_dict(),
        "measured": {k: _number(v) for k, v in measured.items()},
        "seconds": round(seconds, 1),
        "versions": {"python": platform.python_version()}
        | {k: version(k) for k in ("torch", "transformers")},
        **more,
        "curve": points,
    }
    text = json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / f"{recipe.name}.json").write_text(text + "\n", encoding="utf-8")


def _number(value: float) -> float | int:
    """Six digits; whole numbers as such."""
    short = float(f"{value:.6g}")
    return int(short) if short.is_integer() and abs(short) < 1e9 else short
