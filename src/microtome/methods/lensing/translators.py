"""One affine map per layer from the stream there to the stream at the end, as a value: made for one model, saved, refused for others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from microtome.errors import ModelError, ResourceError
from microtome.results.frozen import FrozenDict, digest, freeze_json

if TYPE_CHECKING:
    from microtome.facade import Model

__all__ = ["Translators", "block_digest", "identity", "stream_sites"]

_FILE, _CARD = "lens.safetensors", "lens.json"


@dataclass(frozen=True, eq=False, repr=False)
class Translators:
    """A lens: logits = unembed(final_norm(x @ matrix + offset)) with x the stream before a layer.

    kind: "logit" (no maps: every layer is read as it is), "tuned", "jacobian" or "constant".
    matrices: layer -> [d_model, d_model]; offsets: layer -> [d_model], float32 on the CPU. A layer without a map is read as it is.
    model: hash of the model; made: how it was fitted, JSON-able, with the digests of the blocks that it saw in "blocks".

    Raises
    ------
    ModelError: maps that are not square, of different widths, or not finite.
    """

    kind: str
    matrices: Mapping[int, Tensor] = field(default_factory=dict)
    offsets: Mapping[int, Tensor] = field(default_factory=dict)
    model: str = ""
    made: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        put = object.__setattr__
        matrices = {
            int(k): torch.as_tensor(v).detach().to("cpu", torch.float32) for k, v in self.matrices.items()
        }
        offsets = {
            int(k): torch.as_tensor(v).detach().to("cpu", torch.float32) for k, v in self.offsets.items()
        }
        widths = {n for v in (*matrices.values(), *offsets.values()) for n in v.shape}
        flat = any(v.dim() != 2 for v in matrices.values()) or any(v.dim() != 1 for v in offsets.values())
        if len(widths) > 1 or flat or set(offsets) - set(matrices):
            raise ModelError("these are no maps of one stream", why=f"widths are {sorted(widths)}, or an offset has no matrix",
                             instead="[d_model, d_model] and [d_model] per layer")  # fmt: skip
        if not all(bool(torch.isfinite(v).all()) for v in (*matrices.values(), *offsets.values())):
            raise ModelError(f"a {self.kind} lens is not finite", why="some of its numbers are NaN or infinite", instead="fit it again on other text, or with smaller steps")  # fmt: skip
        put(self, "matrices", FrozenDict(matrices))  # type: ignore[arg-type]
        put(self, "offsets", FrozenDict(offsets))  # type: ignore[arg-type]
        put(self, "made", FrozenDict(freeze_json(dict(self.made), "made")))

    def __repr__(self) -> str:
        return f"<{self.kind} lens: {len(self.matrices)} layers, model {self.model[:12] or 'any'}>"

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that have a map."""
        return tuple(sorted(self.matrices))

    @cached_property
    def hash(self) -> str:
        """Hex digest of kind, maps and model."""
        parts = [self.kind.encode(), self.model.encode()]
        parts += [
            t.numpy().tobytes() for maps in (self.matrices, self.offsets) for _, t in sorted(maps.items())
        ]
        return digest(b"".join(parts))

    def check(self, model: Model) -> None:
        """Refuse use on another model.

        Raises
        ------
        ModelError: another hash, another width or a layer that the model does not have.
        """
        if self.model and self.model != model.hash:
            raise ModelError(f"this {self.kind} lens was fitted to another model ({self.model[:12]})", why=f"this one is {model.hash[:12]}: the same numbers mean something else there",
                             instead="fit it again")  # fmt: skip
        width = next((v.shape[0] for v in self.matrices.values()), model.facts.d_model)
        if width != model.facts.d_model or any(not 0 <= k < model.facts.n_layers for k in self.matrices):
            raise ModelError(f"this {self.kind} lens has maps of width {width} for layers {self.layers[:4]}...", why=f"the model has {model.facts.n_layers} layers of width {model.facts.d_model}",
                             instead="a lens of this model")  # fmt: skip

    def carry(self, layer: int | None, stream: Tensor) -> Tensor:
        """The stream before a layer (None: at the end) as this lens has it at the end. Shapes: [..., d_model] -> same."""
        if layer is None or layer not in self.matrices:
            return stream
        out = stream @ self.matrices[layer].to(stream)
        return out if layer not in self.offsets else out + self.offsets[layer].to(stream)

    @torch.no_grad()
    def logits(self, model: Model, layer: int | None, stream: Tensor) -> Tensor:
        """What the model would say if it stopped there. Shapes: [n, d_model] -> [n, d_vocab]."""
        return model.binding.unembed(self.carry(layer, stream)[None])[0]

    def save(self, folder: str | Path) -> Path:
        """Write `lens.safetensors` and `lens.json` into a folder, which is made. Returns the folder."""
        from safetensors.torch import save_file

        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"{name}.{k}": v.contiguous()
            for name, maps in (("matrix", self.matrices), ("offset", self.offsets))
            for k, v in maps.items()
        }
        save_file(tensors or {"empty": torch.zeros(1)}, str(target / _FILE))
        card = {
            "kind": self.kind,
            "model": self.model,
            "made": dict(self.made),
            "hash": self.hash,
            "schema_version": 1,
        }
        (target / _CARD).write_text(json.dumps(card, indent=1, sort_keys=True), encoding="utf-8")
        return target

    @classmethod
    def load(cls, folder: str | Path, model: Model | None = None) -> Translators:
        """Read what `save` wrote; with a model, refuse a lens of another one.

        Raises
        ------
        ResourceError: a file is missing, half-written, changed, or not what `save` writes. ModelError: as `check`.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        source = Path(folder)
        try:
            card = json.loads((source / _CARD).read_text(encoding="utf-8"))
            found = load_file(str(source / _FILE))
            maps: dict[str, dict[int, Tensor]] = {"matrix": {}, "offset": {}}
            for name, tensor in found.items():
                if name != "empty":
                    what, layer = name.split(".")
                    maps[what][int(layer)] = tensor
            lens = cls(card["kind"], maps["matrix"], maps["offset"], card["model"], card["made"])
            told = card["hash"]
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            raise ResourceError(f"{source} is no saved lens", why=f"{type(error).__name__}: {error}",
                                instead=f"a folder with {_FILE} and {_CARD}") from error  # fmt: skip
        if lens.hash != told:
            raise ResourceError(f"the lens in {source} is not the one that was saved", why="its numbers have another hash than its card says",
                                instead="save it again")  # fmt: skip
        if model is not None:
            lens.check(model)
        return lens

    def __query__(self) -> dict[str, Any]:
        return {"lens": self.kind, "hash": self.hash, "rerunnable": False}


def identity(model: Model) -> Translators:
    """The logit lens (nostalgebraist 2020) as one with maps that do nothing: what an untrained tuned lens is."""
    d = model.facts.d_model
    maps = {k: torch.eye(d) for k in range(model.facts.n_layers)}
    return Translators(
        "tuned",
        maps,
        {k: torch.zeros(d) for k in maps},
        model.hash,
        {"start": "identity", "steps": 0, "blocks": []},
    )


def stream_sites(model: Model, layers: Sequence[int] | None) -> list[int]:
    """Layers as asked (None: all), in order.

    Raises
    ------
    ModelError: one that is not there, or none.
    """
    found = list(range(model.facts.n_layers)) if layers is None else sorted(set(layers))
    bad = [k for k in found if not 0 <= k < model.facts.n_layers]
    if bad or not found:
        raise ModelError(f"layers {bad or 'none'} to fit a lens to", why=f"the model has layers 0 to {model.facts.n_layers - 1}",
                         instead="layers=None for all")  # fmt: skip
    return found


def block_digest(ids: Sequence[int]) -> str:
    """A short digest of a block of tokens, by which a lens knows what it was fitted on."""
    return hashlib.blake2b(json.dumps([int(i) for i in ids]).encode(), digest_size=6).hexdigest()
