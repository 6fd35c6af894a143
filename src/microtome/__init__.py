"""Microtome: a mechanistic-interpretability workbench that shows no number without its null.

    import microtome as mt

    model = mt.load("smollm2-135m-instruct")
    task = mt.task("ioi", model, n=16, seed=0)
    result = mt.methods.activation_patching(model, task, sites="L*.resid_pre")

Names are imported when they are first used: importing the package needs neither torch nor pandas.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from microtome.facade import Model

# name -> (module, attribute); without an attribute the name is the module itself. __init__.pyi says the same to
# type checkers and editors; tests/test_house_rules.py holds the two together.
_HOME = {
    "Ablate": ("microtome.trace.edits", "Ablate"),
    "Direction": ("microtome.directions.direction", "Direction"),
    "Edit": ("microtome.trace.edits", "Edit"),
    "Keep": ("microtome.trace.edits", "Keep"),
    "Patch": ("microtome.trace.edits", "Patch"),
    "Remove": ("microtome.trace.edits", "Remove"),
    "Result": ("microtome.results", "Result"),
    "Steer": ("microtome.trace.edits", "Steer"),
    "circuits": ("microtome.circuits", ""),
    "corpus": ("microtome.tasks.corpus", "corpus"),
    "dissect": ("microtome.dissect", ""),
    "errors": ("microtome.errors", ""),
    "expect": ("microtome.lab.expecting", "expect"),
    "labelled": ("microtome.tasks.dataset", "labelled"),
    "methods": ("microtome.methods", ""),
    "metrics": ("microtome.metrics", ""),
    "open": ("microtome.results", "open_result"),
    "pairs": ("microtome.tasks.files", "pairs"),
    "query": ("microtome.lab.questions", "query"),
    "store": ("microtome.activations.capturing", "capture"),
    "study": ("microtome.lab.study", "study"),
    "task": ("microtome.tasks.registry", "task"),
    "zoo": ("microtome.zoo", ""),
}

__all__ = [
    "Ablate",
    "Direction",
    "Edit",
    "Keep",
    "Patch",
    "Remove",
    "Result",
    "Steer",
    "circuits",
    "corpus",
    "dissect",
    "errors",
    "expect",
    "labelled",
    "load",
    "methods",
    "metrics",
    "open",
    "pairs",
    "query",
    "store",
    "study",
    "task",
    "zoo",
]


def load(
    name_or_module: Any = "smollm2-135m-instruct",
    *,
    tokenizer: Any = None,
    dtype: Any = None,
    device: Any = None,
    revision: str | None = None,
    attn_implementation: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Model:
    """A causal language model with standard names on top; its Hugging Face module stays as it is.

    Parameters
    ----------
    name_or_module: the embedded model (default), a local folder, a `.gguf` file, a hub id (from the local cache; over
        the network only with `MICROTOME_ONLINE=1`), or a transformers module that you hold.
    tokenizer: used instead of the model's own; a module without one takes prompts as token ids.
    dtype, device: default: chosen, and explained in `model.reasons`.
    revision: branch, tag or commit of a hub model.
    attn_implementation: "sdpa", "eager", ...; default: what transformers chooses.
    progress: receives a sentence per slow step.

    Raises
    ------
    ModelError: no such model, files missing or corrupt, not a causal decoder.
    ResourceError: not enough memory or disk, or a registry or hub that cannot be reached.
    """
    from microtome.facade import Model
    from microtome.model.load import load_module

    return Model(
        load_module(
            name_or_module, tokenizer=tokenizer, dtype=dtype, device=device, revision=revision,
            attn_implementation=attn_implementation, progress=progress,
        )
    )  # fmt: skip


def __getattr__(name: str) -> Any:
    import importlib

    if name == "__version__":
        from importlib.metadata import version

        found: Any = version("microtome")
    elif name in _HOME:
        module, attribute = _HOME[name]
        found = importlib.import_module(module)
        if attribute:
            found = getattr(found, attribute)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*__all__, "__version__", "__doc__", "__file__", "__name__"})
