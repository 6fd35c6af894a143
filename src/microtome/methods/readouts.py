"""Reading the stream through the unembedding with the final norm's scale frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from microtome.errors import ModelError, TaskError
from microtome.metrics import Scoring

if TYPE_CHECKING:
    from microtome.facade import Model


def logit_direction(model: Model, plan: Scoring) -> tuple[Tensor, Tensor]:
    """Per prompt the direction of W_U that its logit difference reads, and the difference of the unembedding's biases.

    Scaled by the family's logit scale; any softcap comes after. Shapes: [prompt, d_model], [prompt].

    Raises
    ------
    TaskError: answers of more than one token.
    ModelError: something lies between the final norm and the unembedding.
    """
    if not plan.single:
        raise TaskError(
            "direct attribution needs single-token answers",
            why="it reads one logit difference",
            instead="use a task with one-token answers",
        )
    if model.binding.stack.get("project_out") is not None:
        raise ModelError(
            "this model projects the stream before unembedding",
            why="a direction of W_U is not one of the stream",
            instead="use patching",
        )
    answer = torch.tensor([terms[0][0][2] for terms in plan.answers])
    wrong = torch.tensor([terms[0][0][2] for terms in plan.wrong])
    unembed = model.weights.W_U
    scale = model.facts.logit_scale
    direction = (unembed[:, answer] - unembed[:, wrong]).T * scale
    bias = model.weights.b_U
    offset = torch.zeros(len(answer)) if bias is None else (bias[answer] - bias[wrong]) * scale
    return direction, offset.to(direction)


def through_norm(model: Model, pieces: Tensor, scale: Tensor) -> Tensor:
    """Pieces of the stream through the final norm with a frozen scale, without its bias.

    Shapes: pieces [..., prompt, d_model], scale [prompt, 1] -> [..., prompt, d_model].
    """
    return model.binding.final_norm.linear(pieces, scale)


def need_additive(model: Model, what: str) -> None:
    """Refuse attribution where the stream is not a sum.

    Raises
    ------
    ModelError: with the family's reason.
    """
    if not model.facts.additive:
        raise ModelError(
            f"{what} needs an additive stream",
            why=model.facts.not_additive,
            instead="use activation patching or ablation",
        )
