"""Where everything is: a model's module tree bound to the table of points.

`bind` resolves modules by the vocabulary of names and the family's semantics; `Binding.tap` says where a point can
be touched. Nothing here runs the model or installs a hook.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from microtome.errors import ModelError, SiteError
from microtome.model import names
from microtome.model.facts import Facts, LayerFacts
from microtome.model.family import PARALLEL, POST, PRE, SANDWICH, Block, Family, find
from microtome.model.layout import Layout
from microtome.model.norms import Norm, probe
from microtome.points import POINTS

INPUT, OUTPUT, INPLACE = "input", "output", "inplace"
NORM, HEADS = "norm", "heads"
QUERY, KEY, VALUE = "query", "key", "value"
CACHE_K, CACHE_V = "cache_k", "cache_v"
SCORES, PATTERN = "scores", "pattern"


@dataclass(frozen=True)
class Tap:
    """Where a point can be touched.

    how: "input" / "output" of a module, "inplace" (an input that the module's caller keeps using), "norm" (the
    divisor of a norm module), "heads" (derived at W_O), "query" / "key" / "value" (arguments of the attention
    function), "cache_k" / "cache_v" (what the cache receives), "scores" / "pattern" (around the softmax).
    """

    point: str
    layer: int | None
    how: str
    module: str
    layout: Layout = Layout()


@dataclass(frozen=True)
class Slots:
    """Module paths of one layer (None where absent) with its semantics and sizes."""

    path: str
    block: Block
    style: str
    kind: str
    mlp_kind: str
    n_heads: int
    n_kv: int
    d_head: int
    d_value: int
    d_mlp: int
    window: int | None
    registry: bool
    paths: Mapping[str, str | None] = field(default_factory=dict)

    def at(self, part: str) -> str | None:
        """The full module path of a part of this layer."""
        name = self.paths.get(part)
        return None if name is None else f"{self.path}.{name}"


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
        """The final norm's numbers."""
        return self.norm(self.stack_path("final_norm"))

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
        """Withdraw a way of running: "cache", "right padding" or "left padding"."""
        self.limits[what] = reason

    def lacking(self, point: str, layer: int | None) -> str | None:
        """The reason why a point is not there, or None when it is."""
        if (point, layer) in self.refused:
            return self.refused[point, layer]
        reason = self._missing(point, None if layer is None else self.slots[layer])
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
        if layer is None:
            return self._stream_tap(point)
        s = self.slots[layer]
        if POINTS[point].group == "Attention":
            return self._attention_tap(point, layer, s)
        return self._other_tap(point, layer, s)

    def _stream_tap(self, point: str) -> Tap:
        scale = self.family.embed_scale(self.config)
        match point:
            case "tok_embed":
                return Tap(point, None, OUTPUT, self.stack_path("embed"), Layout(scale=scale))
            case "pos_embed":
                return Tap(point, None, OUTPUT, self.stack_path("pos"), Layout("shared"))
            case "embed":
                return Tap(point, None, INPUT, self.slots[0].path)
            case "final_resid":
                return Tap(point, None, INPUT, self.end)
            case "final_norm_out":
                return Tap(point, None, OUTPUT, self.stack_path("final_norm"))
            case "final_scale":
                return Tap(point, None, NORM, self.stack_path("final_norm"))
            case _:
                return Tap(point, None, OUTPUT, "")

    def _attention_tap(self, point: str, layer: int, s: Slots) -> Tap:
        heads = Layout("heads", s.n_heads, s.d_value)
        o = s.at("o") or ""
        match point:
            case "ln1_out":
                return Tap(point, layer, INPUT, s.at("attn") or "")
            case "q_pre" | "k_pre":
                return Tap(point, layer, OUTPUT, *self._projection(point[0], s))
            case "q":
                if s.registry:
                    return Tap(point, layer, QUERY, s.at("attn") or "", Layout("bhsd"))
                return Tap(point, layer, OUTPUT, *self._projection("q", s))
            case "k" | "v":
                if s.block.latent:
                    return Tap(
                        point, layer, KEY if point == "k" else VALUE, s.at("attn") or "", Layout("bhsd")
                    )
                layout = (
                    Layout("repeated", repeat=s.block.kv_repeat) if s.block.kv_repeat > 1 else Layout("bhsd")
                )
                return Tap(point, layer, CACHE_K if point == "k" else CACHE_V, s.at("attn") or "", layout)
            case "scores" | "pattern":
                return Tap(
                    point,
                    layer,
                    SCORES if point == "scores" else PATTERN,
                    s.at("attn") or "",
                    Layout("square"),
                )
            case "z":
                return Tap(point, layer, INPUT, o, heads)
            case "head_out":
                return Tap(point, layer, HEADS, o, heads)
            case "attn_out" if s.style in (SANDWICH, POST):
                return Tap(point, layer, OUTPUT, s.at("ln1_post") or "", Layout(scale=s.block.attn_scale))
            case _:  # attn_raw, and attn_out where only a multiplier lies between
                return Tap(
                    point, layer, OUTPUT, o, Layout(scale=s.block.attn_scale if point == "attn_out" else 1.0)
                )

    def _other_tap(self, point: str, layer: int, s: Slots) -> Tap:
        mlp_in = s.at("mlp") or s.at("up") or ""
        match point:
            case "resid_pre":
                return Tap(point, layer, INPUT, s.path)
            case "resid_post":
                return Tap(point, layer, OUTPUT, s.path)
            case "resid_mid":
                return Tap(point, layer, INPLACE, mlp_in if s.style == POST else s.at("ln2") or "")
            case "ln2_out":
                return Tap(point, layer, INPUT, mlp_in)
            case "mlp_pre" | "mlp_gate" if s.at("gate_up") is not None:
                start = 0 if point == "mlp_gate" else s.d_mlp
                return Tap(
                    point,
                    layer,
                    OUTPUT,
                    s.at("gate_up") or "",
                    Layout("columns", start=start, stop=start + s.d_mlp),
                )
            case "mlp_pre":
                return Tap(point, layer, OUTPUT, s.at("up") or "")
            case "mlp_gate":
                return Tap(point, layer, OUTPUT, s.at("gate") or "")
            case "neurons":
                return Tap(point, layer, INPUT, s.at("out") or "")
            case "mlp_raw":
                return Tap(point, layer, OUTPUT, s.at("out") or s.at("mlp") or "")
            case "mlp_out":
                if s.style in (SANDWICH, POST):
                    return Tap(point, layer, OUTPUT, s.at("ln2_post") or "", Layout(scale=s.block.mlp_scale))
                return Tap(
                    point, layer, OUTPUT, s.at("out") or s.at("mlp") or "", Layout(scale=s.block.mlp_scale)
                )
            case "q_scale" | "k_scale":
                n = s.n_heads if point == "q_scale" else s.n_kv
                kind = s.block.qk_norm if s.block.qk_norm != "flat" else "shared_heads"
                return Tap(
                    point,
                    layer,
                    NORM,
                    s.at("q_norm" if point == "q_scale" else "k_norm") or "",
                    Layout(kind, n, 1),
                )
            case _:  # ln1_scale, ln2_scale and their post versions
                return Tap(point, layer, NORM, s.at(point.removesuffix("_scale")) or "")

    def _projection(self, which: str, s: Slots) -> tuple[str, Layout]:
        n = s.n_heads if which == "q" else s.n_kv
        if s.block.qk_norm and which in "qk":
            kind = {"flat": "heads", "bshd": "bshd", "bhsd": "bhsd"}[s.block.qk_norm]
            return s.at(f"{which}_norm") or "", Layout(kind, n, s.d_head)
        if s.block.fused is not None:
            f = s.block.fused
            return s.at("qkv") or "", Layout("fused", n, s.d_head, f.groups, f.width, getattr(f, which))
        return s.at(which) or "", Layout("heads", n, s.d_head)

    def _missing(self, point: str, s: Slots | None) -> str | None:
        if s is None:
            return self._missing_stream(point)
        if point in s.block.refuse:
            return s.block.refuse[point]
        group = POINTS[point].group
        if group == "Attention" or point in ("q_scale", "k_scale"):
            reason = _missing_attention(point, s)
            return (
                self._missing_norm(f"{point[0]}_norm", s)
                if reason is None and point in ("q_scale", "k_scale")
                else reason
            )
        if point == "resid_mid" and s.style == PARALLEL:
            return "attention and MLP read the same stream side by side, so there is no middle"
        if point in ("ln1_scale", "ln2_scale", "ln1_post_scale", "ln2_post_scale"):
            return self._missing_norm(point.removesuffix("_scale"), s)
        if group == "MLP" or point == "resid_mid":
            return _missing_mlp(point, s)
        return None

    def _missing_norm(self, part: str, s: Slots) -> str | None:
        path = s.at(part)
        if path is None:
            if part == "ln2" and s.style == PARALLEL:
                return "the MLP reads the same norm as attention: its divisor is ln1_scale"
            return f"this block style ({s.style}) has no norm there"
        try:
            self.norm(path)
        except ModelError as error:
            return error.what
        return None

    def _missing_stream(self, point: str) -> str | None:
        if point in ("final_norm_out", "final_scale") and self.stack.get("final_norm") is None:
            return "this model has no final norm: the unembedding reads final_resid"
        width = (
            getattr(self.module(self.stack_path("embed")).weight, "shape", (0, 0))[-1]
            if point == "tok_embed"
            else 0
        )
        if point == "tok_embed" and width != self.config.hidden_size:
            return f"token embeddings have {width} numbers and are projected before they enter the stream"
        if point == "pos_embed" and self.stack.get("pos") is None:
            return f"no learned position is added to the stream (positions: {self.family.positions})"
        if point == "final_scale":
            try:
                _ = self.final_norm
            except ModelError as error:
                return error.what
        return None


