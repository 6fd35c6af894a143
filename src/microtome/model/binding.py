"""Where everything is: a model's module tree bound to the table of points.

`bind` resolves modules by the vocabulary of names and the family's semantics; `Binding.tap` says where a point can
be touched. Nothing here runs the model or installs a hook. `slots.py` finds the parts of a layer, `taps.py` the points in
them, `lacks.py` says what is not there, `guess.py` stands in for a family that nobody registered.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from microtome.errors import ModelError, SiteError
from microtome.model import names
from microtome.model.facts import Facts, LayerFacts
from microtome.model.family import PARALLEL, Family, find
from microtome.model.guess import guess_family
from microtome.model.lacks import missing, not_additive
from microtome.model.norms import Norm, no_norm, probe
from microtome.model.slots import Slots, find_slots, multiplies, tensor
from microtome.model.taps import Tap, place
from microtome.points import POINTS

BOTH_WAYS = "every token sees the whole prompt, so that a further token changes what stands before it"


class Binding:
    """A model's module tree with standard names. Read-only; holds the module, changes nothing."""

    def __init__(
        self,
        hf: nn.Module,
        family: Family,
        *,
        known: bool,
        stack: Mapping[str, str | None],
        slots: list[Slots],
    ) -> None:
        self.hf, self.family, self.known = hf, family, known
        self.config: Any = hf.config
        self.stack, self.slots = stack, slots
        self.tokenizer: Any = None
        self.refused: dict[tuple[str, int | None], str] = {}
        self.limits: dict[str, str] = {}
        self._norms: dict[str, Norm] = {}

    def module(self, path: str) -> nn.Module:
        """A submodule by its path."""
        return self.hf.get_submodule(path)

    @cached_property
    def layers(self) -> list[nn.Module]:
        """The decoder layers, in order."""
        return [self.module(s.path) for s in self.slots]

    @cached_property
    def mixes(self) -> bool:
        """True when some layer keeps another state than keys and values (state-space, linear attention, convolution)."""
        return any(
            s.kind != "attention" or names.child(layer, names.MIXERS) is not None
            for s, layer in zip(self.slots, self.layers, strict=True)
        )

    @cached_property
    def layer_of_attention(self) -> dict[int, int]:
        """id of an attention module -> its layer."""
        return {
            id(self.module(path)): i for i, s in enumerate(self.slots) if (path := s.at("attn")) is not None
        }

    def stack_path(self, part: str) -> str:
        """Path of a part of the whole model (embed, final_norm, head, ...).

        Raises
        ------
        SiteError: this model has no such part.
        """
        path = self.stack.get(part)
        if path is None:
            raise SiteError(
                f"this model has no {part}", why="no module of that name", instead="see `model.facts`"
            )
        return path

    def norm(self, path: str) -> Norm:
        """The numbers of a norm module, probed once."""
        if path not in self._norms:
            self._norms[path] = probe(self.module(path), self._norm_width(path), path)
        return self._norms[path]

    def _norm_width(self, path: str) -> tuple[int, ...]:
        weight = getattr(self.module(path), "weight", None)
        return tuple(weight.shape) if isinstance(weight, Tensor) else (int(self.config.hidden_size),)

    @cached_property
    def final_norm(self) -> Norm:
        """The final norm's numbers; those of the identity where there is none."""
        if self.stack.get("final_norm") is None:
            weight = next(self.hf.parameters())
            return no_norm(
                torch.empty(int(self.config.hidden_size), dtype=weight.dtype, device=weight.device)
            )
        return self.norm(self.stack_path("final_norm"))

    @property
    def causal(self) -> bool:
        """False where the family's config says that tokens see later ones."""
        return self.family.causal(self.config)

    @property
    def positions(self) -> str:
        """How this model knows positions: the family's way, "none" where its table was left out."""
        absent = self.family.positions == "learned" and self.stack.get("pos") is None
        return "none" if absent else self.family.positions

    @property
    def end(self) -> str:
        """The module whose input is the stream after the last layer: the final norm, or what follows without one."""
        return next(
            p for p in (self.stack.get("final_norm"), self.stack.get("project_out"), self.stack["head"]) if p
        )

    def unembed(self, resid: Tensor, columns: Tensor | None = None) -> Tensor:
        """The final norm and `readout`. Shapes: [..., d_model] -> [..., d_vocab] or [..., len(columns)]."""
        norm = self.stack.get("final_norm")
        return self.readout(resid if norm is None else self.module(norm)(resid), columns)

    def readout(self, normed: Tensor, columns: Tensor | None = None) -> Tensor:
        """Unembed what left the final norm.

        Shapes: [..., d_model] -> [..., d_vocab], or [..., len(columns)] with only those rows of W_U multiplied.

        Raises
        ------
        SiteError: the certificate found that this does not give the model's logits.
        """
        if (reason := self.refused.get(("final_norm_out", None))) is not None:
            raise SiteError(
                "this model's unembedding is not known", why=reason, instead="read logits of a run"
            )
        if (path := self.stack.get("project_out")) is not None:
            normed = self.module(path)(normed)
        head = self.module(self.stack_path("head"))
        if columns is None:
            logits = head(normed)
        else:
            bias = getattr(head, "bias", None)
            weight: Tensor = head.weight  # type: ignore[assignment]
            logits = nn.functional.linear(normed, weight[columns], None if bias is None else bias[columns])
        scale, cap = self.family.logit_scale(self.config), self.family.softcap(self.config)
        if scale != 1.0:
            logits = logits * scale
        return torch.tanh(logits / cap) * cap if cap else logits

    @cached_property
    def facts(self) -> Facts:
        """The model's facts; points refused later by the certificate are added to `lacks`."""
        return _facts(self)

    def refuse(self, point: str, layer: int | None, reason: str) -> None:
        """Withdraw a point that a check found wrong; the facts are made anew."""
        self.refused[point, layer] = reason
        self.__dict__.pop("facts", None)

    def limit(self, what: str, reason: str) -> None:
        """Withdraw a way of running: "cache", "generation", "right padding" or "left padding"."""
        self.limits[what] = reason

    def lacking(self, point: str, layer: int | None) -> str | None:
        """The reason why a point is not there, or None when it is."""
        if (point, layer) in self.refused:
            return self.refused[point, layer]
        reason = missing(self, point, None if layer is None else self.slots[layer])
        if reason is None and point != "logits" and not self._place(point, layer).module:
            return "no module was found where it would be touched"
        return reason

    def tap(self, point: str, layer: int | None = None) -> Tap:
        """Where a point can be touched.

        Raises
        ------
        SiteError: this family lacks the point, with the reason.
        """
        reason = self.lacking(point, layer)
        if reason is not None:
            where = point if layer is None else f"L{layer}.{point}"
            raise SiteError(
                f"this model has no {where}", why=reason, instead="`microtome models check` lists what it has"
            )
        return self._place(point, layer)

    def _place(self, point: str, layer: int | None) -> Tap:
        return place(self, point, layer)


