"""Directional ablation as a weight edit: every matrix that writes to the stream made orthogonal to a direction (Arditi et al. 2024).

The exact statement: where all that is ever added to the stream is an embedding row or the output of a matrix with its bias, a
stream whose every summand is orthogonal to a direction is so at every site, and the edited model equals the whole one with the
direction removed at every site of its stream, up to rounding. A norm between a matrix and the stream breaks that (its gain is not
a multiple of the identity), so families with norms after their parts, or after the embedding, are refused. A tied unembedding is
untied first: it reads the stream, and must stay as it was.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from microtome.directions.direction import Direction
from microtome.errors import EditError, ModelError
from microtome.model.family import POST, SANDWICH
from microtome.model.slots import transposed

if TYPE_CHECKING:
    from microtome.facade import Model
    from microtome.model.binding import Binding

__all__ = ["WeightEdit", "orthogonalise", "stream_sites"]

LEAK = {torch.float32: 1e-4, torch.float64: 1e-9, torch.bfloat16: 3e-2, torch.float16: 5e-3}
"""Largest share of the stream's norm along the direction that rounding of each dtype explains."""


@dataclass(eq=False)
class WeightEdit:
    """Weights that a direction was taken out of, with what is needed to put it back.

    model: the edited model. record: what was done: the direction's hash, hashes of the model before and after, the parameters
    changed, whether the unembedding was untied, and the largest share of the stream's norm left along the direction.
    """

    model: Model
    direction: Direction
    record: Mapping[str, Any]
    _originals: dict[str, Tensor] = field(repr=False, default_factory=dict)
    _tied: bool = field(repr=False, default=False)
    active: bool = True

    def undo(self) -> Model:
        """Put the original weights back, bit for bit; nothing happens the second time. Returns the model."""
        if self.active:
            _restore(self.model, self._originals, tied=self._tied)
            self.active = False
        return self.model

    def save(self, folder: str | Path) -> Path:
        """Write the edited model as a Hugging Face folder: config, safetensors, tokenizer, and `weight_edit.json`. Returns it.

        Raises
        ------
        EditError: the edit was undone. OSError: the folder cannot be written.
        """
        if not self.active:
            raise EditError(
                "this weight edit was undone",
                why="the weights are the original ones",
                instead="edit again, then save",
            )
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        self.model.hf.save_pretrained(str(target))  # type: ignore[operator]
        if self.model.tokenizer is not None:
            self.model.tokenizer.save_pretrained(str(target))
        (target / "weight_edit.json").write_text(
            json.dumps(dict(self.record), indent=1, sort_keys=True), encoding="utf-8"
        )
        self.direction.save(target / "direction")
        return target

    def __enter__(self) -> Model:
        """The edited model; the edit is undone on leaving, whatever happens inside."""
        return self.model

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()


@torch.no_grad()
def orthogonalise(model: Model, direction: Direction, *, in_place: bool = False) -> WeightEdit:
    """Take a direction out of everything that writes to the stream: embeddings, W_O, W_out, and their biases.

    in_place: edit this very model (its hash changes until `undo`); else a copy, and the model stays as it is.

    Raises
    ------
    EditError: a direction of another width or model. ModelError: a family in which weights do not write to the stream by
    themselves (norms after a part or after the embedding, mixtures of experts, other mixers, quantised weights); and where the
    edited model still has the direction in its stream, after which everything is put back.
    """
    refuse_family(model.binding)
    direction.check(model.hash, model.facts.d_model)
    before = model.hash
    target = model if in_place else _copied(model)
    tied = target.facts.tied
    if tied:
        _untie(target)
    originals: dict[str, Tensor] = {}
    try:
        for name, parameter, width_last in writers(target.binding):
            originals[name] = parameter.detach().clone()
            parameter.copy_(_without(parameter, direction.unit, last=width_last))
        leak = _leak(target, direction)
    except BaseException:
        _restore(target, originals, tied=tied)
        raise
    record = {
        "edit": "orthogonalised", "direction": direction.hash, "site": str(direction.site), "before": before, "after": target.hash,
        "changed": sorted(originals), "untied": tied, "leak": leak,
    }  # fmt: skip
    return WeightEdit(target, direction, record, originals, tied)


def stream_sites(model: Model) -> list[str]:
    """Every site of the stream at which run-time ablation removes a direction, in the model's order."""
    out = ["embed"]
    for layer in model.facts.layers:
        out += [
            f"L{layer.index}.{point}" for point in ("resid_mid", "resid_post") if point not in layer.lacks
        ]
    return out