def _not_additive(b: Binding) -> str:
    """Why components do not add up to the stream: the family says so, or an output is not addressed."""
    if reason := b.family.not_additive(b.config):
        return reason
    for i, s in enumerate(b.slots):
        for part in ("attn_out", "mlp_out"):
            if (part == "attn_out" or s.mlp_kind != "none") and (reason := b.lacking(part, i) or ""):
                return f"layer {i} adds something that is not addressed as {part}: {reason}"
    return ""


def _missing_attention(point: str, s: Slots) -> str | None:
    if s.kind != "attention":
        return f"this layer mixes tokens by {s.kind}, not by attention"
    if point in ("q_scale", "k_scale") and s.at(f"{point[0]}_norm") is None:
        return "queries and keys are not normed in this family"
    if point in ("z", "head_out", "attn_raw") and s.at("o") is None:
        return "no output projection was found in the attention module"
    if point == "q" and not s.registry and s.block.rotates:
        return "this attention module is not on the registry and rotates queries inside"
    if point in ("q_pre", "k_pre") and s.at(point[0]) is None and s.block.fused is None:
        return "no projection module was found for it"
    return None


def _missing_mlp(point: str, s: Slots) -> str | None:
    if s.mlp_kind == "none":
        return "this layer has no MLP"
    if point in ("neurons", "mlp_pre", "mlp_gate"):
        if s.mlp_kind == "moe":
            return "a router sends each token to a few experts: neurons belong to an expert, and experts are not addressed yet"
        if s.at("out") is None:
            return "no output projection was found in the MLP"
        if point == "mlp_gate" and s.mlp_kind == "plain":
            return "this MLP has no gate"
    return None


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
    reason = _not_additive(b)
    return Facts(
        family=b.family.name,
        model_type=config.model_type,
        n_layers=len(b.slots),
        d_model=int(config.hidden_size),
        d_vocab=_tensor(head, "weight").shape[0],
        n_ctx=getattr(config, "max_position_embeddings", None) if b.family.positions != "alibi" else None,
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
        positions=b.family.positions,
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
    head = head if head and _multiplies(hf.get_submodule(head)) else None
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
        _slots(config, family, layer, i, f"{stack['layers']}.{i}")
        for i, layer in enumerate(layer_list.children())
    ]
    if family is None:
        family = _guess_family(config, "learned" if found["pos"] else "unknown")
    return Binding(hf, family, known=known, stack=stack, slots=slots)