def _facts(b: Binding) -> Facts:
    config = b.config
    layers = []
    for i, s in enumerate(b.slots):
        lacks = {
            p.name: r
            for p in POINTS.values()
            if p.scope == "layer" and (r := b.lacking(p.name, i)) is not None
        }
        layers.append(LayerFacts(
            i, s.kind, s.n_heads, s.n_kv, s.d_head, s.d_value, s.d_mlp, s.mlp_kind, s.window, s.style == PARALLEL, lacks,
        ))  # fmt: skip
    head, embed = b.module(b.stack_path("head")), b.module(b.stack_path("embed"))
    reason = not_additive(b)
    return Facts(
        family=b.family.name,
        model_type=config.model_type,
        n_layers=len(b.slots),
        d_model=int(config.hidden_size),
        d_vocab=tensor(head, "weight").shape[0],
        n_ctx=getattr(config, "max_position_embeddings", None) if b.positions != "alibi" else None,
        layers=tuple(layers),
        lacks={
            p.name: r
            for p in POINTS.values()
            if p.scope == "stream" and (r := b.lacking(p.name, None)) is not None
        },
        n_params=sum(p.numel() for p in b.hf.parameters()),
        tied=head.weight is embed.weight,
        softcap=b.family.softcap(config),
        logit_scale=b.family.logit_scale(config),
        positions=b.positions,
        additive=not reason,
        not_additive=reason,
        known_family=b.known,
    )


def bind(hf: nn.Module) -> Binding:
    """Bind a causal language model's module tree to the table of points.

    Raises
    ------
    ModelError: it is not a decoder-only transformer whose parts can be found.
    """
    config = getattr(hf, "config", None)
    if config is None or not hasattr(config, "model_type"):
        raise ModelError(f"{type(hf).__name__} is not a transformers model", why="it has no config",
                         instead="pass a causal language model of transformers")  # fmt: skip
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{type(hf).__name__} is an encoder-decoder", why="Microtome reads decoder-only models",
                         instead="pass a causal language model")  # fmt: skip
    if getattr(config, "use_bidirectional_attention", None) in (True, "all"):
        raise ModelError(f"this {type(hf).__name__} lets tokens see later tokens", why="its config says use_bidirectional_attention",
                         instead="pass a causal language model")  # fmt: skip
    prefix_name = str(getattr(hf, "base_model_prefix", ""))
    base_name = prefix_name if prefix_name and hasattr(hf, prefix_name) else ""
    base = hf.get_submodule(base_name) if base_name else hf
    head = names.child(hf, names.HEAD)
    head = head if head and multiplies(hf.get_submodule(head)) else None
    found = {part: names.child(base, vocabulary) for part, vocabulary in (
        ("layers", names.LAYERS), ("embed", names.EMBED), ("pos", names.POS), ("embed_norm", names.EMBED_NORM),
        ("final_norm", names.FINAL_NORM), ("project_out", names.PROJECT_OUT),
    )}  # fmt: skip
    needed = ["layers", "embed"] + ([] if find(config.model_type) else ["final_norm"])
    missing = [part for part in needed if found[part] is None] + ([] if head else ["lm_head"])
    if missing:
        raise ModelError(
            f"{type(hf).__name__} does not resolve to a decoder-only transformer",
            why=f"no module was found for: {', '.join(missing)}",
            instead="pass a causal language model (…ForCausalLM), or register a family (CONTRIBUTING.md)",
        )
    prefix = f"{base_name}." if base_name else ""
    stack: dict[str, str | None] = {k: prefix + v if v else None for k, v in found.items()}
    stack["head"] = head
    family = find(config.model_type)
    known = family is not None
    layer_list = hf.get_submodule(stack["layers"] or "")
    slots = [
        find_slots(config, family, layer, i, f"{stack['layers']}.{i}")
        for i, layer in enumerate(layer_list.children())
    ]
    if family is None:
        family = guess_family(config, "learned" if found["pos"] else "unknown")
    binding = Binding(hf, family, known=known, stack=stack, slots=slots)
    if not binding.causal:
        binding.limit("cache", BOTH_WAYS)
        binding.limit("generation", BOTH_WAYS)
    return binding
