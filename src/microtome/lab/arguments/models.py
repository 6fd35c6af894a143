"""Models: how to load one again, checked by the hash of its weights and config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from microtome.errors import LabError

from .opening import Opening
from .values import TAG, bad, field, json_text
from .writing import Writing

if TYPE_CHECKING:
    from microtome.facade import Model

__all__ = ["Loader", "load_again", "recipe_of"]

_FOLDER = "folder"
"""The option of zoo.build that says where checkpoints are written: it changes no number, and no record decides where files go."""
_LOADED = ("embedded", "folder", "gguf", "hub")


class NoFiles:
    """Where nothing can be kept: a recipe is small."""

    def put(self, content: bytes, suffix: str) -> str:
        """Refuse. Raises LabError."""
        raise LabError(
            "a recipe of a model holds no files", why="it is small", instead="keep the model as a folder"
        )

    def get(self, key: str) -> bytes:
        """Refuse. Raises LabError."""
        raise LabError(
            f"a recipe of a model names the file {key!r}",
            why="recipes hold no files",
            instead="take the record from a copy",
        )


def recipe_of(model: Any) -> dict[str, Any] | str:
    """How to load a model again, as JSON-able data; or why that cannot be done, as text.

    Type, device and attention implementation are those that it has now. The weights are compared by their hash once they are
    loaded again: a model that was changed in place is refused then.
    """
    asked = model.asked
    if asked is None:
        return f"{model.name} is held in memory, and nothing says how it was made; save it (save_pretrained) and load the folder"
    if asked["kind"] == "zoo":
        return _zoo_recipe(model, asked)
    if not asked["own_tokenizer"]:
        return f"{model.name} was loaded with a tokenizer that the caller gave, which is not kept"
    numerics = model.numerics
    return {
        "kind": asked["kind"],
        "name": asked["name"],
        "revision": asked["revision"],
        "dtype": numerics["dtype"],
        "attention": numerics["attention"],
        "device": str(next(model.hf.parameters()).device),
    }


def _zoo_recipe(model: Any, asked: Mapping[str, Any]) -> dict[str, Any] | str:
    writing = Writing(NoFiles(), recipe_of, lambda _: False, [])
    options = {str(name): writing.value(v) for name, v in asked["options"].items() if name != _FOLDER}
    if writing.why:
        return f"{model.name} was built with options that cannot be kept: {'; '.join(writing.why)}"
    step = {"step": asked["step"]} if "step" in asked else {}
    return {"kind": "zoo", "name": asked["name"], "seed": asked["seed"], "options": options, **step}


class Loader:
    """Loads models by their recipes; a specimen of the zoo is built once, for its checkpoints and for sources of tasks too."""

    def __init__(self) -> None:
        self._built: dict[str, Any] = {}

    def __call__(self, recipe: Mapping[str, Any]) -> Model:
        """The model of a recipe. Raises as `load_again`."""
        import microtome

        kind = recipe.get("kind")
        if kind == "zoo":
            return self._of_zoo(recipe)
        if kind not in _LOADED:
            raise bad(f"the recipe of the model {recipe.get('name')!r}", f"its kind is {kind!r}")
        name, revision = field(recipe, "name", str), recipe.get("revision")
        return microtome.load(
            name,
            dtype=field(recipe, "dtype", str),
            device=field(recipe, "device", str),
            attn_implementation=field(recipe, "attention", str),
            revision=field(recipe, "revision", str) if revision is not None else None,
        )

    def _of_zoo(self, recipe: Mapping[str, Any]) -> Model:
        made = self.specimen(recipe)
        if "step" not in recipe:
            return made.model
        found = next((model for step, model in made.checkpoints() if step == recipe["step"]), None)
        if found is None:
            raise bad(f"the model {recipe['name']!r}", f"it has no checkpoint at step {recipe['step']!r}")
        return found

    def specimen(self, recipe: Mapping[str, Any]) -> Any:
        """The specimen of the zoo that a recipe names. Raises as `zoo.build`, and LabError for a recipe of another kind."""
        from microtome import zoo

        if recipe.get("kind") != "zoo":
            raise bad(f"the recipe of the model {recipe.get('name')!r}", "it is none of the zoo")
        key = json_text({name: v for name, v in recipe.items() if name != "step"})
        if key not in self._built:
            opening = Opening(NoFiles(), self, _no_result)
            options = {name: opening.value(v) for name, v in field(recipe, "options", dict).items()}
            if _FOLDER in options:
                raise bad(f"the recipe of the model {recipe.get('name')!r}", f"it has the option {_FOLDER!r}")
            seed = field(recipe, "seed", int)
            self._built[key] = zoo.build(field(recipe, "name", str), seed=seed, **options)
        return self._built[key]


def load_again(recipe: Mapping[str, Any]) -> Model:
    """The model of a recipe of `recipe_of`, as it is now: whoever calls compares the hash.

    Raises
    ------
    LabError: no such kind, or a recipe that lacks a part. ModelError, ResourceError: as `microtome.load` and `zoo.build`.
    """
    return Loader()(recipe)


def _no_result(query: str) -> NoReturn:
    raise bad("the recipe of a model", f"it names the result of the query {query!r}")


def write_model(writing: Writing, value: Any, depth: int) -> Any:
    """A model by its recipe and hash."""
    recipe = writing.model_of(value)
    if isinstance(recipe, str):
        return writing.lost(value, recipe)
    return {TAG: "model", "recipe": dict(recipe), "hash": value.hash}


def read_model(opening: Opening, data: Mapping[str, Any], depth: int) -> Any:
    """The model of the recipe. Raises LabError for one that cannot be loaded or has another hash."""
    return opening.model(field(data, "recipe", dict), field(data, "hash", str))