def _slots(config: Any, family: Family | None, layer: nn.Module, index: int, path: str) -> Slots:
    attn = names.child(layer, names.ATTN)
    mlp = names.child(layer, names.MLP)
    mixer = None if attn else names.child(layer, names.MIXERS)
    block = family.block(config, index) if family else _guess(config, layer)
    paths: dict[str, str | None] = {"attn": attn, "mlp": mlp}
    if attn:
        inner = layer.get_submodule(attn)
        for part, vocabulary in (("q", names.Q), ("k", names.K), ("v", names.V), ("qkv", names.QKV), ("o", names.O),
                                 ("q_norm", names.Q_NORM), ("k_norm", names.K_NORM)):  # fmt: skip
            found = names.child(inner, vocabulary)
            good = found and (part.endswith("_norm") or _multiplies(inner.get_submodule(found)))
            paths[part] = f"{attn}.{found}" if good else None
        if not block.qk_norm:
            paths["q_norm"] = paths["k_norm"] = None
    mlp_kind, d_mlp = _mlp_slots(layer, mlp, paths)
    _norm_slots(layer, block.style, paths)
    n_heads, n_kv, d_head, d_value = _head_sizes(config, block, layer.get_submodule(attn) if attn else None)
    called = _mixer(config, index)
    kind = (called or "attention") if attn else (mixer or called or "an unknown mixer")
    return Slots(
        path, block, block.style, kind, mlp_kind, n_heads, n_kv, d_head, d_value, d_mlp,
        _window(config, index), bool(attn) and _on_registry(layer.get_submodule(attn or "")), paths,
    )  # fmt: skip