def refuse_family(b: Binding) -> None:
    """Refuse families in which removing a direction from weights is not removing it from the stream.

    Raises
    ------
    ModelError: the reason, by layer where it is one.
    """

    def refuse(what: str, why: str) -> ModelError:
        return ModelError(f"{b.family.name} cannot have a direction taken out of its weights: {what}", why=why,
                          instead="remove it at run time: mt.methods.directional_ablation, or mt.Remove at every site of the stream")  # fmt: skip

    if b.facts.not_additive:
        raise refuse("its stream is no plain sum", b.facts.not_additive)
    if getattr(b.config, "quantization_config", None) is not None:
        raise refuse("its weights are quantised", "a projection cannot be written into them")
    for i, s in enumerate(b.slots):
        if s.style in (POST, SANDWICH):
            raise refuse(f"layer {i} has a norm after its parts", "a norm's gain turns what an orthogonal matrix wrote back towards the direction")  # fmt: skip
        if s.at("attn") is None or s.at("o") is None or s.at("out") is None:
            kind = (
                "a mixture of experts"
                if s.mlp_kind == "moe"
                else s.kind
                if s.at("attn") is None
                else f"an MLP of kind {s.mlp_kind}"
            )
            raise refuse(
                f"layer {i} has {kind}", "its matrices that write to the stream are not known by name"
            )
    width = getattr(b.module(b.stack_path("embed")), "weight").shape[-1]  # noqa: B009
    if width != b.facts.d_model:
        raise refuse(
            "its embedding goes through a projection",
            f"rows of {width} numbers enter a stream of {b.facts.d_model}",
        )


def writers(b: Binding) -> Iterator[tuple[str, nn.Parameter, bool]]:
    """(name, parameter, whether the stream is its last axis) of everything that writes to the stream."""
    parts = [(b.stack_path("embed"), True)]
    if b.stack.get("pos") is not None:
        parts.append((b.stack_path("pos"), True))
    for s in b.slots:
        parts += [(str(s.at(part)), transposed(b.module(str(s.at(part))))) for part in ("o", "out")]
    for path, last in parts:
        module = b.module(path)
        weight, bias = module.weight, getattr(module, "bias", None)
        if not isinstance(weight, nn.Parameter) or not weight.is_floating_point():
            raise ModelError(f"{path}.weight is no floating-point parameter", why="a projection cannot be written into it",
                             instead="load the model without quantisation")  # fmt: skip
        yield f"{path}.weight", weight, last
        if isinstance(bias, nn.Parameter):
            yield f"{path}.bias", bias, True


def _without(weight: Tensor, unit: Tensor, *, last: bool) -> Tensor:
    """A weight whose stream axis has no component along a unit direction; computed in float64."""
    w, r = weight.double(), unit.to(weight.device, torch.float64)
    r = r / r.norm()
    out = w - (w @ r)[..., None] * r if last else w - r[:, None] * (r @ w)[None]
    return out.to(weight.dtype)


def _leak(model: Model, direction: Direction) -> float:
    """The largest share of the stream's norm along the direction, on random tokens.

    Raises
    ------
    ModelError: more than rounding explains: something else writes to the stream.
    """
    generator = torch.Generator().manual_seed(0)
    length = min(8, model.facts.n_ctx or 8)
    ids = torch.randint(0, model.facts.d_vocab, (2, length), generator=generator).tolist()
    sites = stream_sites(model)
    trace = model.run(ids, sites, logits=None)
    unit, worst = direction.unit.double(), 0.0
    limit = LEAK.get(next(model.hf.parameters()).dtype, 1e-4)
    for site in sites:
        values = trace[site].double().cpu()
        share = float(((values @ unit).abs() / values.norm(dim=-1).clamp_min(1e-30)).max())
        if share > limit:
            raise ModelError(f"{share:.2g} of {site} still lies along the direction after the edit", why="something other than the known matrices writes to this stream",
                             instead="remove it at run time: mt.methods.directional_ablation")  # fmt: skip
        worst = max(worst, share)
    return worst


def _copied(model: Model) -> Model:
    from microtome.facade import Model as Facade
    from microtome.model.load import load_module

    return Facade(load_module(copy.deepcopy(model.hf), tokenizer=model.tokenizer))


def _untie(model: Model) -> None:
    """Give the unembedding weights of its own."""
    head = model.binding.module(model.binding.stack_path("head"))
    weight = head.weight
    assert isinstance(weight, Tensor)
    head.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
    model.binding.config.tie_word_embeddings = False
    _forget(model)


@torch.no_grad()
def _restore(model: Model, originals: Mapping[str, Tensor], *, tied: bool) -> None:
    parameters = dict(model.hf.named_parameters())
    for name, value in originals.items():
        parameters[name].copy_(value)
    if tied:
        embed = model.binding.module(model.binding.stack_path("embed"))
        model.binding.module(model.binding.stack_path("head")).weight = embed.weight
        model.binding.config.tie_word_embeddings = True
        _forget(model)


def _forget(model: Model) -> None:
    """Facts say whether embeddings are tied; they are made anew."""
    with suppress(KeyError):
        del model.binding.__dict__["facts"]