def _mlp_slots(layer: nn.Module, mlp: str | None, paths: dict[str, str | None]) -> tuple[str, int]:
    where = layer.get_submodule(mlp) if mlp else layer
    prefix = f"{mlp}." if mlp else ""
    out = names.child(where, names.OUT)
    if mlp and (out is None or not _multiplies(where.get_submodule(out))):
        return ("moe" if names.child(where, names.EXPERTS) else "unknown"), 0
    if out is None:
        return "none", 0
    for part, vocabulary in (
        ("up", names.UP),
        ("gate", names.GATE),
        ("gate_up", names.GATE_UP),
        ("out", names.OUT),
    ):
        found = names.child(where, vocabulary)
        good = found and _multiplies(where.get_submodule(found))
        paths[part] = f"{prefix}{found}" if good else None
    weight = _tensor(where.get_submodule(out), "weight")
    d_mlp = weight.shape[0] if _transposed(where.get_submodule(out)) else weight.shape[1]
    return ("gated" if paths["gate"] or paths["gate_up"] else "plain"), d_mlp


def _norm_slots(layer: nn.Module, style: str, paths: dict[str, str | None]) -> None:
    paths["ln1"] = None if style == POST else names.child(layer, names.LN1)
    if style == SANDWICH:
        paths["ln2"] = names.child(layer, names.LN2_SANDWICH)
    elif style != POST:
        paths["ln2"] = names.child(layer, names.LN2)
    if style in (SANDWICH, POST):
        paths["ln1_post"] = names.child(layer, names.LN1_POST)
        paths["ln2_post"] = names.child(layer, names.LN2_POST)
    if style == PARALLEL and paths.get("ln2") is not None and paths["ln2"] == paths["ln1"]:
        paths["ln2"] = None


def _head_sizes(config: Any, block: Block, attn: nn.Module | None) -> tuple[int, int, int, int]:
    n = int(getattr(config, "num_attention_heads", 0) or 0)
    if attn is None or not n:
        return 0, 0, 0, 0
    n_kv = int(block.n_kv_heads or getattr(config, "num_key_value_heads", None) or n)
    if block.latent:
        return n, n_kv, int(config.qk_nope_head_dim + config.qk_rope_head_dim), int(config.v_head_dim)
    d = int(getattr(attn, "head_dim", None) or getattr(config, "head_dim", None) or config.hidden_size // n)
    return n, n_kv, d, d


def _window(config: Any, index: int) -> int | None:
    window = getattr(config, "sliding_window", None) or getattr(config, "window_size", None)
    if not isinstance(window, int):
        return None
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return window if kinds[index] == "sliding_attention" else None
    local = getattr(config, "attention_layers", None)
    if local is not None:
        return window if local[index] == "local" else None
    return window if getattr(config, "use_sliding_window", True) else None


def _on_registry(attn: nn.Module) -> bool:
    home = sys.modules[type(attn).__module__]
    return hasattr(home, "ALL_ATTENTION_FUNCTIONS") and hasattr(home, "eager_attention_forward")


def _tensor(module: nn.Module, name: str) -> Tensor:
    found = getattr(module, name)
    assert isinstance(found, Tensor)
    return found


def _multiplies(module: nn.Module) -> bool:
    """Whether a module of a projection's name is one: some families wrap the matrix in a module of their own."""
    return isinstance(getattr(module, "weight", None), Tensor)


def _transposed(module: nn.Module) -> bool:
    """Conv1D of transformers keeps its weight as [in, out]."""
    return type(module).__name__ == "Conv1D"


def _mixer(config: Any, index: int) -> str:
    """What the config calls a layer that does not attend ("" when it attends, or says nothing)."""
    kinds = getattr(config, "layer_types", None)
    kind = str(kinds[index]) if kinds is not None and index < len(kinds) else ""
    return kind if any(word in kind for word in ("linear", "mamba", "conv", "recurrent")) else ""


def _guess_family(config: Any, positions: str) -> Family:
    """An unknown family's multipliers from the names that configs give them; the certificate keeps or refuses them."""

    def embed_scale(c: Any) -> float:
        return float(getattr(c, "embedding_multiplier", None) or 1.0)

    def logit_scale(c: Any) -> float:
        scale = getattr(c, "lm_head_multiplier", None) or getattr(c, "logit_scale", None) or 1.0
        return float(scale) / float(getattr(c, "logits_scaling", None) or 1.0)

    def softcap(c: Any) -> float | None:
        return getattr(c, "final_logit_softcapping", None)

    kind = config.model_type
    return Family(
        kind, (kind,), embed_scale=embed_scale, logit_scale=logit_scale, softcap=softcap, positions=positions
    )


def _guess(config: Any, layer: nn.Module) -> Block:
    """An unknown family's semantics from its norms; the certificate then keeps or refuses each point."""
    has = {name for name, _ in layer.named_children()}
    style = PRE
    if {
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    } <= has or "post_self_attn_layernorm" in has:
        style = SANDWICH
    elif "post_feedforward_layernorm" in has:
        style = POST
    elif names.child(layer, names.LN2) is None:
        style = PARALLEL
    attn = names.child(layer, names.ATTN)
    inner = layer.get_submodule(attn) if attn else None
    scale = float(getattr(config, "residual_multiplier", None) or 1.0)
    block = Block(style=style, attn_scale=scale, mlp_scale=scale)
    if inner is not None and names.child(inner, names.Q) is None:
        why = "an unknown family with a fused projection: its layout is not guessed"
        block = replace(block, refuse=dict.fromkeys(("q_pre", "k_pre"), why))
    if inner is not None and names.child(inner, names.Q_NORM) is not None:
        why = "an unknown family with query and key norms: where they act is not guessed"
        block = replace(block, refuse=dict.fromkeys(("q_pre", "k_pre", "q_scale", "k_scale"), why))
    return block
